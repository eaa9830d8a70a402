//! A range of a file, read piece by piece.
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::StreamExt as _;
use object_store::GetResultPayload;

use super::error::BlobError;

pub struct BlobReader {
    source: Source,
    /// What is left of the range.
    range: Range<u64>,
}

enum Source {
    File(Arc<File>),
    /// Bytes come in pieces of the sender's choice; what is more than was asked for waits.
    Stream {
        pieces: BoxStream<'static, object_store::Result<Bytes>>,
        ahead: BytesMut,
    },
}

impl BlobReader {
    pub(super) fn new(payload: GetResultPayload, range: Range<u64>) -> Self {
        let source = match payload {
            GetResultPayload::File(file, _) => Source::File(Arc::new(file)),
            GetResultPayload::Stream(pieces) => Source::Stream { pieces, ahead: BytesMut::new() },
        };
        Self { source, range }
    }

    /// Bytes that are still to come.
    pub fn remaining(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// The next `most` bytes, fewer only at the end; `None` after it.
    pub async fn next(&mut self, most: usize) -> Result<Option<Bytes>, BlobError> {
        let length = most.min(usize::try_from(self.remaining()).unwrap_or(usize::MAX));
        if length == 0 {
            return Ok(None);
        }
        let piece = match &mut self.source {
            Source::File(file) => read_file(Arc::clone(file), self.range.start, length).await,
            Source::Stream { pieces, ahead } => read_stream(pieces, ahead, length).await,
        }?;
        self.range.start += piece.len() as u64;
        Ok(Some(piece))
    }
}

async fn read_file(file: Arc<File>, offset: u64, length: usize) -> Result<Bytes, BlobError> {
    let read = tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; length];
        file.read_exact_at(&mut buffer, offset).map(|()| Bytes::from(buffer))
    });
    let read = read.await.map_err(std::io::Error::other).and_then(|outcome| outcome);
    read.map_err(|source| BlobError::Io { operation: "read an artifact", source })
}

async fn read_stream(
    pieces: &mut BoxStream<'static, object_store::Result<Bytes>>,
    ahead: &mut BytesMut,
    length: usize,
) -> Result<Bytes, BlobError> {
    while ahead.len() < length {
        match pieces.next().await {
            Some(piece) => {
                let piece = piece.map_err(|source| BlobError::of_store("read an artifact", source))?;
                ahead.extend_from_slice(&piece);
            }
            None => {
                let source = std::io::ErrorKind::UnexpectedEof.into();
                return Err(BlobError::Io { operation: "read an artifact", source });
            }
        }
    }
    Ok(ahead.split_to(length).freeze())
}
