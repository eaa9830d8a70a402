//! The journal's files are damaged while the server is down: the server starts, says how much is gone, and delivers all
//! the rest. (Every byte of a last record and every bit of a segment are in the journal's own tests.)
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::random::Random;
use crate::rig::{are_forgotten, load, machine, options, segment_files, Rig};
use crate::support::clickhouse::{self, Engine};
use crate::support::{wait_until, Metrics, Server};

/// Heartbeats a second.
const RATE: f64 = 2_000.0;
/// Longer than any step here takes on a loaded machine; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// A segment's header, which is written before any record (`journal/format.rs`).
const HEADER_BYTES: usize = 64;
/// A record's header: length, number, two checksums.
const FRAME_HEADER_BYTES: usize = 20;

/// A journal that holds acknowledged heartbeats, and events of their devices, of which none is in ClickHouse, as a killed
/// server leaves it.
struct Backlog {
    /// The data directory; every test works on a copy.
    data: tempfile::TempDir,
    records: u64,
    /// In milliseconds since 1970: what a later server adds of its own (devices that went silent) is newer.
    killed_at: u128,
}

/// What there is of it in ClickHouse in the end.
#[derive(Debug)]
struct Delivered {
    records: u64,
    metrics: Metrics,
    log: String,
}

impl Backlog {
    fn new() -> Self {
        let data = tempfile::tempdir().expect("a folder");
        // Nobody listens there: the journal keeps everything.
        let nowhere = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
        let mut rig = Rig::with_clickhouse(options().data_dir(data.path()), nowhere);
        rig.begin(&load(RATE));
        rig.await_acknowledged(8_000, PATIENCE);
        let acknowledged = rig.end().acked;
        // Events and samples may go on until the kill, which is what ends the backlog.
        let is_counted = wait_until(PATIENCE, || {
            let metrics = rig.server.metrics();
            let others = metrics.get("fleetd_events_told_total") + metrics.get("fleetd_metric_samples_total");
            metrics.get("fleetd_journal_records_total") == acknowledged as f64 + others
        });
        assert!(is_counted, "no heartbeat was refused, so each is a record, as the others are\n{}", rig.server.log());
        let records = rig.server.metrics().get("fleetd_journal_records_total") as u64;
        rig.server.sigkill();
        let killed_at = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis();
        Self { data, records, killed_at }
    }

    /// Damages a copy, starts a server on it, and waits until it has brought what there is into a database of its own.
    fn damaged(&self, engine: &Engine, name: &str, damage: impl FnOnce(&[PathBuf])) -> Delivered {
        let copy = tempfile::tempdir().expect("a folder");
        copy_into(self.data.path(), copy.path());
        damage(&segment_files(copy.path()));
        let segments = segment_files(copy.path());
        let database = format!("damage_{name}");
        let mut server = Server::with(
            options().data_dir(copy.path()).clickhouse(engine.address()).env("FLEETD_CLICKHOUSE_DATABASE", &database),
        );
        // Read, delivered, audited and forgotten: then all damage was met.
        assert!(are_forgotten(&segments), "{name}: the journal is not drained\n{}", server.log());
        let number = |sql: &str| clickhouse::number(engine.address(), &database, sql);
        let rows = format!(
            "(SELECT journal_id, seq FROM heartbeats UNION ALL SELECT journal_id, seq FROM device_events \
             WHERE received_at <= fromUnixTimestamp64Milli({0}) UNION ALL SELECT DISTINCT journal_id, seq \
             FROM server_metrics WHERE received_at <= fromUnixTimestamp64Milli({0}))",
            self.killed_at
        );
        let records = number(&format!("SELECT count() FROM {rows}"));
        assert_eq!(
            number(&format!("SELECT uniqExact(journal_id, seq) FROM {rows}")),
            records,
            "{name}\n{}",
            server.log()
        );
        let delivered = Delivered { records, metrics: server.metrics(), log: server.log() };
        assert_eq!(server.sigterm(), Some(0), "{name}\n{}", server.log());
        delivered
    }
}

fn copy_into(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&target).expect("room");
            copy_into(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("room");
        }
    }
}

