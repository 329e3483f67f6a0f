//! Who is who: the cluster's authority, and the certificates that it signs.
//!
//! A certificate says a role and, for a node, its uid, in its DNS names:
//! `UID.node.annulus` and `node.annulus` for a node, `admin.annulus` for an operator. Every
//! certificate comes with its authority's behind it, so that a joining node that knows only the
//! fingerprint (from the token) can check the chain.
//!
//! Certificates do not expire in practice: who belongs to the cluster is the member table's word,
//! not a date's (R20).
//!
//! In a simulation (a [`annulus_ground::Scope`]) what is made is a `badge` instead.

use annulus_core::ids::{ClusterId, NodeUid};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest as _, Sha256};

use super::badge;

/// Every node's certificate carries it: what a client asks for that does not know a uid.
pub const ANY_NODE: &str = "node.annulus";
/// Every operator's certificate carries it.
pub const ADMIN: &str = "admin.annulus";

/// Bytes of an uncompressed point on P-256: a public key as it is signed.
pub(super) const PUBLIC_KEY_BYTES: usize = 65;

/// The DNS name in the certificate of this very node.
pub fn node_name(uid: NodeUid) -> String {
    format!("{uid}.{ANY_NODE}")
}

/// A certificate (with its authority's behind it) and its private key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsIdentity {
    /// The chain, own certificate first.
    pub cert_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIdentity").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// A key made where it will be used; only its public half travels to be signed.
pub struct NodeKey {
    /// PKCS#8 PEM: stays in the data directory.
    pub key_pem: String,
    /// To be sent to the authority: see [`Authority::sign_node_key`].
    pub public_key: Vec<u8>,
}

impl NodeKey {
    /// A fresh key.
    pub fn generate() -> Result<NodeKey, IdentityError> {
        if annulus_ground::Scope::current().is_some() {
            let (key_pem, public_key) = badge::key();
            return Ok(NodeKey { key_pem, public_key });
        }
        let key = KeyPair::generate()?;
        Ok(NodeKey { key_pem: key.serialize_pem(), public_key: key.public_key_raw().to_vec() })
    }

    /// With the certificate that the authority made for it.
    pub fn with_certificate(self, cert_pem: String) -> TlsIdentity {
        TlsIdentity { cert_pem, key_pem: self.key_pem }
    }
}

/// The cluster's certificate authority: whoever holds `key_pem` can admit nodes and operators.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    /// For which cluster it signs.
    pub cluster: ClusterId,
    /// Its own certificate: what every member trusts.
    pub cert_pem: String,
    /// PKCS#8: secret.
    pub key_pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority with a fresh key.
    pub fn create(cluster: ClusterId) -> Result<Authority, IdentityError> {
        if annulus_ground::Scope::current().is_some() {
            let (key_pem, public_key) = badge::key();
            return Ok(Authority { cluster, cert_pem: badge::authority(cluster, &public_key), key_pem });
        }
        let key = KeyPair::generate()?;
        let cert_pem = authority_params(cluster).self_signed(&key)?.pem();
        Ok(Authority { cluster, cert_pem, key_pem: key.serialize_pem() })
    }

    /// A node's identity, key included: for the node that holds the authority.
    pub fn sign_node(&self, uid: NodeUid) -> Result<TlsIdentity, IdentityError> {
        let key = NodeKey::generate()?;
        let cert_pem = self.sign_node_key(uid, &key.public_key)?;
        Ok(key.with_certificate(cert_pem))
    }

    /// The certificate chain (PEM) for a node that made its key itself.
    pub fn sign_node_key(&self, uid: NodeUid, public_key: &[u8]) -> Result<String, IdentityError> {
        let names = vec![node_name(uid), ANY_NODE.to_owned()];
        self.sign(names, &format!("Annulus node {uid}"), &[Usage::ServerAuth, Usage::ClientAuth], public_key)
    }

    /// An operator's identity.
    pub fn sign_admin(&self) -> Result<TlsIdentity, IdentityError> {
        let key = NodeKey::generate()?;
        let names = vec![ADMIN.to_owned()];
        let cert_pem = self.sign(names, "Annulus operator", &[Usage::ClientAuth], &key.public_key)?;
        Ok(key.with_certificate(cert_pem))
    }

    fn sign(
        &self,
        names: Vec<String>,
        common_name: &str,
        usages: &[Usage],
        public_key: &[u8],
    ) -> Result<String, IdentityError> {
        let public_key = P256PublicKey::parse(public_key)?;
        if annulus_ground::Scope::current().is_some() {
            let badge = badge::sign(fingerprint(&self.cert_pem)?, &names, public_key.0);
            return Ok(badge + &self.cert_pem);
        }
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = named(common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::new(authority_params(self.cluster), KeyPair::from_pem(&self.key_pem)?);
        let cert = params.signed_by(&public_key, &issuer)?;
        Ok(cert.pem() + &self.cert_pem)
    }
}

use ExtendedKeyUsagePurpose as Usage;

/// The same for one cluster whenever it is asked, so that the authority's subject and the issuer
/// in what it signs agree.
fn authority_params(cluster: ClusterId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Annulus cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// A public key from elsewhere.
struct P256PublicKey<'a>(&'a [u8]);

impl<'a> P256PublicKey<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, IdentityError> {
        // 4 is the tag of an uncompressed point.
        if bytes.len() != PUBLIC_KEY_BYTES || bytes[0] != 4 {
            return Err(IdentityError::PublicKey { bytes: bytes.len() });
        }
        Ok(Self(bytes))
    }
}

impl PublicKeyData for P256PublicKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// SHA-256 of an authority's certificate: what a token carries to pin it.
pub fn fingerprint(authority_pem: &str) -> Result<[u8; 32], IdentityError> {
    let cert = CertificateDer::from_pem_slice(authority_pem.as_bytes())
        .map_err(|error| IdentityError::Pem(error.to_string()))?;
    Ok(fingerprint_of(&cert))
}

pub(super) fn fingerprint_of(cert: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(cert).into()
}

/// Why an identity cannot be made or used. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not PEM, or not what it should hold.
    #[error("unreadable PEM: {0}")]
    Pem(String),
    /// Not a P-256 public key.
    #[error("a public key has {PUBLIC_KEY_BYTES} bytes and begins with 4, this one has {bytes} bytes")]
    PublicKey {
        /// How many it has.
        bytes: usize,
    },
    /// The certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Signing(String),
    /// The TLS library refuses the certificate, the key or the authority.
    #[error("unusable certificate, key or authority: {0}")]
    Tls(String),
}

impl From<rcgen::Error> for IdentityError {
    fn from(error: rcgen::Error) -> Self {
        IdentityError::Signing(error.to_string())
    }
}
