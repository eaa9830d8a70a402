//! What is in the files, read back and compared with the rows.
use serde_json::{json, Map, Value};

use crate::support::clickhouse::{number, run};
use crate::support::wire::{http1, Ask};
use crate::support::{Server, ADMIN_KEY};
use crate::{download, export, exported, insert_heartbeats, over, post, server};

const REFERENCE: &str = include_str!("../reference/export_data.json");

/// The lines of a CSV; `None` for a value that is not there, which is not the empty text.
fn csv(bytes: &[u8]) -> Vec<Vec<Option<String>>> {
    let text = std::str::from_utf8(bytes).expect("UTF-8");
    let (mut rows, mut row, mut value, mut is_text) = (Vec::new(), Vec::new(), String::new(), false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                is_text = true;
                loop {
                    match characters.next().expect("a text that ends") {
                        '"' if characters.peek() == Some(&'"') => {
                            characters.next();
                            value.push('"');
                        }
                        '"' => break,
                        other => value.push(other),
                    }
                }
            }
            ',' | '\n' => {
                let whole = std::mem::take(&mut value);
                row.push((std::mem::take(&mut is_text) || !whole.is_empty()).then_some(whole));
                if character == '\n' {
                    rows.push(std::mem::take(&mut row));
                }
            }
            other => value.push(other),
        }
    }
    assert!(row.is_empty() && value.is_empty(), "the last line ends");
    rows
}

