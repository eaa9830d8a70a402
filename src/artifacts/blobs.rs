//! Objects named by their content, in a folder or in a bucket.
//!
//! `sha256/9f/9f86d0…` holds bytes with that SHA-256; `exports/exp-001` the file of an export, by its id, since it lives and
//! ends with it; `uploads/` holds what is on its way. Only whole, verified bytes
//! are ever renamed out of `uploads/`, and a rename replaces a name at once: whoever reads sees all of a file or none.
//! One server writes to a folder or prefix; what lies in `uploads/` when it starts, nobody is going to finish.
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _};

use super::checksum::Checksum;
use super::error::BlobError;
use super::read::BlobReader;
use super::upload::Upload;

const UPLOADS: &str = "uploads";
const BLOBS: &str = "sha256";
const EXPORTS: &str = "exports";

/// What is gathered before it goes to a disk: as much as most uploads send in one chunk.
const FOLDER_PART_BYTES: usize = 1 << 20;
/// What is gathered before it goes to a bucket. S3 takes at most 10,000 parts, and none below 5 MiB but the last
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>).
#[cfg(feature = "s3")]
const BUCKET_PART_BYTES: usize = 8 << 20;

/// Where files are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreTarget {
    Folder(PathBuf),
    /// `s3://BUCKET/PREFIX`; credentials and region come from the usual `AWS_…` variables.
    Bucket(String),
}

/// Cheap, cloneable handle.
#[derive(Clone)]
pub struct BlobStore {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The folder, when there is one: its disk must not be filled to the last byte.
    pub(super) folder: Option<Arc<FilePath>>,
    pub(super) part_bytes: usize,
}

impl BlobStore {
    /// Opens the store and removes what uploads left behind that a crash broke off.
    pub async fn open(target: &StoreTarget) -> Result<Self, BlobError> {
        let store = match target {
            StoreTarget::Folder(folder) => Self::folder(folder)?,
            StoreTarget::Bucket(url) => Self::bucket(url)?,
        };
        store.remove_leftovers().await?;
        Ok(store)
    }

    fn folder(folder: &FilePath) -> Result<Self, BlobError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let failed = |source| BlobError::Io { operation: "make the folder for artifacts", source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(|source| BlobError::of_store("open the folder for artifacts", source))?
            // A file is acknowledged when it is durable, as everything else in the data directory is.
            .with_fsync(true);
        Ok(Self { store: Arc::new(store), folder: Some(folder.into()), part_bytes: FOLDER_PART_BYTES })
    }

