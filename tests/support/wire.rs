//! Requests and answers as they are on the wire: a raw HTTP/1.1 client on a plain socket, which can be told to send
//! anything, and an HTTP/2 client on hyper.
use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

/// No answer takes longer; the slowest that is right is a body time-out of 20 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);

/// One request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: &'static str,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Ask {
    pub fn post(target: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self { method: "POST", target: target.into(), headers: Vec::new(), body: body.into() }
    }

    pub fn get(target: impl Into<String>) -> Self {
        Self { method: "GET", target: target.into(), headers: Vec::new(), body: Vec::new() }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    /// As [`Self::header`], in place of what the header was.
    pub fn set(self, name: &str, value: impl Into<String>) -> Self {
        self.without(name).header(name, value)
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(present, _)| !present.eq_ignore_ascii_case(name));
        self
    }

    /// The bytes of this request on HTTP/1.1.
    pub fn on_http1(&self) -> Vec<u8> {
        let mut bytes = self.head_on_http1(Some(self.body.len()));
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// The head alone; with `None` the caller's own headers say how long the body is.
    pub fn head_on_http1(&self, content_length: Option<usize>) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if find(&self.headers, "host").is_none() {
            head.push_str("host: fleetd\r\n");
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(length) = content_length.filter(|length| *length > 0 || self.method == "POST") {
            head.push_str(&format!("content-length: {length}\r\n"));
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// One answer; names of headers are in lower case.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// A trailer, or the header of that name where the answer is trailers only.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        find(&self.trailers, name).or_else(|| self.header(name))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}; not JSON: {self:?}"))
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(present, _)| present == name).map(|(_, value)| value.as_str())
}

/// A raw connection that speaks what the test writes.
pub struct Http1 {
    pub stream: TcpStream,
    /// Read and not yet used.
    ahead: Vec<u8>,
}

impl Http1 {
    pub fn open(to: SocketAddr) -> Self {
        Self::try_open(to).expect("the server accepts")
    }

    /// As [`Self::open`], of a server that may be away.
    pub fn try_open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, ahead: Vec::new() })
    }

    /// As [`Self::ask`], of a server that may go away.
    pub fn try_ask(&mut self, ask: &Ask) -> io::Result<Reply> {
        self.send(&ask.on_http1());
        self.reply()
    }

    /// Writes all of it. A server that has answered already may have closed; then what it said is what counts.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub fn ask(&mut self, ask: &Ask) -> Reply {
        self.send(&ask.on_http1());
        self.reply().expect("an answer")
    }

    /// Reads one answer; an error when the server closes or resets before it is whole.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let head = self.until(b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.lines();
        let status_line = lines.next().unwrap_or_default();
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| invalid(format!("{status_line:?} is no status line")))?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let body = if (100..200).contains(&status) || status == 204 || status == 304 {
            Vec::new()
        } else if find(&headers, "transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
            self.chunks()?
        } else if let Some(length) = find(&headers, "content-length") {
            let length = length.parse().map_err(|_| invalid(format!("content-length {length:?}")))?;
            self.exactly(length)?
        } else {
            self.rest()?
        };
        Ok(Reply { status, headers, body, trailers: Vec::new() })
    }

    /// Whether the server closes (or resets) the connection before the read time-out; what it still sends is skipped.
    pub fn is_closed_by_server(&mut self) -> bool {
        self.rest().is_ok_and(|_| true)
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        loop {
            let line = self.until(b"\r\n")?;
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            let size = usize::from_str_radix(&line, 16).map_err(|_| invalid(format!("chunk size {line:?}")))?;
            whole.extend(self.exactly(size)?);
            self.exactly(2)?;
            if size == 0 {
                return Ok(whole);
            }
        }
    }

    fn until(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.ahead.windows(mark.len()).position(|window| window == mark) {
                return Ok(self.ahead.drain(..at + mark.len()).collect());
            }
            self.more()?;
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.ahead.len() < length {
            self.more()?;
        }
        Ok(self.ahead.drain(..length).collect())
    }

    fn rest(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.more() {
                Ok(()) => {}
                Err(error) if is_end(&error) => return Ok(std::mem::take(&mut self.ahead)),
                Err(error) => return Err(error),
            }
        }
    }

    fn more(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.ahead.extend_from_slice(&buffer[..count]);
                Ok(())
            }
        }
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// One request on a connection of its own.
pub fn http1(to: SocketAddr, ask: &Ask) -> Reply {
    Http1::open(to).ask(ask)
}

/// An HTTP/2 connection (prior knowledge) with a runtime of its own, which turns only while something is asked.
pub struct Http2 {
    runtime: tokio::runtime::Runtime,
    sender: SendRequest<AskBody>,
}

pub type AskBody = http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error>;

impl Http2 {
    pub fn open(to: SocketAddr) -> Self {
        Self::over(|| tokio::net::TcpStream::connect(to))
    }

    /// Over a transport of the test's own.
    pub fn over<T, F>(connect: impl FnOnce() -> F) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = io::Result<T>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let sender = runtime.block_on(async {
            let io = connect().await.expect("the server accepts");
            let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                .handshake(TokioIo::new(io))
                .await
                .expect("an HTTP/2 handshake");
            tokio::spawn(connection);
            sender
        });
        Self { runtime, sender }
    }

    pub fn ask(&mut self, ask: &Ask) -> Reply {
        self.try_ask(ask).unwrap_or_else(|error| panic!("no answer to {} {}: {error:?}", ask.method, ask.target))
    }

    /// An error when the server resets the stream or the connection instead of answering.
    pub fn try_ask(&mut self, ask: &Ask) -> Result<Reply, hyper::Error> {
        let body = Full::new(Bytes::from(ask.body.clone())).map_err(|never| match never {}).boxed_unsync();
        self.ask_with(ask, body)
    }

    /// As [`Self::try_ask`], with `body` in place of the request's.
    pub fn ask_with(&mut self, ask: &Ask, body: AskBody) -> Result<Reply, hyper::Error> {
        let mut whole = Vec::new();
        let reply = self.ask_each(ask, body, ANSWER_WITHIN, |piece| whole.extend_from_slice(piece))?;
        Ok(Reply { body: whole, ..reply })
    }

    /// As [`Self::ask_with`], with the answer's body given to `each` as it comes.
    pub fn ask_each(
        &mut self,
        ask: &Ask,
        body: AskBody,
        within: Duration,
        mut each: impl FnMut(&[u8]),
    ) -> Result<Reply, hyper::Error> {
        let mut request = http::Request::builder().method(ask.method).uri(format!("http://fleetd{}", ask.target));
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        let request = request.body(body).expect("a request that HTTP/2 can carry");
        let sender = &mut self.sender;
        self.runtime.block_on(async {
            let exchange = async {
                sender.ready().await?;
                let response = sender.send_request(request).await?;
                let (head, mut body) = response.into_parts();
                let mut trailers = Vec::new();
                while let Some(frame) = body.frame().await {
                    match frame?.into_data() {
                        Ok(piece) => each(&piece),
                        Err(frame) => trailers = frame.trailers_ref().map(texts).unwrap_or_default(),
                    }
                }
                let status = head.status.as_u16();
                Ok(Reply { status, headers: texts(&head.headers), body: Vec::new(), trailers })
            };
            tokio::time::timeout(within, exchange).await.expect("an answer in time")
        })
    }
}

fn texts(headers: &http::HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

/// One request on an HTTP/2 connection of its own.
pub fn http2(to: SocketAddr, ask: &Ask) -> Reply {
    Http2::open(to).ask(ask)
}
