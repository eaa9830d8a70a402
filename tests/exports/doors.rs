//! Who may have what, and what is refused.
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use serde_json::{json, Value};

use crate::support::wire::{http1, http2, Ask, Reply};
use crate::support::{Server, ADMIN_KEY};
use crate::{download, export, insert_heartbeats, over, path_of, post, server};

#[track_caller]
fn refused(reply: &Reply, status: u16, code: &str, parts: &[&str]) {
    assert_eq!(reply.status, status, "{}", reply.text());
    let error = reply.json();
    assert_eq!(error["code"], code, "{error}");
    for part in parts {
        assert!(error["message"].as_str().is_some_and(|message| message.contains(part)), "{part}: {error}");
    }
}

fn valid() -> Value {
    json!({ "data_type": "DEVICE_METRICS", "start_time": "2024-01-10T00:00:00Z", "end_time": "2024-01-11T00:00:00Z" })
}

fn with(name: &str, value: Value) -> Value {
    let mut message = valid();
    message[name] = value;
    message
}

#[track_caller]
fn export_refused(server: &Server, message: &Value, parts: &[&str]) {
    refused(&post(server, "ExportData", Some(ADMIN_KEY), message), 400, "INVALID_ARGUMENT", parts);
}

#[test]
fn what_is_no_export_is_refused_with_what_to_do() {
    let server = server();
    export_refused(&server, &with("data_type", Value::Null), &["data_type is not set", "DEVICE_METRICS"]);
    export_refused(&server, &with("data_type", json!(77)), &["data_type", "77", "DEVICE_EVENTS"]);
    export_refused(&server, &with("format", json!(9)), &["format", "9", "PARQUET"]);
    export_refused(&server, &with("start_time", Value::Null), &["start_time is not set"]);
    export_refused(&server, &with("end_time", json!("2024-01-10T00:00:00Z")), &["start_time is 2024-01-10T00:00:00Z"]);
    export_refused(&server, &with("start_time", json!("2124-01-10T00:00:00Z")), &["end_time"]);
    export_refused(&server, &with("fields", json!(["cpu_usag"])), &["\"cpu_usag\"", "did you mean cpu_usage?"]);
    export_refused(&server, &with("fields", json!(["device_id", "device_id"])), &["fields[1]", "once"]);
    export_refused(&server, &with("device_filter", json!("(")), &["device_filter"]);
    assert_eq!(server.metrics().get("fleetd_exports_under_way"), 0.0);
    let unknown = post(&server, "GetExport", Some(ADMIN_KEY), &json!({ "export_id": "exp-001" }));
    refused(&unknown, 404, "NOT_FOUND", &["exp-001", "ExportData"]);
}

#[test]
fn hostile_fields_and_filters_reach_no_statement() {
    let server = server();
    insert_heartbeats(&server, "2024-01-10 00:00:00", 10);
    let hostile = [
        "*",
        "device_id, journal_id",
        "1; DROP TABLE heartbeats",
        "x' OR '1'='1",
        "x\") AS y, (SELECT 1",
        "`",
        "metrics.x'] OR 1=1 --",
        "metrics.{metric_0:String}",
        "{start:Int64}",
        "device_id\0",
        "\u{202e}di_ecived",
        "(SELECT password FROM system.users)",
        "COLUMNS('.*')",
        "metrics.*",
    ];
    for field in hostile {
        export_refused(&server, &with("fields", json!([field])), &["fields[0]"]);
        let filter = with("device_filter", json!(format!("type:\"{}\"", field.replace(['"', '\\'], ""))));
        let reply = post(&server, "ExportData", Some(ADMIN_KEY), &filter);
        if reply.status == 200 {
            assert_eq!(
                over(&server, reply.json()["exportId"].as_str().expect("an id"))["status"]["state"],
                "SUCCEEDED"
            );
        } else {
            refused(&reply, 400, "INVALID_ARGUMENT", &["device_filter"]);
        }
    }
    assert_eq!(crate::support::clickhouse::number(server.clickhouse(), "fleetd", "SELECT count() FROM heartbeats"), 10);
}

