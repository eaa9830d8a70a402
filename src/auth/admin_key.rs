//! The operator's own key: read from the environment or from `DATA_DIR/admin.key`, made at the first start.
//!
//! The file holds the key in clear, because its purpose is that an operator with access to the machine can read
//! it; so its mode is 0600, and a file that others can read is refused, as OpenSSH refuses a private key: a
//! warning would be one line in a log that nobody reads. Where a platform mounts secrets with wider modes, the
//! environment variable is the way.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::key::{ApiKey, InvalidApiKey, KeyHash, KeyKind};

/// The file's name inside the data directory.
pub const ADMIN_KEY_FILE: &str = "admin.key";
/// The environment variable that takes the place of the file.
pub const ADMIN_KEY_VARIABLE: &str = "FLEETD_ADMIN_KEY";

/// A key chosen by a person has at least this many characters: 16 random hexadecimal digits are 64 bits, which a
/// caller who is held to the anonymous rate of ten tries a second does not find.
pub const MIN_CHOSEN_LEN: usize = 16;
/// The longest key that is accepted, in bytes. It has to fit into a header beside others; also the most that is read of the file.
pub const MAX_CHOSEN_LEN: usize = 512;

/// Bits of a file mode that let anybody but the owner in.
const OTHERS: u32 = 0o077;

/// The admin's key as the server keeps it: a hash, and where it came from.
#[derive(Debug)]
pub struct AdminKey {
    hash: KeyHash,
    source: AdminKeySource,
}

/// Where the admin's key came from, for the line that the server logs at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminKeySource {
    Environment,
    File(PathBuf),
    /// Made just now: this is the data directory's first start.
    Created(PathBuf),
}

/// Why there is no admin key, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum AdminKeyError {
    #[error("the admin key in {place} {reason}")]
    Unusable { place: String, reason: Unusable },
    #[error(
        "{} can be read by others than its owner (mode {mode:04o}); run `chmod 600 {}`, or pass the key in {ADMIN_KEY_VARIABLE}",
        path.display(), path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} is not a regular file; remove it to have a new admin key made", path.display())]
    NotAFile { path: PathBuf },
    #[error("could not {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the operating system gave no random bytes for an admin key")]
    Random(#[source] getrandom::Error),
}

/// Why a text cannot be the admin's key; follows its place: "the admin key in FLEETD_ADMIN_KEY is empty".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("is empty; give at least {MIN_CHOSEN_LEN} characters, or remove it to have one made")]
    Empty,
    #[error("has {0} characters; give at least {MIN_CHOSEN_LEN}")]
    TooShort(usize),
    #[error("is longer than {MAX_CHOSEN_LEN} bytes")]
    TooLong,
    #[error("has a character that a header cannot carry; use visible ASCII without spaces")]
    Character,
    #[error("is the key of a device (it starts with fdk_)")]
    DeviceKey,
    #[error("starts with fda_, but {0}")]
    Malformed(InvalidApiKey),
}

impl AdminKey {
    /// Takes a key that a person chose: 16 to 512 visible ASCII characters. One that starts with `fda_` must be
    /// a whole generated key.
    fn from_text(text: &str, source: AdminKeySource) -> Result<Self, AdminKeyError> {
        match check(text) {
            Ok(()) => Ok(Self { hash: KeyHash::of(text), source }),
            Err(reason) => {
                let place = match source {
                    AdminKeySource::Environment => ADMIN_KEY_VARIABLE.to_owned(),
                    AdminKeySource::File(path) | AdminKeySource::Created(path) => path.display().to_string(),
                };
                Err(AdminKeyError::Unusable { place, reason })
            }
        }
    }

    /// Whether `hash` is this key's, in constant time.
    pub fn matches(&self, hash: &KeyHash) -> bool {
        self.hash == *hash
    }

    pub const fn source(&self) -> &AdminKeySource {
        &self.source
    }
}

