//! A file's SHA-256, which is also its name in the store.
use std::fmt;

/// How checksums of the contract begin.
const PREFIX: &str = "sha256:";

/// The SHA-256 of a file; shown as the contract writes it, `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Checksum([u8; 32]);

/// Why a text is no checksum; follows a field's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no checksum: give sha256: and 64 hexadecimal digits")]
pub struct InvalidChecksum;

impl Checksum {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digits alone, in lower case.
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
        self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }

    /// Reads what [`Self::hex`] writes; digits may be in upper case.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let nibble = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Self(bytes))
    }

    /// Reads what `Display` writes.
    pub fn parse(text: &str) -> Result<Self, InvalidChecksum> {
        text.strip_prefix(PREFIX).and_then(Self::from_hex).ok_or(InvalidChecksum)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.hex())
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_read_as_it_is_written() {
        let text = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let checksum = Checksum::parse(text).unwrap();
        assert_eq!(checksum.to_string(), text);
        let shouted = format!("sha256:{}", text[7..].to_ascii_uppercase());
        assert_eq!(Checksum::parse(&shouted), Ok(checksum));
    }

    #[test]
    fn what_is_no_sha256_is_refused() {
        let digits = "0".repeat(64);
        for text in ["", "sha256:", &digits, &format!("md5:{digits}"), &format!("sha256:{}g", &digits[1..])] {
            assert_eq!(Checksum::parse(text), Err(InvalidChecksum), "{text:?}");
        }
        assert!(Checksum::parse(&format!("sha256:{digits}0")).is_err());
        assert!(Checksum::parse(&format!("sha256:+{}", &digits[1..])).is_err());
    }
}
