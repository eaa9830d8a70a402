//! The two clocks. Wall time is for people and for rows; every decision (limits, presence, deadlines) is made on
//! the monotonic clock, which no administrator and no NTP step can move.
use std::sync::LazyLock;
use std::time::Instant;

static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds since an arbitrary moment in the life of this process; never goes back.
pub fn monotonic_nanos() -> u64 {
    // 584 years of nanoseconds fit.
    STARTED.elapsed().as_nanos() as u64
}
