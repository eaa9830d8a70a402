//! What a client of ClickHouse's HTTP interface may rely on.
use bytes::Bytes;
use http_body_util::BodyExt;

use crate::support::{encode, start};

#[tokio::test]
async fn ping_and_a_bare_get_answer_ok() {
    let engine = start().await;
    for path in ["/ping", "/"] {
        let reply = engine.get(path).await;
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, "Ok.\n"), "{path}");
    }
    assert_eq!(engine.get("/nothing").await.status, 404);
}

#[tokio::test]
async fn a_select_comes_in_the_format_that_is_asked_for() {
    let engine = start().await;
    for (path, statement, format, expected) in [
        ("/", "SELECT 1, 'a'", "TabSeparated", "1\ta\n"),
        ("/?default_format=CSV", "SELECT 1, 'a'", "CSV", "1,\"a\"\n"),
        ("/?default_format=CSV", "SELECT 1 AS n FORMAT JSONEachRow", "JSONEachRow", "{\"n\":1}\n"),
        ("/", "SELECT toUInt16(513) FORMAT RowBinary", "RowBinary", "\u{1}\u{2}"),
        ("/", "SELECT number FROM numbers(0) FORMAT CSVWithNames", "CSVWithNames", "\"number\"\n"),
        ("/", "SELECT 1 FORMAT Null", "Null", ""),
    ] {
        let reply = engine.post(path, statement).await;
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, expected), "{statement}");
        assert_eq!(reply.header("x-clickhouse-format"), format, "{statement}");
    }
    let json: serde_json::Value =
        serde_json::from_slice(&engine.post("/", "SELECT number AS n FROM numbers(200000) FORMAT JSON").await.body)
            .expect("one JSON document, also when it was streamed in pieces");
    assert_eq!(json["data"].as_array().map(Vec::len), Some(200_000));
}

/// The library repeats heads and wraps documents for every piece of a streamed result: none of that may show.
#[tokio::test]
async fn every_format_is_one_document_however_many_pieces_it_came_in() {
    let engine = start().await;
    let statement = "SELECT number, toString(number) AS `a\"b\nc` FROM numbers(300000) ORDER BY number";
    engine.run(&format!("CREATE TABLE whole ENGINE = MergeTree ORDER BY number AS {statement}")).await;
    for format in [
        "TabSeparated",
        "TabSeparatedWithNames",
        "TabSeparatedWithNamesAndTypes",
        "CSV",
        "CSVWithNames",
        "CSVWithNamesAndTypes",
        "JSONEachRow",
        "JSONCompactEachRow",
        "JSONCompactEachRowWithNamesAndTypes",
        "RowBinary",
        "RowBinaryWithNames",
        "RowBinaryWithNamesAndTypes",
        "Native",
        "Parquet",
        "Values",
        "ArrowStream",
    ] {
        let body = engine.post(&format!("/?default_format={format}"), statement).await.body;
        engine
            .run("CREATE OR REPLACE TABLE back (number UInt64, `a\"b\nc` String) ENGINE = MergeTree ORDER BY number")
            .await;
        let reply = engine.insert(&format!("INSERT INTO back FORMAT {format}"), "", body).await;
        assert_eq!(reply.status, 200, "{format}: {}", reply.text());
        let difference =
            engine.run("SELECT count(), uniqExact(number), countIf(toString(number) != `a\"b\nc`) FROM back").await;
        assert_eq!(difference, "300000\t300000\t0", "{format}");
    }
    let totals =
        "SELECT number % 3 AS k, count() FROM numbers(300000) GROUP BY k WITH TOTALS ORDER BY k FORMAT CSVWithNames";
    let expected = "\"k\",\"count()\"\n0,100000\n1,100000\n2,100000\n\n0,300000\n";
    assert_eq!(engine.post("/", totals).await.text(), expected);
}