fn json_lines(bytes: &[u8]) -> Vec<Map<String, Value>> {
    let text = std::str::from_utf8(bytes).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// What ClickHouse itself has, as objects.
fn rows_of(server: &Server, sql: &str) -> Vec<Map<String, Value>> {
    let settings = "SETTINGS date_time_output_format = 'iso', prefer_column_name_to_alias = 1 FORMAT JSONEachRow";
    json_lines(run(server.clickhouse(), "fleetd", &format!("{sql} {settings}")).as_bytes())
}

/// In an order of their own, since files have none.
fn sorted(mut rows: Vec<Map<String, Value>>) -> Vec<Map<String, Value>> {
    rows.sort_by_key(|row| Value::Object(row.clone()).to_string());
    rows
}

/// The fields of heartbeats, as this test has them from the tables.
const HEARTBEATS: &str = "SELECT device_id, timestamp, received_at, device_type, version, toString(state) AS state, \
    cpu_percent AS cpu_usage, if(memory_total_mb > 0, 100 * memory_used_mb / memory_total_mb, NULL) AS memory_usage, \
    100 * disk_used_gb / disk_total_gb AS disk_usage, memory_used_mb, nullIf(memory_total_mb, 0) AS memory_total_mb, \
    disk_used_gb, disk_total_gb, if(memory_used_mb IS NULL, NULL, swap_used_mb) AS swap_used_mb, load_average_1m, \
    load_average_5m, load_average_15m, temperature_celsius, battery_percent, signal_dbm, \
    nullIf(uptime_seconds, 0) AS uptime_seconds, toNullable(restart_count) AS restart_count, \
    nullIf(network_rx_bytes, 0) AS network_rx_bytes, nullIf(network_tx_bytes, 0) AS network_tx_bytes, \
    nullIf(disk_read_bytes, 0) AS disk_read_bytes, nullIf(disk_write_bytes, 0) AS disk_write_bytes, \
    nullIf(last_boot, toDateTime64(0, 3, 'UTC')) AS last_boot, boot_id, message, metrics FROM heartbeats";

/// A day of ten devices.
const ROWS: u32 = 14_400;

fn everything(form: &str) -> Value {
    json!({
        "format": form, "data_type": "DEVICE_METRICS",
        "start_time": "2024-01-10T00:00:00Z", "end_time": "2024-01-11T00:00:00Z",
    })
}

#[test]
fn the_references_example_works_as_printed() {
    let server = server();
    insert_heartbeats(&server, "2023-12-31 00:00:00", 33 * ROWS);
    let message: Value = serde_json::from_str(REFERENCE).expect("JSON");
    // As printed: the text itself, not what a parser made of it.
    let ask = crate::support::client::Client::Json1.call(
        "AnalyticsService/ExportData",
        Some(ADMIN_KEY),
        REFERENCE.as_bytes(),
    );
    let reply = http1(server.http(), &ask);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let answer = reply.json();
    assert!(answer["exportUrl"].as_str().is_some_and(|url| url.contains("/exports/exp-001.csv?expires=")), "{answer}");
    assert!(answer["expiresAt"].as_str().is_some_and(|time| time.ends_with('Z')), "{answer}");
    assert_eq!(over(&server, "exp-001")["status"]["state"], "SUCCEEDED");
    let file = download(&server, answer["exportUrl"].as_str().expect("a URL"));
    assert_eq!(file.header("content-type"), Some("text/csv; charset=utf-8; header=present"));
    assert_eq!(file.header("content-disposition"), Some("attachment; filename=\"exp-001.csv\""));
    let rows = csv(&file.body);
    let names: Vec<_> = rows[0].iter().map(|name| name.as_deref().expect("a name")).collect();
    assert_eq!(json!(names), message["fields"]);
    let expected = number(
        server.clickhouse(),
        "fleetd",
        "SELECT count() FROM heartbeats WHERE timestamp >= '2024-01-01 00:00:00' AND timestamp < '2024-01-31 23:59:59'",
    );
    assert_eq!((rows.len() - 1) as u64, expected);
    assert_eq!(expected, 31 * u64::from(ROWS), "whole days");
    let at = |time: &str, device: &str| {
        let is_it = |row: &&Vec<Option<String>>| row[0].as_deref() == Some(device) && row[1].as_deref() == Some(time);
        rows.iter().find(is_it).unwrap_or_else(|| panic!("no row of {device} at {time}"))
    };
    // Row 14,409 since the start: divisible by 3, not by 4, 6 or 7.
    let row = at("2024-01-01T00:00:00.000Z", "rpi-009");
    assert_eq!(row[2].as_deref().and_then(|cpu| cpu.parse().ok()), Some(14_409.0 % 3_000.0 / 3.0));
    assert_eq!(row[3].as_deref().and_then(|memory| memory.parse().ok()), Some(100.0 * 14_409.0 / 4096.0));
}

#[test]
fn a_small_export_is_whole_in_its_answer() {
    let server = server();
    insert_heartbeats(&server, "2024-01-10 00:00:00", 100);
    let answer = export(&server, &everything("CSV"));
    assert_eq!(answer["status"]["state"], "SUCCEEDED", "{answer}");
    assert_eq!(answer["status"]["rowsWritten"], "100");
    let bytes = download(&server, answer["exportUrl"].as_str().expect("a URL")).body;
    assert_eq!(answer["sizeBytes"], bytes.len().to_string());
    assert_eq!(answer["status"]["bytesWritten"], answer["sizeBytes"]);
}

#[test]
fn json_lines_have_every_field_of_every_row() {
    let server = server();
    insert_heartbeats(&server, "2024-01-09 12:00:00", 2 * ROWS);
    let found = sorted(json_lines(&exported(&server, &everything("JSON"))));
    let within = "WHERE timestamp >= '2024-01-10 00:00:00' AND timestamp < '2024-01-11 00:00:00'";
    let expected = sorted(rows_of(&server, &format!("{HEARTBEATS} {within}")));
    assert_eq!(found.len(), ROWS as usize);
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found[0].len(), 30);
    assert!(found.iter().any(|row| row["metrics"]["queue.depth"].is_number()), "maps are maps");
    assert!(found.iter().any(|row| row["network_rx_bytes"].is_u64()), "numbers are numbers");
}

