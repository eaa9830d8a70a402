//! The three unary protocols as bytes over HTTP: how a call is written, and how its answer is read.
//!
//! Connect: <https://connectrpc.com/docs/protocol/#unary-rpcs>. gRPC:
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>. Written by hand rather than through the library
//! that the server uses, so that a mistake there cannot hide behind the same mistake here.
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue, AUTHORIZATION, CONTENT_TYPE, HOST, TE};
use http::{Method, Request, Response, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::error::LoadError;
use crate::target::Target;

/// How a call is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connect unary with binary protobuf over HTTP/1.1.
    Connect,
    /// Connect unary with protobuf JSON over HTTP/1.1.
    Json,
    /// gRPC over HTTP/2 without TLS (prior knowledge).
    Grpc,
}

/// The method that the hot path calls.
pub(crate) const HEARTBEAT: &str = "fleetd.v1.DeviceService/Heartbeat";

/// The longest answer that is read, in bytes: a list page of 100 devices with full metadata is far below it.
const MAX_RESPONSE_BYTES: usize = 16 << 20;

/// A gRPC frame's head: one byte that says whether it is compressed, four of length.
const GRPC_HEAD_BYTES: usize = 5;

/// A refusal, read from whichever place the protocol keeps it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    pub code: Code,
    pub message: String,
    /// The HTTP status; 200 for gRPC, whose status is in the trailers.
    pub http_status: u16,
    pub headers: HeaderMap,
}

/// Why there is no answer to a call that was sent.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// The server may or may not have carried the call out.
    #[error("the connection broke before the answer was complete")]
    Broken {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the answer breaks the protocol: {0}")]
    Malformed(String),
}

impl CallError {
    /// The code of a refusal; a broken connection and a malformed answer have none.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::Broken { .. } | Self::Malformed(_) => None,
        }
    }
}

/// `Bearer TOKEN` as a header value. It is not marked sensitive: device client libraries do not do so, and HTTP/2's
/// never-indexed literals would make each request larger than those that a server meets in the field.
pub(crate) fn bearer(token: &str, what: &'static str) -> Result<HeaderValue, LoadError> {
    HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| LoadError::Token { what })
}

/// Everything about a call that stays the same from one request to the next.
#[derive(Clone, Debug)]
pub(crate) struct CallTemplate {
    uri: Uri,
    headers: HeaderMap,
    version: Version,
}

