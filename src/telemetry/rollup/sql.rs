//! The statements that compute the tables, and those that compare what a table has with what it should have.
//!
//! Text is made of this crate's constants; a range is bound as parameters ([`GIVEN`] and [`STORED`]). What is computed is
//! one expression each ([`minutes`], [`hours`], [`device_hours`]) that the build inserts and the audit compares, so that
//! the two cannot disagree about what is right.
use super::coverage::Rollup;
use crate::telemetry::metric::{gauges, sketched, Known, CUSTOM_PREFIX, PLAUSIBLE};

/// The heartbeats of a range of a journal. `from` and `until` are the least and greatest `received_at` of them, in
/// milliseconds: without these, every part of every day would be asked whether it has the range.
const GIVEN: &str = "journal_id = {journal:UUID} AND seq BETWEEN {first:UInt64} AND {last:UInt64} \
     AND received_at BETWEEN fromUnixTimestamp64Milli({from:Int64}, 'UTC') AND fromUnixTimestamp64Milli({until:Int64}, 'UTC')";

/// The rows of a computed table that were made of a range.
const STORED: &str = "journal_id = {journal:UUID} AND from_seq = {first:UInt64} AND through_seq = {last:UInt64}";

/// Orders heartbeats by time, and those of one millisecond by number; one number, because tuples are compared four times
/// as slowly.
const NEWEST: &str = "bitOr(bitShiftLeft(toInt128(toUnixTimestamp64Milli(timestamp)), 64), toInt128(seq))";

/// The same by receipt.
const LAST_RECEIVED: &str = "bitOr(bitShiftLeft(toInt128(toUnixTimestamp64Milli(received_at)), 64), toInt128(seq))";

/// The time and the number in [`NEWEST`].
fn time_of(newest: &str) -> String {
    format!("fromUnixTimestamp64Milli(toInt64(bitShiftRight({newest}, 64)), 'UTC')")
}

/// The quantiles of every sketch, as the columns have them.
const LEVELS: &str = "0.01, 0.5, 0.9, 0.95, 0.99";

/// Sums depend on the order in which they were summed, and quantiles are computed of logarithms.
const TOLERANCE: &str = "1e-9";

/// The metric of which every heartbeat has a 1.
pub const HEARTBEATS: &str = "heartbeats";

/// How many heartbeats there are in a range, and when they were received.
pub fn extent() -> &'static str {
    "SELECT count() AS heartbeats, toUnixTimestamp64Milli(min(received_at)) AS earliest, \
     toUnixTimestamp64Milli(max(received_at)) AS latest FROM heartbeats \
     WHERE journal_id = {journal:UUID} AND seq BETWEEN {first:UInt64} AND {last:UInt64}"
}

/// The least number of a journal that has a heartbeat; 0 when none has.
pub fn first_seq() -> &'static str {
    "SELECT min(seq) AS seq FROM heartbeats WHERE journal_id = {journal:UUID}"
}

/// The ranges that a table has, with their latest generations, in order.
pub fn ranges(rollup: Rollup) -> String {
    format!(
        "SELECT from_seq AS first, through_seq AS last, max(generation) AS newest FROM {} \
         WHERE journal_id = {{journal:UUID}} AND through_seq >= {{first:UInt64}} AND from_seq <= {{last:UInt64}} \
         GROUP BY first, last ORDER BY first, last",
        rollup.table()
    )
}

/// When the earliest heartbeat of the rows between two numbers was received, in milliseconds, as `rollup_1m` remembers.
pub fn earliest_received() -> &'static str {
    "SELECT count() AS heartbeats, toUnixTimestamp64Milli(min(received_at)) AS earliest, \
     toUnixTimestamp64Milli(max(received_at)) AS latest FROM rollup_1m \
     WHERE journal_id = {journal:UUID} AND through_seq >= {first:UInt64} AND from_seq <= {last:UInt64} AND count > 0"
}

