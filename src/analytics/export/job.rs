//! One export: ClickHouse's answer, piece by piece, into a temporary object of the store, until it is whole.
//!
//! What is whole is decided by three things that must agree: the answer ended as HTTP says and without an exception
//! ([`ByteStream`](crate::telemetry::clickhouse::ByteStream)); the file ends where a row or the footer ends; and it has as
//! many rows as ClickHouse counted.
use std::time::{Duration, Instant};

use super::fields::{Columns, Subject};
use super::form::{Form, RowCounter};
use super::progress::Progress;
use crate::analytics::device_set::{Choice, DeviceSet, StagedSet};
use crate::analytics::pool::{AnalystPool, PoolError, NICE};
use crate::artifacts::{BlobError, BlobStore, Kept, Upload, MAX_BINARY_BYTES};
use crate::clock::UnixMillis;
use crate::fleet::{FleetQueries, QueryFailure};
use crate::parquet;
use crate::telemetry::clickhouse::StreamError;
use crate::telemetry::metric::{AHEAD_MS, BEHIND_MS, PLAUSIBLE};
use crate::telemetry::writer::WriterHandle;

/// What was acknowledged before an export was asked for is to be in it: so long it waits for the writer.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// How far the writer may be behind before an export gives way. In health it is behind by the second that a batch gathers.
const YIELD_BEHIND: Duration = Duration::from_secs(5);

/// How long an export gives way at a time: with the longest pause of questions, below the 30 s after which ClickHouse gives up
/// on a reader.
const LONGEST_YIELD: Duration = Duration::from_secs(10);

/// How often it looks whether the writer caught up.
const YIELD_STEP: Duration = Duration::from_millis(100);

/// Bytes between two looks at the writer, which take a lock.
const BYTES_A_LOOK: u64 = 1 << 20;

/// How often ClickHouse is asked how far it has read.
const READ_EVERY: Duration = Duration::from_secs(2);

/// What an export may cost ClickHouse, beside what its form asks for.
const SETTINGS: [(&str, &str); 8] = [
    // One core; ingest has the others.
    ("max_threads", "1"),
    NICE,
    // A block of all fields and what is read ahead is far below.
    ("max_memory_usage", "1000000000"),
    // A day. The one bound of an export's length is what the disk can take.
    ("max_execution_time", "86400"),
    ("readonly", "2"),
    // `state` in a condition is the column, not the text that is exported under its name.
    ("prefer_column_name_to_alias", "1"),
    ("max_rows_to_read", "0"),
    // A statement that finds nothing for now writes nothing, and would not notice that nobody waits for it.
    ("cancel_http_readonly_queries_on_client_close", "1"),
];

