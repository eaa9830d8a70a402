//! The file that remembers device keys between runs: the server shows a key once, at registration.
//!
//! One line a device, `id<TAB>key`, appended as devices are registered, so that a run that is killed half way leaves
//! what it got. Readable by its owner only.
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::error::LoadError;
use crate::target::Target;

#[derive(Debug)]
pub(crate) struct KeysFile {
    path: PathBuf,
    file: File,
}

/// Where keys are kept when nobody says: in the user's cache folder, one file a server and prefix.
pub fn default_keys_path(target: &Target, id_prefix: &str) -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir);
    let name = format!("{}-{id_prefix}.keys", target.authority());
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '_' }).collect();
    cache.join("fleetd-loadtest").join(name)
}

impl KeysFile {
    /// Opens the file, or makes it with its folders; mode 0600.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let failed = |operation| move |source| LoadError::KeysFile { operation, path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
        }
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(failed("open"))?;
        // A run that was killed may have left half a line; a line end after it keeps it from spoiling the next.
        if file.metadata().map_err(failed("read"))?.len() > 0 {
            file.write_all(b"\n").map_err(failed("write"))?;
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// The keys by device id; of two lines for one device the later holds.
    pub(crate) fn keys(&self) -> Result<HashMap<String, String>, LoadError> {
        let failed = |source| LoadError::KeysFile { operation: "read", path: self.path.clone(), source };
        let file = File::open(&self.path).map_err(failed)?;
        let mut keys = HashMap::new();
        for line in BufReader::new(file).lines() {
            if let Some((id, key)) = line.map_err(failed)?.split_once('\t').filter(|(_, key)| !key.is_empty()) {
                keys.insert(id.to_owned(), key.to_owned());
            }
        }
        Ok(keys)
    }

    /// Adds a key, in one write.
    pub(crate) fn add(&mut self, id: &str, key: &str) -> Result<(), LoadError> {
        let line = format!("{id}\t{key}\n");
        let written = self.file.write_all(line.as_bytes());
        written.map_err(|source| LoadError::KeysFile { operation: "write", path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_there_for_the_next_run_and_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("sim.keys");
        let mut file = KeysFile::open(&path).unwrap();
        file.add("sim-1", "old").unwrap();
        file.add("sim-1", "new").unwrap();
        file.file.write_all(b"sim-2\tha").unwrap();
        drop(file);
        let mut file = KeysFile::open(&path).unwrap();
        file.add("sim-3", "key").unwrap();
        let keys = file.keys().unwrap();
        assert_eq!(keys["sim-1"], "new");
        assert_eq!(keys["sim-3"], "key");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn each_server_and_prefix_has_a_file_of_its_own() {
        let path = |url, prefix| default_keys_path(&Target::parse(url).unwrap(), prefix);
        let one = path("http://127.0.0.1:1", "sim");
        assert_ne!(one, path("http://127.0.0.1:2", "sim"));
        assert_ne!(one, path("http://127.0.0.1:1", "../sim"));
        assert_eq!(path("http://127.0.0.1:1", "../sim").parent(), one.parent());
    }
}
