//! The metrics of the table `heartbeats`: their names, what each is in SQL, and how it is aggregated. Gates of deployments
//! and GetMetrics read the same expressions, so that they cannot disagree about a number.
//!
//! Pure. Every expression is a constant of this file; what a caller names reaches ClickHouse as a bound parameter only.
use super::row::heartbeat::is_metric_name;
use crate::error::beginning;

/// A metric by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metric {
    /// One that the server knows.
    Known(&'static Known),
    /// One of the fleet's own, from `stats.metrics`.
    Custom(String),
}

/// A metric that the server knows.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    pub name: &'static str,
    pub nature: Nature,
    /// NULL where a row does not tell it.
    value: &'static str,
}

/// The names of all metrics that the server knows.
pub fn known_names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|known| known.name)
}

impl Known {
    /// Its name in the computed tables.
    pub fn column(&self) -> &'static str {
        match self.name {
            "uptime" => "uptime_seconds",
            name => name,
        }
    }

    /// The metric in a row of `heartbeats` as a Float64, NULL where the row does not tell it.
    pub fn number(&self) -> String {
        format!("CAST({} AS Nullable(Float64))", self.value)
    }
}

/// How a metric behaves over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// Each reading stands for itself.
    Gauge,
    /// Readings only grow, until the device restarts: what counts is the increase over a span, one number for each device.
    Counter,
}

const fn gauge(name: &'static str, value: &'static str) -> Known {
    Known { name, nature: Nature::Gauge, value }
}

const fn counter(name: &'static str, value: &'static str) -> Known {
    Known { name, nature: Nature::Counter, value }
}

/// Per cent of the total, which the row has from the report or, where that leaves it out, from the registry.
const MEMORY_SHARE: &str = "if(memory_total_mb > 0, 100 * memory_used_mb / memory_total_mb, NULL)";
const DISK_SHARE: &str =
    "if(disk_total_gb > 0 AND disk_used_gb BETWEEN 0 AND 1e9, 100 * disk_used_gb / disk_total_gb, NULL)";

/// Readings that can be. The bounds are far beyond what the contract says of each, for agents that count every core for
/// itself or round oddly; what is beyond them is a fault of the device, and one such number would be the whole fleet's mean.
const CPU: &str = "if(cpu_percent BETWEEN 0 AND 1000, cpu_percent, NULL)";
const DISK_USED: &str = "if(disk_used_gb BETWEEN 0 AND 1e9, disk_used_gb, NULL)";
const LOAD_1M: &str = "if(load_average_1m BETWEEN 0 AND 1e6, load_average_1m, NULL)";
const LOAD_5M: &str = "if(load_average_5m BETWEEN 0 AND 1e6, load_average_5m, NULL)";
const LOAD_15M: &str = "if(load_average_15m BETWEEN 0 AND 1e6, load_average_15m, NULL)";
const TEMPERATURE: &str = "if(temperature_celsius BETWEEN -300 AND 10000, temperature_celsius, NULL)";
const BATTERY: &str = "if(battery_percent BETWEEN 0 AND 1000, battery_percent, NULL)";

/// Heartbeats that count: a clock that runs ahead by up to a day, a report that was held back for up to 31. The others
/// were dated by a clock that was not set, and would be anywhere between 1900 and 2299. Bounds the partitions that a
/// span of time can be in.
pub const PLAUSIBLE: &str = "timestamp >= received_at - INTERVAL 31 DAY AND timestamp <= received_at + INTERVAL 1 DAY";

/// The bounds of [`PLAUSIBLE`] in milliseconds: how far a heartbeat's own time may be ahead of its receipt, and behind it.
/// A read of a span of time looks for rows that were received from so much before it until so much after it.
pub const AHEAD_MS: i64 = 24 * 60 * 60 * 1_000;
pub const BEHIND_MS: i64 = 31 * AHEAD_MS;

/// `value` as sketches take it; see [`SKETCHED`].
macro_rules! sketched {
    () => {
        "if(abs(value) < 1e-9, 0., if(abs(value) < 1, value * 0.99 / 1.01, sign(value) * least(abs(value), 1e15)))"
    };
}

/// `value` as sketches take it: DDSketch's buckets are as many as the decades between the least and the greatest
/// magnitude, and ClickHouse refuses too many. What is nearer to 0 than 1e-9 counts as 0, what is further than 1e15 as
/// that.
///
/// ClickHouse (26.7) rounds the number of a bucket towards 0 where DDSketch rounds down, so it takes values below 1 for up
/// to 3 per cent more than they are. Here they are one bucket less, which makes up for it.
pub const SKETCHED: &str = sketched!();

/// The parameters of `quantilesDD`, the one sketch of the rollups, of gates and of GetMetrics: its relative accuracy, then
/// the quantiles that can be asked of it.
pub const SKETCH: &str = "(0.01, 0.5, 0.9, 0.95, 0.99)";

