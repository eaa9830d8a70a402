//! A small disk, for tests that fill it.
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A disk in memory, of a size of its own; gone when dropped.
pub struct SmallDisk {
    mount: tempfile::TempDir,
    /// The file that takes all the room.
    ballast: Option<File>,
}

impl SmallDisk {
    /// `None` where `FLEETD_SKIP_MOUNT=1` says that none can be had.
    pub fn new(megabytes: u32) -> Option<Self> {
        if std::env::var_os("FLEETD_SKIP_MOUNT").is_some_and(|value| value == "1") {
            println!("left out, by FLEETD_SKIP_MOUNT=1");
            return None;
        }
        let mount = tempfile::tempdir().expect("a folder");
        let target = CString::new(mount.path().as_os_str().as_encoded_bytes()).expect("no NUL in a path");
        let size = CString::new(format!("size={megabytes}m")).expect("no NUL in a size");
        // SAFETY: all four are strings that live until the call is over.
        let result =
            unsafe { libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, size.as_ptr().cast()) };
        let error = std::io::Error::last_os_error();
        assert_eq!(
            result, 0,
            "cannot mount a small disk ({error}): run the tests as root, or leave this one out with FLEETD_SKIP_MOUNT=1"
        );
        Some(Self { mount, ballast: None })
    }

    pub fn path(&self) -> &Path {
        self.mount.path()
    }

    fn ballast_path(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Takes all the room that there is now, to the last page.
    pub fn fill(&mut self) {
        let path = self.ballast_path();
        let file = self
            .ballast
            .get_or_insert_with(|| OpenOptions::new().create(true).append(true).open(path).expect("room for a name"));
        let block = [0; 4096];
        while file.write(&block).is_ok_and(|written| written > 0) {}
    }

    /// Gives the room back.
    pub fn empty(&mut self) {
        self.ballast = None;
        std::fs::remove_file(self.ballast_path()).expect("the ballast is removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let target = CString::new(self.mount.path().as_os_str().as_encoded_bytes()).expect("no NUL in a path");
        // SAFETY: a string that lives until the call is over. Lazily, since a server may still be dying.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}
