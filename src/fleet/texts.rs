//! The texts of one chunk, each kept once: fleets repeat themselves (types, versions, sites), so a row holds numbers,
//! and a query looks at each different text once, not at each row's.
//!
//! Texts lie end to end in one buffer, which costs a text 20 bytes beside its own; one that no row uses any more is
//! given back, so what a device invents (a new version with each heartbeat) is not kept.
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use hashbrown::HashTable;

/// Number of a text in its chunk. Good while a row uses the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol(u32);

impl Symbol {
    /// Stands for no text, such as the type of a device that has none.
    pub const NONE: Self = Self(u32::MAX);

    pub fn index(self) -> usize {
        self.0 as usize
    }

    pub(super) fn number(self) -> u32 {
        self.0
    }

    pub(super) fn from_number(number: u32) -> Self {
        Self(number)
    }
}

#[derive(Clone, Copy)]
struct Span {
    at: u32,
    bytes: u32,
    /// Rows' uses of it; 0 is a free place.
    uses: u32,
}

#[derive(Default)]
pub struct Texts {
    buffer: String,
    spans: Vec<Span>,
    by_text: HashTable<u32>,
    /// Places of `spans` that are free.
    free: Vec<u32>,
    /// Bytes of `buffer` that no text has.
    garbage: usize,
}

/// Garbage below this is not worth moving the texts for.
const MIN_GARBAGE: usize = 4 << 10;

/// Seeded anew in each process: no device can choose texts that collide.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl Texts {
    /// The symbol of `text`, used once more.
    pub fn intern(&mut self, text: &str) -> Symbol {
        let hash = HASHER.hash_one(text);
        if let Some(&number) = self.by_text.find(hash, |number| self.text(*number) == text) {
            self.spans[number as usize].uses += 1;
            return Symbol(number);
        }
        // At most 1,024 rows with texts of some KiB: far below 4 GiB.
        let span = Span { at: self.buffer.len() as u32, bytes: text.len() as u32, uses: 1 };
        reserve(self.buffer.len(), self.buffer.capacity(), text.len(), |room| self.buffer.reserve_exact(room));
        self.buffer.push_str(text);
        let number = match self.free.pop() {
            Some(number) => {
                self.spans[number as usize] = span;
                number
            }
            None => {
                reserve(self.spans.len(), self.spans.capacity(), 1, |room| self.spans.reserve_exact(room));
                self.spans.push(span);
                (self.spans.len() - 1) as u32
            }
        };
        let (buffer, spans) = (&self.buffer, &self.spans);
        self.by_text.insert_unique(hash, number, |number| HASHER.hash_one(text_of(buffer, spans, *number)));
        Symbol(number)
    }

    /// As [`Self::intern`]; an empty text is [`Symbol::NONE`].
    pub fn intern_unless_empty(&mut self, text: &str) -> Symbol {
        if text.is_empty() {
            return Symbol::NONE;
        }
        self.intern(text)
    }

    /// Takes back one use.
    pub fn release(&mut self, symbol: Symbol) {
        if symbol == Symbol::NONE {
            return;
        }
        let span = &mut self.spans[symbol.index()];
        span.uses -= 1;
        if span.uses > 0 {
            return;
        }
        let (number, bytes) = (symbol.number(), span.bytes as usize);
        let hash = HASHER.hash_one(self.text(number));
        if let Ok(found) = self.by_text.find_entry(hash, |candidate| *candidate == number) {
            found.remove();
        }
        self.free.push(number);
        self.garbage += bytes;
        if self.garbage > MIN_GARBAGE.max(self.buffer.len() / 2) {
            self.compact();
        }
    }

    /// `None` for [`Symbol::NONE`].
    pub fn get(&self, symbol: Symbol) -> Option<&str> {
        (symbol != Symbol::NONE).then(|| self.text(symbol.number()))
    }

    /// The symbol of a text that some row uses.
    pub fn find(&self, text: &str) -> Option<Symbol> {
        self.by_text.find(HASHER.hash_one(text), |number| self.text(*number) == text).copied().map(Symbol)
    }

    /// Above the index of every symbol.
    pub fn end(&self) -> usize {
        self.spans.len()
    }

    fn text(&self, number: u32) -> &str {
        text_of(&self.buffer, &self.spans, number)
    }

    fn compact(&mut self) {
        let mut buffer = String::with_capacity(self.buffer.len() - self.garbage);
        for span in self.spans.iter_mut().filter(|span| span.uses > 0) {
            let at = buffer.len() as u32;
            buffer.push_str(&self.buffer[span.at as usize..][..span.bytes as usize]);
            span.at = at;
        }
        (self.buffer, self.garbage) = (buffer, 0);
    }
}

/// Makes room by an eighth at a time. Doubling would leave a quarter of a million devices' texts unused on average.
fn reserve(length: usize, capacity: usize, more: usize, reserve_exact: impl FnOnce(usize)) {
    if capacity - length < more {
        reserve_exact(more.max(length / 8 + 64));
    }
}

fn text_of<'a>(buffer: &'a str, spans: &[Span], number: u32) -> &'a str {
    let span = spans[number as usize];
    &buffer[span.at as usize..][..span.bytes as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once_and_given_back_with_its_last_use() {
        let mut texts = Texts::default();
        let first = texts.intern("größe");
        assert_eq!(texts.intern("größe"), first);
        assert_eq!(texts.get(first), Some("größe"));
        texts.release(first);
        assert_eq!(texts.find("größe"), Some(first));
        texts.release(first);
        assert_eq!(texts.find("größe"), None);
        assert_eq!(texts.intern("other"), first, "its number is used again");
        assert_eq!(texts.get(Symbol::NONE), None);
        texts.release(Symbol::NONE);
    }

    #[test]
    fn texts_that_come_and_go_for_ever_need_no_more_room() {
        let mut texts = Texts::default();
        let kept: Vec<_> = (0..100).map(|n| texts.intern(&format!("kept-{n}"))).collect();
        for n in 0..100_000 {
            let symbol = texts.intern(&format!("version-{n}"));
            texts.release(symbol);
        }
        assert!(texts.buffer.len() < 64 << 10, "{} bytes", texts.buffer.len());
        assert!(texts.end() < 200, "{} places", texts.end());
        for (n, symbol) in kept.into_iter().enumerate() {
            assert_eq!(texts.get(symbol), Some(format!("kept-{n}").as_str()));
        }
    }
}
