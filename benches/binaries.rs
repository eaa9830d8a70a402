//! What a large file costs on its way up and down, beside a plain file copy over the same protocol stack.
//!
//! `cargo bench --bench binaries` moves 2 GB; `cargo bench --bench binaries -- 256` as many megabytes. Both sides of each
//! pair take turns, A B A B, on loopback, with one client connection that is the same for both. The plain copy is
//! hyper's HTTP server, which writes a body to a file (and fsyncs it), or sends one: no envelopes, no hash, no registry.
//! It is a process of its own, as fleetd is. Folders are below the target folder (not /tmp, which may be memory).
use std::convert::Infallible;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fleetd_proto::v1::{
    upload_binary_request, BinaryMetadata, DownloadBinaryRequest, UploadBinaryRequest, UploadBinaryResponse,
};
use futures_util::stream::{self, Stream, StreamExt as _};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::net::TcpListener;

const KEY: &str = "admin-key-of-the-benchmark-0123456789";
const CHUNK: usize = 1 << 20;
const ROUNDS: usize = 2;
/// What the plain copy reads at once, as fleetd's plain HTTP download does.
const PIECE: usize = 64 << 10;

type AnyBody = UnsyncBoxBody<Bytes, std::io::Error>;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, file] = arguments.as_slice() {
        if role == "--plain" {
            return plain_server(Path::new(file));
        }
    }
    let megabytes = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(2048);
    let folder = tempfile::Builder::new().prefix("bench-binaries-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    println!("{megabytes} MB, in {}", folder.path().display());

    let mut fleetd = Command::new(env!("CARGO_BIN_EXE_fleetd"));
    fleetd.args(["serve", "--listen", "127.0.0.1:0", "--engine-listen", "127.0.0.1:0", "--data-dir"]);
    fleetd.arg(folder.path().join("fleetd")).env("FLEETD_ADMIN_KEY", KEY).env("FLEETD_LOG", "warn");
    let fleetd = Server::start("fleetd", fleetd);
    let mut plain = Command::new(std::env::current_exe().unwrap());
    plain.arg("--plain").arg(folder.path().join("plain"));
    let plain = Server::start("plain copy", plain);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut figures = Figures { megabytes, of: Vec::new() };
    let mut id = String::new();
    for _ in 0..ROUNDS {
        figures.take("up, gRPC", &fleetd, || id = runtime.block_on(upload(fleetd.address, megabytes)));
        figures.take("up, plain HTTP/2", &plain, || runtime.block_on(upload_plain(plain.address, megabytes)));
        let ask = || download_ask(&id);
        figures.take("down, gRPC", &fleetd, || drain(&runtime, fleetd.address, ask(), megabytes, true));
        let get = || Request::get("http://fleetd/copy").body(empty()).unwrap();
        figures.take("down, plain HTTP/2", &plain, || drain(&runtime, plain.address, get(), megabytes, true));
        let get = || Request::get(format!("/artifacts/{id}")).header("x-api-key", KEY).body(empty()).unwrap();
        figures.take("down, HTTP/1.1", &fleetd, || drain(&runtime, fleetd.address, get(), megabytes, false));
        let get = || Request::get("/copy").body(empty()).unwrap();
        figures.take("down, plain HTTP/1.1", &plain, || drain(&runtime, plain.address, get(), megabytes, false));
    }
    let copied = Instant::now();
    let from = folder.path().join("plain");
    let copy = folder.path().join("copy");
    std::fs::copy(&from, &copy).unwrap();
    File::open(&copy).unwrap().sync_all().unwrap();
    figures.print();
    println!("{:<24}{:>8.0} MB/s", "cp and fsync", megabytes as f64 / copied.elapsed().as_secs_f64());
}

/// A server as a child process; ended when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    name: &'static str,
}

impl Server {
    fn start(name: &'static str, mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("http=http://")?.parse().ok());
        Self { child, address: address.unwrap_or_else(|| panic!("{name} said {line:?}")), name }
    }

    fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Server {
    /// Processor time that it has used. Linux counts in hundredths of a second for every program (USER_HZ).
    fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().skip(11).take(2);
        fields.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Figures {
    megabytes: u64,
    of: Vec<Figure>,
}

struct Figure {
    what: &'static str,
    server: &'static str,
    /// MB/s of each round.
    rates: Vec<f64>,
    /// Of the server, over all rounds.
    cpu_seconds: f64,
    resident_before: u64,
    resident_most: u64,
}

impl Figure {
    fn mean(&self) -> f64 {
        self.rates.iter().sum::<f64>() / self.rates.len() as f64
    }

    fn cpu_seconds_a_gigabyte(&self, megabytes: u64) -> f64 {
        self.cpu_seconds / (megabytes * self.rates.len() as u64) as f64 * 1024.0
    }
}

impl Figures {
    /// Times `work`, and watches the server's memory meanwhile.
    fn take(&mut self, what: &'static str, server: &Server, work: impl FnOnce()) {
        let (before, cpu) = (server.resident_bytes(), server.cpu_seconds());
        let (is_over, most) = (AtomicBool::new(false), AtomicU64::new(before));
        let mut took = Duration::ZERO;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    most.fetch_max(server.resident_bytes(), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            let started = Instant::now();
            work();
            took = started.elapsed();
            is_over.store(true, Ordering::Relaxed);
        });
        let rate = self.megabytes as f64 / took.as_secs_f64();
        let (most, cpu) = (most.into_inner(), server.cpu_seconds() - cpu);
        match self.of.iter_mut().find(|figure| figure.what == what) {
            Some(figure) => {
                figure.rates.push(rate);
                figure.cpu_seconds += cpu;
                figure.resident_most = figure.resident_most.max(most);
            }
            None => self.of.push(Figure {
                what,
                server: server.name,
                rates: vec![rate],
                cpu_seconds: cpu,
                resident_before: before,
                resident_most: most,
            }),
        }
    }

    fn print(&self) {
        println!("{:<24}{:>13}  server's CPU  resident before, most  server", "", "");
        for figure in &self.of {
            let each: Vec<String> = figure.rates.iter().map(|rate| format!("{rate:.0}")).collect();
            println!(
                "{:<24}{:>8.0} MB/s  {:>7.2} s/GB  {:>6} MB {:>9} MB   {} ({})",
                figure.what,
                figure.mean(),
                figure.cpu_seconds_a_gigabyte(self.megabytes),
                figure.resident_before >> 20,
                figure.resident_most >> 20,
                figure.server,
                each.join(", ")
            );
        }
        for pair in self.of.chunks_exact(2) {
            println!("{} / {}: {:.2}", pair[0].what, pair[1].what, pair[0].mean() / pair[1].mean());
        }
    }
}

fn empty() -> AnyBody {
    Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync()
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.extend_from_slice(&[0]);
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(message);
    frame.freeze()
}

fn block() -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = BytesMut::with_capacity(CHUNK);
    while bytes.len() < CHUNK {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.freeze()
}

fn body_of(pieces: impl Stream<Item = Bytes> + Send + 'static) -> AnyBody {
    StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))).boxed_unsync()
}

async fn ask(to: SocketAddr, request: Request<AnyBody>, is_http2: bool) -> Response<Incoming> {
    let io = TokioIo::new(tokio::net::TcpStream::connect(to).await.unwrap());
    let mut request = request;
    request.headers_mut().insert("host", "fleetd".parse().unwrap());
    if is_http2 {
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(4 << 20).initial_connection_window_size(8 << 20);
        let (mut sender, connection) = builder.handshake(io).await.unwrap();
        tokio::spawn(connection);
        request.headers_mut().remove("host");
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }
}

async fn upload(to: SocketAddr, megabytes: u64) -> String {
    use upload_binary_request::Data;
    let message = |data| framed(&UploadBinaryRequest { data: Some(data) }.encode_to_vec());
    let metadata =
        BinaryMetadata { name: "large.bin".into(), size_bytes: (megabytes << 20) as i64, ..Default::default() };
    let chunk = message(Data::Chunk(block()));
    let messages = stream::iter([message(Data::Metadata(metadata))]);
    let body = body_of(messages.chain(stream::iter((0..megabytes).map(move |_| chunk.clone()))));
    let request = Request::post("http://fleetd/fleetd.v1.BinaryService/UploadBinary")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-api-key", KEY)
        .body(body)
        .unwrap();
    let whole = ask(to, request, true).await.into_body().collect().await.unwrap();
    let trailers = whole.trailers().cloned().unwrap_or_default();
    let answer = whole.to_bytes();
    assert_eq!(trailers.get("grpc-status").map(|status| status.as_bytes()), Some(&b"0"[..]), "{trailers:?}");
    UploadBinaryResponse::decode(answer.slice(5..)).unwrap().binary_id
}

