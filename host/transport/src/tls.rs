//! TLS 1.3 with mutual authentication, built from an identity and a list of authorities.
//!
//! Invariants: a certificate that does not lead to a trusted authority ends the handshake; a client without a
//! certificate is accepted as a joiner only; sessions are never resumed, so that a changed list of
//! authorities applies to every new connection.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::certificate::{IdentityError, PUBLIC_KEY_BYTES, TlsIdentity, fingerprint_of};

/// ALPN protocol: TLS refuses peers that do not speak it.
const ALPN: &[u8] = b"annulus/1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A node's TLS configuration for both directions.
pub(super) struct Credentials {
    pub server: Arc<QuicServerConfig>,
    pub client: Arc<QuicClientConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Credentials {
    pub(super) fn new(identity: &TlsIdentity, authorities: &[String]) -> Result<Self, IdentityError> {
        let roots = roots(authorities)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .allow_unauthenticated()
            .build()
            .map_err(tls)?;
        let (chain, key) = parse(identity)?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(chain, key)
            .map_err(tls)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        Ok(Self {
            server: Arc::new(QuicServerConfig::try_from(server).map_err(tls)?),
            client: client_config(trusting(roots)?, Some(identity))?,
            verifier,
        })
    }

    /// Return true if a chain that was accepted earlier leads to one of the authorities.
    pub(super) fn trusts(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((own, between)) = chain.split_first() else { return false };
        self.verifier.verify_client_cert(own, between, UnixTime::now()).is_ok()
    }
}

/// Build the configuration of a client that knows the authorities.
pub(super) fn client_trusting(
    authorities: &[String],
    identity: Option<&TlsIdentity>,
) -> Result<Arc<QuicClientConfig>, IdentityError> {
    client_config(trusting(roots(authorities)?)?, identity)
}

/// Build the configuration of a joiner that knows the authority's fingerprint.
pub(super) fn client_pinning(fingerprint: [u8; 32]) -> Result<Arc<QuicClientConfig>, IdentityError> {
    client_config(Arc::new(Pinned { fingerprint, provider: provider() }), None)
}

fn client_config(
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Option<&TlsIdentity>,
) -> Result<Arc<QuicClientConfig>, IdentityError> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => {
            let (chain, key) = parse(identity)?;
            builder.with_client_auth_cert(chain, key).map_err(tls)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    // Only the verifier needs the name; do not reveal the uid on the wire.
    config.enable_sni = false;
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(tls)?))
}

/// Return true if a certificate carries the role that its owner claims.
pub(super) fn names(cert: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(parsed) = ParsedCertificate::try_from(cert) else { return false };
    let Ok(name) = ServerName::try_from(name) else { return false };
    rustls::client::verify_server_name(&parsed, &name).is_ok()
}

/// Return the public key of a certificate, as [`key_digest`](super::identity::key_digest) takes it.
pub(super) fn public_key(cert: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let info = ParsedCertificate::try_from(cert).ok()?.subject_public_key_info();
    // The point is the end of the encoding.
    let start = info.len().checked_sub(PUBLIC_KEY_BYTES)?;
    Some(info[start..].to_vec())
}

/// Return the chain that the peer of a connection presented, empty if none.
pub(super) fn peer_chain(connection: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .map(|chain| *chain)
        .unwrap_or_default()
}

fn roots(authorities: &[String]) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut store = RootCertStore::empty();
    for pem in authorities {
        for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            store.add(cert.map_err(pem_error)?).map_err(tls)?;
        }
    }
    Ok(Arc::new(store))
}

fn trusting(roots: Arc<RootCertStore>) -> Result<Arc<dyn ServerCertVerifier>, IdentityError> {
    let verifier: Arc<dyn ServerCertVerifier> =
        WebPkiServerVerifier::builder_with_provider(roots, provider()).build().map_err(tls)?;
    Ok(verifier)
}

fn parse(
    identity: &TlsIdentity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), IdentityError> {
    let chain = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem_error)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(pem_error)?;
    Ok((chain, key))
}

fn tls(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Tls(error.to_string())
}

fn pem_error(error: rustls_pki_types::pem::Error) -> IdentityError {
    IdentityError::Pem(error.to_string())
}

/// Trusts the chain whose authority has the fingerprint, and no other.
#[derive(Debug)]
struct Pinned {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let authority =
            intermediates.iter().find(|cert| fingerprint_of(cert) == self.fingerprint).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|_| unknown())?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // QUIC does not use TLS 1.2.
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use annulus_core::ids::{ClusterId, NodeUid};
    use annulus_core::junk::{Target, attack, done};

    use super::super::identity::{Authority, NodeKey, is_key_of, key_digest};
    use super::*;

    fn leaf(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn a_certificate_has_the_key_that_was_signed() {
        let authority = Authority::create(ClusterId([1; 16])).unwrap();
        let key = NodeKey::generate().unwrap();
        let signed = leaf(&authority.sign_node_key(NodeUid([2; 16]), &key.public_key).unwrap());
        assert_eq!(public_key(&signed).as_ref(), Some(&key.public_key));
        let again = NodeKey::from_pem(&key.key_pem).unwrap();
        assert_eq!(key_digest(&again.public_key), key_digest(&key.public_key));
        assert!(is_key_of(&authority.cert_pem, &authority.key_pem));
        assert!(!is_key_of(&authority.cert_pem, &key.key_pem) && !is_key_of(&authority.cert_pem, "junk"));
    }

    #[test]
    fn no_bytes_make_a_certificate_panic() {
        let authority = Authority::create(ClusterId([1; 16])).unwrap();
        attack(&[Target {
            name: "certificate",
            valid: vec![leaf(&authority.sign_admin().unwrap().cert_pem).to_vec()],
            decode: |bytes| {
                let cert = CertificateDer::from(bytes.to_vec());
                done((names(&cert, "admin.annulus"), public_key(&cert)));
            },
        }]);
    }
}
