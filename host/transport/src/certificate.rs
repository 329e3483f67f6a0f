//! Certificates with their keys, fingerprints, and the errors of handling them.

use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

/// Size of a public key as signed: an uncompressed point on P-256.
pub(super) const PUBLIC_KEY_BYTES: usize = 65;

/// A certificate, followed by its authority's, and its private key, both in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsIdentity {
    /// The chain. The identity's certificate comes first.
    pub cert_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIdentity").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

pub(super) fn fingerprint_of(cert: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(cert).into()
}

/// Reasons for which an identity cannot be created or used. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text is not PEM, or does not have the expected content.
    #[error("unreadable PEM: {0}")]
    Pem(String),
    /// The bytes are not a P-256 public key.
    #[error("a public key has {PUBLIC_KEY_BYTES} bytes and starts with 4, this one has {bytes} bytes")]
    PublicKey {
        /// Its size.
        bytes: usize,
    },
    /// The certificate could not be created.
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
