//! A proxy between the writer and ClickHouse that fails inserts in every way a network can, and lets all else pass.
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What happens to one insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The connection is reset before anything reaches ClickHouse.
    ResetBefore,
    /// Half of the body reaches ClickHouse, then both connections are reset.
    CutBody,
    /// ClickHouse takes the insert; its answer is lost.
    DropResponse,
    /// ClickHouse takes the insert; its answer comes after the client has given up.
    LateResponse,
    /// The whole request reaches ClickHouse after the client has given up.
    LateRequest,
    /// ClickHouse takes the insert; a gateway answers in its place.
    BadGateway,
    /// Nothing reaches ClickHouse; a gateway answers in its place.
    Unavailable,
}

impl Fault {
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::ResetBefore,
        Self::CutBody,
        Self::DropResponse,
        Self::LateResponse,
        Self::LateRequest,
        Self::BadGateway,
        Self::Unavailable,
    ];
}

pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    /// Faults of the next inserts; when there are none left, inserts pass.
    faults: Mutex<VecDeque<Fault>>,
    late_by: Duration,
    is_down: AtomicBool,
    inserts: AtomicU64,
    /// Requests that are late and still on their way.
    held: AtomicU64,
}

impl Proxy {
    /// `late_by` must be more than the client's time-out.
    pub fn start(upstream: &str, late_by: Duration) -> Self {
        let upstream = upstream.trim_start_matches("http://").parse().expect("an address");
        let shared = Arc::new(Shared {
            upstream,
            faults: Mutex::default(),
            late_by,
            is_down: AtomicBool::new(false),
            inserts: AtomicU64::new(0),
            held: AtomicU64::new(0),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("its address");
        let serving = Arc::clone(&shared);
        // A thread of its own: a test that blocks must not stop the network.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a listener");
                loop {
                    let Ok((client, _)) = listener.accept().await else { continue };
                    let shared = Arc::clone(&serving);
                    tokio::spawn(async move {
                        // A connection that breaks is what this is for.
                        let _ = serve(client, &shared).await;
                    });
                }
            });
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn plan(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.faults.lock().extend(faults);
    }

    /// Whether all faults that were planned have happened and are over.
    pub fn is_through(&self) -> bool {
        self.shared.faults.lock().is_empty() && self.has_delivered()
    }

    /// Whether no request is late and on its way.
    pub fn has_delivered(&self) -> bool {
        self.shared.held.load(Ordering::SeqCst) == 0
    }

    pub fn set_down(&self, is_down: bool) {
        self.shared.is_down.store(is_down, Ordering::SeqCst);
    }

    pub fn inserts(&self) -> u64 {
        self.shared.inserts.load(Ordering::SeqCst)
    }
}

async fn serve(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    if shared.is_down.load(Ordering::SeqCst) {
        return reset(client);
    }
    let (head, rest) = read_head(&mut client).await?;
    let is_insert =
        head.lines().next().is_some_and(|line| line.contains("INSERT+INTO") && line.contains("FORMAT+Native"));
    let fault = if is_insert {
        shared.inserts.fetch_add(1, Ordering::SeqCst);
        shared.faults.lock().pop_front().unwrap_or(Fault::None)
    } else {
        Fault::None
    };
    // One request a connection keeps the proxy simple: ClickHouse closes, so the client does not reuse.
    let head = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
    match fault {
        Fault::None => {
            let mut server = connect(shared, &head, &rest).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
            Ok(())
        }
        Fault::ResetBefore => reset(client),
        Fault::CutBody => {
            let body = read_chunked(&mut client, rest).await?;
            let server = connect(shared, &head, &body[..body.len() / 2]).await?;
            reset(server)?;
            reset(client)
        }
        Fault::DropResponse | Fault::LateResponse | Fault::BadGateway => {
            let body = read_chunked(&mut client, rest).await?;
            let mut server = connect(shared, &head, &body).await?;
            let mut answer = Vec::new();
            server.read_to_end(&mut answer).await?;
            match fault {
                Fault::DropResponse => reset(client),
                Fault::BadGateway => answer_with(client, "502 Bad Gateway").await,
                _ => {
                    tokio::time::sleep(shared.late_by).await;
                    client.write_all(&answer).await
                }
            }
        }
        Fault::LateRequest => {
            let body = read_chunked(&mut client, rest).await?;
            shared.held.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(shared.late_by).await;
            let sent = async {
                let mut server = connect(shared, &head, &body).await?;
                server.read_to_end(&mut Vec::new()).await
            };
            let outcome = sent.await;
            shared.held.fetch_sub(1, Ordering::SeqCst);
            outcome.map(|_| ())
        }
        Fault::Unavailable => {
            read_chunked(&mut client, rest).await?;
            answer_with(client, "503 Service Unavailable").await
        }
    }
}

async fn connect(shared: &Shared, head: &str, body: &[u8]) -> io::Result<TcpStream> {
    let mut server = TcpStream::connect(shared.upstream).await?;
    server.write_all(head.as_bytes()).await?;
    server.write_all(body).await?;
    Ok(server)
}

/// Closing with a linger of zero sends RST in place of FIN.
fn reset(stream: TcpStream) -> io::Result<()> {
    stream.set_zero_linger()
}

async fn answer_with(mut client: TcpStream, status: &str) -> io::Result<()> {
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    client.write_all(answer.as_bytes()).await
}

/// The request's head, and what of the body came with it.
async fn read_head(client: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8(bytes).map_err(io::Error::other)?, rest));
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Reads a chunked body to its end; gives its bytes as they came, framing included.
async fn read_chunked(client: &mut TcpStream, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut at = 0;
    loop {
        let Some(line_end) = bytes[at..].windows(2).position(|window| window == b"\r\n") else {
            more(client, &mut bytes).await?;
            continue;
        };
        let size = std::str::from_utf8(&bytes[at..at + line_end]).map_err(io::Error::other)?;
        let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
        let chunk_end = at + line_end + 2 + size + 2;
        while bytes.len() < chunk_end {
            more(client, &mut bytes).await?;
        }
        at = chunk_end;
        if size == 0 {
            return Ok(bytes);
        }
    }
}

async fn more(client: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    match client.read_buf(bytes).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
