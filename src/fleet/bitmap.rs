//! A set of rows of one chunk.

/// Rows of a chunk: a page of lists touches few chunks, an exclusive lock stops few devices, and the columns of a
/// chunk (some 10 KiB each) stay in a core's first cache while a query works on it.
pub const ROWS: usize = 1_024;

const WORDS: usize = ROWS / 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bitmap([u64; WORDS]);

impl Bitmap {
    pub fn insert(&mut self, row: usize) {
        self.0[row / 64] |= 1 << (row % 64);
    }

    pub fn remove(&mut self, row: usize) {
        self.0[row / 64] &= !(1 << (row % 64));
    }

    pub fn contains(&self, row: usize) -> bool {
        self.0[row / 64] >> (row % 64) & 1 == 1
    }

    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The rows for which `keep` holds. What `keep` reads is read once a row.
    pub fn filter(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let mut kept = Self::default();
        for (at, word) in self.0.iter().enumerate() {
            let mut left = *word;
            let mut bits = 0;
            while left != 0 {
                let bit = left.trailing_zeros() as usize;
                bits |= u64::from(keep(at * 64 + bit)) << bit;
                left &= left - 1;
            }
            kept.0[at] = bits;
        }
        kept
    }

    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                Some(at * 64 + bit)
            })
        })
    }

    pub fn without(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word &= !other);
        self
    }

    pub fn with(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_on_the_edges_of_words_are_kept_apart() {
        let edges = [0, 1, 63, 64, 127, 128, ROWS - 1];
        let mut set = Bitmap::default();
        edges.iter().for_each(|row| set.insert(*row));
        assert_eq!(set.iter().collect::<Vec<_>>(), edges);
        assert_eq!(set.len(), edges.len());
        let odd = set.filter(|row| row % 2 == 1);
        assert_eq!(odd.iter().collect::<Vec<_>>(), [1, 63, 127, ROWS - 1]);
        assert_eq!(set.without(&odd).with(&odd), set);
        set.remove(64);
        assert!(!set.contains(64) && set.contains(63) && !set.is_empty());
    }
}
