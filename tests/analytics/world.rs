//! A small fleet with a past that has everything in it that makes answers go wrong.
use std::collections::BTreeMap;

use serde_json::json;

use super::naive::{insert, Beat, Random, DAY, HOUR, MINUTE, SECOND};
use super::{post, Server, ADMIN_KEY};
use crate::support::clickhouse::run;
use fleetd::clock::UnixMillis;

pub const JOURNALS: [&str; 2] = ["00000000-0000-0000-0000-0000000000a1", "00000000-0000-0000-0000-0000000000a2"];

/// Devices that are registered: the id, the type, labels.
pub const DEVICES: usize = 12;

pub struct World {
    /// A whole hour; the first heartbeats are from then.
    pub start: i64,
    pub beats: Vec<Beat>,
}

pub fn id(number: usize) -> String {
    format!("dev-{number:02}")
}

pub fn device_type(number: usize) -> &'static str {
    ["camera", "sensor", "gateway"][number % 3]
}

/// `region` is not everybody's.
pub fn labels(number: usize) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([("ring".to_owned(), (number % 2).to_string())]);
    if number % 4 != 3 {
        labels.insert("region".to_owned(), ["eu", "us"][number / 6].to_owned());
    }
    labels
}

impl World {
    /// Six hours of the recent past. The last device of the heartbeats is registered no more.
    pub fn new() -> Self {
        let now = UnixMillis::now().as_millis();
        let start = now - now.rem_euclid(HOUR) - 9 * HOUR;
        let mut random = Random(0x5eed_1234_5678_9abc);
        let mut beats = Vec::new();
        for number in 0..=DEVICES {
            let mut at = start + random.below(50_000) as i64;
            let (mut restarts, mut rx_bytes) = (random.below(5) as u32, 1_000 * random.below(100));
            while at < start + 6 * HOUR {
                // An hour without anybody, and a device with a gap of its own.
                let is_silent = (start + 3 * HOUR..start + 4 * HOUR).contains(&at)
                    || (number == 5 && (start + HOUR..start + 150 * MINUTE).contains(&at));
                if !is_silent {
                    if random.one_in(40) {
                        (restarts, rx_bytes) = if random.one_in(2) { (0, 7) } else { (restarts + 1, rx_bytes) };
                    }
                    rx_bytes += random.below(5_000);
                    beats.push(beat(&mut random, number, at - start, start, restarts, rx_bytes));
                }
                at += 20 * SECOND + random.below(100_000) as i64;
            }
        }
        edges(&mut beats, start);
        // Numbers are given in the order of receipt, by two journals.
        beats.sort_by_key(|beat| beat.received_at);
        for (at, beat) in beats.iter_mut().enumerate() {
            beat.journal = JOURNALS[at % 2];
            beat.seq = (at / 2 + 1) as u64;
        }
        Self { start, beats }
    }

    /// Registers the devices and puts the heartbeats into ClickHouse.
    pub fn settle(&self, server: &Server) {
        for number in 0..DEVICES {
            let message = json!({
                "device_id": id(number), "device_type": device_type(number), "version": version(number, 6 * HOUR),
                "labels": labels(number),
            });
            let reply = post(server, "DeviceService/RegisterDevice", Some(ADMIN_KEY), &message.to_string());
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
        for beats in self.beats.chunks(2_000) {
            run(server.clickhouse(), "fleetd", &insert(beats));
        }
    }
}

/// Half of them are updated in the second half of the time.
pub fn version(number: usize, after: i64) -> String {
    if number.is_multiple_of(2) && after > 150 * MINUTE {
        "2.0".to_owned()
    } else {
        format!("1.{}", number % 2)
    }
}

fn beat(random: &mut Random, number: usize, after: i64, start: i64, restarts: u32, rx_bytes: u64) -> Beat {
    let at = start + after;
    let mut metrics = BTreeMap::new();
    if number < 6 {
        metrics.insert("queue.depth".to_owned(), random.below(1_000) as f64 / 8.0 - 60.0);
    }
    if random.one_in(3) {
        // Named as one of the server's: another metric all the same.
        metrics.insert("cpu_usage".to_owned(), 1e6 * random.below(10) as f64);
        metrics.insert("huge".to_owned(), [1e-12, 0.0, 3e9, -4e9, 1e18][random.below(5) as usize]);
    }
    Beat {
        journal: JOURNALS[0],
        seq: 0,
        device: id(number),
        device_type: device_type(number).to_owned(),
        version: version(number, after),
        at,
        // Some come late, by up to two hours.
        received_at: at + if random.one_in(20) { random.below(7_200_000) as i64 } else { 40 },
        cpu: (!random.one_in(10)).then(|| random.below(1_000) as f64 / 10.0),
        memory_used: (!random.one_in(8)).then(|| 200 + random.below(700)),
        memory_total: if random.one_in(6) { 0 } else { 1_000 },
        restarts,
        rx_bytes,
        metrics,
    }
}

/// What lies on the edges: of intervals, of what is believed, and several at one moment.
fn edges(beats: &mut Vec<Beat>, start: i64) {
    let mut random = Random(77);
    let mut add = |number: usize, at: i64, received_at: i64, cpu: f64| {
        let plain = beat(&mut random, number, at - start, start, 1, 10);
        beats.push(Beat { received_at, cpu: Some(cpu), ..plain });
    };
    for edge in [start, start + HOUR, start + 2 * HOUR, start + 90 * MINUTE, start + 45 * MINUTE] {
        for at in [edge - 1, edge, edge + 1] {
            add(1, at, at + 5, 50.0 + (at - edge) as f64);
        }
    }
    // Three at the same moment: the last one by number counts as the last.
    for cpu in [11.0, 22.0, 33.0] {
        add(2, start + 5 * HOUR + 1, start + 5 * HOUR + 50 + cpu as i64, cpu);
    }
    // A clock that runs ahead or behind: on this side of what is believed, and on the other.
    let at = start + 2 * HOUR + 17 * MINUTE;
    for (received_at, cpu) in [(at - DAY, 1.5), (at - DAY - 1, 9e5), (at + 3 * HOUR, 2.5), (at - 3 * DAY, 9e6)] {
        add(4, at, received_at, cpu);
    }
    // Just outside of the six hours, for questions that end there.
    add(0, start + 6 * HOUR, start + 6 * HOUR + 5, 77.0);
    add(0, start + 6 * HOUR + 1, start + 6 * HOUR + 6, 78.0);
}
