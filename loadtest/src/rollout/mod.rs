//! `fleetd-loadtest rollout`: a simulated update to a simulated fleet, watched from its first wave to its end.
mod args;
mod calls;
mod display;
mod outcome;

use std::time::{Duration, Instant};

use fleetd_loadtest::{
    default_keys_path, Behaviour, Fleet, FleetOptions, LoadError, Pick, Protocol, UpdateFleet, UpdateFleetOptions,
};
use fleetd_proto::v1::deployment_status::{Reason, State};
use fleetd_proto::v1::DeploymentStatus;

pub(crate) use args::RolloutArgs;
use calls::Operator;
use display::Waves;
use outcome::Outcome;

use crate::cli::ProgressArg;
use crate::progress::Display;

/// How often the deployment's status is read.
const WATCH_STEP: Duration = Duration::from_millis(500);

/// How long the devices may take for their first heartbeats.
const REPORT_PATIENCE: Duration = Duration::from_secs(60);

/// What the simulated artifact is said to be, when it is not uploaded: nobody fetches it.
const ARTIFACT_URL: &str = "https://artifacts.example.com/simulated.bin";
const ARTIFACT_BYTES: i64 = 16 << 20;

/// How the watching ended.
enum Ending {
    /// The deployment did, or waits for people.
    Deployment,
    Interrupted,
    TimedOut,
}

pub(crate) async fn run(args: RolloutArgs) -> Result<bool, LoadError> {
    let options = FleetOptions {
        target: args.url.clone(),
        admin_key: args.key.clone(),
        protocol: Protocol::Connect,
        devices: args.devices,
        id_prefix: args.id_prefix.clone(),
        keys: args
            .id_prefix
            .as_ref()
            .map(|prefix| args.keys.clone().unwrap_or_else(|| default_keys_path(&args.url, prefix))),
    };
    let wants_bars = args.progress == ProgressArg::Auto;
    let mut display = Display::new(wants_bars);
    display.begin_registering(args.devices);
    let fleet = Fleet::register(&options, |registered| display.registered(registered)).await?;
    display.end();
    let fleet = UpdateFleet::start(fleet, fleet_options(&args))?;
    await_reports(&fleet).await?;

    let mut operator = Operator::new(&args)?;
    let update = operator.create_update(&args).await?;
    let started = Instant::now();
    let deployment_id = operator.deploy(&args, &update.id, fleet.ids()).await?;
    let mut waves = Waves::new(wants_bars, &deployment_id);
    let (status, ending) = watch(&args, &fleet, &mut operator, &deployment_id, &mut waves).await?;
    waves.end();
    if matches!(status.state(), State::Succeeded | State::RolledBack) {
        // One more round: what is over must offer nothing.
        fleet.mark_ended(&deployment_id);
        tokio::time::sleep(args.interval * 2).await;
    }
    let outcome = Outcome::new(&status, &update, fleet.stop(), started.elapsed());
    match ending {
        Ending::Interrupted => eprintln!("interrupted: the deployment was cancelled, for its devices are gone"),
        Ending::TimedOut => eprintln!("warning: not over within --timeout; the deployment was left as it is"),
        Ending::Deployment if status.state() == State::Paused => {
            eprintln!("paused: {}", status.message);
        }
        Ending::Deployment => {}
    }
    if outcome.was_rate_limited() {
        eprintln!(
            "warning: rate limits refused heartbeats, so this took longer; raise --interval, or start the server with \
             --rate-limit-device 0"
        );
    }
    for example in &outcome.violations.examples {
        eprintln!("violation: {example}");
    }
    crate::print_json(&outcome)?;
    Ok(outcome.is_good())
}

fn fleet_options(args: &RolloutArgs) -> UpdateFleetOptions {
    UpdateFleetOptions {
        interval: args.interval,
        connections: 64,
        offline_share: args.offline / 100.0,
        behaviour: Behaviour {
            p_install_fail: args.fail / 100.0,
            p_vanish: args.vanish / 100.0,
            p_revert: args.revert / 100.0,
            p_reject: args.reject / 100.0,
            download: Duration::from_secs(2),
            install: Duration::from_secs(2),
            reboot: Duration::from_secs(2),
            confirm: Duration::from_secs(1),
            fetch: args.upload.is_some(),
            // A revoked offer must not be installed by a device that accepted it a moment too late.
            accept_by_call: true,
            ..Behaviour::default()
        },
        seed: args.seed,
        ..UpdateFleetOptions::default()
    }
}

/// Waits until every device that is on the network was heard: a deployment holds devices that it takes for offline.
async fn await_reports(fleet: &UpdateFleet) -> Result<(), LoadError> {
    let deadline = Instant::now() + REPORT_PATIENCE;
    loop {
        let snapshot = fleet.snapshot();
        if snapshot.reported + snapshot.offline >= snapshot.devices {
            return Ok(());
        }
        if snapshot.refused.contains_key("UNAUTHENTICATED") {
            return Err(LoadError::Setup {
                what: "the server does not know the devices' keys".to_owned(),
                todo: "delete the --keys file, or change --id-prefix",
            });
        }
        if Instant::now() > deadline {
            let silent = snapshot.devices - snapshot.reported - snapshot.offline;
            return Err(LoadError::Setup {
                what: format!("{silent} devices had no heartbeat acknowledged within {REPORT_PATIENCE:?}"),
                todo: "is the server slower than --devices and --interval ask for, or do its rate limits refuse them?",
            });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn watch(
    args: &RolloutArgs,
    fleet: &UpdateFleet,
    operator: &mut Operator,
    deployment_id: &str,
    waves: &mut Waves,
) -> Result<(DeploymentStatus, Ending), LoadError> {
    let started = Instant::now();
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let mut rejoins = args.rejoin_after;
    loop {
        let status = operator.status(deployment_id).await?;
        waves.show(&status);
        if is_over(&status) {
            return Ok((status, Ending::Deployment));
        }
        if rejoins.is_some_and(|after| started.elapsed() >= after) {
            rejoins = None;
            let back = fleet.set_offline(Pick::All, false);
            waves.say(&format!("all {} devices are on the network now", back.len()));
        }
        if started.elapsed() >= args.timeout {
            return Ok((status, Ending::TimedOut));
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_STEP) => {}
            _ = &mut interrupt => return Ok((operator.cancel(deployment_id).await?, Ending::Interrupted)),
        }
    }
}

/// Whether nothing will happen any more without people.
fn is_over(status: &DeploymentStatus) -> bool {
    match status.state() {
        State::Paused => status.reason() != Reason::WindowClosed,
        State::Denied
        | State::Cancelled
        | State::RolledBack
        | State::RollbackIncomplete
        | State::Succeeded
        | State::Failed
        | State::Superseded => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paused_deployment_is_over_for_the_scenario_unless_its_window_opens_again() {
        let status = |state: State, reason: Reason| DeploymentStatus {
            state: state.into(),
            reason: reason.into(),
            ..DeploymentStatus::default()
        };
        assert!(is_over(&status(State::Paused, Reason::FailureThreshold)));
        assert!(!is_over(&status(State::Paused, Reason::WindowClosed)));
        assert!(!is_over(&status(State::Running, Reason::Unspecified)));
        assert!(!is_over(&status(State::RollingBack, Reason::Unspecified)));
        assert!(is_over(&status(State::RollbackIncomplete, Reason::Unspecified)));
    }
}