async fn upload_plain(to: SocketAddr, megabytes: u64) {
    let chunk = block();
    let body = body_of(stream::iter((0..megabytes).map(move |_| chunk.clone())));
    let request = Request::post("http://fleetd/copy").body(body).unwrap();
    assert_eq!(ask(to, request, true).await.status(), 200);
}

fn download_ask(id: &str) -> Request<AnyBody> {
    let message = DownloadBinaryRequest { binary_id: id.into(), ..DownloadBinaryRequest::default() };
    Request::post("http://fleetd/fleetd.v1.BinaryService/DownloadBinary")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-api-key", KEY)
        .body(body_of(stream::iter([framed(&message.encode_to_vec())])))
        .unwrap()
}

fn drain(runtime: &tokio::runtime::Runtime, to: SocketAddr, request: Request<AnyBody>, megabytes: u64, is_http2: bool) {
    runtime.block_on(async {
        let mut body = ask(to, request, is_http2).await.into_body();
        let mut count = 0;
        while let Some(frame) = body.frame().await {
            count += frame.unwrap().data_ref().map_or(0, |bytes| bytes.len() as u64);
        }
        assert!(count >= megabytes << 20, "{count} bytes came");
    });
}

/// Writes a body to `file`, or sends it. Prints its address when it is ready.
fn plain_server(file: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("plain ready http=http://{}", listener.local_addr().unwrap());
        std::io::stdout().flush().unwrap();
        let file: Arc<PathBuf> = Arc::new(file.to_owned());
        loop {
            let (io, _) = listener.accept().await.unwrap();
            io.set_nodelay(true).unwrap();
            let file = Arc::clone(&file);
            tokio::spawn(async move {
                let mut first = [0; 3];
                io.peek(&mut first).await.unwrap();
                let service = service_fn(move |request: Request<Incoming>| {
                    let file = Arc::clone(&file);
                    async move { Ok::<_, Infallible>(copy(&file, request).await) }
                });
                let io = TokioIo::new(io);
                // A client that leaves is the end of a run.
                let _ = if &first == b"PRI" {
                    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    builder.initial_stream_window_size(256 << 10).initial_connection_window_size(1 << 20);
                    builder.serve_connection(io, service).await
                } else {
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
                };
            });
        }
    });
}

async fn copy(path: &Path, request: Request<Incoming>) -> Response<AnyBody> {
    if request.method() == "GET" {
        let file = File::open(path).unwrap();
        let length = file.metadata().unwrap().len();
        let pieces = stream::unfold((file, length), |(mut file, left)| async move {
            let length = left.min(PIECE as u64) as usize;
            if length == 0 {
                return None;
            }
            let (piece, file) = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; length];
                file.read_exact(&mut piece).unwrap();
                (Bytes::from(piece), file)
            })
            .await
            .unwrap();
            Some((piece, (file, left - length as u64)))
        });
        return Response::builder().header("content-length", length).body(body_of(pieces)).unwrap();
    }
    // Beside the one that is there, as any server must that does not lose it: to write over warm pages is twice as fast.
    let part = path.with_extension("part");
    let mut file = File::create(&part).unwrap();
    let mut body = request.into_body();
    let mut waiting: Vec<Bytes> = Vec::new();
    while let Some(frame) = body.frame().await {
        waiting.extend(frame.unwrap().into_data().ok());
        if waiting.iter().map(Bytes::len).sum::<usize>() >= CHUNK || body.is_end_stream() {
            let pieces = std::mem::take(&mut waiting);
            file = tokio::task::spawn_blocking(move || {
                pieces.iter().for_each(|piece| file.write_all(piece).unwrap());
                file
            })
            .await
            .unwrap();
        }
    }
    tokio::task::spawn_blocking(move || {
        waiting.iter().for_each(|piece| file.write_all(piece).unwrap());
        file.sync_all().unwrap();
        assert_eq!(file.stream_position().unwrap(), file.metadata().unwrap().len());
    })
    .await
    .unwrap();
    std::fs::rename(part, path).unwrap();
    Response::new(empty())
}
