//! A canary over 5,000 devices under a server that is killed again and again.
//!
//! `FLEETD_CHAOS_KILLS` is how often (15), `FLEETD_CHAOS_SEED` runs the same moments again.
use std::time::Duration;

use fleetd_proto::v1::deployment_status::State;
use fleetd_proto::v1::wave_status::State as WaveState;
use fleetd_proto::v1::DeploymentConfig;

use crate::rig::{canary, count, fleet_options, Rig, NEW};

const DEVICES: usize = 5_000;
const MAX_PARALLEL: u16 = 250;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn a_canary_completes_over_kills_as_if_there_had_been_none() {
    // `make chaos` asks for fifty.
    let kills = from_env("FLEETD_CHAOS_KILLS", 15);
    let mut random = from_env("FLEETD_CHAOS_SEED", u64::from(std::process::id()));
    println!("FLEETD_CHAOS_SEED={random} FLEETD_CHAOS_KILLS={kills}");
    let mut options = fleet_options();
    options.interval = Duration::from_secs(1);
    // Slow enough that the last kill still finds work: twenty rounds of five seconds, without the outages.
    options.behaviour.install = Duration::from_secs(2);
    let mut rig = Rig::start(DEVICES, options);
    let deployment = rig.deploy(DeploymentConfig { max_parallel: Some(MAX_PARALLEL.into()), ..canary(true) });
    let mut kills_at_work = 0;
    for _ in 0..kills {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis(100 + (random >> 33) % 2_000));
        kills_at_work += u64::from(rig.fleet.snapshot().on_version(NEW) < DEVICES);
        rig.kill_and_restart();
    }
    println!("{kills_at_work} of {kills} kills found devices that were not updated yet");
    let status = rig.await_state(&deployment, State::Succeeded);
    assert_eq!((count(&status, "SUCCEEDED"), status.waves.len()), (DEVICES, 2), "{status:#?}");
    assert!(status.waves.iter().all(|wave| wave.state() == WaveState::Done), "{status:#?}");
    rig.fleet.mark_ended(&deployment);
    std::thread::sleep(Duration::from_secs(3));
    let fleet = rig.end(MAX_PARALLEL.into());
    assert_eq!((fleet.on_version(NEW), fleet.installs, fleet.installs_begun), (DEVICES, 5_000, 5_000));
    assert_eq!((fleet.harmed, fleet.malformed), (0, 0));
}
