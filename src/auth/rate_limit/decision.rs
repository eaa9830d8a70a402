//! What a bucket answered, and how it reads in headers and errors.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{ApiError, ErrorCode};

/// The answer to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub quota: Quota,
    /// `None`: the call may pass. Otherwise the time after which the next one may.
    pub retry_after: Option<Duration>,
}

/// What is left of a limit: the three `X-RateLimit-*` headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Most calls at once.
    pub limit: u32,
    /// Calls that may come right now.
    pub remaining: u32,
    /// Time until the bucket is full again.
    pub reset_after: Duration,
}

impl Decision {
    pub(super) fn allowed(limit: u32, remaining: u64, reset_after: u64) -> Self {
        let remaining = u32::try_from(remaining).unwrap_or(u32::MAX);
        let quota = Quota { limit, remaining, reset_after: Duration::from_nanos(reset_after) };
        Self { quota, retry_after: None }
    }

    pub(super) fn refused(limit: u32, reset_after: u64, retry_after: u64) -> Self {
        let quota = Quota { limit, remaining: 0, reset_after: Duration::from_nanos(reset_after) };
        Self { quota, retry_after: Some(Duration::from_nanos(retry_after)) }
    }

    pub const fn is_allowed(&self) -> bool {
        self.retry_after.is_none()
    }

    /// The error of a refused call: RESOURCE_EXHAUSTED with `Retry-After`.
    ///
    /// # Errors
    /// When the call was refused.
    pub fn into_result(self) -> Result<Quota, ApiError> {
        match self.retry_after {
            None => Ok(self.quota),
            Some(after) => {
                let seconds = after.as_secs_f64();
                let message = format!("Rate limit exceeded: try again in {seconds:.1} s");
                Err(ApiError::new(ErrorCode::ResourceExhausted, message).with_retry_after(after))
            }
        }
    }
}

impl Quota {
    /// `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset` with their values. The last is in Unix
    /// seconds, rounded up, so that a caller who waits for it is never early.
    pub fn headers(&self, now: SystemTime) -> [(&'static str, u64); 3] {
        let reset = now.duration_since(UNIX_EPOCH).unwrap_or_default() + self.reset_after;
        let reset = reset.as_secs() + u64::from(reset.subsec_nanos() > 0);
        [
            ("x-ratelimit-limit", u64::from(self.limit)),
            ("x-ratelimit-remaining", u64::from(self.remaining)),
            ("x-ratelimit-reset", reset),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_the_reference() {
        let now = UNIX_EPOCH + Duration::from_millis(1_640_995_150_500);
        let quota = Decision::allowed(100, 95, 49_000_000_000).into_result().unwrap();
        let headers = quota.headers(now);
        assert_eq!(headers[0], ("x-ratelimit-limit", 100));
        assert_eq!(headers[1], ("x-ratelimit-remaining", 95));
        assert_eq!(headers[2], ("x-ratelimit-reset", 1_640_995_200));
    }

    #[test]
    fn a_wall_clock_before_1970_gives_a_reset_near_zero() {
        let quota = Decision::allowed(1, 0, 0).quota;
        assert_eq!(quota.headers(UNIX_EPOCH - Duration::from_secs(5))[2].1, 0);
    }

    #[test]
    fn a_refused_call_is_resource_exhausted_and_says_when_to_come_back() {
        let error = Decision::refused(10, 60_000_000_000, 5_900_000_000).into_result().unwrap_err();
        assert_eq!(error.code, ErrorCode::ResourceExhausted);
        assert_eq!(error.retry_after, Some(Duration::from_millis(5_900)));
        assert_eq!(error.message, "Rate limit exceeded: try again in 5.9 s");
    }
}
