//! API keys: how they are made, recognised, hashed and compared.
//!
//! A key is a prefix that says what it opens (`fdk_` a device, `fda_` everything), 43 characters drawn uniformly
//! from base62 (43 × log2 62 = 256.03 bits), and a checksum of six base62 digits over all that precedes. The
//! shape follows what secret scanners look for (GitHub's "Behind GitHub's new authentication token formats",
//! 2021): a leaked key can be found by its prefix and told from noise by its checksum, a mistyped one is refused
//! without asking the registry, and a double click selects the whole.
//!
//! Only [`KeyHash`], the SHA-256 of the printed text, is stored. A password needs a slow, salted hash (argon2)
//! because people choose from few passwords; a key of 256 random bits cannot be guessed at any speed, and every
//! heartbeat checks one, so a fast hash is right. The text is 53 bytes long: SHA-256 needs one block for it.
//!
//! A key's text is not wiped from memory after use: it was in the buffers of the connection before it came here,
//! and those are not wiped either, so wiping this copy would only look safe.
use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const PREFIX_LEN: usize = 4;
/// The least length at which base62 holds 256 bits.
const SECRET_LEN: usize = 43;
/// The least length at which base62 holds a CRC32.
const CHECKSUM_LEN: usize = 6;
/// Bytes of a printed key.
pub const API_KEY_LEN: usize = PREFIX_LEN + SECRET_LEN + CHECKSUM_LEN;

/// What a key opens, written in its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// Speaks for one device.
    Device,
    /// The operator's own key.
    Admin,
}

impl KeyKind {
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Device => "fdk_",
            Self::Admin => "fda_",
        }
    }

    /// The kind that `text` claims by its prefix; `None` for a text that is no key of fleetd's making.
    pub fn of(text: &str) -> Option<Self> {
        [Self::Device, Self::Admin].into_iter().find(|kind| text.starts_with(kind.prefix()))
    }
}

/// A well-formed API key in clear: shown once to whoever gets it, then known only by its [`KeyHash`].
pub struct ApiKey {
    kind: KeyKind,
    text: String,
}

/// Why a text is no API key. Carries nothing of the text, which may be a real key with one character wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidApiKey {
    #[error("starts with neither fdk_ nor fda_")]
    Prefix,
    #[error("has {0} characters where a key has {API_KEY_LEN}; copy it whole")]
    Length(usize),
    #[error("has a character outside A-Z a-z 0-9 after its prefix")]
    Character,
    #[error("is mistyped: its checksum does not match the rest")]
    Checksum,
}

impl ApiKey {
    /// Draws a new key from the operating system's random generator.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn generate(kind: KeyKind) -> Result<Self, getrandom::Error> {
        let mut text = String::with_capacity(API_KEY_LEN);
        text.push_str(kind.prefix());
        let mut pool = [0_u8; 64];
        while text.len() < PREFIX_LEN + SECRET_LEN {
            getrandom::fill(&mut pool)?;
            // Six bits a byte, those that miss the alphabet thrown away: a remainder would favour its beginning.
            let drawn = pool.iter().filter_map(|byte| ALPHABET.get(usize::from(byte & 63)));
            let missing = PREFIX_LEN + SECRET_LEN - text.len();
            text.extend(drawn.take(missing).map(|&character| char::from(character)));
        }
        let checksum = checksum_of(&text);
        text.extend(checksum.into_iter().map(char::from));
        Ok(Self { kind, text })
    }

    /// Checks shape and checksum; whether anybody holds this key is for the registry to say.
    ///
    /// # Errors
    /// [`InvalidApiKey`] names the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidApiKey> {
        Self::check(text).map(|kind| Self { kind, text: text.to_owned() })
    }

    /// [`ApiKey::parse`] without keeping the text.
    ///
    /// # Errors
    /// As [`ApiKey::parse`].
    pub fn check(text: &str) -> Result<KeyKind, InvalidApiKey> {
        let kind = KeyKind::of(text).ok_or(InvalidApiKey::Prefix)?;
        if text.len() != API_KEY_LEN {
            return Err(InvalidApiKey::Length(text.chars().count()));
        }
        if !text.as_bytes()[PREFIX_LEN..].iter().all(u8::is_ascii_alphanumeric) {
            return Err(InvalidApiKey::Character);
        }
        let (body, checksum) = text.split_at(PREFIX_LEN + SECRET_LEN);
        if checksum_of(body) != checksum.as_bytes() {
            return Err(InvalidApiKey::Checksum);
        }
        Ok(kind)
    }

    pub const fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The key in clear, to be shown to its owner and nowhere else.
    pub fn expose(&self) -> &str {
        &self.text
    }

    pub fn hash(&self) -> KeyHash {
        KeyHash::of(&self.text)
    }
}

