//! A stand-in for the server and for ClickHouse, on one real socket: it speaks Connect, gRPC and the audit's queries,
//! and misbehaves on command. What it "stores" is a list of rows that the audit then reads.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fleetd_loadtest::{Code, Target};
use fleetd_proto::v1::{
    GetDeviceResponse, HeartbeatRequest, HeartbeatResponse, RegisterDeviceRequest, RegisterDeviceResponse,
};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

/// What to do with a heartbeat.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// Store it, acknowledge it.
    Acknowledge,
    /// Acknowledge it and lose it.
    Lose,
    /// Store it twice, acknowledge it.
    Double,
    /// Refuse it.
    Refuse(Code),
    /// Store it, then break off without an answer.
    StoreAndHangUp,
    /// Break off.
    HangUp,
    /// Wait with everything on this socket, then store and acknowledge.
    Stall(Duration),
    /// Never answer.
    Silence,
    /// Answer 200 with `acknowledged: false`.
    SayNo,
}

/// What the fake knows; it outlives a restart.
pub struct State {
    pub rows: Mutex<Vec<(String, i64)>>,
    pub registered: Mutex<HashSet<String>>,
    pub heartbeats: AtomicU64,
    pub queries: AtomicU64,
    /// Queries that still see no rows at all.
    pub blind_queries: AtomicU64,
    pub script: Box<dyn Fn(u64) -> Action + Send + Sync>,
}

impl State {
    /// `script` says what to do with the n-th heartbeat.
    pub fn new(script: impl Fn(u64) -> Action + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            rows: Mutex::default(),
            registered: Mutex::default(),
            heartbeats: AtomicU64::new(0),
            queries: AtomicU64::new(0),
            blind_queries: AtomicU64::new(0),
            script: Box::new(script),
        })
    }

    fn store(&self, request: &HeartbeatRequest) {
        let timestamp = request.timestamp.expect("a heartbeat without a timestamp");
        let ms = timestamp.seconds * 1000 + i64::from(timestamp.nanos) / 1_000_000;
        self.rows.lock().unwrap().push((request.device_id.clone(), ms));
    }
}

/// A running fake; stopped, with all its connections, when dropped.
pub struct Fake {
    pub address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Fake {
    pub fn start(state: &Arc<State>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::clone(state);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                tokio::spawn(serve(stream, Arc::clone(&state)));
            }
        });
        Self { address, runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn target(&self) -> Target {
        Target::parse(&self.url()).unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        // In the background, because a runtime may not be dropped within another.
        self.runtime.take().unwrap().shutdown_background();
    }
}

async fn serve(stream: tokio::net::TcpStream, state: Arc<State>) {
    let mut first = [0; 3];
    while stream.peek(&mut first).await.is_ok_and(|read| (1..3).contains(&read)) {}
    let service = hyper::service::service_fn(move |request| answer(request, Arc::clone(&state)));
    let io = TokioIo::new(stream);
    // How a connection ends is the client's story.
    let _ = if &first == b"PRI" {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
    } else {
        hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
    };
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Body>, &'static str> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| "the body broke off")?.to_bytes();
    let path = head.uri.path().to_owned();
    if path == "/ping" {
        return Ok(plain("Ok.\n"));
    }
    if path == "/" {
        return Ok(plain(&query(head.uri.query().unwrap_or_default(), &body, &state)));
    }
    let wire = Wire::of(&head.headers);
    match path.as_str() {
        "/fleetd.v1.DeviceService/RegisterDevice" => {
            let request: RegisterDeviceRequest = wire.read(&body);
            if !state.registered.lock().unwrap().insert(request.device_id.clone()) {
                return Ok(wire.refuse(Code::ALREADY_EXISTS, "100% there"));
            }
            let api_key = format!("key-of-{}", request.device_id);
            Ok(wire.write(&RegisterDeviceResponse { device_id: request.device_id, api_key, ..Default::default() }))
        }
        "/fleetd.v1.DeviceService/GetDevice" => {
            let request: fleetd_proto::v1::GetDeviceRequest = wire.read(&body);
            if !state.registered.lock().unwrap().contains(&request.device_id) {
                return Ok(wire.refuse(Code::NOT_FOUND, "no such device"));
            }
            let device = fleetd_proto::v1::Device { id: request.device_id, ..Default::default() };
            Ok(wire.write(&GetDeviceResponse { device: Some(device), ..Default::default() }))
        }
        "/fleetd.v1.DeviceService/Heartbeat" => heartbeat(&wire, &head.headers, &body, &state).await,
        _ => Ok(wire.refuse(Code::UNIMPLEMENTED, "no such method")),
    }
}