/// [`SKETCHED`] of another column than `value`.
pub fn sketched(column: &str) -> String {
    SKETCHED.replace("value", column)
}

/// The gauges of the computed tables, each once: where two names mean the same, the one that a column has.
pub fn gauges() -> impl Iterator<Item = &'static Known> {
    KNOWN.iter().filter(|known| known.nature == Nature::Gauge && known.name == known.column())
}

/// A heartbeat without a status leaves all of these 0.
const RESTARTS: &str = "if(state != 'UNKNOWN' OR uptime_seconds > 0, restart_count, NULL)";

/// `memory_used_mb` is there whenever the heartbeat had stats.
const SWAP: &str = "if(memory_used_mb IS NULL, NULL, swap_used_mb)";

const KNOWN: [Known; 19] = [
    gauge("cpu_usage", CPU),
    gauge("memory_usage", MEMORY_SHARE),
    gauge("disk_usage", DISK_SHARE),
    gauge("memory_used_mb", "memory_used_mb"),
    gauge("disk_used_gb", DISK_USED),
    gauge("swap_used_mb", SWAP),
    gauge("load_average_1m", LOAD_1M),
    gauge("load_average_5m", LOAD_5M),
    gauge("load_average_15m", LOAD_15M),
    gauge("temperature_celsius", TEMPERATURE),
    gauge("battery_percent", BATTERY),
    gauge("signal_dbm", "signal_dbm"),
    gauge("uptime_seconds", "nullIf(uptime_seconds, 0)"),
    // The reference spells it so in its metrics; both names mean the same.
    gauge("uptime", "nullIf(uptime_seconds, 0)"),
    counter("restart_count", RESTARTS),
    counter("network_rx_bytes", "nullIf(network_rx_bytes, 0)"),
    counter("network_tx_bytes", "nullIf(network_tx_bytes, 0)"),
    counter("disk_read_bytes", "nullIf(disk_read_bytes, 0)"),
    counter("disk_write_bytes", "nullIf(disk_write_bytes, 0)"),
];

/// The value of one of the fleet's own metrics in a row; its name is the parameter `metric`.
const CUSTOM: &str = "if(mapContains(metrics, {metric:String}), metrics[{metric:String}], NULL)";

/// Says that a metric of the fleet's own is meant, whatever it is called.
pub const CUSTOM_PREFIX: &str = "metrics.";

/// Characters of a name that an error repeats: all that a metric can have, and enough to see what is too much.
const MAX_SHOWN: usize = 80;

/// A name that no metric can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is {name:?}; names of metrics are 1 to 64 of A-Z a-z 0-9 _ .")]
pub struct InvalidMetricName {
    pub name: String,
}

impl Metric {
    /// The metric of this name: one of the server's, else one of the fleet's own; `metrics.NAME` is always the latter.
    ///
    /// # Errors
    /// For what no heartbeat could carry.
    pub fn named(name: &str) -> Result<Self, InvalidMetricName> {
        if let Some(known) = KNOWN.iter().find(|known| known.name == name) {
            return Ok(Self::Known(known));
        }
        let custom = name.strip_prefix(CUSTOM_PREFIX).unwrap_or(name);
        if !is_metric_name(custom) {
            // Bounded, because the answer repeats it.
            return Err(InvalidMetricName { name: beginning(name, MAX_SHOWN).into_owned() });
        }
        Ok(Self::Custom(custom.to_owned()))
    }

    pub fn nature(&self) -> Nature {
        match self {
            Self::Known(known) => known.nature,
            Self::Custom(_) => Nature::Gauge,
        }
    }

    /// The metric in a row of `heartbeats`, NULL where the row does not tell it. One of the fleet's own is named by the
    /// parameter `metric`.
    pub fn value(&self) -> &'static str {
        match self {
            Self::Known(known) => known.value,
            Self::Custom(_) => CUSTOM,
        }
    }

    /// What the parameter `metric` is to be bound to, if it is used.
    pub fn parameter(&self) -> Option<&str> {
        match self {
            Self::Known(_) => None,
            Self::Custom(name) => Some(name),
        }
    }
}

/// How many values become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    Avg,
    Min,
    Max,
    Sum,
    Count,
    P50,
    P90,
    P95,
    P99,
    /// The one of the latest time.
    Last,
}

macro_rules! quantile {
    ($level:literal) => {
        concat!("quantileDD(0.01, ", $level, ")(", sketched!(), ")")
    };
}

impl Aggregation {
    pub const ALL: [Self; 10] = [
        Self::Avg,
        Self::Min,
        Self::Max,
        Self::Sum,
        Self::Count,
        Self::P50,
        Self::P90,
        Self::P95,
        Self::P99,
        Self::Last,
    ];

