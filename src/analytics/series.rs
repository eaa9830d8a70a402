//! Rows of an answer become series, and series a summary.
use std::collections::BTreeMap;

use super::question::GroupBy;
use super::span::Bucket;
use super::sql::Row;
use crate::clock::UnixMillis;
use crate::telemetry::metric::Aggregation;

/// One metric over time, of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The group's value for each of [`super::question::Question::group_by`].
    pub group: Vec<String>,
    /// By interval, each one once.
    pub buckets: Vec<Bucket>,
}

/// Sorts rows into series, by group. `set_groups` are the labels of the groups of the device set, in the order in which
/// labels come in `group_by`.
pub fn of_rows(rows: Vec<Row>, group_by: &[(String, GroupBy)], set_groups: &[Vec<Box<str>>]) -> Vec<Series> {
    let mut series = BTreeMap::<Vec<String>, Vec<Bucket>>::new();
    for row in rows {
        let bucket = Bucket {
            interval: row.bucket as usize,
            count: row.count,
            sum: row.sum,
            min: row.min,
            max: row.max,
            last: row.last,
            last_at: UnixMillis::from_millis_clamped(row.last_at),
            quantile: Some(row.quantile),
        };
        let mut labels = set_groups.get(row.group_id as usize).into_iter().flatten();
        let group = group_by.iter().map(|(_, by)| match by {
            GroupBy::DeviceType => row.device_type.clone(),
            GroupBy::Version => row.version.clone(),
            GroupBy::DeviceId => row.device_id.clone(),
            GroupBy::Label(_) => labels.next().map(ToString::to_string).unwrap_or_default(),
        });
        series.entry(group.collect()).or_default().push(bucket);
    }
    let sorted = |(group, mut buckets): (_, Vec<Bucket>)| {
        buckets.sort_unstable_by_key(|bucket| bucket.interval);
        Series { group, buckets }
    };
    series.into_iter().map(sorted).collect()
}

/// What an aggregation makes of an interval; `None` where that is no number that JSON or a chart could hold.
pub fn value_of(aggregation: Aggregation, bucket: &Bucket) -> Option<f64> {
    let value = match aggregation {
        Aggregation::Avg => bucket.sum / bucket.count as f64,
        Aggregation::Min => bucket.min,
        Aggregation::Max => bucket.max,
        Aggregation::Sum => bucket.sum,
        Aggregation::Count => bucket.count as f64,
        Aggregation::P50 | Aggregation::P90 | Aggregation::P95 | Aggregation::P99 => bucket.quantile?,
        Aggregation::Last => bucket.last,
    };
    value.is_finite().then_some(value)
}

/// A metric over the whole time and all series.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    pub count: u64,
    /// `None` where there is no measurement, as all below.
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub avg: Option<f64>,
    pub last: Option<f64>,
}

/// What `series` of one metric say together.
pub fn statistics(series: &[Series]) -> Statistics {
    let (mut all, mut sum, mut last_at) = (Statistics::default(), 0.0, UnixMillis::MIN);
    for bucket in series.iter().flat_map(|series| &series.buckets) {
        all.count += bucket.count;
        sum += bucket.sum;
        all.min = Some(all.min.map_or(bucket.min, |min| min.min(bucket.min)));
        all.max = Some(all.max.map_or(bucket.max, |max| max.max(bucket.max)));
        if all.last.is_none() || bucket.last_at > last_at {
            (all.last, last_at) = (Some(bucket.last), bucket.last_at);
        }
    }
    if all.count > 0 {
        all.avg = Some(sum / all.count as f64).filter(|avg| avg.is_finite());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(device_type: &str, group_id: u32, bucket: u32, value: f64) -> Row {
        Row {
            device_type: device_type.into(),
            version: String::new(),
            device_id: String::new(),
            group_id,
            bucket,
            count: 2,
            sum: 2.0 * value,
            min: value - 1.0,
            max: value + 1.0,
            last: value,
            last_at: i64::from(bucket),
            quantile: value,
        }
    }

    #[test]
    fn rows_become_series_by_group_and_time() {
        let rows = vec![row("b", 0, 3, 1.0), row("a", 1, 2, 2.0), row("a", 1, 0, 3.0), row("a", 0, 0, 4.0)];
        let by =
            [("region".to_owned(), GroupBy::Label("region".into())), ("device_type".to_owned(), GroupBy::DeviceType)];
        let groups = [vec!["eu".into()], vec!["".into()]];
        let series = of_rows(rows, &by, &groups);
        let told: Vec<_> = series
            .iter()
            .map(|one| (one.group.join("/"), one.buckets.iter().map(|bucket| bucket.interval).collect::<Vec<_>>()))
            .collect();
        assert_eq!(told, [("/a".to_owned(), vec![0, 2]), ("eu/a".to_owned(), vec![0]), ("eu/b".to_owned(), vec![3])]);
        let all = statistics(&series);
        assert_eq!((all.count, all.min, all.max, all.avg, all.last), (8, Some(0.0), Some(5.0), Some(2.5), Some(1.0)));
        assert_eq!(statistics(&[]), Statistics::default());
    }

    #[test]
    fn what_is_not_finite_is_no_point() {
        let series = of_rows(vec![row("a", 0, 0, f64::INFINITY)], &[], &[]);
        let bucket = series[0].buckets[0];
        for aggregation in Aggregation::ALL {
            let is_number = value_of(aggregation, &bucket).is_some();
            assert_eq!(is_number, aggregation == Aggregation::Count, "{}", aggregation.name());
        }
        assert_eq!(statistics(&series).avg, None);
    }
}
