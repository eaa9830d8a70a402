//! Rows on their way in: whole, once, and not at all when the client goes away.
use std::io::Write;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{encode, rows, start, Engine};

const CHECK: &str = "SELECT count(), uniqExact(id), sum(length(bytes) != id % 257), \
                     countIf(length(bytes) = 256 AND bytes = unhex(arrayStringConcat(arrayMap(n -> hex(toUInt8(n)), range(256)))))";

async fn engine_with_a_table() -> Engine {
    let engine = start().await;
    engine
        .run(
            "CREATE TABLE t (id UInt32, bytes String) ENGINE = MergeTree ORDER BY id \
             SETTINGS non_replicated_deduplication_window = 100",
        )
        .await;
    engine
}

#[tokio::test]
async fn two_hundred_thousand_binary_rows_arrive_byte_for_byte() {
    let engine = engine_with_a_table().await;
    let reply = engine.insert("INSERT INTO t FORMAT RowBinary", "", rows(0, 200_000)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let summary: serde_json::Value = serde_json::from_str(reply.header("x-clickhouse-summary")).expect("JSON");
    assert_eq!(summary["written_rows"], "200000");
    assert_eq!(engine.run(&format!("{CHECK} FROM t")).await, "200000\t200000\t0\t778");
}

#[tokio::test]
async fn statement_and_rows_may_share_the_body() {
    let engine = engine_with_a_table().await;
    let mut body = b"INSERT INTO t FORMAT RowBinary\n".to_vec();
    body.extend(rows(0, 1_000));
    assert_eq!(engine.post("/", body).await.status, 200);
    engine.run("INSERT INTO t (id, bytes) VALUES (5000, 'FORMAT CSV'), (5001, 'it''s')").await;
    engine.run("INSERT INTO t SELECT number + 6000, '' FROM numbers(10)").await;
    engine.run("INSERT INTO t FORMAT JSONEachRow\n{\"id\": 7000, \"bytes\": \"x\"}\n").await;
    assert_eq!(engine.run("SELECT count() FROM t").await, "1013");
}

#[tokio::test]
async fn a_batch_sent_twice_with_one_token_lands_once() {
    let engine = engine_with_a_table().await;
    for (token, first) in [("1-1000", 0), ("1-1000", 0), ("1001-2000", 1_000)] {
        let settings = format!("&insert_deduplication_token={token}");
        let reply = engine.insert("INSERT INTO t FORMAT RowBinary", &settings, rows(first, 1_000)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    assert_eq!(engine.run("SELECT count(), uniqExact(id) FROM t").await, "2000\t2000");
}

#[tokio::test]
async fn compressed_rows_are_taken_in_every_coding() {
    let engine = engine_with_a_table().await;
    let plain = rows(0, 20_000);
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&plain).expect("a vector takes all");
        encoder.finish().expect("a vector takes all")
    };
    let lz4 = {
        let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
        encoder.write_all(&plain).expect("a vector takes all");
        encoder.finish().expect("a vector takes all")
    };
    let zstd = zstd::stream::encode_all(&plain[..], 1).expect("a vector takes all");
    let path = format!("/?query={}", encode("INSERT INTO t FORMAT RowBinary"));
    for (coding, packed) in [("gzip", gzip), ("lz4", lz4), ("zstd", zstd)] {
        let mut request = engine.request("POST", &path, packed);
        request.headers_mut().insert("content-encoding", coding.parse().expect("a header"));
        let reply = engine.try_send(request).await.expect("an answer");
        assert_eq!(reply.status, 200, "{coding}: {}", reply.text());
        assert_eq!(engine.run(&format!("{CHECK} FROM t")).await, "20000\t20000\t0\t77", "{coding}");
        engine.run("TRUNCATE TABLE t").await;
    }
}

#[tokio::test]
async fn a_damaged_block_is_refused_and_leaves_nothing() {
    let engine = engine_with_a_table().await;
    let reply = engine.insert("INSERT INTO t FORMAT RowBinary", "&decompress=1", vec![7; 500]).await;
    assert!(["40", "271"].contains(&reply.header("x-clickhouse-exception-code")), "{}", reply.text());
    assert_eq!(engine.run("SELECT count() FROM t").await, "0");
}

#[tokio::test]
async fn rows_that_do_not_parse_leave_nothing_and_say_where() {
    let engine = engine_with_a_table().await;
    let mut torn = rows(0, 1_000);
    torn.extend_from_slice(&[1, 2]);
    let reply = engine.insert("INSERT INTO t FORMAT RowBinary", "", torn).await;
    assert_eq!(reply.header("x-clickhouse-exception-code"), "33", "{}", reply.text());
    assert!(reply.text().contains("at row 1001"), "{}", reply.text());
    assert_eq!(engine.run("SELECT count() FROM t").await, "0");
}

#[tokio::test]
async fn an_early_failure_reaches_a_client_that_is_still_sending() {
    let engine = start().await;
    let reply = engine.insert("INSERT INTO nowhere FORMAT RowBinary", "", vec![0; 20 << 20]).await;
    assert_eq!(reply.header("x-clickhouse-exception-code"), "60", "{}", reply.text());
}

/// Sends a part of an insert, waits until the engine works on it, and goes away.
async fn leave_in_the_middle(engine: &Engine, framing: &str, sent: &[u8]) {
    let mut stream = TcpStream::connect(engine.authority()).await.expect("the engine listens");
    let query = encode("INSERT INTO t FORMAT RowBinary");
    let head = format!("POST /?query={query} HTTP/1.1\r\nHost: {}\r\n{framing}\r\n\r\n", engine.authority());
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(sent).await.expect("sent");
    engine.eventually("SELECT count() FROM system.processes WHERE query_kind = 'Insert'", "1").await;
    drop(stream);
    engine.eventually("SELECT count() FROM system.processes WHERE query_kind = 'Insert'", "0").await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_an_insert_leaves_nothing() {
    let engine = engine_with_a_table().await;
    let half = rows(0, 100_000);
    leave_in_the_middle(&engine, &format!("Content-Length: {}", half.len() * 2), &half).await;
    let mut chunk = format!("{:x}\r\n", half.len()).into_bytes();
    chunk.extend_from_slice(&half);
    chunk.extend_from_slice(b"\r\n");
    leave_in_the_middle(&engine, "Transfer-Encoding: chunked", &chunk).await;
    assert_eq!(engine.run("SELECT count() FROM t").await, "0");
    let reply = engine.insert("INSERT INTO t FORMAT RowBinary", "", half).await;
    assert_eq!(reply.status, 200, "the next one is not disturbed: {}", reply.text());
    assert_eq!(engine.run("SELECT count() FROM t").await, "100000");
}

#[tokio::test]
async fn many_inserts_at_once_all_land() {
    let engine = engine_with_a_table().await;
    let inserts = (0..40_u32).map(|n| engine.insert("INSERT INTO t FORMAT RowBinary", "", rows(n * 500, 500)));
    for reply in futures_util::future::join_all(inserts).await {
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    assert_eq!(engine.run("SELECT count(), uniqExact(id) FROM t").await, "20000\t20000");
}
