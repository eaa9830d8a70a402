//! The machine's clock is set while heartbeats come in: hours and days ahead and back, as a wrong battery and a late time
//! service do it. Nothing is ordered, lost or doubled by wall-clock time.
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::rig::{load, machine, options, Rig};
use crate::support::clickhouse::Engine;

/// Heartbeats a second.
const RATE: f64 = 2_000.0;
/// Longer than any step here takes on a loaded machine; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
/// All within the retention of a week that processes have, of which ClickHouse judges by its own clock.
const JUMPS: [i64; 7] = [HOUR, -HOUR, 3 * DAY, -3 * DAY, 0, -5 * DAY, 0];

/// A clock for one process and its children.
struct Clock {
    file: File,
    path: PathBuf,
    shim: PathBuf,
}

impl Clock {
    fn new(folder: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/durability/clock_shim.c");
        let shim = folder.join("clock_shim.so");
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(source).output();
        let compiled = compiled.expect("a C compiler, cc");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let path = folder.join("offset");
        let file = File::options().create_new(true).write(true).open(&path).expect("room");
        let clock = Self { file, path, shim };
        clock.set(0);
        clock
    }

    /// Moves it so many seconds away from the machine's.
    fn set(&self, seconds: i64) {
        self.file.write_all_at(&seconds.to_ne_bytes(), 0).expect("room");
    }

    fn env(&self, options: crate::support::Options) -> crate::support::Options {
        let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        options.env("LD_PRELOAD", &text(&self.shim)).env("FLEETD_TEST_CLOCK", &text(&self.path))
    }
}

/// Runs the load through all jumps, with a restart on the way.
fn jump(rig: &mut Rig, clock: &Clock, story: &str) {
    rig.begin(&load(RATE));
    for (number, seconds) in JUMPS.into_iter().enumerate() {
        rig.await_acknowledged(2_000, PATIENCE);
        clock.set(seconds);
        if number == 3 {
            rig.server.sigkill();
            rig.restart();
        }
    }
    rig.await_acknowledged(2_000, PATIENCE);
    rig.end();
    rig.verify(story);
    rig.await_trimmed(story);
    // The clock did jump: rows of several days were received.
    let days = rig.number("SELECT uniqExact(toDate(received_at)) FROM heartbeats");
    assert!(days >= 3, "{story}: rows of {days} days");
}

#[test]
fn a_clock_that_is_set_under_load_loses_and_doubles_nothing() {
    let _turn = machine();
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Clock::new(folder.path());
    // The engine is a child of the server and sees the same clock.
    let mut rig = Rig::start(clock.env(options()));
    jump(&mut rig, &clock, "after the machine's clock was set");
}

#[test]
fn a_clock_that_is_not_clickhouses_loses_and_doubles_nothing() {
    let _turn = machine();
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Clock::new(folder.path());
    let engine = Engine::start(&folder.path().join("engine"));
    let mut rig = Rig::with_clickhouse(clock.env(options()), engine.address());
    jump(&mut rig, &clock, "after the server's clock was set");
}