/// The numbers whose heartbeats a span of time has, in milliseconds.
pub fn seqs_of_time() -> String {
    format!(
        "SELECT min(seq) AS first, max(seq) AS last FROM heartbeats \
         WHERE journal_id = {{journal:UUID}} AND {PLAUSIBLE} \
         AND timestamp BETWEEN fromUnixTimestamp64Milli({{from:Int64}}, 'UTC') \
             AND fromUnixTimestamp64Milli({{until:Int64}}, 'UTC') \
         AND received_at BETWEEN fromUnixTimestamp64Milli({{from:Int64}}, 'UTC') - INTERVAL 1 DAY \
             AND fromUnixTimestamp64Milli({{until:Int64}}, 'UTC') + INTERVAL 31 DAY"
    )
}

/// Inserts a range, or a range of one table into a coarser one. For [`Rollup::Latest`] `generation` is of no use.
pub fn build(rollup: Rollup) -> String {
    let table = rollup.table();
    match rollup {
        Rollup::Minutes => format!(
            "INSERT INTO {table} (metric, device_type, version, time, journal_id, from_seq, through_seq, generation, \
             received_at, count, sum, min, max, last, last_at, last_seq, sketch) \
             SELECT metric, device_type, version, time, {RANGE}, \
             received_at, count, sum, min, max, last, {last_at}, toUInt64(newest), sketch FROM ({of})",
            last_at = time_of("newest"),
            of = minutes()
        ),
        Rollup::Hours => format!(
            "INSERT INTO {table} (metric, device_type, version, time, journal_id, from_seq, through_seq, generation, \
             count, sum, min, max, last, last_at, last_seq, sketch) \
             SELECT metric, device_type, version, time, {RANGE}, \
             count, sum, min, max, last, {last_at}, toUInt64(newest), sketch FROM ({of})",
            last_at = time_of("newest"),
            of = hours()
        ),
        Rollup::DeviceHours => format!(
            "INSERT INTO {table} (device_id, time, device_type, version, heartbeats, first_at, last_at, {gauges}, \
             journal_id, from_seq, through_seq, generation) \
             SELECT device_id, time, device_type, version, heartbeats, first_at, last_at, {gauges}, {RANGE} FROM ({of})",
            gauges = names_of_gauges(),
            of = device_hours()
        ),
        Rollup::Latest => latest(),
    }
}

const RANGE: &str = "{journal:UUID}, {first:UInt64}, {last:UInt64}, {generation:UInt32}";

/// The values of a range by minute: every gauge in one pass over the heartbeats, the fleet's own in another.
fn minutes() -> String {
    let of_gauge = |name: &str| {
        format!(
            "tuple('{name}', countIf(has_{name}), sumIf(of_{name}, has_{name}), minIf(of_{name}, has_{name}), \
             maxIf(of_{name}, has_{name}), argMaxIf(of_{name}, newest, has_{name}), maxIf(newest, has_{name}), \
             quantilesDDStateIf({LEVELS})({sketched}, has_{name}))",
            sketched = sketched(&format!("of_{name}"))
        )
    };
    let metrics: Vec<_> = gauges().map(|known| known.name).chain([HEARTBEATS]).map(of_gauge).collect();
    let columns: Vec<_> = gauges().map(columns_of).collect();
    format!(
        "SELECT one.1 AS metric, device_type, version, time, received AS received_at, one.2 AS count, one.3 AS sum, \
         one.4 AS min, one.5 AS max, one.6 AS last, one.7 AS newest, one.8 AS sketch FROM (\
         SELECT device_type, version, time, min(received_at) AS received, arrayJoin([{metrics}]) AS one FROM (\
         SELECT device_type, version, toStartOfMinute(timestamp) AS time, received_at, {NEWEST} AS newest, {columns}, \
         toFloat64(1) AS of_{HEARTBEATS}, toUInt8(1) AS has_{HEARTBEATS} FROM heartbeats WHERE {GIVEN} AND {PLAUSIBLE}) \
         GROUP BY device_type, version, time \
         UNION ALL \
         SELECT device_type, version, time, min(received_at) AS received, tuple(name, count(), sum(value), min(value), \
         max(value), argMax(value, newest), max(newest), quantilesDDState({LEVELS})({sketched})) AS one FROM (\
         SELECT device_type, version, toStartOfMinute(timestamp) AS time, received_at, {NEWEST} AS newest, \
         concat('{CUSTOM_PREFIX}', CAST(own AS String)) AS name, value FROM heartbeats \
         ARRAY JOIN mapKeys(metrics) AS own, mapValues(metrics) AS value \
         WHERE {GIVEN} AND {PLAUSIBLE} AND isFinite(value)) \
         GROUP BY name, device_type, version, time) WHERE one.2 > 0",
        metrics = metrics.join(", "),
        columns = columns.join(", "),
        sketched = sketched("value"),
    )
}

