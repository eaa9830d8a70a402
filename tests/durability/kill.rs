//! kill -9 at random moments under load: the server, the engine, both; while they work, while they start, and around
//! the moment at which a batch goes to ClickHouse.
use std::time::{Duration, Instant};

use crate::random::Random;
use crate::rig::{load, machine, options, Rig};
use crate::support::clickhouse::{self, Engine};
use crate::support::client::{proto, Client};
use crate::support::{sigkill_engine_if_there, wait_until, Server};

/// Heartbeats a second; some six journal segments' worth of rows between two kills at most.
const RATE: f64 = 4_000.0;
/// After so many kills the fleet rests and everything is compared.
const KILLS_BETWEEN_AUDITS: u32 = 20;
/// The supervisor waits longer after each death that follows a short life (0.1 s, 0.2 s, 0.4 s, …), so after this many
/// deaths of its engine the server is started anew: in the order of a SIGTERM, under load.
const ENGINE_KILLS_A_SERVER: u32 = 4;
/// Longer than any start; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// Its embedded engine goes with it: the kernel kills the child of a dead parent.
    Server,
    /// ClickHouse is another's and lives on, and with it an insert that nobody waits for any more.
    ServerAlone,
    Engine,
    Both,
}

/// When to kill.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after it was ready.
    AfterReady(Duration),
    /// So long after it was started, ready or not.
    DuringStart(Duration),
    /// So long after ClickHouse acknowledged a batch: the next one leaves a second later.
    AfterBatch(Duration),
}

impl Moment {
    fn draw(random: &mut Random) -> Self {
        match random.below(10) {
            0..=4 => Self::AfterReady(random.millis(0..1500)),
            5..=6 => Self::DuringStart(random.millis(0..500)),
            7 => Self::AfterBatch(random.millis(0..20)),
            _ => Self::AfterBatch(random.millis(930..1060)),
        }
    }
}

#[test]
fn acknowledged_heartbeats_survive_kills_of_the_server_with_its_engine() {
    campaign(Victim::Server);
}

#[test]
fn acknowledged_heartbeats_survive_kills_of_the_server_while_clickhouse_lives_on() {
    campaign(Victim::ServerAlone);
}

#[test]
fn acknowledged_heartbeats_survive_kills_of_the_engine() {
    campaign(Victim::Engine);
}

#[test]
fn acknowledged_heartbeats_survive_kills_of_server_and_engine_in_any_order() {
    campaign(Victim::Both);
}

/// Keys, journal, registry and tables are made by the first start; whatever of them is there half, the next one goes on.
#[test]
fn a_first_start_that_is_killed_at_any_moment_is_followed_by_a_good_one() {
    let _turn = machine();
    let mut random = Random::seeded("killed first starts");
    for round in 0..kills() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = Server::begin_with(options().data_dir(folder.path()));
        let after = random.millis(0..500);
        std::thread::sleep(after);
        // The engine makes its tables while the server waits for it: it is killed alone, together with it, or later.
        let engine = server.engine_pid();
        if random.below(2) == 0 {
            engine.inspect(|engine| sigkill_engine_if_there(*engine));
        }
        server.sigkill();
        server.begin_restart();
        server.await_ready();
        let key = server.register("first");
        let heartbeat = Client::Connect1.call("DeviceService/Heartbeat", Some(&key), &proto::heartbeat("first"));
        let outcome = Client::Connect1.outcome(&Client::Connect1.send(server.http(), &heartbeat));
        assert_eq!(outcome.code, "OK", "round {round}, killed after {after:?}: {outcome:?}\n{}", server.log());
        let (at, sql) = (server.clickhouse(), "SELECT count() FROM heartbeats");
        clickhouse::wait_for(at, "fleetd", sql, 1, PATIENCE);
    }
}

fn kills() -> u32 {
    let Ok(text) = std::env::var("FLEETD_CHAOS_KILLS") else { return 20 };
    text.parse().unwrap_or_else(|_| panic!("FLEETD_CHAOS_KILLS={text} is no number"))
}

