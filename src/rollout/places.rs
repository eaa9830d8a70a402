//! A set of places that finds its first member, and the next one after any place, in a handful of steps: a bitmap with
//! two levels of summary. A million places take 130 kB, whether they are in it or not; nothing is kept for places past
//! the largest member so far.
use super::Place;

const BITS: usize = u64::BITS as usize;

#[derive(Clone, Debug, Default)]
pub(super) struct PlaceSet {
    /// One bit a place.
    words: Vec<u64>,
    /// One bit for each of `words` that is not zero.
    blocks: Vec<u64>,
    /// One bit for each of `blocks` that is not zero: a word of it covers 262,144 places.
    regions: Vec<u64>,
    len: usize,
}

impl PlaceSet {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn insert(&mut self, place: Place) {
        let (word, bit) = split(place as usize);
        let (block, word_bit) = split(word);
        let (region, block_bit) = split(block);
        grow(&mut self.words, word);
        grow(&mut self.blocks, block);
        grow(&mut self.regions, region);
        if let Some(bits) = self.words.get_mut(word) {
            self.len += usize::from(*bits & bit == 0);
            *bits |= bit;
        }
        if let Some(bits) = self.blocks.get_mut(block) {
            *bits |= word_bit;
        }
        if let Some(bits) = self.regions.get_mut(region) {
            *bits |= block_bit;
        }
    }

    pub fn remove(&mut self, place: Place) {
        let (word, bit) = split(place as usize);
        let Some(bits) = self.words.get_mut(word) else { return };
        self.len -= usize::from(*bits & bit != 0);
        *bits &= !bit;
        if *bits != 0 {
            return;
        }
        let (block, word_bit) = split(word);
        let Some(bits) = self.blocks.get_mut(block) else { return };
        *bits &= !word_bit;
        if *bits != 0 {
            return;
        }
        let (region, block_bit) = split(block);
        if let Some(bits) = self.regions.get_mut(region) {
            *bits &= !block_bit;
        }
    }

    /// The first member at or after a place.
    pub fn next_from(&self, place: Place) -> Option<Place> {
        let place = place as usize;
        let word = match first_in(&self.words, place / BITS, place % BITS) {
            Some(found) => return Place::try_from(found).ok(),
            None => place / BITS + 1,
        };
        let word = match first_in(&self.blocks, word / BITS, word % BITS) {
            Some(found) => found,
            None => {
                let block = word / BITS + 1;
                let region = block / BITS;
                let block = first_in(&self.regions, region, block % BITS)
                    .or_else(|| (region + 1..self.regions.len()).find_map(|at| first_in(&self.regions, at, 0)))?;
                first_in(&self.blocks, block, 0)?
            }
        };
        Place::try_from(first_in(&self.words, word, 0)?).ok()
    }

    pub fn iter_from(&self, place: Place) -> impl Iterator<Item = Place> + '_ {
        std::iter::successors(self.next_from(place), |last| self.next_from(last.checked_add(1)?))
    }

    pub fn iter(&self) -> impl Iterator<Item = Place> + '_ {
        self.iter_from(0)
    }

    /// Up to `limit` members after `cursor`, going round at the end, each at most once; moves the cursor on.
    pub fn round(&self, cursor: &mut Place, limit: usize, into: &mut Vec<Place>) {
        let limit = limit.min(self.len);
        let start = into.len();
        into.extend(self.iter_from(*cursor).take(limit));
        let missing = limit - (into.len() - start);
        into.extend(self.iter().take(missing));
        if into.len() > start {
            *cursor = into.last().map_or(0, |last| last.saturating_add(1));
        }
    }
}

fn split(index: usize) -> (usize, u64) {
    (index / BITS, 1 << (index % BITS))
}

fn grow(words: &mut Vec<u64>, index: usize) {
    if words.len() <= index {
        words.resize(index + 1, 0);
    }
}

/// The first set bit of one word at or after `from`, as an index over all words.
fn first_in(words: &[u64], word: usize, from: usize) -> Option<usize> {
    let bits = words.get(word)? & (u64::MAX << from);
    (bits != 0).then(|| word * BITS + bits.trailing_zeros() as usize)
}
