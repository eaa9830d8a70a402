//! Gates of deployments, measured: what the devices that run a new version report, beside those that were held back.
//!
//! Both groups are looked at over the same span, by the server's clock (`received_at`): a device whose own clock is wrong
//! is measured like any other. ClickHouse's failure is no verdict; the caller asks again.
use fleetd_proto::v1::gate_result::Verdict;
use fleetd_proto::v1::{GateResult, MetricGate};
use fleetd_proto::Timestamp;

use super::clickhouse::{ClickHouse, ClickHouseError, IdList};
use super::metric::{Aggregation, Metric, Nature};
use crate::clock::UnixMillis;
use crate::ids::DeviceId;

/// Devices of one group that are measured; those beyond are not looked at. Far more than a difference needs that matters,
/// and ids of some hundred KiB in a query, a megabyte at most.
pub const MAX_SAMPLE: usize = 10_000;

/// Parts of the span in each of which a counter's first and last reading count. 10,000 devices then cost ClickHouse some
/// 100 MB at most, whatever the span; a counter that falls and rises again within one part is seen as one fall.
const PARTS: i64 = 100;

/// Seconds after which ClickHouse gives a measurement up.
const MAX_SECONDS: &str = "30";

/// What one group reported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// `None` where nobody reported the metric.
    pub value: Option<f64>,
    /// Devices that reported it.
    pub devices: u64,
}

/// Measures a gate over `updated` devices and over those that are held back, from `from` to `to`, the end exclusive. A
/// gate that does not compare leaves `control` alone.
///
/// # Errors
/// When ClickHouse does not answer; nothing is known then.
pub async fn measure(
    clickhouse: &ClickHouse,
    gate: &MetricGate,
    updated: &[DeviceId],
    control: &[DeviceId],
    from: UnixMillis,
    to: UnixMillis,
) -> Result<GateResult, ClickHouseError> {
    let aggregated = Aggregation::named(&gate.aggregation).and_then(Aggregation::sql);
    let (Ok(metric), Some(aggregated)) = (Metric::named(&gate.metric), aggregated) else {
        // No policy has such a gate. Without evidence it must not pass.
        tracing::error!(metric = gate.metric, aggregation = gate.aggregation, "a gate that cannot be measured");
        return Ok(judge(gate, Reading::default(), Reading::default(), to));
    };
    let value = read(clickhouse, &metric, aggregated, updated, from, to).await?;
    let control = match gate.max_increase_percentage {
        Some(_) => read(clickhouse, &metric, aggregated, control, from, to).await?,
        None => Reading::default(),
    };
    Ok(judge(gate, value, control, to))
}