/// Shows the kind, never the secret.
impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}…)", self.kind.prefix())
    }
}

/// CRC32C of `body` as six base62 digits, least significant first.
fn checksum_of(body: &str) -> [u8; CHECKSUM_LEN] {
    let mut rest = crc32c::crc32c(body.as_bytes());
    let mut digits = [0; CHECKSUM_LEN];
    for digit in &mut digits {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

/// SHA-256 of a key's text: all that the registry keeps of it.
///
/// `==` takes the same time wherever the first difference is; there is no `Hash` and no order, so that nothing
/// compares it in another way by accident.
#[derive(Clone, Copy, Eq)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// Hides the digest: that of an admin key chosen by a person could be searched for.
impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn device_key() -> ApiKey {
        ApiKey::generate(KeyKind::Device).unwrap()
    }

    #[test]
    fn a_generated_key_parses_as_its_kind() {
        for kind in [KeyKind::Device, KeyKind::Admin] {
            let key = ApiKey::generate(kind).unwrap();
            assert_eq!(key.expose().len(), API_KEY_LEN);
            let parsed = ApiKey::parse(key.expose()).unwrap();
            assert_eq!(parsed.kind(), kind);
            assert_eq!(parsed.hash(), key.hash());
        }
    }

    #[test]
    fn keys_differ_and_use_the_whole_alphabet() {
        let keys: Vec<_> = (0..2_000).map(|_| device_key()).collect();
        let distinct: HashSet<_> = keys.iter().map(|key| key.expose()).collect();
        assert_eq!(distinct.len(), keys.len());
        // 86,000 draws of 62: each is expected 1,387 times, with a standard deviation of 37.
        let mut seen = [0_u32; 128];
        for key in &keys {
            for &byte in &key.expose().as_bytes()[PREFIX_LEN..PREFIX_LEN + SECRET_LEN] {
                seen[usize::from(byte)] += 1;
            }
        }
        for &character in ALPHABET {
            let times = seen[usize::from(character)];
            assert!((1_100..1_700).contains(&times), "{} came {times} times", char::from(character));
        }
    }

    #[test]
    fn one_wrong_character_anywhere_is_noticed() {
        let key = device_key();
        for at in 0..API_KEY_LEN {
            let mut bytes = key.expose().as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            let text = String::from_utf8(bytes).unwrap();
            assert!(ApiKey::parse(&text).is_err(), "position {at}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let key = device_key();
        let text = key.expose();
        assert_eq!(ApiKey::check("hunter2"), Err(InvalidApiKey::Prefix));
        assert_eq!(ApiKey::check(&text[..52]), Err(InvalidApiKey::Length(52)));
        assert_eq!(ApiKey::check(&format!("{text}x")), Err(InvalidApiKey::Length(54)));
        assert_eq!(ApiKey::check(&format!("{}-", &text[..52])), Err(InvalidApiKey::Character));
        let swapped = format!("fda_{}", &text[4..]);
        assert_eq!(ApiKey::check(&swapped), Err(InvalidApiKey::Checksum), "the prefix is under the checksum");
    }

    #[test]
    fn debug_shows_neither_key_nor_hash() {
        let key = device_key();
        assert_eq!(format!("{key:?}"), "ApiKey(fdk_…)");
        assert_eq!(format!("{:?}", key.hash()), "KeyHash(…)");
    }

    #[test]
    fn the_hash_is_the_sha_256_of_the_text() {
        // NIST's example: SHA-256 of "abc".
        let expected = [
            0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23, 0xb0, 0x03,
            0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad,
        ];
        assert_eq!(KeyHash::of("abc").as_bytes(), &expected);
        assert!(KeyHash::of("abc") != KeyHash::of("abd"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,80}", tail in ".{0,60}") {
            let _ = ApiKey::check(&text);
            let _ = ApiKey::check(&format!("fdk_{tail}"));
        }
    }
}
