//! The clock by which silence is judged: it runs while the server listens to its devices, and stands still while the
//! server is away.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A server that did not look at its devices for so long was itself away: stopped, suspended, or starved. Far above
/// the pause between two looks, and below the shortest time after which a device with the shortest interval (1 s) is
/// OFFLINE.
const STALL: Duration = Duration::from_millis(2_500);

/// Whoever keeps looking at the devices says so here. Moments that come in are monotonic nanoseconds; those that go out
/// are of this clock, which is the same less the time away.
#[derive(Debug, Default)]
pub struct Attention {
    /// Monotonic; 0 before the first look.
    looked_at: AtomicU64,
    /// How long the server was away, in all.
    away: AtomicU64,
    /// When the first look was.
    began: AtomicU64,
    /// When the last stall ended; the first look, when there was none.
    listening_since: AtomicU64,
}

/// A moment on the clock of [`Attention`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    pub now: u64,
    pub began: u64,
    pub listening_since: u64,
}

impl Attention {
    /// A look at the devices begins. True when the server was away before it.
    pub fn look(&self, now: u64) -> bool {
        let before = self.looked_at.load(Ordering::Relaxed);
        let was_away = is_away(before, now);
        // Before `away`: who reads between the two takes a device for seen too late, which is forgiven, and not too
        // early.
        self.looked_at.store(now.max(1), Ordering::Release);
        if before == 0 {
            self.began.store(now, Ordering::Release);
            self.listening_since.store(now, Ordering::Release);
        }
        if was_away {
            let away = self.away.load(Ordering::Relaxed) + (now - before);
            self.away.store(away, Ordering::Release);
            self.listening_since.store(now - away, Ordering::Release);
        }
        was_away
    }

    /// What the clock shows. Between the end of a stall and the first look after it, it still stands where the stall
    /// began.
    pub fn at(&self, now: u64) -> u64 {
        self.heard(now).now
    }

    pub fn heard(&self, now: u64) -> Heard {
        let away = self.away.load(Ordering::Acquire);
        let looked_at = self.looked_at.load(Ordering::Acquire);
        let began = self.began.load(Ordering::Acquire);
        if is_away(looked_at, now) {
            let now = looked_at.saturating_sub(away);
            return Heard { now, began, listening_since: now };
        }
        Heard { now: now.saturating_sub(away), began, listening_since: self.listening_since.load(Ordering::Acquire) }
    }
}

fn is_away(looked_at: u64, now: u64) -> bool {
    // Before the first look nobody keeps looking.
    looked_at > 0 && now.saturating_sub(looked_at) > STALL.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn heard(now: u64, began: u64, listening_since: u64) -> Heard {
        Heard { now: now * SECOND, began: began * SECOND, listening_since: listening_since * SECOND }
    }

    #[test]
    fn the_clock_stands_still_while_the_server_is_away() {
        let attention = Attention::default();
        assert_eq!(attention.heard(100 * SECOND), heard(100, 0, 0), "nobody looks, so nobody was away");
        let attention = Attention::default();
        assert!(!attention.look(10 * SECOND), "a start of ten seconds is no stall");
        assert!(!attention.look(12 * SECOND));
        assert_eq!(attention.heard(13 * SECOND), heard(13, 10, 10), "silence counts from the first look");
        assert_eq!(attention.heard(60 * SECOND), heard(12, 10, 12), "before the first look after the stall");
        assert!(attention.look(61 * SECOND));
        assert_eq!(attention.heard(62 * SECOND), heard(13, 10, 12));
        assert!(!attention.look(62 * SECOND));
        assert!(attention.look(100 * SECOND));
        assert_eq!(attention.heard(101 * SECOND), heard(14, 10, 13), "time away adds up");
    }
}
