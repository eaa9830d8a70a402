//! Newtypes for the identifiers that travel through the server, checked once at the door.
use std::fmt;
use std::sync::Arc;

/// The longest device id that is accepted, in bytes. Ids are keys of the directory, of every telemetry row and
/// of file names in exports, so they are kept short; 128 holds a UUID, a MAC, an IMEI or a DNS name of usual length.
pub const MAX_DEVICE_ID_BYTES: usize = 128;

/// A device's name for itself: 1 to 128 bytes of `A-Z a-z 0-9 . _ : -`, starting with a letter or a digit.
///
/// Cheap to clone: the text is shared between the directory, the actor and the fleet index.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(Arc<str>);

/// Why a text is no device id; the `Display` form follows a field's name: "device_id is empty".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDeviceId {
    #[error("is empty; give 1 to {MAX_DEVICE_ID_BYTES} characters of A-Z a-z 0-9 . _ : -")]
    Empty,
    #[error("has {0} bytes; at most {MAX_DEVICE_ID_BYTES} are allowed")]
    TooLong(usize),
    #[error(
        "has {character:?} at byte {at}; only A-Z a-z 0-9 . _ : - are allowed, and the first must be a letter or digit"
    )]
    Character { character: char, at: usize },
}

impl DeviceId {
    /// Checks `text` without allocating.
    pub fn check(text: &str) -> Result<(), InvalidDeviceId> {
        if text.is_empty() {
            return Err(InvalidDeviceId::Empty);
        }
        if text.len() > MAX_DEVICE_ID_BYTES {
            return Err(InvalidDeviceId::TooLong(text.len()));
        }
        for (at, character) in text.char_indices() {
            let allowed = character.is_ascii_alphanumeric() || (at > 0 && matches!(character, '.' | '_' | ':' | '-'));
            if !allowed {
                return Err(InvalidDeviceId::Character { character, at });
            }
        }
        Ok(())
    }

    pub fn parse(text: &str) -> Result<Self, InvalidDeviceId> {
        Self::check(text)?;
        Ok(Self(Arc::from(text)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lets a map keyed by `DeviceId` be asked with a borrowed `&str`; `Hash` and `Eq` are those of the text.
impl std::borrow::Borrow<str> for DeviceId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_field_are_accepted() {
        for id in [
            "rpi-001",
            "a",
            "AA:BB:CC:DD:EE:FF",
            "0193b1c2-7b7e-7000-8000-000000000000",
            "host_1.example.com",
            &"x".repeat(128),
        ] {
            assert_eq!(DeviceId::check(id), Ok(()), "{id}");
        }
    }

    #[test]
    fn what_could_hide_or_escape_is_refused() {
        assert_eq!(DeviceId::check(""), Err(InvalidDeviceId::Empty));
        assert_eq!(DeviceId::check(&"x".repeat(129)), Err(InvalidDeviceId::TooLong(129)));
        for (id, at) in
            [("../etc", 0), ("a/b", 1), ("a b", 1), ("-rf", 0), ("a\0", 1), ("ünï", 0), ("a\n", 1), ("a*", 1)]
        {
            assert!(
                matches!(DeviceId::check(id), Err(InvalidDeviceId::Character { at: found, .. }) if found == at),
                "{id:?}"
            );
        }
    }
}