async fn heartbeat(
    wire: &Wire,
    headers: &HeaderMap,
    body: &Bytes,
    state: &State,
) -> Result<Response<Body>, &'static str> {
    let request: HeartbeatRequest = wire.read(body);
    if headers["authorization"] != format!("Bearer key-of-{}", request.device_id) {
        return Ok(wire.refuse(Code::UNAUTHENTICATED, "not this device's key"));
    }
    let n = state.heartbeats.fetch_add(1, Ordering::Relaxed);
    let mut acknowledged = true;
    match (state.script)(n) {
        Action::Acknowledge => state.store(&request),
        Action::Lose => {}
        Action::Double => {
            state.store(&request);
            state.store(&request);
        }
        Action::Refuse(code) => return Ok(wire.refuse(code, "as the script says")),
        Action::StoreAndHangUp => {
            state.store(&request);
            return Err("as the script says");
        }
        Action::HangUp => return Err("as the script says"),
        Action::Stall(duration) => {
            tokio::time::sleep(duration).await;
            state.store(&request);
        }
        Action::Silence => std::future::pending().await,
        Action::SayNo => acknowledged = false,
    }
    Ok(wire.write(&HeartbeatResponse { acknowledged, ..Default::default() }))
}

enum Wire {
    Proto,
    Json,
    Grpc,
}

impl Wire {
    fn of(headers: &HeaderMap) -> Self {
        match headers["content-type"].to_str().unwrap() {
            "application/proto" => Self::Proto,
            "application/json" => Self::Json,
            "application/grpc" => {
                assert_eq!(headers["te"], "trailers");
                Self::Grpc
            }
            other => panic!("content type {other}"),
        }
    }

    fn read<M: Message + Default + serde::de::DeserializeOwned>(&self, body: &Bytes) -> M {
        match self {
            Self::Proto => M::decode(body.clone()).unwrap(),
            Self::Json => serde_json::from_slice(body).unwrap(),
            Self::Grpc => {
                assert_eq!(body[0], 0);
                assert_eq!(u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize, body.len() - 5);
                M::decode(body.slice(5..)).unwrap()
            }
        }
    }

    fn write<M: Message + serde::Serialize>(&self, message: &M) -> Response<Body> {
        let mut response = match self {
            Self::Proto => Response::new(Full::from(message.encode_to_vec()).boxed_unsync()),
            Self::Json => Response::new(Full::from(serde_json::to_vec(message).unwrap()).boxed_unsync()),
            Self::Grpc => {
                let mut frame = vec![0];
                frame.extend_from_slice(&(message.encoded_len() as u32).to_be_bytes());
                message.encode(&mut frame).unwrap();
                Response::new(framed(Some(frame.into()), 0, ""))
            }
        };
        response.headers_mut().insert("x-request-id", HeaderValue::from_static("r-1"));
        response
    }

    fn refuse(&self, code: Code, message: &str) -> Response<Body> {
        let number = (0..17).find(|number| Code::from_grpc(*number) == code).unwrap();
        if let Self::Grpc = self {
            return Response::new(framed(None, number, &message.replace('%', "%25")));
        }
        let name = code.name().to_ascii_lowercase();
        let body = serde_json::json!({"code": name, "message": message}).to_string();
        let mut response = Response::new(Full::from(body).boxed_unsync());
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        response
    }
}

fn framed(message: Option<Bytes>, status: u32, text: &str) -> Body {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.into());
    trailers.insert("grpc-message", text.parse().unwrap());
    Framed { message, trailers: Some(trailers) }.boxed_unsync()
}

/// A gRPC answer: at most one frame of data, and trailers.
struct Framed {
    message: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl hyper::body::Body for Framed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.message.take().map(Frame::data);
        Poll::Ready(data.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }
}

fn plain(text: &str) -> Response<Body> {
    Response::new(Full::from(text.to_owned()).boxed_unsync())
}

/// Answers the audit's two queries as ClickHouse would: rows in the bound ranges, counted or in order.
fn query(parameters: &str, sql: &Bytes, state: &State) -> String {
    let sql = std::str::from_utf8(sql).unwrap();
    let parameter = |name: &str| {
        let value = parameters.split('&').find_map(|pair| pair.strip_prefix(&format!("param_{name}="))).unwrap();
        value.to_owned()
    };
    let (first, last) = (parameter("first"), parameter("last"));
    let (from, to): (i64, i64) = (parameter("from_ms").parse().unwrap(), parameter("to_ms").parse().unwrap());
    state.queries.fetch_add(1, Ordering::Relaxed);
    let is_blind =
        state.blind_queries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
    let rows = if is_blind { Vec::new() } else { state.rows.lock().unwrap().clone() };
    let mut rows: Vec<_> =
        rows.into_iter().filter(|(id, ms)| *id >= first && *id <= last && *ms >= from && *ms <= to).collect();
    if sql.contains("count()") {
        return format!("{}\n", rows.len());
    }
    assert!(sql.contains("ORDER BY device_id, ms"));
    rows.sort();
    rows.iter().map(|(id, ms)| format!("{id}\t{ms}\n")).collect()
}

/// Waits for a condition; a test that cannot see it within half a minute fails.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "in half a minute not seen: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
