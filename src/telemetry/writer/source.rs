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

    /// All through `last_inclusive`, however much it is: a batch that was decided before has the same range again.
    ///
    /// Its last records may be gone since: damaged, or never on the disk when the machine died. Nothing comes in their
    /// place, since the journal uses no number twice, so the range is over all the same.
    pub fn exactly_through(&mut self, last_inclusive: Seq) -> Result<Option<Batch>, ReadError> {
        let mut batch = self.read(last_inclusive, |_| false)?;
        if let Some(batch) = &mut batch {
            batch.range.last = batch.range.last.max(last_inclusive);
        }
        self.next = self.next.max(last_inclusive + 1);
        Ok(batch)
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

#[cfg(test)]
mod tests {
    use super::super::batch::{tests::record, SeqRange};
    use super::*;
    use crate::telemetry::journal::{JournalOptions, SyncMode};

    /// A journal of `records` records, written.
    async fn journal(dir: &std::path::Path, records: u64) -> Journal {
        let options =
            JournalOptions { dir: dir.into(), sync: SyncMode::Never, segment_bytes: 1 << 20, capacity_bytes: 8 << 20 };
        let (journal, _) = Journal::open(options).expect("a journal in a new folder");
        for _ in 0..records {
            journal.append(&record(1, 1)).expect("room").committed().await.expect("written");
        }
        journal
    }

    fn range(batch: Result<Option<Batch>, ReadError>) -> Option<(SeqRange, u64)> {
        batch.expect("readable").map(|batch| (batch.range, batch.records))
    }

    /// As after a power loss that took the tail of the journal and left the checkpoint, which is fsynced.
    #[tokio::test]
    async fn a_range_whose_last_records_are_gone_is_over_once_it_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let journal = journal(dir.path(), 5).await;
        let mut source = Source::at(&journal, 1);
        assert_eq!(range(source.exactly_through(3)), Some((SeqRange { first: 1, last: 3 }, 3)));
        assert_eq!(range(source.exactly_through(8)), Some((SeqRange { first: 4, last: 8 }, 2)));
        assert_eq!(source.next(), 9);
        assert_eq!(range(source.exactly_through(12)), None);
        assert_eq!(source.next(), 13);
    }

    #[tokio::test]
    async fn a_range_whose_last_record_is_damaged_is_the_same_range() {
        let dir = tempfile::tempdir().expect("a folder");
        let journal = journal(dir.path(), 3).await;
        let segment = dir.path().join("00000000000000000001.segment");
        let mut bytes = std::fs::read(&segment).expect("the segment");
        *bytes.last_mut().expect("records") ^= 1;
        std::fs::write(&segment, bytes).expect("room");
        let mut source = Source::at(&journal, 1);
        assert_eq!(range(source.exactly_through(3)), Some((SeqRange { first: 1, last: 3 }, 2)));
        assert_eq!(source.next(), 4);
    }
}
