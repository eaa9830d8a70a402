//! Room on the disk that uploads must leave: the journal, the registry and the embedded ClickHouse live there too.
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The share of a small disk, and the most on a large one. At 30,000 heartbeats a second the journal fills this much
/// in a few minutes: time enough for an operator who is told that uploads are refused.
const RESERVED_SHARE: u64 = 20;
const MAX_RESERVED_BYTES: u64 = 1 << 30;

/// Whether `bytes` more can be written below `path` without touching the reserve.
pub fn has_room(path: &Path, bytes: u64) -> io::Result<bool> {
    let (total, free) = sizes(path)?;
    Ok(leaves_reserve(total, free, bytes))
}

fn leaves_reserve(total: u64, free: u64, bytes: u64) -> bool {
    let reserved = (total / RESERVED_SHARE).min(MAX_RESERVED_BYTES);
    free.checked_sub(bytes).is_some_and(|left| left >= reserved)
}

/// The file system's size, and what of it this user may still take.
fn sizes(path: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: an all-zero `statvfs` is a valid value of a C struct of integers.
    let mut facts: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string and the struct is ours; both outlive the call.
    if unsafe { libc::statvfs(path.as_ptr(), &mut facts) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The fields' types differ between systems.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    let (block, blocks, available) = (u64::from(facts.f_frsize), u64::from(facts.f_blocks), u64::from(facts.f_bavail));
    Ok((block.saturating_mul(blocks), block.saturating_mul(available)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twentieth_of_a_small_disk_and_a_gigabyte_of_a_large_one_stay_free() {
        assert!(leaves_reserve(100, 15, 10));
        assert!(!leaves_reserve(100, 15, 11));
        assert!(!leaves_reserve(100, 5, 6));
        assert!(leaves_reserve(1 << 40, 3 << 30, 2 << 30));
        assert!(!leaves_reserve(1 << 40, 3 << 30, (2 << 30) + 1));
    }

    #[test]
    fn the_disk_of_a_folder_is_measured() {
        let folder = tempfile::tempdir().unwrap();
        assert!(has_room(folder.path(), 1).unwrap());
        assert!(!has_room(folder.path(), u64::MAX).unwrap());
        assert!(has_room(&folder.path().join("nowhere"), 1).is_err());
    }
}
