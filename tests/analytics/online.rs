//! `device_online_count`: against a plain computation over the events, and against what was done to the devices, across
//! stops and kills of the server.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use super::support::clickhouse::run;
use super::support::{wait_until, Options, Server, ADMIN_KEY};
use super::{answer, post, time};
use fleetd::clock::UnixMillis;

const SECOND: i64 = 1_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Devices that report every quarter of a second, and are told to every two: LATE after three seconds, which no restart
/// takes.
struct Fleet {
    server: Server,
    keys: BTreeMap<&'static str, String>,
}

impl Fleet {
    fn new(devices: &[(&'static str, &str)]) -> Self {
        let options = Options::default().unlimited().env("FLEETD_HEARTBEAT_INTERVAL_SECONDS", "2");
        let server = Server::with(options);
        let mut fleet = Self { server, keys: BTreeMap::new() };
        devices.iter().for_each(|(id, device_type)| fleet.register(id, device_type));
        fleet
    }

    fn register(&mut self, id: &'static str, device_type: &str) {
        let message = json!({ "device_id": id, "device_type": device_type });
        let registered = self.ok("RegisterDevice", &message);
        self.keys.insert(id, registered["apiKey"].as_str().expect("a key").to_owned());
    }

    fn ok(&self, rpc: &str, message: &Value) -> Value {
        let reply = post(&self.server, &format!("DeviceService/{rpc}"), Some(ADMIN_KEY), &message.to_string());
        assert_eq!(reply.status, 200, "{rpc} {message}: {}", reply.text());
        reply.json()
    }

    /// Lets some devices report for so long, and the others not.
    fn live(&self, devices: &[&str], for_: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < for_ {
            for id in devices {
                let message = json!({ "device_id": id }).to_string();
                let reply = post(&self.server, "DeviceService/Heartbeat", Some(&self.keys[id]), &message);
                assert_eq!(reply.status, 200, "{id}: {}", reply.text());
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    /// Lets devices report until so many are ONLINE by what was told, and for a while more.
    fn live_until(&self, devices: &[&str], online: usize, for_: Duration) {
        let is_so = wait_until(PATIENCE, || {
            self.live(devices, Duration::from_millis(1));
            self.events().state_at(i64::MAX, |_| true) == online as i64
        });
        assert!(is_so, "{} are online, not {online}", self.events().state_at(i64::MAX, |_| true));
        self.live(devices, for_);
    }

    fn events(&self) -> Events {
        let sql = "SELECT device_id, from_state, to_state, toUnixTimestamp64Milli(timestamp) FROM device_events \
                   WHERE kind IN ('status_change', 'deleted') ORDER BY timestamp, seq FORMAT TSV";
        let mut events = Events::default();
        for line in run(self.server.clickhouse(), "fleetd", sql).lines() {
            let columns: Vec<_> = line.split('\t').collect();
            let [device, from, to, at] = columns[..] else { panic!("{line:?}") };
            let event = (at.parse().expect("a time"), from.to_owned(), to.to_owned());
            events.0.entry(device.to_owned()).or_default().push(event);
        }
        events
    }

    /// The metric by group, and in it by the time of the interval: value and number of samples.
    fn count(&self, question: Value) -> BTreeMap<String, Vec<(i64, f64, i64)>> {
        let mut asked = json!({ "metric_names": ["device_online_count"] });
        let fields = asked.as_object_mut().expect("an object");
        fields.extend(question.as_object().expect("an object").clone());
        let answer = answer(&self.server, &asked);
        let number = |value: &Value| value.as_f64().unwrap_or_default();
        let series = answer["series"].as_array().into_iter().flatten().map(|series| {
            let labels = series["labels"].as_object().into_iter().flatten().map(|(_, value)| value.as_str());
            let points = series["points"].as_array().into_iter().flatten().map(|point| {
                let at = point["timestamp"].as_str().expect("a time");
                let count = point["count"].as_str().map_or(0, |count| count.parse().expect("a number"));
                (millis(at), number(&point["value"]), count)
            });
            (labels.flatten().collect(), points.collect())
        });
        series.collect()
    }
}

fn millis(time: &str) -> i64 {
    let at: fleetd_proto::Timestamp = serde_json::from_value(json!(time)).expect("a timestamp");
    at.seconds * 1_000 + i64::from(at.nanos) / 1_000_000
}

/// By device, in the order of time: when, from which state, to which.
#[derive(Default)]
struct Events(BTreeMap<String, Vec<(i64, String, String)>>);

impl Events {
    /// How many of some devices were ONLINE just before a moment.
    fn state_at(&self, at: i64, among: impl Fn(&str) -> bool) -> i64 {
        let of_device = |events: &Vec<(i64, String, String)>| {
            let last = events.iter().rev().find(|(when, _, _)| *when < at);
            last.map_or(&events[0].1, |(_, _, to)| to) == "ONLINE"
        };
        let devices = self.0.iter().filter(|(device, _)| among(device));
        devices.filter(|(_, events)| of_device(events)).count() as i64
    }

    fn first(&self) -> i64 {
        self.0.values().map(|events| events[0].0).min().expect("an event")
    }
}

#[test]
fn devices_are_counted_over_time_across_stops_and_kills_of_the_server() {
    let before = UnixMillis::now().as_millis() / SECOND * SECOND - 5 * SECOND;
    let mut fleet = Fleet::new(&[("pump-1", "pump"), ("pump-2", "pump"), ("valve-1", "valve")]);
    let all = ["pump-1", "pump-2", "valve-1"];
    fleet.live_until(&all, 3, Duration::from_secs(3));
    fleet.live_until(&["pump-1", "pump-2"], 2, Duration::from_secs(2));
    fleet.live_until(&all, 3, Duration::from_secs(2));

    // A clean restart, and then a kill: three devices that go on are never fewer.
    let restarted = UnixMillis::now().as_millis();
    assert_eq!(fleet.server.sigterm(), Some(0));
    fleet.server.restart();
    fleet.live_until(&all, 3, Duration::from_secs(3));
    let during = fleet.count(json!({
        "start_time": time(restarted - SECOND), "interval": "1s", "aggregation": "MIN",
    }));
    assert!(during[""].iter().all(|(_, value, _)| *value == 3.0), "after the stop: {during:?}");
    fleet.server.sigkill();
    fleet.server.restart();
    // Nobody reports while the question waits for its answer, so what is later may be late.
    let ready = UnixMillis::now().as_millis();
    let at_once = fleet.count(json!({
        "start_time": time(restarted), "end_time": time(ready), "interval": "1s", "aggregation": "MIN",
    }));
    assert!(at_once[""].iter().all(|(_, value, _)| *value == 3.0), "after the kill: {at_once:?}");

    // One that died while the server was away, and one that is deleted while it is online.
    fleet.live_until(&["pump-1", "pump-2"], 2, Duration::ZERO);
    let restarted = UnixMillis::now().as_millis();
    assert_eq!(fleet.server.sigterm(), Some(0));
    fleet.server.restart();
    let ready = UnixMillis::now().as_millis();
    let without_the_late = fleet.count(json!({
        "start_time": time(restarted), "end_time": time(ready), "interval": "1s", "aggregation": "MAX",
    }));
    let points = &without_the_late[""];
    assert!(points.iter().all(|(_, value, _)| *value == 2.0), "one was late, and still is: {without_the_late:?}");
    fleet.live(&["pump-1", "pump-2"], Duration::from_secs(1));
    fleet.ok("DeleteDevice", &json!({ "device_id": "pump-2", "force": true }));
    fleet.live_until(&["pump-1"], 1, Duration::from_secs(2));
    fleet.register("pump-3", "pump");
    fleet.live_until(&["pump-1", "pump-3"], 2, Duration::from_secs(2));

    let events = fleet.events();
    let end = UnixMillis::now().as_millis() / SECOND * SECOND;
    let question = |interval: i64, aggregation: &str| {
        json!({
            "start_time": time(before), "end_time": time(end), "interval": format!("{interval}s"),
            "aggregation": aggregation,
        })
    };
    let levels = |among: &dyn Fn(&str) -> bool| {
        let seconds = (before / SECOND + 1..=end / SECOND).map(|second| second * SECOND);
        let known = seconds.filter(|at| *at > events.first());
        known.map(|at| (at, events.state_at(at, among) as f64)).collect::<Vec<_>>()
    };
    // The sample of a second is taken at its end.
    let everybody = levels(&|_| true);
    let counted = fleet.count(question(1, "LAST"));
    let expected: Vec<_> = everybody.iter().map(|(at, level)| (at - SECOND, *level, 1)).collect();
    // The first event that ClickHouse has may be a registration, which comes before any change of presence.
    let counted: Vec<_> = counted[""].iter().filter(|(at, _, _)| *at >= expected[0].0).copied().collect();
    assert_eq!(counted, expected);
    let seen: Vec<f64> = expected.iter().map(|(_, level, _)| *level).collect();
    assert!([1.0, 2.0, 3.0].iter().all(|level| seen.contains(level)), "{seen:?}");

    // Longer intervals aggregate the same samples.
    for aggregation in ["AVG", "MIN", "MAX", "SUM", "COUNT", "LAST", "P50", "P90"] {
        let mut intervals: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
        for (at, level) in &everybody {
            let interval = (at - SECOND - before).div_euclid(7 * SECOND);
            intervals.entry(before + interval * 7 * SECOND).or_default().push(*level);
        }
        let counted = fleet.count(question(7, aggregation));
        let counted: BTreeMap<i64, f64> = counted[""].iter().map(|(at, value, _)| (*at, *value)).collect();
        // The first interval has samples from before the first change.
        for (at, samples) in intervals.into_iter().skip(1) {
            let value = aggregated(aggregation, samples.clone());
            assert!((counted[&at] - value).abs() < 1e-9, "{aggregation} of {samples:?} is {}", counted[&at]);
        }
    }

    // Of a set the devices count that are in it now.
    let by_type = fleet.count({
        let mut question = question(1, "LAST");
        question["group_by"] = json!(["device_type"]);
        question
    });
    let filtered = fleet.count({
        let mut question = question(1, "LAST");
        question["device_filter"] = json!("type:valve");
        question
    });
    let one = fleet.count({
        let mut question = question(1, "LAST");
        question["labels"] = json!({ "device_id": "valve-1" });
        question
    });
    let pumps: Vec<_> = levels(&|id| id == "pump-1" || id == "pump-3");
    let valves: Vec<_> = levels(&|id| id == "valve-1");
    let points = |series: &Vec<(i64, f64, i64)>, expected: &Vec<(i64, f64)>| {
        let first = expected[0].0 - SECOND;
        series.iter().filter(|(at, _, _)| *at >= first).map(|(at, value, _)| (at + SECOND, *value)).collect::<Vec<_>>()
    };
    assert_eq!(points(&by_type["pump"], &pumps), pumps);
    assert_eq!(points(&by_type["valve"], &valves), valves);
    assert_eq!(points(&filtered[""], &valves), valves);
    assert_eq!(points(&one[""], &valves), valves);
    assert!(valves.iter().any(|(_, level)| *level == 0.0) && valves.iter().any(|(_, level)| *level == 1.0));

    // Before anything was known, and after now, there is nothing.
    let empty = fleet
        .count(json!({ "start_time": time(before - 3_600 * SECOND), "end_time": time(before), "interval": "60s" }));
    assert!(empty.values().all(Vec::is_empty), "{empty:?}");
    let now = UnixMillis::now().as_millis();
    let ahead =
        fleet.count(json!({ "start_time": time(end), "end_time": time(now + 3_600 * SECOND), "interval": "1s" }));
    let last = ahead[""].last().expect("something until now").0;
    assert!(last <= UnixMillis::now().as_millis(), "{ahead:?}");
}

fn aggregated(aggregation: &str, mut samples: Vec<f64>) -> f64 {
    let (count, sum) = (samples.len() as f64, samples.iter().sum::<f64>());
    let last = *samples.last().expect("a sample");
    samples.sort_by(f64::total_cmp);
    let quantile = |quantile: f64| samples[((quantile * count).ceil() as usize).max(1) - 1];
    match aggregation {
        "AVG" => sum / count,
        "MIN" => samples[0],
        "MAX" => samples[samples.len() - 1],
        "SUM" => sum,
        "COUNT" => count,
        "LAST" => last,
        "P50" => quantile(0.5),
        "P90" => quantile(0.9),
        other => panic!("{other}"),
    }
}
