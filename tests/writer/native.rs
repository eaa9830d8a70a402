//! Blocks of columns hold what the rows hold: the same rows, sent as RowBinary and as a block, compare equal.
use fleetd::telemetry::row::{
    encode_heartbeat, native, DeploymentEvent, DeviceEvent, KnownDevice, Sections, ServerMetric, Table, UnixMillis,
};
use fleetd_proto::v1::{DeviceStatus, HeartbeatRequest, ProcessInfo, SystemStats};

use crate::fixture::{Fixture, Random, Stored};

fn text(random: &mut Random) -> String {
    let lengths = [0, 1, 7, 127, 128, 300];
    let length = lengths[random.below(lengths.len() as u64) as usize];
    (0..length).map(|_| ['a', '\0', 'ü', '\u{1F980}'][random.below(4) as usize]).collect()
}

fn some<T>(random: &mut Random, value: impl FnOnce(&mut Random) -> T) -> Option<T> {
    (random.below(2) == 0).then(|| value(random))
}

fn heartbeat(random: &mut Random) -> HeartbeatRequest {
    let number = |random: &mut Random| f64::from_bits(random.below(u64::MAX));
    HeartbeatRequest {
        status: some(random, |random| DeviceStatus {
            state: random.below(6) as i32,
            uptime_seconds: random.below(u64::MAX),
            message: text(random),
            ..Default::default()
        }),
        stats: some(random, |random| SystemStats {
            cpu_percent: number(random),
            memory_used_mb: random.below(u64::MAX),
            load_average_5m: some(random, number),
            battery_percent: some(random, number),
            signal_dbm: some(random, |random| random.below(1 << 32) as u32 as i32),
            network_rx_bytes: random.below(u64::MAX),
            metrics: (0..random.below(5)).map(|n| (format!("metric_{n}"), number(random))).collect(),
            ..Default::default()
        }),
        processes: (0..random.below(4))
            .map(|_| ProcessInfo {
                name: text(random),
                version: text(random),
                exit_code: some(random, |random| random.below(256) as i32),
                ..Default::default()
            })
            .collect(),
        version: ["1.2.3", "1.2.4", ""][random.below(3) as usize].into(),
        ..Default::default()
    }
}

/// Records of every table, as the journal would hold them.
fn records(seed: u64) -> Vec<Vec<u8>> {
    let random = &mut Random(seed);
    let at = UnixMillis::now();
    let record = |random: &mut Random| {
        let mut record = Vec::new();
        let device_type = text(random);
        let known = KnownDevice { device_type: &device_type, ..KnownDevice::default() };
        encode_heartbeat("rpi-001", &known, &heartbeat(random), at, &mut record).expect("valid");
        let (kind, detail) = (text(random), text(random));
        let event = DeviceEvent {
            received_at: at,
            device_id: "rpi-001",
            timestamp: at,
            kind: &kind,
            from_state: "",
            to_state: "LATE",
            detail: &detail,
        };
        event.encode(&mut record);
        DeploymentEvent {
            received_at: at,
            deployment_id: "deploy-1",
            timestamp: at,
            device_id: "",
            update_id: &kind,
            kind: "wave",
            from_state: "",
            to_state: "",
            wave: 1,
            attempt: 2,
            detail: &detail,
        }
        .encode(&mut record);
        let value = random.below(1 << 40) as f64 / 7.0;
        ServerMetric { received_at: at, name: &detail, timestamp: at, value }.encode(&mut record);
        record
    };
    (0..200).map(|_| record(random)).collect()
}

async fn same_both_ways(fixture: &Fixture, table: Table, rows: &[Vec<u8>]) {
    let name = table.name();
    for format in ["RowBinary", "Native"] {
        let copy = format!("{name}_{}", format.to_lowercase());
        fixture.execute(&format!("CREATE TABLE {copy} AS {name} ENGINE = MergeTree ORDER BY tuple()")).await;
        let body = match format {
            "Native" => native::block(table, rows.iter().map(Vec::as_slice)).expect("rows"),
            _ => rows.concat(),
        };
        let sql = format!("INSERT INTO {copy} ({}) FORMAT {format}", table.column_list());
        fixture.clickhouse.insert(&sql, body.into()).await.expect("inserted");
    }
    // Bit for bit: NaN never equals itself, but hashes the same.
    let hashes = |copy: &str| format!("SELECT cityHash64(toString(tuple(*))) AS hash FROM {name}_{copy}");
    let sql = format!(
        "SELECT ifNull((SELECT count() FROM {name}_native), 0) AS rows, \
         ifNull((SELECT count() FROM (({}) INTERSECT ALL ({}))), 0) AS distinct",
        hashes("native"),
        hashes("rowbinary"),
    );
    let found = fixture.clickhouse.rows::<Stored>("compare", fixture.clickhouse.query(&sql)).await.expect("compares");
    let expected = rows.len() as u64;
    assert_eq!(found, [Stored { rows: expected, distinct: expected }], "{name}");
}

#[tokio::test]
async fn a_block_stores_what_its_rows_store() {
    for seed in 0..3 {
        let fixture = Fixture::new().await;
        let records = records(seed);
        for table in Table::ALL {
            let mut rows = Vec::new();
            for (seq, record) in records.iter().enumerate() {
                for section in Sections::of(record).map(|section| section.expect("well formed")) {
                    if section.table == table {
                        let prefix = [&[7; 16][..], &(seq as u64).to_le_bytes(), &[1, 0]].concat();
                        rows.push([&prefix, section.row].concat());
                    }
                }
            }
            same_both_ways(&fixture, table, &rows).await;
        }
    }
}

#[tokio::test]
async fn a_block_in_which_no_row_has_a_metric_is_taken() {
    let fixture = Fixture::new().await;
    let mut record = Vec::new();
    encode_heartbeat("a", &KnownDevice::default(), &HeartbeatRequest::default(), UnixMillis::now(), &mut record)
        .expect("valid");
    let section = Sections::of(&record).next().expect("a row").expect("well formed");
    same_both_ways(&fixture, Table::Heartbeats, &vec![[&[0; 26], section.row].concat(); 3]).await;
}
