//! The status codes that Connect and gRPC share, as this client reads them from either.
use std::fmt;

/// Names in the order of their gRPC numbers (<https://grpc.io/docs/guides/status-codes/>).
const NAMES: [&str; Code::COUNT] = [
    "OK",
    "CANCELED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A status code by its gRPC number. It knows nothing of the server's own table on purpose: a client that
/// shared it could not notice that the server sends a wrong one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(u8);

impl Code {
    pub(crate) const COUNT: usize = 17;

    pub const UNKNOWN: Self = Self(2);
    pub const INVALID_ARGUMENT: Self = Self(3);
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    pub const NOT_FOUND: Self = Self(5);
    pub const ALREADY_EXISTS: Self = Self(6);
    pub const PERMISSION_DENIED: Self = Self(7);
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    pub const FAILED_PRECONDITION: Self = Self(9);
    pub const UNIMPLEMENTED: Self = Self(12);
    pub const INTERNAL: Self = Self(13);
    pub const UNAVAILABLE: Self = Self(14);
    pub const UNAUTHENTICATED: Self = Self(16);

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }

    pub(crate) fn from_index(index: usize) -> Self {
        Self::from_grpc(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// A number outside gRPC's range reads as UNKNOWN, as gRPC says.
    pub fn from_grpc(number: u32) -> Self {
        u8::try_from(number).ok().filter(|number| usize::from(*number) < Self::COUNT).map_or(Self::UNKNOWN, Self)
    }

    /// From Connect's lower-case spelling or the reference's upper-case one.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().position(|known| known.eq_ignore_ascii_case(name)).map(Self::from_index)
    }

    /// For a response that carries no code, such as a proxy's
    /// (<https://connectrpc.com/docs/protocol/#http-to-error-code>; gRPC's table is the same).
    pub(crate) fn from_http_status(status: http::StatusCode) -> Self {
        match status.as_u16() {
            400 => Self::INTERNAL,
            401 => Self::UNAUTHENTICATED,
            403 => Self::PERMISSION_DENIED,
            404 => Self::UNIMPLEMENTED,
            429 | 502..=504 => Self::UNAVAILABLE,
            _ => Self::UNKNOWN,
        }
    }

    /// Upper-case name, as the API reference prints it.
    pub fn name(self) -> &'static str {
        NAMES[self.index()]
    }

    /// Whether a request that got this answer may have been carried out all the same: the server gave up
    /// while it worked on it. The others are refusals before any work.
    pub(crate) fn leaves_outcome_open(self) -> bool {
        matches!(
            self.name(),
            "CANCELED" | "UNKNOWN" | "DEADLINE_EXCEEDED" | "ABORTED" | "INTERNAL" | "UNAVAILABLE" | "DATA_LOSS"
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_and_the_number_name_one_code() {
        for (number, name) in NAMES.iter().enumerate() {
            let code = Code::from_grpc(number as u32);
            assert_eq!(code.name(), *name);
            assert_eq!(Code::from_name(&name.to_ascii_lowercase()), Some(code));
        }
        assert_eq!(Code::RESOURCE_EXHAUSTED.name(), "RESOURCE_EXHAUSTED");
        assert_eq!(Code::FAILED_PRECONDITION.name(), "FAILED_PRECONDITION");
        assert_eq!(Code::UNAUTHENTICATED.name(), "UNAUTHENTICATED");
        assert_eq!(Code::UNAVAILABLE.name(), "UNAVAILABLE");
        assert_eq!(Code::from_grpc(17), Code::UNKNOWN);
        assert_eq!(Code::from_name("no_such"), None);
    }
}
