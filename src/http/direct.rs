//! The shortest way for the most frequent request: a heartbeat as a unary Connect or plain HTTP request over
//! HTTP/1.1, with nothing unusual about it.
//!
//! Such a request is decoded, served and answered without translating its headers for `connectrpc` and back, which
//! costs as much as the heartbeat itself (docs/performance.md). Whatever is unusual (compression, a deadline of the
//! client's, another content type or version) goes the general way; a test holds both ways to the same answers.
use std::net::SocketAddr;

use actix_web::http::header::{HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use connectrpc::CodecFormat;
use fleetd_proto::v1::HeartbeatRequest;

use super::access::Call;
use super::gateway::Gateway;
use super::wire::{self, ErrorFacts};
use super::{heartbeats, rpc};
use crate::auth::credential;
use crate::error::ApiError;

/// The format of the request's message, if this request may take the short way.
pub fn format_of(request: &HttpRequest) -> Option<CodecFormat> {
    if request.path().strip_prefix('/') != Some(heartbeats::HEARTBEAT) || request.method() != "POST" {
        return None;
    }
    let headers = request.headers();
    let unusual = ["content-encoding", "connect-timeout-ms", "connect-content-encoding"];
    if unusual.iter().any(|name| headers.contains_key(*name)) {
        return None;
    }
    if headers.get("connect-protocol-version").is_some_and(|version| version != "1") {
        return None;
    }
    match headers.get("content-type")?.as_bytes() {
        b"application/proto" => Some(CodecFormat::Proto),
        b"application/json" => Some(CodecFormat::Json),
        _ => None,
    }
}

pub async fn heartbeat(
    request: &HttpRequest,
    body: Bytes,
    format: CodecFormat,
    peer: SocketAddr,
    gateway: &Gateway,
) -> HttpResponse {
    let headers = request.headers();
    let id = wire::request_id(headers.get("x-request-id").map(HeaderValue::as_bytes));
    let mut call = Call::new(credential_of(headers), peer.ip());
    let answer = match rpc::decode::<HeartbeatRequest>(&body, format) {
        Ok(message) => {
            // No deadline is set here: each wait on this way has its own end (the mailbox of a live actor, the journal).
            gateway.fleet().devices().heartbeat(&mut call, message).await
        }
        Err(error) => Err(gateway.fleet().devices().access.undecodable(&mut call, error)),
    };
    let encoded = answer.and_then(|message| rpc::encode(&message, format));
    let quota = call.quota.map(|quota| quota.headers(std::time::SystemTime::now()));
    let mut response = match encoded {
        Ok(body) => HttpResponse::Ok().content_type(format.content_type()).body(body),
        Err(error) => refusal(call.sign(error), &id, headers.contains_key("connect-protocol-version")),
    };
    let out = response.headers_mut();
    for (name, value) in quota.into_iter().flatten() {
        out.insert(actix_web::http::header::HeaderName::from_static(name), HeaderValue::from(value));
    }
    if let Ok(id) = HeaderValue::from_bytes(id.as_bytes()) {
        out.insert(actix_web::http::header::HeaderName::from_static("x-request-id"), id);
    }
    response
}

fn credential_of(headers: &HeaderMap) -> Result<Option<credential::Credential>, credential::CredentialError> {
    let values = |name| headers.get_all(name).map(HeaderValue::as_bytes);
    credential::from_headers(values("authorization"), values("x-api-key"))
}

fn refusal(error: ApiError, id: &http::HeaderValue, is_connect: bool) -> HttpResponse {
    let code = error.code;
    let retry_after = error.retry_after;
    let (status, body) = if is_connect {
        let told = wire::connect_error(error, None, None);
        (told.http_status().as_u16(), told.to_json())
    } else {
        wire::log_cause(&error);
        let facts = ErrorFacts { code: Some(code), user_id: error.user_id, permission: error.permission };
        (code.http_status(), wire::envelope(code, &error.message, id, &facts))
    };
    let mut response = HttpResponse::build(super::http1::status_of(status));
    if let Some(after) = retry_after {
        response.insert_header(("retry-after", wire::retry_seconds(after)));
    }
    response.content_type("application/json").body(body)
}
