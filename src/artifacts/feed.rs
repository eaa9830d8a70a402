//! A download on its way out: a task reads ahead of the client by a bounded number of pieces, and gives up on a client
//! that takes nothing.
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{mpsc, watch, OwnedSemaphorePermit, Semaphore};

use super::counters::TransferCounters;
use super::error::BlobError;
use super::read::BlobReader;
use crate::error::ApiError;

/// Memory for pieces of all downloads together: some 1,300 at once in pieces of 64 KiB, which fill a 10 Gbit/s line
/// with 8 Mbit/s for each. More would come at the cost of heartbeats.
const BUDGET_BYTES: usize = 256 << 20;
/// The budget is counted in these, so that it fits the semaphore's numbers.
const UNIT_BYTES: usize = 4 << 10;
/// Pieces of one download in memory: one being read, one in the channel, one being sent.
const PIECES: usize = 3;
/// A client that takes no piece for so long is gone or means harm. 64 KiB in a minute is slower than a 56k modem.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// How long a download may go on after the server was told to stop; the whole stop has 4 s for requests in flight.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// When to come back to a server that is busy or stops: other downloads take some seconds.
const RETRY: Duration = Duration::from_secs(5);

/// Starts downloads within a budget of memory. Cheap to clone.
#[derive(Clone)]
pub struct Feeder {
    budget: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
    counters: Arc<TransferCounters>,
}

/// Why a download ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("the server is stopping; go on from where you are with an offset or a range")]
    Stopping,
    #[error("nothing of the download was taken for {} s", STALLED_AFTER.as_secs())]
    Stalled,
    #[error("too many downloads are under way; try again in {} s", RETRY.as_secs())]
    Busy,
}

impl From<FeedError> for ApiError {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::Blob(error) => error.into(),
            FeedError::Stopping | FeedError::Stalled | FeedError::Busy => Self::unavailable(error.to_string(), RETRY),
        }
    }
}

impl Feeder {
    pub fn new(stopping: watch::Receiver<bool>, counters: Arc<TransferCounters>) -> Self {
        Self { budget: Arc::new(Semaphore::new(BUDGET_BYTES / UNIT_BYTES)), stopping, counters }
    }

    /// Begins to read, in pieces of `piece_bytes`.
    ///
    /// # Errors
    /// [`FeedError::Busy`] when the budget is used up.
    pub fn start(&self, reader: BlobReader, piece_bytes: usize) -> Result<Feed, FeedError> {
        let units = (PIECES * piece_bytes).div_ceil(UNIT_BYTES);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.budget).try_acquire_many_owned(units).map_err(|_| {
            self.counters.download_refused();
            FeedError::Busy
        })?;
        self.counters.download_began();
        let remaining = reader.remaining();
        let (sender, pieces) = mpsc::channel(1);
        tokio::spawn(read_ahead(reader, piece_bytes, sender, self.stopping.clone(), permit));
        Ok(Feed { pieces, remaining, counters: Arc::clone(&self.counters) })
    }
}

async fn read_ahead(
    mut reader: BlobReader,
    piece_bytes: usize,
    sender: mpsc::Sender<Result<Bytes, FeedError>>,
    mut stopping: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
) {
    let stopped = async {
        // An error means that the sender is gone, which only happens when the server is.
        let _ = stopping.wait_for(|is_stopping| *is_stopping).await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    let mut stopped = std::pin::pin!(stopped);
    while let Some(piece) = reader.next(piece_bytes).await.transpose() {
        let is_last = piece.is_err();
        let sent = tokio::time::timeout(STALLED_AFTER, sender.send(piece.map_err(FeedError::from)));
        tokio::select! {
            sent = sent => match sent {
                Ok(Ok(())) if !is_last => {}
                // The client is gone, or stalled: the closed channel tells the feed.
                _ => return,
            },
            () = stopped.as_mut() => {
                // A full channel means that nobody would read it anyway.
                let _ = sender.try_send(Err(FeedError::Stopping));
                return;
            }
        }
    }
}

/// The pieces of a download. Ends with an error if it ends early.
pub struct Feed {
    pieces: mpsc::Receiver<Result<Bytes, FeedError>>,
    /// Bytes that are still to come; 0 after an error.
    remaining: u64,
    counters: Arc<TransferCounters>,
}

impl Feed {
    pub const fn remaining(&self) -> u64 {
        self.remaining
    }
}

impl Stream for Feed {
    type Item = Result<Bytes, FeedError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        let piece = std::task::ready!(self.pieces.poll_recv(cx)).unwrap_or(Err(FeedError::Stalled));
        self.remaining = match &piece {
            Ok(bytes) => {
                self.counters.downloaded_bytes(bytes.len());
                self.remaining.saturating_sub(bytes.len() as u64)
            }
            Err(_) => 0,
        };
        Poll::Ready(Some(piece))
    }
}
