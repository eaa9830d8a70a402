//! How often a caller may call: the Generic Cell Rate Algorithm, one atomic word a bucket.
//!
//! [`Gcra`] is the bucket and [`RateLimit`] the rule; a device's buckets live in its directory entry
//! ([`DeviceBuckets`]), those of everybody else in a [`KeyedBuckets`] map. Time is handed in as nanoseconds of a
//! monotonic clock ([`crate::clock::monotonic_nanos`]), so that tests own it and a step of the wall clock changes nothing.
mod decision;
mod gcra;
mod keyed;

pub use decision::{Decision, Quota};
pub use gcra::{Gcra, RateLimit};
pub use keyed::{ClientNetwork, KeyedBuckets, MAX_BUCKETS};

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
