//! ClickHouse's exceptions on the wire: code, text, HTTP status, and how one is told after the answer has begun.
use bytes::Bytes;

/// Codes from ClickHouse's `ErrorCodes.cpp` that this interface raises itself or looks at.
pub mod code {
    pub const CANNOT_PARSE_TEXT: u32 = 6;
    pub const BAD_ARGUMENTS: u32 = 36;
    pub const CHECKSUM_DOESNT_MATCH: u32 = 40;
    pub const NOT_IMPLEMENTED: u32 = 48;
    pub const LOGICAL_ERROR: u32 = 49;
    pub const SYNTAX_ERROR: u32 = 62;
    pub const UNKNOWN_SETTING: u32 = 115;
    pub const INTO_OUTFILE_NOT_ALLOWED: u32 = 162;
    pub const READONLY: u32 = 164;
    pub const TOO_MANY_SIMULTANEOUS_QUERIES: u32 = 202;
    pub const SOCKET_TIMEOUT: u32 = 209;
    pub const NETWORK_ERROR: u32 = 210;
    pub const CANNOT_DECOMPRESS: u32 = 271;
    pub const QUERY_IS_TOO_LARGE: u32 = 366;
    pub const ABORTED: u32 = 236;
    pub const ACCESS_DENIED: u32 = 497;
}

/// ClickHouse's code for what it cannot name (`STD_EXCEPTION`).
const STD_EXCEPTION: u32 = 1001;

/// An exception as a client of ClickHouse sees it: `Code: N. DB::Exception: text. (NAME)`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Exception {
    code: u32,
    text: String,
}

impl Exception {
    /// Raised by this interface; `name` is the constant's name, as ClickHouse appends it.
    pub fn new(code: u32, name: &str, message: impl AsRef<str>) -> Self {
        Self { code, text: format!("Code: {code}. DB::Exception: {}. ({name})", message.as_ref()) }
    }

    pub fn internal(message: &str) -> Self {
        Self::new(code::LOGICAL_ERROR, "LOGICAL_ERROR", message)
    }

    /// Reads the library's error text. Most begin with their code; some of the C layer's own have none.
    pub fn parse(text: &str) -> Self {
        let text = text.trim_end();
        let parsed = text
            .find("Code: ")
            .and_then(|at| text[at + "Code: ".len()..].split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
        match parsed {
            Some(code) => Self { code, text: text.to_owned() },
            None => Self::new(STD_EXCEPTION, "STD_EXCEPTION", text),
        }
    }

    pub fn code(&self) -> u32 {
        self.code
    }

    /// The library streams SELECT only, and says so for SHOW, EXPLAIN and the like.
    pub fn is_streaming_unsupported(&self) -> bool {
        self.code == code::BAD_ARGUMENTS && self.text.contains("Streaming query is not supported")
    }

    /// The C layer's own refusals carry no code of ClickHouse: here, that a text parsed but is no INSERT.
    pub fn is_of_the_c_layer(&self) -> bool {
        self.code == STD_EXCEPTION
    }

    /// HTTP status by code, as `exceptionCodeToHTTPStatus` of ClickHouse's server has it; 503 for a full server is
    /// our own, so that a client waits and tries again.
    pub fn http_status(&self) -> u16 {
        match self.code {
            194 => 401,
            192 | 193 | 497 | 512 | 516 => 403,
            6 | 25 | 26 | 27 | 36 | 38 | 41 | 53 | 62 | 72 | 117 | 167 | 168 | 223 | 321 | 376 | 427 | 440 | 441
            | 457 => 400,
            46 | 47 | 50 | 56 | 60 | 63 | 73 | 78 | 81 | 115 | 336 | 511 => 404,
            159 => 408,
            381 => 411,
            366 => 413,
            48 => 501,
            202 | 209 | 236 => 503,
            _ => 500,
        }
    }

    /// The body of an error answer.
    pub fn body(&self, version: &str) -> String {
        if self.text.contains("(version ") {
            return format!("{}\n", self.text);
        }
        format!("{} (version {version})\n", self.text)
    }

    /// The block that ends an answer which failed after it had begun, for clients that know the tag in
    /// `X-ClickHouse-Exception-Tag` (ClickHouse 25.11 and later).
    pub fn tagged_block(&self, tag: &str, version: &str) -> Bytes {
        let message = self.body(version);
        let length = message.len();
        Bytes::from(format!("\r\n__exception__\r\n{tag}\r\n{message}{length} {tag}\r\n__exception__\r\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_read_from_the_librarys_text() {
        let exception = Exception::parse("Code: 60. DB::Exception: Unknown table 't'. (UNKNOWN_TABLE)");
        assert_eq!((exception.code(), exception.http_status()), (60, 404));
        assert_eq!(
            exception.body("26.7.2.1"),
            "Code: 60. DB::Exception: Unknown table 't'. (UNKNOWN_TABLE) (version 26.7.2.1)\n"
        );
    }

    #[test]
    fn a_text_without_a_code_gets_the_code_for_unnamed_errors() {
        let exception = Exception::parse("Insert stream already finalized");
        assert_eq!(exception.code(), 1001);
        assert!(exception.is_of_the_c_layer());
    }

    #[test]
    fn a_version_is_not_appended_twice() {
        let exception = Exception::parse("Code: 27. DB::Exception: no. (X) (version 26.7.2.1)");
        assert_eq!(exception.body("26.7.2.1").matches("version").count(), 1);
    }

    #[test]
    fn the_tagged_block_counts_its_message() {
        let block = Exception::new(159, "TIMEOUT_EXCEEDED", "late").tagged_block("abc", "1");
        let text = std::str::from_utf8(&block).expect("text");
        let message = "Code: 159. DB::Exception: late. (TIMEOUT_EXCEEDED) (version 1)\n";
        let length = message.len();
        assert_eq!(text, format!("\r\n__exception__\r\nabc\r\n{message}{length} abc\r\n__exception__\r\n"));
    }
}
