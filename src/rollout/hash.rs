//! Hashes that are the same in every process, on every machine and in every version: a seed that an operator wrote down
//! must choose the same devices next year.
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// FNV-1a of 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>). Not against texts that are chosen to collide: who
/// uses it compares the texts too, or does not mind.
pub fn stable_hash(text: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    text.bytes().fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// The hash of a sequence, from that of its beginning and of its next part.
pub fn combine(hash: u64, next: u64) -> u64 {
    mix(hash ^ mix(next))
}

/// The finalizer of splitmix64: every bit of the input changes half of the output's, and no two inputs have one output.
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A map by numbers that [`mix`] made: hashing them again would cost more than the look-up.
pub type MixedMap<V> = HashMap<u64, V, BuildHasherDefault<Mixed>>;

/// Takes a number for its own hash.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mixed(u64);

impl Hasher for Mixed {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = mix(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_are_those_of_the_published_algorithms() {
        assert_eq!(stable_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stable_hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(stable_hash("foobar"), 0x8594_4171_f739_67e8);
        // The first output of splitmix64 with the seed 0.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn the_order_of_a_sequence_counts() {
        assert_ne!(combine(combine(0, 1), 2), combine(combine(0, 2), 1));
    }
}
