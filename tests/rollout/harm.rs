//! Updates that do harm, and how soon they are stopped.
use std::time::Duration;

use fleetd_loadtest::Pick;
use fleetd_proto::v1::deployment_status::{Reason, State};
use fleetd_proto::v1::gate_result::Verdict;
use fleetd_proto::v1::wave_status::State as WaveState;
use fleetd_proto::v1::{DeploymentConfig, MetricGate, RetryFailedRequest, RetryFailedResponse, RolloutPolicy};

use crate::rig::{canary, count, fleet_options, policy, rolling, Rig, NEW};

#[test]
fn eight_per_cent_failures_brake_a_limit_of_five_within_the_first_wave() {
    const DEVICES: usize = 500;
    let mut options = fleet_options();
    options.behaviour.accept_by_call = true;
    let mut rig = Rig::start(DEVICES, options);
    let bad = rig.fleet.change_behaviour(Pick::Share { of: 0.08, salt: 1 }, |behaviour| behaviour.p_install_fail = 1.0);
    assert_eq!(bad.len(), 40);
    let deployment = rig.deploy(DeploymentConfig { max_parallel: Some(20), ..rolling() });
    let status = rig.await_pause(&deployment, Reason::FailureThreshold);
    assert_eq!(status.waves[0].state(), WaveState::Breached);
    let fleet = rig.await_fleet("devices that accepted finish", |fleet| fleet.working == 0);
    println!(
        "{} of {DEVICES} devices harmed, {} updated, when the brake held at 5 % of those attempted",
        fleet.harmed,
        fleet.on_version(NEW)
    );
    assert!(fleet.harmed < 40, "it braked after every bad device was met");
    let failed = count(&rig.status(&deployment), "FAILED");
    let request = RetryFailedRequest { deployment_id: deployment.clone(), ..RetryFailedRequest::default() };
    let retried: RetryFailedResponse = rig.ok("RetryFailed", &request);
    assert_eq!(retried.retried_device_count.unsigned_abs() as usize, failed);
    let again: RetryFailedResponse = rig.ok("RetryFailed", &request);
    assert_eq!(again.retried_device_count, 0, "they wait until it is resumed");
    std::thread::sleep(Duration::from_secs(1));
    let later = rig.end(20);
    assert_eq!(later.attempts, fleet.attempts, "nothing more is offered");
}

#[test]
fn devices_that_vanish_brake_too() {
    let mut rig = Rig::start(60, fleet_options());
    rig.fleet.change_behaviour(Pick::All, |behaviour| behaviour.p_vanish = 1.0);
    let deployment = rig.deploy(rolling());
    let status = rig.await_pause(&deployment, Reason::Vanished);
    assert!(count(&status, "VANISHED") > 0, "{status:#?}");
    let fleet = rig.end(10);
    println!("{} of 60 devices vanished before the brake held", fleet.gone);
    assert!(fleet.gone <= 10, "no more than are at risk at once");
}

fn gated(gates: Vec<MetricGate>) -> DeploymentConfig {
    DeploymentConfig {
        canary_percentage: Some(20.0),
        validation_duration: Some(Duration::from_secs(10).into()),
        policy: Some(RolloutPolicy { gates, ..policy() }),
        ..canary(true)
    }
}

fn at_most(metric: &str, max_value: f64) -> MetricGate {
    MetricGate { metric: metric.to_owned(), max_value: Some(max_value), ..MetricGate::default() }
}

#[test]
fn a_bad_version_that_installs_well_fails_at_its_gates() {
    let mut options = fleet_options();
    options.behaviour.p_bad_metrics = 1.0;
    let mut rig = Rig::start(60, options);
    let deployment = rig.deploy(gated(vec![at_most("cpu_usage", 70.0), at_most("restart_count", 1.0)]));
    let status = rig.await_pause(&deployment, Reason::AnalysisFailed);
    let results = &status.waves[0].gate_results;
    assert_eq!(results.len(), 2);
    assert!(results.iter().all(|result| result.verdict() == Verdict::Failed && result.value.is_some()), "{results:#?}");
    let fleet = rig.end(10);
    assert_eq!((fleet.on_version(NEW), fleet.harmed, fleet.in_state("SUCCEEDED")), (12, 12, 12));
}

#[test]
fn a_good_version_passes_the_same_gates() {
    let mut rig = Rig::start(60, fleet_options());
    let deployment = rig.deploy(gated(vec![at_most("cpu_usage", 70.0), at_most("restart_count", 1.0)]));
    rig.await_state(&deployment, State::Succeeded);
    assert_eq!(rig.end(10).on_version(NEW), 60);
}

#[test]
fn a_gate_without_data_is_inconclusive_and_pauses() {
    let mut rig = Rig::start(60, fleet_options());
    let deployment = rig.deploy(gated(vec![at_most("reactor_pressure", 1.0)]));
    let status = rig.await_pause(&deployment, Reason::Inconclusive);
    let result = &status.waves[0].gate_results[0];
    assert_eq!((result.verdict(), result.value, result.device_count), (Verdict::Inconclusive, None, 0));
    assert_eq!(rig.end(10).on_version(NEW), 12);
}