/// The verdict on what was read.
///
/// A bound that is broken fails the gate, whatever the other bounds lack. Else too few devices, on a side that a bound
/// needs, are inconclusive. An increase is in per cent of the held-back devices' value, without its sign; where that is
/// 0, any increase is too much.
pub fn judge(gate: &MetricGate, updated: Reading, control: Reading, measured_at: UnixMillis) -> GateResult {
    // 3 is the documented default.
    let needed = u64::try_from(gate.min_devices.unwrap_or(3).max(1)).unwrap_or(1);
    let enough = |reading: Reading| reading.value.filter(|_| reading.devices >= needed);
    let value = enough(updated);
    let is_above = value.zip(gate.max_value).is_some_and(|(value, most)| value > most);
    let is_below = value.zip(gate.min_value).is_some_and(|(value, least)| value < least);
    let compared = value.zip(enough(control)).zip(gate.max_increase_percentage);
    let is_worse =
        compared.is_some_and(|((value, control), increase)| value > control + control.abs() * increase / 100.0);
    let is_compared = gate.max_increase_percentage.is_none() || compared.is_some();
    let verdict = match value {
        Some(_) if is_above || is_below || is_worse => Verdict::Failed,
        Some(_) if is_compared => Verdict::Passed,
        _ => Verdict::Inconclusive,
    };
    let count = |devices: u64| i32::try_from(devices).unwrap_or(i32::MAX);
    GateResult {
        gate: Some(gate.clone()),
        verdict: verdict as i32,
        value: updated.value,
        control_value: control.value,
        device_count: count(updated.devices),
        control_device_count: count(control.devices),
        measured_at: Some(Timestamp::from_unix_millis(measured_at.as_millis())),
    }
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Measured {
    value: Option<f64>,
    devices: u64,
}

async fn read(
    clickhouse: &ClickHouse,
    metric: &Metric,
    aggregated: &'static str,
    devices: &[DeviceId],
    from: UnixMillis,
    to: UnixMillis,
) -> Result<Reading, ClickHouseError> {
    let devices = &devices[..devices.len().min(MAX_SAMPLE)];
    if devices.is_empty() {
        return Ok(Reading::default());
    }
    let ids = IdList::new(devices.iter().map(DeviceId::as_str));
    let mut query = clickhouse
        .query(&sql(metric, aggregated, &ids))
        .with_setting("max_execution_time", MAX_SECONDS)
        .param("from", from.as_millis())
        .param("to", to.as_millis());
    query = ids.bind(query);
    if let Some(name) = metric.parameter() {
        query = query.param("metric", name);
    }
    if metric.nature() == Nature::Counter {
        let span = to.as_millis().saturating_sub(from.as_millis());
        query = query.param("part", (span / PARTS).max(1));
    }
    let row = clickhouse.rows::<Measured>("measure a gate", query).await?.pop();
    let measured = row.map(|row| Reading { value: row.value.filter(|value| value.is_finite()), devices: row.devices });
    Ok(measured.unwrap_or_default())
}

/// Constants of this crate only; see [`Metric::value`].
fn sql(metric: &Metric, aggregated: &'static str, ids: &IdList<'_>) -> String {
    let readings = format!(
        "SELECT device_id, received_at, CAST({} AS Nullable(Float64)) AS reported FROM heartbeats \
         WHERE {} \
         AND received_at >= fromUnixTimestamp64Milli({{from:Int64}}, 'UTC') \
         AND received_at < fromUnixTimestamp64Milli({{to:Int64}}, 'UTC')",
        metric.value(),
        ids.condition("device_id")
    );
    // Infinities are not stored, but a quotient can be one. In a WHERE an alias goes before a column of that name, so the
    // two have different ones.
    let present = format!(
        "SELECT device_id, received_at, assumeNotNull(reported) AS reading FROM ({readings}) \
         WHERE reported IS NOT NULL AND isFinite(reported)"
    );
    let values = match metric.nature() {
        Nature::Gauge => format!("SELECT device_id, reading AS value FROM ({present})"),
        Nature::Counter => increases(&present),
    };
    format!(
        "SELECT if(devices = 0, NULL, CAST({aggregated} AS Nullable(Float64))) AS value, \
         uniqExact(device_id) AS devices FROM ({values})"
    )
}

/// By how much a counter grew, one value for each device with two readings or more. One that fell began anew at 0, as
/// after a restart of the device.
fn increases(readings: &str) -> String {
    let parts = format!(
        "SELECT device_id, intDiv(toUnixTimestamp64Milli(received_at) - {{from:Int64}}, {{part:Int64}}) AS part, \
         argMin(reading, received_at) AS first, argMax(reading, received_at) AS last, count() AS readings \
         FROM ({readings}) GROUP BY device_id, part"
    );
    let series = format!(
        "SELECT device_id, sum(readings) AS readings, \
         arrayFlatten(arrayMap(one -> [one.2, one.3], arraySort(groupArray((part, first, last))))) AS series \
         FROM ({parts}) GROUP BY device_id"
    );
    format!(
        "SELECT device_id, arraySum((now, before) -> if(now >= before, now - before, now), \
         arrayPopFront(series), arrayPopBack(series)) AS value FROM ({series}) WHERE readings >= 2"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(value: f64, devices: u64) -> Reading {
        Reading { value: Some(value), devices }
    }

    fn verdict(gate: &MetricGate, updated: Reading, control: Reading) -> Verdict {
        judge(gate, updated, control, UnixMillis::EPOCH).verdict()
    }

    #[test]
    fn bounds_hold_up_to_their_value() {
        let gate = MetricGate { max_value: Some(80.0), min_value: Some(10.0), ..MetricGate::default() };
        for (value, expected) in
            [(80.0, Verdict::Passed), (80.001, Verdict::Failed), (10.0, Verdict::Passed), (9.999, Verdict::Failed)]
        {
            assert_eq!(verdict(&gate, reading(value, 3), Reading::default()), expected, "{value}");
        }
    }

    #[test]
    fn an_increase_is_judged_by_the_size_of_what_it_is_compared_with() {
        let gate = MetricGate { max_increase_percentage: Some(10.0), ..MetricGate::default() };
        for (value, control, expected) in [
            (55.0, 50.0, Verdict::Passed),
            (55.1, 50.0, Verdict::Failed),
            (20.0, 50.0, Verdict::Passed),
            (0.0, 0.0, Verdict::Passed),
            (0.1, 0.0, Verdict::Failed),
            (-45.0, -50.0, Verdict::Passed),
            (-44.0, -50.0, Verdict::Failed),
        ] {
            assert_eq!(verdict(&gate, reading(value, 3), reading(control, 3)), expected, "{value} to {control}");
        }
    }

    #[test]
    fn too_few_devices_or_no_data_never_pass() {
        let absolute = MetricGate { max_value: Some(80.0), min_devices: Some(5), ..MetricGate::default() };
        assert_eq!(verdict(&absolute, reading(1.0, 4), Reading::default()), Verdict::Inconclusive);
        assert_eq!(verdict(&absolute, reading(99.0, 4), Reading::default()), Verdict::Inconclusive);
        assert_eq!(verdict(&absolute, Reading::default(), Reading::default()), Verdict::Inconclusive);
        let compared = MetricGate { max_increase_percentage: Some(10.0), ..absolute };
        assert_eq!(verdict(&compared, reading(1.0, 5), reading(1.0, 4)), Verdict::Inconclusive);
        assert_eq!(verdict(&compared, reading(99.0, 5), Reading::default()), Verdict::Failed, "one bound is enough");
        assert_eq!(verdict(&compared, reading(1.0, 5), reading(1.0, 5)), Verdict::Passed);
    }

    #[test]
    fn what_was_measured_is_told_whatever_the_verdict() {
        let gate = MetricGate { metric: "cpu_usage".into(), max_value: Some(80.0), ..MetricGate::default() };
        let told = judge(&gate, reading(50.0, 2), reading(40.0, 7), UnixMillis::from_unix_seconds(5));
        assert_eq!((told.value, told.device_count), (Some(50.0), 2));
        assert_eq!((told.control_value, told.control_device_count), (Some(40.0), 7));
        assert_eq!(told.measured_at, Some(Timestamp { seconds: 5, nanos: 0 }));
        assert_eq!(told.gate, Some(gate));
    }
}
