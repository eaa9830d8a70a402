//! What the whole server takes over a million devices, through its front door: heartbeats in batches and over streams
//! until their rows are visible in ClickHouse, and single heartbeats with and without lists beside them. Prints the
//! figures of docs/performance.md.
//!
//! ```text
//! cargo bench --bench door                 # 1,000,000 devices
//! FLEETD_BENCH_DEVICES=100000 cargo bench --bench door
//! ```
//!
//! The registry is filled directly; everything after that is the real server with its embedded ClickHouse, as
//! processes of their own. Generator and server share the machine, and the ways take turns.
#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use fleetd_loadtest::{Client, Fleet, FleetOptions, Load, Protocol, Target};
use fleetd_proto::v1::{BatchHeartbeatRequest, ListDevicesRequest, StreamHeartbeatsRequest};
use futures_util::future::join_all;
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body, Frame};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use support::{fill_registry, heartbeat, Server, ADMIN_KEY, LISTS};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, Semaphore};

/// Heartbeats in a call or a message, as a gateway of a large site sends them.
const BATCH: usize = 5_000;
/// Connections, or streams on connections of their own.
const LANES: usize = 4;
/// Messages of a stream that are sent ahead of their answers.
const AHEAD: usize = 2;
/// Devices that speak in the rounds of batches and streams.
const SPEAKERS: usize = 200_000;
/// How long a round sends, and rounds of each way; one before them warms up and does not count.
const ROUND: Duration = Duration::from_secs(6);
const ROUNDS: usize = 4;
/// How long the last rows of a round may take.
const VISIBLE_WITHIN: Duration = Duration::from_secs(120);

/// Single heartbeats: devices of their own, and connections.
const SINGLES: usize = 10_000;
const CONNECTIONS: usize = 64;
/// A busy console: lists a second of the rounds that are paced.
const LISTS_A_SECOND: u64 = 10;

fn main() {
    let devices = support::devices();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(fill_registry(folder.path(), devices));
    let server = Server::start(folder.path());
    runtime.block_on(async {
        let mut bench = Bench { server: &server, rows: 0 };
        bench.bring_to_life(devices).await;
        bench.batches_and_streams(devices.min(SPEAKERS)).await;
        bench.lists_beside().await;
    });
}

struct Bench<'a> {
    server: &'a Server,
    /// Rows that ClickHouse should have.
    rows: u64,
}

/// How heartbeats come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Batches,
    Streams,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Batches => "BatchHeartbeat, Connect over HTTP/1.1",
            Self::Streams => "StreamHeartbeats, gRPC over h2c",
        }
    }

    /// One message, as it goes over the wire.
    fn encode(self, numbers: impl Iterator<Item = usize>) -> Bytes {
        let heartbeats = numbers.map(heartbeat).collect();
        match self {
            Self::Batches => BatchHeartbeatRequest { heartbeats }.encode_to_vec().into(),
            Self::Streams => {
                let message = StreamHeartbeatsRequest { sequence: 1, heartbeats };
                let mut frame = BytesMut::new();
                frame.put_u8(0);
                frame.put_u32(message.encoded_len() as u32);
                message.encode(&mut frame).expect("room");
                frame.freeze()
            }
        }
    }
}

