//! Rows that ClickHouse will not have stop nobody and are not lost.
use fleetd::telemetry::row::{append_section, binary, encode_heartbeat, KnownDevice, Table, UnixMillis};
use fleetd_proto::v1::HeartbeatRequest;

use crate::fixture::{Fixture, Stored, SOON};

/// A heartbeat that ends in the middle of its columns.
fn short_row() -> Vec<u8> {
    let mut record = Vec::new();
    append_section(&mut record, Table::Heartbeats, |row| {
        binary::put_i64(row, UnixMillis::now().as_millis());
        binary::put_string(row, "poison");
        binary::put_i64(row, 0);
    });
    record
}

fn files(fixture: &Fixture, kind: &str) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(fixture.dir.path().join("set-aside")) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == kind)).collect()
}

#[tokio::test]
async fn rows_that_clickhouse_refuses_are_set_aside_and_all_others_land() {
    let mut fixture = Fixture::new().await;
    fixture.execute("ALTER TABLE heartbeats ADD CONSTRAINT mood CHECK device_id != 'refused'").await;
    let mut refused = Vec::new();
    encode_heartbeat("refused", &KnownDevice::default(), &HeartbeatRequest::default(), UnixMillis::now(), &mut refused)
        .expect("valid");
    for count in [0, 1, 500, 2_000] {
        fixture.append(count).await;
        fixture.append_raw(&refused).await;
    }
    let writer = fixture.start_writer();
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    fixture.assert_exactly_once().await;
    assert_eq!(writer.status().rows_set_aside, 4);
    let name = format!("{}.heartbeats.{}.0.json", fixture.journal.id(), fixture.last_seq);
    let note = std::fs::read_to_string(fixture.dir.path().join("set-aside").join(&name)).expect("a note");
    assert!(note.contains("Code: 469"), "{note}");

    // The statement in the note takes the file as it is, once the cause is mended.
    fixture.execute("ALTER TABLE heartbeats DROP CONSTRAINT mood").await;
    let sql = note
        .lines()
        .find_map(|line| line.trim().strip_prefix("\"sql\": \"")?.strip_suffix("\","))
        .expect("a statement");
    let row =
        std::fs::read(fixture.dir.path().join("set-aside").join(name.replace(".json", ".rowbinary"))).expect("a row");
    fixture.clickhouse.insert(sql, row.into()).await.expect("takes it");
    assert_eq!(fixture.stored(Table::Heartbeats).await.rows, fixture.heartbeats + 1);
    writer.shutdown(SOON).await.expect("stops");
}

#[tokio::test]
async fn poison_rows_are_set_aside_and_all_others_land() {
    let mut fixture = Fixture::new().await;
    fixture.append(3_000).await;
    let first = fixture.append_raw(&short_row()).await;
    fixture.append(5_000).await;
    fixture.append_raw(&short_row()).await;
    fixture.append_raw(&short_row()).await;
    fixture.append(10).await;

    let writer = fixture.start_writer();
    writer.flush(fixture.last_seq, SOON).await.expect("flushed");
    fixture.assert_exactly_once().await;
    assert_eq!(writer.status().rows_set_aside, 3);
    assert_eq!((files(&fixture, "rowbinary").len(), files(&fixture, "json").len()), (3, 3));
    let name = format!("{}.heartbeats.{first}.0.json", fixture.journal.id());
    let note = std::fs::read_to_string(fixture.dir.path().join("set-aside").join(name)).expect("a note");
    assert!(note.contains("do not read as the columns") && note.contains("INSERT INTO heartbeats"), "{note}");

    // The audit does not miss them, now or after a restart, and the journal moves on.
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    writer.shutdown(SOON).await.expect("stops");
    let writer = fixture.start_writer();
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    let status = writer.status();
    assert_eq!((status.rows_repaired, status.rows_set_aside), (0, 0));
    writer.shutdown(SOON).await.expect("stops");
    fixture.assert_exactly_once().await;
}

#[tokio::test]
async fn a_record_that_is_no_record_is_set_aside_whole() {
    let mut fixture = Fixture::new().await;
    fixture.append(10).await;
    let garbage = [200, 1, 2, 3];
    let seq = fixture.append_raw(&garbage).await;
    fixture.append(10).await;
    let writer = fixture.start_writer();
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    fixture.assert_exactly_once().await;
    let file = fixture.dir.path().join("set-aside").join(format!("{}.record.{seq}.bin", fixture.journal.id()));
    assert_eq!(std::fs::read(file).expect("kept"), garbage);
    assert_eq!(writer.status().records_set_aside, 1);
    writer.shutdown(SOON).await.expect("stops");
}

#[tokio::test]
async fn a_missing_table_is_waited_for_and_nothing_is_set_aside() {
    let mut fixture = Fixture::new().await;
    fixture.execute("RENAME TABLE heartbeats TO mislaid").await;
    fixture.append(100).await;
    let writer = fixture.start_writer();
    writer.flush(fixture.last_seq, std::time::Duration::from_secs(1)).await.expect_err("no table");
    fixture.execute("RENAME TABLE mislaid TO heartbeats").await;
    writer.flush(fixture.last_seq, SOON).await.expect("flushed");
    fixture.assert_exactly_once().await;
    assert_eq!(fixture.stored(Table::Heartbeats).await, Stored { rows: 100, distinct: 100 });
    assert!(files(&fixture, "rowbinary").is_empty());
    writer.shutdown(SOON).await.expect("stops");
}

/// What an operator did to the table is not the rows' fault, whatever code ClickHouse has for it.
#[tokio::test]
async fn a_table_that_refuses_every_row_is_waited_for_and_no_row_is_blamed() {
    let mut fixture = Fixture::new().await;
    fixture.execute("ALTER TABLE heartbeats ADD CONSTRAINT never CHECK 0").await;
    fixture.append(1_000).await;
    let writer = fixture.start_writer();
    // Long enough that the batch was halved down to rows of which each was refused alone.
    writer.flush(fixture.last_seq, std::time::Duration::from_secs(10)).await.expect_err("every row is refused");
    assert_eq!(writer.status().rows_set_aside, 0);
    fixture.execute("ALTER TABLE heartbeats DROP CONSTRAINT never").await;
    let inserts = writer.status().inserts;
    writer.flush(fixture.last_seq, SOON).await.expect("flushed");
    fixture.assert_exactly_once().await;
    assert_eq!(fixture.stored(Table::Heartbeats).await, Stored { rows: 1_000, distinct: 1_000 });
    let status = writer.status();
    assert_eq!((status.rows_set_aside, files(&fixture, "rowbinary").len()), (0, 0));
    // What was in doubt goes together again, not row by row.
    assert!(status.inserts - inserts < 30, "{} inserts", status.inserts - inserts);
    writer.shutdown(SOON).await.expect("stops");
}
