//! Buckets for callers who have no place of their own: networks of anonymous callers, holders of API keys.
//!
//! The map is bounded. A bucket that is full again holds no information, so it is forgotten first; when the map is
//! full of buckets in use, newcomers share a few overflow buckets: under a flood from that many addresses they
//! are slowed together, and nobody who was there before them is. Memory stays bounded in any case.
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;

use super::decision::Decision;
use super::gcra::{Gcra, RateLimit};

/// Most buckets that one map holds: some 5 MB. An anonymous bucket is full again after one second at the default
/// limit, so this is how many networks may call within about a second before newcomers share.
pub const MAX_BUCKETS: usize = 100_000;

/// Overflow buckets that newcomers to a full map share; enough that one of them does not hold up all others.
const OVERFLOW_BUCKETS: usize = 256;

/// Nanoseconds between two sweeps of a full map. A sweep of 100,000 buckets takes about a millisecond, so a flood
/// can make it cost at most one per cent of one core.
const SWEEP_INTERVAL: u64 = 100_000_000;

/// Where an anonymous caller calls from: an IPv4 address, or the /64 of an IPv6 address, since a /64 is what one
/// subscriber gets and can choose any address of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientNetwork {
    V4(u32),
    V6Prefix(u64),
}

impl From<IpAddr> for ClientNetwork {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            IpAddr::V6(v6) => Self::V6Prefix((v6.to_bits() >> 64) as u64),
        }
    }
}

/// One bucket a key, all under one limit.
#[derive(Debug)]
pub struct KeyedBuckets<K: Eq + Hash> {
    limit: RateLimit,
    capacity: usize,
    buckets: DashMap<K, Gcra>,
    /// Buckets in the map; kept apart because `DashMap::len` locks every shard.
    count: AtomicUsize,
    next_sweep: AtomicU64,
    overflow: Box<[Gcra]>,
    overflow_hash: RandomState,
}

impl<K: Eq + Hash> KeyedBuckets<K> {
    pub fn new(limit: RateLimit) -> Self {
        Self::with_capacity(limit, MAX_BUCKETS)
    }

    fn with_capacity(limit: RateLimit, capacity: usize) -> Self {
        Self {
            limit,
            capacity,
            buckets: DashMap::new(),
            count: AtomicUsize::new(0),
            next_sweep: AtomicU64::new(0),
            overflow: (0..OVERFLOW_BUCKETS).map(|_| Gcra::default()).collect(),
            overflow_hash: RandomState::new(),
        }
    }

    /// Takes one call out of the bucket of `key`. `now`: nanoseconds of one monotonic clock.
    pub fn check(&self, key: K, now: u64) -> Decision {
        if let Some(bucket) = self.buckets.get(&key) {
            return bucket.check(&self.limit, now);
        }
        // Room is reserved before it is used, so that threads that arrive together do not overfill the map.
        if !self.reserve() {
            self.sweep(now);
            if !self.reserve() {
                let slot = self.overflow_hash.hash_one(&key) % OVERFLOW_BUCKETS as u64;
                return self.overflow[slot as usize].check(&self.limit, now);
            }
        }
        let mut is_new = false;
        let bucket = self.buckets.entry(key).or_insert_with(|| {
            is_new = true;
            Gcra::default()
        });
        let decision = bucket.check(&self.limit, now);
        drop(bucket);
        if !is_new {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        decision
    }

    /// Buckets held; at most [`MAX_BUCKETS`].
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn reserve(&self) -> bool {
        let capacity = self.capacity;
        self.count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < capacity).then_some(count + 1))
            .is_ok()
    }

    /// Forgets buckets that are full again; at most once an interval, by whichever thread comes first.
    fn sweep(&self, now: u64) {
        let due = self.next_sweep.load(Ordering::Relaxed);
        let next = now.saturating_add(SWEEP_INTERVAL);
        if now < due || self.next_sweep.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let mut forgotten = 0;
        self.buckets.retain(|_, bucket| {
            let keep = !bucket.is_full(now);
            forgotten += usize::from(!keep);
            keep
        });
        self.count.fetch_sub(forgotten, Ordering::Relaxed);
        tracing::debug!(forgotten, held = self.len(), "rate limit buckets swept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn network(text: &str) -> ClientNetwork {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn ten_a_second() -> RateLimit {
        RateLimit::per_second(10).unwrap()
    }

    #[test]
    fn an_ipv6_subscriber_is_one_caller_and_mapped_ipv4_is_ipv4() {
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:2:ffff::9"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }

    #[test]
    fn callers_do_not_share_a_bucket() {
        let buckets = KeyedBuckets::new(ten_a_second());
        while buckets.check(network("192.0.2.1"), 0).is_allowed() {}
        assert_eq!(buckets.check(network("192.0.2.2"), 0).quota.remaining, 9);
        assert_eq!(buckets.len(), 2);
    }

    #[test]
    fn a_full_map_forgets_only_buckets_that_are_full_again() {
        let buckets = KeyedBuckets::with_capacity(ten_a_second(), 100);
        for caller in 0..100 {
            buckets.check(caller, 0);
        }
        let later = 2 * SECOND;
        for caller in 0..50 {
            while buckets.check(caller, later).is_allowed() {}
        }
        assert!(buckets.check(1_000, later).is_allowed());
        assert_eq!(buckets.len(), 51);
        for caller in 0..50 {
            assert!(!buckets.check(caller, later).is_allowed(), "caller {caller} got a fresh bucket");
        }
    }

    #[test]
    fn a_flood_of_addresses_neither_grows_the_map_nor_hurts_who_was_there() {
        let buckets = KeyedBuckets::with_capacity(ten_a_second(), 100);
        for caller in 0..100 {
            buckets.check(caller, 0);
        }
        let allowed = (1_000..101_000).filter(|&caller| buckets.check(caller, 1).is_allowed()).count();
        assert_eq!(buckets.len(), 100);
        assert!(allowed <= OVERFLOW_BUCKETS * 10, "{allowed} of a flood passed");
        assert!(allowed > 0, "newcomers are slowed, not shut out");
        for caller in 0..100 {
            assert_eq!(buckets.check(caller, 1).quota.remaining, 8, "caller {caller}");
        }
    }

    #[test]
    fn threads_together_never_overfill_the_map_and_its_count_stays_true() {
        let buckets = KeyedBuckets::with_capacity(ten_a_second(), 1_000);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let buckets = &buckets;
                scope.spawn(move || {
                    for step in 0..20_000_u64 {
                        buckets.check((step * 7 + thread) % 3_000, step * SECOND / 1_000);
                        assert!(buckets.len() <= 1_000);
                    }
                });
            }
        });
        assert_eq!(buckets.len(), buckets.buckets.len());
    }
}
