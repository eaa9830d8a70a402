//! HTTP/1.1 on actix-web: turns its requests and answers into those of the `http` crate, within limits.
//!
//! The body of a unary request is read here, under a size limit and a time-out; a streaming body is passed on as it
//! comes. actix's types stay on their worker thread, so a streaming body crosses over by a bounded channel.
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::{body, web, HttpRequest, HttpResponse};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;

use super::gateway::{self, Gateway, GatewayBody};
use super::hang_up::HangUp;
use super::intake::{self, Share};
use super::{direct, wire};
use crate::error::ErrorCode;

/// A unary body must have arrived whole by then.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// Chunks of a streaming body on their way to the service; actix reads 32 KB or so at a time, so about 512 KB.
const STREAM_CHUNKS: usize = 16;

pub async fn handle(request: HttpRequest, payload: web::Payload, gateway: web::Data<Gateway>) -> HttpResponse {
    let Some(peer) = request.peer_addr() else {
        return HttpResponse::InternalServerError().finish();
    };
    if let Some(format) = direct::format_of(&request) {
        return match read_body(payload, gateway.intake().share()).await {
            Ok(body) => direct::heartbeat(&request, body, format, peer, &gateway).await,
            Err(refusal) => refuse(&request, refusal),
        };
    }
    let mut builder = http::Request::builder().method(request.method().as_str()).uri(request.uri().to_string());
    for (name, value) in request.headers() {
        builder = builder.header(name.as_str(), value.as_bytes());
    }
    let body = if is_streaming(&request) {
        RequestBody::streamed_from(payload)
    } else {
        match read_body(payload, gateway.intake().share()).await {
            Ok(bytes) => RequestBody::Whole(Some(bytes)),
            Err(refusal) => return refuse(&request, refusal),
        }
    };
    let Ok(translated) = builder.body(body) else { return refuse(&request, BodyRefusal::Malformed) };
    let answer = gateway.handle(translated, peer);
    match request.conn_data::<HangUp>() {
        Some(hang_up) if gateway::ends_with_its_client(request.path()) => tokio::select! {
            answer = answer => reply(answer),
            // Whatever is answered, nobody reads it.
            () = hang_up.happened() => HttpResponse::RequestTimeout().force_close().finish(),
        },
        _ => reply(answer.await),
    }
}

/// Streaming RPCs announce themselves by content type; everything else is one message, read whole.
fn is_streaming(request: &HttpRequest) -> bool {
    request.headers().get("content-type").is_some_and(|value| {
        let value = value.as_bytes();
        value.starts_with(b"application/connect+") || value.starts_with(b"application/grpc")
    })
}

enum BodyRefusal {
    TooLarge,
    TooMany,
    TooSlow,
    Broken,
    Malformed,
}

async fn read_body(mut payload: web::Payload, mut share: Share) -> Result<Bytes, BodyRefusal> {
    let read = async {
        let mut whole = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|_| BodyRefusal::Broken)?;
            if whole.len() + chunk.len() > gateway::MAX_BODY_BYTES {
                return Err(BodyRefusal::TooLarge);
            }
            if !share.grow(chunk.len()) {
                return Err(BodyRefusal::TooMany);
            }
            // Most bodies come in one chunk; that one is not copied.
            if whole.is_empty() {
                whole = BytesMut::from(chunk);
            } else {
                whole.extend_from_slice(&chunk);
            }
        }
        Ok(whole.freeze())
    };
    tokio::time::timeout(BODY_TIMEOUT, read).await.unwrap_or(Err(BodyRefusal::TooSlow))
}

/// Answers a request whose body could not be had, and closes the connection: what is left of the body is unread.
fn refuse(request: &HttpRequest, refusal: BodyRefusal) -> HttpResponse {
    let (code, status, message) = match refusal {
        BodyRefusal::TooLarge => (
            ErrorCode::ResourceExhausted,
            413,
            format!("the request body is larger than {} bytes, the limit", gateway::MAX_BODY_BYTES),
        ),
        BodyRefusal::TooMany => (ErrorCode::Unavailable, 503, intake::MESSAGE.to_owned()),
        BodyRefusal::TooSlow => (
            ErrorCode::DeadlineExceeded,
            408,
            format!("the request body did not arrive within {} s", BODY_TIMEOUT.as_secs()),
        ),
        BodyRefusal::Broken => (ErrorCode::InvalidArgument, 400, "the request body broke off".to_owned()),
        BodyRefusal::Malformed => {
            (ErrorCode::InvalidArgument, 400, "the request line or a header is malformed".to_owned())
        }
    };
    let headers = request.headers();
    let id = wire::request_id(headers.get("x-request-id").map(|value| value.as_bytes()));
    let is_connect = headers.contains_key("connect-protocol-version");
    let body = gateway::error_body(code, &message, &id, is_connect);
    let mut response = HttpResponse::build(status_of(status));
    if code == ErrorCode::Unavailable {
        response.insert_header(("retry-after", wire::retry_seconds(intake::RETRY_AFTER)));
    }
    response.content_type("application/json").insert_header(("x-request-id", id.as_bytes())).force_close().body(body)
}

pub(super) fn status_of(code: u16) -> actix_web::http::StatusCode {
    actix_web::http::StatusCode::from_u16(code).unwrap_or(actix_web::http::StatusCode::INTERNAL_SERVER_ERROR)
}

fn reply(response: http::Response<GatewayBody>) -> HttpResponse {
    let (parts, body) = response.into_parts();
    let mut reply = HttpResponse::build(status_of(parts.status.as_u16()));
    for (name, value) in &parts.headers {
        reply.append_header((name.as_str(), value.as_bytes()));
    }
    match body {
        GatewayBody::Full(bytes) => reply.body(bytes.unwrap_or_default()),
        streamed => reply.body(ReplyBody(Box::pin(streamed))),
    }
}

/// A streamed answer. Trailers cannot be sent on HTTP/1.1 here; Connect and gRPC-Web put them into the body.
struct ReplyBody(Pin<Box<GatewayBody>>);

impl body::MessageBody for ReplyBody {
    type Error = std::io::Error;

    fn size(&self) -> body::BodySize {
        self.0.size_hint().exact().map_or(body::BodySize::Stream, body::BodySize::Sized)
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        loop {
            match std::task::ready!(self.0.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => return Poll::Ready(Some(Ok(data))),
                    Err(_trailers) => continue,
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// A request body on its way to the service, free to leave the worker thread.
enum RequestBody {
    Whole(Option<Bytes>),
    Streamed(mpsc::Receiver<std::io::Result<Bytes>>),
}

impl RequestBody {
    fn streamed_from(mut payload: web::Payload) -> Self {
        let (sender, receiver) = mpsc::channel(STREAM_CHUNKS);
        actix_rt::spawn(async move {
            while let Some(chunk) = payload.next().await {
                // A closed channel means that the service has answered and wants no more.
                if sender.send(chunk.map_err(std::io::Error::other)).await.is_err() {
                    return;
                }
            }
        });
        Self::Streamed(receiver)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed(chunks) => chunks.poll_recv(cx).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data))),
        }
    }
}
