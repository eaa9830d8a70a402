//! One request in, one answer out, whatever protocol and HTTP version: operations endpoints are answered here, RPCs
//! go to `connectrpc`, downloads to `artifact_download` and `export_download`, and plain HTTP clients get their errors in the reference's
//! envelope.
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use connectrpc::dispatcher::{Chain, Dispatcher as _};
use connectrpc::{ConnectRpcBody, ConnectRpcService, DeadlinePolicy, Limits, MethodKind, Router};
use futures_util::Stream as _;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use serde::Deserialize;

use super::analytics_service::{GET_DEVICE_HEALTH, GET_METRICS};
use super::answers::{AnswerSlot, Sending};
use super::artifact_download;
use super::binary_service::UPLOAD_BINARY;
use super::intake::{self, Counted, Intake};
use super::operations::Operations;
use super::rpc::FleetRpc;
use super::wire::{self, ErrorFacts, FactsSlot};
use crate::artifacts::{self, Feed};
use crate::error::ErrorCode;

/// The largest request body, and the largest message after decompression. The largest message today is a heartbeat
/// with all its processes and metrics, some 200 KB; uploads stream, and the messages of theirs have a limit of their own.
pub const MAX_BODY_BYTES: usize = 2 * 1024 * 1024;
/// Time for a unary request, its body included, when the client sets none; and the longest it may ask for.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(20);
const MAX_DEADLINE: Duration = Duration::from_secs(300);
/// The same for questions to the telemetry, which have bounds of their own (`analytics::pool`, `analytics::metrics`): they
/// come first, and say what to ask for instead.
const QUESTION_DEADLINE: Duration = Duration::from_secs(75);
const QUESTIONS: &str = "/fleetd.v1.AnalyticsService/";
/// The longest that a client may ask for an upload. There is no default: each of its messages has a time to come.
const MAX_UPLOAD_DEADLINE: Duration = Duration::from_secs(24 * 3600);

type RpcService = ConnectRpcService<Chain<FleetRpc, Router>>;

/// Cheap, cloneable handle.
#[derive(Clone)]
pub struct Gateway {
    rpc: RpcService,
    /// The same services, with a deadline that uploads can meet.
    uploads: RpcService,
    /// The same services, with a deadline that questions can meet.
    questions: RpcService,
    operations: Arc<Operations>,
    intake: Intake,
}

/// Whether an RPC may have ClickHouse work for long, for nobody but the client that asked. An export is for later.
pub(super) fn ends_with_its_client(path: &str) -> bool {
    matches!(path.strip_prefix('/'), Some(GET_METRICS | GET_DEVICE_HEALTH))
}

/// Where the request came from; a request extension.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

impl Gateway {
    /// `companions` holds the health and reflection services.
    pub fn new(fleet: FleetRpc, companions: Router, operations: Arc<Operations>) -> Self {
        let limits = Limits::default().with_max_request_body_size(MAX_BODY_BYTES).with_max_message_size(MAX_BODY_BYTES);
        let deadlines = DeadlinePolicy::new().with_default_timeout(DEFAULT_DEADLINE).with_max(MAX_DEADLINE);
        let rpc = ConnectRpcService::new(Chain(fleet, companions)).with_limits(limits).with_deadline_policy(deadlines);
        let uploads = rpc.clone().with_deadline_policy(DeadlinePolicy::new().with_max(MAX_UPLOAD_DEADLINE));
        let deadlines = DeadlinePolicy::new().with_default_timeout(QUESTION_DEADLINE).with_max(MAX_DEADLINE);
        let questions = rpc.clone().with_deadline_policy(deadlines);
        Self { rpc, uploads, questions, operations, intake: Intake::default() }
    }

    pub(super) fn fleet(&self) -> &FleetRpc {
        &self.rpc.dispatcher().0
    }

    /// What the bodies of all requests hold.
    pub(super) fn intake(&self) -> &Intake {
        &self.intake
    }

