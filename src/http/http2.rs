//! HTTP/2 (h2c by prior knowledge) on hyper: gRPC, and Connect clients that prefer it.
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::front::{stopped, Stopping};
use super::gateway::Gateway;

/// Requests under way on one connection. A gateway that multiplexes more opens a second connection.
const MAX_STREAMS: u32 = 256;
/// Bytes of all header fields of a request; keys and ids fit many times over.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// A peer that has been silent this long is pinged; one that does not answer is gone.
const PING_AFTER: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that a peer opened and reset before we looked at them ("rapid reset", CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 64;
/// Unread bytes that a peer may send on one stream and on the connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Runs the streams of a connection on the worker that holds it, inside its `LocalSet`, where device actors live.
#[derive(Clone, Copy)]
struct OnThisWorker;

impl<F> Executor<F> for OnThisWorker
where
    F: std::future::Future<Output = ()> + 'static,
{
    fn execute(&self, stream: F) {
        actix_rt::spawn(stream);
    }
}

pub async fn serve(io: TcpStream, peer: SocketAddr, gateway: Gateway, stopping: Stopping) -> Result<(), ()> {
    let service = service_fn(move |request| {
        let gateway = gateway.clone();
        async move { Ok::<_, Infallible>(gateway.handle(request, peer).await) }
    });
    let mut builder = Builder::new(OnThisWorker);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    tokio::select! {
        ended = connection.as_mut() => ended.map_err(|_| ()),
        () = stopped(stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await.map_err(|_| ())
        }
    }
}