/// Why there is no file. Each is shown to whoever asked for the export.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("the devices of device_filter were not found: {0}")]
    Devices(#[from] QueryFailure),
    #[error("ClickHouse was not told the devices of device_filter: {0}; ask for the export again")]
    Staging(#[from] PoolError),
    #[error("{0}; ask for the export again")]
    Stream(#[from] StreamError),
    #[error("the disk of the artifact store is full after {bytes} bytes; make room in the data directory, or ask for a shorter time or fewer fields")]
    DiskFull { bytes: u64, source: BlobError },
    #[error(
        "the file would have more than {MAX_BINARY_BYTES} bytes, the limit; ask for a shorter time or fewer fields"
    )]
    TooLarge,
    #[error("the artifact store does not take the file: {0}")]
    Store(BlobError),
    #[error("the file ended within a row after {rows} rows; ask for the export again")]
    Cut { rows: u64 },
    #[error("ClickHouse gave {rows} rows of {counted}; ask for the export again")]
    Incomplete { rows: u64, counted: u64 },
    #[error("the Parquet file is damaged: {0}; ask for the export again, and report it with the server's log")]
    Parquet(#[from] parquet::Malformed),
    #[error("the server was stopped while the export was written; ask for it again")]
    Stopping,
    #[error("its turn did not come before its time was over, since others were being written; ask for it again")]
    NeverBegan,
    #[error("it was not whole when its time to be removed had come; ask for a shorter time or fewer fields")]
    Expired,
}

impl JobError {
    fn of_store(error: BlobError, bytes: u64) -> Self {
        match error {
            BlobError::DiskFull { .. } => Self::DiskFull { bytes, source: error },
            BlobError::TooLarge => Self::TooLarge,
            other => Self::Store(other),
        }
    }
}

/// What is to be exported.
#[derive(Clone, Debug)]
pub struct Job {
    pub subject: Subject,
    pub form: Form,
    pub columns: Columns,
    /// Included.
    pub start: UnixMillis,
    /// Not included.
    pub end: UnixMillis,
    /// Found when the writing begins: an export may wait for hours, and what ClickHouse is told of a set it forgets.
    pub devices: Choice,
}

/// With what it is done.
#[derive(Clone)]
pub(super) struct Tools {
    pub queries: FleetQueries,
    pub pool: AnalystPool,
    pub blobs: BlobStore,
    pub writer: WriterHandle,
}

/// The rows, where and how many.
#[derive(clickhouse::Row, serde::Deserialize)]
struct Count {
    rows: u64,
}

/// What ClickHouse has read of what it means to read.
#[derive(clickhouse::Row, serde::Deserialize)]
struct Read {
    rows: u64,
    of: u64,
}

impl Job {
    /// Writes the file; nobody can find it yet. `mark` tells the statement from others.
    pub(super) async fn run(&self, tools: &Tools, mark: &str, progress: &Progress) -> Result<(Kept, u64), JobError> {
        let through = tools.writer.status().written_seq;
        let devices = DeviceSet::resolve(&tools.queries, self.devices.clone()).await?.stage(&tools.pool).await?;
        // What does not make it is not in the file, as what comes later.
        let _ = tools.writer.flush(through, FLUSH_WITHIN).await;
        progress.expect(self.count(tools, &devices).await);
        let written = self.write(tools, &devices, mark, progress);
        let (kept, counter) = if self.form == Form::Parquet || progress.expected().is_none() {
            tokio::select! {
                written = written => written?,
                never = follow(tools, mark, progress) => match never {},
            }
        } else {
            written.await?
        };
        let rows = match counter.rows() {
            Some(rows) if counter.is_whole() => rows,
            Some(rows) => return Err(JobError::Cut { rows }),
            None => rows_of_parquet(&kept).await?,
        };
        self.check(tools, &devices, rows, progress.expected()).await?;
        Ok((kept, rows))
    }

    async fn write(
        &self,
        tools: &Tools,
        devices: &StagedSet,
        mark: &str,
        progress: &Progress,
    ) -> Result<(Kept, RowCounter), JobError> {
        let sql = format!("SELECT {} {} FORMAT {}", self.columns.sql, self.source(devices), self.form.format());
        let mut parameters = self.columns.parameters.clone();
        parameters.extend(self.parameters(devices).map(|(name, value)| (name.to_owned(), value)));
        let mark = [("log_comment", mark)];
        let settings: Vec<_> = SETTINGS.iter().chain(self.form.settings()).chain(&mark).copied().collect();
        let mut answer = tools.pool.clickhouse().stream(sql, &settings, &parameters).await?;
        let mut upload = tools.blobs.begin(None).await.map_err(|error| JobError::of_store(error, 0))?;
        let mut counter = RowCounter::new(self.form);
        let (mut looked_at, mut worked_since) = (0, Instant::now());
        tools.pool.pacer().begin();
        while let Some(piece) = answer.next().await? {
            counter.take(&piece);
            take(&mut upload, piece).await?;
            progress.wrote(counter.rows(), upload.received());
            if upload.received() - looked_at > BYTES_A_LOOK {
                let worked = worked_since.elapsed();
                looked_at = upload.received();
                give_way(&tools.writer).await;
                tools.pool.pacer().pause(worked).await;
                worked_since = Instant::now();
            }
        }
        let bytes = upload.received();
        let kept = upload.finish(None).await.map_err(|error| JobError::of_store(error, bytes))?;
        Ok((kept, counter))
    }

    /// FROM and WHERE; constants of this crate.
    fn source(&self, devices: &StagedSet) -> String {
        format!(
            "FROM {} WHERE timestamp >= fromUnixTimestamp64Milli({{start:Int64}}, 'UTC') \
             AND timestamp < fromUnixTimestamp64Milli({{end:Int64}}, 'UTC') \
             AND received_at >= fromUnixTimestamp64Milli({{received_from:Int64}}, 'UTC') \
             AND received_at < fromUnixTimestamp64Milli({{received_to:Int64}}, 'UTC') \
             AND {PLAUSIBLE} AND {}",
            self.subject.table(),
            devices.condition()
        )
    }

    /// Values of the parameters in [`Self::source`].
    fn parameters<'a>(&'a self, devices: &'a StagedSet) -> impl Iterator<Item = (&'static str, String)> + 'a {
        let near = |at: UnixMillis, ms: i64| UnixMillis::from_millis_clamped(at.as_millis() + ms);
        let times = [
            ("start", self.start),
            ("end", self.end),
            ("received_from", near(self.start, -AHEAD_MS)),
            ("received_to", near(self.end, BEHIND_MS)),
        ];
        let times = times.into_iter().map(|(name, at)| (name, at.as_millis().to_string()));
        times.chain(devices.parameter().map(|(name, value)| (name, value.to_owned())))
    }

    /// How many rows there are; `None` if that takes too long, or cannot be said now.
    async fn count(&self, tools: &Tools, devices: &StagedSet) -> Option<u64> {
        let mut query = tools.pool.query(&format!("SELECT count() AS rows {}", self.source(devices)));
        for (name, value) in self.parameters(devices) {
            query = query.param(name, value);
        }
        match tools.pool.rows::<Count>("count the rows of an export", query).await {
            Ok(rows) => rows.first().map(|count| count.rows),
            Err(error) => {
                tracing::warn!(
                    cause = &error as &dyn std::error::Error,
                    "the rows of an export were not counted, so that its file is not compared with them"
                );
                None
            }
        }
    }

    /// Rows come while an export is written, and whole days of them go when their time is over, so that there may be as many
    /// as before, as many as now, or any number in between.
    async fn check(&self, tools: &Tools, devices: &StagedSet, rows: u64, before: Option<u64>) -> Result<(), JobError> {
        if before.is_none_or(|before| rows >= before) {
            return Ok(());
        }
        match self.count(tools, devices).await {
            Some(now) if rows < now => Err(JobError::Incomplete { rows, counted: now }),
            _ => Ok(()),
        }
    }
}

