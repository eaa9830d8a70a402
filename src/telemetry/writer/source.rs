//! Reads the journal into batches, and knows where the next one begins.
use super::batch::{Batch, BatchBuilder};
use crate::telemetry::journal::{Journal, ReadError, Reader, Seq};

/// Records and bytes of one read. A batch ends with a whole read, so it may be larger than its limits by this much.
pub const READ_RECORDS: usize = 4_096;
pub const READ_BYTES: usize = 1 << 20;

/// A place in the journal.
pub struct Source {
    journal: Journal,
    reader: Reader,
    next: Seq,
}

impl Source {
    pub fn at(journal: &Journal, next: Seq) -> Self {
        Self { journal: journal.clone(), reader: journal.reader(next), next }
    }

    /// The first seq that is not read yet.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// The next batch: full, or all through `last_inclusive` that is written by now. `None` when there is nothing,
    /// or nothing that can be read: [`Self::next`] is then behind it.
    pub fn batch(&mut self, last_inclusive: Seq) -> Result<Option<Batch>, ReadError> {
        self.read(last_inclusive, BatchBuilder::is_full)
    }

    /// All through `last_inclusive`, however much it is: a batch that was decided before is the same again.
    pub fn exactly_through(&mut self, last_inclusive: Seq) -> Result<Option<Batch>, ReadError> {
        self.read(last_inclusive, |_| false)
    }

    fn read(
        &mut self,
        last_inclusive: Seq,
        is_enough: impl Fn(&BatchBuilder) -> bool,
    ) -> Result<Option<Batch>, ReadError> {
        let mut builder = BatchBuilder::new(self.journal.id(), self.next);
        while !is_enough(&builder) {
            match self.reader.next_batch_through(last_inclusive, READ_RECORDS, READ_BYTES) {
                Ok(Some(read)) => read.iter().for_each(|(seq, record)| builder.push(seq, record)),
                Ok(None) => break,
                // What was read so far is in the builder alone: begin again from the same place.
                Err(error) => {
                    self.reader = self.journal.reader(self.next);
                    return Err(error);
                }
            }
        }
        let batch = builder.finish();
        self.next = match &batch {
            Some(batch) => batch.range.last + 1,
            None => self.next.max(self.reader.read_through() + 1),
        };
        Ok(batch)
    }
}
