//! The little of ClickHouse's HTTP interface that the audit needs: one SELECT at a time, its rows as they come.
//!
//! <https://clickhouse.com/docs/interfaces/http>. The server's own client crate is left out on purpose: the audit
//! shares no code with the writer that it audits.
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{HeaderName, HeaderValue, CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use crate::error::LoadError;
use crate::target::Target;
use crate::transport;
use crate::wire::Protocol;

/// The longest line of an answer, in bytes: a device id and a number have some 150.
const MAX_LINE_BYTES: usize = 64 << 10;

/// How long ClickHouse may be silent in the middle of an answer.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// How much of an error's text is shown.
const MAX_MESSAGE_CHARS: usize = 500;

/// Where ClickHouse is, and as whom to ask.
#[derive(Clone, Debug)]
pub struct ClickHouse {
    pub target: Target,
    pub database: String,
    pub user: Option<String>,
    pub password: Option<String>,
}

impl ClickHouse {
    /// The database `fleetd` there, as ClickHouse's default user.
    pub fn new(target: Target) -> Self {
        Self { target, database: "fleetd".to_owned(), user: None, password: None }
    }

    /// Whether it answers `/ping`.
    pub async fn ping(&self) -> Result<(), LoadError> {
        let mut request = self.request("/ping".to_owned(), Bytes::new())?;
        *request.method_mut() = Method::GET;
        self.send(request).await.map(|_| ())
    }

    /// Runs a SELECT. `parameters` are bound to its `{name:Type}` places, never pasted into the text.
    pub(crate) async fn select(&self, sql: &str, parameters: &[(&str, &str)]) -> Result<Rows, LoadError> {
        let mut path = format!("/?database={}", percent_encode(&self.database));
        for (name, value) in parameters {
            // A parameter's value is read as an escaped TSV field.
            path.push_str(&format!("&param_{name}={}", percent_encode(&tsv_escape(value))));
        }
        let body = self.send(self.request(path, Bytes::copy_from_slice(sql.as_bytes()))?).await?;
        Ok(Rows { body, pending: BytesMut::new(), authority: self.target.authority().to_owned() })
    }

    fn request(&self, path: String, body: Bytes) -> Result<Request<Full<Bytes>>, LoadError> {
        let header = |value: &str, what| HeaderValue::try_from(value).map_err(|_| LoadError::Token { what });
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path.parse().map_err(|_| LoadError::Token { what: "a query parameter" })?;
        let headers = request.headers_mut();
        headers.insert(HOST, header(self.target.authority(), "ClickHouse's host")?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if let Some(user) = &self.user {
            headers.insert(HeaderName::from_static("x-clickhouse-user"), header(user, "ClickHouse's user")?);
        }
        if let Some(password) = &self.password {
            let mut password = header(password, "ClickHouse's password")?;
            password.set_sensitive(true);
            headers.insert(HeaderName::from_static("x-clickhouse-key"), password);
        }
        Ok(request)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Incoming, LoadError> {
        let mut connection = transport::connect(&self.target, Protocol::Connect).await?;
        // Ends with the body that is read over it.
        tokio::spawn(connection.driver);
        let response = tokio::time::timeout(SILENCE_TIMEOUT, connection.sender.send(request)).await;
        let response = response.map_err(|elapsed| self.silent(elapsed))?;
        let response = response.map_err(|error| self.silent(crate::wire::CallError::from(error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let text = response.into_body().collect().await.map_err(|error| self.silent(error))?.to_bytes();
        let message = String::from_utf8_lossy(&text).trim().chars().take(MAX_MESSAGE_CHARS).collect();
        Err(LoadError::Query { status: status.as_u16(), message })
    }

    fn silent(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> LoadError {
        LoadError::ClickHouse { authority: self.target.authority().to_owned(), source: source.into() }
    }
}

/// The rows of an answer in TabSeparated form, line by line; holds one network read at a time.
#[derive(Debug)]
pub(crate) struct Rows {
    body: Incoming,
    pending: BytesMut,
    authority: String,
}

impl Rows {
    /// The next line without its end; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<BytesMut>, LoadError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.pending[searched..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.pending.split_to(searched + at + 1);
                line.truncate(searched + at);
                return Ok(Some(line));
            }
            searched = self.pending.len();
            if searched > MAX_LINE_BYTES {
                return Err(bad_row(&self.pending));
            }
            let silent = |source: Box<dyn std::error::Error + Send + Sync>| LoadError::ClickHouse {
                authority: self.authority.clone(),
                source,
            };
            let frame = tokio::time::timeout(SILENCE_TIMEOUT, self.body.frame()).await;
            match frame.map_err(|elapsed| silent(elapsed.into()))? {
                Some(frame) => {
                    let frame = frame.map_err(|error| silent(error.into()))?;
                    if let Ok(data) = frame.into_data() {
                        self.pending.extend_from_slice(&data);
                    }
                }
                // An answer that stops in the middle of a line is an error that ClickHouse met half way.
                None if self.pending.is_empty() => return Ok(None),
                None => return Err(bad_row(&self.pending)),
            }
        }
    }
}

pub(crate) fn bad_row(row: &[u8]) -> LoadError {
    LoadError::Row { row: String::from_utf8_lossy(row).chars().take(MAX_MESSAGE_CHARS).collect() }
}

fn tsv_escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '\t' => escaped.push_str("\\t"),
            '\n' => escaped.push_str("\\n"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn percent_encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_survives_its_two_encodings() {
        assert_eq!(percent_encode(&tsv_escape("a b&c=d\t\\")), "a%20b%26c%3Dd%5Ct%5C%5C");
    }
}