async fn take(upload: &mut Upload, piece: bytes::Bytes) -> Result<(), JobError> {
    let bytes = upload.received();
    upload.write(piece).await.map_err(|error| JobError::of_store(error, bytes))
}

/// Takes nothing from ClickHouse while the writer is behind: then ClickHouse stands still too, and its core is the
/// writer's. Not for ever, since the writer may be behind for another reason.
async fn give_way(writer: &WriterHandle) {
    let began = Instant::now();
    while writer.status().lag > YIELD_BEHIND && began.elapsed() < LONGEST_YIELD {
        tokio::time::sleep(YIELD_STEP).await;
    }
}

/// Asks ClickHouse how far it has read, for ever.
async fn follow(tools: &Tools, mark: &str, progress: &Progress) -> std::convert::Infallible {
    const SQL: &str = "SELECT read_rows AS rows, total_rows_approx AS of FROM system.processes \
                       WHERE Settings['log_comment'] = {mark:String}";
    loop {
        tokio::time::sleep(READ_EVERY).await;
        let query = tools.pool.clickhouse().query(SQL).param("mark", mark);
        // Only progress depends on it, and the next time may tell.
        if let Ok(rows) = tools.pool.clickhouse().rows::<Read>("ask how far an export is", query).await {
            let (rows, of) = rows.iter().fold((0, 0), |(rows, of), one| (rows + one.rows, of + one.of));
            progress.read(rows, of);
        }
    }
}

/// From the footer of a file that is written.
async fn rows_of_parquet(kept: &Kept) -> Result<u64, JobError> {
    let read_back = |error| JobError::of_store(error, kept.size_bytes);
    let tail = kept.last_bytes(parquet::TAIL_BYTES as u64).await.map_err(read_back)?;
    let footer = (parquet::footer_length(&tail)? + parquet::TAIL_BYTES) as u64;
    let begin = kept.size_bytes.checked_sub(footer).ok_or(parquet::Malformed("it ends early"))?;
    let end = kept.size_bytes.min(begin + parquet::FOOTER_HEAD_BYTES as u64);
    Ok(parquet::rows(&kept.bytes(begin..end).await.map_err(read_back)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Filter;

    #[test]
    fn nothing_of_a_request_is_in_the_text() {
        let job = |start, names: &[&str]| Job {
            subject: Subject::DeviceMetrics,
            form: Form::Csv,
            columns: Columns::named(
                Subject::DeviceMetrics,
                Form::Csv,
                &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
            )
            .unwrap(),
            start: UnixMillis::from_unix_seconds(start),
            end: UnixMillis::from_unix_seconds(1_900_000_000),
            devices: Choice::matching(Filter::parse("", UnixMillis::from_unix_seconds(start)).unwrap()),
        };
        let (one, other) = (job(1_700_000_000, &["metrics.a"]), job(1_800_000_000, &["metrics.b"]));
        let all = StagedSet::all();
        assert_eq!(one.source(&all), other.source(&all));
        assert_eq!(one.columns.sql, other.columns.sql);
        let values: Vec<_> = one.parameters(&all).collect();
        assert_eq!(values[0], ("start", "1700000000000".to_owned()));
        assert_eq!(values[3], ("received_to", "1902678400000".to_owned()));
    }
}
