//! Gates of deployments, measured in a real ClickHouse on rows that came the whole way.
use std::sync::LazyLock;

use fleetd::clock::UnixMillis;
use fleetd::ids::DeviceId;
use fleetd::telemetry::analysis::{measure, MAX_SAMPLE};
use fleetd::telemetry::clickhouse::ClickHouse;
use fleetd::telemetry::row::{encode_heartbeat, KnownDevice};
use fleetd_proto::v1::gate_result::Verdict;
use fleetd_proto::v1::{device_status, DeviceStatus, GateResult, HeartbeatRequest, MetricGate, SystemStats};

use crate::fixture::{config, database_name, Fixture, SOON};

const MINUTE: i64 = 60_000;

/// The begin of the span is two hours ago: rows of another year would be dropped by the table's retention.
fn at(minutes: i64) -> UnixMillis {
    static START: LazyLock<i64> = LazyLock::new(|| UnixMillis::now().as_millis() - 120 * MINUTE);
    UnixMillis::from_millis_clamped(*START + minutes * MINUTE)
}

/// What the registry knows of every device.
const KNOWN: KnownDevice<'_> = KnownDevice { device_type: "", version: "", memory_mb: 2_000, disk_gb: 0.0 };

fn group(name: &str, devices: usize) -> Vec<DeviceId> {
    (0..devices).map(|n| DeviceId::parse(&format!("{name}-{n}")).expect("an id")).collect()
}

fn status(uptime_seconds: u64, restart_count: u32) -> Option<DeviceStatus> {
    let state = device_status::State::Online as i32;
    Some(DeviceStatus { state, uptime_seconds, restart_count, ..DeviceStatus::default() })
}

async fn report(fixture: &mut Fixture, id: &str, minutes: i64, heartbeat: HeartbeatRequest) {
    let mut record = Vec::new();
    encode_heartbeat(id, &KNOWN, &heartbeat, at(minutes), &mut record).expect("a valid heartbeat");
    fixture.append_raw(&record).await;
}

async fn written(fixture: &Fixture) {
    let writer = fixture.start_writer();
    writer.flush(fixture.last_seq, SOON).await.expect("flushed");
    writer.shutdown(SOON).await.expect("stops");
}

fn gate(metric: &str, aggregation: &str) -> MetricGate {
    MetricGate {
        metric: metric.into(),
        aggregation: aggregation.into(),
        max_increase_percentage: Some(10.0),
        ..MetricGate::default()
    }
}

async fn measured(fixture: &Fixture, gate: &MetricGate, updated: &[DeviceId], control: &[DeviceId]) -> GateResult {
    measure(&fixture.clickhouse, gate, updated, control, at(0), at(60)).await.expect("ClickHouse answers")
}

#[tokio::test]
async fn a_version_that_works_harder_fails_against_the_devices_that_were_held_back() {
    let mut fixture = Fixture::new().await;
    for n in 0..5_u8 {
        for minute in 0..4 {
            let load = |cpu_percent: f64, queue: f64| HeartbeatRequest {
                status: status(100, 0),
                stats: Some(SystemStats {
                    cpu_percent: cpu_percent + f64::from(n),
                    memory_used_mb: 500,
                    // Of the held-back ones only the registry knows the total.
                    memory_total_mb: if cpu_percent > 50.0 { 1_000 } else { 0 },
                    metrics: [("queue.depth".to_owned(), queue)].into(),
                    ..SystemStats::default()
                }),
                ..HeartbeatRequest::default()
            };
            report(&mut fixture, &format!("new-{n}"), minute, load(80.0, 3.0)).await;
            report(&mut fixture, &format!("old-{n}"), minute, load(20.0, 3.0)).await;
        }
        // Before and after the span: another story.
        let late = HeartbeatRequest {
            stats: Some(SystemStats { cpu_percent: 1e6, ..SystemStats::default() }),
            ..HeartbeatRequest::default()
        };
        report(&mut fixture, &format!("new-{n}"), -1, late.clone()).await;
        report(&mut fixture, &format!("new-{n}"), 60, late).await;
    }
    written(&fixture).await;
    let (new, old) = (group("new", 5), group("old", 5));

    let cpu = measured(&fixture, &gate("cpu_usage", "AVG"), &new, &old).await;
    assert_eq!((cpu.value, cpu.control_value, cpu.verdict()), (Some(82.0), Some(22.0), Verdict::Failed));
    assert_eq!((cpu.device_count, cpu.control_device_count), (5, 5));
    for (aggregation, value) in [("MIN", 80.0), ("MAX", 84.0)] {
        let told = measured(&fixture, &gate("cpu_usage", aggregation), &new, &old).await;
        assert_eq!(told.value, Some(value), "{aggregation}");
    }
    for aggregation in ["P50", "P90", "P95", "P99"] {
        let value = measured(&fixture, &gate("cpu_usage", aggregation), &new, &old).await.value.expect("a value");
        // 81 to 84, within the per cent of a sketch.
        assert!((80.19..=84.84).contains(&value), "{aggregation}: {value}");
    }
    let memory = measured(&fixture, &gate("memory_usage", ""), &new, &old).await;
    assert_eq!((memory.value, memory.control_value), (Some(50.0), Some(25.0)));
    let queue = measured(&fixture, &gate("queue.depth", "MAX"), &new, &old).await;
    assert_eq!((queue.value, queue.control_value, queue.verdict()), (Some(3.0), Some(3.0), Verdict::Passed));
    let absolute = MetricGate { max_value: Some(90.0), max_increase_percentage: None, ..gate("cpu_usage", "AVG") };
    let told = measured(&fixture, &absolute, &new, &old).await;
    assert_eq!((told.verdict(), told.control_value, told.control_device_count), (Verdict::Passed, None, 0));
}

