//! The two clocks. Wall time is for people and for rows; every decision (limits, presence, deadlines) is made on
//! the monotonic clock, which no administrator and no NTP step can move.
use std::num::NonZeroU32;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds since an arbitrary moment in the life of this process; never goes back.
pub fn monotonic_nanos() -> u64 {
    // 584 years of nanoseconds fit.
    STARTED.elapsed().as_nanos() as u64
}

/// From nothing to all of `span`, at random: for what must not happen in step with others. All of it without a source of
/// randomness: jitter is a courtesy, no reason to fail.
pub fn random_part(span: Duration) -> Duration {
    span.mul_f64(getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX)))
}

/// Wall time in milliseconds since 1970 UTC, the one form in which the server keeps it; always inside the range of `DateTime64(3)`: 1900-01-01 to 2299-12-31
/// (<https://clickhouse.com/docs/sql-reference/data-types/datetime64>). Outside it ClickHouse's result is undefined,
/// so a device that thinks it is the year 1 or 9999 is stored at the nearer end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(i64);

impl UnixMillis {
    /// 1900-01-01T00:00:00.000Z
    pub const MIN: Self = Self(-2_208_988_800_000);
    /// 2299-12-31T23:59:59.999Z
    pub const MAX: Self = Self(10_413_791_999_999);
    pub const EPOCH: Self = Self(0);

    /// The nearest representable time; fractions of a millisecond are cut off towards the past.
    ///
    /// `nanos` outside 0..1e9 is not valid protobuf, but any client can send it: it is added like any other number.
    pub fn from_parts_clamped(seconds: i64, nanos: i32) -> Self {
        let millis = i128::from(seconds) * 1_000 + i128::from(nanos.div_euclid(1_000_000));
        Self(millis.clamp(i128::from(Self::MIN.0), i128::from(Self::MAX.0)) as i64)
    }

    /// For constants.
    pub const fn from_unix_seconds(seconds: u32) -> Self {
        // 32 bits of seconds end in 2106, inside the range.
        Self(seconds as i64 * 1_000)
    }

    pub fn from_millis_clamped(millis: i64) -> Self {
        Self(millis.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// The wall clock, which may jump either way: good for a timestamp, not for an order or a duration.
    pub fn now() -> Self {
        let millis = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |millis| -millis),
        };
        Self::from_millis_clamped(millis)
    }

    pub const fn as_millis(self) -> i64 {
        self.0
    }
}

/// A pause between two heartbeats in whole milliseconds: 1 to 2³² − 1, which is 49 days. Four bytes, also as an `Option`,
/// where a `Duration` takes sixteen; there are two of them for each device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause(NonZeroU32);

impl Pause {
    pub const fn as_millis(self) -> u32 {
        self.0.get()
    }

    /// `None` for 0.
    pub const fn from_millis(millis: u32) -> Option<Self> {
        // `Option::map` is not const.
        match NonZeroU32::new(millis) {
            Some(millis) => Some(Self(millis)),
            None => None,
        }
    }
}

/// Rounds up to the next millisecond; what is too long becomes the longest.
impl From<Duration> for Pause {
    fn from(duration: Duration) -> Self {
        let millis = duration.as_nanos().div_ceil(1_000_000);
        let millis = u32::try_from(millis).unwrap_or(u32::MAX);
        Self(NonZeroU32::new(millis).unwrap_or(NonZeroU32::MIN))
    }
}

impl From<Pause> for Duration {
    fn from(pause: Pause) -> Self {
        Self::from_millis(pause.as_millis().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_of_range_is_stored_at_the_nearer_end() {
        let year_1 = UnixMillis::from_parts_clamped(-62_135_596_800, 0);
        let year_9999 = UnixMillis::from_parts_clamped(253_402_300_799, 999_999_999);
        assert_eq!((year_1, year_9999), (UnixMillis::MIN, UnixMillis::MAX));
        assert_eq!(UnixMillis::from_parts_clamped(i64::MAX, i32::MAX), UnixMillis::MAX);
        assert_eq!(UnixMillis::from_parts_clamped(i64::MIN, i32::MIN), UnixMillis::MIN);
    }

    #[test]
    fn fractions_are_cut_towards_the_past_on_both_sides_of_1970() {
        assert_eq!(UnixMillis::from_parts_clamped(1, 999_999).as_millis(), 1_000);
        assert_eq!(UnixMillis::from_parts_clamped(-1, 999_999_999).as_millis(), -1);
        assert_eq!(UnixMillis::from_parts_clamped(0, -1).as_millis(), -1);
    }

    #[test]
    fn a_pause_is_never_nothing_and_never_shorter_than_what_it_was_made_of() {
        for (duration, millis) in [
            (Duration::ZERO, 1),
            (Duration::from_nanos(1), 1),
            (Duration::from_millis(30_000), 30_000),
            (Duration::from_nanos(30_000_000_001), 30_001),
            (Duration::MAX, u32::MAX),
        ] {
            assert_eq!(Pause::from(duration).as_millis(), millis, "{duration:?}");
        }
        assert_eq!(Pause::from_millis(0), None);
    }
}
