//! Writes an answer as ClickHouse's HTTP interface does: held back while it is small, so that an early failure
//! still gets its status; then streamed; and a late failure told inside the body.
use std::io::Write;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{header, HeaderValue, Response, StatusCode};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::body::{answer_channel, AnswerBody, AnswerSender, ClientGone, Piece};
use super::compression::{Coding, Encoder};
use super::exception::Exception;
use super::library::Counters;
use super::native_blocks::BlockWriter;
use super::native_revision::RevisionWriter;

/// Bytes of an answer that are held before its head is sent; ClickHouse's `http_response_buffer_size` default.
const HELD_BYTES: usize = 1 << 20;

/// The same when the client asked to wait for the end (`wait_end_of_query=1`). ClickHouse spills to disk beyond its
/// buffer; here a longer answer is streamed after all.
const HELD_BYTES_TO_THE_END: usize = 64 << 20;

/// How long a client may read nothing of its answer; ClickHouse's `http_send_timeout`.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// What stays the same for every answer of one engine.
#[derive(Debug)]
pub struct Facts {
    pub version: String,
    pub timezone: String,
    pub display_name: String,
}

/// How one answer is dressed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dress {
    /// The client's revision, when the answer is in Native; 0 for none.
    pub native_revision: u64,
    pub coding: Option<Coding>,
    pub in_native_blocks: bool,
    pub waits_for_the_end: bool,
}

/// Why output was not passed on.
#[derive(Debug)]
pub enum WriteError {
    Gone,
    Failed(Exception),
}

impl From<ClientGone> for WriteError {
    fn from(_: ClientGone) -> Self {
        Self::Gone
    }
}

impl From<Exception> for WriteError {
    fn from(exception: Exception) -> Self {
        Self::Failed(exception)
    }
}

/// The answer of one statement, from its thread.
pub struct Responder {
    facts: std::sync::Arc<Facts>,
    runtime: Handle,
    head: Option<oneshot::Sender<Response<AnswerBody>>>,
    sender: Option<AnswerSender>,
    held: Vec<Bytes>,
    held_bytes: usize,
    dress: Dress,
    revision: Option<RevisionWriter>,
    packer: Option<Packer>,
    query_id: String,
    format: String,
    tag: String,
    started: Instant,
}

impl Responder {
    pub fn new(
        facts: std::sync::Arc<Facts>,
        runtime: Handle,
        head: oneshot::Sender<Response<AnswerBody>>,
        query_id: String,
    ) -> Self {
        Self {
            facts,
            runtime,
            head: Some(head),
            sender: None,
            held: Vec::new(),
            held_bytes: 0,
            dress: Dress::default(),
            revision: None,
            packer: None,
            query_id,
            format: "TabSeparated".to_owned(),
            tag: uuid::Uuid::new_v4().simple().to_string()[..16].to_owned(),
            started: Instant::now(),
        }
    }

    /// Fixes format and compression; before the first [`write`](Self::write).
    ///
    /// # Errors
    /// The compressor cannot be made (out of memory).
    pub fn dress(&mut self, dress: Dress, format: &str) -> Result<(), Exception> {
        self.dress = dress;
        self.format = format.to_owned();
        self.revision = RevisionWriter::new(dress.native_revision);
        if dress.coding.is_some() || dress.in_native_blocks {
            self.packer = Some(Packer::new(dress).map_err(|error| packing_failed(&error))?);
        }
        Ok(())
    }

    /// Passes output on.
    ///
    /// # Errors
    /// Nobody reads any more: the statement should stop. Or the output cannot be written as the client reads it.
    pub fn write(&mut self, output: Bytes) -> Result<(), WriteError> {
        let output = match &mut self.revision {
            Some(revision) => Bytes::from(revision.write(&output)?),
            None => output,
        };
        Ok(self.pack(output)?)
    }

    fn pack(&mut self, output: Bytes) -> Result<(), ClientGone> {
        let packed = match &mut self.packer {
            Some(packer) => Bytes::from(packer.pack(&output).map_err(|_| ClientGone)?),
            None => output,
        };
        if packed.is_empty() {
            return Ok(());
        }
        if self.sender.is_some() {
            return self.send(Piece::Data(packed));
        }
        self.held_bytes += packed.len();
        self.held.push(packed);
        let limit = if self.dress.waits_for_the_end { HELD_BYTES_TO_THE_END } else { HELD_BYTES };
        if self.held_bytes > limit {
            self.begin_stream()?;
        }
        Ok(())
    }

    /// The statement is over, and this is what it did.
    pub fn finish(mut self, counters: Counters) {
        if self.revision.as_ref().is_some_and(|revision| !revision.is_whole()) {
            return self.fail(&Exception::internal("The last block of the answer is cut off"));
        }
        let rest = match self.packer.take().map(Packer::finish).transpose() {
            Ok(rest) => rest.unwrap_or_default(),
            Err(error) => return self.fail(&packing_failed(&error)),
        };
        if self.sender.is_some() {
            if self.send(Piece::Data(Bytes::from(rest))).is_ok() {
                // Nobody to tell when this fails: the client is gone.
                let _ = self.send(Piece::End);
            }
            return;
        }
        let body = match (self.held.len(), rest.is_empty()) {
            (1, true) => self.held.remove(0),
            _ => {
                self.held.push(Bytes::from(rest));
                Bytes::from(self.held.concat())
            }
        };
        let mut response = self.success_head(AnswerBody::Whole((!body.is_empty()).then_some(body)));
        let summary = self.summary(counters);
        if let Ok(value) = HeaderValue::from_str(&summary) {
            response.headers_mut().insert("x-clickhouse-summary", value);
        }
        self.send_head(response);
    }