#[test]
fn a_csv_has_every_field_of_every_row() {
    let server = server();
    insert_heartbeats(&server, "2024-01-10 00:00:00", 5_000);
    let rows = csv(&exported(&server, &everything("CSV")));
    let names: Vec<String> = rows[0].iter().map(|name| name.clone().expect("a name")).collect();
    let typed = |(name, value): (&String, &Option<String>)| {
        let texts =
            ["device_id", "timestamp", "received_at", "device_type", "version", "state", "last_boot", "boot_id"];
        let value = match value {
            None => Value::Null,
            Some(text) if name == "metrics" => serde_json::from_str(text).expect("JSON in the CSV"),
            Some(text) if texts.contains(&name.as_str()) || name == "message" => json!(text),
            Some(text) => serde_json::from_str(text).unwrap_or_else(|_| panic!("{text:?} is no number of {name}")),
        };
        (name.clone(), value)
    };
    let found = rows[1..].iter().map(|row| names.iter().zip(row).map(typed).collect()).collect();
    let (found, expected) = (sorted(found), sorted(rows_of(&server, HEARTBEATS)));
    assert_eq!(found.len(), 5_000);
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    let messages: Vec<_> = found.iter().map(|row| row["message"].as_str().expect("a text")).collect();
    assert!(messages.contains(&"a \"quoted\", text\nof two lines") && messages.contains(&"\\N"), "all came through");
}

#[test]
fn a_parquet_file_of_many_row_groups_has_every_field_of_every_row() {
    let server = server();
    // More than two blocks.
    insert_heartbeats(&server, "2024-01-01 00:00:00", 300_000);
    let message = json!({
        "format": "PARQUET", "data_type": "DEVICE_METRICS",
        "start_time": "2024-01-01T00:00:00Z", "end_time": "2024-02-01T00:00:00Z",
    });
    let file = exported(&server, &message);
    assert!(file.starts_with(b"PAR1") && file.ends_with(b"PAR1"));
    let (at, settings) = (server.clickhouse(), "SETTINGS prefer_column_name_to_alias = 1");
    for table in ["expected", "found"] {
        run(at, "fleetd", &format!("CREATE TABLE {table} ENGINE = Memory AS {HEARTBEATS} LIMIT 0 {settings}"));
    }
    run(at, "fleetd", &format!("INSERT INTO expected {HEARTBEATS} {settings}"));
    let insert = "/?database=fleetd&query=INSERT%20INTO%20found%20FORMAT%20Parquet";
    let reply = http1(at, &Ask::post(insert, file).header("host", at.to_string()));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(number(at, "fleetd", "SELECT count() FROM found"), 300_000);
    let sum = |table: &str| {
        let sql = "SELECT sum(cityHash64(toString(tuple(* EXCEPT metrics)), mapSort(metrics))) FROM ";
        run(at, "fleetd", &format!("{sql}{table}"))
    };
    assert_eq!(sum("found"), sum("expected"));
}

#[test]
fn chosen_fields_come_in_their_order_and_metrics_of_the_fleet_by_their_name() {
    let server = server();
    insert_heartbeats(&server, "2024-01-10 00:00:00", 10);
    let fields = json!(["metrics.queue.depth", "seq", "cpu_percent", "device_id", "metrics.none"]);
    let message = |form: &str| {
        let mut message = everything(form);
        message["fields"] = fields.clone();
        message
    };
    let rows = csv(&exported(&server, &message("CSV")));
    assert_eq!(json!(rows[0]), fields);
    let row = rows.iter().find(|row| row[1].as_deref() == Some("1")).expect("row 1");
    assert_eq!(row[0].as_deref(), Some("1"));
    assert_eq!((row[3].as_deref(), &row[4]), (Some("rpi-001"), &None));
    let rows = json_lines(&exported(&server, &message("JSON")));
    let row = rows.iter().find(|row| row["seq"] == 1).expect("row 1");
    assert_eq!(row["metrics.queue.depth"], 1.0);
    assert!(row["metrics.none"].is_null());
    assert!(exported(&server, &message("PARQUET")).ends_with(b"PAR1"));
}

