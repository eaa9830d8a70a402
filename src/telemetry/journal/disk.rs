//! The few things the journal asks of a file, in one place, so that tests can make each of them fail.
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Which operations fail; nothing outside this crate's tests can set it.
#[derive(Clone, Default)]
pub(super) struct Faults {
    #[cfg(test)]
    pub plan: std::sync::Arc<FaultPlan>,
}

impl Faults {
    /// [`sync_dir`] while the journal runs.
    #[cfg_attr(not(test), allow(clippy::unused_self))]
    pub fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        #[cfg(test)]
        FaultPlan::take(&self.plan.dir_syncs)?;
        sync_dir(dir)
    }
}

/// A file of the journal, open for writing.
pub(super) struct DiskFile {
    file: File,
    #[cfg(test)]
    faults: Faults,
}

impl DiskFile {
    pub fn create_new(path: &Path, faults: &Faults) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Self::wrap(file, faults))
    }

    pub fn open(path: &Path, faults: &Faults) -> io::Result<Self> {
        Ok(Self::wrap(OpenOptions::new().read(true).write(true).open(path)?, faults))
    }

    #[cfg_attr(not(test), allow(unused_variables))]
    fn wrap(file: File, faults: &Faults) -> Self {
        Self {
            file,
            #[cfg(test)]
            faults: faults.clone(),
        }
    }

    pub fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// After an error any prefix of `bytes` may be in the file.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some((written, error)) = self.faults.plan.fails_write(bytes.len()) {
            self.file.write_all_at(&bytes[..written], offset)?;
            return Err(error);
        }
        self.file.write_all_at(bytes, offset)
    }

    pub fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    pub fn truncate(&self, length: u64) -> io::Result<()> {
        #[cfg(test)]
        self.faults.plan.fails_truncate()?;
        self.file.set_len(length)
    }

    /// fdatasync: contents and length, not the time stamps.
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        self.faults.plan.fails_sync()?;
        self.file.sync_data()
    }
}

/// Makes created, renamed and deleted names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
#[derive(Default)]
pub(super) struct FaultPlan {
    /// The next write stores this many bytes, then fails with this error number; one use.
    pub write: parking_lot::Mutex<Option<(usize, i32)>>,
    /// So many truncations and fsyncs fail from now on.
    pub truncates: std::sync::atomic::AtomicU32,
    pub syncs: std::sync::atomic::AtomicU32,
    /// And so many fsyncs of the folder.
    pub dir_syncs: std::sync::atomic::AtomicU32,
}

#[cfg(test)]
impl FaultPlan {
    fn fails_write(&self, length: usize) -> Option<(usize, io::Error)> {
        let (written, number) = self.write.lock().take()?;
        Some((written.min(length), io::Error::from_raw_os_error(number)))
    }

    fn take(counter: &std::sync::atomic::AtomicU32) -> io::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        match counter.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
            Err(_) => Ok(()),
        }
    }

    fn fails_truncate(&self) -> io::Result<()> {
        Self::take(&self.truncates)
    }

    fn fails_sync(&self) -> io::Result<()> {
        Self::take(&self.syncs)
    }
}
