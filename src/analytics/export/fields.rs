//! What can be exported: the fields of each data type, and what each is in SQL.
//!
//! Pure. Every expression is a constant of the crate. A request chooses among them by name; the one thing of its own that
//! reaches ClickHouse is the name of a metric, as a bound parameter.
use super::form::Form;
use crate::error::beginning;
use crate::query::suggestion;
use crate::telemetry::metric::{Metric, CUSTOM_PREFIX};
use crate::telemetry::row::heartbeat::is_metric_name;

/// Most fields of one export. All heartbeats have some forty, the rest are the fleet's own metrics.
pub const MAX_FIELDS: usize = 200;

/// Characters of a name that an error repeats: more than any field has.
const MAX_SHOWN: usize = 80;

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    DeviceMetrics,
    DeviceProcesses,
    DeviceEvents,
    DeploymentEvents,
}

/// A field of a data type.
struct Field {
    name: &'static str,
    sql: Sql,
    /// Whether it is there when no field is named.
    is_default: bool,
}

enum Sql {
    Column(&'static str),
    /// As GetMetrics has it.
    Metric(&'static str),
    /// The map of the fleet's own metrics.
    Metrics,
}

const fn column(name: &'static str) -> Field {
    Field { name, sql: Sql::Column(name), is_default: true }
}

const fn expression(name: &'static str, sql: &'static str) -> Field {
    Field { name, sql: Sql::Column(sql), is_default: true }
}

const fn metric(name: &'static str) -> Field {
    Field { name, sql: Sql::Metric(name), is_default: true }
}

impl Field {
    const fn on_request(self) -> Self {
        Self { is_default: false, ..self }
    }
}

/// Where the server took the row from; names it for ever.
const BOOKKEEPING: [Field; 3] =
    [column("journal_id").on_request(), column("seq").on_request(), column("row_index").on_request()];

/// A column that is 1970 where a heartbeat did not tell it.
const LAST_BOOT: &str = "nullIf(last_boot, toDateTime64(0, 3, 'UTC'))";

const DEVICE_METRICS: [Field; 32] = [
    column("device_id"),
    column("timestamp"),
    column("received_at"),
    column("device_type"),
    column("version"),
    // As text: an enumeration is a type of its own in Parquet, which readers show as bytes.
    expression("state", "toString(state)"),
    metric("cpu_usage"),
    metric("memory_usage"),
    metric("disk_usage"),
    metric("memory_used_mb"),
    expression("memory_total_mb", "nullIf(memory_total_mb, 0)"),
    metric("disk_used_gb"),
    expression("disk_total_gb", "nullIf(disk_total_gb, 0)"),
    metric("swap_used_mb"),
    metric("load_average_1m"),
    metric("load_average_5m"),
    metric("load_average_15m"),
    metric("temperature_celsius"),
    metric("battery_percent"),
    metric("signal_dbm"),
    metric("uptime_seconds"),
    metric("restart_count"),
    metric("network_rx_bytes"),
    metric("network_tx_bytes"),
    metric("disk_read_bytes"),
    metric("disk_write_bytes"),
    expression("last_boot", LAST_BOOT),
    column("boot_id"),
    column("message"),
    Field { name: "metrics", sql: Sql::Metrics, is_default: true },
    // Other names of the same.
    metric("uptime").on_request(),
    column("cpu_percent").on_request(),
];

const DEVICE_PROCESSES: [Field; 12] = [
    column("device_id"),
    column("timestamp"),
    column("received_at"),
    column("pid"),
    column("name"),
    expression("state", "toString(state)"),
    column("cpu_percent"),
    column("memory_used_mb"),
    column("uptime_seconds"),
    column("restart_count"),
    column("version"),
    column("exit_code"),
];

const DEVICE_EVENTS: [Field; 7] = [
    column("device_id"),
    column("timestamp"),
    column("received_at"),
    column("kind"),
    column("from_state"),
    column("to_state"),
    column("detail"),
];

const DEPLOYMENT_EVENTS: [Field; 11] = [
    column("deployment_id"),
    column("timestamp"),
    column("received_at"),
    column("device_id"),
    column("update_id"),
    column("kind"),
    column("from_state"),
    column("to_state"),
    column("wave"),
    column("attempt"),
    column("detail"),
];

impl Subject {
    const fn fields(self) -> &'static [Field] {
        match self {
            Self::DeviceMetrics => &DEVICE_METRICS,
            Self::DeviceProcesses => &DEVICE_PROCESSES,
            Self::DeviceEvents => &DEVICE_EVENTS,
            Self::DeploymentEvents => &DEPLOYMENT_EVENTS,
        }
    }

    pub const fn table(self) -> &'static str {
        match self {
            Self::DeviceMetrics => "heartbeats",
            Self::DeviceProcesses => "processes",
            Self::DeviceEvents => "device_events",
            Self::DeploymentEvents => "deployment_events",
        }
    }

