//! The dashboards of `deploy/grafana` against the real program: every query of every panel and variable, as Grafana and
//! its ClickHouse plugin would send it, runs on the embedded engine and gives what its panel needs.
//!
//! Grafana itself is not here. What it and the plugin make of a query is in `plugin`, written from their sources.
#[path = "../support/mod.rs"]
mod support;

mod dashboards;
mod data;
mod plugin;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde_json::Value;
use support::wire::{http1, Ask, Reply};

use dashboards::{all, Kind, Query};
use data::{Filled, DATABASE};
use plugin::{Range, Variables};

/// One server with data for all tests of this program: they only read.
fn filled() -> &'static Filled {
    static FILLED: OnceLock<Filled> = OnceLock::new();
    FILLED.get_or_init(Filled::new)
}

/// Sends a query as the plugin does: read-only, in a format that names types.
fn ask(sql: &str) -> Reply {
    let at = filled().server.clickhouse();
    // What `provisioning/datasources` sets for every query.
    let target = format!("/?database={DATABASE}&default_format=JSONCompact&readonly=1&max_threads=1");
    http1(at, &Ask::post(target, sql).header("host", at.to_string()))
}

fn expanded(query: &Query, range: &Range, variables: &Variables) -> String {
    plugin::expand(&query.sql, range, variables)
        .unwrap_or_else(|error| panic!("{}: {error}\n{}", query.name, query.sql))
}

fn answer(query: &Query, range: &Range, variables: &Variables) -> Value {
    let sql = expanded(query, range, variables);
    let reply = ask(&sql);
    assert_eq!(reply.status, 200, "{}: {}\n{sql}", query.name, reply.text());
    reply.json()
}

/// A column's type without what wraps it.
fn bare(type_name: &str) -> &str {
    ["Nullable(", "LowCardinality("]
        .iter()
        .find_map(|wrap| type_name.strip_prefix(wrap))
        .map_or(type_name, |inner| bare(inner.strip_suffix(')').unwrap_or(inner)))
}

fn is_time(type_name: &str) -> bool {
    bare(type_name).starts_with("DateTime")
}

fn is_number(type_name: &str) -> bool {
    ["UInt", "Int", "Float", "Decimal"].iter().any(|start| bare(type_name).starts_with(start))
}

/// What the plugin's frames must be for the panel: Grafana makes a series of each number, with the strings beside it as
/// labels (`LongToWide` of its plugin SDK), and fails when times are not in order.
fn check(query: &Query, answer: &Value) {
    let meta = answer["meta"].as_array().expect("columns");
    let types: Vec<&str> = meta.iter().map(|column| column["type"].as_str().expect("a type")).collect();
    let rows = answer["data"].as_array().expect("rows");
    let name = &query.name;
    assert!(!rows.is_empty(), "{name}: no rows\n{}", query.sql);
    for type_name in &types {
        let known =
            is_time(type_name) || is_number(type_name) || bare(type_name) == "String" || bare(type_name) == "UUID";
        assert!(known, "{name}: Grafana has no use for {type_name}");
    }
    match query.kind {
        Kind::Series => {
            assert!(is_time(types[0]), "{name}: {types:?} does not begin with a time");
            assert_eq!(types.iter().filter(|one| is_time(one)).count(), 1, "{name}: {types:?}");
            assert!(types.iter().any(|one| is_number(one)), "{name}: {types:?} has no number");
            let times: Vec<&str> = rows.iter().map(|row| row[0].as_str().expect("a time")).collect();
            assert!(times.is_sorted(), "{name}: {times:?} are not in order");
            let has_value =
                rows.iter().any(|row| types.iter().zip(0..).any(|(one, at)| is_number(one) && !row[at].is_null()));
            assert!(has_value, "{name}: only NULLs");
        }
        Kind::Timeline => {
            assert!(is_time(types[0]), "{name}: {types:?} does not begin with a time");
            assert!(types[1..].iter().all(|one| bare(one) == "String"), "{name}: {types:?}");
        }
        Kind::Bars => assert!(
            bare(types[0]) == "String" && types[1..].iter().all(|one| is_number(one)) && types.len() > 1,
            "{name}: {types:?} is not a name and numbers"
        ),
        Kind::Stat => assert_eq!((rows.len(), types.len()), (1, 1), "{name}: not one value"),
        Kind::Variable => {
            assert!(types.len() <= 2 && types.iter().all(|one| bare(one) == "String"), "{name}: {types:?}");
        }
        Kind::Table => {}
    }
    if query.is_text {
        assert!(types.iter().all(|one| bare(one) == "String"), "{name}: {types:?} is no text, and has no unit");
    }
}

