//! The listener: accepts on actix workers and tells HTTP/2 from HTTP/1.1 by the first bytes of a connection.
//!
//! Every HTTP/2 connection without TLS opens with the preface `PRI * HTTP/2.0` (RFC 9113, section 3.4). Those go to
//! hyper's HTTP/2, because gRPC needs trailers and actix-http sends none; the rest goes to actix-web.
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::Duration;

use actix_http::KeepAlive;
use actix_server::{Server, ServerBuilder};
use actix_service::{fn_factory, fn_service, map_config, IntoServiceFactory, Service, ServiceFactory};
use actix_web::dev::AppConfig;
use actix_web::{web, App};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::gateway::Gateway;
use super::hang_up::Watched;
use super::{http1, http2};

/// A connection that has not shown its first bytes by then is closed: it costs a descriptor and says nothing.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(10);
/// The head of an HTTP/1.1 request must have arrived by then.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle time after which an HTTP/1.1 connection is closed. Devices that report every 30 s keep theirs.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Connections one worker holds. With about 10 KB each, 25,000 idle ones cost a worker 250 MB.
const MAX_CONNECTIONS_A_WORKER: usize = 25_000;
/// Time for requests in flight to end after SIGTERM; the whole stop has 10 s.
pub const DRAIN_SECONDS: u64 = 4;

/// Fires once the server stops accepting, so that idle connections close instead of holding the stop up.
pub type Stopping = watch::Receiver<bool>;

/// Starts `workers` threads that serve `listener`. The server runs once the returned future is polled.
pub fn serve(listener: TcpListener, workers: usize, gateway: Gateway, stopping: Stopping) -> std::io::Result<Server> {
    builder(workers)
        .listen("front", listener, move || {
            let gateway = gateway.clone();
            let stopping = stopping.clone();
            let app = App::new().app_data(web::Data::new(gateway.clone())).default_service(web::to(http1::handle));
            let stop_signal = stopping.clone();
            let http1 = actix_http::HttpService::build()
                .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
                .client_request_timeout(HEAD_TIMEOUT)
                .graceful_shutdown_signal(move || stopped(stop_signal.clone()))
                .on_connect_ext(|io: &Watched, connection| {
                    connection.insert(io.hang_up());
                })
                .h1(map_config(app.into_factory(), |_| AppConfig::default()));
            fn_factory(move || {
                let (http1, gateway, stopping) = (http1.new_service(()), gateway.clone(), stopping.clone());
                async move {
                    let http1 = Rc::new(http1.await.map_err(|_| ())?);
                    Ok::<_, ()>(fn_service(move |io: TcpStream| {
                        let (http1, gateway, stopping) = (http1.clone(), gateway.clone(), stopping.clone());
                        async move { connection(io, http1, gateway, stopping).await }
                    }))
                }
            })
        })
        .map(ServerBuilder::run)
}

fn builder(workers: usize) -> ServerBuilder {
    // Signals are app.rs's: it stops everything in one order.
    Server::build()
        .workers(workers)
        .max_concurrent_connections(MAX_CONNECTIONS_A_WORKER)
        .shutdown_timeout(DRAIN_SECONDS)
        .disable_signals()
}

/// Resolves when the server begins to stop.
pub async fn stopped(mut stopping: Stopping) {
    // An error means that the sender is gone, which only happens when the server is.
    let _ = stopping.wait_for(|stop| *stop).await;
}

async fn connection<S>(io: TcpStream, http1: Rc<S>, gateway: Gateway, stopping: Stopping) -> Result<(), ()>
where
    S: Service<(Watched, Option<SocketAddr>)>,
{
    // Without it a reply waits for the client's delayed acknowledgement; a socket that refuses it is closing anyway.
    let _ = io.set_nodelay(true);
    let peer = io.peer_addr().map_err(|_| ())?;
    let opens_http2 = match tokio::time::timeout(FIRST_BYTES_TIMEOUT, opens_http2(&io)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => return Err(()),
    };
    if opens_http2 {
        http2::serve(io, peer, gateway, stopping).await
    } else {
        http1.call((Watched::new(io), Some(peer))).await.map(|_| ()).map_err(|_| ())
    }
}

/// Looks at the first bytes without taking them. No HTTP/1.1 request starts as the preface does; all of it must be
/// there before hyper gets the connection, because hyper waits for it without an end.
async fn opens_http2(io: &TcpStream) -> std::io::Result<bool> {
    const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    /// Peeking again at once would spin, since the bytes already there keep the socket readable. The pause doubles, so
    /// that a peer that stops half way costs some ten wake-ups and not two thousand.
    const FIRST_PAUSE: Duration = Duration::from_millis(5);
    const LONGEST_PAUSE: Duration = Duration::from_secs(2);
    let mut first = [0u8; PREFACE.len()];
    let mut pause = FIRST_PAUSE;
    loop {
        let seen = io.peek(&mut first).await?;
        if seen == PREFACE.len() || seen == 0 || first[..seen] != PREFACE[..seen] {
            return Ok(first[..seen] == PREFACE[..]);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