/// What Go's client reads, and with it Grafana's plugin: they name a revision, and read heads of blocks and columns.
#[tokio::test]
async fn native_has_the_heads_of_the_revision_that_a_client_names() {
    let engine = start().await;
    let revised = "/?default_format=Native&client_protocol_version=54460";
    let small = engine.post(revised, "SELECT 7 AS n, 'ab' AS s").await;
    let expected = b"\x01\0\x02\xff\xff\xff\xff\0\x02\x01\x01n\x05UInt8\0\x07\x01s\x06String\0\x02ab";
    assert_eq!(&small.body[..], expected);

    // Columns of every kind of layout: the end of each is found, since 1,000 rows grow by the heads alone.
    let columns = [
        "number",
        "toString(number)",
        "toNullable(number % 3 = 0 ? NULL : number)",
        "toLowCardinality(toString(number % 9))",
        "CAST(number % 2 ? NULL : 'x', 'LowCardinality(Nullable(String))')",
        "range(number % 5)",
        "arrayMap(n -> toLowCardinality(toString(n)), range(number % 5))",
        "map('a', toFloat64(number), 'b', 1)",
        "CAST(map(toString(number), number), 'Map(LowCardinality(String), Float64)')",
        "(number, 'x', [toNullable('y')])",
        "CAST((1, 'x'), 'Tuple(`a b` UInt8, c LowCardinality(String))')",
        "toDate('2026-01-01')",
        "toDateTime64('2026-01-01 00:00:00', 3, 'UTC')",
        "toDecimal64(1.5, 3)",
        "toUUID('00000000-0000-0000-0000-000000000001')",
        "toIPv6('::1')",
        "CAST('b', 'Enum8(\\'a, (\\' = 1, \\'b\\' = 2)')",
        "toFixedString('abc', 5)",
        "INTERVAL 1 DAY",
        "NULL",
        "[]",
        "tuple()",
    ];
    for column in columns {
        for rows in [0, 1_000] {
            let statement = format!("SELECT {column} AS c, 'after' AS d FROM numbers({rows})");
            let plain = engine.post("/?default_format=Native", statement.clone()).await;
            assert_eq!(plain.status, 200, "{column}: {}", plain.text());
            let reply = engine.post(revised, statement).await;
            assert_eq!(reply.status, 200, "{column}: {}", reply.text());
            let heads = if plain.body.is_empty() { 0 } else { 8 + 2 };
            assert_eq!(reply.body.len(), plain.body.len() + heads, "{column} of {rows} rows");
        }
    }

    let refused = engine.post(revised, "SELECT sumState(number) AS total FROM numbers(3)").await;
    assert_eq!(refused.header("x-clickhouse-exception-code"), "48", "{}", refused.text());
    assert!(refused.text().contains("The column total has the type AggregateFunction"), "{}", refused.text());
    assert_eq!(engine.post("/?client_protocol_version=54460", "SELECT 1").await.text(), "1\n", "only Native has heads");
    let lines = engine.post("/?default_format=Native&client_protocol_version=x", "SELECT 1").await;
    assert_eq!(lines.header("x-clickhouse-exception-code"), "36", "{}", lines.text());
}

#[tokio::test]
async fn headers_say_what_clickhouses_say() {
    let engine = start().await;
    let reply = engine.post("/?query_id=mine", "SELECT 1").await;
    assert_eq!(reply.header("x-clickhouse-query-id"), "mine");
    assert_eq!(reply.header("x-clickhouse-timezone"), engine.run("SELECT serverTimezone()").await);
    let summary: serde_json::Value = serde_json::from_str(reply.header("x-clickhouse-summary")).expect("JSON");
    assert_eq!(summary["result_rows"], "1");
}

#[tokio::test]
async fn parameters_are_bound_from_the_url_and_from_a_form() {
    let engine = start().await;
    let hostile = "x' OR 1=1 -- \u{fc}";
    let statement = "SELECT {a:String}, {n:UInt8}";
    let url = format!("/?param_a={}&param_n=7", encode(hostile));
    assert_eq!(engine.post(&url, statement).await.text(), format!("{}\t7\n", hostile.replace('\'', "\\'")));

    let mut form = String::new();
    for (name, value) in [("query", statement), ("param_a", hostile), ("param_n", "8")] {
        form += &format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    }
    form += "--edge--\r\n";
    let mut request = engine.request("POST", "/", form);
    let content_type = "multipart/form-data; boundary=edge".parse().expect("a header");
    request.headers_mut().insert("content-type", content_type);
    let reply = engine.try_send(request).await.expect("an answer");
    assert_eq!(reply.text(), format!("{}\t8\n", hostile.replace('\'', "\\'")));

    let reply = engine.post("/?param_n=many", "SELECT {n:UInt8}").await;
    assert!(reply.status.is_client_error(), "{}", reply.text());
}

