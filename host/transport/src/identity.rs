//! Identities: the cluster's certificate authority, and the certificates that it signs.
//!
//! A certificate states a role, and a node's uid, in its DNS names: `UID.node.annulus` and `node.annulus` for
//! a node, `admin.annulus` for an operator. Every certificate is followed by its authority's, so that a
//! joining node that knows only the fingerprint (from the token) can verify the chain.
//!
//! Certificates do not expire in practice: the member table decides who belongs to the cluster (R20).
//!
//! In a simulation (within an [`annulus_ground::Scope`]), `badge`s take the place of certificates.

use annulus_core::ids::{ClusterId, Digest, NodeUid};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest as _, Sha256};

use super::badge;
pub use super::certificate::{IdentityError, TlsIdentity};
use super::certificate::{PUBLIC_KEY_BYTES, fingerprint_of};
use super::tls;

/// Name in every node's certificate: requested by clients that do not know the uid.
pub const ANY_NODE: &str = "node.annulus";
/// Name in every operator's certificate.
pub const ADMIN: &str = "admin.annulus";

/// Return the DNS name in a given node's certificate.
pub fn node_name(uid: NodeUid) -> String {
    format!("{uid}.{ANY_NODE}")
}

/// A key pair, generated on the node that uses it. Only the public key is sent to be signed.
pub struct NodeKey {
    /// PKCS#8 in PEM. Stays in the data directory.
    pub key_pem: String,
    /// Sent to the authority: see [`Authority::sign_node_key`].
    pub public_key: Vec<u8>,
}

impl NodeKey {
    /// Generate a key pair.
    pub fn generate() -> Result<NodeKey, IdentityError> {
        if annulus_ground::Scope::current().is_some() {
            let (key_pem, public_key) = badge::key();
            return Ok(NodeKey { key_pem, public_key });
        }
        let key = KeyPair::generate()?;
        Ok(NodeKey { key_pem: key.serialize_pem(), public_key: key.public_key_raw().to_vec() })
    }

    /// Read a private key that was generated earlier.
    pub fn from_pem(key_pem: &str) -> Result<NodeKey, IdentityError> {
        let key_pem = key_pem.to_owned();
        if annulus_ground::Scope::current().is_some() {
            let public_key = badge::public_key(&key_pem)?;
            return Ok(NodeKey { key_pem, public_key });
        }
        let public_key = KeyPair::from_pem(&key_pem)?.public_key_raw().to_vec();
        Ok(NodeKey { key_pem, public_key })
    }

    /// Combine the key with the certificate that the authority signed for it.
    pub fn with_certificate(self, cert_pem: String) -> TlsIdentity {
        TlsIdentity { cert_pem, key_pem: self.key_pem }
    }
}

/// The cluster's certificate authority. The holder of `key_pem` can admit nodes and operators.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    /// The cluster that it signs for.
    pub cluster: ClusterId,
    /// Its own certificate, which every member trusts.
    pub cert_pem: String,
    /// PKCS#8. Secret.
    pub key_pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Authority {
    /// Create an authority with a new key.
    pub fn create(cluster: ClusterId) -> Result<Authority, IdentityError> {
        if annulus_ground::Scope::current().is_some() {
            let (key_pem, public_key) = badge::key();
            return Ok(Authority { cluster, cert_pem: badge::authority(cluster, &public_key), key_pem });
        }
        let key = KeyPair::generate()?;
        let cert_pem = authority_params(cluster).self_signed(&key)?.pem();
        Ok(Authority { cluster, cert_pem, key_pem: key.serialize_pem() })
    }

    /// Create a node's identity including its key, on the node that holds the authority.
    pub fn sign_node(&self, uid: NodeUid) -> Result<TlsIdentity, IdentityError> {
        let key = NodeKey::generate()?;
        let cert_pem = self.sign_node_key(uid, &key.public_key)?;
        Ok(key.with_certificate(cert_pem))
    }

    /// Sign the public key of a node that generated its own key. Returns the chain in PEM.
    pub fn sign_node_key(&self, uid: NodeUid, public_key: &[u8]) -> Result<String, IdentityError> {
        let names = vec![node_name(uid), ANY_NODE.to_owned()];
        self.sign(names, &format!("Annulus node {uid}"), &[Usage::ServerAuth, Usage::ClientAuth], public_key)
    }

    /// Create an operator's identity.
    pub fn sign_admin(&self) -> Result<TlsIdentity, IdentityError> {
        let key = NodeKey::generate()?;
        let cert_pem = self.sign_admin_key(&key.public_key)?;
        Ok(key.with_certificate(cert_pem))
    }

    /// Sign the public key of an operator. Returns the chain in PEM.
    pub fn sign_admin_key(&self, public_key: &[u8]) -> Result<String, IdentityError> {
        self.sign(vec![ADMIN.to_owned()], "Annulus operator", &[Usage::ClientAuth], public_key)
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

/// Return the parameters that name the authority. They depend on the cluster only, so that the authority's
/// subject agrees with the issuer in the certificates that it signs.
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

/// A public key received from elsewhere.
struct P256PublicKey<'a>(&'a [u8]);

impl<'a> P256PublicKey<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, IdentityError> {
        // The tag of an uncompressed point is 4.
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

/// Check that bytes have the form of a public key that an authority signs.
pub fn check_public_key(bytes: &[u8]) -> Result<(), IdentityError> {
    P256PublicKey::parse(bytes).map(drop)
}

/// Return true if a private key is that of an authority's certificate.
pub fn is_key_of(authority_pem: &str, key_pem: &str) -> bool {
    let Ok(key) = NodeKey::from_pem(key_pem) else { return false };
    if annulus_ground::Scope::current().is_some() {
        return badge::authority_key(authority_pem).is_ok_and(|own| own == key.public_key);
    }
    let Ok(cert) = CertificateDer::from_pem_slice(authority_pem.as_bytes()) else { return false };
    tls::public_key(&cert).is_some_and(|own| own == key.public_key)
}

/// Return the digest of a public key, by which the member table knows it.
pub fn key_digest(public_key: &[u8]) -> Digest {
    Digest(Sha256::digest(public_key).into())
}

/// Return the SHA-256 of an authority's certificate. Tokens carry it to pin the authority.
pub fn fingerprint(authority_pem: &str) -> Result<[u8; 32], IdentityError> {
    let cert = CertificateDer::from_pem_slice(authority_pem.as_bytes())
        .map_err(|error| IdentityError::Pem(error.to_string()))?;
    Ok(fingerprint_of(&cert))
}
