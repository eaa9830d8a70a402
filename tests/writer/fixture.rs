//! What every test of the writer needs: an engine, a database of its own, a journal, and counting.
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fleetd::engine::{EngineOptions, EngineProcess};
use fleetd::telemetry::clickhouse::{ClickHouse, ClickHouseConfig};
use fleetd::telemetry::journal::{Journal, JournalOptions, Seq, MIN_SEGMENT_BYTES};
use fleetd::telemetry::row::{encode_heartbeat, KnownDevice, Table, UnixMillis};
use fleetd::telemetry::schema::{migrate, Retention};
use fleetd::telemetry::writer::{self, WriterHandle, WriterOptions};
use fleetd_proto::v1::{HeartbeatRequest, ProcessInfo, SystemStats};
use tokio::sync::OnceCell;

/// Long enough for a slow machine, short enough to notice a hang.
pub const SOON: Duration = Duration::from_secs(120);

/// Segments of about 2,000 heartbeats, so that tests see many of them sealed, audited and trimmed.
pub const SMALL_SEGMENT_BYTES: u64 = if MIN_SEGMENT_BYTES > 128 << 10 { MIN_SEGMENT_BYTES } else { 128 << 10 };

pub async fn start_engine(data_dir: &Path) -> EngineProcess {
    let options = EngineOptions::new(env!("CARGO_BIN_EXE_fleetd"), data_dir);
    EngineProcess::start(options).await.expect("the engine starts")
}

/// The engine that tests share which do not kill it; it ends with the test process.
pub async fn shared_engine() -> &'static EngineProcess {
    static ENGINE: OnceCell<(EngineProcess, tempfile::TempDir)> = OnceCell::const_new();
    let start = || async {
        let dir = tempfile::tempdir().expect("a folder");
        (start_engine(dir.path()).await, dir)
    };
    &ENGINE.get_or_init(start).await.0
}

/// A name that no other test has.
pub fn database_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn config(url: &str, database: &str) -> ClickHouseConfig {
    ClickHouseConfig {
        database: database.to_owned(),
        insert_timeout: Duration::from_secs(2),
        query_timeout: Duration::from_secs(10),
        ..ClickHouseConfig::new(url)
    }
}

/// A journal, its tables, and what was put into it.
pub struct Fixture {
    pub dir: tempfile::TempDir,
    /// Straight to the engine, whatever stands between it and the writer.
    pub clickhouse: ClickHouse,
    pub database: String,
    pub journal: Journal,
    pub options: WriterOptions,
    pub heartbeats: u64,
    pub processes: u64,
    pub last_seq: Seq,
}

#[derive(Debug, PartialEq, Eq, clickhouse::Row, serde::Deserialize)]
pub struct Stored {
    pub rows: u64,
    pub distinct: u64,
}

impl Fixture {
    pub async fn new() -> Self {
        Self::on(&shared_engine().await.url()).await
    }

    pub async fn on(url: &str) -> Self {
        let database = database_name();
        let clickhouse = ClickHouse::new(&config(url, &database));
        migrate(&clickhouse, &Retention::default()).await.expect("migrates");
        let dir = tempfile::tempdir().expect("a folder");
        let mut options = WriterOptions::new(dir.path());
        options.audit_every = Duration::from_millis(300);
        let journal = open_journal(dir.path());
        Self { dir, clickhouse, database, journal, options, heartbeats: 0, processes: 0, last_seq: 0 }
    }

    pub fn start_writer(&self) -> WriterHandle {
        self.start_writer_through(self.clickhouse.clone())
    }

    pub fn start_writer_through(&self, clickhouse: ClickHouse) -> WriterHandle {
        writer::start(self.journal.clone(), clickhouse, self.options.clone()).expect("the writer starts")
    }

    /// Everything on disk, nothing in the way of whoever changes the files.
    pub async fn close_journal(&mut self) {
        self.journal.close().await;
    }

    /// Closes the journal as a crash of the process would not: it is opened again from its files.
    pub fn reopen_journal(&mut self) {
        // Dropping the last handle ends the keeper; until then the folder is in use.
        self.journal = open_journal_after(std::mem::replace(&mut self.journal, scratch_journal()), self.dir.path());
    }

