//! The one error type at the boundary: what a caller is told, in every protocol.
//!
//! A domain error implements its own `From<...> for ApiError`; nothing else decides codes. The table in
//! `ErrorCode::row` holds, for each code, its three spellings on the wire, so that the protocols cannot drift apart.
use std::borrow::Cow;
use std::time::Duration;

/// A caller's text as an error repeats it: its first `most` characters, and three dots where it goes on.
pub(crate) fn beginning(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
    }
}

/// The codes of the API reference and the others that Connect and gRPC share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    Canceled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl ErrorCode {
    /// Every code, for tests and for counters with one series a code.
    pub const ALL: [Self; 16] = [
        Self::Canceled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The table: name as the reference prints it, gRPC code, HTTP status for a plain HTTP client.
    ///
    /// The statuses are the API reference's; for codes it does not list they are those of the Connect protocol
    /// (<https://connectrpc.com/docs/protocol/#error-codes>). FAILED_PRECONDITION differs between the two (412, 400).
    const fn row(self) -> (&'static str, u32, u16) {
        match self {
            Self::Canceled => ("CANCELED", 1, 499),
            Self::Unknown => ("UNKNOWN", 2, 500),
            Self::InvalidArgument => ("INVALID_ARGUMENT", 3, 400),
            Self::DeadlineExceeded => ("DEADLINE_EXCEEDED", 4, 504),
            Self::NotFound => ("NOT_FOUND", 5, 404),
            Self::AlreadyExists => ("ALREADY_EXISTS", 6, 409),
            Self::PermissionDenied => ("PERMISSION_DENIED", 7, 403),
            Self::ResourceExhausted => ("RESOURCE_EXHAUSTED", 8, 429),
            Self::FailedPrecondition => ("FAILED_PRECONDITION", 9, 412),
            Self::Aborted => ("ABORTED", 10, 409),
            Self::OutOfRange => ("OUT_OF_RANGE", 11, 400),
            Self::Unimplemented => ("UNIMPLEMENTED", 12, 501),
            Self::Internal => ("INTERNAL", 13, 500),
            Self::Unavailable => ("UNAVAILABLE", 14, 503),
            Self::DataLoss => ("DATA_LOSS", 15, 500),
            Self::Unauthenticated => ("UNAUTHENTICATED", 16, 401),
        }
    }

    /// Upper-case name, as the reference's envelope carries it: `NOT_FOUND`.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// Numeric gRPC status code, 1 to 16.
    pub const fn grpc(self) -> u32 {
        self.row().1
    }

    /// HTTP status that a plain HTTP client gets.
    pub const fn http_status(self) -> u16 {
        self.row().2
    }

    /// The code with this upper- or lower-case name; Connect spells codes in lower case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.name().eq_ignore_ascii_case(name))
    }
}

/// A failure as its caller sees it: a code, a sentence that says what happened, which value, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", code.name())]
pub struct ApiError {
    pub code: ErrorCode,
    pub message: Cow<'static, str>,
    /// When a later try may succeed; becomes `Retry-After`.
    pub retry_after: Option<Duration>,
    /// The permission that was lacking; becomes `details.permission`.
    pub permission: Option<&'static str>,
    /// Who asked, once that is known (`admin`, `device:rpi-001`); becomes `details.user_id`.
    pub user_id: Option<String>,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), retry_after: None, permission: None, user_id: None, source: None }
    }

    pub fn invalid_argument(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    pub fn unavailable(message: impl Into<Cow<'static, str>>, retry_after: Duration) -> Self {
        Self::new(ErrorCode::Unavailable, message).with_retry_after(retry_after)
    }

    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference's own list, word for word.
    const REFERENCE: [(&str, u16); 9] = [
        ("INVALID_ARGUMENT", 400),
        ("NOT_FOUND", 404),
        ("ALREADY_EXISTS", 409),
        ("PERMISSION_DENIED", 403),
        ("UNAUTHENTICATED", 401),
        ("RESOURCE_EXHAUSTED", 429),
        ("FAILED_PRECONDITION", 412),
        ("UNAVAILABLE", 503),
        ("INTERNAL", 500),
    ];

    #[test]
    fn a_text_that_is_cut_says_so() {
        assert_eq!(beginning("größe", 5), "größe");
        assert_eq!(beginning("größen", 5), "größe...");
        assert_eq!(beginning("", 0), "");
    }

    #[test]
    fn the_references_codes_have_the_references_statuses() {
        for (name, status) in REFERENCE {
            let code = ErrorCode::from_name(name).unwrap_or_else(|| panic!("{name} is missing"));
            assert_eq!(code.http_status(), status, "{name}");
        }
    }

    #[test]
    fn every_code_agrees_with_connect_about_name_and_number() {
        for code in ErrorCode::ALL {
            let theirs = connectrpc::ErrorCode::from_grpc_code(code.grpc()).expect("a code that Connect knows");
            assert_eq!(theirs.as_str(), code.name().to_ascii_lowercase());
            if code != ErrorCode::FailedPrecondition {
                assert_eq!(theirs.http_status().as_u16(), code.http_status(), "{}", code.name());
            }
        }
    }
}
