//! The fleet against a server that behaves, refuses, stalls, breaks off and comes back: what is counted, and how the
//! latency of a stall is told.
mod common;

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use common::{until, Action, Fake, State};
use fleetd_loadtest::{
    verify, ClickHouse, Client, Code, Extras, Fleet, FleetOptions, Load, LoadError, Protocol, Report, Target, Verdict,
};
use fleetd_proto::v1::{GetDeviceRequest, RegisterDeviceRequest};

const PATIENCE: Duration = Duration::from_secs(5);

fn options(target: Target, protocol: Protocol, devices: usize) -> FleetOptions {
    FleetOptions { target, admin_key: Some("admin".to_owned()), protocol, devices, id_prefix: None, keys: None }
}

async fn fleet(fake: &Fake, protocol: Protocol, devices: usize) -> Fleet {
    Fleet::register(&options(fake.target(), protocol, devices), |_| {}).await.unwrap()
}

/// Runs until the fake has seen this many heartbeats.
async fn run_until(state: &Arc<State>, heartbeats: u64, fleet: Fleet, load: &Load) -> (Fleet, Report) {
    let run = fleet.start(load).unwrap();
    until("enough heartbeats", || state.heartbeats.load(Ordering::Relaxed) >= heartbeats).await;
    run.stop();
    run.finish().await.unwrap()
}

async fn audit(fleet: &Fleet, fake: &Fake) -> Verdict {
    verify(&fleet.ledger(), &ClickHouse::new(fake.target()), PATIENCE).await.unwrap()
}

#[tokio::test]
async fn every_protocol_is_acknowledged_and_audited() {
    for protocol in [Protocol::Connect, Protocol::Json, Protocol::Grpc] {
        let state = State::new(|_| Action::Acknowledge);
        let fake = Fake::start(&state);
        let fleet = fleet(&fake, protocol, 50).await;
        assert_eq!(state.registered.lock().unwrap().len(), 50);
        let load = Load {
            protocol,
            connections: 4,
            streams: 8,
            threads: 2,
            keep_ledger: true,
            extras: Extras { processes: 1, metrics: 2, all_readings: true },
            ..Load::default()
        };
        let (fleet, report) = run_until(&state, 2000, fleet, &load).await;
        assert_eq!(fleet.len(), 50);
        assert_eq!(report.acked, state.heartbeats.load(Ordering::Relaxed), "{protocol:?}");
        assert_eq!((report.sent, report.reconnects), (report.acked, 0));
        assert!(report.is_clean(), "{report:?}");
        let verdict = audit(&fleet, &fake).await;
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!(verdict.present, report.acked);
        let heard: std::collections::HashSet<_> = state.rows.lock().unwrap().iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(heard.len(), 50, "round-robin reaches every device");
    }
}

#[tokio::test]
async fn refusals_are_counted_by_code_and_are_no_errors() {
    for protocol in [Protocol::Connect, Protocol::Json, Protocol::Grpc] {
        let state = State::new(|n| match n % 4 {
            0 => Action::Refuse(Code::RESOURCE_EXHAUSTED),
            1 => Action::Refuse(Code::UNAVAILABLE),
            _ => Action::Acknowledge,
        });
        let fake = Fake::start(&state);
        let fleet = fleet(&fake, protocol, 8).await;
        let load = Load { protocol, connections: 2, streams: 2, ..Load::default() };
        let (_, report) = run_until(&state, 400, fleet, &load).await;
        let heartbeats = state.heartbeats.load(Ordering::Relaxed);
        assert_eq!(report.rejected["RESOURCE_EXHAUSTED"], heartbeats.div_ceil(4));
        assert_eq!(report.rejected["UNAVAILABLE"], (heartbeats - 1).div_ceil(4));
        assert_eq!(report.acked + report.rejected.values().sum::<u64>(), report.sent);
        assert_eq!((report.errors, report.malformed), (0, 0));
        assert!(report.is_clean());
    }
}

#[tokio::test]
async fn a_stall_is_charged_to_every_heartbeat_that_was_due_in_it() {
    const STALL: Duration = Duration::from_millis(600);
    let stalling = || State::new(|n| if n == 20 { Action::Stall(STALL) } else { Action::Acknowledge });
    let load = Load { connections: 1, rate: Some(200.0), duration: Some(Duration::from_secs(1)), ..Load::default() };
    let state = stalling();
    let fake = Fake::start(&state);
    let run = fleet(&fake, Protocol::Connect, 10).await.start(&load).unwrap();
    let (_, report) = run.finish().await.unwrap();
    // All that was due is sent, though one connection was blocked for more than half of the time. 120 of the 200 were
    // due during the stall; measured from when they left, one alone would be slow and p99 would not show it.
    assert_eq!((report.sent, report.acked, report.unsent), (200, 200, 0));
    assert!(report.p99_ms > 400.0, "{report:?}");
    assert!(report.p50_ms > 20.0, "{report:?}");
    assert!(report.max_ms >= 600.0, "{report:?}");

    // The closed loop has no schedule: it waits the stall out and has one slow heartbeat among many.
    let state = stalling();
    let fake = Fake::start(&state);
    let closed = Load { rate: None, duration: None, ..load };
    let (_, report) = run_until(&state, 1000, fleet(&fake, Protocol::Connect, 10).await, &closed).await;
    assert!(report.max_ms >= 600.0 && report.p99_ms < 400.0, "{report:?}");
}

