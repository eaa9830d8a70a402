//! Random histories of appends, commits, lost clients, failed writes, trims, crashes and restarts, against a model.
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Action {
    Append(usize),
    AppendMany(Vec<usize>),
    /// Waits for the ticket at this place, if there is one.
    Commit(usize),
    Drop(usize),
    /// The next write stores so many bytes and fails.
    FailWrite(usize),
    /// Trims through this part of what is written.
    Trim(u8),
    Crash,
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (0..300_usize).prop_map(Action::Append),
        2 => proptest::collection::vec(0..200_usize, 0..12).prop_map(Action::AppendMany),
        6 => (0..8_usize).prop_map(Action::Commit),
        2 => (0..8_usize).prop_map(Action::Drop),
        1 => (0..600_usize).prop_map(Action::FailWrite),
        1 => any::<u8>().prop_map(Action::Trim),
        1 => Just(Action::Crash),
        1 => Just(Action::Restart),
    ]
}

/// What must be in the journal, and what may be: records whose fate nobody was told.
#[derive(Default)]
struct Model {
    certain: BTreeMap<Seq, Vec<u8>>,
    /// Of dropped tickets.
    possible: BTreeMap<Seq, Vec<u8>>,
    open: Vec<(Ticket, BTreeMap<Seq, Vec<u8>>)>,
    /// First number that no trim gave up.
    first: Seq,
    highest: Seq,
    content: u8,
}

impl Model {
    fn fresh(&mut self, length: usize) -> Vec<u8> {
        self.content = self.content.wrapping_add(1);
        vec![self.content; length]
    }

    fn opened(&mut self, ticket: Ticket, payloads: Vec<Vec<u8>>) {
        assert!(ticket.first_seq() > self.highest, "numbers rise over all restarts");
        self.highest = self.highest.max(ticket.seq());
        let records = (ticket.first_seq()..).zip(payloads).collect();
        self.open.push((ticket, records));
    }

    /// Everything certain is there, and nothing that is neither certain nor possible. After a start what is found is
    /// certain, and the rest is gone for good.
    fn verify(&mut self, journal: &Journal) {
        for at in (0..self.open.len()).rev() {
            self.give_up(at);
        }
        let found: BTreeMap<_, _> = read_all(journal).into_iter().collect();
        for (seq, payload) in &self.certain {
            assert_eq!(found.get(seq), Some(payload), "record {seq} is lost or changed");
        }
        for (seq, payload) in &found {
            let known = self.certain.get(seq).or_else(|| self.possible.get(seq));
            assert_eq!(known, Some(payload), "record {seq} was never promised");
        }
        self.certain = found;
        self.possible.clear();
    }

    fn give_up(&mut self, at: usize) {
        let (ticket, records) = self.open.remove(at);
        drop(ticket);
        self.possible.extend(records);
    }

    fn settle(&mut self, at: usize) {
        let (ticket, records) = self.open.remove(at);
        if block_on(ticket.committed()).is_ok() {
            self.certain.extend(records.into_iter().filter(|(seq, _)| *seq >= self.first));
        }
    }
}

fn run(actions: Vec<Action>, sync: SyncMode) {
    let mut dir = folder();
    let at = |dir: &TempDir| JournalOptions { sync, segment_bytes: 1024, ..options(dir.path()) };
    let (mut journal, mut plan) = open_with_faults(at(&dir));
    let mut model = Model::default();
    for action in actions {
        match action {
            Action::Append(length) => {
                let payload = model.fresh(length);
                let ticket = journal.append(&payload).expect("room");
                model.opened(ticket, vec![payload]);
            }
            Action::AppendMany(lengths) => {
                let payloads: Vec<_> = lengths.into_iter().map(|length| model.fresh(length)).collect();
                let ticket = journal.append_many(&payloads).expect("room");
                model.opened(ticket, payloads);
            }
            Action::Commit(at) if at < model.open.len() => model.settle(at),
            Action::Drop(at) if at < model.open.len() => model.give_up(at),
            Action::Commit(_) | Action::Drop(_) => {}
            Action::FailWrite(short) => *plan.write.lock() = Some((short, libc::ENOSPC)),
            Action::Trim(part) => {
                let through = journal.written_seq() * u64::from(part) / 255;
                journal.trim_through(through).expect("written");
                let first = journal.first_seq();
                assert!(!model.certain.keys().any(|seq| (through + 1..first).contains(seq)), "trimmed too much");
                model.first = first;
                model.certain.retain(|seq, _| *seq >= first);
                model.possible.retain(|seq, _| *seq >= first);
                // Else a crash may bring some back, which is allowed, but not modelled.
                wait_until("deletion", || segment_files(dir.path()).len() == journal.segments().len());
            }
            Action::Crash => {
                dir = crash(dir.path());
                (journal, plan) = open_with_faults(at(&dir));
                model.verify(&journal);
            }
            Action::Restart => {
                plan.write.lock().take();
                block_on(journal.close());
                while !model.open.is_empty() {
                    model.settle(0);
                }
                drop(journal);
                (journal, plan) = open_with_faults(at(&dir));
                model.verify(&journal);
            }
        }
    }
    plan.write.lock().take();
    while !model.open.is_empty() {
        model.settle(0);
    }
    model.verify(&journal);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_keeps_what_was_committed_and_nothing_that_failed(
        actions in proptest::collection::vec(action(), 1..80),
        sync in prop_oneof![
            Just(SyncMode::Never),
            Just(SyncMode::Interval(std::time::Duration::from_millis(1))),
            Just(SyncMode::Always),
        ],
    ) {
        run(actions, sync);
    }
}