    /// As the contract spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DeviceMetrics => "DEVICE_METRICS",
            Self::DeviceProcesses => "DEVICE_PROCESSES",
            Self::DeviceEvents => "DEVICE_EVENTS",
            Self::DeploymentEvents => "DEPLOYMENT_EVENTS",
        }
    }

    fn known(self) -> impl Iterator<Item = &'static Field> {
        self.fields().iter().chain(&BOOKKEEPING)
    }
}

/// A field that cannot be exported; follows nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFields {
    #[error("fields[{at}] is {name:?}, which {subject} does not have; its fields are {all}{near}")]
    Unknown { at: usize, name: String, subject: &'static str, near: String, all: String },
    #[error("fields[{at}] is {name:?}, which is there already; give each field once")]
    Repeated { at: usize, name: String },
    #[error("fields has {0} entries; at most {MAX_FIELDS} are taken")]
    TooMany(usize),
}

/// The columns of an export, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// What stands between SELECT and FROM.
    pub sql: String,
    /// Values of the parameters in it.
    pub parameters: Vec<(String, String)>,
}

impl Columns {
    /// The fields that `names` name; none means the usual ones.
    ///
    /// # Errors
    /// For an unknown field, one that is named twice, or too many.
    pub fn named(subject: Subject, form: Form, names: &[String]) -> Result<Self, InvalidFields> {
        if names.len() > MAX_FIELDS {
            return Err(InvalidFields::TooMany(names.len()));
        }
        let mut columns = Self { sql: String::new(), parameters: Vec::new() };
        if names.is_empty() {
            subject.fields().iter().filter(|field| field.is_default).for_each(|field| columns.add(field, form));
            return Ok(columns);
        }
        for (at, name) in names.iter().enumerate() {
            if names[..at].contains(name) {
                return Err(InvalidFields::Repeated { at, name: shown(name) });
            }
            if let Some(field) = subject.known().find(|field| field.name == name) {
                columns.add(field, form);
            } else if let Some(metric) = custom_metric(subject, name) {
                columns.add_custom(metric);
            } else {
                let all: Vec<&str> = subject.known().map(|field| field.name).collect();
                return Err(InvalidFields::Unknown {
                    at,
                    name: shown(name),
                    subject: subject.name(),
                    near: suggestion(name, all.iter().copied()),
                    all: match subject {
                        Subject::DeviceMetrics => format!("{}, and metrics.NAME", all.join(", ")),
                        _ => all.join(", "),
                    },
                });
            }
        }
        Ok(columns)
    }

    fn add(&mut self, field: &Field, form: Form) {
        let sql = match field.sql {
            Sql::Column(sql) => sql,
            Sql::Metric(name) => known_metric(name),
            // A CSV has no maps; JSON in it is what most readers can take apart.
            Sql::Metrics if form == Form::Csv => "toJSONString(metrics)",
            Sql::Metrics => "metrics",
        };
        self.separate();
        self.sql.push_str(sql);
        self.sql.push_str(" AS ");
        self.sql.push_str(field.name);
    }

    /// Both the metric's name in the map and the column's name are parameters.
    fn add_custom(&mut self, metric: &str) {
        let number = self.parameters.len() / 2;
        self.separate();
        self.sql.push_str(&format!(
            "if(mapContains(metrics, {{metric_{number}:String}}), metrics[{{metric_{number}:String}}], NULL) \
             AS {{column_{number}:Identifier}}"
        ));
        self.parameters.push((format!("metric_{number}"), metric.to_owned()));
        self.parameters.push((format!("column_{number}"), format!("{CUSTOM_PREFIX}{metric}")));
    }

    fn separate(&mut self) {
        if !self.sql.is_empty() {
            self.sql.push_str(", ");
        }
    }
}

