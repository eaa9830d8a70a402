//! `GET /artifacts/{binary_id}`: a file of an update for whoever speaks plain HTTP: a device's updater, `curl`, a cache.
//!
//! Opened by the signature in its URL (`crate::artifacts::DownloadUrls`), or by a key in the headers like
//! DownloadBinary. Ranges, preconditions and entity tags are those of RFC 9110, so that any client can resume; files of
//! exports (`export_download`) are given out the same way.
use std::net::SocketAddr;
use std::ops::Range;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri};

use super::access::{credential_of, Call};
use super::binary_service::{BinaryService, DOWNLOAD_BINARY};
use super::byte_range::{self, Condition, Wanted};
use super::gateway::GatewayBody;
use super::wire::{self, ErrorFacts};
use crate::artifacts::{BlobReader, Checksum, Feeder, PATH_PREFIX};
use crate::clock::UnixMillis;
use crate::error::{ApiError, ErrorCode};
use crate::store::BinaryRecord;

/// Bytes of one piece. Small, since a fleet downloads many files at once, each with three pieces in memory.
const PIECE_BYTES: usize = 64 << 10;

/// Who asks: a request without its body.
pub struct Asked<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub headers: &'a HeaderMap,
    pub peer: SocketAddr,
}

/// Why a request is not answered with bytes: the status may say more than the code.
pub(super) struct Refusal {
    pub status: StatusCode,
    pub error: ApiError,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// What is given out.
pub(super) struct File {
    /// For messages.
    pub id: String,
    /// For whoever keeps it.
    pub name: String,
    pub content_type: &'static str,
    pub checksum: Checksum,
    pub size_bytes: u64,
    /// When it is removed, and whoever has a copy should forget it; `None` for what stays.
    pub expires_at: Option<UnixMillis>,
}

impl From<BinaryRecord> for File {
    fn from(record: BinaryRecord) -> Self {
        Self {
            id: record.id,
            name: record.name,
            content_type: "application/octet-stream",
            checksum: record.checksum,
            size_bytes: record.size_bytes,
            expires_at: None,
        }
    }
}

/// How a request for a file is answered.
pub(super) struct Plan {
    is_head: bool,
    status: StatusCode,
    headers: HeaderMap,
    /// Which bytes; `None` for an answer without any, also where GET has them.
    pub range: Option<Range<u64>>,
}

impl From<ApiError> for Box<Refusal> {
    fn from(error: ApiError) -> Self {
        let status = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(Refusal { status, error, headers: Vec::new() })
    }
}

impl BinaryService {
    /// The answer to a request whose path begins with [`PATH_PREFIX`]; `id` is the request's id.
    pub async fn answer_http(&self, asked: Asked<'_>, id: &HeaderValue) -> Response<GatewayBody> {
        let mut call = Call::new(credential_of(asked.headers), asked.peer.ip());
        let mut response = match self.open(&asked, &mut call).await {
            Ok(response) => response,
            Err(refusal) => refused(*refusal, &call, id, asked.method == Method::HEAD),
        };
        if let Some(quota) = &call.quota {
            wire::set_limit_headers(response.headers_mut(), quota);
        }
        response
    }