#[test]
fn every_data_type_is_exported_as_the_server_wrote_it() {
    let server = server();
    let key = server.register("rpi-001");
    let heartbeat = json!({
        "device_id": "rpi-001",
        "status": { "state": "ONLINE" },
        "stats": { "cpu_percent": 12.5, "memory_used_mb": 100, "metrics": { "a": 1.5 } },
        "processes": [{ "pid": 7, "name": "agent", "state": "RUNNING" }],
    });
    let message = heartbeat.to_string();
    let ask = crate::support::client::Client::Json1.call("DeviceService/Heartbeat", Some(&key), message.as_bytes());
    let reply = http1(server.http(), &ask);
    assert_eq!(reply.status, 200, "{}", reply.text());
    run(
        server.clickhouse(),
        "fleetd",
        "INSERT INTO deployment_events (journal_id, seq, row_index, received_at, deployment_id, timestamp, device_id, \
         kind, wave) VALUES (generateUUIDv4(), 1, 0, now64(3), 'dep-001', now64(3), 'rpi-001', 'wave_started', 3)",
    );
    let rows = |data_type: &str| {
        let message = json!({ "format": "JSON", "data_type": data_type, "start_time": "2024-01-01T00:00:00Z" });
        json_lines(&exported(&server, &message))
    };
    // Acknowledged just now: the export waits for the writer.
    let metrics = rows("DEVICE_METRICS");
    assert_eq!(metrics.len(), 1, "{metrics:?}");
    assert_eq!((&metrics[0]["device_id"], &metrics[0]["cpu_usage"]), (&json!("rpi-001"), &json!(12.5)));
    assert_eq!(metrics[0]["metrics"], json!({ "a": 1.5 }));
    let processes = rows("DEVICE_PROCESSES");
    assert_eq!((processes.len(), &processes[0]["pid"], &processes[0]["name"]), (1, &json!(7), &json!("agent")));
    assert_eq!(processes[0]["state"], "RUNNING");
    let events = rows("DEVICE_EVENTS");
    assert!(events.iter().any(|event| event["device_id"] == "rpi-001" && event["kind"].is_string()), "{events:?}");
    let deployments = rows("DEPLOYMENT_EVENTS");
    assert_eq!((deployments.len(), &deployments[0]["wave"]), (1, &json!(3)));
    assert!(deployments[0].get("journal_id").is_none(), "bookkeeping is on request");
}

#[test]
fn an_export_of_nothing_is_a_file_without_rows() {
    let server = server();
    assert_eq!(csv(&exported(&server, &everything("CSV"))).len(), 1, "the names");
    assert_eq!(exported(&server, &everything("JSON")), b"");
    let parquet = exported(&server, &everything("PARQUET"));
    assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));
}

#[test]
fn only_rows_of_devices_that_match_and_with_a_plausible_clock_are_exported() {
    let server = server();
    for device in ["rpi-001", "rpi-002", "rpi-003"] {
        server.register(device);
    }
    insert_heartbeats(&server, "2024-01-10 00:00:00", 100);
    run(
        server.clickhouse(),
        "fleetd",
        "INSERT INTO heartbeats (journal_id, seq, row_index, received_at, device_id, timestamp) \
         VALUES (generateUUIDv4(), 1, 0, '2024-06-01 00:00:00', 'rpi-001', '2024-01-10 00:00:30')",
    );
    let devices = |filter: &str| {
        let mut message = everything("JSON");
        message["device_filter"] = json!(filter);
        message["fields"] = json!(["device_id"]);
        let mut found: Vec<String> = json_lines(&exported(&server, &message))
            .iter()
            .map(|row| row["device_id"].as_str().expect("an id").to_owned())
            .collect();
        assert_eq!(found.len() % 10, 0, "the row that was held back for months is left out");
        found.sort();
        found.dedup();
        found
    };
    assert_eq!(devices("id:rpi-001 OR id:rpi-003"), ["rpi-001", "rpi-003"]);
    assert_eq!(devices("id:rpi-002"), ["rpi-002"]);
    assert!(devices("type:nothing").is_empty());
    assert_eq!(devices("").len(), 10, "also devices that are not registered");
    let mut message = everything("CSV");
    message["device_filter"] = json!("nonsense:");
    let reply = post(&server, "ExportData", Some(ADMIN_KEY), &message);
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert!(reply.text().contains("device_filter"), "{}", reply.text());
}