#[test]
fn a_device_may_not_export_and_nobody_may_without_a_key() {
    let server = server();
    let device = server.register("rpi-001");
    let id = export(&server, &valid())["exportId"].clone();
    for (rpc, message) in [("ExportData", valid()), ("GetExport", json!({ "export_id": id }))] {
        refused(&post(&server, rpc, Some(&device), &message), 403, "PERMISSION_DENIED", &["analytics:export"]);
        refused(&post(&server, rpc, None, &message), 401, "UNAUTHENTICATED", &[]);
    }
    over(&server, "exp-001");
    let get = || Ask::get("/exports/exp-001.csv");
    refused(&http1(server.http(), &get()), 401, "UNAUTHENTICATED", &[]);
    refused(&http1(server.http(), &get().header("x-api-key", device)), 403, "PERMISSION_DENIED", &["analytics:export"]);
    assert_eq!(http1(server.http(), &get().header("x-api-key", ADMIN_KEY)).status, 200);
}

#[test]
fn a_file_is_served_as_http_says() {
    let server = server();
    insert_heartbeats(&server, "2024-01-10 00:00:00", 100);
    let answer = export(&server, &valid());
    let url = answer["exportUrl"].as_str().expect("a URL");
    let whole = download(&server, url);
    let get = || Ask::get(path_of(&server, url));
    let size = whole.body.len();
    for reply in [http1(server.http(), &get()), http2(server.http(), &get())] {
        assert_eq!((reply.status, &reply.body), (200, &whole.body));
        assert_eq!(reply.header("accept-ranges"), Some("bytes"));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        let age = reply.header("cache-control").and_then(|cache| cache.strip_prefix("private, max-age="));
        let age = age.and_then(|age| age.parse::<u32>().ok());
        assert!(age.is_some_and(|age| (86_000..=86_400).contains(&age)), "no copy outlives the file: {reply:?}");
    }
    let head = http2(server.http(), &Ask { method: "HEAD", ..get() });
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some(size.to_string().as_str()));
    let etag = whole.header("etag").expect("an entity tag").to_owned();
    assert_eq!(http1(server.http(), &get().header("if-none-match", etag)).status, 304);
    let part = http1(server.http(), &get().header("range", "bytes=10-19"));
    assert_eq!((part.status, &part.body[..]), (206, &whole.body[10..20]));
    let late = http1(server.http(), &get().header("range", format!("bytes={size}-")));
    refused(&late, 416, "OUT_OF_RANGE", &["exp-001"]);
    refused(&http1(server.http(), &Ask::post(path_of(&server, url), "")), 405, "INVALID_ARGUMENT", &["GET"]);
    let digest = whole.header("repr-digest").expect("a digest");
    let expected = base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(&whole.body));
    assert_eq!(digest, format!("sha-256=:{expected}:"));
}

#[test]
fn urls_that_were_forged_open_nothing() {
    let mut server = server();
    let url = export(&server, &valid())["exportUrl"].as_str().expect("a URL").to_owned();
    export(&server, &valid());
    let good = path_of(&server, &url);
    let forged = |path: String, parts: &[&str]| {
        refused(&http1(server.http(), &Ask::get(path)), 403, "PERMISSION_DENIED", parts);
    };
    forged(good.replace("exp-001", "exp-002"), &["signature"]);
    forged(good.replace(".csv", ".parquet"), &["signature"]);
    forged(good.replace("expires=1", "expires=2"), &["signature"]);
    forged(good.replace("/exports/exp-001.csv", "/artifacts/exp-001.csv"), &["signature"]);
    forged(good.split('&').next().expect("the beginning").to_owned(), &["not whole"]);
    let at = good.find("expires=").expect("a time") + "expires=".len();
    let expires: u64 = good[at..at + 10].parse().expect("seconds");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    assert!((now + 86_390..=now + 86_400).contains(&expires), "a day: {expires}, now {now}");
    let with_key = |path: &str| Ask::get(path).header("x-api-key", ADMIN_KEY);
    let unknown = http1(server.http(), &with_key("/exports/exp-999.csv"));
    refused(&unknown, 404, "NOT_FOUND", &["exp-999"]);
    let other = http1(server.http(), &with_key("/exports/exp-001.parquet"));
    refused(&other, 404, "NOT_FOUND", &["exp-001.csv"]);
    for path in ["/exports/", "/exports/../registry.db", "/exports/exp-001", "/exports/exp-001.csv/x"] {
        assert_eq!(http1(server.http(), &with_key(path)).status, 404, "{path}");
    }
    server.sigkill();
    server.restart();
    // The URL names the address, which is another one now; its path and signature hold.
    assert_eq!(http1(server.http(), &Ask::get(good)).status, 200, "a URL outlives a restart");
}

use sha2::Digest as _;
