//! How often a caller may call: the Generic Cell Rate Algorithm, one atomic word a bucket.
//!
//! [`Gcra`] is the bucket and [`RateLimit`] the rule; a device's buckets live in its directory entry
//! ([`DeviceBuckets`]), those of everybody else in a [`KeyedBuckets`] map. Time is handed in as nanoseconds of a
//! monotonic clock ([`MonotonicClock`]), so that tests own it and a step of the wall clock changes nothing.
mod decision;
mod gcra;
mod keyed;

use std::time::Instant;

pub use decision::{Decision, Quota};
pub use gcra::{Gcra, RateLimit};
pub use keyed::{ClientNetwork, KeyedBuckets, MAX_BUCKETS};

/// The section `[rate_limit]` of the configuration: calls at once and in the time named, 0 for no limit. The
/// defaults are the API reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimitConfig {
    /// A second, for each network that calls without a key.
    pub anonymous: u32,
    /// A second, for each key that is neither a device's nor the admin's.
    pub authenticated: u32,
    /// A minute, for each device and each kind of its traffic.
    pub device: u32,
}

impl Default for RateLimitConfig {
    fn default() -> Self {
        Self { anonymous: 10, authenticated: 100, device: 10 }
    }
}

impl RateLimitConfig {
    pub fn anonymous(&self) -> Option<RateLimit> {
        RateLimit::per_second(self.anonymous)
    }

    pub fn authenticated(&self) -> Option<RateLimit> {
        RateLimit::per_second(self.authenticated)
    }

    pub fn device(&self) -> Option<RateLimit> {
        RateLimit::per_minute(self.device)
    }
}

/// The buckets of one device. Each kind of traffic has its own, so that a device that downloads, reports progress
/// or asks for its own record never silences its heartbeats.
#[derive(Debug, Default)]
pub struct DeviceBuckets {
    pub heartbeats: Gcra,
    pub progress: Gcra,
    pub downloads: Gcra,
    /// Every other request of the device.
    pub requests: Gcra,
}

/// Nanoseconds since this clock was made; never goes back.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    start: Instant,
}

impl MonotonicClock {
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// A `u64` of nanoseconds lasts 584 years.
    pub fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_references_and_a_key_that_is_not_known_is_refused() {
        let config: RateLimitConfig = toml::from_str("").unwrap();
        assert_eq!(config, RateLimitConfig::default());
        assert_eq!((config.anonymous, config.authenticated, config.device), (10, 100, 10));

        let config: RateLimitConfig = toml::from_str("device = 0\nanonymous = 3").unwrap();
        assert_eq!(config.device(), None);
        assert_eq!(config.anonymous(), RateLimit::per_second(3));
        assert!(toml::from_str::<RateLimitConfig>("devices = 10").is_err());
    }

    #[test]
    fn a_devices_buckets_take_a_word_each() {
        assert_eq!(size_of::<DeviceBuckets>(), 32);
    }

    #[test]
    fn the_clock_does_not_go_back() {
        let clock = MonotonicClock::start();
        let first = clock.now();
        assert!(clock.now() >= first);
    }
}