#[test]
fn every_query_gives_rows_of_the_types_that_its_panel_needs() {
    let filled = filled();
    let mut count = 0;
    for board in all() {
        for query in board.queries() {
            check(&query, &answer(&query, &filled.hours(2), &filled.variables));
            count += 1;
        }
    }
    assert!(count > 60, "{count} queries were found, and there are more");
}

#[test]
fn a_week_is_read_from_hours_and_two_hours_from_minutes() {
    let filled = filled();
    let rows = |table: &str| filled.number(&format!("SELECT count() FROM {table}"));
    let (minutes, hours) = (rows("rollup_1m"), rows("rollup_1h"));
    assert!(hours < minutes, "{hours} rows of hours, {minutes} of minutes");
    let mut count = 0;
    for board in all().iter().filter(|board| board.uid == "fleetd-fleet") {
        for query in board.queries().iter().filter(|query| query.sql.contains("rollup_1")) {
            let read = |range: &Range| {
                let answer = answer(query, range, &filled.variables);
                check(query, &answer);
                answer["statistics"]["rows_read"].as_u64().expect("a number")
            };
            let (of_week, of_hours) = (read(&filled.hours(24 * 7)), read(&filled.hours(2)));
            assert!(of_week <= hours, "{}: {of_week} rows are read for a week, there are {hours}", query.name);
            assert!(of_hours > hours, "{}: {of_hours} rows are read for two hours", query.name);
            count += 1;
        }
    }
    assert!(count >= 6, "{count} queries");
}

#[test]
fn a_chosen_type_and_version_leave_the_others_out() {
    let filled = filled();
    let mut chosen = filled.variables.clone();
    chosen.set("device_type", "gateway");
    for board in all().iter().filter(|board| board.uid == "fleetd-fleet") {
        for query in board.queries().iter().filter(|query| query.kind != Kind::Variable) {
            let answer = answer(query, &filled.hours(2), &chosen);
            let text = answer["data"].to_string();
            assert!(!text.contains("sensor"), "{}: {text}", query.name);
        }
    }
}

#[test]
fn no_value_of_a_variable_leaves_its_quotes() {
    let filled = filled();
    let tables = || {
        ask("SELECT name FROM system.tables WHERE database = currentDatabase() ORDER BY name").json()["data"].clone()
    };
    let before = tables();
    for hostile in [
        "'",
        "\\",
        "\\'",
        "x' OR 1=1 -- ",
        "') ; DROP TABLE heartbeats -- ",
        "$__all') OR (1=1",
        "é\u{0}\"`%27",
        "${device_id}",
    ] {
        let mut variables = filled.variables.clone();
        for name in ["device_type", "version", "device_id", "deployment_id", "metric"] {
            variables.set(name, hostile);
        }
        for board in all() {
            for query in board.queries() {
                let rows = answer(&query, &filled.hours(2), &variables)["data"].to_string();
                let is_filtered = query.sql.contains("device_id:percentencode");
                assert!(!is_filtered || !rows.contains("dev-"), "{} of {hostile:?} gives {rows}", query.name);
            }
        }
    }
    assert_eq!(tables(), before);
}

#[test]
fn every_metric_that_the_server_is_asked_for_is_one_that_it_has() {
    let shown: BTreeSet<String> = filled().samples.iter().map(|(name, _)| name.clone()).collect();
    let mut asked = 0;
    for board in all().iter().filter(|board| board.uid == "fleetd-ingest") {
        for query in board.queries() {
            for name in query.sql.split('\'').filter(|part| part.starts_with("fleetd_")) {
                let is_there = match name.strip_suffix('{') {
                    Some(family) => shown.iter().any(|one| one.starts_with(&format!("{family}{{"))),
                    None => shown.contains(name),
                };
                assert!(is_there, "{}: {name} is not in {shown:?}", query.name);
                asked += 1;
            }
        }
    }
    assert!(asked > 20, "{asked} names");
}