fn check(text: &str) -> Result<(), Unusable> {
    if text.is_empty() {
        return Err(Unusable::Empty);
    }
    if text.len() > MAX_CHOSEN_LEN {
        return Err(Unusable::TooLong);
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Unusable::Character);
    }
    match KeyKind::of(text) {
        Some(KeyKind::Device) => Err(Unusable::DeviceKey),
        Some(KeyKind::Admin) => ApiKey::check(text).map(drop).map_err(Unusable::Malformed),
        None if text.len() < MIN_CHOSEN_LEN => Err(Unusable::TooShort(text.len())),
        None => Ok(()),
    }
}

/// The admin key of this start: `from_env` if given, else `data_dir/admin.key`, which is made if there is none.
///
/// With a key from the environment the file is neither read nor made. The caller holds the data directory's lock.
/// The file appears whole or not at all: it is written and synced under another name, then renamed.
///
/// # Errors
/// [`AdminKeyError`], each of which says which key, what is wrong with it and what to do.
pub fn load_or_create_admin_key(data_dir: &Path, from_env: Option<&str>) -> Result<AdminKey, AdminKeyError> {
    if let Some(text) = from_env {
        return AdminKey::from_text(text, AdminKeySource::Environment);
    }
    let path = data_dir.join(ADMIN_KEY_FILE);
    match File::open(&path) {
        Ok(file) => load(file, path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(data_dir, path),
        Err(source) => Err(AdminKeyError::Io { operation: "open the admin key", path, source }),
    }
}

/// Checks and reads the file that is open, so that what was checked is what is read.
fn load(file: File, path: PathBuf) -> Result<AdminKey, AdminKeyError> {
    let metadata = match file.metadata() {
        Ok(metadata) => metadata,
        Err(source) => return Err(AdminKeyError::Io { operation: "read the mode of", path, source }),
    };
    if !metadata.is_file() {
        return Err(AdminKeyError::NotAFile { path });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(AdminKeyError::Exposed { path, mode });
    }
    let mut text = String::new();
    // Two bytes more than the longest key: a line end, and one to notice that it is too long.
    if let Err(source) = file.take(MAX_CHOSEN_LEN as u64 + 2).read_to_string(&mut text) {
        return Err(AdminKeyError::Io { operation: "read the admin key from", path, source });
    }
    AdminKey::from_text(text.trim_end_matches(['\r', '\n']), AdminKeySource::File(path))
}

fn create(data_dir: &Path, path: PathBuf) -> Result<AdminKey, AdminKeyError> {
    let key = ApiKey::generate(KeyKind::Admin).map_err(AdminKeyError::Random)?;
    let draft = data_dir.join(".admin.key.new");
    write_private(&draft, &key)
        .and_then(|()| fs::rename(&draft, &path))
        .and_then(|()| File::open(data_dir)?.sync_all())
        .map_err(|source| AdminKeyError::Io { operation: "write the new admin key", path: path.clone(), source })?;
    AdminKey::from_text(key.expose(), AdminKeySource::Created(path))
}

/// Writes `key` to a new file of mode 0600. A leftover of a start that died is removed first: opening it would
/// keep its mode.
fn write_private(path: &Path, key: &ApiKey) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(key.expose().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn write_key_file(dir: &TempDir, text: &str, mode: u32) -> PathBuf {
        let path = dir.path().join(ADMIN_KEY_FILE);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn reason_of(error: AdminKeyError) -> Unusable {
        match error {
            AdminKeyError::Unusable { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_start_makes_a_private_file_and_the_second_reads_it() {
        let dir = TempDir::new().unwrap();
        let first = load_or_create_admin_key(dir.path(), None).unwrap();
        let path = dir.path().join(ADMIN_KEY_FILE);
        assert_eq!(first.source(), &AdminKeySource::Created(path.clone()));
        assert_eq!(mode_of(&path), 0o600);

        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(ApiKey::check(text.trim_end()), Ok(KeyKind::Admin));
        assert!(first.matches(&KeyHash::of(text.trim_end())));

        let second = load_or_create_admin_key(dir.path(), None).unwrap();
        assert_eq!(second.source(), &AdminKeySource::File(path));
        assert!(second.matches(&KeyHash::of(text.trim_end())));
        assert!(!second.matches(&KeyHash::of("something else")));
    }

    #[test]
    fn a_start_that_died_while_making_the_key_leaves_no_trace() {
        let dir = TempDir::new().unwrap();
        let draft = dir.path().join(".admin.key.new");
        fs::write(&draft, "fda_hal").unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o644)).unwrap();
        load_or_create_admin_key(dir.path(), None).unwrap();
        assert_eq!(mode_of(&dir.path().join(ADMIN_KEY_FILE)), 0o600);
        assert!(!draft.exists());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_helps() {
        for mode in [0o644, 0o640, 0o604, 0o660, 0o602] {
            let dir = TempDir::new().unwrap();
            let path = write_key_file(&dir, "a perfectly fine key", mode);
            let error = load_or_create_admin_key(dir.path(), None).unwrap_err().to_string();
            assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
        }
    }

    #[test]
    fn a_stricter_mode_than_needed_is_accepted() {
        let dir = TempDir::new().unwrap();
        write_key_file(&dir, "0123456789abcdef\r\n", 0o400);
        let key = load_or_create_admin_key(dir.path(), None).unwrap();
        assert!(key.matches(&KeyHash::of("0123456789abcdef")), "a line end is no part of the key");
    }

    #[test]
    fn the_environment_beats_the_file_and_leaves_it_alone() {
        let dir = TempDir::new().unwrap();
        let key = load_or_create_admin_key(dir.path(), Some("0123456789abcdef")).unwrap();
        assert_eq!(key.source(), &AdminKeySource::Environment);
        assert!(key.matches(&KeyHash::of("0123456789abcdef")));
        assert!(!dir.path().join(ADMIN_KEY_FILE).exists());
    }

    #[test]
    fn an_unusable_key_is_refused_with_its_reason() {
        let dir = TempDir::new().unwrap();
        let device = ApiKey::generate(KeyKind::Device).unwrap();
        let admin = ApiKey::generate(KeyKind::Admin).unwrap();
        let refuse = |text: &str| reason_of(load_or_create_admin_key(dir.path(), Some(text)).unwrap_err());
        assert_eq!(refuse(""), Unusable::Empty);
        assert_eq!(refuse("0123456789abcde"), Unusable::TooShort(15));
        assert_eq!(refuse(&"x".repeat(513)), Unusable::TooLong);
        assert_eq!(refuse("0123456789 abcdef"), Unusable::Character);
        assert_eq!(refuse("0123456789äbcdef"), Unusable::Character);
        assert_eq!(refuse(device.expose()), Unusable::DeviceKey);
        assert_eq!(refuse(&admin.expose()[..52]), Unusable::Malformed(InvalidApiKey::Length(52)));

        write_key_file(&dir, "", 0o600);
        assert_eq!(reason_of(load_or_create_admin_key(dir.path(), None).unwrap_err()), Unusable::Empty);
        write_key_file(&dir, &"x".repeat(10_000), 0o600);
        assert_eq!(reason_of(load_or_create_admin_key(dir.path(), None).unwrap_err()), Unusable::TooLong);
    }

    #[test]
    fn what_is_no_file_or_no_text_is_refused() {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join(ADMIN_KEY_FILE)).unwrap();
        assert!(matches!(load_or_create_admin_key(dir.path(), None), Err(AdminKeyError::NotAFile { .. })));

        let dir = TempDir::new().unwrap();
        let path = dir.path().join(ADMIN_KEY_FILE);
        fs::write(&path, [0xff; 32]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(load_or_create_admin_key(dir.path(), None), Err(AdminKeyError::Io { .. })));

        let gone = dir.path().join("nowhere");
        assert!(matches!(load_or_create_admin_key(&gone, None), Err(AdminKeyError::Io { .. })));
    }

    #[test]
    fn no_error_shows_the_key() {
        let dir = TempDir::new().unwrap();
        for secret in ["tooshortsecret", "0123456789 secret words", "fda_secretsecretsecret", "fdk_secretsecretsecret"]
        {
            let error = load_or_create_admin_key(dir.path(), Some(secret)).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
    }
}
