//! A request of ClickHouse's HTTP interface, read from its method, URL and headers.
use http::request::Parts;
use http::{header, HeaderMap, Method};

use super::compression::Coding;
use super::exception::{code, Exception};
use super::forms;
use super::library::Parameters;

/// Longest value of a query id, in bytes: it goes into a header and into `log_comment`.
const MAX_QUERY_ID_BYTES: usize = 256;

/// What ClickHouse's interface knows besides settings and has no meaning here: one user without a password, every
/// request a session of its own, progress headers never sent.
const TOLERATED: [&str; 12] = [
    "user",
    "password",
    "quota_key",
    "session_id",
    "session_timeout",
    "session_check",
    "close_session",
    "stacktrace",
    "buffer_size",
    "role",
    "_format",
    "query_kind",
];

/// What a request asks for, apart from its body.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// GET and HEAD may read only.
    pub is_read_only: bool,
    /// Text from the URL or the form; the body's text follows it.
    pub query: String,
    pub database: Option<String>,
    pub default_format: Option<String>,
    pub settings: Vec<(String, String)>,
    pub parameters: Vec<(String, String)>,
    pub query_id: Option<String>,
    /// ClickHouse's own compressed blocks, out and in.
    pub compress: bool,
    pub decompress: bool,
    /// The revision of ClickHouse's protocol that the client reads Native in; 0 when it names none.
    pub client_revision: u64,
    /// HTTP content coding, out and in.
    pub answer_coding: Option<Coding>,
    pub body_coding: Option<Coding>,
    /// Hold the answer back until the statement is over, so that its status is the statement's.
    pub wait_end_of_query: bool,
    /// The body is a multipart form with this boundary.
    pub form_boundary: Option<String>,
}

impl Request {
    /// # Errors
    /// A content coding that is not understood, or a malformed value.
    pub fn parse(parts: &Parts) -> Result<Self, Exception> {
        let text = |name: header::HeaderName| header_text(&parts.headers, name.as_str());
        let mut request = Self {
            is_read_only: parts.method == Method::GET || parts.method == Method::HEAD,
            database: header_text(&parts.headers, "x-clickhouse-database").map(str::to_owned),
            default_format: header_text(&parts.headers, "x-clickhouse-format").map(str::to_owned),
            form_boundary: text(header::CONTENT_TYPE).and_then(forms::multipart_boundary),
            answer_coding: text(header::ACCEPT_ENCODING).and_then(Coding::accepted),
            ..Self::default()
        };
        request.body_coding = match text(header::CONTENT_ENCODING) {
            None => None,
            Some(name) if name.trim().is_empty() || name.trim().eq_ignore_ascii_case("identity") => None,
            Some(name) => Some(Coding::from_name(name).ok_or_else(|| {
                let message = format!("Unknown Content-Encoding {name}; lz4, zstd, gzip and deflate are understood");
                Exception::new(code::NOT_IMPLEMENTED, "NOT_IMPLEMENTED", message)
            })?),
        };
        request.take_fields(forms::query_string(parts.uri.query().unwrap_or("")))?;
        Ok(request)
    }

    /// Takes the names and values of the URL or of a form.
    ///
    /// # Errors
    /// `UNKNOWN_SETTING` for a name that cannot be one.
    pub fn take_fields(&mut self, fields: Vec<(String, String)>) -> Result<(), Exception> {
        for (name, value) in fields {
            match name.as_str() {
                "query" => self.query.push_str(&value),
                "database" => self.database = Some(value),
                "default_format" => self.default_format = Some(value),
                "query_id" if is_header_text(&value) => self.query_id = Some(value),
                "query_id" => return Err(bad_argument("query_id has unprintable characters or is too long")),
                "compress" => self.compress = is_true(&value),
                "decompress" => self.decompress = is_true(&value),
                "client_protocol_version" => {
                    self.client_revision =
                        value.parse().map_err(|_| bad_argument("client_protocol_version is no number"))?;
                }
                "wait_end_of_query" => self.wait_end_of_query = is_true(&value),
                "enable_http_compression" => {
                    if !is_true(&value) {
                        self.answer_coding = None;
                    }
                }
                _ if TOLERATED.contains(&name.as_str()) => {}
                _ => match name.strip_prefix("param_") {
                    Some(parameter) => self.parameters.push((parameter.to_owned(), value)),
                    None if is_identifier(&name) => self.settings.push((name, value)),
                    None => {
                        let message = format!("Unknown setting '{}'", name.escape_debug());
                        return Err(Exception::new(code::UNKNOWN_SETTING, "UNKNOWN_SETTING", message));
                    }
                },
            }
        }
        Ok(())
    }

