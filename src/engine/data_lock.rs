//! One engine a data directory: a lock file that says who holds it, and waits for a dying predecessor.
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::EngineError;

/// How long a start waits for the previous engine to let go: a killed process with gigabytes mapped takes a moment
/// to go away, and a stopping one may finish its statements.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks; the lock of a dead process goes without a notice.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The lock; released when dropped, and by the system when the process dies.
pub struct DataLock(#[allow(dead_code, reason = "held for its lock")] File);

impl DataLock {
    /// Blocks up to five seconds.
    ///
    /// # Errors
    /// [`EngineError::DataDirHeld`] with the holder's process id, or [`EngineError::DataDir`].
    pub fn acquire(data_dir: &Path) -> Result<Self, EngineError> {
        Self::acquire_within(data_dir, PATIENCE)
    }

    fn acquire_within(data_dir: &Path, patience: Duration) -> Result<Self, EngineError> {
        let failed = |source| EngineError::DataDir { path: data_dir.to_path_buf(), source };
        std::fs::create_dir_all(data_dir).map_err(failed)?;
        let path = data_dir.join("engine.lock");
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        let deadline = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(source)) => return Err(failed(source)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    let holder = match holder.trim() {
                        "" => "another process".to_owned(),
                        pid => format!("process {pid}"),
                    };
                    return Err(EngineError::DataDirHeld { path: data_dir.to_path_buf(), holder });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_AGAIN),
            }
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_engine_is_told_who_holds_the_directory() {
        let folder = tempfile::tempdir().expect("a folder");
        let _held = DataLock::acquire(folder.path()).expect("free");
        let Err(error) = DataLock::acquire_within(folder.path(), Duration::ZERO) else { panic!("locked twice") };
        let text = error.to_string();
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        assert!(text.contains("--data-dir"), "{text}");
    }

    #[test]
    fn a_start_waits_for_the_one_before_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let held = DataLock::acquire(folder.path()).expect("free");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| DataLock::acquire(folder.path()).map(drop));
            drop(held);
            assert!(waiting.join().expect("no panic").is_ok());
        });
    }
}