    pub async fn handle<B>(&self, mut request: Request<B>, peer: SocketAddr) -> Response<GatewayBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let id = wire::request_id(request.headers().get(wire::REQUEST_ID).map(HeaderValue::as_bytes));
        let mut response = match self.operations.answer(request.method(), request.uri().path()) {
            Some(answer) => answer.map(GatewayBody::full),
            None if request.uri().path().starts_with(artifacts::PATH_PREFIX) => {
                let (method, uri, headers) = (request.method(), request.uri(), request.headers());
                let asked = artifact_download::Asked { method, uri, headers, peer };
                self.fleet().binaries().answer_http(asked, &id).await
            }
            None if request.uri().path().starts_with(artifacts::EXPORT_PATH_PREFIX) => {
                let (method, uri, headers) = (request.method(), request.uri(), request.headers());
                let asked = artifact_download::Asked { method, uri, headers, peer };
                self.fleet().analytics().answer_http(asked, &id).await
            }
            None => {
                request.extensions_mut().insert(Peer(peer));
                self.call(request, &id).await
            }
        };
        response.headers_mut().insert(wire::REQUEST_ID, id);
        response
    }

    async fn call<B>(&self, mut request: Request<B>, id: &HeaderValue) -> Response<GatewayBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        use tower_service::Service as _;
        lower_content_type(&mut request);
        if is_grpc(&request) && request.version() < Version::HTTP_2 {
            let message = "gRPC needs HTTP/2; over HTTP/1.1 use Connect or gRPC-Web";
            return plain_error(StatusCode::HTTP_VERSION_NOT_SUPPORTED, ErrorCode::InvalidArgument, message, id);
        }
        let mut rpc = match request.uri().path() {
            path if path.strip_prefix('/') == Some(UPLOAD_BINARY) => self.uploads.clone(),
            path if path.starts_with(QUESTIONS) => self.questions.clone(),
            _ => self.rpc.clone(),
        };
        let slot = request.uri().path().starts_with(QUESTIONS).then(AnswerSlot::default);
        slot.iter().for_each(|slot| drop(request.extensions_mut().insert(slot.clone())));
        let with_room = |body| match slot.and_then(|slot| slot.take()) {
            Some(held) => GatewayBody::Answer(Sending::new(body, held)),
            None => GatewayBody::Rpc(body),
        };
        let was_refused = Arc::new(AtomicBool::new(false));
        // The messages of a stream are taken in one by one, and their sum says nothing.
        let share = (!self.takes_stream(request.uri().path())).then(|| self.intake.share());
        let counted = |request: Request<B>| request.map(|body| Counted::new(body, share, Arc::clone(&was_refused)));
        if !is_plain(&request) {
            let framed = is_framed(&request).then(|| request.headers()[CONTENT_TYPE].clone());
            let answer = rpc.call(counted(request)).await.unwrap_or_else(|never| match never {});
            if was_refused.load(Ordering::Acquire) {
                return framed.map_or_else(|| busy(id, true), busy_in_grpc);
            }
            return answer.map(with_room);
        }
        ask_as_connect_get(&mut request);
        let facts = FactsSlot::default();
        request.extensions_mut().insert(facts.clone());
        let asked = Asked::of(&request);
        let response = rpc.call(counted(request)).await.unwrap_or_else(|never| match never {});
        if was_refused.load(Ordering::Acquire) {
            return busy(id, false);
        }
        if response.status().is_success() {
            return response.map(with_room);
        }
        let facts = std::mem::take(&mut *facts.0.lock());
        in_envelope(response, &asked, id, &facts).await
    }
}

impl Gateway {
    fn takes_stream(&self, path: &str) -> bool {
        let method = path.strip_prefix('/').and_then(|path| self.fleet().lookup(path));
        method.is_some_and(|method| matches!(method.kind, MethodKind::ClientStreaming | MethodKind::BidiStreaming))
    }
}

