//! The two streams between the HTTP side, which is asynchronous, and a statement's thread, which blocks.
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::Sleep;

use super::input::{Arrivals, InputError};

/// Pieces of a body that wait for their statement. hyper reads at most some hundred kilobytes a piece, so an insert
/// holds a few megabytes here, and the socket's own flow control does the rest.
const ARRIVED_PIECES: usize = 16;

/// Pieces of an answer that wait for their client: enough that ClickHouse works while the socket is written, few
/// enough that a slow client holds little memory (a piece is a block of output, about 64 thousand rows).
const ANSWER_PIECES: usize = 4;

/// How long a client may send nothing in the middle of its body; ClickHouse's `http_receive_timeout`.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(30);

/// How much of a body is read and thrown away after its statement failed, in bytes. A client that is still writing
/// would otherwise meet a reset connection and not the exception.
const DRAINED_BYTES: usize = 64 << 20;

/// How long a connection whose statement failed late stays open after its last bytes. hyper writes out what it holds while
/// a body has nothing more for now, does not say when it is done, and drops the rest at the break; and a client that meets
/// the break while it still unpacks what came before, such as Node's, reports that and not the exception.
const LINGER: Duration = Duration::from_millis(500);

/// Reads the body in a task of its own, until its end, its failure, or nobody wants more.
pub fn receive(body: Incoming) -> Arrivals {
    let (sender, arrivals) = mpsc::channel(ARRIVED_PIECES);
    tokio::spawn(pump(body, sender));
    arrivals
}

async fn pump(mut body: Incoming, sender: mpsc::Sender<Result<Bytes, InputError>>) {
    let mut drained = 0;
    loop {
        let piece = match tokio::time::timeout(RECEIVE_TIMEOUT, body.frame()).await {
            Err(_elapsed) => Err(InputError::Stalled(RECEIVE_TIMEOUT.as_secs())),
            Ok(None) => return,
            Ok(Some(Err(error))) => Err(InputError::Gone(error.to_string())),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Ok(data),
                Err(_trailers) => continue,
            },
        };
        let is_over = piece.is_err();
        let length = piece.as_ref().map_or(0, Bytes::len);
        if sender.send(piece).await.is_err() {
            drained += length;
        }
        if is_over || drained > DRAINED_BYTES {
            return;
        }
    }
}

/// A part of an answer.
pub enum Piece {
    Data(Bytes),
    /// The answer is whole.
    End,
    /// The statement failed: these last bytes, then the connection breaks, so that no client takes it for whole.
    Failed(Bytes),
}

/// Where a statement's thread puts its answer.
pub struct AnswerSender(mpsc::Sender<Piece>);

/// The client went away, or stopped reading for too long.
#[derive(Debug)]
pub struct ClientGone;

impl AnswerSender {
    /// Blocks while the client is slow, up to `patience`.
    pub fn send(&self, runtime: &tokio::runtime::Handle, piece: Piece, patience: Duration) -> Result<(), ClientGone> {
        let Err(full) = self.0.try_send(piece) else { return Ok(()) };
        let piece = match full {
            mpsc::error::TrySendError::Full(piece) => piece,
            mpsc::error::TrySendError::Closed(_) => return Err(ClientGone),
        };
        runtime.block_on(async {
            match tokio::time::timeout(patience, self.0.send(piece)).await {
                Ok(Ok(())) => Ok(()),
                _ => Err(ClientGone),
            }
        })
    }
}

/// The body of an answer: whole, or fed by a statement's thread.
pub enum AnswerBody {
    Whole(Option<Bytes>),
    Fed(mpsc::Receiver<Piece>),
    /// The last bytes before a break were given; the connection breaks when this is over, see [`LINGER`].
    Breaking(Pin<Box<Sleep>>),
    Ended,
}

/// Breaks the connection on purpose.
#[derive(Debug, thiserror::Error)]
#[error("the statement failed after its answer had begun")]
pub struct Broken;

pub fn answer_channel() -> (AnswerSender, AnswerBody) {
    let (sender, receiver) = mpsc::channel(ANSWER_PIECES);
    (AnswerSender(sender), AnswerBody::Fed(receiver))
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        match this {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Fed(receiver) => match std::task::ready!(receiver.poll_recv(context)) {
                Some(Piece::Data(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Some(Piece::End) => {
                    *this = Self::Ended;
                    Poll::Ready(None)
                }
                Some(Piece::Failed(bytes)) => {
                    *this = Self::Breaking(Box::pin(tokio::time::sleep(LINGER)));
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                // The thread ended without a word, by a panic: that must not look like a whole answer.
                None => Poll::Ready(Some(Err(Broken))),
            },
            Self::Breaking(over) => over.as_mut().poll(context).map(|()| Some(Err(Broken))),
            Self::Ended => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None) | Self::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Ended => SizeHint::with_exact(0),
            Self::Fed(_) | Self::Breaking(_) => SizeHint::default(),
        }
    }
}
