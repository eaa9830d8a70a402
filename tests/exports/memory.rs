//! Memory stays flat however many rows there are, and devices are served meanwhile.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{json, Value};

use crate::support::clickhouse::run;
use crate::support::{Server, ADMIN_KEY};
use crate::{ask_for, insert_heartbeats, over, post, server};

/// An export holds some pieces of ClickHouse's answer and two parts of 1 MB; the rest is the allocator's.
const GROWTH_ALLOWED: u64 = 64 << 20;

fn message(form: &str) -> Value {
    json!({
        "format": form, "data_type": "DEVICE_METRICS",
        "start_time": "2024-01-01T00:00:00Z", "end_time": "2034-01-01T00:00:00Z",
    })
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Exports the rows; prints and gives by how much the server grew at its largest.
fn growth(server: &Server, id: &str, form: &str, rows: u64) -> u64 {
    let (pid, engine) = (server.pid(), server.engine_pid().expect("an engine"));
    let (before, engine_before) = (resident(pid), resident(engine));
    let (is_over, most, engine_most) = (AtomicBool::new(false), AtomicU64::new(before), AtomicU64::new(0));
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                most.fetch_max(resident(pid), Ordering::Relaxed);
                engine_most.fetch_max(resident(engine), Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        drop(ask_for(server, &message(form)));
        let mut shown = Vec::new();
        crate::support::wait_until(Duration::from_secs(1_800), || {
            let reply = post(server, "GetExport", Some(ADMIN_KEY), &json!({ "export_id": id }));
            if reply.status != 200 {
                return false;
            }
            let status = reply.json()["status"].clone();
            shown.push(status["progressPercent"].as_f64().unwrap_or(0.0));
            status["state"] != "RUNNING"
        });
        // Before anything that may panic: the scope waits for the thread.
        is_over.store(true, Ordering::Relaxed);
        assert!(shown.is_sorted(), "progress went back: {shown:?}");
    });
    let end = over(server, id);
    assert_eq!(end["status"]["state"], "SUCCEEDED", "{end}");
    assert_eq!(end["status"]["rowsWritten"], rows.to_string(), "{end}");
    let took = started.elapsed();
    let grown = most.load(Ordering::Relaxed).saturating_sub(before);
    println!(
        "{form}: {rows} rows, {} bytes, {took:.1?}; server {} MB and {} MB more, engine {} MB and {} MB at most",
        end["sizeBytes"],
        before >> 20,
        grown >> 20,
        engine_before >> 20,
        engine_most.load(Ordering::Relaxed) >> 20,
    );
    grown
}

#[test]
fn a_million_rows_go_out_in_flat_memory() {
    let server = server();
    insert_heartbeats(&server, "2024-01-01 00:00:00", 1_000_000);
    for (number, form) in ["PARQUET", "JSON"].into_iter().enumerate() {
        let grown = growth(&server, &format!("exp-{:03}", number + 1), form, 1_000_000);
        assert!(grown < GROWTH_ALLOWED, "{form}: {} MB more", grown >> 20);
    }
}

/// Twenty million rows take minutes and gigabytes: run it with `--ignored --nocapture` where there is room.
#[test]
#[ignore = "takes minutes, and some 10 GB of disk"]
fn twenty_million_rows_go_out_in_flat_memory() {
    let server = server();
    insert_heartbeats(&server, "2024-01-01 00:00:00", 1_000_000);
    for _ in 0..19 {
        run(
            server.clickhouse(),
            "fleetd",
            "INSERT INTO heartbeats SELECT * FROM heartbeats LIMIT 1000000 \
             SETTINGS insert_deduplicate = 0, max_partitions_per_insert_block = 0",
        );
    }
    for (number, form) in ["PARQUET", "CSV"].into_iter().enumerate() {
        let grown = growth(&server, &format!("exp-{:03}", number + 1), form, 20_000_000);
        assert!(grown < GROWTH_ALLOWED, "{form}: {} MB more", grown >> 20);
    }
}