#[tokio::test]
async fn heartbeats_that_never_got_their_turn_are_counted_and_not_clean() {
    let state = State::new(|n| if n < 50 { Action::Acknowledge } else { Action::Silence });
    let fake = Fake::start(&state);
    let fleet = fleet(&fake, Protocol::Connect, 10).await;
    let load = Load {
        connections: 2,
        rate: Some(500.0),
        duration: Some(Duration::from_millis(500)),
        timeout: Duration::from_millis(300),
        ..Load::default()
    };
    let (_, report) = fleet.start(&load).unwrap().finish().await.unwrap();
    assert_eq!(report.sent + report.unsent, 250, "{report:?}");
    assert!(report.unsent > 100 && report.errors > 0, "{report:?}");
    assert!(!report.is_clean());
    assert!(report.p50_ms > 200.0, "what was never sent has waited, too: {report:?}");
}

#[tokio::test]
async fn a_silent_connection_is_given_up_and_the_run_goes_on() {
    for protocol in [Protocol::Connect, Protocol::Grpc] {
        let state = State::new(|n| if n == 10 { Action::Silence } else { Action::Acknowledge });
        let fake = Fake::start(&state);
        let fleet = fleet(&fake, protocol, 4).await;
        let load = Load {
            protocol,
            connections: 1,
            streams: 1,
            timeout: Duration::from_millis(300),
            keep_ledger: true,
            ..Load::default()
        };
        let (fleet, report) = run_until(&state, 100, fleet, &load).await;
        assert_eq!((report.errors, report.reconnects), (1, 1), "{report:?}");
        let verdict = audit(&fleet, &fake).await;
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!((verdict.unknown_outcome, verdict.unknown_present), (1, 0));
    }
}

#[tokio::test]
async fn the_fleet_survives_restarts_and_its_ledger_holds() {
    for protocol in [Protocol::Connect, Protocol::Grpc] {
        let state = State::new(|_| Action::Acknowledge);
        let mut fake = Fake::start(&state);
        let fleet = fleet(&fake, protocol, 20).await;
        let load = Load { protocol, connections: 4, streams: 4, keep_ledger: true, ..Load::default() };
        let run = fleet.start(&load).unwrap();
        for restart in 1..=3 {
            let so_far = run.progress().acknowledged;
            until("heartbeats before the crash", || run.progress().acknowledged > so_far + 100).await;
            drop(fake);
            fake = Fake::start(&state);
            run.retarget(&fake.target());
            let so_far = run.progress().acknowledged;
            until(&format!("heartbeats after crash {restart}"), || run.progress().acknowledged > so_far + 100).await;
        }
        run.stop();
        let (fleet, report) = run.finish().await.unwrap();
        assert!(report.reconnects >= 3, "{report:?}");
        let verdict = audit(&fleet, &fake).await;
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!(verdict.acknowledged, report.acked);
        assert_eq!(verdict.unknown_outcome, report.errors);
    }
}

#[tokio::test]
async fn what_the_server_lost_or_doubled_is_found_exactly() {
    let state = State::new(|n| match n {
        100 | 200 | 201 => Action::Lose,
        300 => Action::Double,
        400 => Action::StoreAndHangUp,
        500 => Action::HangUp,
        600 => Action::SayNo,
        700 => Action::Refuse(Code::RESOURCE_EXHAUSTED),
        _ => Action::Acknowledge,
    });
    let fake = Fake::start(&state);
    let fleet = fleet(&fake, Protocol::Connect, 16).await;
    let load = Load { connections: 4, keep_ledger: true, ..Load::default() };
    let (fleet, report) = run_until(&state, 2000, fleet, &load).await;
    assert_eq!((report.errors, report.malformed), (2, 1), "{report:?}");
    let verdict = audit(&fleet, &fake).await;
    assert_eq!((verdict.missing, verdict.doubled, verdict.unexpected), (3, 1, 0), "{verdict:?}");
    assert_eq!((verdict.unknown_outcome, verdict.unknown_present), (3, 1), "{verdict:?}");
    assert_eq!(verdict.present, report.acked - 3);
    assert_eq!(verdict.examples.len(), 4);
}