#[tokio::test]
async fn restarts_count_by_their_increase_also_over_a_reboot() {
    let mut fixture = Fixture::new().await;
    for n in 0..3 {
        // 7 before the span; then 2 more, a reboot that begins anew, and 3.
        for (minute, uptime, restarts) in [(0, 900, 7), (1, 960, 8), (3, 1_080, 9), (4, 30, 0), (5, 90, 3)] {
            let heartbeat = HeartbeatRequest { status: status(uptime, restarts), ..HeartbeatRequest::default() };
            report(&mut fixture, &format!("new-{n}"), minute, heartbeat).await;
        }
        // A report without a status tells no restarts, and is no reboot.
        report(&mut fixture, &format!("new-{n}"), 2, HeartbeatRequest::default()).await;
        for minute in 0..6 {
            let heartbeat = HeartbeatRequest { status: status(900, 40), ..HeartbeatRequest::default() };
            report(&mut fixture, &format!("old-{n}"), minute, heartbeat).await;
        }
    }
    let once = HeartbeatRequest { status: status(900, 1_000), ..HeartbeatRequest::default() };
    report(&mut fixture, "new-3", 2, once).await;
    written(&fixture).await;

    let told = measured(&fixture, &gate("restart_count", "AVG"), &group("new", 4), &group("old", 3)).await;
    assert_eq!((told.value, told.control_value, told.verdict()), (Some(5.0), Some(0.0), Verdict::Failed));
    assert_eq!(told.device_count, 3, "one reading says nothing of an increase");
}

#[tokio::test]
async fn no_data_is_inconclusive_and_no_answer_is_an_error() {
    let mut fixture = Fixture::new().await;
    for n in 0..2 {
        let heartbeat = HeartbeatRequest { stats: Some(SystemStats::default()), ..HeartbeatRequest::default() };
        report(&mut fixture, &format!("new-{n}"), 0, heartbeat).await;
    }
    written(&fixture).await;
    let absolute = MetricGate { max_value: Some(90.0), max_increase_percentage: None, ..gate("cpu_usage", "AVG") };
    let few = measured(&fixture, &absolute, &group("new", 2), &[]).await;
    assert_eq!((few.verdict(), few.value, few.device_count), (Verdict::Inconclusive, Some(0.0), 2));
    for metric in ["temperature_celsius", "nobody_reports_this", "restart_count", "disk_usage", "uptime"] {
        let nothing =
            measured(&fixture, &MetricGate { metric: metric.into(), ..absolute.clone() }, &group("new", 2), &[]).await;
        assert_eq!(
            (nothing.verdict(), nothing.value, nothing.device_count),
            (Verdict::Inconclusive, None, 0),
            "{metric}"
        );
    }
    let nobody = measured(&fixture, &absolute, &[], &[]).await;
    assert_eq!(nobody.verdict(), Verdict::Inconclusive);
    // A database that is not there.
    let elsewhere = ClickHouse::new(&config(&crate::fixture::shared_engine().await.url(), &database_name()));
    assert!(measure(&elsewhere, &absolute, &group("new", 2), &[], at(0), at(60)).await.is_err());
}

#[tokio::test]
async fn ten_thousand_devices_are_one_question_and_names_are_never_part_of_it() {
    let mut fixture = Fixture::new().await;
    for n in [0, 4_000, MAX_SAMPLE - 1, MAX_SAMPLE] {
        let heartbeat = HeartbeatRequest {
            status: status(900, 0),
            stats: Some(SystemStats { cpu_percent: 10.0, memory_used_mb: 500, ..SystemStats::default() }),
            ..HeartbeatRequest::default()
        };
        report(&mut fixture, &format!("new-{n}"), 0, heartbeat).await;
    }
    written(&fixture).await;
    let many = group("new", MAX_SAMPLE + 5);
    for metric in ["cpu_usage", "memory_usage"] {
        let told = measured(&fixture, &gate(metric, "AVG"), &many, &many).await;
        assert_eq!((told.device_count, told.control_device_count), (3, 3), "those beyond the limit are not looked at");
    }
    let hostile = gate("x') OR 1=1 --", "AVG");
    let told = measured(&fixture, &hostile, &many, &many).await;
    assert_eq!((told.verdict(), told.device_count), (Verdict::Inconclusive, 0));
}
