//! What an uploader says about a file, checked before a byte of it is taken.
use super::checksum::{Checksum, InvalidChecksum};
use super::upload::MAX_BINARY_BYTES;

const MAX_NAME_BYTES: usize = 255;
const MAX_VERSION_BYTES: usize = 128;
const MAX_PLATFORM_BYTES: usize = 128;

/// Characters of a wrong value that an error repeats.
const SHOWN_CHARACTERS: usize = 64;

/// A file's description. Its name is safe to be shown, to be put into a header, and to be a file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub name: String,
    pub version: String,
    pub platform: String,
    /// The bytes must have it, where it was said.
    pub checksum: Option<Checksum>,
    /// There must be as many bytes, where it was said.
    pub size_bytes: Option<u64>,
}

/// What is wrong with a description: which field, which value, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDescription {
    #[error("metadata.{field} is empty; give 1 to {allowed} bytes")]
    Empty { field: &'static str, allowed: usize },
    #[error("metadata.{field} has {bytes} bytes; at most {allowed} are allowed")]
    TooLong { field: &'static str, bytes: usize, allowed: usize },
    #[error("metadata.name {shown:?} names a folder; give a file's name")]
    Folder { shown: String },
    #[error("metadata.{field} {shown:?} has {character:?}, which is not allowed")]
    Character { field: &'static str, shown: String, character: char },
    #[error("metadata.checksum {shown:?} {reason}")]
    Checksum { shown: String, reason: InvalidChecksum },
    #[error("metadata.size_bytes is {0}; give the length in bytes, up to {MAX_BINARY_BYTES}, or 0 if it is not known")]
    Size(i64),
}

impl Description {
    /// # Errors
    /// The first field that is wrong, in the order of the arguments. Empty `checksum` and 0 `size_bytes` mean "not said".
    pub fn parse(
        name: String,
        version: String,
        platform: String,
        checksum: &str,
        size_bytes: i64,
    ) -> Result<Self, InvalidDescription> {
        check_text("name", &name, MAX_NAME_BYTES)?;
        if name.is_empty() {
            return Err(InvalidDescription::Empty { field: "name", allowed: MAX_NAME_BYTES });
        }
        if let Some(character) = name.chars().find(|character| matches!(character, '/' | '\\')) {
            return Err(InvalidDescription::Character { field: "name", shown: shown(&name), character });
        }
        if name == "." || name == ".." {
            return Err(InvalidDescription::Folder { shown: name });
        }
        check_text("version", &version, MAX_VERSION_BYTES)?;
        check_text("platform", &platform, MAX_PLATFORM_BYTES)?;
        let checksum = match checksum {
            "" => None,
            text => Some(
                Checksum::parse(text).map_err(|reason| InvalidDescription::Checksum { shown: shown(text), reason })?,
            ),
        };
        let size_bytes = match u64::try_from(size_bytes) {
            Ok(0) => None,
            Ok(size) if size <= MAX_BINARY_BYTES => Some(size),
            _ => return Err(InvalidDescription::Size(size_bytes)),
        };
        Ok(Self { name, version, platform, checksum, size_bytes })
    }
}

fn check_text(field: &'static str, text: &str, allowed: usize) -> Result<(), InvalidDescription> {
    if text.len() > allowed {
        return Err(InvalidDescription::TooLong { field, bytes: text.len(), allowed });
    }
    match text.chars().find(|character| is_control(*character)) {
        Some(character) => Err(InvalidDescription::Character { field, shown: shown(text), character }),
        None => Ok(()),
    }
}

/// Also what turns the direction of text or breaks lines: with it a name could look like another one.
fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Result<Description, InvalidDescription> {
        Description::parse(name.to_owned(), "2.0.0".into(), "raspberry-pi".into(), "", 0)
    }

    #[test]
    fn names_of_the_field_are_accepted() {
        for name in ["firmware.bin", "a", "...", ".hidden", "app v2 (final).tar.gz", "прошивка.bin", &"x".repeat(255)]
        {
            named(name).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        }
    }

    #[test]
    fn names_that_could_leave_a_folder_or_forge_a_line_are_refused_by_name() {
        for name in [
            ".",
            "..",
            "../x",
            "a/b",
            "/etc/passwd",
            "a\\b",
            "..\\x",
            "a\0",
            "a\nb",
            "a\r\nset-cookie: x",
            "\u{7f}",
            "a\u{85}",
            "gpj.\u{202e}exe",
            "a\u{2028}b",
        ] {
            let error = named(name).expect_err(name).to_string();
            assert!(error.starts_with("metadata.name ") && error.contains(&format!("{name:?}")), "{error}");
        }
        assert!(named("").is_err());
        assert_eq!(
            named(&"ü".repeat(128)),
            Err(InvalidDescription::TooLong { field: "name", bytes: 256, allowed: 255 })
        );
    }

    #[test]
    fn checksum_and_size_are_optional_and_checked() {
        let parse = |checksum: &str, size| Description::parse("f".into(), String::new(), String::new(), checksum, size);
        let plain = parse("", 0).unwrap();
        assert_eq!((plain.checksum, plain.size_bytes), (None, None));
        assert_eq!(parse("", 7).unwrap().size_bytes, Some(7));
        for (checksum, size, field) in [("md5:1", 0, "metadata.checksum \"md5:1\""), ("", -1, "size_bytes is -1")] {
            let error = parse(checksum, size).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        assert!(parse("", i64::MAX).is_err());
    }

    #[test]
    fn versions_and_platforms_hold_no_control_characters() {
        let parse = |version: &str, platform: &str| {
            Description::parse("f".into(), version.into(), platform.into(), "", 0).map(drop)
        };
        assert!(parse("1.0\n", "").unwrap_err().to_string().starts_with("metadata.version"));
        assert!(parse("", "pi\0").unwrap_err().to_string().starts_with("metadata.platform"));
        assert!(parse(&"1".repeat(129), "").is_err());
    }
}
