//! Substitutes for keys and certificates on simulated networks, which have no TLS.
//!
//! Within an [`annulus_ground::Scope`] the functions of [`identity`](super::identity) create badges. They
//! have the form of the real ones, PEM included, so that all code that stores, sends and pins certificates
//! runs unchanged. They name their issuer, key and names, and prove nothing. Random numbers come from the
//! scope. TLS rejects them.

use std::collections::BTreeSet;

use annulus_core::ids::ClusterId;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::certificate::{IdentityError, PUBLIC_KEY_BYTES, TlsIdentity, fingerprint_of};

const MAGIC: &str = "annulus badge";
const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";

/// Create a key: private (PEM) and public.
pub(super) fn key() -> (String, Vec<u8>) {
    let mut public = vec![0; PUBLIC_KEY_BYTES];
    annulus_ground::Source.fill(&mut public);
    // This is the tag of an uncompressed point, the first byte of every public key.
    public[0] = 4;
    (pem(PRIVATE_KEY, &format!("{MAGIC}\nkey {}\n", hex(&public))), public)
}

/// Return the public key of a private one (PEM).
pub(super) fn public_key(key_pem: &str) -> Result<Vec<u8>, IdentityError> {
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(unreadable)?;
    let digits = text(key.secret_der())?.trim_end().rsplit(' ').next().unwrap_or_default();
    unhex(digits).ok_or_else(|| IdentityError::Tls("a badge's key is damaged".to_owned()))
}

/// Return the public key of an authority (PEM).
pub(super) fn authority_key(cert_pem: &str) -> Result<Vec<u8>, IdentityError> {
    let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(unreadable)?;
    let digits = text(&cert)?.trim_end().rsplit(' ').next().unwrap_or_default();
    unhex(digits).ok_or_else(|| IdentityError::Tls("an authority's key is damaged".to_owned()))
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let byte = |at: usize| digits.get(at..at + 2).and_then(|byte| u8::from_str_radix(byte, 16).ok());
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// Create the certificate of an authority (PEM).
pub(super) fn authority(cluster: ClusterId, public_key: &[u8]) -> String {
    pem(CERTIFICATE, &format!("{MAGIC}\ncluster {cluster}\nkey {}\n", hex(public_key)))
}

/// Create a certificate (PEM) signed by an authority.
pub(super) fn sign(issuer: [u8; 32], names: &[String], public_key: &[u8]) -> String {
    let mut text = format!("{MAGIC}\nissuer {}\nkey {}\n", hex(&issuer), hex(public_key));
    names.iter().for_each(|name| text += &format!("name {name}\n"));
    pem(CERTIFICATE, &text)
}

/// The identity that a peer claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Badge {
    /// Fingerprint of the authority, in hex.
    issuer: String,
    key: String,
    names: Vec<String>,
}

impl Badge {
    fn read(cert_pem: &str) -> Result<Self, IdentityError> {
        let leaf = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(unreadable)?;
        let text = text(&leaf)?;
        let lines = |word: &str| -> Vec<String> {
            let of_word = text.lines().filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
            of_word.map(str::to_owned).collect()
        };
        let one =
            |word| lines(word).pop().ok_or_else(|| IdentityError::Tls(format!("a badge without {word}")));
        Ok(Self { issuer: one("issuer")?, key: one("key")?, names: lines("name") })
    }

    /// Return the public key that the badge states.
    pub(super) fn public_key(&self) -> Option<Vec<u8>> {
        unhex(&self.key)
    }

    /// Return true if the badge carries a role's name.
    pub(super) fn names(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }
}

/// The identity and trust of one side of a handshake.
#[derive(Debug)]
pub(crate) struct Credentials {
    own: Option<Badge>,
    /// Fingerprints of authorities, in hex.
    trusted: BTreeSet<String>,
}

impl Credentials {
    pub(super) fn new(identity: Option<&TlsIdentity>, authorities: &[String]) -> Result<Self, IdentityError> {
        let own = identity.map(own).transpose()?;
        let mut trusted = BTreeSet::new();
        for pem in authorities {
            for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let cert = cert.map_err(unreadable)?;
                text(&cert)?;
                trusted.insert(hex(&fingerprint_of(&cert)));
            }
        }
        if trusted.is_empty() {
            return Err(IdentityError::Tls("no authority to trust".to_owned()));
        }
        Ok(Self { own, trusted })
    }

    /// Create the credentials of a joiner that knows only an authority's fingerprint.
    pub(super) fn pinning(fingerprint: [u8; 32]) -> Self {
        Self { own: None, trusted: [hex(&fingerprint)].into() }
    }

    pub(super) fn own(&self) -> Option<&Badge> {
        self.own.as_ref()
    }

    /// Return true if one of the trusted authorities issued the badge.
    pub(super) fn trusts(&self, badge: &Badge) -> bool {
        self.trusted.contains(&badge.issuer)
    }
}

fn own(identity: &TlsIdentity) -> Result<Badge, IdentityError> {
    let badge = Badge::read(&identity.cert_pem)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(unreadable)?;
    if text(key.secret_der())? != format!("{MAGIC}\nkey {}\n", badge.key) {
        return Err(IdentityError::Tls("the key is not that of the certificate".to_owned()));
    }
    Ok(badge)
}

fn text(der: &[u8]) -> Result<&str, IdentityError> {
    let text = std::str::from_utf8(der).ok().filter(|text| text.starts_with(MAGIC));
    text.ok_or_else(|| IdentityError::Tls("a real certificate or key on a simulated network".to_owned()))
}

fn unreadable(error: rustls_pki_types::pem::Error) -> IdentityError {
    IdentityError::Pem(error.to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pem(label: &str, text: &str) -> String {
    const LINE: usize = 64;
    let encoded = base64(text.as_bytes());
    let mut pem = format!("-----BEGIN {label}-----\n");
    for start in (0..encoded.len()).step_by(LINE) {
        pem += &encoded[start..encoded.len().min(start + LINE)];
        pem.push('\n');
    }
    pem + &format!("-----END {label}-----\n")
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let byte = |index: usize| u32::from(three.get(index).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for letter in 0..4 {
            let value = bits >> (18 - 6 * letter) & 63;
            out.push(if letter <= three.len() { char::from(LETTERS[value as usize]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_public_key_is_read_from_the_private_one() {
        let (private, public) = key();
        assert_eq!(public_key(&private).unwrap(), public);
    }

    #[test]
    fn no_bytes_make_a_badge_panic() {
        use annulus_core::junk::{Target, attack, done};

        let (private, public) = key();
        let signed = sign([1; 32], &["a.node".into()], &public);
        attack(&[Target {
            name: "badge",
            valid: vec![private.into_bytes(), signed.into_bytes()],
            decode: |bytes| {
                let text = String::from_utf8_lossy(bytes);
                done((Badge::read(&text), public_key(&text), authority_key(&text)));
            },
        }]);
    }

    #[test]
    fn text_of_every_length_survives_its_pem() {
        for length in 0..200 {
            let text = MAGIC.repeat(20)[..length].to_owned();
            let read = CertificateDer::from_pem_slice(pem(CERTIFICATE, &text).as_bytes());
            assert_eq!(read.unwrap().as_ref(), text.as_bytes(), "{length}");
        }
    }
}