/// A gauge as two columns: its number, and whether the row tells one. Named unlike any column of the table, because
/// ClickHouse prefers aliases to columns.
fn columns_of(known: &Known) -> String {
    let (name, number) = (known.name, known.number());
    format!("assumeNotNull({number}) AS of_{name}, ifNull(isFinite({number}), 0) AS has_{name}")
}

fn names_of_gauges() -> String {
    gauges().map(|known| known.name).collect::<Vec<_>>().join(", ")
}

/// The rows of a range of minutes, merged by hour.
fn hours() -> String {
    format!(
        "SELECT metric, device_type, version, hour AS time, sum(n) AS count, sum(total) AS sum, min(least) AS min, \
         max(most) AS max, argMax(final, at) AS last, max(at) AS newest, quantilesDDMergeState({LEVELS})(part) AS sketch \
         FROM (SELECT metric, device_type, version, toStartOfHour(time) AS hour, count AS n, sum AS total, min AS least, \
         max AS most, last AS final, {at} AS at, sketch AS part FROM rollup_1m FINAL \
         WHERE journal_id = {{journal:UUID}} AND from_seq >= {{first:UInt64}} AND through_seq <= {{last:UInt64}} \
         AND count > 0) GROUP BY metric, device_type, version, hour",
        at = NEWEST.replace("timestamp", "last_at").replace("seq", "last_seq"),
    )
}

/// The type of a gauge in `device_1h`.
const DEVICE_GAUGE: &str = "Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, \
     last_at DateTime64(3, 'UTC'), last_seq UInt64)";

/// The values of a range by device and hour.
fn device_hours() -> String {
    let of_gauge = |known: &Known| {
        let name = known.name;
        format!(
            "CAST(tuple(countIf(has_{name}), sumIf(of_{name}, has_{name}), minIf(of_{name}, has_{name}), \
             maxIf(of_{name}, has_{name}), argMaxIf(of_{name}, newest, has_{name}), {at}, \
             toUInt64(maxIf(newest, has_{name}))), '{type_name}') AS {name}",
            at = time_of(&format!("maxIf(newest, has_{name})")),
            type_name = DEVICE_GAUGE.replace('\'', "\\'"),
        )
    };
    let metrics: Vec<_> = gauges().map(of_gauge).collect();
    let columns: Vec<_> = gauges().map(columns_of).collect();
    format!(
        "SELECT device_id, hour AS time, argMax(type, newest) AS device_type, argMax(release, newest) AS version, \
         toUInt32(count()) AS heartbeats, min(at) AS first_at, max(at) AS last_at, {metrics} FROM (\
         SELECT device_id, toStartOfHour(timestamp) AS hour, timestamp AS at, device_type AS type, version AS release, \
         {NEWEST} AS newest, {columns} FROM heartbeats WHERE {GIVEN} AND {PLAUSIBLE}) GROUP BY device_id, hour",
        metrics = metrics.join(", "),
        columns = columns.join(", "),
    )
}

