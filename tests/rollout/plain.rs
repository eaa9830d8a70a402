//! Deployments that go as they should.
use std::time::Duration;

use fleetd_proto::v1::deployment_status::State;
use fleetd_proto::v1::wave_status::State as WaveState;
use fleetd_proto::v1::{
    PromoteDeploymentRequest, PromoteDeploymentResponse, RollbackDeploymentRequest, RollbackDeploymentResponse,
};

use crate::rig::{canary, count, fleet_options, rolling, Rig, NEW, OLD};

#[test]
fn a_healthy_rolling_update_reaches_every_device_and_nobody_twice() {
    let mut rig = Rig::start(60, fleet_options());
    let deployment = rig.deploy(rolling());
    let status = rig.await_state(&deployment, State::Succeeded);
    assert_eq!((count(&status, "SUCCEEDED"), status.total_devices), (60, 60));
    assert!((status.progress_percent - 100.0).abs() < f64::EPSILON, "{status:?}");
    rig.fleet.mark_ended(&deployment);
    std::thread::sleep(Duration::from_secs(1));
    let fleet = rig.end(10);
    assert_eq!((fleet.on_version(NEW), fleet.installs_begun, fleet.harmed), (60, 60, 0));
}

#[test]
fn a_canary_is_watched_and_then_promoted_by_itself() {
    let mut rig = Rig::start(60, fleet_options());
    let deployment = rig.deploy(canary(true));
    let soaking = rig.await_status(&deployment, "the canary soaks", |status| {
        status.waves.first().is_some_and(|wave| wave.state() == WaveState::Soaking)
    });
    assert_eq!((soaking.waves[0].total_devices, soaking.waves[1].state()), (6, WaveState::Pending));
    assert_eq!(rig.fleet.snapshot().attempts, 6, "nobody else is offered anything while it soaks");
    let status = rig.await_state(&deployment, State::Succeeded);
    assert!(status.waves.iter().all(|wave| wave.state() == WaveState::Done), "{status:#?}");
    assert_eq!(rig.end(10).on_version(NEW), 60);
}

#[test]
fn a_canary_waits_for_an_operator_and_goes_on_when_promoted() {
    let mut rig = Rig::start(60, fleet_options());
    let deployment = rig.deploy(canary(false));
    rig.await_status(&deployment, "the canary waits", |status| {
        status.waves.first().is_some_and(|wave| wave.state() == WaveState::AwaitingPromotion)
    });
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(rig.fleet.snapshot().attempts, 6, "it waits");
    let request =
        PromoteDeploymentRequest { deployment_id: deployment.clone(), wave: Some(0), reason: "looks good".to_owned() };
    rig.ok::<_, PromoteDeploymentResponse>("PromoteDeployment", &request);
    rig.await_state(&deployment, State::Succeeded);
    assert_eq!(rig.end(10).on_version(NEW), 60);
}

#[test]
fn a_rollback_takes_everything_back_under_the_same_limit() {
    let mut rig = Rig::start(60, fleet_options());
    let deployment = rig.deploy(rolling());
    rig.await_state(&deployment, State::Succeeded);
    let request = RollbackDeploymentRequest { deployment_id: deployment.clone(), ..Default::default() };
    let answer: RollbackDeploymentResponse = rig.ok("RollbackDeployment", &request);
    assert!(answer.success);
    assert_eq!(answer.devices_rolled_back, 60);
    let status = rig.await_state(&deployment, State::RolledBack);
    assert_eq!(count(&status, "ROLLED_BACK"), 60);
    let fleet = rig.end(10);
    assert_eq!((fleet.on_version(OLD), fleet.rollbacks), (60, 60));
}

#[test]
fn an_uploaded_artifact_is_fetched_and_checked_by_each_device_over_a_restart() {
    let mut options = fleet_options();
    options.behaviour.fetch = true;
    let mut rig = Rig::start(30, options);
    let content = Vec::from_iter((0..3_000_000_u32).map(|at| (at % 251) as u8));
    let update_id = rig.create_update_uploaded(&content);
    let deployed = rig.try_deploy(&update_id, rolling()).expect("it is deployed");
    rig.await_fleet("a device fetches", |fleet| fleet.downloaded_bytes > 0);
    rig.kill_and_restart();
    rig.await_state(&deployed.deployment_id, State::Succeeded);
    let fleet = rig.end(10);
    assert_eq!((fleet.on_version(NEW), fleet.harmed), (30, 0));
    assert!(fleet.downloaded_bytes >= 30 * 3_000_000, "{fleet:?}");
}