/// The answer to a request whose body is one too many.
fn busy(id: &HeaderValue, is_connect: bool) -> Response<GatewayBody> {
    let code = ErrorCode::Unavailable;
    let mut response = Response::new(GatewayBody::full(error_body(code, intake::MESSAGE, id, is_connect)));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wire::retry_seconds(intake::RETRY_AFTER)));
    response
}

/// As [`busy`], for gRPC and gRPC-Web: an error without messages is in the headers alone.
fn busy_in_grpc(content_type: HeaderValue) -> Response<GatewayBody> {
    let mut response = Response::new(GatewayBody::full(Bytes::new()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert("grpc-status", HeaderValue::from(ErrorCode::Unavailable.grpc()));
    headers.insert("grpc-message", HeaderValue::from_static(intake::MESSAGE));
    response
}

/// Media types are case-insensitive (RFC 9110, section 8.3.1); connectrpc compares them as they come.
fn lower_content_type<B>(request: &mut Request<B>) {
    let Some(value) = request.headers_mut().get_mut(CONTENT_TYPE) else { return };
    if value.as_bytes().iter().any(u8::is_ascii_uppercase) {
        if let Ok(lower) = HeaderValue::from_bytes(&value.as_bytes().to_ascii_lowercase()) {
            *value = lower;
        }
    }
}

fn content_type<B>(request: &Request<B>) -> &[u8] {
    request.headers().get(CONTENT_TYPE).map_or(b"", HeaderValue::as_bytes)
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = content_type(request);
    kind.starts_with(b"application/grpc") && !kind.starts_with(b"application/grpc-web")
}

/// gRPC and gRPC-Web.
fn is_framed<B>(request: &Request<B>) -> bool {
    content_type(request).starts_with(b"application/grpc")
}

/// A client that speaks none of the three protocols by name gets the reference's envelope.
fn is_plain<B>(request: &Request<B>) -> bool {
    let kind = content_type(request);
    let says_connect = request.headers().contains_key(wire::CONNECT_PROTOCOL_VERSION)
        || request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "connect=v1"));
    !says_connect && !kind.starts_with(b"application/grpc") && !kind.starts_with(b"application/connect+")
}

/// `curl URL/fleetd.v1.DeviceService/ListDevices`, as the reference prints it, is an empty request in JSON.
fn ask_as_connect_get<B>(request: &mut Request<B>) {
    if request.method() != Method::GET || request.uri().query().is_some_and(|query| query.contains("message=")) {
        return;
    }
    let empty = format!("{}?encoding=json&message=%7B%7D", request.uri().path());
    if let Ok(uri) = empty.parse::<Uri>() {
        *request.uri_mut() = uri;
    }
}

/// What an error message about the request names.
struct Asked {
    method: Method,
    path: String,
    content_type: String,
}

impl Asked {
    fn of<B>(request: &Request<B>) -> Self {
        Self {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            content_type: String::from_utf8_lossy(content_type(request)).into_owned(),
        }
    }
}

/// Connect's error JSON, of which the envelope keeps code and message.
#[derive(Deserialize)]
struct ConnectErrorJson {
    code: String,
    #[serde(default)]
    message: String,
}

