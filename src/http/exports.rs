//! AnalyticsService/ExportData and GetExport.
use std::time::Duration;

use fleetd_proto::v1::export_status::State;
use fleetd_proto::v1::{
    DataType, ExportDataRequest, ExportDataResponse, ExportFormat, ExportStatus, GetExportRequest, GetExportResponse,
};
use fleetd_proto::Timestamp;

use super::access::Call;
use super::analytics_service::{AnalyticsService, EXPORT_DATA, GET_EXPORT};
use super::device_service::timestamp;
use crate::analytics::export::{Columns, Form, Job, Snapshot, Subject};
use crate::analytics::Choice;
use crate::clock::UnixMillis;
use crate::error::{beginning, ApiError};
use crate::query::Filter;
use crate::store::{ExportRecord, ExportState};

/// How long ExportData waits for a small export, so that its caller has the file at once. People wait so long without
/// wondering, and clients far longer.
const WAIT: Duration = Duration::from_secs(3);

/// Characters of an id or a name that an error repeats: ids of exports have some ten.
pub(super) const MAX_SHOWN: usize = 64;

impl AnalyticsService {
    /// Permission: `analytics:export`.
    pub async fn export_data(
        &self,
        call: &mut Call,
        request: ExportDataRequest,
    ) -> Result<ExportDataResponse, ApiError> {
        self.access.authorize(call, EXPORT_DATA).await?;
        let job = job(request)?;
        let (begun, mut is_over) = self.exports.begin(job).await?;
        // It ends with an error, since nothing is ever sent: the sender is dropped when the export is over.
        let _ = tokio::time::timeout(WAIT, is_over.changed()).await;
        let (record, snapshot) = self.look(&begun.id).await?;
        Ok(ExportDataResponse {
            export_url: if record.state == ExportState::Failed { String::new() } else { self.url(&record) },
            size_bytes: size(&record),
            expires_at: Some(timestamp(record.expires_at)),
            status: Some(status(&record, snapshot)),
            export_id: record.id,
        })
    }

    /// Permission: `analytics:export`.
    pub async fn get_export(&self, call: &mut Call, request: GetExportRequest) -> Result<GetExportResponse, ApiError> {
        self.access.authorize(call, GET_EXPORT).await?;
        let (record, snapshot) = self.look(&request.export_id).await?;
        let is_there = record.state == ExportState::Succeeded;
        Ok(GetExportResponse {
            export_url: if is_there { self.url(&record) } else { String::new() },
            size_bytes: size(&record),
            expires_at: Some(timestamp(record.expires_at)),
            status: Some(status(&record, snapshot)),
            export_id: record.id,
        })
    }

    /// An export, as it is now: expired as soon as its time is over.
    pub(super) async fn look(&self, export_id: &str) -> Result<(ExportRecord, Snapshot), ApiError> {
        let Some((mut record, snapshot)) = self.exports.look(export_id).await? else {
            let shown = beginning(export_id, MAX_SHOWN);
            return Err(ApiError::not_found(format!("there is no export {shown:?}; ExportData gives ids")));
        };
        if record.state == ExportState::Succeeded && record.expires_at <= UnixMillis::now() {
            record.state = ExportState::Expired;
        }
        Ok((record, snapshot))
    }

    fn url(&self, record: &ExportRecord) -> String {
        self.urls.sign_export(&file_name(record), record.expires_at)
    }
}

fn job(request: ExportDataRequest) -> Result<Job, ApiError> {
    let form = form(request.format)?;
    let subject = subject(request.data_type)?;
    let now = UnixMillis::now();
    let (start, end) = times(request.start_time, request.end_time, now)?;
    let columns = Columns::named(subject, form, &request.fields)
        .map_err(|error| ApiError::invalid_argument(error.to_string()))?;
    let filter = Filter::parse(&request.device_filter, now)
        .map_err(|error| ApiError::invalid_argument(format!("device_filter {error}")))?;
    Ok(Job { subject, form, columns, start, end, devices: Choice::matching(filter) })
}

fn form(format: i32) -> Result<Form, ApiError> {
    match ExportFormat::try_from(format) {
        Ok(ExportFormat::Unspecified | ExportFormat::Csv) => Ok(Form::Csv),
        Ok(ExportFormat::Json) => Ok(Form::Json),
        Ok(ExportFormat::Parquet) => Ok(Form::Parquet),
        Err(_) => Err(ApiError::invalid_argument(format!("format is {format}; give CSV, JSON or PARQUET"))),
    }
}

