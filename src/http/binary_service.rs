//! BinaryService: files of updates, up and down, in streams. The plain HTTP download is in `artifact_download`.
//!
//! An upload is answered when its bytes are durable under their checksum and the registry knows them. The order is
//! bytes first, registry second: a crash between the two leaves bytes that nobody knows, which the next start removes.
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use connectrpc::dispatcher::RequestStream;
use connectrpc::{CodecFormat, ConnectError, EncodedBody};
use fleetd_proto::v1::{
    download_binary_response, upload_binary_request, BinaryMetadata, DownloadBinaryRequest, DownloadBinaryResponse,
    UploadBinaryRequest, UploadBinaryResponse,
};
use futures_util::stream::{self, Stream, StreamExt as _};
use prost::encoding::{encode_key, encode_varint, WireType};
use tokio::sync::{watch, Mutex, Semaphore};

use super::access::{Access, Call};
use super::device_service::timestamp;
use super::{rpc, wire};
use crate::artifacts::{
    BlobError, BlobStore, Description, DownloadUrls, Feeder, InvalidDescription, Kept, TransferCounters, Upload,
};
use crate::clock::UnixMillis;
use crate::error::{beginning, ApiError, ErrorCode};
use crate::store::{BinaryRecord, NewBinary, Store, StoreError};

pub const UPLOAD_BINARY: &str = "fleetd.v1.BinaryService/UploadBinary";
pub const DOWNLOAD_BINARY: &str = "fleetd.v1.BinaryService/DownloadBinary";

/// The largest chunk of the contract.
const MAX_CHUNK_BYTES: usize = 4 << 20;
const MIN_CHUNK_BYTES: usize = 4 << 10;
const DEFAULT_CHUNK_BYTES: usize = 1 << 20;
/// The largest message of an upload: a largest chunk in JSON, where base64 makes 4 bytes of 3, and what is around it.
pub const MAX_UPLOAD_MESSAGE_BYTES: usize = MAX_CHUNK_BYTES / 3 * 4 + (64 << 10);

/// Uploads at once. Each holds up to three of the largest chunks, 12 MiB; operators have one or two.
const MAX_UPLOADS: usize = 16;

/// Characters of an id that an error repeats: ids of files have some ten.
const MAX_SHOWN: usize = 64;
/// An uploader's next message must have come whole by then; the largest one at 70 KB/s.
const CHUNK_WITHIN: Duration = Duration::from_secs(60);
/// How long an upload may go on after the server was told to stop; the whole stop has 4 s for requests in flight.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// When to come back to a server that is busy or stops.
const RETRY: Duration = Duration::from_secs(5);

/// The messages of a download, encoded.
pub type Messages = Pin<Box<dyn Stream<Item = Result<EncodedBody, ConnectError>> + Send>>;

pub struct BinaryService {
    pub access: Arc<Access>,
    pub store: Arc<dyn Store>,
    pub blobs: BlobStore,
    pub feeder: Feeder,
    pub urls: DownloadUrls,
    pub counters: Arc<TransferCounters>,
    stopping: watch::Receiver<bool>,
    uploads: Semaphore,
    /// Held from the moment bytes get their name until the registry knows them, so that bytes are never taken away
    /// under a file that another upload is about to register.
    publishing: Mutex<()>,
}

