//! Randomness that can be had again: everything follows from one number, which is printed.
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64 (Steele, Lea, Flood, 2014).
pub struct Random(u64);

impl Random {
    /// From `FLEETD_CHAOS_SEED`, else from the clock; says which, so that a failure can be repeated.
    pub fn seeded(test: &str) -> Self {
        let given = std::env::var("FLEETD_CHAOS_SEED").ok();
        let seed = match given {
            Some(text) => text.parse().unwrap_or_else(|_| panic!("FLEETD_CHAOS_SEED={text} is no number")),
            None => SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_nanos() as u64,
        };
        println!("{test}: FLEETD_CHAOS_SEED={seed} repeats what is random here");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(range.start * 1000 + self.below((range.end - range.start) * 1000))
    }
}