#[tokio::test]
async fn the_audit_waits_for_rows_that_are_on_their_way_but_not_for_ever() {
    let state = State::new(|_| Action::Acknowledge);
    let fake = Fake::start(&state);
    let fleet = fleet(&fake, Protocol::Connect, 4).await;
    let load = Load { connections: 1, keep_ledger: true, ..Load::default() };
    let (fleet, report) = run_until(&state, 20, fleet, &load).await;
    state.blind_queries.store(4, Ordering::Relaxed);
    let verdict = audit(&fleet, &fake).await;
    assert!(verdict.is_clean() && state.queries.load(Ordering::Relaxed) > 4, "{verdict:?}");

    state.blind_queries.store(u64::MAX, Ordering::Relaxed);
    let clickhouse = ClickHouse::new(fake.target());
    let verdict = verify(&fleet.ledger(), &clickhouse, Duration::from_millis(300)).await.unwrap();
    assert_eq!((verdict.present, verdict.missing), (0, report.acked));
}

#[tokio::test]
async fn one_fleet_can_run_twice_and_its_ledger_is_of_both_runs() {
    let state = State::new(|_| Action::Acknowledge);
    let fake = Fake::start(&state);
    let fleet = fleet(&fake, Protocol::Connect, 4).await;
    let load = Load { connections: 2, keep_ledger: true, ..Load::default() };
    let (fleet, first) = run_until(&state, 100, fleet, &load).await;
    let (fleet, second) = run_until(&state, 300, fleet, &load).await;
    let verdict = audit(&fleet, &fake).await;
    assert!(verdict.is_clean(), "{verdict:?}");
    assert_eq!(verdict.acknowledged, first.acked + second.acked);
}

#[tokio::test]
async fn keys_are_kept_between_runs_and_a_server_that_forgot_the_devices_gets_them_again() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::new(|_| Action::Acknowledge);
    let fake = Fake::start(&state);
    let mut options = options(fake.target(), Protocol::Connect, 10);
    options.id_prefix = Some("sim".to_owned());
    let refused = {
        Fleet::register(&options, |_| {}).await.unwrap();
        Fleet::register(&options, |_| {}).await.unwrap_err()
    };
    assert!(matches!(&refused, LoadError::KeyUnknown { .. }), "{refused:?}");

    // A server of its own: some registrations of the refused run may still be on their way to the first one.
    let state = State::new(|_| Action::Acknowledge);
    let fake = Fake::start(&state);
    options.target = fake.target();
    options.keys = Some(folder.path().join("sim.keys"));
    Fleet::register(&options, |_| {}).await.unwrap();
    options.devices = 15;
    let mut seen = Vec::new();
    let fleet = Fleet::register(&options, |registered| seen.push(registered)).await.unwrap();
    assert_eq!((fleet.len(), seen[0]), (15, 10), "ten are known from the file");
    assert_eq!(state.registered.lock().unwrap().len(), 15);

    state.registered.lock().unwrap().clear();
    Fleet::register(&options, |_| {}).await.unwrap();
    assert_eq!(state.registered.lock().unwrap().len(), 15);
}

#[tokio::test]
async fn the_client_tells_code_message_and_headers_in_every_protocol() {
    let state = State::new(|_| Action::Acknowledge);
    let fake = Fake::start(&state);
    for (n, protocol) in [Protocol::Connect, Protocol::Json, Protocol::Grpc].into_iter().enumerate() {
        let mut client = Client::new(&fake.target(), protocol, Some("admin")).unwrap();
        let device_id = format!("d{n}");
        let request = RegisterDeviceRequest { device_id: device_id.clone(), ..Default::default() };
        let reply = client.register(&request).await.unwrap();
        assert_eq!(reply.message.api_key, format!("key-of-{device_id}"));
        assert_eq!(reply.headers["x-request-id"], "r-1");
        let refused = client.register(&request).await.unwrap_err();
        assert_eq!(refused.code(), Some(Code::ALREADY_EXISTS));
        assert_eq!(refused.to_string(), "ALREADY_EXISTS: 100% there");
        let found = client.get_device(&GetDeviceRequest { device_id, ..Default::default() }).await.unwrap();
        assert_eq!(found.message.device.unwrap().id, format!("d{n}"));
        let refused = client.list_devices(&Default::default()).await.unwrap_err();
        assert_eq!(refused.code(), Some(Code::UNIMPLEMENTED));
    }
}

#[tokio::test]
async fn a_client_connects_again_after_the_server_came_back() {
    let state = State::new(|n| if n == 0 { Action::HangUp } else { Action::Acknowledge });
    let fake = Fake::start(&state);
    for protocol in [Protocol::Connect, Protocol::Grpc] {
        state.heartbeats.store(0, Ordering::Relaxed);
        let mut client = Client::new(&fake.target(), protocol, Some("key-of-d")).unwrap();
        let heartbeat = fleetd_proto::v1::HeartbeatRequest {
            device_id: "d".to_owned(),
            timestamp: Some(fleetd_proto::Timestamp { seconds: 1, nanos: 0 }),
            ..Default::default()
        };
        let broken = client.heartbeat(&heartbeat).await.unwrap_err();
        assert_eq!(broken.code(), None, "{broken:?}");
        assert!(client.heartbeat(&heartbeat).await.unwrap().message.acknowledged);
    }
}
