//! The data directory: made on the first start, private to the user, and held by one server at a time.
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

const LOCK_FILE: &str = "fleetd.lock";

/// The directory, held until this is dropped or the process dies, however it dies: the lock is the kernel's.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("cannot make the data directory {}", path.display())]
    Create { path: PathBuf, source: std::io::Error },
    #[error("cannot open the lock file {}", path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("the data directory {} is held by {holder}; stop that one, or give another --data-dir", path.display())]
    Held { path: PathBuf, holder: String },
}

impl DataDir {
    /// Makes the directory if need be and takes it.
    pub fn hold(path: &Path) -> Result<Self, DataDirError> {
        create_private(path).map_err(|source| DataDirError::Create { path: path.into(), source })?;
        let lock_path = path.join(LOCK_FILE);
        let open = |source| DataDirError::Open { path: lock_path.clone(), source };
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path).map_err(open)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message; an unreadable note still leaves a true one.
                let _ = lock.read_to_string(&mut holder);
                let holder = if holder.is_empty() { "another process".to_owned() } else { holder.trim().to_owned() };
                return Err(DataDirError::Held { path: path.into(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(open(source)),
        }
        lock.set_len(0).map_err(open)?;
        lock.rewind().map_err(open)?;
        writeln!(lock, "fleetd, process {}", std::process::id()).map_err(open)?;
        Ok(Self { path: path.into(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

fn create_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_holds_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep/er");
        let first = DataDir::hold(&path).expect("free");
        let refusal = DataDir::hold(&path).expect_err("held").to_string();
        assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
        drop(first);
        DataDir::hold(&path).expect("free again");
    }
}
