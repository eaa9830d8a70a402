//! The audit: what ClickHouse acknowledged and lost is sent again, what is doubled is counted, and only then does the
//! journal forget.
use fleetd::telemetry::row::Table;

use crate::fixture::{eventually, Fixture, Stored, SOON};

#[tokio::test]
async fn rows_that_vanish_after_their_acknowledgement_are_sent_again() {
    let mut fixture = Fixture::new().await;
    // Not sealed, and not audited before it is asked for.
    fixture.options.audit_every = SOON;
    fixture.append(200).await;
    let writer = fixture.start_writer();
    for (vanish, lost) in [
        ("ALTER TABLE heartbeats DELETE WHERE seq % 10 = 3 SETTINGS mutations_sync = 2", 20),
        ("ALTER TABLE heartbeats DELETE WHERE 1 SETTINGS mutations_sync = 2", 200),
        ("TRUNCATE TABLE heartbeats", 200),
    ] {
        writer.flush(fixture.last_seq, SOON).await.expect("flushed");
        let before = writer.status().rows_repaired;
        fixture.assert_exactly_once().await;
        fixture.execute(vanish).await;
        assert_eq!(fixture.stored(Table::Heartbeats).await.rows, fixture.heartbeats - lost, "{vanish}");
        // The audit starts from what was never audited: a restart forgets what was.
        writer.shutdown(SOON).await.expect("stops");
        let again = fixture.start_writer();
        again.audit(fixture.last_seq, SOON).await.expect("audited");
        fixture.assert_exactly_once().await;
        assert_eq!(again.status().rows_repaired, lost, "{vanish}");
        again.shutdown(SOON).await.expect("stops");
        assert_eq!(before, 0);
    }
}

#[tokio::test]
async fn a_part_that_is_lost_twice_is_sent_a_third_time_under_another_token() {
    let mut fixture = Fixture::new().await;
    fixture.append(300).await;
    for _ in 0..3 {
        let writer = fixture.start_writer();
        writer.audit(fixture.last_seq, SOON).await.expect("audited");
        fixture.assert_exactly_once().await;
        writer.shutdown(SOON).await.expect("stops");
        // Unlike DELETE, dropping a partition by the day leaves the deduplication log as it is.
        let partition = "ALTER TABLE heartbeats DROP PARTITION ID '{}'";
        for id in partitions(&fixture).await {
            fixture.execute(&partition.replace("{}", &id)).await;
        }
        assert_eq!(fixture.stored(Table::Heartbeats).await.rows, 0);
    }
    let writer = fixture.start_writer();
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    fixture.assert_exactly_once().await;
    writer.shutdown(SOON).await.expect("stops");
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Partition {
    id: String,
}

async fn partitions(fixture: &Fixture) -> Vec<String> {
    let query = fixture
        .clickhouse
        .query(
            "SELECT DISTINCT partition_id AS id FROM system.parts \
             WHERE database = {database:String} AND table = 'heartbeats' AND active",
        )
        .param("database", &fixture.database);
    let rows = fixture.clickhouse.rows::<Partition>("list partitions", query).await.expect("lists");
    rows.into_iter().map(|row| row.id).collect()
}

#[tokio::test]
async fn doubled_rows_are_counted() {
    let mut fixture = Fixture::new().await;
    fixture.options.audit_every = SOON;
    fixture.append(200).await;
    let writer = fixture.start_writer();
    writer.flush(fixture.last_seq, SOON).await.expect("flushed");
    fixture.execute("INSERT INTO heartbeats SELECT * FROM heartbeats WHERE seq % 100 = 7").await;
    assert_eq!(fixture.stored(Table::Heartbeats).await, Stored { rows: 202, distinct: 200 });
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    assert_eq!((writer.status().rows_doubled, writer.status().rows_repaired), (2, 0));
    writer.shutdown(SOON).await.expect("stops");
}

#[tokio::test]
async fn a_segment_is_forgotten_only_after_its_rows_were_counted() {
    let mut fixture = Fixture::new().await;
    fixture.append(20_000).await;
    let segments = fixture.journal.segments().len();
    assert!(segments > 5, "{segments} segments");
    let writer = fixture.start_writer();
    eventually("all sealed segments are gone", || async { fixture.journal.segments().len() == 1 }).await;
    let status = writer.status();
    assert!(status.audited_seq >= fixture.journal.first_seq() - 1, "{status:?}");
    assert!(status.audits >= segments as u64 - 1, "{status:?}");
    fixture.assert_exactly_once().await;
    writer.shutdown(SOON).await.expect("stops");

    // Rows that vanish while their segment waits for its audit come back before it is trimmed.
    fixture.execute("RENAME TABLE processes TO mislaid").await;
    fixture.append(20_000).await;
    let writer = fixture.start_writer();
    eventually("heartbeats arrive", || async { fixture.stored(Table::Heartbeats).await.rows > 20_000 }).await;
    assert!(fixture.journal.segments().len() > 5, "nothing is trimmed while a table is away");
    fixture.execute("RENAME TABLE mislaid TO processes").await;
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    eventually("all sealed segments are gone", || async { fixture.journal.segments().len() == 1 }).await;
    fixture.assert_exactly_once().await;
    writer.shutdown(SOON).await.expect("stops");
}

#[tokio::test]
async fn rows_past_their_retention_are_not_missed() {
    let mut fixture = Fixture::new().await;
    fixture.options.audit_every = SOON;
    fixture.options.retention.heartbeats = Some(std::time::Duration::from_secs(60));
    fixture.append(100).await;
    let writer = fixture.start_writer();
    writer.flush(fixture.last_seq, SOON).await.expect("flushed");
    fixture.execute("TRUNCATE TABLE heartbeats").await;
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    assert_eq!(fixture.stored(Table::Heartbeats).await.rows, 0);
    assert_eq!(writer.status().rows_repaired, 0);
    writer.shutdown(SOON).await.expect("stops");
}
