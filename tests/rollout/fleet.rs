//! What a fleet is really like: offline, coming back, out of hours, failing once, wanted twice.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetd_loadtest::{Code, Pick};
use fleetd_proto::v1::deployment_status::{Reason, State};
use fleetd_proto::v1::{
    DeployUpdateRequest, DeployUpdateResponse, DeploymentConfig, MaintenanceWindow, RollbackDeploymentRequest,
    RollbackDeploymentResponse, RolloutPolicy,
};

use crate::rig::{count, fleet_options, policy, rolling, Rig, NEW, OLD};

fn offline_third() -> Rig {
    let mut options = fleet_options();
    options.offline_share = 1.0 / 3.0;
    Rig::start(60, options)
}

fn with_policy(policy: RolloutPolicy) -> DeploymentConfig {
    DeploymentConfig { policy: Some(policy), ..rolling() }
}

#[test]
fn an_offline_third_holds_nothing_up_and_is_left_out_at_the_end() {
    let mut rig = offline_third();
    let grace = Some(Duration::from_secs(3).into());
    let deployment = rig.deploy(with_policy(RolloutPolicy { offline_grace: grace, ..policy() }));
    let status = rig.await_state(&deployment, State::Succeeded);
    assert_eq!((count(&status, "SUCCEEDED"), count(&status, "HELD")), (40, 20), "{status:#?}");
    let fleet = rig.end(10);
    assert_eq!((fleet.on_version(NEW), fleet.on_version(OLD), fleet.harmed), (40, 20, 0));
}

#[test]
fn devices_that_rejoin_half_way_are_updated_in_the_trailing_lane() {
    let mut rig = offline_third();
    let deployment = rig.deploy(rolling());
    rig.await_fleet("a device is done", |fleet| fleet.in_state("SUCCEEDED") > 0);
    rig.fleet.set_offline(Pick::All, false);
    let status = rig.await_state(&deployment, State::Succeeded);
    assert_eq!(count(&status, "SUCCEEDED"), 60);
    assert_eq!(rig.end(10).on_version(NEW), 60);
}

#[test]
fn nothing_is_offered_outside_of_the_window() {
    let mut rig = Rig::start(20, fleet_options());
    let minutes = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs() / 60;
    let far = (minutes + 12 * 60) % (24 * 60);
    let window = MaintenanceWindow {
        start: format!("{:02}:{:02}", far / 60, far % 60),
        duration: Some(Duration::from_secs(3600).into()),
        ..MaintenanceWindow::default()
    };
    let deployment = rig.deploy(with_policy(RolloutPolicy { windows: vec![window], ..policy() }));
    rig.await_pause(&deployment, Reason::WindowClosed);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(rig.end(0).attempts, 0);
}

#[test]
fn a_failed_device_is_tried_again_after_its_backoff() {
    let mut rig = Rig::start(40, fleet_options());
    let failing = rig.fleet.change_behaviour(Pick::Share { of: 0.1, salt: 1 }, |behaviour| {
        behaviour.p_install_fail = 1.0;
        behaviour.faulty_attempts = 1;
    });
    let deployment = rig.deploy(DeploymentConfig {
        max_failure_percentage: Some(50.0),
        policy: Some(RolloutPolicy {
            max_attempts: Some(3),
            retry_backoff: Some(Duration::from_secs(2).into()),
            ..policy()
        }),
        ..rolling()
    });
    let status = rig.await_state(&deployment, State::Succeeded);
    assert_eq!(count(&status, "SUCCEEDED"), 40);
    for id in &failing {
        let device = rig.fleet.device(id).expect("a device of the fleet");
        assert_eq!(device.attempts.iter().map(|attempt| attempt.attempt).collect::<Vec<_>>(), [1, 2], "{id}");
    }
    let fleet = rig.end(10);
    assert_eq!((fleet.on_version(NEW), fleet.attempts), (40, 44));
}

#[test]
fn a_device_is_in_one_deployment_at_a_time() {
    let mut options = fleet_options();
    options.behaviour.install = Duration::from_secs(2);
    let mut rig = Rig::start(20, options);
    let (first, second) = (rig.create_update("first"), rig.create_update_named("second", "3.0.0"));
    let deployed = rig.try_deploy(&first, rolling()).expect("the first is deployed");
    rig.await_fleet("devices work on the first", |fleet| fleet.working > 0);
    let refused = rig.try_deploy(&second, rolling()).expect_err("all devices are taken");
    assert_eq!(refused.code(), Some(Code::FAILED_PRECONDITION), "{refused}");
    rig.await_state(&deployed.deployment_id, State::Succeeded);
    let deployed = rig.try_deploy(&second, rolling()).expect("the devices are free again");
    rig.await_state(&deployed.deployment_id, State::Succeeded);
    let fleet = rig.end(10);
    assert_eq!((fleet.on_version("3.0.0"), fleet.installs), (20, 40));
}