    /// As after a crash: from the files as they are, without what a clean stop writes.
    pub fn reopen_journal_after_crash(&mut self) {
        let (journal, crashed) = (self.dir.path().join("journal"), self.dir.path().join("crashed"));
        std::fs::create_dir(&crashed).expect("a new folder");
        for entry in std::fs::read_dir(&journal).expect("the journal") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), crashed.join(entry.file_name())).expect("copied");
        }
        drop(std::mem::replace(&mut self.journal, scratch_journal()));
        std::fs::remove_dir_all(&journal).expect("closed");
        std::fs::rename(&crashed, &journal).expect("in its place");
        self.journal = open_journal(self.dir.path());
    }

    /// Appends heartbeats, some with processes, and waits until they are written.
    pub async fn append(&mut self, heartbeats: u64) {
        let mut ticket = None;
        let mut record = Vec::new();
        for _ in 0..heartbeats {
            let n = self.heartbeats;
            let processes = if n.is_multiple_of(5) { n % 3 } else { 0 };
            record.clear();
            let (id, heartbeat) = (format!("device-{}", n % 97), heartbeat(n, processes));
            encode_heartbeat(&id, &KnownDevice::default(), &heartbeat, UnixMillis::now(), &mut record)
                .expect("a valid heartbeat");
            ticket = Some(self.journal.append(&record).expect("taken"));
            self.heartbeats += 1;
            self.processes += processes;
        }
        if let Some(ticket) = ticket {
            self.last_seq = ticket.committed().await.expect("written");
        }
    }

    /// Appends one record as it is.
    pub async fn append_raw(&mut self, record: &[u8]) -> Seq {
        let seq = self.journal.append(record).expect("taken").committed().await.expect("written");
        self.last_seq = seq;
        seq
    }

    pub async fn stored(&self, table: Table) -> Stored {
        let sql = format!("SELECT count() AS rows, uniqExact(seq, row_index) AS distinct FROM {}", table.name());
        let counted = self.clickhouse.rows::<Stored>("count", self.clickhouse.query(&sql)).await;
        counted.expect("counts").pop().expect("a row")
    }

    pub async fn execute(&self, sql: &str) {
        self.clickhouse.execute("run a test's statement", self.clickhouse.query(sql)).await.expect(sql);
    }

    /// The promise: every acknowledged row is there once.
    pub async fn assert_exactly_once(&self) {
        let heartbeats = self.stored(Table::Heartbeats).await;
        assert_eq!(heartbeats, Stored { rows: self.heartbeats, distinct: self.heartbeats }, "heartbeats");
        let processes = self.stored(Table::Processes).await;
        assert_eq!(processes, Stored { rows: self.processes, distinct: self.processes }, "processes");
    }
}

pub fn heartbeat(n: u64, processes: u64) -> HeartbeatRequest {
    HeartbeatRequest {
        version: "1.2.3".into(),
        stats: Some(SystemStats {
            cpu_percent: n as f64,
            memory_used_mb: n,
            metrics: [("queue_depth".to_owned(), n as f64)].into_iter().collect(),
            ..Default::default()
        }),
        processes: (0..processes).map(|pid| ProcessInfo { pid: pid as u32, ..Default::default() }).collect(),
        ..Default::default()
    }
}

pub fn open_journal(dir: &Path) -> Journal {
    let options = JournalOptions { segment_bytes: SMALL_SEGMENT_BYTES, ..JournalOptions::new(dir.join("journal")) };
    Journal::open(options).expect("the journal opens").0
}

fn open_journal_after(old: Journal, dir: &Path) -> Journal {
    drop(old);
    open_journal(dir)
}

/// Stands in for the moment between two openings.
fn scratch_journal() -> Journal {
    let dir = tempfile::tempdir().expect("a folder");
    open_journal(dir.path())
}

/// Waits for a condition that a failure of the code would never meet.
pub async fn eventually<F: std::future::Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + SOON;
    while !condition().await {
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A small generator of pseudo-random numbers (splitmix64), so that a failing test names its seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
