//! Request bodies on their way in, all of them together: how much memory peers may fill that have not finished a
//! request, and so have not shown a key yet.
//!
//! One body is bounded by its size and its time. Without a bound on all of them, a thousand connections that each stop
//! just before the end would hold two gigabytes for as long as those times allow.
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// Bytes of unfinished bodies, those of [`FREE_BYTES`] aside: 66 of the largest. The buffers that they grow in may take
/// twice as much.
const MAX_BYTES: usize = 128 << 20;

/// Bytes of each body that are not counted: heartbeats of single devices are all smaller, and never refused for this.
const FREE_BYTES: usize = 64 << 10;

/// When to come back: bodies that come at a usual speed are whole by then.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A peer is told this when its body would be one too many.
pub const MESSAGE: &str = "the server is taking in as many large requests as it may; try again in a second";

/// The bytes of all unfinished bodies. Cheap handle.
#[derive(Clone, Default)]
pub struct Intake(Arc<AtomicUsize>);

/// What one body has of it, given back when this is dropped.
pub struct Share {
    intake: Intake,
    held: usize,
    seen: usize,
}

impl Intake {
    pub fn share(&self) -> Share {
        Share { intake: self.clone(), held: 0, seen: 0 }
    }
}

impl Share {
    /// Counts `bytes` more of the body; `false` when there is no room for them.
    pub fn grow(&mut self, bytes: usize) -> bool {
        self.seen = self.seen.saturating_add(bytes);
        let more = self.seen.saturating_sub(FREE_BYTES) - self.held;
        if more == 0 {
            return true;
        }
        self.held += more;
        self.intake.0.fetch_add(more, Ordering::Relaxed) + more <= MAX_BYTES
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.intake.0.fetch_sub(self.held, Ordering::Relaxed);
    }
}

/// A body that holds its share until it is whole. `was_refused` tells whoever answers why the body broke off.
pub struct Counted<B> {
    body: B,
    share: Option<Share>,
    was_refused: Arc<AtomicBool>,
}

impl<B> Counted<B> {
    /// Without a share, for a stream that its service takes in piece by piece, the body passes as it is.
    pub fn new(body: B, share: Option<Share>, was_refused: Arc<AtomicBool>) -> Self {
        Self { body, share, was_refused }
    }
}

/// Why a counted body has no end.
#[derive(Debug, thiserror::Error)]
pub enum BrokenOff {
    #[error("{MESSAGE}")]
    Refused,
    #[error("{0}")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl<B> Body for Counted<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                if self.share.as_mut().is_none_or(|share| share.grow(bytes)) {
                    Some(Ok(frame))
                } else {
                    self.was_refused.store(true, Ordering::Release);
                    Some(Err(BrokenOff::Refused))
                }
            }
            Some(Err(error)) => Some(Err(BrokenOff::Source(Box::new(error)))),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_are_refused_beyond_the_bound_and_small_ones_never() {
        let intake = Intake::default();
        let mut large: Vec<Share> = Vec::new();
        loop {
            let mut share = intake.share();
            if !share.grow(2 << 20) {
                break;
            }
            large.push(share);
        }
        assert_eq!(large.len(), MAX_BYTES / ((2 << 20) - FREE_BYTES));
        let mut small = intake.share();
        assert!((0..64).all(|_| small.grow(1 << 10)));
        assert!(!small.grow(1 << 20), "no longer small");
        drop(small);
        large.pop();
        assert!(intake.share().grow(2 << 20));
        large.clear();
        assert_eq!(intake.0.load(Ordering::Relaxed), 0);
    }
}
