//! Endpoints for the tools that run fleetd rather than for its users: liveness, readiness, metrics.
//!
//! They are public and cheap: they read counters, and never wait for the disk or for ClickHouse.
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Response, StatusCode};

use crate::metrics::Metrics;

/// Why the server would rather get no traffic now; an empty list is "ready".
type Readiness = Box<dyn Fn() -> Vec<String> + Send + Sync>;

pub struct Operations {
    metrics: Metrics,
    not_ready_because: Readiness,
}

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const OPENMETRICS: HeaderValue = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

const WELCOME: &str = "fleetd\n\n\
    RPCs are at /fleetd.v1.SERVICE/METHOD, by POST, as Connect, gRPC or gRPC-Web, in JSON or protobuf.\n\
    /healthz   200 while the process serves\n\
    /readyz    200 when it can take heartbeats, 503 with the reason when not\n\
    /metrics   Prometheus text\n\
    /artifacts/ID   files of updates, by GET\n";

impl Operations {
    pub fn new(metrics: Metrics, not_ready_because: Readiness) -> Self {
        Self { metrics, not_ready_because }
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The answer, if `path` is an operations endpoint.
    pub fn answer(&self, method: &Method, path: &str) -> Option<Response<Bytes>> {
        // RPC paths are by far the most, and longer than any of these.
        if path.len() > "/healthz".len() || !matches!(path, "/" | "/healthz" | "/readyz" | "/metrics") {
            return None;
        }
        if method != Method::GET && method != Method::HEAD {
            let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes GET, not {method}\n"));
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Some(refusal);
        }
        Some(match path {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let reasons = (self.not_ready_because)();
                if reasons.is_empty() {
                    text(StatusCode::OK, "ready\n")
                } else {
                    text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; ")))
                }
            }
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.metrics.render());
                response.headers_mut().insert(CONTENT_TYPE, OPENMETRICS);
                response
            }
            _ => text(StatusCode::OK, WELCOME),
        })
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}
