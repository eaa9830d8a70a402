//! Rows arrive: with the values that were sent, soon, and once, whatever the network does.
use std::time::Duration;

use fleetd::telemetry::clickhouse::ClickHouse;
use fleetd::telemetry::row::{append_section, encode_heartbeat, DeviceEvent, KnownDevice, Sections, Table, UnixMillis};
use fleetd_proto::v1::{device_status, DeviceStatus, HeartbeatRequest, ProcessInfo, SystemStats};

use crate::fixture::{config, eventually, shared_engine, Fixture, Random, SOON};
use crate::proxy::{Fault, Proxy};

#[derive(Debug, PartialEq, clickhouse::Row, serde::Deserialize)]
struct Text {
    text: String,
}

async fn texts(fixture: &Fixture, sql: &str) -> Vec<String> {
    let rows = fixture.clickhouse.rows::<Text>("read", fixture.clickhouse.query(sql)).await.expect(sql);
    rows.into_iter().map(|row| row.text).collect()
}

#[tokio::test]
async fn hostile_and_missing_values_are_stored_as_documented() {
    let mut fixture = Fixture::new().await;
    let received_at = UnixMillis::now();
    let status = DeviceStatus {
        state: device_status::State::Maintenance as i32,
        uptime_seconds: u64::MAX,
        message: "\u{1F980}".repeat(1 << 18),
        ..Default::default()
    };
    let stats = SystemStats {
        cpu_percent: f64::NAN,
        memory_used_mb: u64::MAX,
        disk_used_gb: -10.5,
        load_average_1m: Some(f64::INFINITY),
        temperature_celsius: Some(-273.0),
        signal_dbm: Some(i32::MIN),
        metrics: [("a".to_owned(), f64::MAX), ("b".to_owned(), f64::NAN)].into_iter().collect(),
        ..Default::default()
    };
    let hostile = HeartbeatRequest {
        status: Some(status),
        stats: Some(stats),
        timestamp: Some(fleetd_proto::Timestamp { seconds: i64::MAX, nanos: i32::MIN }),
        processes: vec![ProcessInfo {
            name: "x".repeat(1 << 20),
            state: 77,
            exit_code: Some(-9),
            ..Default::default()
        }],
        ..Default::default()
    };
    for (device, heartbeat) in [("hostile", &hostile), ("silent", &HeartbeatRequest::default())] {
        let mut record = Vec::new();
        encode_heartbeat(device, &KnownDevice::default(), heartbeat, received_at, &mut record).expect("valid");
        fixture.append_raw(&record).await;
    }
    let mut record = Vec::new();
    DeviceEvent {
        received_at,
        device_id: "hostile",
        timestamp: received_at,
        kind: "status_change",
        from_state: "ONLINE",
        to_state: "LATE",
        detail: "it's \0 \u{1F980}",
    }
    .encode(&mut record);
    fixture.append_raw(&record).await;

    let writer = fixture.start_writer();
    writer.flush(fixture.last_seq, SOON).await.expect("flushed");

    let hostile =
        "SELECT toString((state, uptime_seconds, length(message), cpu_percent, memory_used_mb, disk_used_gb, \
        load_average_1m, temperature_celsius, signal_dbm, metrics, timestamp)) AS text FROM heartbeats \
        WHERE device_id = 'hostile'";
    let expected = "('MAINTENANCE',18446744073709551615,1024,NULL,18446744073709551615,-10.5,NULL,-273,-2147483648,\
        {'a':1.7976931348623157e308},'2299-12-31 23:59:59.999')";
    assert_eq!(texts(&fixture, hostile).await, [expected]);
    let silent = "SELECT toString((state, cpu_percent, memory_used_mb, disk_used_gb, battery_percent, metrics, \
        timestamp = received_at)) AS text FROM heartbeats WHERE device_id = 'silent'";
    assert_eq!(texts(&fixture, silent).await, ["('UNKNOWN',NULL,NULL,NULL,NULL,{},1)"]);
    let process = "SELECT toString((length(name), state, exit_code)) AS text FROM processes";
    assert_eq!(texts(&fixture, process).await, ["(1024,'UNSPECIFIED',-9)"]);
    let event = "SELECT toString((kind, from_state, to_state, detail = concat('it''s ', char(0), ' 🦀'))) AS text \
        FROM device_events";
    assert_eq!(texts(&fixture, event).await, ["('status_change','ONLINE','LATE',1)"]);
    writer.shutdown(SOON).await.expect("stops");
}

