//! A file on its way in.
use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};
use sha2::{Digest as _, Sha256};

use super::blobs::{location_of, location_of_export, BlobStore};
use super::checksum::Checksum;
use super::error::BlobError;
use super::room;

/// The largest file: what a bucket takes in 10,000 parts.
pub const MAX_BINARY_BYTES: u64 = 10_000 * (8 << 20);

/// Chunks below this are copied together, so that a client that sends single bytes costs no more than its bytes.
const COPIED_BELOW: usize = 64 << 10;

/// The bytes that came so far. Dropped before [`Kept::publish`], it leaves nothing behind.
pub struct Upload {
    blobs: BlobStore,
    temporary: Path,
    /// `None` once it was completed.
    parts: Option<Box<dyn MultipartUpload>>,
    /// What is not written yet: large chunks as they came, then small ones.
    waiting: Vec<Bytes>,
    small: BytesMut,
    waiting_bytes: usize,
    hasher: Sha256,
    received: u64,
    expected_size: Option<u64>,
}

impl Upload {
    pub(super) async fn begin(
        blobs: BlobStore,
        temporary: Path,
        expected_size: Option<u64>,
    ) -> Result<Self, BlobError> {
        ensure_room(&blobs, expected_size.unwrap_or(blobs.part_bytes as u64))?;
        let parts = blobs
            .store
            .put_multipart(&temporary)
            .await
            .map_err(|source| BlobError::of_store("begin an upload", source))?;
        Ok(Self {
            blobs,
            temporary,
            parts: Some(parts),
            waiting: Vec::new(),
            small: BytesMut::new(),
            waiting_bytes: 0,
            hasher: Sha256::new(),
            received: 0,
            expected_size,
        })
    }

    #[cfg(test)]
    pub(super) const fn temporary(&self) -> &Path {
        &self.temporary
    }

    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Takes the next bytes. Returns when they are written or wait for so few others that memory stays flat.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), BlobError> {
        self.received += chunk.len() as u64;
        if let Some(expected) = self.expected_size.filter(|expected| self.received > *expected) {
            return Err(BlobError::WrongSize { expected, received: self.received });
        }
        if self.received > MAX_BINARY_BYTES {
            return Err(BlobError::TooLarge);
        }
        self.waiting_bytes += chunk.len();
        if chunk.len() < COPIED_BELOW {
            self.small.extend_from_slice(&chunk);
        } else {
            self.gather_small();
            self.waiting.push(chunk);
        }
        if self.waiting_bytes >= self.blobs.part_bytes {
            self.flush().await?;
        }
        Ok(())
    }

    fn gather_small(&mut self) {
        if !self.small.is_empty() {
            self.waiting.push(self.small.split().freeze());
        }
    }

    /// Hashes and writes, each on a thread of its own, since either takes as long as the network.
    async fn flush(&mut self) -> Result<(), BlobError> {
        self.gather_small();
        if self.waiting.is_empty() {
            return Ok(());
        }
        ensure_room(&self.blobs, self.waiting_bytes as u64)?;
        let part = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let Some(parts) = &mut self.parts else { return Ok(()) };
        let written = parts.put_part(part.iter().cloned().collect::<PutPayload>());
        let mut hasher = std::mem::take(&mut self.hasher);
        let hashed = tokio::task::spawn_blocking(move || {
            part.iter().for_each(|bytes| hasher.update(bytes));
            hasher
        });
        let (written, hashed) = tokio::join!(written, hashed);
        written.map_err(|source| BlobError::of_store("write an upload", source))?;
        self.hasher = hashed
            .map_err(|panic| BlobError::Io { operation: "hash an upload", source: std::io::Error::other(panic) })?;
        Ok(())
    }

    /// Makes the bytes durable if they are what they were said to be.
    ///
    /// # Errors
    /// [`BlobError::WrongSize`] and [`BlobError::WrongChecksum`], before anything is made durable.
    pub async fn finish(mut self, expected: Option<Checksum>) -> Result<Kept, BlobError> {
        self.flush().await?;
        if let Some(expected) = self.expected_size.filter(|expected| self.received != *expected) {
            return Err(BlobError::WrongSize { expected, received: self.received });
        }
        let received = Checksum::from_bytes(std::mem::take(&mut self.hasher).finalize().into());
        if let Some(expected) = expected.filter(|expected| *expected != received) {
            return Err(BlobError::WrongChecksum { expected, received });
        }
        if let Some(mut parts) = self.parts.take() {
            // A disk may tell only now that it is full.
            if let Err(source) = parts.complete().await {
                self.blobs.remove_halves(&self.temporary);
                return Err(BlobError::of_store("complete an upload", source));
            }
        }
        Ok(Kept {
            blobs: self.blobs.clone(),
            temporary: Some(self.temporary.clone()),
            checksum: received,
            size_bytes: self.received,
        })
    }
}

fn ensure_room(blobs: &BlobStore, bytes: u64) -> Result<(), BlobError> {
    let Some(folder) = &blobs.folder else { return Ok(()) };
    match room::has_room(folder, bytes) {
        Ok(true) => Ok(()),
        Ok(false) => Err(BlobError::DiskFull { operation: "take an upload", source: None }),
        Err(source) => Err(BlobError::Io { operation: "measure the disk of artifacts", source }),
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut parts) = self.parts.take() else { return };
        // Without a runtime the process is ending, and the next start removes it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = parts.abort().await {
                    let cause = &error as &dyn std::error::Error;
                    tracing::warn!(cause, "what an upload left could not be removed, the next start removes it");
                }
            });
        }
    }
}

/// A whole file, durable, that nobody can find yet. Dropped before [`Self::publish`], it leaves nothing behind.
pub struct Kept {
    blobs: BlobStore,
    /// `None` once it was published.
    temporary: Option<Path>,
    pub checksum: Checksum,
    pub size_bytes: u64,
}

impl Kept {
    /// Gives the file its name. Bytes that are there already are replaced by the same.
    pub async fn publish(self) -> Result<(), BlobError> {
        let location = location_of(&self.checksum);
        self.publish_at(location).await
    }

    /// Makes it the file of an export.
    pub async fn publish_export(self, export_id: &str) -> Result<(), BlobError> {
        self.publish_at(location_of_export(export_id)).await
    }

    /// Reads the last `most` bytes back.
    pub async fn last_bytes(&self, most: u64) -> Result<Bytes, BlobError> {
        self.bytes(self.size_bytes.saturating_sub(most)..self.size_bytes).await
    }

    /// Reads bytes back.
    pub async fn bytes(&self, range: std::ops::Range<u64>) -> Result<Bytes, BlobError> {
        let Some(temporary) = &self.temporary else { return Ok(Bytes::new()) };
        let read = self.blobs.store.get_range(temporary, range).await;
        read.map_err(|source| BlobError::of_store("read an upload back", source))
    }

    async fn publish_at(mut self, location: Path) -> Result<(), BlobError> {
        let Some(temporary) = self.temporary.take() else { return Ok(()) };
        let renamed = self.blobs.store.rename(&temporary, &location).await;
        renamed.map_err(|source| {
            self.temporary = Some(temporary);
            BlobError::of_store("publish an upload", source)
        })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(temporary) = self.temporary.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let store = self.blobs.store.clone();
            runtime.spawn(async move {
                if let Err(error) = store.delete(&temporary).await {
                    let cause = &error as &dyn std::error::Error;
                    tracing::warn!(cause, "what an upload left could not be removed, the next start removes it");
                }
            });
        }
    }
}
