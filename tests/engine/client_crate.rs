//! The `clickhouse` crate, which the rest of fleetd uses, against the engine: plain and with its LZ4.
use clickhouse::{Client, Compression, Row};
use serde::{Deserialize, Serialize};

use crate::support::start;

#[derive(Row, Serialize, Deserialize, Debug, PartialEq, Clone)]
struct Beat {
    id: u64,
    name: String,
    values: Vec<f32>,
}

fn beats(count: u64) -> Vec<Beat> {
    (0..count).map(|id| Beat { id, name: format!("device ' \\ {id}\0"), values: vec![id as f32, 0.5] }).collect()
}

async fn round_trip(compression: Compression) {
    let engine = start().await;
    let client = Client::default().with_url(engine.process.url()).with_compression(compression);
    client.query("CREATE DATABASE fleet").execute().await.expect("runs");
    let client = client.with_database("fleet");
    client
        .query("CREATE TABLE beats (id UInt64, name String, values Array(Float32)) ENGINE = MergeTree ORDER BY id")
        .execute()
        .await
        .expect("runs");

    // More than one block, so that the answer comes in pieces.
    let sent = beats(150_000);
    let mut insert = client.insert::<Beat>("beats").await.expect("the table is there");
    for beat in &sent {
        insert.write(beat).await.expect("sent");
    }
    insert.end().await.expect("committed");

    let back = client.query("SELECT ?fields FROM beats ORDER BY id").fetch_all::<Beat>().await.expect("rows");
    assert_eq!(back, sent);

    let name = sent[42].name.clone();
    let bound: u64 = client
        .query("SELECT id FROM beats WHERE name = ? AND id > ?")
        .bind(&name)
        .bind(1)
        .fetch_one()
        .await
        .expect("one row");
    assert_eq!(bound, 42);
    let on_the_server: u64 = client
        .query("SELECT count() FROM beats WHERE id >= {low:UInt64} AND name != {name:String}")
        .param("low", 4_000)
        .param("name", "it's \n no device")
        .fetch_one()
        .await
        .expect("one row");
    assert_eq!(on_the_server, 146_000);

    let error = client.query("SELECT * FROM nowhere").fetch_all::<u8>().await.expect_err("no such table");
    assert!(error.to_string().contains("Code: 60"), "{error}");

    let late = client
        .query("SELECT throwIf(number = 3000000, 'too far') FROM numbers(4000000)")
        .fetch_all::<u8>()
        .await
        .expect_err("it fails late");
    assert!(late.to_string().contains("too far"), "{late}");
}

#[tokio::test]
async fn the_clickhouse_crate_works_without_compression() {
    round_trip(Compression::None).await;
}

#[tokio::test]
async fn the_clickhouse_crate_works_with_its_lz4() {
    round_trip(Compression::Lz4).await;
}

#[tokio::test]
async fn formatted_bytes_and_an_abandoned_insert_behave_as_the_writer_needs() {
    let engine = start().await;
    let client = Client::default().with_url(engine.process.url());
    client.query("CREATE TABLE t (a UInt32) ENGINE = MergeTree ORDER BY a").execute().await.expect("runs");
    let mut insert =
        client.insert_formatted_with("INSERT INTO t FORMAT RowBinary").with_setting("log_comment", "batch");
    insert.send(bytes::Bytes::from_static(&[1, 0, 0, 0, 2, 0, 0, 0])).await.expect("sent");
    insert.end().await.expect("committed");

    let mut abandoned = client.insert_formatted_with("INSERT INTO t FORMAT RowBinary");
    abandoned.send(bytes::Bytes::from_static(&[3, 0, 0, 0])).await.expect("sent");
    drop(abandoned);
    engine.eventually("SELECT count() FROM system.processes WHERE query_kind = 'Insert'", "0").await;
    assert_eq!(engine.run("SELECT groupArray(a) FROM t").await, "[1,2]");
}