    async fn open(&self, asked: &Asked<'_>, call: &mut Call) -> Result<Response<GatewayBody>, Box<Refusal>> {
        let is_head = is_head(asked)?;
        let binary_id = asked.uri.path().strip_prefix(PATH_PREFIX).unwrap_or_default();
        let query = asked.uri.query().unwrap_or_default();
        if is_signed(query) {
            self.urls.verify(binary_id, query, UnixMillis::now()).map_err(ApiError::from)?;
        } else {
            self.access.authorize_download(call, DOWNLOAD_BINARY).await?;
        }
        let file = File::from(self.file(binary_id).await?);
        let plan = plan(asked, is_head, &file)?;
        let Some(range) = plan.range.clone() else { return Ok(plan.without_body()) };
        let reader = self.blobs.read(file.checksum, file.size_bytes, range).await.map_err(ApiError::from)?;
        plan.answer(reader, &file, &self.feeder)
    }
}

/// Whether only the head is asked for.
pub(super) fn is_head(asked: &Asked<'_>) -> Result<bool, Box<Refusal>> {
    match *asked.method {
        Method::GET => Ok(false),
        Method::HEAD => Ok(true),
        _ => Err(method_not_allowed(asked)),
    }
}

pub(super) fn plan(asked: &Asked<'_>, is_head: bool, file: &File) -> Result<Plan, Box<Refusal>> {
    let etag = format!("\"{}\"", file.checksum.hex());
    let text = |name| asked.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let mut headers = headers_of(file, &etag);
    match byte_range::condition(text(IF_MATCH), text(IF_NONE_MATCH), &etag) {
        Condition::Go => {}
        Condition::NotModified => {
            return Ok(Plan { is_head, status: StatusCode::NOT_MODIFIED, headers, range: None });
        }
        Condition::Failed => return Err(precondition_failed(file)),
    }
    let wanted = match text(RANGE) {
        // A range means something for GET alone (section 14.2).
        Some(range) if !is_head && byte_range::range_counts(text(IF_RANGE), &etag) => {
            byte_range::wanted(range, file.size_bytes)
        }
        _ => Wanted::Whole,
    };
    let (status, range) = match wanted {
        Wanted::Whole => (StatusCode::OK, 0..file.size_bytes),
        Wanted::Part(range) => {
            let content_range = format!("bytes {}-{}/{}", range.start, range.end - 1, file.size_bytes);
            put(&mut headers, CONTENT_RANGE, &content_range);
            (StatusCode::PARTIAL_CONTENT, range)
        }
        Wanted::Unsatisfiable => return Err(unsatisfiable(file)),
    };
    put(&mut headers, CONTENT_LENGTH, &(range.end - range.start).to_string());
    put(&mut headers, CONTENT_TYPE, file.content_type);
    Ok(Plan { is_head, status, headers, range: Some(range) })
}

impl Plan {
    pub fn without_body(self) -> Response<GatewayBody> {
        respond(self.status, self.headers, GatewayBody::empty())
    }