/// Why the files of updates cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BinariesError {
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BinaryService {
    /// Removes bytes that the registry does not know, and is ready to serve.
    pub async fn start(
        access: Arc<Access>,
        store: Arc<dyn Store>,
        blobs: BlobStore,
        urls: DownloadUrls,
        stopping: watch::Receiver<bool>,
    ) -> Result<Self, BinariesError> {
        let known = store.binary_checksums()?;
        let removed = blobs.remove_unknown(|checksum| known.contains(checksum)).await?;
        if removed > 0 {
            tracing::info!(removed, "removed artifacts that were kept but never registered");
        }
        let counters = Arc::new(TransferCounters::default());
        Ok(Self {
            access,
            store,
            blobs,
            feeder: Feeder::new(stopping.clone(), Arc::clone(&counters)),
            urls,
            counters,
            stopping,
            uploads: Semaphore::new(MAX_UPLOADS),
            publishing: Mutex::new(()),
        })
    }

    /// Permission: `update:create`.
    pub async fn upload(
        self: &Arc<Self>,
        call: &mut Call,
        messages: RequestStream,
        format: CodecFormat,
    ) -> Result<UploadBinaryResponse, ApiError> {
        self.access.authorize(call, UPLOAD_BINARY).await?;
        let outcome = self.take_upload(messages, format).await;
        match &outcome {
            Ok(_) => self.counters.uploaded(),
            Err(_) => self.counters.upload_failed(),
        }
        outcome.map(|file| UploadBinaryResponse {
            binary_id: file.id,
            checksum: file.checksum.to_string(),
            // At most `MAX_BINARY_BYTES`.
            size_bytes: file.size_bytes as i64,
            uploaded_at: Some(timestamp(file.uploaded_at)),
        })
    }

    async fn take_upload(
        self: &Arc<Self>,
        messages: RequestStream,
        format: CodecFormat,
    ) -> Result<BinaryRecord, ApiError> {
        let Ok(_permit) = self.uploads.try_acquire() else {
            let message = format!("{MAX_UPLOADS} uploads are under way, the most at once; try again in a few seconds");
            return Err(ApiError::unavailable(message, RETRY));
        };
        let mut incoming = Incoming { messages, format, number: 0 };
        let mut stopping = self.stopping.clone();
        let stopped = async {
            // An error means that the sender is gone, which only happens when the server is.
            let _ = stopping.wait_for(|is_stopping| *is_stopping).await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        let (kept, description) = tokio::select! {
            kept = self.receive(&mut incoming) => kept?,
            () = stopped => return Err(ApiError::unavailable("the server is stopping; upload the file again", RETRY)),
        };
        // The client may go away now: what is kept is registered, or neither.
        let service = Arc::clone(self);
        let published = tokio::spawn(async move { service.publish(kept, description).await }).await;
        published.unwrap_or_else(|panic| Err(ApiError::internal("could not register the file").with_source(panic)))
    }

    async fn receive(&self, incoming: &mut Incoming) -> Result<(Kept, Description), ApiError> {
        use upload_binary_request::Data;
        let description = match incoming.next().await? {
            Some(Data::Metadata(metadata)) => describe(metadata)?,
            Some(Data::Chunk(_)) => {
                return Err(ApiError::invalid_argument("message 1 is a chunk; the first one must be metadata"))
            }
            None => return Err(ApiError::invalid_argument("the upload ended before its metadata")),
        };
        let mut upload = self.blobs.begin(description.size_bytes).await?;
        while let Some(data) = incoming.next().await? {
            let Data::Chunk(chunk) = data else {
                let message = format!("message {} is metadata again; all but the first are chunks", incoming.number);
                return Err(ApiError::invalid_argument(message));
            };
            check_chunk(incoming.number, chunk.len())?;
            self.take_chunk(&mut upload, chunk).await?;
        }
        if upload.received() == 0 {
            return Err(ApiError::invalid_argument("the upload has no chunk; a file has at least one byte"));
        }
        let kept = upload.finish(description.checksum).await?;
        Ok((kept, description))
    }

    async fn take_chunk(&self, upload: &mut Upload, chunk: Bytes) -> Result<(), BlobError> {
        let bytes = chunk.len();
        upload.write(chunk).await?;
        self.counters.uploaded_bytes(bytes);
        Ok(())
    }

    async fn publish(&self, kept: Kept, description: Description) -> Result<BinaryRecord, ApiError> {
        let (checksum, size_bytes) = (kept.checksum, kept.size_bytes);
        let _turn = self.publishing.lock().await;
        kept.publish().await?;
        let file = NewBinary {
            name: description.name,
            version: description.version,
            platform: description.platform,
            checksum,
            size_bytes,
            uploaded_at: UnixMillis::now(),
        };
        let registered = self.store.put_binary(file).await;
        // Another file may have these bytes; and a registry that cannot say is not to be believed that none has.
        if registered.is_err() && self.store.has_binary_bytes(&checksum).await.is_ok_and(|is_known| !is_known) {
            if let Err(error) = self.blobs.remove(&checksum).await {
                let cause = &error as &dyn std::error::Error;
                tracing::warn!(cause, %checksum, "an unregistered artifact stays until the next start");
            }
        }
        Ok(registered?)
    }

    /// Permission: `update:view`; every device may.
    pub async fn download(
        self: &Arc<Self>,
        call: &mut Call,
        request: DownloadBinaryRequest,
        format: CodecFormat,
    ) -> Result<Messages, ApiError> {
        self.access.authorize_download(call, DOWNLOAD_BINARY).await?;
        let chunk_bytes = chunk_size(request.chunk_size)?;
        let file = self.file(&request.binary_id).await?;
        let offset = u64::try_from(request.offset).ok().filter(|offset| *offset <= file.size_bytes);
        let offset = offset.ok_or_else(|| {
            let message = format!("offset is {}; {} has {} bytes", request.offset, file.id, file.size_bytes);
            ApiError::invalid_argument(message)
        })?;
        let reader = self.blobs.read(file.checksum, file.size_bytes, offset..file.size_bytes).await?;
        let feed = self.feeder.start(reader, chunk_bytes)?;
        let metadata = download_binary_response::Data::Metadata(metadata_of(file));
        let first = rpc::encode(&DownloadBinaryResponse { data: Some(metadata) }, format)?;
        let chunks = feed.map(move |piece| match piece {
            Ok(chunk) => chunk_message(chunk, format),
            Err(error) => Err(error.into()),
        });
        let messages = stream::iter([Ok(EncodedBody::from(first))]).chain(chunks);
        Ok(Box::pin(messages.map(|message| message.map_err(|error| wire::connect_error(error, None, None)))))
    }

    /// What the registry knows of a file.
    pub(super) async fn file(&self, binary_id: &str) -> Result<BinaryRecord, ApiError> {
        self.store.binary(binary_id).await?.ok_or_else(|| {
            let shown = beginning(binary_id, MAX_SHOWN);
            ApiError::not_found(format!("there is no binary {shown:?}; UploadBinary gives ids"))
        })
    }
}

/// The messages of an upload, as they come.
struct Incoming {
    messages: RequestStream,
    format: CodecFormat,
    /// Of the last message, from 1.
    number: u64,
}

impl Incoming {
    /// `None` after the last one.
    async fn next(&mut self) -> Result<Option<upload_binary_request::Data>, ApiError> {
        let message = match tokio::time::timeout(CHUNK_WITHIN, self.messages.next()).await {
            Ok(None) => return Ok(None),
            Ok(Some(message)) => message.map_err(broken_off)?,
            Err(_) => {
                let message = format!("no message came for {} s; upload the file again", CHUNK_WITHIN.as_secs());
                return Err(ApiError::new(ErrorCode::DeadlineExceeded, message));
            }
        };
        self.number += 1;
        let request: UploadBinaryRequest = rpc::decode_sharing(message, self.format)?;
        request.data.map(Some).ok_or_else(|| {
            ApiError::invalid_argument(format!("message {} holds neither metadata nor a chunk", self.number))
        })
    }
}

/// A stream that did not end as it should: too large a message, a broken frame, a client that went away.
fn broken_off(error: ConnectError) -> ApiError {
    let code = ErrorCode::from_name(error.code.as_str()).unwrap_or(ErrorCode::Unknown);
    ApiError::new(code, error.message.unwrap_or_else(|| "the upload broke off".to_owned()))
}

fn describe(metadata: BinaryMetadata) -> Result<Description, ApiError> {
    let BinaryMetadata { name, version, platform, checksum, size_bytes, .. } = metadata;
    Description::parse(name, version, platform, &checksum, size_bytes)
        .map_err(|error: InvalidDescription| ApiError::invalid_argument(error.to_string()))
}

fn check_chunk(number: u64, bytes: usize) -> Result<(), ApiError> {
    match bytes {
        1..=MAX_CHUNK_BYTES => Ok(()),
        0 => Err(ApiError::invalid_argument(format!(
            "message {number} is an empty chunk; give 1 to {MAX_CHUNK_BYTES} bytes"
        ))),
        _ => Err(ApiError::invalid_argument(format!(
            "message {number} is a chunk of {bytes} bytes; at most {MAX_CHUNK_BYTES} are allowed"
        ))),
    }
}

fn chunk_size(asked: i64) -> Result<usize, ApiError> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT_CHUNK_BYTES),
        Ok(size) if (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&size) => Ok(size),
        _ => Err(ApiError::invalid_argument(format!(
            "chunk_size is {asked}; give {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES}, or 0 for {DEFAULT_CHUNK_BYTES}"
        ))),
    }
}