#[test]
fn devices_that_were_taken_over_stay_with_their_new_deployment_over_a_restart() {
    let mut options = fleet_options();
    options.offline_share = 0.5;
    let mut rig = Rig::start(10, options);
    let (first, second) = (rig.create_update("first"), rig.create_update_named("second", "3.0.0"));
    let held_open = rig.try_deploy(&first, rolling()).expect("the first is deployed").deployment_id;
    let status = rig.await_status(&held_open, "those online are done", |status| count(status, "SUCCEEDED") > 0);
    assert!(count(&status, "HELD") + count(&status, "QUEUED") > 0, "it waits for the others: {status:#?}");
    let online = rig.await_status(&held_open, "all online are done", |status| {
        count(status, "SUCCEEDED") + count(status, "HELD") == 10
    });
    let online = count(&online, "SUCCEEDED");
    let is_online = |id: &String| rig.fleet.device(id).is_some_and(|device| !device.is_offline);
    let device_ids: Vec<_> = rig.fleet.ids().into_iter().filter(is_online).collect();
    let config = DeploymentConfig { supersede: true, ..rolling() };
    let request =
        DeployUpdateRequest { update_id: second, device_ids, config: Some(config), ..DeployUpdateRequest::default() };
    let taken: DeployUpdateResponse = rig.ok("DeployUpdate", &request);
    rig.kill_and_restart();
    let status = rig.await_state(&taken.deployment_id, State::Succeeded);
    assert_eq!(count(&status, "SUCCEEDED"), online, "{status:#?}");
    // They were done when they left, and have not gone back.
    let first = rig.status(&held_open);
    assert_eq!((first.state(), count(&first, "SUCCEEDED"), count(&first, "REVERTED")), (State::Running, online, 0));
    assert_eq!(rig.end(10).on_version("3.0.0"), online);
}

#[test]
fn a_rollback_waits_for_devices_that_another_deployment_has_over_a_restart_too() {
    let mut options = fleet_options();
    options.behaviour.install = Duration::from_secs(2);
    let mut rig = Rig::start(10, options);
    let (first, second) = (rig.create_update("first"), rig.create_update_named("second", "3.0.0"));
    let first = rig.try_deploy(&first, rolling()).expect("the first is deployed").deployment_id;
    rig.await_state(&first, State::Succeeded);
    let second = rig.try_deploy(&second, rolling()).expect("the second is deployed").deployment_id;
    rig.await_fleet("devices work on the second", |fleet| fleet.working > 0);
    let request = RollbackDeploymentRequest { deployment_id: first.clone(), ..Default::default() };
    let _: RollbackDeploymentResponse = rig.ok("RollbackDeployment", &request);
    rig.kill_and_restart();
    let status = rig.await_state(&second, State::Succeeded);
    assert_eq!(count(&status, "SUCCEEDED"), 10, "{status:#?}");
    // None of them runs the first one's version any more, so there is nothing to take back.
    let status = rig.await_state(&first, State::RolledBack);
    assert_eq!(count(&status, "ROLLED_BACK"), 10, "{status:#?}");
    let fleet = rig.end(10);
    assert_eq!((fleet.on_version("3.0.0"), fleet.rollbacks), (10, 0));
}

#[test]
fn the_simulated_fleet_itself_is_heard_through_a_kill_and_says_what_it_runs() {
    let mut rig = offline_third();
    assert_eq!(rig.fleet.snapshot().reported, 40);
    let (off, on): (Vec<_>, Vec<_>) =
        rig.fleet.ids().into_iter().partition(|id| rig.fleet.device(id).is_some_and(|device| device.is_offline));
    assert_eq!((off.len(), on.len()), (20, 40));
    // Every tenth device was registered with another version; a heartbeat has said otherwise since.
    assert_eq!(rig.device(&on[0]).version, OLD);
    rig.kill_and_restart();
    rig.await_fleet("all are heard again", |fleet| fleet.reported == 40);
    rig.fleet.set_offline(Pick::All, false);
    rig.await_fleet("the rest is heard", |fleet| fleet.reported == 60);
    let device = rig.device(&off[0]);
    assert_eq!((device.version.as_str(), device.status().as_str_name()), (OLD, "ONLINE"));
    let fleet = rig.end(0);
    assert_eq!((fleet.attempts, fleet.malformed, fleet.harmed), (0, 0, 0));
}