/// The last heartbeat of each device in a range: first which, of two narrow columns, then their rows.
fn latest() -> String {
    let columns: Vec<_> = gauges().filter(|known| known.name != "uptime_seconds").collect();
    let names = columns.iter().map(|known| known.name).collect::<Vec<_>>().join(", ");
    let values = columns.iter().map(|known| known.number()).collect::<Vec<_>>().join(", ");
    format!(
        "INSERT INTO device_latest (device_id, received_at, journal_id, seq, timestamp, device_type, version, state, \
         message, uptime_seconds, restart_count, {names}) \
         SELECT device_id, received_at, journal_id, seq, timestamp, device_type, version, toString(state), \
         message, uptime_seconds, restart_count, {values} FROM heartbeats WHERE {GIVEN} AND seq IN (\
         SELECT toUInt64(max({LAST_RECEIVED})) FROM heartbeats WHERE {GIVEN} GROUP BY device_id)"
    )
}

/// Rows of count 0 for what a range had before and has no more after it was built again as `generation`: an older
/// generation would else stand for ever.
pub fn bury(rollup: Rollup) -> String {
    let (table, key, neutral) = match rollup {
        Rollup::Minutes => {
            ("rollup_1m", "metric, device_type, version, time", [", received_at, min, max", ", received_at, inf, -inf"])
        }
        Rollup::Hours => ("rollup_1h", "metric, device_type, version, time", [", min, max", ", inf, -inf"]),
        // No range is kept in device_latest.
        Rollup::DeviceHours | Rollup::Latest => ("device_1h", "device_id, time", ["", ""]),
    };
    let is_there = is_there(rollup);
    format!(
        "INSERT INTO {table} ({key}, journal_id, from_seq, through_seq, generation{}) \
         SELECT {key}, {RANGE}{} FROM {table} FINAL \
         WHERE {STORED} AND generation < {{generation:UInt32}} AND {is_there}",
        neutral[0], neutral[1]
    )
}

fn is_there(rollup: Rollup) -> &'static str {
    match rollup {
        Rollup::DeviceHours => "heartbeats > 0",
        _ => "count > 0",
    }
}

/// How many groups of a range differ from what they should be, and one of them.
pub fn compare(rollup: Rollup) -> String {
    match rollup {
        Rollup::Minutes => compare_groups(rollup, &minutes()),
        Rollup::Hours => compare_groups(rollup, &hours()),
        Rollup::DeviceHours => compare_devices(),
        Rollup::Latest => compare_latest(),
    }
}

fn compare_groups(rollup: Rollup, computed: &str) -> String {
    let values = "metric, device_type, version, time, count, sum, min, max, last, newest, \
         finalizeAggregation(sketch) AS quantiles";
    let at = NEWEST.replace("timestamp", "last_at").replace("seq", "last_seq");
    format!(
        "SELECT count() AS differing, any(concat(metric, ' of ', device_type, ' ', version, ' at ', toString(time))) AS example \
         FROM (SELECT metric, device_type, version, time FROM (\
         SELECT toUInt8(1) AS is_stored, CAST(metric AS String) AS metric, CAST(device_type AS String) AS device_type, \
         CAST(version AS String) AS version, time, count, sum, min, max, last, newest, quantiles FROM (\
         SELECT {values} FROM (SELECT metric, device_type, version, time, count, sum, min, max, last, {at} AS newest, sketch \
         FROM {table} FINAL WHERE {STORED} AND {is_there})) \
         UNION ALL \
         SELECT toUInt8(0) AS is_stored, CAST(metric AS String) AS metric, CAST(device_type AS String) AS device_type, \
         CAST(version AS String) AS version, time, count, sum, min, max, last, newest, quantiles FROM (\
         SELECT {values} FROM ({computed}))) \
         GROUP BY metric, device_type, version, time \
         HAVING countIf(is_stored = 1) != 1 OR countIf(is_stored = 0) != 1 OR min(count) != max(count) \
         OR min(min) != max(min) OR min(max) != max(max) OR min(last) != max(last) OR min(newest) != max(newest) \
         OR max(sum) - min(sum) > {TOLERANCE} * max(count) * greatest(abs(max(max)), abs(min(min))) \
         OR arrayExists((a, b) -> abs(a - b) > {TOLERANCE} * greatest(abs(a), abs(b)), \
         anyIf(quantiles, is_stored = 1), anyIf(quantiles, is_stored = 0)))",
        table = rollup.table(),
        is_there = is_there(rollup),
    )
}

