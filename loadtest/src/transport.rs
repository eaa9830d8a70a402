//! One TCP connection and the HTTP client on it: hyper's connection-level API, with no pool above it.
use std::future::Future;
use std::net::Shutdown;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::error::LoadError;
use crate::target::Target;
use crate::wire::{CallError, Protocol};

/// How long a TCP connect may take: a loopback or rack neighbour answers in microseconds, and a server that is
/// starting refuses at once, so longer means that packets are dropped.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// HTTP/2's flow-control window in each direction. Answers are small, so this only has to be no limit.
const HTTP2_WINDOW_BYTES: u32 = 1 << 20;

/// The sending half of a connection.
#[derive(Debug)]
pub(crate) enum Sender {
    /// One request at a time.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// Any number at a time, each on a stream of its own.
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// What became of a request that got no response.
#[derive(Debug)]
pub(crate) enum SendError {
    /// It never left: sending it again cannot double anything.
    NotSent,
    /// It may have arrived.
    Broken(hyper::Error),
}

impl Sender {
    /// A second handle on the same connection, where the protocol shares one.
    pub(crate) fn share(&self) -> Option<Self> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(sender) => Some(Self::Http2(sender.clone())),
        }
    }

    /// Waits until a request can be sent; an error says that the connection is gone.
    pub(crate) async fn ready(&mut self) -> Result<(), hyper::Error> {
        match self {
            Self::Http1(sender) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        }
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, SendError> {
        let sent = match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        };
        // hyper hands the request back only when no byte of it was written.
        sent.map_err(|mut error| match error.take_message() {
            Some(_) => SendError::NotSent,
            None => SendError::Broken(error.into_error()),
        })
    }
}

/// Ends a connection from outside, at once and in both directions; requests in flight on it fail.
#[derive(Debug)]
pub(crate) struct Hangup(std::net::TcpStream);

impl Hangup {
    pub(crate) fn hang_up(&self) {
        // Fails only when the peer was faster.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// A fresh connection: whoever opened it must poll `driver` for the others to get anywhere.
pub(crate) struct Connection {
    pub(crate) sender: Sender,
    pub(crate) hangup: Hangup,
    pub(crate) driver: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Opens a connection that speaks what `protocol` runs over.
pub(crate) async fn connect(target: &Target, protocol: Protocol) -> Result<Connection, LoadError> {
    let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| LoadError::Unreachable {
        authority: target.authority().to_owned(),
        source,
    };
    let address = target.resolve().map_err(|error| unreachable(error.into()))?;
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::TcpStream::connect(address))
        .await
        .map_err(|elapsed| unreachable(elapsed.into()))?
        .map_err(|error| unreachable(error.into()))?;
    stream.set_nodelay(true).map_err(|error| unreachable(error.into()))?;
    let stream = stream.into_std().map_err(|error| unreachable(error.into()))?;
    let hangup = Hangup(stream.try_clone().map_err(|error| unreachable(error.into()))?);
    let stream = tokio::net::TcpStream::from_std(stream).map_err(|error| unreachable(error.into()))?;
    let io = TokioIo::new(stream);
    if protocol == Protocol::Grpc {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(HTTP2_WINDOW_BYTES)
            .initial_connection_window_size(HTTP2_WINDOW_BYTES)
            .handshake(io)
            .await
            .map_err(|error| unreachable(error.into()))?;
        let driver = Box::pin(async move {
            let _ = connection.await;
        });
        Ok(Connection { sender: Sender::Http2(sender), hangup, driver })
    } else {
        let (sender, connection) =
            http1::Builder::new().handshake(io).await.map_err(|error| unreachable(error.into()))?;
        // How a connection ended is told to the request that it carried; with none in flight it matters to nobody.
        let driver = Box::pin(async move {
            let _ = connection.await;
        });
        Ok(Connection { sender: Sender::Http1(sender), hangup, driver })
    }
}

impl From<SendError> for CallError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::NotSent => Self::Broken { source: "the connection closed before the request was sent".into() },
            SendError::Broken(source) => Self::Broken { source: source.into() },
        }
    }
}