fn metadata_of(file: BinaryRecord) -> BinaryMetadata {
    BinaryMetadata {
        name: file.name,
        version: file.version,
        platform: file.platform,
        checksum: file.checksum.to_string(),
        size_bytes: file.size_bytes as i64,
        binary_id: file.id,
        uploaded_at: Some(timestamp(file.uploaded_at)),
    }
}

/// A message that holds a chunk. In protobuf the chunk is sent as it was read: only what stands before it is written.
fn chunk_message(chunk: Bytes, format: CodecFormat) -> Result<EncodedBody, ApiError> {
    /// `DownloadBinaryResponse.chunk`; a test compares with what prost writes.
    const CHUNK_FIELD: u32 = 2;
    if format != CodecFormat::Proto {
        let data = Some(download_binary_response::Data::Chunk(chunk));
        return rpc::encode(&DownloadBinaryResponse { data }, format).map(EncodedBody::from);
    }
    let mut head = BytesMut::with_capacity(8);
    encode_key(CHUNK_FIELD, WireType::LengthDelimited, &mut head);
    encode_varint(chunk.len() as u64, &mut head);
    Ok(EncodedBody::from_segments(vec![head.freeze(), chunk]))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_chunk_is_sent_as_prost_would_write_it() {
        for length in [0, 1, 127, 128, 70_000] {
            let chunk = Bytes::from(vec![7; length]);
            let data = Some(download_binary_response::Data::Chunk(chunk.clone()));
            let expected = DownloadBinaryResponse { data }.encode_to_vec();
            let message = chunk_message(chunk, CodecFormat::Proto).unwrap();
            assert_eq!(message.into_contiguous(), expected, "{length}");
        }
    }

    #[test]
    fn chunk_sizes_of_the_contract_are_taken_and_others_named() {
        assert_eq!(chunk_size(0).unwrap(), 1 << 20);
        assert_eq!(chunk_size(4096).unwrap(), 4096);
        assert_eq!(chunk_size(4_194_304).unwrap(), 4 << 20);
        for wrong in [-1, 1, 4095, 4_194_305, i64::MAX] {
            let error = chunk_size(wrong).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert!(error.message.contains(&wrong.to_string()), "{error}");
        }
    }
}
