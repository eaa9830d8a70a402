//! What the tests of this folder share: a server under load from a fleet that remembers what was acknowledged.
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fleetd_loadtest::{
    verify, ClickHouse, Extras, Fleet, FleetOptions, Load, Progress, Protocol, Report, Run, Target, Verdict,
};
use tokio::runtime::Runtime;

use crate::support::{clickhouse, wait_until, Options, Server, ADMIN_KEY};

/// Simulated devices; each has one heartbeat in flight at most.
pub const DEVICES: usize = 200;
/// Processes that each heartbeat reports: rows of a second table, so that a batch is more than one insert.
pub const PROCESSES: usize = 2;
/// How long the server may take to bring all of a backlog of these tests into ClickHouse. Ten times what it takes on
/// two cores.
pub const CATCH_UP: Duration = Duration::from_secs(60);

/// Tests that load the machine take turns, so that each has it for itself; the others run beside them.
pub fn machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    // A test that failed while it had its turn is no reason for the others not to run.
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tests that mostly wait take turns of their own.
pub fn waiting_room() -> MutexGuard<'static, ()> {
    static WAITING: Mutex<()> = Mutex::new(());
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A rate that leaves the machine room for what the tests do beside it, with rows of two tables.
pub fn load(rate: f64) -> Load {
    Load {
        protocol: Protocol::Connect,
        connections: 32,
        rate: Some(rate),
        timeout: Duration::from_secs(10),
        keep_ledger: true,
        extras: Extras { processes: PROCESSES, metrics: 2, all_readings: false },
        ..Load::default()
    }
}

/// Options of a server whose journal changes segments about once a second under these loads, so that sealing, auditing
/// and deleting go on all the time.
pub fn options() -> Options {
    Options::default().unlimited().env("FLEETD_JOURNAL_SEGMENT_MB", "1")
}

pub struct Rig {
    pub server: Server,
    /// Where ClickHouse is when it is not the server's own.
    pub external: Option<SocketAddr>,
    pub database: &'static str,
    /// Processes that each heartbeat of the load reports.
    processes: usize,
    runtime: Runtime,
    fleet: Option<Fleet>,
    run: Option<Run>,
}

impl Rig {
    /// A server with a registered fleet, and no load yet.
    pub fn start(options: Options) -> Self {
        let server = Server::with(options);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let fleet_options = FleetOptions {
            target: target(server.http()),
            admin_key: Some(ADMIN_KEY.to_owned()),
            protocol: Protocol::Connect,
            devices: DEVICES,
            id_prefix: Some("chaos".to_owned()),
            keys: None,
        };
        let fleet = runtime.block_on(Fleet::register(&fleet_options, |_| ())).expect("the fleet is registered");
        Self {
            server,
            external: None,
            database: "fleetd",
            processes: PROCESSES,
            runtime,
            fleet: Some(fleet),
            run: None,
        }
    }

    pub fn with_clickhouse(options: Options, address: SocketAddr) -> Self {
        let mut rig = Self::start(options.clickhouse(address));
        rig.external = Some(address);
        rig
    }

    pub fn begin(&mut self, load: &Load) {
        let fleet = self.fleet.take().expect("no load yet");
        self.processes = load.extras.processes;
        let run = fleet.start(load).expect("the load starts");
        run.retarget(&target(self.server.http()));
        self.run = Some(run);
    }

    pub fn progress(&self) -> Progress {
        self.run.as_ref().expect("a load").progress()
    }

    /// Waits until `count` more heartbeats are acknowledged.
    pub fn await_acknowledged(&self, count: u64, limit: Duration) {
        let before = self.progress().acknowledged;
        let came = wait_until(limit, || self.progress().acknowledged >= before + count);
        assert!(came, "not {count} more acknowledged in {limit:?}: {:?}\n{}", self.progress(), self.server.log());
    }

    /// Ends the load, and gives what it measured.
    pub fn end(&mut self) -> Report {
        let run = self.run.take().expect("a load");
        run.stop();
        let (fleet, report) = self.runtime.block_on(run.finish()).expect("the load ends");
        self.fleet = Some(fleet);
        assert_eq!(report.malformed, 0, "answers that break the protocol: {report:?}");
        assert!(!report.ledger_full, "the ledger is full: {report:?}");
        report
    }