/// The expression of a metric that the server knows.
fn known_metric(name: &'static str) -> &'static str {
    match Metric::named(name) {
        Ok(metric @ Metric::Known(_)) => metric.value(),
        // A test walks all of them.
        _ => "NULL",
    }
}

/// The name of one of the fleet's own metrics in `metrics.NAME`.
fn custom_metric(subject: Subject, name: &str) -> Option<&str> {
    let metric = name.strip_prefix(CUSTOM_PREFIX)?;
    (subject == Subject::DeviceMetrics && is_metric_name(metric)).then_some(metric)
}

/// Bounded, because the answer repeats it.
fn shown(name: &str) -> String {
    beginning(name, MAX_SHOWN).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Subject; 4] =
        [Subject::DeviceMetrics, Subject::DeviceProcesses, Subject::DeviceEvents, Subject::DeploymentEvents];

    fn named(subject: Subject, names: &[&str]) -> Result<Columns, InvalidFields> {
        Columns::named(subject, Form::Csv, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn every_metric_of_a_field_is_one_that_the_server_knows() {
        for subject in ALL {
            for field in subject.known() {
                assert!(!matches!(field.sql, Sql::Metric(name) if known_metric(name) == "NULL"), "{}", field.name);
            }
        }
    }

    #[test]
    fn fields_come_in_the_order_in_which_they_are_named() {
        let columns = named(Subject::DeviceMetrics, &["timestamp", "signal_dbm", "device_id"]).unwrap();
        assert_eq!(columns.sql, "timestamp AS timestamp, signal_dbm AS signal_dbm, device_id AS device_id");
        assert!(columns.parameters.is_empty());
    }

    #[test]
    fn no_fields_are_all_but_the_bookkeeping() {
        for subject in ALL {
            let columns = named(subject, &[]).unwrap();
            assert!(columns.sql.contains("received_at AS received_at"), "{}", columns.sql);
            assert!(!columns.sql.contains("journal_id") && !columns.sql.contains(" seq "), "{}", columns.sql);
            named(subject, &["journal_id", "seq", "row_index"]).expect("they can be asked for");
        }
    }

    #[test]
    fn the_fleets_own_metrics_reach_the_text_as_parameters_only() {
        let columns = named(Subject::DeviceMetrics, &["metrics.queue.depth", "metrics.a"]).unwrap();
        assert!(!columns.sql.contains("queue"), "{}", columns.sql);
        assert!(columns.sql.contains("{metric_1:String}") && columns.sql.contains("{column_1:Identifier}"));
        let values: Vec<&str> = columns.parameters.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["queue.depth", "metrics.queue.depth", "a", "metrics.a"]);
    }

    #[test]
    fn unknown_fields_are_named_with_what_was_meant() {
        let error = named(Subject::DeviceMetrics, &["device_id", "cpu_usag"]).unwrap_err().to_string();
        assert!(error.contains("fields[1]") && error.contains("\"cpu_usag\""), "{error}");
        assert!(error.contains("did you mean cpu_usage?") && error.contains("metrics.NAME"), "{error}");
        for hostile in [
            "",
            "*",
            "metrics.",
            "metrics.a b",
            "device_id, journal_id",
            "cpu_usage`",
            "(SELECT 1)",
            "metrics.x'] --",
            "DEVICE_ID",
            &"x".repeat(10_000),
        ] {
            let error = named(Subject::DeviceMetrics, &[hostile]).unwrap_err().to_string();
            assert!(error.len() < 1_500, "{} bytes", error.len());
        }
        assert!(named(Subject::DeviceEvents, &["metrics.a"]).is_err(), "events have no metrics");
        assert!(named(Subject::DeviceEvents, &["cpu_usage"]).is_err());
    }

    #[test]
    fn a_field_is_taken_once_and_not_too_many_of_them() {
        let error = named(Subject::DeviceEvents, &["kind", "kind"]).unwrap_err();
        assert_eq!(error, InvalidFields::Repeated { at: 1, name: "kind".into() });
        let many: Vec<String> = (0..201).map(|number| format!("metrics.m{number}")).collect();
        assert_eq!(Columns::named(Subject::DeviceMetrics, Form::Csv, &many), Err(InvalidFields::TooMany(201)));
        assert!(Columns::named(Subject::DeviceMetrics, Form::Csv, &many[..200]).is_ok());
    }
}
