//! What the server acknowledged, device by device: the fleet's own memory, against which ClickHouse is audited.
//!
//! A heartbeat's identity is the pair of device id and timestamp in milliseconds, which the generator makes strictly
//! increasing for each device. A device has one heartbeat in flight at a time, so its trail is in order as it grows
//! and is kept as differences: two to three bytes a heartbeat at usual rates.

/// The memory that all trails of a run may take, in bytes: some 400 million heartbeats, ninety minutes at 70,000 a
/// second. A run that reaches it ends early and says so, rather than forgetting what it has to audit.
pub(crate) const MAX_LEDGER_BYTES: usize = 1 << 30;

/// One heartbeat that was sent and not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Milliseconds since the Unix epoch, as sent in `HeartbeatRequest.timestamp`.
    pub timestamp_ms: i64,
    /// True: it must be stored exactly once. False: it was sent but its answer never came (or said that the server
    /// gave up half way), so it may be stored once or not at all. It is never sent again.
    pub acknowledged: bool,
}

/// The heartbeats of one device, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    /// LEB128 of `(difference to the previous timestamp) << 1 | acknowledged`.
    bytes: Vec<u8>,
    last_ms: i64,
    acknowledged: u64,
    unknown: u64,
}

impl Trail {
    /// Adds a heartbeat later than all before it; returns the bytes that it took.
    ///
    /// # Panics
    /// If the timestamp does not increase: the audit rests on that.
    pub fn push(&mut self, entry: Entry) -> usize {
        assert!(entry.timestamp_ms > self.last_ms, "timestamps of a device's heartbeats must increase");
        let before = self.bytes.len();
        let mut rest = (entry.timestamp_ms.abs_diff(self.last_ms) << 1) | u64::from(entry.acknowledged);
        while rest >= 0x80 {
            self.bytes.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        self.bytes.push(rest as u8);
        self.last_ms = entry.timestamp_ms;
        *(if entry.acknowledged { &mut self.acknowledged } else { &mut self.unknown }) += 1;
        self.bytes.len() - before
    }

    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let mut bytes = self.bytes.iter();
        let mut last_ms = 0_i64;
        std::iter::from_fn(move || {
            let (mut value, mut shift) = (0_u64, 0);
            loop {
                let byte = *bytes.next()?;
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            last_ms = last_ms.wrapping_add_unsigned(value >> 1);
            Some(Entry { timestamp_ms: last_ms, acknowledged: value & 1 == 1 })
        })
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Heartbeats sent whose outcome is unknown.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    pub(crate) fn len(&self) -> u64 {
        self.acknowledged + self.unknown
    }

    /// The memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn last_ms(&self) -> i64 {
        self.last_ms
    }
}

/// The trails of a fleet, sorted by device id as ClickHouse sorts strings: by bytes.
#[derive(Debug, Default)]
pub struct Ledger<'a> {
    trails: Vec<(&'a str, &'a Trail)>,
}

impl<'a> Ledger<'a> {
    /// Devices that never sent anything may be left in; ids must be unique.
    pub fn new(trails: impl IntoIterator<Item = (&'a str, &'a Trail)>) -> Self {
        let mut trails: Vec<_> = trails.into_iter().filter(|(_, trail)| trail.len() > 0).collect();
        trails.sort_unstable_by_key(|(id, _)| *id);
        Self { trails }
    }

    pub fn trails(&self) -> &[(&'a str, &'a Trail)] {
        &self.trails
    }

    pub fn acknowledged(&self) -> u64 {
        self.trails.iter().map(|(_, trail)| trail.acknowledged()).sum()
    }

    pub fn unknown(&self) -> u64 {
        self.trails.iter().map(|(_, trail)| trail.unknown()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_gives_back_exactly_what_was_put_in() {
        let start = 1_790_000_000_000;
        let entries: Vec<_> = [0, 1, 2, 65, 66, 20_000, 3_000_000, 90_000_000_000]
            .iter()
            .enumerate()
            .map(|(n, offset)| Entry { timestamp_ms: start + offset, acknowledged: n % 3 != 1 })
            .collect();
        let mut trail = Trail::default();
        let bytes: usize = entries.iter().map(|entry| trail.push(*entry)).sum();
        assert_eq!(trail.entries().collect::<Vec<_>>(), entries);
        assert_eq!((trail.acknowledged(), trail.unknown()), (5, 3));
        assert_eq!(bytes, trail.bytes.len());
    }

    #[test]
    fn a_second_of_heartbeats_takes_two_bytes_each() {
        let mut trail = Trail::default();
        trail.push(Entry { timestamp_ms: 1_790_000_000_000, acknowledged: true });
        for n in 1..=1000 {
            let entry = Entry { timestamp_ms: 1_790_000_000_000 + n * 1000, acknowledged: true };
            assert!(trail.push(entry) <= 2);
        }
    }

    #[test]
    #[should_panic(expected = "must increase")]
    fn a_timestamp_that_does_not_increase_is_a_bug_of_the_generator() {
        let mut trail = Trail::default();
        let entry = Entry { timestamp_ms: 5, acknowledged: true };
        trail.push(entry);
        trail.push(entry);
    }
}