    /// By its name, in capitals or not; empty is [`Self::Avg`].
    pub fn named(name: &str) -> Option<Self> {
        if name.is_empty() {
            return Some(Self::Avg);
        }
        Self::ALL.into_iter().find(|one| one.name().eq_ignore_ascii_case(name))
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Avg => "AVG",
            Self::Min => "MIN",
            Self::Max => "MAX",
            Self::Sum => "SUM",
            Self::Count => "COUNT",
            Self::P50 => "P50",
            Self::P90 => "P90",
            Self::P95 => "P95",
            Self::P99 => "P99",
            Self::Last => "LAST",
        }
    }

    /// Over the column `value`; `None` where that is not enough to tell. A quantile is as near to the value of that rank
    /// as [`SKETCHED`] says, and is the same from rows and from rollups.
    pub const fn sql(self) -> Option<&'static str> {
        Some(match self {
            Self::Avg => "avg(value)",
            Self::Min => "min(value)",
            Self::Max => "max(value)",
            Self::Sum => "sum(value)",
            Self::Count => "count(value)",
            Self::P50 => quantile!("0.5"),
            Self::P90 => quantile!("0.9"),
            Self::P95 => quantile!("0.95"),
            Self::P99 => quantile!("0.99"),
            Self::Last => return None,
        })
    }

    /// The quantile that it is, and its place in [`SKETCH`], counted from 1.
    pub const fn quantile(self) -> Option<(f64, &'static str)> {
        match self {
            Self::P50 => Some((0.5, "1")),
            Self::P90 => Some((0.9, "2")),
            Self::P95 => Some((0.95, "3")),
            Self::P99 => Some((0.99, "4")),
            Self::Avg | Self::Min | Self::Max | Self::Sum | Self::Count | Self::Last => None,
        }
    }

    /// Whether groups can be compared by it: it says the same of a small group as of a large one, and is of all that the
    /// group reported.
    pub const fn is_comparable(self) -> bool {
        !matches!(self, Self::Sum | Self::Count | Self::Last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_servers_first_and_else_the_fleets() {
        let named = |name| Metric::named(name).expect("a valid name");
        assert!(matches!(named("cpu_usage"), Metric::Known(known) if known.name == "cpu_usage"));
        assert_eq!(named("queue.depth"), Metric::Custom("queue.depth".into()));
        assert_eq!(named("metrics.cpu_usage"), Metric::Custom("cpu_usage".into()));
        assert_eq!(named("restart_count").nature(), Nature::Counter);
        for name in ["", "metrics.", "a b", "x'; DROP TABLE heartbeats", "größe", &"x".repeat(65)] {
            assert!(Metric::named(name).is_err(), "{name}");
        }
    }

    #[test]
    fn an_aggregation_is_found_by_the_name_that_it_shows() {
        for one in Aggregation::ALL {
            assert_eq!(Aggregation::named(one.name()), Some(one));
        }
        assert_eq!(Aggregation::named(""), Some(Aggregation::Avg));
        assert_eq!(Aggregation::named("p95"), Some(Aggregation::P95));
        assert_eq!(Aggregation::named("P96"), None);
    }

    #[test]
    fn a_quantile_is_the_same_of_values_and_of_sketches() {
        let levels: Vec<&str> = SKETCH.trim_matches(['(', ')']).split(", ").collect();
        for (aggregation, level) in Aggregation::ALL.iter().filter_map(|one| Some((one, one.quantile()?))) {
            let place: usize = level.1.parse().expect("a number");
            assert_eq!(levels[place].parse(), Ok(level.0), "{}", aggregation.name());
            let sql = aggregation.sql().expect("over values");
            assert_eq!(sql, format!("quantileDD({}, {})({SKETCHED})", levels[0], levels[place]));
        }
    }

    #[test]
    fn every_gauge_is_computed_once_under_one_name() {
        let names: Vec<_> = gauges().map(|known| known.name).collect();
        assert!(names.contains(&"uptime_seconds") && !names.contains(&"uptime"), "{names:?}");
        assert!(!names.contains(&"restart_count"), "counters are differences of rows: {names:?}");
        for known in KNOWN.iter().filter(|known| known.nature == Nature::Gauge) {
            assert!(names.contains(&known.column()), "{}", known.name);
        }
        assert_eq!(
            sketched("x"),
            "if(abs(x) < 1e-9, 0., if(abs(x) < 1, x * 0.99 / 1.01, sign(x) * least(abs(x), 1e15)))"
        );
    }

    #[test]
    fn no_two_metrics_have_one_name() {
        for (at, known) in KNOWN.iter().enumerate() {
            assert!(KNOWN[..at].iter().all(|other| other.name != known.name), "{}", known.name);
            assert!(is_metric_name(known.name));
        }
    }
}