fn subject(data_type: i32) -> Result<Subject, ApiError> {
    const TYPES: &str = "DEVICE_METRICS, DEVICE_PROCESSES, DEVICE_EVENTS or DEPLOYMENT_EVENTS";
    match DataType::try_from(data_type) {
        Ok(DataType::DeviceMetrics) => Ok(Subject::DeviceMetrics),
        Ok(DataType::DeviceProcesses) => Ok(Subject::DeviceProcesses),
        Ok(DataType::DeviceEvents) => Ok(Subject::DeviceEvents),
        Ok(DataType::DeploymentEvents) => Ok(Subject::DeploymentEvents),
        Ok(DataType::Unspecified) => Err(ApiError::invalid_argument(format!("data_type is not set; give {TYPES}"))),
        Err(_) => Err(ApiError::invalid_argument(format!("data_type is {data_type}; give {TYPES}"))),
    }
}

fn times(
    start: Option<Timestamp>,
    end: Option<Timestamp>,
    now: UnixMillis,
) -> Result<(UnixMillis, UnixMillis), ApiError> {
    for (name, time) in [("start_time", start), ("end_time", end)] {
        if let Some(time) = time.filter(|time| !time.is_valid()) {
            let (seconds, nanos) = (time.seconds, time.nanos);
            let message = format!("{name} has {seconds} s and {nanos} ns, which is no time of the years 1 to 9999");
            return Err(ApiError::invalid_argument(message));
        }
    }
    // The next whole millisecond: rows have milliseconds, and one of 1.0 s is before an end at 1.0005 s.
    let millis = |at: Timestamp| UnixMillis::from_parts_clamped(at.seconds, at.nanos + 999_999);
    let Some(start) = start else {
        return Err(ApiError::invalid_argument("start_time is not set; give the time from which on to export"));
    };
    let (from, to) = (millis(start), end.map_or(now, millis));
    if from >= to {
        let end = end.map_or_else(|| "now".to_owned(), |end| end.to_string());
        return Err(ApiError::invalid_argument(format!(
            "start_time is {start}, not before end_time, which is {end}; give a time before it"
        )));
    }
    Ok((from, to))
}

/// What the file is called: `exp-001.csv`.
pub(super) fn file_name(record: &ExportRecord) -> String {
    let extension = Form::from_name(&record.form).map_or("bin", Form::extension);
    format!("{}.{extension}", record.id)
}

fn size(record: &ExportRecord) -> i64 {
    match record.state {
        // At most `MAX_BINARY_BYTES`.
        ExportState::Succeeded => record.size_bytes as i64,
        _ => 0,
    }
}

fn status(record: &ExportRecord, snapshot: Snapshot) -> ExportStatus {
    let state = match record.state {
        ExportState::Running => State::Running,
        ExportState::Succeeded => State::Succeeded,
        ExportState::Failed => State::Failed,
        ExportState::Expired => State::Expired,
    };
    let is_whole = matches!(state, State::Succeeded | State::Expired);
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let (rows, bytes, percent) = match is_whole {
        true => (record.rows, record.size_bytes, 100.0),
        false => (snapshot.rows, snapshot.bytes, snapshot.percent),
    };
    ExportStatus {
        state: state.into(),
        rows_written: number(rows),
        bytes_written: number(bytes),
        progress_percent: percent,
        message: record.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: i64, nanos: i32) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos })
    }

    const NOW: UnixMillis = UnixMillis::from_unix_seconds(1_700_000_000);

    #[test]
    fn times_are_bounds_of_rows_that_have_milliseconds() {
        let (start, end) = times(at(1, 1), at(2, 500_000), NOW).unwrap();
        assert_eq!((start.as_millis(), end.as_millis()), (1_001, 2_001));
        let (start, end) = times(at(1, 0), None, NOW).unwrap();
        assert_eq!((start.as_millis(), end), (1_000, NOW));
    }

    #[test]
    fn times_that_are_no_span_are_refused_with_both() {
        assert!(times(None, at(1, 0), NOW).unwrap_err().message.contains("start_time is not set"));
        let error = times(at(2, 0), at(2, 0), NOW).unwrap_err();
        assert!(error.message.contains("start_time is 1970-01-01T00:00:02Z"), "{error}");
        let error = times(at(1_800_000_000, 0), None, NOW).unwrap_err();
        assert!(error.message.contains("which is now"), "{error}");
    }

    #[test]
    fn unknown_numbers_are_shown_with_what_is_known() {
        assert!(form(9).unwrap_err().message.contains("format is 9"));
        assert!(subject(0).unwrap_err().message.contains("not set"));
        assert!(subject(9).unwrap_err().message.contains("DEPLOYMENT_EVENTS"));
    }
}