/// Where each record of a segment begins.
fn records_of(segment: &[u8]) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut at = HEADER_BYTES;
    while at + FRAME_HEADER_BYTES <= segment.len() {
        let length = u32::from_le_bytes(segment[at..at + 4].try_into().expect("four bytes")) as usize;
        // A sealed segment ends with its footer, which is no record.
        if at + FRAME_HEADER_BYTES + length > segment.len() || &segment[at..at + 4] == b"FLTD" {
            break;
        }
        starts.push(at);
        at += FRAME_HEADER_BYTES + length;
    }
    starts
}

#[test]
fn a_torn_tail_costs_its_record_and_nothing_else() {
    let _turn = machine();
    let mut random = Random::seeded("torn tails");
    let folder = tempfile::tempdir().expect("a folder");
    let engine = Engine::start(folder.path());
    let backlog = Backlog::new();
    let whole = backlog.damaged(&engine, "none", |_| ());
    assert_eq!(whole.records, backlog.records, "{}", whole.log);
    assert_eq!(whole.metrics.get("fleetd_journal_torn_bytes_total"), 0.0);
    for cut in 0..6 {
        let mut lost = 0;
        let mut torn = 0;
        let delivered = backlog.damaged(&engine, &format!("cut_{cut}"), |segments| {
            let newest = segments.last().expect("a segment");
            let bytes = fs::read(newest).expect("readable");
            let records = records_of(&bytes);
            // In the last record, in its header, and in some record before.
            let record = match cut {
                0..=3 => records.len() - 1,
                _ => records.len() - 1 - random.below(records.len() as u64 / 2) as usize,
            };
            let start = records[record];
            let end = records.get(record + 1).copied().unwrap_or(bytes.len());
            let at = match cut {
                0 => start + 1,
                1 => start + FRAME_HEADER_BYTES,
                2 => end - 1,
                _ => start + 1 + random.below((end - start - 1) as u64) as usize,
            };
            lost = (records.len() - record) as u64;
            torn = at - start;
            fs::OpenOptions::new().write(true).open(newest).and_then(|file| file.set_len(at as u64)).expect("cut");
        });
        assert_eq!(delivered.records, backlog.records - lost, "cut {cut}: {delivered:?}");
        assert_eq!(delivered.metrics.get("fleetd_journal_torn_bytes_total"), torn as f64, "cut {cut}: {delivered:?}");
    }
}

#[test]
fn flipped_bits_cost_the_records_that_they_hit_and_are_counted() {
    let _turn = machine();
    let mut random = Random::seeded("flipped bits");
    let folder = tempfile::tempdir().expect("a folder");
    let engine = Engine::start(folder.path());
    let backlog = Backlog::new();
    for round in 0..4 {
        let flips = 1 + round as usize * 3;
        let mut hit = 0;
        let delivered = backlog.damaged(&engine, &format!("flips_{round}"), |segments| {
            for (number, path) in segments.iter().enumerate() {
                let mut bytes = fs::read(path).expect("readable");
                let records = records_of(&bytes);
                // Not the last record of the newest segment: damage there is a torn tail.
                let choice = records.len() as u64 - u64::from(number + 1 == segments.len());
                let mut chosen: Vec<usize> = (0..flips).map(|_| random.below(choice) as usize).collect();
                chosen.sort_unstable();
                chosen.dedup();
                for record in &chosen {
                    let end = records.get(record + 1).copied().unwrap_or(bytes.len());
                    // In the payload: a flip in a header is met in the journal's own tests, bit by bit.
                    let from = records[*record] + FRAME_HEADER_BYTES;
                    let end = end.min(
                        from + u32::from_le_bytes(
                            bytes[records[*record]..records[*record] + 4].try_into().expect("four bytes"),
                        ) as usize,
                    );
                    bytes[from + random.below((end - from) as u64) as usize] ^= 1 << random.below(8);
                }
                hit += chosen.len() as u64;
                fs::write(path, bytes).expect("damaged");
            }
        });
        assert_eq!(delivered.records, backlog.records - hit, "round {round}: {delivered:?}");
        let counted = delivered.metrics.get("fleetd_journal_quarantined_records_total");
        assert_eq!(counted, hit as f64, "round {round}: {delivered:?}");
        assert!(delivered.metrics.get("fleetd_journal_quarantined_stretches_total") >= 1.0, "round {round}");
    }
}