#[tokio::test]
async fn url_and_body_make_one_text_and_settings_last_one_request() {
    let engine = start().await;
    assert_eq!(engine.post(&format!("/?query={}", encode("SELECT 1 +")), "41 AS n").await.text(), "42\n");
    let setting = "SELECT getSetting('max_threads')";
    assert_eq!(engine.post("/?max_threads=7", setting).await.text(), "7\n");
    engine.run("SET max_threads = 5").await;
    assert_ne!(engine.run(setting).await, "7");
    assert_ne!(engine.run(setting).await, "5");
    engine.run("CREATE DATABASE other").await;
    assert_eq!(engine.post("/?database=other", "SELECT currentDatabase()").await.text(), "other\n");
    assert_eq!(engine.run("SELECT currentDatabase()").await, "default");
}

#[tokio::test]
async fn errors_have_clickhouses_status_code_and_text() {
    let engine = start().await;
    for (path, statement, status, code) in [
        ("/", "SELEC 1", 400, "62"),
        ("/", "SELECT 1; SELECT 2", 400, "62"),
        ("/", "SELECT * FROM nowhere", 404, "60"),
        ("/?database=nowhere", "SELECT 1", 404, "81"),
        ("/?no_such_setting=1", "SELECT 1", 404, "115"),
        ("/", "INSERT INTO nowhere VALUES (1)", 404, "60"),
        (
            "/",
            "SELECT sleepEachRow(1) FROM numbers(3) SETTINGS max_execution_time = 0.1, max_block_size = 1",
            408,
            "159",
        ),
        ("/", "SELECT * FROM url('http://127.0.0.1:1/', CSV, 'a Int8')", 403, "497"),
        ("/", "SELECT * FROM file('/etc/hostname', LineAsString)", 403, "497"),
        ("/", "SELECT * FROM `/etc/hostname`", 403, "497"),
        ("/", "SELECT file('/etc/hostname')", 403, "497"),
        ("/", "CREATE TABLE f (a String) ENGINE = File(CSV, '/etc/hostname')", 403, "497"),
        ("/", "SYSTEM SHUTDOWN", 403, "497"),
        ("/", "SELECT 1 INTO OUTFILE '/tmp/never'", 500, "162"),
    ] {
        let reply = engine.post(path, statement).await;
        let got = (reply.status.as_u16(), reply.header("x-clickhouse-exception-code"));
        assert_eq!(got, (status, code), "{statement}: {}", reply.text());
        assert!(reply.text().starts_with(&format!("Code: {code}. DB::Exception: ")), "{}", reply.text());
    }
    assert_eq!(engine.run("SELECT 1").await, "1", "no error takes the engine down");
}

#[tokio::test]
async fn a_get_may_only_read() {
    let engine = start().await;
    engine.run("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a").await;
    for statement in ["DROP TABLE t", "INSERT INTO t VALUES (1)", "INSERT INTO t SELECT 1", "CREATE DATABASE d"] {
        let reply = engine.get(&format!("/?query={}", encode(statement))).await;
        assert_eq!(reply.header("x-clickhouse-exception-code"), "164", "{statement}: {}", reply.text());
    }
    assert_eq!(engine.get("/?query=SELECT%20count()%20FROM%20t").await.text(), "0\n");
}

#[tokio::test]
async fn a_web_page_of_another_site_reaches_nothing() {
    let engine = start().await;
    for (name, value) in [("origin", "http://evil.example"), ("host", "evil.example:8123")] {
        let mut request = engine.request("POST", "/", "SELECT 1");
        request.headers_mut().insert(name, value.parse().expect("a header"));
        assert_eq!(engine.try_send(request).await.expect("an answer").status, 403, "{name}");
    }
}