    #[cfg(feature = "s3")]
    fn bucket(url: &str) -> Result<Self, BlobError> {
        let failed = |source| BlobError::of_store("open the bucket for artifacts", source);
        let prefix = url.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).map_or("", |(_, prefix)| prefix);
        let store = object_store::aws::AmazonS3Builder::from_env().with_url(url).build().map_err(failed)?;
        let store = object_store::prefix::PrefixStore::new(store, prefix);
        Ok(Self { store: Arc::new(store), folder: None, part_bytes: BUCKET_PART_BYTES })
    }

    #[cfg(not(feature = "s3"))]
    fn bucket(_: &str) -> Result<Self, BlobError> {
        let message = "this fleetd was built without S3; build it with --features s3";
        let source = std::io::Error::new(std::io::ErrorKind::Unsupported, message);
        Err(BlobError::Io { operation: "open the bucket for artifacts", source })
    }

    /// Objects, and in a folder also the halves of objects, which the store itself never lists.
    async fn remove_leftovers(&self) -> Result<(), BlobError> {
        let mut removed = 0;
        if let Some(folder) = &self.folder {
            let uploads = folder.join(UPLOADS);
            let failed = |source| BlobError::Io { operation: "remove what broken uploads left", source };
            match std::fs::read_dir(&uploads) {
                Ok(entries) => {
                    for entry in entries {
                        std::fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
                        removed += 1;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        } else {
            let mut found = self.store.list(Some(&Path::from(UPLOADS)));
            while let Some(object) = found.next().await {
                let failed = |source| BlobError::of_store("remove what broken uploads left", source);
                self.store.delete(&object.map_err(failed)?.location).await.map_err(failed)?;
                removed += 1;
            }
        }
        if removed > 0 {
            tracing::info!(removed, "removed what broken uploads left");
        }
        Ok(())
    }

    /// Removes the halves of a temporary object that could not be completed: then the store forgets them (a bucket's
    /// are for its lifecycle rule).
    pub(super) fn remove_halves(&self, temporary: &Path) {
        let (Some(folder), Some(name)) = (&self.folder, temporary.filename()) else { return };
        for entry in std::fs::read_dir(folder.join(UPLOADS)).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(name) {
                if let Err(error) = std::fs::remove_file(entry.path()) {
                    tracing::warn!(%error, "what an upload left could not be removed, the next start removes it");
                }
            }
        }
    }

    /// Removes the files that `is_known` does not know: a server that dies between keeping a file and registering it
    /// leaves one. To be called before the first upload.
    pub async fn remove_unknown(&self, is_known: impl Fn(&Checksum) -> bool + Send) -> Result<u64, BlobError> {
        let failed = |source| BlobError::of_store("list artifacts", source);
        let mut removed = 0;
        let mut found = self.store.list(Some(&Path::from(BLOBS)));
        while let Some(object) = found.next().await {
            let location = object.map_err(failed)?.location;
            // What has another name is not ours.
            let Some(checksum) = location.filename().and_then(Checksum::from_hex) else { continue };
            if !is_known(&checksum) {
                self.store.delete(&location).await.map_err(failed)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Begins to take in a file; `size_bytes` is what the uploader says, if it does.
    pub async fn begin(&self, size_bytes: Option<u64>) -> Result<Upload, BlobError> {
        Upload::begin(self.clone(), Path::from_iter([UPLOADS, &uuid::Uuid::new_v4().simple().to_string()]), size_bytes)
            .await
    }

    /// Reads a range of a file that has `size_bytes` on the whole.
    ///
    /// # Errors
    /// [`BlobError::Gone`] and [`BlobError::Damaged`] when the store has no such file, or not all of it.
    pub async fn read(&self, checksum: Checksum, size_bytes: u64, range: Range<u64>) -> Result<BlobReader, BlobError> {
        self.read_at(&location_of(&checksum), checksum, size_bytes, range).await
    }

    /// As [`Self::read`], of the file of an export.
    pub async fn read_export(
        &self,
        export_id: &str,
        checksum: Checksum,
        size_bytes: u64,
        range: Range<u64>,
    ) -> Result<BlobReader, BlobError> {
        self.read_at(&location_of_export(export_id), checksum, size_bytes, range).await
    }

    async fn read_at(
        &self,
        location: &Path,
        checksum: Checksum,
        size_bytes: u64,
        range: Range<u64>,
    ) -> Result<BlobReader, BlobError> {
        // A bucket is asked for the range; a folder gives the whole open file, and is never asked for more than it has.
        let range_of_bucket = (self.folder.is_none() && !range.is_empty()).then(|| GetRange::Bounded(range.clone()));
        let options = GetOptions { range: range_of_bucket, ..GetOptions::default() };
        let found = self.store.get_opts(location, options).await.map_err(|source| match source {
            Error::NotFound { .. } => BlobError::Gone(checksum),
            source => BlobError::of_store("read an artifact", source),
        })?;
        if found.meta.size != size_bytes {
            return Err(BlobError::Damaged { checksum, expected: size_bytes, found: found.meta.size });
        }
        Ok(BlobReader::new(found.payload, range))
    }

    /// Removes a file that nothing refers to.
    pub async fn remove(&self, checksum: &Checksum) -> Result<(), BlobError> {
        let removed = self.store.delete(&location_of(checksum)).await;
        removed.map_err(|source| BlobError::of_store("remove an artifact", source))
    }

    /// Removes the file of an export, if it is there.
    pub async fn remove_export(&self, export_id: &str) -> Result<(), BlobError> {
        match self.store.delete(&location_of_export(export_id)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(BlobError::of_store("remove an export", source)),
        }
    }

    /// Removes the files of exports that `is_known` does not know, as [`Self::remove_unknown`] does with others. To be
    /// called before the first export.
    pub async fn remove_unknown_exports(&self, is_known: impl Fn(&str) -> bool + Send) -> Result<u64, BlobError> {
        let failed = |source| BlobError::of_store("list exports", source);
        let mut removed = 0;
        let mut found = self.store.list(Some(&Path::from(EXPORTS)));
        while let Some(object) = found.next().await {
            let location = object.map_err(failed)?.location;
            if !location.filename().is_some_and(&is_known) {
                self.store.delete(&location).await.map_err(failed)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

pub(super) fn location_of_export(export_id: &str) -> Path {
    Path::from_iter([EXPORTS, export_id])
}

/// Two digits make 256 folders, so that none holds more files than tools like to list.
pub(super) fn location_of(checksum: &Checksum) -> Path {
    let hex = checksum.hex();
    Path::from_iter([BLOBS, &hex[..2], hex.as_str()])
}