/// By hour, over all devices: how many, all that is exact as one number, and the sums.
fn compare_devices() -> String {
    let exact: Vec<_> = gauges()
        .map(|known| known.name)
        .map(|name| format!("{name}.count, {name}.min, {name}.max, {name}.last, {name}.last_at, {name}.last_seq"))
        .collect();
    let sums: Vec<_> = gauges().map(|known| format!("sum({}.sum)", known.name)).collect();
    let scales: Vec<_> = gauges().map(|known| format!("sum(abs({}.sum))", known.name)).collect();
    let totals = format!(
        "time, count() AS devices, groupBitXor(cityHash64(device_id, CAST(device_type AS String), CAST(version AS String), \
         heartbeats, first_at, last_at, {exact})) AS exact, [{sums}] AS sums, [{scales}] AS scales",
        exact = exact.join(", "),
        sums = sums.join(", "),
        scales = scales.join(", "),
    );
    format!(
        "SELECT count() AS differing, any(concat('devices at ', toString(time))) AS example FROM (SELECT time FROM (\
         SELECT toUInt8(1) AS is_stored, {totals} FROM device_1h FINAL WHERE {STORED} AND {is_there} GROUP BY time \
         UNION ALL SELECT toUInt8(0) AS is_stored, {totals} FROM ({computed}) GROUP BY time) GROUP BY time \
         HAVING countIf(is_stored = 1) != 1 OR countIf(is_stored = 0) != 1 OR min(devices) != max(devices) \
         OR min(exact) != max(exact) OR arrayExists((a, b, scale) -> abs(a - b) > {TOLERANCE} * scale, \
         anyIf(sums, is_stored = 1), anyIf(sums, is_stored = 0), anyIf(scales, is_stored = 0)))",
        is_there = is_there(Rollup::DeviceHours),
        computed = device_hours(),
    )
}

/// Devices whose last heartbeat is older than one of the range.
fn compare_latest() -> String {
    format!(
        "SELECT count() AS differing, any(device_id) AS example FROM (SELECT device_id FROM (\
         SELECT toUInt8(1) AS is_stored, device_id, received_at FROM device_latest FINAL \
         UNION ALL SELECT toUInt8(0) AS is_stored, device_id, received_at FROM heartbeats WHERE {GIVEN}) \
         GROUP BY device_id HAVING countIf(is_stored = 0) > 0 \
         AND maxIf(received_at, is_stored = 0) > maxIf(received_at, is_stored = 1))"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_inserts_what_its_audit_compares() {
        for (rollup, computed) in
            [(Rollup::Minutes, minutes()), (Rollup::Hours, hours()), (Rollup::DeviceHours, device_hours())]
        {
            assert!(build(rollup).ends_with(&format!("FROM ({computed})")), "{rollup:?}");
            assert!(compare(rollup).contains(&format!("FROM ({computed})")), "{rollup:?}");
        }
    }

    #[test]
    fn every_gauge_is_in_every_table() {
        for known in gauges() {
            assert!(minutes().contains(&format!("tuple('{}'", known.name)), "{}", known.name);
            assert!(device_hours().contains(&format!(" AS {}", known.name)), "{}", known.name);
            assert!(latest().contains(known.name), "{}", known.name);
        }
    }
}