impl Bench<'_> {
    fn address(&self) -> &str {
        self.server.url.trim_start_matches("http://")
    }

    /// One heartbeat from every device.
    async fn bring_to_life(&mut self, devices: usize) {
        let started = Instant::now();
        let bench = &*self;
        let lanes = (0..LANES).map(|lane| async move {
            let mut sender = bench.connect().await;
            let mut acknowledged = 0;
            for first in (lane * BATCH..devices).step_by(LANES * BATCH) {
                let body = Way::Batches.encode(first..devices.min(first + BATCH));
                acknowledged += bench.batch(&mut sender, body).await;
            }
            acknowledged
        });
        let acknowledged: u64 = join_all(lanes).await.into_iter().sum();
        assert_eq!(acknowledged, devices as u64);
        self.rows += acknowledged;
        self.await_rows().await;
        let rate = devices as f64 / started.elapsed().as_secs_f64();
        println!("{devices} devices brought to life in batches of {BATCH}: {rate:.0} heartbeats/s");
    }

    async fn batches_and_streams(&mut self, speakers: usize) {
        println!("\n{:<40} {:>16} {:>16}", format!("batches of {BATCH}"), "acknowledged/s", "visible rows/s");
        let lanes_of = |way: Way| -> Vec<Arc<Vec<Bytes>>> {
            let body = |first: usize| way.encode(first..speakers.min(first + BATCH));
            let lane = |lane: usize| Arc::new((lane * BATCH..speakers).step_by(LANES * BATCH).map(body).collect());
            // Fewer devices than lanes would leave some without any.
            (0..LANES).filter(|lane| lane * BATCH < speakers).map(lane).collect()
        };
        let ways = [Way::Batches, Way::Streams].map(|way| (way, lanes_of(way)));
        let mut visible = BTreeMap::<_, Vec<f64>>::new();
        for round in 0..=ROUNDS {
            for (way, lanes) in &ways {
                let started = Instant::now();
                let until = started + ROUND;
                let acknowledged: u64 = match way {
                    Way::Batches => join_all(lanes.iter().map(|bodies| self.batch_lane(bodies, until))).await,
                    Way::Streams => join_all(lanes.iter().map(|frames| self.stream_lane(frames, until))).await,
                }
                .into_iter()
                .sum();
                let sent_for = started.elapsed().as_secs_f64();
                self.rows += acknowledged;
                self.await_rows().await;
                let rate = acknowledged as f64 / started.elapsed().as_secs_f64();
                if round > 0 {
                    println!("{:<40} {:>16.0} {rate:>16.0}", way.name(), acknowledged as f64 / sent_for);
                    visible.entry(*way).or_default().push(rate);
                }
            }
        }
        for (way, mut rates) in visible {
            rates.sort_unstable_by(f64::total_cmp);
            println!("{}: median {:.0} rows/s visible (to reach: 500,000)", way.name(), rates[(rates.len() - 1) / 2]);
        }
    }

    async fn connect(&self) -> http1::SendRequest<Full<Bytes>> {
        let io = TokioIo::new(TcpStream::connect(self.address()).await.expect("a connection"));
        let (sender, connection) = http1::handshake(io).await.expect("a connection");
        tokio::spawn(connection);
        sender
    }

    async fn batch(&self, sender: &mut http1::SendRequest<Full<Bytes>>, body: Bytes) -> u64 {
        /// The answer without its results: the generator should cost little.
        #[derive(Clone, PartialEq, prost::Message)]
        struct Answer {
            #[prost(int32, tag = "2")]
            acknowledged_count: i32,
        }
        let request = http::Request::post("/fleetd.v1.DeviceService/BatchHeartbeat")
            .header("host", self.address())
            .header("content-type", "application/proto")
            .header("connect-protocol-version", "1")
            .header("authorization", format!("Bearer {ADMIN_KEY}"))
            .body(Full::new(body))
            .expect("a request");
        sender.ready().await.expect("an open connection");
        let response = sender.send_request(request).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("an answer").to_bytes();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        Answer::decode(body).expect("an answer").acknowledged_count as u64
    }

    async fn batch_lane(&self, bodies: &[Bytes], until: Instant) -> u64 {
        let mut sender = self.connect().await;
        let mut acknowledged = 0;
        for body in bodies.iter().cycle() {
            if Instant::now() >= until {
                break;
            }
            acknowledged += self.batch(&mut sender, body.clone()).await;
        }
        acknowledged
    }

    async fn stream_lane(&self, frames: &Arc<Vec<Bytes>>, until: Instant) -> u64 {
        let io = TokioIo::new(TcpStream::connect(self.address()).await.expect("a connection"));
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(io)
            .await
            .expect("a connection");
        tokio::spawn(connection);
        let (send, receive) = mpsc::channel::<Bytes>(1);
        let body = StreamBody::new(Box::pin(stream::unfold(receive, |mut receive| async move {
            let frame = receive.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(frame)), receive))
        })));
        let room = Arc::new(Semaphore::new(AHEAD));
        let (feeder_room, frames) = (Arc::clone(&room), Arc::clone(frames));
        tokio::spawn(async move {
            for frame in frames.iter().cycle() {
                feeder_room.acquire().await.expect("open as long as this runs").forget();
                // Either ends the stream: with the sender goes the body.
                if Instant::now() >= until || send.send(frame.clone()).await.is_err() {
                    return;
                }
            }
        });
        let request =
            http::Request::post(format!("http://{}/fleetd.v1.DeviceService/StreamHeartbeats", self.address()))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("authorization", format!("Bearer {ADMIN_KEY}"))
                .body(body)
                .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        assert_eq!(response.status(), 200);
        answers(response.into_body(), &room).await
    }

    /// Waits until ClickHouse has every row.
    async fn await_rows(&self) {
        let asked = Instant::now();
        let address = self.server.clickhouse_url.trim_start_matches("http://");
        let io = TokioIo::new(TcpStream::connect(address).await.expect("clickhouse accepts"));
        let (mut sender, connection) = http1::handshake(io).await.expect("clickhouse accepts");
        tokio::spawn(connection);
        loop {
            let request = http::Request::post("/?database=fleetd")
                .header("host", address)
                .body(Full::new(Bytes::from_static(b"SELECT count() FROM heartbeats")))
                .expect("a request");
            sender.ready().await.expect("clickhouse answers");
            let response = sender.send_request(request).await.expect("clickhouse answers");
            let body = response.into_body().collect().await.expect("clickhouse answers").to_bytes();
            let rows: u64 = String::from_utf8_lossy(&body).trim().parse().expect("a number of rows");
            assert!(rows <= self.rows, "{rows} rows of {} heartbeats", self.rows);
            if rows == self.rows {
                return;
            }
            assert!(asked.elapsed() < VISIBLE_WITHIN, "{rows} rows of {} heartbeats", self.rows);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Single heartbeats through the door, alone and beside lists over all devices, in turns.
    async fn lists_beside(&mut self) {
        println!(
            "\n{:<40} {:>14} {:>10} {:>10} {:>10} {:>10}",
            "single heartbeats, Connect", "heartbeats/s", "p99 ms", "lists/s", "p50 ms", "p99 ms"
        );
        let options = FleetOptions {
            target: Target::parse(&self.server.url).expect("the server's address"),
            admin_key: Some(ADMIN_KEY.to_owned()),
            protocol: Protocol::Connect,
            devices: SINGLES,
            id_prefix: None,
            keys: None,
        };
        let mut fleet = Fleet::register(&options, |_| ()).await.expect("a registered fleet");
        let load =
            Load { connections: CONNECTIONS, warmup: Duration::from_secs(1), duration: Some(ROUND), ..Load::default() };
        let ways = [
            ("alone", None),
            ("lists, ten a second", Some(Duration::from_millis(1_000 / LISTS_A_SECOND))),
            ("lists, one after the other", Some(Duration::ZERO)),
        ];
        let mut rates = vec![0.0; ways.len()];
        for round in 0..=ROUNDS {
            for (rate, (name, pause)) in rates.iter_mut().zip(ways) {
                let lister = Lister::start(&self.server.url, pause);
                let run = fleet.start(&load).expect("generator threads");
                let (back, report) = run.finish().await.expect("a report");
                fleet = back;
                let (lists, [p50, p99]) = lister.finish();
                assert!(report.rejected.is_empty() && report.errors == 0, "{report:?}");
                if round == 0 {
                    continue;
                }
                let per_second = report.heartbeats_per_second;
                *rate += per_second / ROUNDS as f64;
                let heartbeat_p99 = report.p99_ms;
                println!("{name:<40} {per_second:>14.0} {heartbeat_p99:>10.2} {lists:>10.1} {p50:>10.1} {p99:>10.1}");
            }
        }
        for (rate, (name, _)) in rates.iter().zip(ways).skip(1) {
            println!("{name}: {:.0} % of the heartbeats without (to reach: 80)", 100.0 * rate / rates[0]);
        }
    }
}

/// Reads the answers of a stream to its end, and makes room for a message with each; how many heartbeats were
/// acknowledged.
async fn answers<B: Body<Data = Bytes> + Unpin>(mut body: B, room: &Semaphore) -> u64
where
    B::Error: std::fmt::Debug,
{
    const HEAD: usize = 5;
    #[derive(Clone, PartialEq, prost::Message)]
    struct Answer {
        #[prost(int32, tag = "3")]
        acknowledged_count: i32,
    }
    let (mut buffer, mut acknowledged, mut status) = (BytesMut::new(), 0, None);
    while let Some(frame) = body.frame().await {
        match frame.expect("an open stream").into_data() {
            Ok(data) => buffer.extend_from_slice(&data),
            Err(frame) => status = frame.into_trailers().ok().and_then(|trailers| trailers.get("grpc-status").cloned()),
        }
        while buffer.len() >= HEAD {
            let length = u32::from_be_bytes([buffer[1], buffer[2], buffer[3], buffer[4]]) as usize;
            if buffer.len() < HEAD + length {
                break;
            }
            let message = buffer.split_to(HEAD + length);
            acknowledged += Answer::decode(&message[HEAD..]).expect("an answer").acknowledged_count as u64;
            room.add_permits(1);
        }
    }
    assert_eq!(status.expect("trailers"), "0", "the stream ended with an error");
    acknowledged
}

/// Somebody who asks for lists, on a thread of its own.
struct Lister {
    is_over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(f64, [f64; 2])>,
}

impl Lister {
    /// `pause` is from one list's begin to the next one's; without one nothing is asked for.
    fn start(url: &str, pause: Option<Duration>) -> Self {
        let target = Target::parse(url).expect("the server's address");
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let mut client = Client::new(&target, Protocol::Connect, Some(ADMIN_KEY)).expect("a client");
                let (started, mut times) = (Instant::now(), Vec::new());
                while let (Some(pause), false) = (pause, over.load(Ordering::Relaxed)) {
                    let (filter, order_by) = LISTS[times.len() % LISTS.len()];
                    let (filter, order_by) = (filter.to_owned(), order_by.to_owned());
                    let request = ListDevicesRequest { page_size: 100, page_token: String::new(), filter, order_by };
                    let asked = Instant::now();
                    client.list_devices(&request).await.expect("a page");
                    times.push(asked.elapsed());
                    tokio::time::sleep(pause.saturating_sub(asked.elapsed())).await;
                }
                let per_second = times.len() as f64 / started.elapsed().as_secs_f64();
                times.sort_unstable();
                let quantile = |share: f64| {
                    let at = (times.len() as f64 * share) as usize;
                    times.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
                };
                (per_second, [0.5, 0.99].map(quantile))
            })
        });
        Self { is_over, thread }
    }

    /// Lists a second, and the median and the 99th percentile of their times in milliseconds.
    fn finish(self) -> (f64, [f64; 2]) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the lister")
    }
}