#[tokio::test]
async fn a_failure_after_the_answer_began_is_told_and_breaks_the_connection() {
    let engine = start().await;
    let statement = "SELECT throwIf(number = 3000000, 'too far') FROM numbers(4000000) FORMAT RowBinary";
    let response = engine
        .connect()
        .await
        .send_request(engine.request("POST", "/", statement))
        .await
        .expect("a head, since a megabyte came first");
    assert_eq!(response.status(), 200);
    let tag = response.headers()["x-clickhouse-exception-tag"].to_str().expect("text").to_owned();
    let mut body = response.into_body();
    let mut tail = Vec::new();
    let ending = loop {
        match body.frame().await {
            Some(Ok(frame)) => tail.extend_from_slice(&frame.into_data().unwrap_or_default()),
            other => break other,
        }
    };
    assert!(matches!(ending, Some(Err(_))), "the answer must not look whole");
    let text = String::from_utf8_lossy(&tail[tail.len().saturating_sub(2_000)..]).into_owned();
    assert!(text.contains("too far") && text.ends_with(&format!(" {tag}\r\n__exception__\r\n")), "{text}");
}

#[tokio::test]
async fn wait_end_of_query_turns_a_late_failure_into_a_status() {
    let engine = start().await;
    let statement = "SELECT throwIf(number = 3000000) FROM numbers(4000000) FORMAT RowBinary";
    let reply = engine.post("/?wait_end_of_query=1", statement).await;
    assert_eq!(reply.header("x-clickhouse-exception-code"), "395", "{}", reply.status);
}

#[tokio::test]
async fn answers_are_compressed_as_negotiated() {
    let engine = start().await;
    let statement = "SELECT number FROM numbers(100000)";
    let plain = engine.post("/", statement).await.body;
    for coding in ["gzip", "deflate", "zstd", "lz4"] {
        let mut request = engine.request("POST", "/", statement);
        request.headers_mut().insert("accept-encoding", coding.parse().expect("a header"));
        let reply = engine.try_send(request).await.expect("an answer");
        assert_eq!(reply.header("content-encoding"), coding);
        assert_eq!(decoded(coding, &reply.body), plain, "{coding}");
    }
    let mut request = engine.request("POST", "/?enable_http_compression=0", statement);
    request.headers_mut().insert("accept-encoding", "gzip".parse().expect("a header"));
    assert_eq!(engine.try_send(request).await.expect("an answer").body, plain);
}

fn decoded(coding: &str, packed: &Bytes) -> Vec<u8> {
    use std::io::Read;
    let mut plain = Vec::new();
    match coding {
        "gzip" => flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut plain),
        "deflate" => flate2::read::ZlibDecoder::new(&packed[..]).read_to_end(&mut plain),
        "zstd" => zstd::stream::read::Decoder::new(&packed[..]).and_then(|mut reader| reader.read_to_end(&mut plain)),
        _ => lz4_flex::frame::FrameDecoder::new(&packed[..]).read_to_end(&mut plain),
    }
    .expect("whole");
    plain
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_large_answer_streams_through_flat_memory() {
    let engine = start().await;
    let pid = engine.process.pid().expect("a child");
    let resident_mb = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the child is there");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a figure");
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).expect("a figure") / 1024
    };
    engine.run("SELECT count() FROM numbers(1000000)").await;
    let before = resident_mb();
    let statement = "SELECT number FROM numbers(50000000) FORMAT RowBinary";
    let response = engine.connect().await.send_request(engine.request("POST", "/", statement)).await.expect("a head");
    let mut body = response.into_body();
    let (mut total, mut peak) = (0, 0);
    while let Some(frame) = body.frame().await {
        total += frame.expect("whole").into_data().map_or(0, |data| data.len());
        if total % 64 == 0 {
            peak = peak.max(resident_mb());
        }
    }
    assert_eq!(total, 400_000_000);
    assert!(peak < before + 150, "{before} MB before, {peak} MB at the peak of a 400 MB answer");
}

#[tokio::test]
async fn a_running_insert_or_select_is_found_and_killed_by_its_log_comment() {
    let engine = start().await;
    let slow = engine.post(
        "/?log_comment=batch-7",
        "SELECT sleepEachRow(0.05) FROM numbers(10000) SETTINGS max_block_size = 1, \
         function_sleep_max_microseconds_per_block = 0",
    );
    let watch = async {
        let count = "SELECT count() FROM system.processes WHERE Settings['log_comment'] = 'batch-7'";
        engine.eventually(count, "1").await;
        engine.run("KILL QUERY WHERE Settings['log_comment'] = 'batch-7' ASYNC").await;
        engine.eventually(count, "0").await;
    };
    let (reply, ()) = tokio::join!(slow, watch);
    assert_eq!(reply.header("x-clickhouse-exception-code"), "394", "{}", reply.text());
}
