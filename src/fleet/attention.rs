//! Since when the server listens to its devices without a gap.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A server that did not look at its devices for so long was itself away: stopped, suspended, or starved. Far above
/// the pause between two looks, and below the shortest time after which a device with the shortest interval (1 s) is
/// OFFLINE.
const STALL: Duration = Duration::from_millis(2_500);

/// Whoever keeps looking at the devices says so here; the moments are monotonic nanoseconds.
#[derive(Debug, Default)]
pub struct Attention {
    looked_at: AtomicU64,
    listening_since: AtomicU64,
}

impl Attention {
    /// A look at the devices begins. True when the server was away before it.
    pub fn look(&self, now: u64) -> bool {
        let was_away = self.is_away(now);
        if was_away {
            self.listening_since.store(now, Ordering::Relaxed);
        }
        self.looked_at.store(now, Ordering::Release);
        was_away
    }

    /// Also true to the moment between the end of a stall and the first look after it.
    pub fn listening_since(&self, now: u64) -> u64 {
        if self.is_away(now) {
            return now;
        }
        self.listening_since.load(Ordering::Relaxed)
    }

    fn is_away(&self, now: u64) -> bool {
        match self.looked_at.load(Ordering::Acquire) {
            // Nobody keeps looking.
            0 => false,
            looked_at => now.saturating_sub(looked_at) > STALL.as_nanos() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn silence_counts_from_the_end_of_a_stall() {
        let attention = Attention::default();
        assert_eq!(attention.listening_since(100 * SECOND), 0, "nobody looks, so nobody was away");
        assert!(!attention.look(SECOND) && !attention.look(3 * SECOND));
        assert_eq!(attention.listening_since(4 * SECOND), 0);
        assert_eq!(attention.listening_since(60 * SECOND), 60 * SECOND, "before the first look after the stall");
        assert!(attention.look(61 * SECOND));
        assert_eq!(attention.listening_since(62 * SECOND), 61 * SECOND);
    }
}