/// The rows of one panel for the last two hours.
fn rows_of(uid: &str, title: &str) -> Vec<Vec<Value>> {
    let boards = all();
    let board = boards.iter().find(|board| board.uid == uid).expect("the dashboard");
    let suffix = format!(": {title:?}");
    let queries = board.queries();
    let query = queries.iter().find(|query| query.name.ends_with(&suffix)).expect("the panel");
    let answer = answer(query, &filled().hours(2), &filled().variables);
    serde_json::from_value(answer["data"].clone()).expect("rows")
}

/// The sum of a column, which may be written as text where a number is long.
fn sum(rows: &[Vec<Value>], column: usize) -> f64 {
    let number = |value: &Value| value.as_f64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default();
    rows.iter().map(|row| number(&row[column])).sum()
}

#[test]
fn panels_say_what_was_sent() {
    let interval = filled().hours(2).interval_seconds as f64;
    let devices: usize = data::FLEET.iter().map(|(_, _, count)| count).sum();
    let heartbeats = devices as f64 * data::HEARTBEATS as f64;
    let per_second = rows_of("fleetd-fleet", "Heartbeats per second");
    assert!((sum(&per_second, 2) * interval - heartbeats).abs() < 1e-6, "{per_second:?}");
    // The first heartbeat has none before it, so that 29 increases are known.
    let increases = (data::HEARTBEATS - 1) as f64;
    let network = rows_of("fleetd-device", "Network");
    assert!((sum(&network, 1) * interval - increases * 1_000.0).abs() < 1e-6, "{network:?}");
    assert!((sum(&network, 2) * interval - increases * 500.0).abs() < 1e-6, "{network:?}");
    assert_eq!(sum(&rows_of("fleetd-device", "Restarts over time"), 1), 2.0);

    let states = rows_of("fleetd-fleet", "Devices by state");
    let online = states.iter().find(|row| row[0] == "ONLINE").map_or(0.0, |row| sum(std::slice::from_ref(row), 1));
    assert_eq!(sum(&states, 1), devices as f64, "{states:?}");
    let over_time = rows_of("fleetd-fleet", "Devices online");
    // Its first change says that dev-0 was there before; the first of the others says that they were not.
    assert_eq!(sum(&over_time[..1], 1), 1.0, "{over_time:?}");
    assert_eq!(sum(&over_time[over_time.len() - 1..], 1), online, "{over_time:?}");
    assert_eq!(online, devices as f64, "all came again");

    let versions = rows_of("fleetd-fleet", "Devices by version");
    assert_eq!(
        versions
            .iter()
            .map(|row| (row[0].as_str().expect("a version"), sum(std::slice::from_ref(row), 1)))
            .collect::<Vec<_>>(),
        [("1.0.0", 4.0), ("2.0.0", 2.0)]
    );
    assert_eq!(sum(&rows_of("fleetd-deployment", "Updated"), 0), 2.0);
    assert_eq!(sum(&rows_of("fleetd-deployment", "Failed"), 0), 1.0);
    // Offered 470 s ago, updated 300 s ago.
    assert_eq!(sum(&rows_of("fleetd-deployment", "Median time to update"), 0).round(), 170.0);
    let reasons = rows_of("fleetd-deployment", "Failures by reason");
    assert_eq!((&reasons[0][0], &reasons[0][1]), (&Value::from("FAILED"), &Value::from("the disk is full")));
    let compared = rows_of("fleetd-deployment", "Updated devices beside the others");
    for kind in ["updated", "held back"] {
        assert!(compared.iter().any(|row| row[1] == kind), "{compared:?}");
    }
    let outcomes = rows_of("fleetd-ingest", "Heartbeats by outcome");
    let of_acked: Vec<_> = outcomes.iter().filter(|row| row[1] == "acked").cloned().collect();
    // Samples are 30 s apart, and each is one more than the one before.
    assert!(of_acked.iter().all(|row| (sum(std::slice::from_ref(row), 2) - 1.0 / 30.0).abs() < 1e-3), "{outcomes:?}");
}
