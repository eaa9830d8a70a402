//! Counters: what a device's counter grew by in each interval.
//!
//! The increase from one reading of a device to its next belongs to the interval of the later one. A counter that fell
//! began anew at 0, as after a restart, so the new reading is the increase. The first reading in the span needs the one
//! before it, which is looked for some time back; a device's very first reading is no increase.
//!
//! A device is one value of an interval: the aggregations are over devices.
use super::question::{DAY, HOUR};
use super::sql::{Inquiry, Statement, ORDER};

/// How far back the reading before the first is looked for: an interval, but no less and no more than this. Devices report
/// every minute or so; one that was silent for a day has no increase that belongs to an interval.
const LEAST_LOOKBACK: i64 = HOUR;
const MOST_LOOKBACK: i64 = DAY;

impl Inquiry<'_> {
    /// The statement for a counter; always from the rows, which have its readings in their order.
    pub fn counter(&self) -> Statement {
        let mut statement = self.begun();
        let span = self.span;
        let lookback = span.interval.clamp(LEAST_LOOKBACK, MOST_LOOKBACK);
        let time = (span.start.as_millis() - lookback, span.end.as_millis());
        // The reading before may be of another version.
        let readings = self.readings(0, time, "1", &mut statement);
        let steps = format!(
            "SELECT device_id, device_type, version, timestamp, seq, reading, lagInFrame(reading) OVER history AS before, \
             row_number() OVER history AS place FROM ({readings}) WINDOW history AS (PARTITION BY device_id \
             ORDER BY timestamp, seq ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)"
        );
        let increases = format!(
            "SELECT device_id, device_type, version, timestamp, seq, \
             toUInt32(intDiv(toUnixTimestamp64Milli(timestamp) - {{start:Int64}}, {{interval:Int64}})) AS bucket, \
             if(reading >= before, reading - before, reading) AS increase FROM ({steps}) \
             WHERE place > 1 AND timestamp >= fromUnixTimestamp64Milli({{start:Int64}}, 'UTC') AND {}",
            self.kind.condition()
        );
        // A device whose version changes within an interval has a part of its increase in each.
        let mut keys = String::from("device_id, bucket");
        for (used, key) in [(self.keys.device_type, ", device_type"), (self.keys.version, ", version")] {
            keys.push_str(if used { key } else { "" });
        }
        let devices = format!(
            "(SELECT {keys}, sum(increase) AS value, max({ORDER}) AS value_order FROM ({increases}) GROUP BY {keys})"
        );
        let rows = format!("SELECT * FROM {}", self.in_groups(&devices));
        statement.sql = self.merged(&self.parts_of_values("value_order", &rows));
        statement
    }
}