    /// With the bytes, which `reader` has.
    pub fn answer(
        self,
        reader: BlobReader,
        file: &File,
        feeder: &Feeder,
    ) -> Result<Response<GatewayBody>, Box<Refusal>> {
        let body = if self.is_head {
            GatewayBody::Head(file.size_bytes)
        } else {
            GatewayBody::Feed(feeder.start(reader, PIECE_BYTES).map_err(ApiError::from)?)
        };
        Ok(respond(self.status, self.headers, body))
    }
}

/// Whether the URL is meant to be a signed one; then no key makes up for a wrong signature.
pub(super) fn is_signed(query: &str) -> bool {
    query.split('&').any(|pair| matches!(pair.split('=').next(), Some("signature" | "expires")))
}

fn headers_of(file: &File, etag: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    put(&mut headers, ETAG, etag);
    put(&mut headers, ACCEPT_RANGES, "bytes");
    put(&mut headers, CACHE_CONTROL, &cache_control(file.expires_at, UnixMillis::now()));
    put(&mut headers, CONTENT_DISPOSITION, &disposition(&file.name));
    put(&mut headers, X_CONTENT_TYPE_OPTIONS, "nosniff");
    // RFC 9530, so that a client can check what it put together from ranges.
    let digest = format!("sha-256=:{}:", STANDARD.encode(file.checksum.as_bytes()));
    put(&mut headers, HeaderName::from_static("repr-digest"), &digest);
    headers
}

/// The bytes of an id never change, and who may have them is said by the URL or the key; a copy may live as long as the file.
fn cache_control(expires_at: Option<UnixMillis>, now: UnixMillis) -> String {
    match expires_at {
        None => "private, max-age=31536000, immutable".to_owned(),
        Some(at) => {
            // Down to the second before, in which a URL opens nothing any more.
            let left = (at.as_millis() - now.as_millis()).div_euclid(1_000).max(0);
            format!("private, max-age={left}")
        }
    }
}

/// The file's name for a browser (RFC 6266), with what is not plain in the form of RFC 8187.
fn disposition(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.bytes().all(is_plain) {
        return format!("attachment; filename=\"{name}\"");
    }
    let mut text = String::from("attachment; filename*=UTF-8''");
    for byte in name.bytes() {
        if is_plain(byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Sets a header; what this file writes is always a valid value.
fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn respond(status: StatusCode, headers: HeaderMap, body: GatewayBody) -> Response<GatewayBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn method_not_allowed(asked: &Asked<'_>) -> Box<Refusal> {
    let message = format!("{} takes GET, not {}", asked.uri.path(), asked.method);
    Box::new(Refusal {
        status: StatusCode::METHOD_NOT_ALLOWED,
        error: ApiError::invalid_argument(message),
        headers: vec![(ALLOW, HeaderValue::from_static("GET, HEAD"))],
    })
}

fn precondition_failed(file: &File) -> Box<Refusal> {
    let message = format!("{} has the bytes {}, not those of If-Match", file.id, file.checksum);
    ApiError::new(ErrorCode::FailedPrecondition, message).into()
}

fn unsatisfiable(file: &File) -> Box<Refusal> {
    let message = format!("the range begins behind the end: {} has {} bytes", file.id, file.size_bytes);
    let length = HeaderValue::from_str(&format!("bytes */{}", file.size_bytes));
    Box::new(Refusal {
        status: StatusCode::RANGE_NOT_SATISFIABLE,
        error: ApiError::new(ErrorCode::OutOfRange, message),
        headers: length.into_iter().map(|length| (CONTENT_RANGE, length)).collect(),
    })
}

pub(super) fn refused(refusal: Refusal, call: &Call, id: &HeaderValue, is_head: bool) -> Response<GatewayBody> {
    let Refusal { status, error, headers } = refusal;
    let error = call.sign(error);
    wire::log_cause(&error);
    let facts = ErrorFacts { code: Some(error.code), user_id: error.user_id.clone(), permission: error.permission };
    let body = wire::envelope(error.code, &error.message, id, &facts);
    let mut response = respond(status, headers.into_iter().collect(), GatewayBody::empty());
    put(response.headers_mut(), CONTENT_TYPE, "application/json");
    if let Some(after) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wire::retry_seconds(after)));
    }
    *response.body_mut() = if is_head { GatewayBody::Head(body.len() as u64) } else { GatewayBody::full(body) };
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_break_out_of_its_header() {
        assert_eq!(disposition("firmware-2.0.bin"), "attachment; filename=\"firmware-2.0.bin\"");
        assert_eq!(disposition("a\"; x=y"), "attachment; filename*=UTF-8''a%22%3B%20x%3Dy");
        assert_eq!(disposition("ü"), "attachment; filename*=UTF-8''%C3%BC");
    }

    #[test]
    fn a_copy_lives_no_longer_than_its_file() {
        let at = UnixMillis::from_millis_clamped;
        assert_eq!(cache_control(None, at(0)), "private, max-age=31536000, immutable");
        assert_eq!(cache_control(Some(at(61_999)), at(1_000)), "private, max-age=60");
        assert_eq!(cache_control(Some(at(1_000)), at(1_001)), "private, max-age=0");
    }

    #[test]
    fn a_url_with_any_part_of_a_signature_is_judged_by_it() {
        assert!(is_signed("expires=1") && is_signed("a=b&signature") && is_signed("signature=x"));
        assert!(!is_signed("") && !is_signed("a=signature"));
    }
}
