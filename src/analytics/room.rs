//! Room for answers: how much memory all of those may fill that are being put together, or that their clients take in
//! slowly or not at all.
//!
//! An answer is bounded by itself, and so is how many questions run; neither says how many answers there are at a time.
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use crate::error::ApiError;

/// Bytes of all answers together, [`FREE_BYTES`] of each aside: one of the largest, or a few dozen charts of as many points
/// as people can see.
const MAX_BYTES: usize = 256 << 20;

/// Bytes of each answer that are not counted: a dashboard's panel is smaller, also while it is made (256 bytes a point, so
/// 4,096 points), and never refused for what others hold.
const FREE_BYTES: usize = 1 << 20;

/// When to come back: a client that reads has a large answer by then.
const RETRY_AFTER: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Inner {
    held: AtomicUsize,
    refused: AtomicU64,
}

/// Cheap, cloneable handle.
#[derive(Clone, Default)]
pub struct AnswerRoom(Arc<Inner>);

/// What one answer has of it, given back when this is dropped.
pub struct Held {
    room: AnswerRoom,
    bytes: usize,
}

impl AnswerRoom {
    /// A part of nothing yet.
    pub fn hold(&self) -> Held {
        Held { room: self.clone(), bytes: 0 }
    }

    /// Bytes that answers hold.
    pub fn held_bytes(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Answers that were one too many.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }
}

impl Held {
    /// The answer has so many bytes now. One that is alone has room whatever its size, which is bounded elsewhere.
    ///
    /// # Errors
    /// UNAVAILABLE when others leave no room for it.
    pub fn resize(&mut self, bytes: usize) -> Result<(), ApiError> {
        let bytes = bytes.saturating_sub(FREE_BYTES);
        let held = &self.room.0.held;
        if bytes <= self.bytes {
            held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            self.bytes = bytes;
            return Ok(());
        }
        let others = held.fetch_add(bytes - self.bytes, Ordering::Relaxed) - self.bytes;
        if others > 0 && others + bytes > MAX_BYTES {
            held.fetch_sub(bytes - self.bytes, Ordering::Relaxed);
            self.room.0.refused.fetch_add(1, Ordering::Relaxed);
            let message = format!(
                "the answer is large, and others of which {} MB are still being made or read leave no room for it; try again \
                 in a moment, or ask for a longer interval, a shorter time or fewer groups",
                others >> 20
            );
            return Err(ApiError::unavailable(message, RETRY_AFTER));
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.0.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn large_answers_are_refused_beyond_the_room_and_small_ones_never() {
        let room = AnswerRoom::default();
        let mut all: Vec<Held> = Vec::new();
        let refused = loop {
            let mut held = room.hold();
            match held.resize(10 << 20) {
                Ok(()) => all.push(held),
                Err(error) => break error,
            }
        };
        assert_eq!(refused.code, ErrorCode::Unavailable);
        assert!(refused.retry_after.is_some() && refused.message.contains("leave no room"), "{refused}");
        assert_eq!((all.len(), room.refused()), (MAX_BYTES / ((10 << 20) - FREE_BYTES), 1));
        room.hold().resize(FREE_BYTES).expect("a small one");
        all[0].resize(1 << 20).expect("less than before");
        room.hold().resize(10 << 20).expect("there is room again");
        all.clear();
        assert_eq!(room.held_bytes(), 0);
        room.hold().resize(2 * MAX_BYTES).expect("it is alone");
        assert_eq!(room.held_bytes(), 0);
    }
}
