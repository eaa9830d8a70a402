//! Answers to questions on their way out: each holds its part of the [`AnswerRoom`](crate::analytics::AnswerRoom) until its
//! client has it, or has gone.
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use connectrpc::ConnectRpcBody;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use crate::analytics::Held;

/// Bytes that a connection is given at a time. It asks for more when its client has taken most of them, so this is what is
/// still on the way when the room is given back.
const PIECE_BYTES: usize = 64 << 10;

/// Carries what an answer holds from the service to the gateway; a request extension.
#[derive(Clone, Default)]
pub struct AnswerSlot(Arc<Mutex<Option<Held>>>);

impl AnswerSlot {
    pub fn put(&self, held: Held) {
        *self.0.lock() = Some(held);
    }

    pub fn take(&self) -> Option<Held> {
        self.0.lock().take()
    }
}

/// An answer that holds its part of the room.
pub struct Sending {
    body: ConnectRpcBody,
    /// What is left of the frame that `body` gave.
    rest: Bytes,
    _held: Held,
}

impl Sending {
    pub fn new(body: ConnectRpcBody, held: Held) -> Self {
        Self { body, rest: Bytes::new(), _held: held }
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(never)) => match never {},
                None => return Poll::Ready(None),
            }
        }
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        match body.exact() {
            Some(exact) => SizeHint::with_exact(rest + exact),
            None => SizeHint::default(),
        }
    }
}