    pub fn begin_restart(&mut self) {
        self.server.begin_restart();
    }

    /// Waits until the restarted server is ready, and sends the fleet to its new port.
    pub fn await_ready(&mut self) {
        self.server.await_ready();
        if let Some(run) = &self.run {
            run.retarget(&target(self.server.http()));
        }
    }

    pub fn restart(&mut self) {
        self.begin_restart();
        self.await_ready();
    }

    pub fn clickhouse(&self) -> SocketAddr {
        self.external.unwrap_or_else(|| self.server.clickhouse())
    }

    pub fn number(&self, sql: &str) -> u64 {
        clickhouse::number(self.clickhouse(), self.database, sql)
    }

    pub fn statement(&self, sql: &str) {
        clickhouse::run(self.clickhouse(), self.database, sql);
    }

    /// What the fleet's ledger says of ClickHouse.
    pub fn verdict(&self) -> Verdict {
        let mut clickhouse = ClickHouse::new(target(self.clickhouse()));
        clickhouse.database = self.database.to_owned();
        let ledger = self.fleet.as_ref().expect("the load has ended").ledger();
        self.runtime.block_on(verify(&ledger, &clickhouse, CATCH_UP)).expect("an audit")
    }

    /// The promise: every acknowledged heartbeat is there once, by device and time and by journal and number; with its
    /// rows of the other table; and what the server says of itself agrees.
    pub fn verify(&self, story: &str) -> Verdict {
        let verdict = self.verdict();
        let log = || self.server.log();
        assert!(verdict.is_clean(), "{story}: {verdict:#?}\n{}", log());
        assert!(verdict.acknowledged > 0, "{story}: nothing was acknowledged");
        assert_eq!(verdict.unexpected, 0, "{story}: {verdict:?}");

        let rows = self.number("SELECT count() FROM heartbeats");
        let names = self.number("SELECT uniqExact(journal_id, seq) FROM heartbeats");
        let beats = self.number("SELECT uniqExact(device_id, timestamp) FROM heartbeats");
        assert_eq!((rows, rows), (names, beats), "{story}: rows, numbers, heartbeats differ\n{}", log());
        assert_eq!(rows, verdict.present + verdict.unknown_present, "{story}: {verdict:?}");
        let processes = self.number("SELECT count() FROM processes");
        let named = self.number("SELECT uniqExact(journal_id, seq, row_index) FROM processes");
        assert_eq!(
            (processes, named),
            (rows * self.processes as u64, processes),
            "{story}: rows of processes\n{}",
            log()
        );

        let metrics = self.server.metrics();
        for counter in ["writer_rows_doubled", "writer_rows_set_aside"] {
            assert_eq!(metrics.get(&format!("fleetd_{counter}_total")), 0.0, "{story}: {counter}\n{}", log());
        }
        verdict
    }

    /// The journal forgets what was counted in ClickHouse: at most the segment that is written to, and one, stay.
    pub fn await_trimmed(&self, story: &str) {
        let mut segments = 0.0;
        let is_trimmed = wait_until(CATCH_UP, || {
            segments = self.server.metrics().get("fleetd_journal_segments");
            segments <= 2.0
        });
        assert!(is_trimmed, "{story}: the journal keeps {segments} segments\n{}", self.server.log());
    }
}

/// The files of a journal's segments, the oldest first.
pub fn segment_files(data_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data_dir.join("journal")).expect("the journal's folder");
    let mut segments: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "segment"));
    segments.sort();
    segments
}

/// Waits until the journal has forgotten these segments; what the server adds of its own stays. Whether it did in time.
pub fn are_forgotten(segments: &[PathBuf]) -> bool {
    wait_until(CATCH_UP, || !segments.iter().any(|segment| segment.exists()))
}

pub fn target(address: SocketAddr) -> Target {
    Target::parse(&format!("http://{address}")).expect("an address")
}