async fn in_envelope(
    response: Response<ConnectRpcBody>,
    asked: &Asked,
    id: &HeaderValue,
    facts: &ErrorFacts,
) -> Response<GatewayBody> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_or_else(|never| match never {}, http_body_util::Collected::to_bytes);
    let Asked { method, path, content_type } = asked;
    let (status, code, message) = match (parts.status, serde_json::from_slice::<ConnectErrorJson>(&body)) {
        (StatusCode::NOT_FOUND, Ok(error)) if error.code == "unimplemented" => {
            let message = format!("there is no {path} here; RPCs are at /fleetd.v1.SERVICE/METHOD");
            (StatusCode::NOT_FOUND, ErrorCode::NotFound, message)
        }
        (status, Ok(error)) => {
            let code = facts.code.or_else(|| ErrorCode::from_name(&error.code)).unwrap_or(ErrorCode::Unknown);
            // Where connectrpc chose a status of its own (413, 415, …) that one is more exact.
            let usual = connectrpc::ErrorCode::from_grpc_code(code.grpc()).map(|code| code.http_status());
            let status = if code == ErrorCode::ResourceExhausted && facts.code.is_none() {
                // No service said this, so it is connectrpc's, which has one reason: the message is too large. As a
                // 429 it would be sent again.
                StatusCode::PAYLOAD_TOO_LARGE
            } else if usual == Some(status) {
                StatusCode::from_u16(code.http_status()).unwrap_or(status)
            } else {
                status
            };
            (status, code, error.message)
        }
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, Err(_)) => {
            let message =
                format!("content type {content_type:?} is not supported; send application/json or application/proto");
            (parts.status, ErrorCode::InvalidArgument, message)
        }
        (StatusCode::METHOD_NOT_ALLOWED, Err(_)) => {
            (parts.status, ErrorCode::InvalidArgument, format!("{path} does not take {method}; use POST"))
        }
        (status, Err(_)) => (status, ErrorCode::Unknown, format!("{method} {path} failed")),
    };
    let mut told = Response::new(GatewayBody::full(wire::envelope(code, &message, id, facts)));
    *told.status_mut() = status;
    *told.headers_mut() = parts.headers;
    told.headers_mut().remove(http::header::CONTENT_LENGTH);
    told.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        told.headers_mut().entry(ALLOW).or_insert(HeaderValue::from_static("POST"));
    }
    told
}

fn plain_error(status: StatusCode, code: ErrorCode, message: &str, id: &HeaderValue) -> Response<GatewayBody> {
    let mut response = Response::new(GatewayBody::full(error_body(code, message, id, false)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An error's JSON body: Connect's, or the reference's envelope.
pub(super) fn error_body(code: ErrorCode, message: &str, id: &HeaderValue, is_connect: bool) -> Bytes {
    match connectrpc::ErrorCode::from_grpc_code(code.grpc()) {
        Some(code) if is_connect => connectrpc::ConnectError::new(code, message).to_json(),
        _ => wire::envelope(code, message, id, &ErrorFacts::default()),
    }
}

/// A whole answer, one that `connectrpc` produces frame by frame, with trailers, or a file.
pub enum GatewayBody {
    Full(Option<Bytes>),
    Rpc(ConnectRpcBody),
    /// A large one, that counts until its client has it.
    Answer(Sending),
    Feed(Feed),
    /// Nothing, in answer to HEAD, where GET would have so many bytes.
    Head(u64),
}

impl GatewayBody {
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()))
    }

    pub const fn empty() -> Self {
        Self::Full(None)
    }
}

impl Body for GatewayBody {
    type Data = Bytes;
    /// Ends the stream or the connection, so that the client does not take a part for the whole.
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Rpc(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
            Self::Answer(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
            Self::Feed(feed) => Pin::new(feed).poll_next(cx).map(|piece| {
                piece.map(|piece| {
                    piece.map(Frame::data).map_err(|error| {
                        tracing::warn!(cause = &error as &dyn std::error::Error, "a download ended early");
                        std::io::Error::other(error)
                    })
                })
            }),
            Self::Head(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Rpc(body) => body.is_end_stream(),
            Self::Answer(body) => body.is_end_stream(),
            Self::Feed(feed) => feed.remaining() == 0,
            Self::Head(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Rpc(body) => body.size_hint(),
            Self::Answer(body) => body.size_hint(),
            Self::Feed(feed) => SizeHint::with_exact(feed.remaining()),
            Self::Head(bytes) => SizeHint::with_exact(*bytes),
        }
    }
}
