//! Whether ClickHouse is busy or gone. A question that gets no turn was told that others are running, which is true, and
//! no help where those run because nobody answers them.
use std::time::Duration;

use super::pool::{AnalystPool, PoolError};
use crate::error::ApiError;

/// How long the smallest of statements may take. One core is busy with ingest, so it is not a matter of milliseconds.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// When to try again: the embedded ClickHouse is started again within so long.
const RETRY_AFTER: Duration = Duration::from_secs(5);

#[derive(clickhouse::Row, serde::Deserialize)]
struct One {
    #[expect(dead_code, reason = "any answer is one")]
    one: u8,
}

/// Whether nothing answers.
pub async fn is_silent(pool: &AnalystPool) -> bool {
    let clickhouse = pool.clickhouse();
    let asked = clickhouse.rows::<One>("say that it is there", clickhouse.query("SELECT 1 AS one"));
    match tokio::time::timeout(ANSWERS_WITHIN, asked).await {
        Ok(Ok(_)) => false,
        // A refusal is an answer.
        Ok(Err(error)) => error.code.is_none(),
        Err(_) => true,
    }
}

pub fn error() -> ApiError {
    let message =
        "the telemetry store does not answer; try again in a moment, and look at the server's log if it goes on";
    ApiError::unavailable(message, RETRY_AFTER)
}

/// What to say of a question that failed.
pub async fn told(pool: &AnalystPool, failure: PoolError) -> ApiError {
    match failure {
        PoolError::Busy { .. } if is_silent(pool).await => error(),
        other => other.into(),
    }
}
