//! Join tokens: a token admits a new node, and authenticates the cluster to the new node.
//!
//! The text is `annulus1` and, in base 32 without padding, the cluster's id (16 bytes), the SHA-256 of its
//! authority's certificate (32), the secret (16) and the first 4 bytes of a SHA-256 over all of these, to
//! distinguish a mistyped token from an expired one. The cluster stores only a digest of the secret.

use std::fmt;
use std::str::FromStr;

use annulus_core::ids::{ClusterId, Digest};
use sha2::{Digest as _, Sha256};

use annulus_transport::identity::{IdentityError, fingerprint};

const PREFIX: &str = "annulus1";
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const BODY: usize = 16 + 32 + 16;
const CHECK: usize = 4;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The cluster that the token admits to.
    pub cluster: ClusterId,
    /// SHA-256 of the certificate of that cluster's authority.
    pub authority: [u8; 32],
    secret: [u8; 16],
}

/// The reason for which a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text does not have the form of a token.
    #[error("this is not a join token: one starts with {PREFIX} and is printed by `annulus token`")]
    NotAToken,
    /// Some characters are missing or wrong.
    #[error("the join token is incomplete or mistyped: copy the whole line that `annulus token` printed")]
    Mistyped,
}

impl Token {
    /// Generate a token with a new secret. `authority_pem` is the certificate of the cluster's authority.
    pub fn generate(cluster: ClusterId, authority_pem: &str) -> Result<Self, IdentityError> {
        Ok(Self { cluster, authority: fingerprint(authority_pem)?, secret: annulus_ground::random() })
    }

    /// Return the digest that the cluster stores.
    pub fn digest(&self) -> Digest {
        digest_of(&self.secret)
    }

    /// Return the secret that the joining node shows.
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }
}

/// Return the digest of a secret.
pub fn digest_of(secret: &[u8]) -> Digest {
    Digest(Sha256::digest(secret).into())
}

/// Return this machine's time, in milliseconds since 1970. Used only for the expiry of tokens.
pub fn now_ms() -> u64 {
    annulus_ground::wall_ms()
}

// The secret is left out, because tokens do not belong in logs.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [self.cluster.0.as_slice(), &self.authority, &self.secret].concat();
        let check = Sha256::digest(&bytes);
        bytes.extend_from_slice(&check[..CHECK]);
        write!(f, "{PREFIX}{}", base32(&bytes))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim().to_ascii_lowercase();
        let digits = text.strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        let bytes = from_base32(digits).ok_or(TokenError::Mistyped)?;
        let (body, check) = bytes.split_at_checked(BODY).ok_or(TokenError::Mistyped)?;
        if check != &Sha256::digest(body)[..CHECK] {
            return Err(TokenError::Mistyped);
        }
        let part = |from: usize, out: &mut [u8]| out.copy_from_slice(&body[from..from + out.len()]);
        let (mut cluster, mut authority, mut secret) = ([0; 16], [0; 32], [0; 16]);
        part(0, &mut cluster);
        part(16, &mut authority);
        part(48, &mut secret);
        Ok(Self { cluster: ClusterId(cluster), authority, secret })
    }
}

fn base32(bytes: &[u8]) -> String {
    let digit = |at: usize| {
        // Take the five bits from bit 5 * at on. Bits beyond the end are zeros.
        let (byte, bit) = (at * 5 / 8, at * 5 % 8);
        let pair = u16::from_be_bytes([bytes[byte], bytes.get(byte + 1).copied().unwrap_or(0)]);
        char::from(ALPHABET[usize::from(pair >> (11 - bit)) & 31])
    };
    (0..(bytes.len() * 8).div_ceil(5)).map(digit).collect()
}

fn from_base32(digits: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut count) = (Vec::with_capacity(digits.len() * 5 / 8), 0u32, 0);
    for digit in digits.bytes() {
        let value = ALPHABET.iter().position(|known| *known == digit)?;
        bits = bits << 5 | value as u32;
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    // The remaining bits are padding.
    (bits == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn token() -> Token {
        Token { cluster: ClusterId([7; 16]), authority: [9; 32], secret: [0xab; 16] }
    }

    #[test]
    fn a_token_survives_paper_and_upper_case() {
        let text = token().to_string();
        assert_eq!(text.parse::<Token>().unwrap(), token());
        assert_eq!(format!("  {}\n", text.to_uppercase()).parse::<Token>().unwrap(), token());
    }

    #[test]
    fn every_mistyped_character_is_told_from_a_token_that_ended() {
        let text = token().to_string();
        for at in PREFIX.len()..text.len() {
            let mut typed = text.clone().into_bytes();
            typed[at] = if typed[at] == b'a' { b'b' } else { b'a' };
            let typed = String::from_utf8(typed).unwrap();
            assert_eq!(typed.parse::<Token>(), Err(TokenError::Mistyped), "{typed}");
            assert_eq!(text[..at].parse::<Token>(), Err(TokenError::Mistyped));
        }
        assert_eq!("hello".parse::<Token>(), Err(TokenError::NotAToken));
        assert_eq!(format!("{text}aa").parse::<Token>(), Err(TokenError::Mistyped));
    }
}