    /// Placeholder values, as the library takes them.
    pub fn take_parameters(&mut self) -> Parameters {
        Parameters(std::mem::take(&mut self.parameters))
    }

    /// The statements that make a fresh session this request's: its settings, then its database. ClickHouse itself
    /// checks names and values.
    pub fn session_statements(&self) -> Vec<String> {
        let mut settings: Vec<String> =
            self.settings.iter().map(|(name, value)| format!("{name} = {}", quoted(value, '\''))).collect();
        // The library names its statements itself; a client's id is kept where `system.processes` shows it.
        if let Some(query_id) = &self.query_id {
            if !self.settings.iter().any(|(name, _)| name == "log_comment") {
                settings.push(format!("log_comment = {}", quoted(query_id, '\'')));
            }
        }
        let mut statements = Vec::new();
        if !settings.is_empty() {
            statements.push(format!("SET {}", settings.join(", ")));
        }
        if let Some(database) = self.database.as_deref().filter(|database| !database.is_empty()) {
            statements.push(format!("USE {}", quoted(database, '`')));
        }
        statements
    }
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn bad_argument(message: &str) -> Exception {
    Exception::new(code::BAD_ARGUMENTS, "BAD_ARGUMENTS", message)
}

fn is_true(value: &str) -> bool {
    value == "1" || value.eq_ignore_ascii_case("true")
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|one| one.is_ascii_alphanumeric() || one == '_')
}

fn is_header_text(value: &str) -> bool {
    value.len() <= MAX_QUERY_ID_BYTES && value.chars().all(|one| one.is_ascii_graphic() || one == ' ')
}

/// A literal or identifier in ClickHouse's quoting.
fn quoted(text: &str, quote: char) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push(quote);
    for one in text.chars() {
        if one == quote || one == '\\' {
            quoted.push('\\');
        }
        quoted.push(one);
    }
    quoted.push(quote);
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str, headers: &[(&'static str, &'static str)]) -> Result<Request, Exception> {
        let mut builder = http::Request::builder().method("POST").uri(url);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        Request::parse(&builder.body(()).expect("a request").into_parts().0)
    }

    #[test]
    fn every_parameter_has_its_place() {
        let request = parse(
            "/?query=SELECT+1&database=d&default_format=JSON&max_threads=2&param_x=y&user=u&session_id=s&compress=1\
             &client_protocol_version=54460",
            &[("accept-encoding", "gzip"), ("content-encoding", "lz4")],
        )
        .expect("a request");
        assert_eq!(
            request,
            Request {
                query: "SELECT 1".into(),
                database: Some("d".into()),
                default_format: Some("JSON".into()),
                settings: vec![("max_threads".into(), "2".into())],
                parameters: vec![("x".into(), "y".into())],
                compress: true,
                client_revision: 54_460,
                answer_coding: Some(Coding::Gzip),
                body_coding: Some(Coding::Lz4),
                ..Request::default()
            }
        );
    }

    #[test]
    fn a_setting_or_database_cannot_leave_its_quotes() {
        let request = parse("/?a=x%27%2C+b%3D1+--&database=d%60%5C%3B+DROP", &[]).expect("a request");
        assert_eq!(request.session_statements(), ["SET a = 'x\\', b=1 --'", "USE `d\\`\\\\; DROP`"]);
        assert_eq!(parse("/?a%20=1", &[]).expect_err("no name").code(), code::UNKNOWN_SETTING);
    }

    #[test]
    fn a_query_id_is_kept_as_log_comment_unless_there_is_one() {
        let comment = |url| parse(url, &[]).expect("a request").session_statements();
        assert_eq!(comment("/?query_id=q1"), ["SET log_comment = 'q1'"]);
        assert_eq!(comment("/?query_id=q1&log_comment=mine"), ["SET log_comment = 'mine'"]);
        assert!(parse("/?query_id=a%0Ab", &[]).is_err(), "a line break would split the header");
    }

    #[test]
    fn a_coding_that_is_not_understood_is_named() {
        let error = parse("/", &[("content-encoding", "br")]).expect_err("unknown");
        assert_eq!(error.http_status(), 501);
        assert!(error.to_string().contains("br"), "{error}");
    }
}