    /// The statement failed: with its status if nothing was sent yet, else inside the body.
    pub fn fail(mut self, exception: &Exception) {
        if self.sender.is_none() {
            let response = error_response(exception, &self.facts, &self.query_id);
            self.send_head(response);
            return;
        }
        let block = exception.tagged_block(&self.tag, &self.facts.version);
        let last = match self.packer.take() {
            Some(mut packer) => packer.pack(&block).and_then(|mut packed| {
                packed.extend(packer.finish()?);
                Ok(Bytes::from(packed))
            }),
            None => Ok(block),
        };
        let _ = self.send(Piece::Failed(last.unwrap_or_default()));
    }

    fn begin_stream(&mut self) -> Result<(), ClientGone> {
        let (sender, body) = answer_channel();
        let response = self.success_head(body);
        self.send_head(response);
        self.sender = Some(sender);
        for piece in std::mem::take(&mut self.held) {
            self.send(Piece::Data(piece))?;
        }
        Ok(())
    }

    fn send(&self, piece: Piece) -> Result<(), ClientGone> {
        match &self.sender {
            Some(sender) => sender.send(&self.runtime, piece, SEND_TIMEOUT),
            None => Err(ClientGone),
        }
    }

    fn send_head(&mut self, response: Response<AnswerBody>) {
        if let Some(head) = self.head.take() {
            // The client may be gone; then the statement finds out at its next piece.
            let _ = head.send(response);
        }
    }

    fn success_head(&self, body: AnswerBody) -> Response<AnswerBody> {
        let mut response = Response::new(body);
        set_common(&mut response, &self.facts, &self.query_id);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(&self.format)));
        if let Ok(value) = HeaderValue::from_str(&self.format) {
            headers.insert("x-clickhouse-format", value);
        }
        if let Ok(value) = HeaderValue::from_str(&self.tag) {
            headers.insert("x-clickhouse-exception-tag", value);
        }
        if let Some(coding) = self.dress.coding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        }
        response
    }

    fn summary(&self, counters: Counters) -> String {
        format!(
            "{{\"read_rows\":\"{}\",\"read_bytes\":\"{}\",\"written_rows\":\"{}\",\"written_bytes\":\"{}\",\
             \"result_rows\":\"{}\",\"result_bytes\":\"{}\",\"elapsed_ns\":\"{}\"}}",
            counters.read_rows,
            counters.read_bytes,
            counters.written_rows,
            counters.written_bytes,
            counters.result_rows,
            counters.result_bytes,
            self.started.elapsed().as_nanos(),
        )
    }
}

/// An answer that tells an exception.
pub fn error_response(exception: &Exception, facts: &Facts, query_id: &str) -> Response<AnswerBody> {
    let body = Bytes::from(exception.body(&facts.version));
    let mut response = Response::new(AnswerBody::Whole(Some(body)));
    *response.status_mut() = StatusCode::from_u16(exception.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    set_common(&mut response, facts, query_id);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=UTF-8"));
    headers.insert("x-clickhouse-exception-code", HeaderValue::from(exception.code()));
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn set_common(response: &mut Response<AnswerBody>, facts: &Facts, query_id: &str) {
    let pairs = [
        ("x-clickhouse-query-id", query_id),
        ("x-clickhouse-timezone", facts.timezone.as_str()),
        ("x-clickhouse-server-display-name", facts.display_name.as_str()),
    ];
    for (name, value) in pairs {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
}

/// The content types of ClickHouse's output formats, by the families that clients look at.
fn content_type(format: &str) -> &'static str {
    match format {
        "JSONEachRow" | "JSONCompactEachRow" | "JSONStringsEachRow" | "NDJSON" | "JSONLines" => {
            "application/x-ndjson; charset=UTF-8"
        }
        name if name.starts_with("JSON") => "application/json; charset=UTF-8",
        name if name.starts_with("TabSeparated") || name.starts_with("TSV") => {
            "text/tab-separated-values; charset=UTF-8"
        }
        "CSV" => "text/csv; charset=UTF-8; header=absent",
        name if name.starts_with("CSVWith") => "text/csv; charset=UTF-8; header=present",
        "XML" => "application/xml; charset=UTF-8",
        name if name.starts_with("RowBinary") => "application/octet-stream",
        "Native" | "Parquet" | "Arrow" | "ArrowStream" | "ORC" | "Avro" | "MsgPack" | "BSONEachRow" => {
            "application/octet-stream"
        }
        _ => "text/plain; charset=UTF-8",
    }
}

fn packing_failed(error: &std::io::Error) -> Exception {
    Exception::internal(&format!("The answer cannot be compressed: {error}"))
}

/// ClickHouse's blocks inside, the HTTP coding outside.
struct Packer {
    blocks: Option<BlockWriter<Vec<u8>>>,
    encoder: Encoder,
}

impl Packer {
    fn new(dress: Dress) -> std::io::Result<Self> {
        let blocks = dress.in_native_blocks.then(|| BlockWriter::new(Vec::new()));
        Ok(Self { blocks, encoder: Encoder::new(dress.coding)? })
    }

    fn pack(&mut self, plain: &[u8]) -> std::io::Result<Vec<u8>> {
        match &mut self.blocks {
            Some(blocks) => {
                blocks.write_all(plain)?;
                self.encoder.write_all(&blocks.take_ready())?;
            }
            None => self.encoder.write_all(plain)?,
        }
        Ok(self.encoder.take_ready())
    }

    fn finish(mut self) -> std::io::Result<Vec<u8>> {
        if let Some(blocks) = self.blocks.take() {
            self.encoder.write_all(&blocks.into_inner()?)?;
        }
        self.encoder.finish()
    }
}