fn campaign(victim: Victim) {
    let _turn = machine();
    let mut random = Random::seeded(&format!("kills of {victim:?}"));
    let folder = tempfile::tempdir().expect("a folder");
    // Declared before the rig, so that it outlives the server.
    let engine = (victim == Victim::ServerAlone).then(|| Engine::start(folder.path()));
    let mut rig = match &engine {
        Some(engine) => Rig::with_clickhouse(options(), engine.address()),
        None => Rig::start(options()),
    };
    let kills = kills();
    let mut done = 0;
    while done < kills {
        rig.begin(&load(RATE));
        let group = KILLS_BETWEEN_AUDITS.min(kills - done);
        let started = Instant::now();
        for number in 1..=group {
            let moment = Moment::draw(&mut random);
            println!("{victim:?} {}: {moment:?}", done + number);
            if victim == Victim::Engine {
                kill_engine(&mut rig, moment);
                if number % ENGINE_KILLS_A_SERVER == 0 {
                    assert_eq!(rig.server.sigterm(), Some(0), "{}", rig.server.log());
                    rig.restart();
                }
            } else {
                kill_server(&mut rig, victim, moment, &mut random);
            }
        }
        done += group;
        // The load was real: the server took heartbeats between the kills.
        rig.await_acknowledged(1_000, PATIENCE);
        let report = rig.end();
        let story = format!("after {done} kills of {victim:?}");
        assert!(report.acked > u64::from(group) * 200, "{story}: hardly anything was acknowledged: {report:?}");
        let verdict = rig.verify(&story);
        rig.await_trimmed(&story);
        println!("{story}, in {:?}: {verdict:?}, {} reconnects", started.elapsed(), report.reconnects);
    }
}

/// Kills the server at `moment`, with its engine before, after or neither; then starts it again.
fn kill_server(rig: &mut Rig, victim: Victim, moment: Moment, random: &mut Random) {
    match moment {
        Moment::AfterReady(after) => std::thread::sleep(after),
        Moment::AfterBatch(after) => {
            await_batch(rig);
            std::thread::sleep(after);
        }
        Moment::DuringStart(after) => {
            // What is killed here has not taken a heartbeat; the one before it ended in a kill, too.
            rig.server.sigkill();
            rig.begin_restart();
            std::thread::sleep(after);
        }
    }
    if victim == Victim::Both {
        let engine = rig.server.engine_pid();
        // Before the server, up to a restart by its supervisor; or right after, before the kernel does it.
        if random.below(3) > 0 {
            engine.inspect(|engine| sigkill_engine_if_there(*engine));
            std::thread::sleep(random.millis(0..150));
        }
        rig.server.sigkill();
        engine.inspect(|engine| sigkill_engine_if_there(*engine));
    } else {
        rig.server.sigkill();
    }
    rig.restart();
}

/// Kills the engine at `moment` counted from the start of the present one, which its supervisor then replaces.
fn kill_engine(rig: &mut Rig, moment: Moment) {
    let running = || rig.server.engine_pid();
    match moment {
        Moment::DuringStart(after) => {
            assert!(wait_until(PATIENCE, || running().is_some()), "no engine\n{}", rig.server.log());
            std::thread::sleep(after);
        }
        Moment::AfterReady(after) => {
            await_engine(rig);
            std::thread::sleep(after);
        }
        Moment::AfterBatch(after) => {
            await_engine(rig);
            await_batch(rig);
            std::thread::sleep(after);
        }
    }
    if let Some(engine) = rig.server.engine_pid() {
        sigkill_engine_if_there(engine);
        let gone = wait_until(PATIENCE, || rig.server.engine_pid() != Some(engine));
        assert!(gone, "the engine does not die\n{}", rig.server.log());
    }
}

/// Waits until ClickHouse answers.
fn await_engine(rig: &Rig) {
    let answers = wait_until(PATIENCE, || std::net::TcpStream::connect(rig.clickhouse()).is_ok());
    assert!(answers, "the engine is not back\n{}", rig.server.log());
}

/// Waits until ClickHouse acknowledges a batch. Heartbeats never stop, so there is one a second.
fn await_batch(rig: &Rig) {
    let batches = || rig.server.metrics().get("fleetd_writer_batches_total");
    let before = batches();
    assert!(wait_until(PATIENCE, || batches() > before), "no batch is acknowledged\n{}", rig.server.log());
}