/// A journal outlives the program that wrote it: rows of before `device_type` was a column end without it.
#[tokio::test]
async fn rows_that_an_earlier_version_wrote_arrive_with_the_defaults_of_later_columns() {
    let mut fixture = Fixture::new().await;
    let mut record = Vec::new();
    for device_type in ["camera", "", "camera"] {
        let known = KnownDevice { device_type, version: "1.2.3", ..KnownDevice::default() };
        record.clear();
        encode_heartbeat("rpi-001", &known, &HeartbeatRequest::default(), UnixMillis::now(), &mut record)
            .expect("valid");
        if device_type.is_empty() {
            let section = Sections::of(&record).next().expect("a row").expect("well formed");
            let earlier = section.row.strip_suffix(&[0]).expect("an empty type").to_vec();
            record.clear();
            append_section(&mut record, Table::Heartbeats, |row| row.extend_from_slice(&earlier));
        }
        fixture.append_raw(&record).await;
    }
    let writer = fixture.start_writer();
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    let types = "SELECT concat(device_type, ' ', version) AS text FROM heartbeats ORDER BY seq";
    assert_eq!(texts(&fixture, types).await, ["camera 1.2.3", " 1.2.3", "camera 1.2.3"]);
    let status = writer.status();
    assert_eq!((status.rows_set_aside, status.rows_repaired, status.rows_doubled), (0, 0, 0));
    writer.shutdown(SOON).await.expect("stops");
}

#[tokio::test]
async fn a_lone_heartbeat_is_visible_within_a_second_and_a_half_without_a_flush() {
    let mut fixture = Fixture::new().await;
    let writer = fixture.start_writer();
    for _ in 0..3 {
        fixture.append(1).await;
        let appended = std::time::Instant::now();
        eventually("the heartbeat is committed", || async { writer.status().committed_seq >= fixture.last_seq }).await;
        assert!(appended.elapsed() < Duration::from_millis(1500), "{:?}", appended.elapsed());
    }
    fixture.assert_exactly_once().await;
    writer.shutdown(SOON).await.expect("stops");
}

#[tokio::test]
async fn shutdown_leaves_nothing_in_the_journal_unsent() {
    let mut fixture = Fixture::new().await;
    let writer = fixture.start_writer();
    fixture.append(10_000).await;
    writer.shutdown(SOON).await.expect("stops");
    fixture.assert_exactly_once().await;
    assert_eq!(writer.status().lag_records, 0);
}

/// Sends heartbeats through the proxy while its faults come.
async fn survive(faults: Vec<Fault>, batches: u64) {
    let upstream = shared_engine().await.url();
    let mut fixture = Fixture::new().await;
    let proxy = Proxy::start(&upstream, Duration::from_millis(2500));
    let mut through_proxy = config(&proxy.url(), &fixture.database);
    through_proxy.insert_timeout = Duration::from_secs(1);
    proxy.plan(faults.iter().copied());
    let writer = fixture.start_writer_through(ClickHouse::new(&through_proxy));
    for _ in 0..batches {
        fixture.append(700).await;
        writer.flush(fixture.last_seq, SOON).await.expect("flushed");
    }
    // What is late comes now, after its rows were sent again.
    let deadline = std::time::Instant::now() + SOON;
    while !proxy.is_through() {
        assert!(std::time::Instant::now() < deadline, "the faults {faults:?} never came to an end");
        fixture.append(1).await;
        writer.flush(fixture.last_seq, SOON).await.expect("flushed");
    }
    fixture.assert_exactly_once().await;
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    fixture.assert_exactly_once().await;
    let status = writer.status();
    assert_eq!((status.rows_doubled, status.rows_repaired, status.rows_set_aside), (0, 0, 0), "{faults:?}");
    writer.shutdown(SOON).await.expect("stops");
}

#[tokio::test]
async fn each_fault_of_the_network_leaves_every_row_there_once() {
    for fault in Fault::ALL {
        survive(vec![fault, fault], 2).await;
    }
}

#[tokio::test]
async fn random_sequences_of_faults_leave_every_row_there_once() {
    for seed in 0..6 {
        let mut random = Random(seed);
        let faults: Vec<_> = (0..12).map(|_| Fault::ALL[random.below(Fault::ALL.len() as u64) as usize]).collect();
        survive(faults, 4).await;
    }
}

#[tokio::test]
async fn a_backlog_is_caught_up_when_clickhouse_comes_back() {
    let upstream = shared_engine().await.url();
    let mut fixture = Fixture::new().await;
    let proxy = Proxy::start(&upstream, SOON);
    proxy.set_down(true);
    let writer = fixture.start_writer_through(ClickHouse::new(&config(&proxy.url(), &fixture.database)));
    for _ in 0..20 {
        fixture.append(6_000).await;
    }
    let refused = writer.flush(fixture.last_seq, Duration::from_millis(300)).await.expect_err("nobody answers");
    assert!(refused.to_string().contains("the last failure was"), "{refused}");
    assert_eq!(fixture.stored(Table::Heartbeats).await.rows, 0);

    proxy.set_down(false);
    writer.flush(fixture.last_seq, SOON).await.expect("caught up");
    fixture.assert_exactly_once().await;
    // 120,000 heartbeats and their processes are three full batches of two tables each.
    assert!(proxy.inserts() <= 12, "{} inserts", proxy.inserts());
    writer.shutdown(SOON).await.expect("stops");
}
