//! The answer of a statement as bytes, piece by piece, with an end that can be trusted.
//!
//! Not through the `clickhouse` crate: it looks for exceptions by what a piece of the answer ends with, so that a text in
//! the data (a device's message) could pass for one. Here only what ends the whole answer counts, and it has to carry the
//! tag that ClickHouse drew for this answer.
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::Client as HyperClient;
use url::form_urlencoded;

/// How long ClickHouse may say nothing. A statement that finds nothing in a thousand million rows is silent for minutes.
const SILENCE: Duration = Duration::from_secs(300);

/// ClickHouse tells an exception inside an answer in 16 KiB at most
/// (`WriteBufferFromHTTPServerResponse::cancelWithException`), and what is around it is short.
const TAIL_BYTES: usize = 20 << 10;

/// What ends an answer that ends with an exception, since ClickHouse 25.11: `LENGTH TAG`, and then this.
const EXCEPTION_END: &str = "\r\n__exception__\r\n";

/// The longest refusal that is read, in bytes; the texts of exceptions are far shorter.
const MAX_REFUSAL_BYTES: usize = 256 << 10;

/// Characters of an exception that are shown.
const SHOWN: usize = 300;

/// Why there is no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("ClickHouse does not answer")]
    NoAnswer(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("ClickHouse refused: {0}")]
    Refused(String),
    /// In the middle.
    #[error("ClickHouse stopped in the middle: {0}")]
    Exception(String),
    #[error("ClickHouse's answer broke off in the middle")]
    BrokenOff(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("ClickHouse said nothing for {} s", SILENCE.as_secs())]
    Silent,
    #[error("ClickHouse's answer does not tell its end; is there a proxy in between?")]
    Endless,
}

/// Where a statement is sent to.
#[derive(Clone)]
pub(super) struct Door {
    pub http: HyperClient<HttpConnector, Full<Bytes>>,
    pub url: String,
    pub user: Option<String>,
    pub password: Option<String>,
}

/// Leaves out what may be secret.
impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

impl Door {
    /// Sends a statement. `parameters` are the values of `{name:Type}` in it.
    pub async fn stream(
        &self,
        database: &str,
        sql: String,
        settings: &[(&str, &str)],
        parameters: &[(String, String)],
    ) -> Result<ByteStream, StreamError> {
        let query = query_of(database, settings, parameters);
        let mut request = Request::post(format!("{}/?{query}", self.url.trim_end_matches('/')));
        let credentials = [("x-clickhouse-user", &self.user), ("x-clickhouse-key", &self.password)];
        for (name, value) in credentials {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::from(sql)).map_err(|error| StreamError::NoAnswer(error.into()))?;
        let answer = tokio::time::timeout(SILENCE, self.http.request(request)).await;
        let response = answer.map_err(|_| StreamError::Silent)?.map_err(|error| StreamError::NoAnswer(error.into()))?;
        ByteStream::of(response).await
    }
}

fn query_of(database: &str, settings: &[(&str, &str)], parameters: &[(String, String)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("database", database);
    for (name, value) in settings {
        query.append_pair(name, value);
    }
    for (name, value) in parameters {
        query.append_pair(&format!("param_{name}"), &escaped(value));
    }
    query.finish()
}

/// Parameters are read as TabSeparated has them.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\t' => text.push_str("\\t"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\0' => text.push_str("\\0"),
            other => text.push(other),
        }
    }
    text
}

/// An answer on its way. Dropping it breaks the connection, which stops the statement.
pub struct ByteStream {
    body: Incoming,
    tag: Option<String>,
    tail: Tail,
}

impl ByteStream {
    async fn of(response: Response<Incoming>) -> Result<Self, StreamError> {
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK || head.headers.contains_key("x-clickhouse-exception-code") {
            let text = match tokio::time::timeout(SILENCE, Limited::new(body, MAX_REFUSAL_BYTES).collect()).await {
                Ok(Ok(text)) => shown(&String::from_utf8_lossy(&text.to_bytes())),
                _ => head.status.to_string(),
            };
            return Err(StreamError::Refused(text));
        }
        // A body that ends with its connection would be whole wherever the connection breaks.
        let is_chunked = head.headers.contains_key(http::header::TRANSFER_ENCODING);
        if !is_chunked && body.size_hint().exact().is_none() {
            return Err(StreamError::Endless);
        }
        let tag = head.headers.get("x-clickhouse-exception-tag").and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        Ok(Self { body, tag, tail: Tail::default() })
    }

