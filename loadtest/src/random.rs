//! A small generator of numbers that look random and are the same for the same seed.

/// SplitMix64 (Steele, Lea, Flood, 2014): eight bytes of state, and good enough for a device's whims.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Of a seed whose neighbours are in use too. [`Self::new`] would give each of them the numbers of the one before, a
    /// step on.
    pub(crate) fn scattered(seed: u64) -> Self {
        Self(Self::new(seed).next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in 0 to 1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 24) as f32
    }

    /// Uniform in 0 to 1: the first of 34 bits, for rare chances, the others of 10. One step for all four.
    pub(crate) fn four(&mut self) -> [f32; 4] {
        let bits = self.next();
        let ten = |shift: u32| ((bits >> shift) & 0x3ff) as f32 / 1024.0;
        [(bits >> 30) as f32 / (1_u64 << 34) as f32, ten(0), ten(10), ten(20)]
    }
}