impl CallTemplate {
    /// `method` is `package.Service/Method`.
    pub(crate) fn new(target: &Target, protocol: Protocol, method: &str) -> Result<Self, LoadError> {
        let url = |_| LoadError::Url { url: target.authority().to_owned(), why: "it makes no request line" };
        let mut headers = HeaderMap::new();
        let content_type = match protocol {
            Protocol::Connect => "application/proto",
            Protocol::Json => "application/json",
            Protocol::Grpc => "application/grpc",
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        let (uri, version) = if protocol == Protocol::Grpc {
            headers.insert(TE, HeaderValue::from_static("trailers"));
            (format!("http://{}/{method}", target.authority()), Version::HTTP_2)
        } else {
            let host = HeaderValue::try_from(target.authority());
            headers.insert(HOST, host.map_err(|_| LoadError::Token { what: "the host" })?);
            let name = HeaderName::from_static("connect-protocol-version");
            headers.insert(name, HeaderValue::from_static("1"));
            (format!("/{method}"), Version::HTTP_11)
        };
        // A place for the token, so that filling it in never grows the map.
        headers.insert(AUTHORIZATION, HeaderValue::from_static(""));
        Ok(Self { uri: uri.parse().map_err(url)?, headers, version })
    }

    /// A request with this token and body; without a token the header is left out.
    pub(crate) fn request(&self, token: Option<&HeaderValue>, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.clone();
        match token {
            Some(token) => request.headers_mut().insert(AUTHORIZATION, token.clone()),
            None => request.headers_mut().remove(AUTHORIZATION),
        };
        request
    }
}

/// Encodes a message as the protocol carries it, at the end of `buffer`, and splits it off: a buffer that is kept
/// between calls gives its memory again once earlier bodies are gone.
pub(crate) fn encode<M>(protocol: Protocol, message: &M, buffer: &mut BytesMut) -> Bytes
where
    M: prost::Message + Serialize,
{
    let length = message.encoded_len();
    match protocol {
        Protocol::Connect => buffer.reserve(length),
        Protocol::Grpc => {
            buffer.reserve(GRPC_HEAD_BYTES + length);
            buffer.put_u8(0);
            buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        }
        Protocol::Json => {
            if serde_json::to_writer(buffer.writer(), message).is_err() {
                // Unreachable: a `BytesMut` takes all bytes, and these messages hold nothing that JSON cannot say.
                buffer.clear();
            }
            return buffer.split().freeze();
        }
    }
    message.encode_raw(buffer);
    buffer.split().freeze()
}

/// Decodes an answer's message.
pub(crate) fn decode<M>(protocol: Protocol, message: Bytes) -> Result<M, CallError>
where
    M: prost::Message + Default + serde::de::DeserializeOwned,
{
    match protocol {
        Protocol::Connect | Protocol::Grpc => {
            M::decode(message).map_err(|error| CallError::Malformed(format!("the message does not decode: {error}")))
        }
        Protocol::Json => serde_json::from_slice(&message)
            .map_err(|error| CallError::Malformed(format!("the JSON does not decode: {error}"))),
    }
}

/// Reads an answer to its end: its headers and the bytes of its message.
pub(crate) async fn read_answer(
    protocol: Protocol,
    response: Response<Incoming>,
) -> Result<(HeaderMap, Bytes), CallError> {
    let (head, body) = response.into_parts();
    let (body, trailers) = read_body(body).await?;
    match protocol {
        Protocol::Connect | Protocol::Json => {
            if head.status.is_success() {
                return Ok((head.headers, body));
            }
            Err(CallError::Refused(Box::new(connect_refusal(head.status, head.headers, &body))))
        }
        Protocol::Grpc => {
            let status = trailers.as_ref().and_then(grpc_status).or_else(|| grpc_status(&head.headers));
            match status {
                Some((Ok(()), _)) => Ok((head.headers, grpc_message(body)?)),
                Some((Err(code), message)) => Err(CallError::Refused(Box::new(Refusal {
                    code,
                    message,
                    http_status: head.status.as_u16(),
                    headers: head.headers,
                }))),
                None if head.status.is_success() => {
                    Err(CallError::Malformed("a gRPC answer without grpc-status in its trailers".to_owned()))
                }
                None => Err(CallError::Refused(Box::new(Refusal {
                    code: Code::from_http_status(head.status),
                    message: String::from_utf8_lossy(&body).into_owned(),
                    http_status: head.status.as_u16(),
                    headers: head.headers,
                }))),
            }
        }
    }
}

/// The body in one piece; an answer of one frame, the usual case, is not copied.
async fn read_body(mut body: Incoming) -> Result<(Bytes, Option<HeaderMap>), CallError> {
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| CallError::Broken { source: source.into() })?;
        match frame.into_data() {
            Ok(data) if joined.is_empty() && first.is_empty() => first = data,
            Ok(data) => {
                if joined.is_empty() {
                    joined.extend_from_slice(&first);
                }
                if joined.len() + data.len() > MAX_RESPONSE_BYTES {
                    return Err(CallError::Malformed(format!("the answer is larger than {MAX_RESPONSE_BYTES} bytes")));
                }
                joined.extend_from_slice(&data);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((if joined.is_empty() { first } else { joined.freeze() }, trailers))
}

fn connect_refusal(status: http::StatusCode, headers: HeaderMap, body: &[u8]) -> Refusal {
    #[derive(Deserialize)]
    struct Envelope {
        code: String,
        #[serde(default)]
        message: String,
    }
    let envelope: Option<Envelope> = serde_json::from_slice(body).ok();
    let code = envelope.as_ref().and_then(|envelope| Code::from_name(&envelope.code));
    Refusal {
        code: code.unwrap_or_else(|| Code::from_http_status(status)),
        message: envelope.map_or_else(|| String::from_utf8_lossy(body).into_owned(), |envelope| envelope.message),
        http_status: status.as_u16(),
        headers,
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<(Result<(), Code>, String)> {
    let status = headers.get("grpc-status")?;
    let number = status.to_str().ok().and_then(|text| text.parse::<u32>().ok());
    let message = headers.get("grpc-message").map(|text| percent_decode(text.as_bytes())).unwrap_or_default();
    Some((if number == Some(0) { Ok(()) } else { Err(Code::from_grpc(number.unwrap_or(u32::MAX))) }, message))
}

fn grpc_message(mut body: Bytes) -> Result<Bytes, CallError> {
    if body.len() < GRPC_HEAD_BYTES {
        return Err(CallError::Malformed(format!(
            "a gRPC frame of {} bytes, which has no room for its head",
            body.len()
        )));
    }
    let head = body.split_to(GRPC_HEAD_BYTES);
    if head[0] != 0 {
        return Err(CallError::Malformed("a compressed gRPC frame, though none was asked for".to_owned()));
    }
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length != body.len() {
        return Err(CallError::Malformed(format!("a gRPC frame that promises {length} bytes and has {}", body.len())));
    }
    Ok(body)
}

/// `grpc-message` is percent-encoded UTF-8; what is no valid escape stays as it is.
fn percent_decode(text: &[u8]) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let escaped = (text[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(escaped.unwrap_or(text[at]));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_from_either_spelling_and_from_a_bare_status() {
        let read = |status, body: &str| {
            let refusal =
                connect_refusal(http::StatusCode::from_u16(status).unwrap(), HeaderMap::new(), body.as_bytes());
            (refusal.code, refusal.message)
        };
        assert_eq!(read(404, r#"{"code":"not_found","message":"gone"}"#), (Code::NOT_FOUND, "gone".into()));
        assert_eq!(read(429, r#"{"code":"RESOURCE_EXHAUSTED"}"#), (Code::RESOURCE_EXHAUSTED, String::new()));
        assert_eq!(read(503, "busy"), (Code::UNAVAILABLE, "busy".into()));
        assert_eq!(read(418, "{}"), (Code::UNKNOWN, "{}".into()));
    }

    #[test]
    fn a_grpc_frame_must_hold_exactly_what_it_promises() {
        assert_eq!(grpc_message(Bytes::from_static(b"\0\0\0\0\x02hi")).unwrap(), "hi");
        for broken in [&b"\0\0\0"[..], b"\0\0\0\0\x03hi", b"\0\0\0\0\x01hi", b"\x01\0\0\0\x02hi"] {
            assert!(matches!(grpc_message(Bytes::copy_from_slice(broken)), Err(CallError::Malformed(_))), "{broken:?}");
        }
    }

    #[test]
    fn a_grpc_message_is_percent_decoded() {
        assert_eq!(percent_decode(b"no%20room %E2%82%AC 5%"), "no room \u{20ac} 5%");
        assert_eq!(percent_decode(b"%zz%4"), "%zz%4");
    }

    #[test]
    fn a_template_keeps_a_place_for_the_token_and_drops_it_when_there_is_none() {
        let target = Target::parse("http://127.0.0.1:1").unwrap();
        let template = CallTemplate::new(&target, Protocol::Connect, "a.B/C").unwrap();
        let token = bearer("k", "the key").unwrap();
        let request = template.request(Some(&token), Bytes::new());
        assert_eq!(request.headers()[AUTHORIZATION], "Bearer k");
        assert_eq!(request.uri(), "/a.B/C");
        assert!(!template.request(None, Bytes::new()).headers().contains_key(AUTHORIZATION));
        let grpc = CallTemplate::new(&target, Protocol::Grpc, "a.B/C").unwrap().request(None, Bytes::new());
        assert_eq!(grpc.uri(), "http://127.0.0.1:1/a.B/C");
    }
}