    /// The next piece; `None` after the end of a whole answer.
    ///
    /// # Errors
    /// The answer is not whole.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StreamError> {
        loop {
            let frame = tokio::time::timeout(SILENCE, self.body.frame()).await.map_err(|_| StreamError::Silent)?;
            let exception = || self.tail.exception(self.tag.as_deref()).map(StreamError::Exception);
            match frame {
                None => return exception().map_or(Ok(None), Err),
                Some(Err(error)) => return Err(exception().unwrap_or(StreamError::BrokenOff(error.into()))),
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        self.tail.take(&piece);
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }
}

/// The last bytes of an answer.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn take(&mut self, piece: &[u8]) {
        let piece = &piece[piece.len().saturating_sub(TAIL_BYTES)..];
        self.0.extend_from_slice(piece);
        // Cut now and then, so that small pieces do not move all of it each time.
        if self.0.len() > 2 * TAIL_BYTES {
            self.0.drain(..self.0.len() - TAIL_BYTES);
        }
    }

    /// The exception that these bytes end with.
    fn exception(&self, tag: Option<&str>) -> Option<String> {
        let text = String::from_utf8_lossy(&self.0);
        let Some(tag) = tag else { return old_exception(&text) };
        let before = text.strip_suffix(EXCEPTION_END)?.strip_suffix(tag)?;
        let begin = format!("{EXCEPTION_END}{tag}\r\n");
        let message = before.rsplit_once(&begin).map_or(before, |(_, message)| message);
        // The message's length stands behind it, on a line of its own.
        Some(shown(message.trim_end().rsplit_once('\n').map_or(message, |(message, _)| message)))
    }
}

/// Before 25.11 an exception was a last line like any other. In no format that is read here does a line of data end so.
fn old_exception(text: &str) -> Option<String> {
    let line = text.strip_suffix(")\n")?;
    let at = line.rfind("Code: ")?;
    line[at..].contains("DB::Exception").then(|| shown(&line[at..]))
}

/// An exception in one line of bounded length.
fn shown(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(pieces: &[&[u8]]) -> Tail {
        let mut tail = Tail::default();
        pieces.iter().for_each(|piece| tail.take(piece));
        tail
    }

    const TOLD: &[u8] =
        b"1,2\n3,\r\n__exception__\r\nabc\r\nCode: 159. DB::Exception: late\n32 abc\r\n__exception__\r\n";

    #[test]
    fn an_exception_is_found_however_it_is_cut() {
        let message = Some("Code: 159. DB::Exception: late".to_owned());
        assert_eq!(tail(&[TOLD]).exception(Some("abc")), message);
        for at in 0..TOLD.len() {
            assert_eq!(tail(&[&TOLD[..at], &TOLD[at..]]).exception(Some("abc")), message, "{at}");
        }
        let single: Vec<&[u8]> = TOLD.chunks(1).collect();
        assert_eq!(tail(&single).exception(Some("abc")), message);
        let long = vec![b'x'; 100_000];
        assert_eq!(tail(&[&long, TOLD]).exception(Some("abc")), message);
    }

    #[test]
    fn data_that_looks_like_an_exception_is_data() {
        assert_eq!(tail(&[TOLD]).exception(Some("abd")), None, "another answer's tag");
        assert_eq!(tail(&[TOLD, b"\"\n"]).exception(Some("abc")), None, "not at the end");
        let quoted = b"\"Code: 1. DB::Exception: x (version 1 (official build))\n\"\n";
        assert_eq!(tail(&[quoted]).exception(Some("abc")), None);
        assert_eq!(tail(&[quoted]).exception(None), None);
    }

    #[test]
    fn an_older_clickhouse_tells_it_in_the_last_line() {
        let text = b"1,2\n3,Code: 241. DB::Exception: Memory limit exceeded. (version 24.8.1 (official build))\n";
        assert!(tail(&[text]).exception(None).is_some_and(|text| text.starts_with("Code: 241.")));
    }

    #[test]
    fn parameters_are_escaped_as_tab_separated() {
        assert_eq!(escaped("a\\b\tc\nd\re\0"), "a\\\\b\\tc\\nd\\re\\0");
        assert_eq!(escaped("ü'--"), "ü'--");
    }
}
