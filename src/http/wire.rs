//! Errors and request ids as they go over the wire, for each kind of client.
//!
//! A Connect or gRPC client gets exactly what its specification says; `connectrpc` writes that. A plain HTTP client
//! (no `Connect-Protocol-Version`, not gRPC: `curl`) gets the API reference's envelope and HTTP statuses:
//!
//! ```json
//! {"code":"NOT_FOUND","message":"…","details":{"request_id":"…","user_id":"…","permission":"…"}}
//! ```
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use connectrpc::ConnectError;
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use serde::Serialize;

use crate::auth::rate_limit::Quota;
use crate::error::{ApiError, ErrorCode};

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const CONNECT_PROTOCOL_VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");

/// The longest request id taken over from a client; longer ones would bloat logs.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// The client's request id if it is fit to be logged and echoed, else a new one.
pub fn request_id(offered: Option<&[u8]>) -> HeaderValue {
    offered
        .filter(|id| (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic))
        .and_then(|id| HeaderValue::from_bytes(id).ok())
        .unwrap_or_else(new_request_id)
}

/// 16 hexadecimal digits: a counter from a random start, so ids are unique in a process and unlikely to meet again.
fn new_request_id() -> HeaderValue {
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(uuid::Uuid::new_v4().as_u64_pair().0));
    let mut digits = [0u8; 16];
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    for (place, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(id >> (60 - 4 * place)) as usize & 15];
    }
    HeaderValue::from_bytes(&digits).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

/// Adds the reference's rate limit headers.
pub fn set_limit_headers(headers: &mut HeaderMap, quota: &Quota) {
    for (name, value) in quota.headers(std::time::SystemTime::now()) {
        headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
    }
}

/// What the envelope says besides code and message, which a [`ConnectError`] has no place for.
#[derive(Clone, Debug, Default)]
pub struct ErrorFacts {
    pub code: Option<ErrorCode>,
    pub user_id: Option<String>,
    pub permission: Option<&'static str>,
}

/// A request extension that only plain HTTP clients' requests carry: where a failing service leaves its facts for
/// the gateway, which writes the envelope.
#[derive(Clone, Default)]
pub struct FactsSlot(pub Arc<Mutex<ErrorFacts>>);

/// The error as `connectrpc` writes it for its protocols, with the headers that go with it.
pub fn connect_error(error: ApiError, quota: Option<&Quota>, facts: Option<&FactsSlot>) -> ConnectError {
    log_cause(&error);
    let code = connectrpc::ErrorCode::from_grpc_code(error.code.grpc()).unwrap_or(connectrpc::ErrorCode::Unknown);
    let mut told = ConnectError::new(code, error.message.into_owned());
    if let Some(quota) = quota {
        set_limit_headers(told.response_headers_mut(), quota);
    }
    if let Some(after) = error.retry_after {
        told.response_headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(retry_seconds(after)));
    }
    if let Some(slot) = facts {
        *slot.0.lock() = ErrorFacts { code: Some(error.code), user_id: error.user_id, permission: error.permission };
    }
    told
}

/// The caller is told what happened; why it happened is for the operator, once, here.
pub fn log_cause(error: &ApiError) {
    if let Some(source) = &error.source {
        let cause = &**source as &(dyn std::error::Error + 'static);
        tracing::warn!(code = error.code.name(), message = %error.message, cause, "request failed");
    }
}

/// `Retry-After` counts whole seconds; rounded up, since a client that comes early is refused again.
pub fn retry_seconds(after: std::time::Duration) -> u64 {
    after.as_secs() + u64::from(after.subsec_nanos() > 0)
}

#[derive(Serialize)]
struct Envelope<'a> {
    code: &'a str,
    message: &'a str,
    details: Details<'a>,
}

#[derive(Serialize)]
struct Details<'a> {
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    permission: Option<&'a str>,
}

/// The reference's envelope.
pub fn envelope(code: ErrorCode, message: &str, request_id: &HeaderValue, facts: &ErrorFacts) -> Bytes {
    let body = Envelope {
        code: code.name(),
        message,
        details: Details {
            request_id: request_id.to_str().unwrap_or_default(),
            user_id: facts.user_id.as_deref(),
            permission: facts.permission,
        },
    };
    let mut text = serde_json::to_string(&body).unwrap_or_else(|error| {
        // Strings always serialise; should that ever change, the caller still gets a code.
        let mut text = String::from("{\"code\":\"INTERNAL\",\"message\":");
        let _ = write!(text, "{:?}}}", error.to_string());
        text
    });
    text.push('\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_that_could_forge_a_log_line_is_replaced() {
        assert_eq!(request_id(Some(b"abc-123")), "abc-123");
        for bad in [&b""[..], b"a b", b"a\nb", &[b'x'; 129], "ü".as_bytes()] {
            let made = request_id(Some(bad));
            assert_eq!(made.len(), 16, "{bad:?}");
        }
        assert_ne!(request_id(None), request_id(None));
    }

    #[test]
    fn the_envelope_has_the_references_shape() {
        let facts = ErrorFacts { user_id: Some("user-001".into()), permission: Some("device:delete"), code: None };
        let message = "User does not have permission device:delete";
        let text = envelope(ErrorCode::PermissionDenied, message, &HeaderValue::from_static("abc123"), &facts);
        let expected = serde_json::json!({
            "code": "PERMISSION_DENIED",
            "message": "User does not have permission device:delete",
            "details": {"request_id": "abc123", "user_id": "user-001", "permission": "device:delete"}
        });
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&text).expect("JSON"), expected);
    }

    #[test]
    fn a_client_told_to_wait_is_never_told_too_little() {
        use std::time::Duration;
        assert_eq!(retry_seconds(Duration::from_millis(1)), 1);
        assert_eq!(retry_seconds(Duration::from_secs(2)), 2);
        assert_eq!(retry_seconds(Duration::from_millis(2001)), 3);
    }
}
