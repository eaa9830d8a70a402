//! What a failed statement means for whoever sent it: send again, do not send again, or ask first.

use clickhouse::error::Error;

/// What may be done after a failed insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Nothing was stored and the rows are not at fault: the same insert may succeed later. Covers what an operator has
    /// to mend too (a missing table, a wrong password): setting a fleet's rows aside for that would help nobody.
    Retryable,
    /// ClickHouse read the rows and will not have them, now or later.
    Rejected,
    /// The insert may or may not have been stored; ask before it is sent again.
    UnknownOutcome,
}

/// A statement that failed.
#[derive(Debug, thiserror::Error)]
#[error("clickhouse did not {operation} ({})", match .code { Some(code) => format!("code {code}"), None => "no answer".into() })]
pub struct ClickHouseError {
    /// What was tried, as a verb and its object.
    pub operation: &'static str,
    pub class: ErrorClass,
    /// ClickHouse's own error code, when it answered with one.
    pub code: Option<u32>,
    #[source]
    pub source: Box<Error>,
}

impl ClickHouseError {
    pub fn new(operation: &'static str, source: Error) -> Self {
        let code = code_of(&source);
        let class = match (&source, code) {
            (_, Some(code)) => class_of(code),
            (Error::Network(cause), None) if never_connected(cause.as_ref()) => ErrorClass::Retryable,
            (Error::InvalidParams(_) | Error::Unsupported(_), None) => ErrorClass::Retryable,
            _ => ErrorClass::UnknownOutcome,
        };
        Self { operation, class, code, source: Box::new(source) }
    }
}

/// ClickHouse's exceptions read `Code: 60. DB::Exception: …`.
fn code_of(error: &Error) -> Option<u32> {
    let Error::BadResponse(text) = error else { return None };
    let digits = text.split_once("Code: ")?.1;
    let end = digits.find(|character: char| !character.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// Whether the failure came before a byte of the request could be sent.
fn never_connected(cause: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    cause.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect())
}

/// The codes of `src/Common/ErrorCodes.cpp` in ClickHouse that an insert can meet. One that is in neither list is
/// unknown: asking costs a query, guessing may cost rows.
fn class_of(code: u32) -> ErrorClass {
    match code {
        // The rows: CANNOT_PARSE_* (6, 25, 26, 27, 38, 41, 72), ATTEMPT_TO_READ_AFTER_EOF, CANNOT_READ_ALL_DATA,
        // TYPE_MISMATCH, ARGUMENT_OUT_OF_BOUND, CANNOT_CONVERT_TYPE, INCORRECT_DATA, TOO_LARGE_ARRAY_SIZE,
        // TOO_LARGE_STRING_SIZE, SIZES_OF_ARRAYS_DONT_MATCH, VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE,
        // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN, VIOLATED_CONSTRAINT, UNKNOWN_ELEMENT_OF_ENUM
        6 | 25 | 26 | 27 | 38 | 41 | 72 | 32 | 33 | 53 | 69 | 70 | 117 | 128 | 131 | 190 | 321 | 349 | 469 | 691 => {
            ErrorClass::Rejected
        }
        // The server's load: TOO_MANY_SIMULTANEOUS_QUERIES, NO_FREE_CONNECTION, MEMORY_LIMIT_EXCEEDED, TOO_MANY_PARTS,
        // RECEIVED_ERROR_TOO_MANY_REQUESTS
        202 | 203 | 241 | 252 | 364 => ErrorClass::Retryable,
        // The server's state: READONLY, NO_ZOOKEEPER, TABLE_IS_READ_ONLY, NOT_ENOUGH_SPACE, TOO_FEW_LIVE_REPLICAS
        164 | 225 | 242 | 243 | 285 => ErrorClass::Retryable,
        // What an operator has to mend: NO_SUCH_COLUMN_IN_TABLE, THERE_IS_NO_COLUMN, UNKNOWN_IDENTIFIER, UNKNOWN_TABLE,
        // UNKNOWN_DATABASE, UNKNOWN_SETTING, UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, ACCESS_DENIED,
        // AUTHENTICATION_FAILED, QUOTA_EXCEEDED
        8 | 16 | 47 | 60 | 81 | 115 | 192 | 193 | 194 | 201 | 497 | 516 => ErrorClass::Retryable,
        _ => ErrorClass::UnknownOutcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(text: &str) -> ClickHouseError {
        ClickHouseError::new("insert", Error::BadResponse(text.into()))
    }

    #[test]
    fn an_exceptions_code_decides_its_class() {
        for (text, code, class) in [
            ("Code: 252. DB::Exception: Too many parts", 252, ErrorClass::Retryable),
            ("Code: 33. DB::Exception: Cannot read all data.", 33, ErrorClass::Rejected),
            ("Code: 159. DB::Exception: Timeout exceeded", 159, ErrorClass::UnknownOutcome),
            ("Code: 60", 60, ErrorClass::Retryable),
        ] {
            let error = answered(text);
            assert_eq!((error.code, error.class), (Some(code), class), "{text}");
        }
    }

    #[test]
    fn an_answer_that_clickhouse_did_not_write_leaves_the_outcome_unknown() {
        for text in ["502 Bad Gateway", "Code: ", "", "<html>Code: </html>"] {
            assert_eq!(answered(text).class, ErrorClass::UnknownOutcome, "{text}");
        }
        assert_eq!(ClickHouseError::new("insert", Error::TimedOut).class, ErrorClass::UnknownOutcome);
    }

    #[tokio::test]
    async fn a_refused_connection_means_that_nothing_was_sent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        drop(listener);
        let clickhouse =
            super::super::ClickHouse::new(&super::super::ClickHouseConfig::new(format!("http://{address}")));
        let refused = clickhouse.insert("INSERT INTO t FORMAT RowBinary", bytes::Bytes::from_static(b"x")).await;
        assert_eq!(refused.expect_err("nobody listens").class, ErrorClass::Retryable);
    }
}
