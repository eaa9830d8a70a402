//! Peers that are slow on purpose: each is given its time and no more, and costs others nothing meanwhile.
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::support::client::Client;
use crate::support::wire::{Ask, Http1, Http2};
use crate::support::{wait_until, Server};
use crate::Door;

/// The server's limits for a head (10 s) and a body (20 s), with room for a busy machine.
const HEAD_ENDS_WITHIN: Duration = Duration::from_secs(18);
const BODY_ENDS_WITHIN: Duration = Duration::from_secs(32);
/// An HTTP/2 peer is pinged after 20 s of silence and has 10 s to answer.
const SILENT_HTTP2_ENDS_WITHIN: Duration = Duration::from_secs(38);

/// Its name, the time after which it must be over, and what the peer does; it panics when it is held on for longer.
type Attack = (&'static str, Duration, fn(&Door));

/// Every slow peer at once, so that the test takes as long as the slowest; healthy clients are served beside them.
#[test]
fn slow_peers_are_cut_off_in_time_while_others_are_served() {
    let door = Door::shared();
    std::thread::scope(|scope| {
        let attacks: [Attack; 9] = [
            ("a silent connection", HEAD_ENDS_WITHIN, silence),
            ("a head that trickles", HEAD_ENDS_WITHIN, slowloris),
            ("half an HTTP/2 preface", HEAD_ENDS_WITHIN, half_a_preface),
            ("a preface without its last two bytes", HEAD_ENDS_WITHIN, preface_without_end),
            ("a preface and then silence", SILENT_HTTP2_ENDS_WITHIN, preface_without_settings),
            ("a body that stops half way on HTTP/1.1", BODY_ENDS_WITHIN, half_a_body_on_http1),
            ("a gRPC-Web body that stops half way on HTTP/1.1", BODY_ENDS_WITHIN, half_a_framed_body_on_http1),
            ("a JSON body that stops half way on HTTP/2", BODY_ENDS_WITHIN, half_a_json_body_on_http2),
            ("a gRPC body that stops half way on HTTP/2", BODY_ENDS_WITHIN, half_a_grpc_body_on_http2),
        ];
        let running = attacks.map(|(name, limit, attack)| {
            let door = &door;
            let run = move || {
                let started = Instant::now();
                attack(door);
                assert!(started.elapsed() < limit, "{name} was let go after {:?}", started.elapsed());
            };
            (name, scope.spawn(run))
        });
        let started = Instant::now();
        while running.iter().any(|(_, attack)| !attack.is_finished()) {
            door.unharmed("beside slow peers", || std::thread::sleep(Duration::from_millis(200)));
            assert!(started.elapsed() < BODY_ENDS_WITHIN * 2, "slow peers hold on for ever");
        }
        for (name, attack) in running {
            assert!(attack.join().is_ok(), "{name}: see above");
        }
    });
}

fn silence(door: &Door) {
    let mut connection = Http1::open(door.server.http());
    assert!(connection.is_closed_by_server());
}

/// One header line a second, for ever: each is progress, and the head never ends.
fn slowloris(door: &Door) {
    let mut connection = Http1::open(door.server.http());
    connection.send(b"POST /fleetd.v1.DeviceService/Heartbeat HTTP/1.1\r\nhost: fleetd\r\n");
    let started = Instant::now();
    connection.stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a read time-out");
    loop {
        let written = connection.stream.write_all(b"x-more: y\r\n");
        if let Ok(reply) = connection.reply() {
            assert_eq!(reply.status, 408, "{reply:?}");
            return;
        }
        if written.is_err() {
            return;
        }
        assert!(started.elapsed() < HEAD_ENDS_WITHIN, "the head may trickle for ever");
    }
}

fn half_a_preface(door: &Door) {
    let mut connection = Http1::open(door.server.http());
    connection.send(b"PR");
    assert!(connection.is_closed_by_server());
}

fn preface_without_end(door: &Door) {
    let mut connection = Http1::open(door.server.http());
    connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n");
    assert!(connection.is_closed_by_server());
}

/// No settings, and no answer to the server's ping.
fn preface_without_settings(door: &Door) {
    let mut connection = Http1::open(door.server.http());
    connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert!(connection.is_closed_by_server());
}

fn half_a_body_on_http1(door: &Door) {
    let client = Client::Json1;
    let mut connection = Http1::open(door.server.http());
    let bytes = door.heartbeat(client).on_http1();
    connection.send(&bytes[..bytes.len() - 5]);
    let reply = connection.reply().expect("an answer");
    assert_eq!(reply.status, 408, "{reply:?}");
    assert_eq!(client.outcome(&reply).code, "DEADLINE_EXCEEDED", "{reply:?}");
    assert!(connection.is_closed_by_server());
}

fn half_a_framed_body_on_http1(door: &Door) {
    let client = Client::GrpcWeb1;
    let mut connection = Http1::open(door.server.http());
    let bytes = door.heartbeat(client).on_http1();
    connection.send(&bytes[..bytes.len() - 5]);
    let reply = connection.reply().expect("an answer");
    assert_eq!(client.outcome(&reply).code, "DEADLINE_EXCEEDED", "{reply:?}");
}

fn half_a_json_body_on_http2(door: &Door) {
    half_a_body_on_http2(door, Client::Json2);
}

fn half_a_grpc_body_on_http2(door: &Door) {
    half_a_body_on_http2(door, Client::Grpc2);
}

fn half_a_body_on_http2(door: &Door, client: Client) {
    let ask = door.heartbeat(client);
    let half = Bytes::from(ask.body[..ask.body.len() - 5].to_vec());
    let stalled = futures_util::stream::iter([Ok(Frame::data(half))]).chain(futures_util::stream::pending());
    let mut connection = Http2::open(door.server.http());
    let reply = connection.ask_with(&ask, StreamBody::new(stalled).boxed_unsync()).expect("an answer");
    assert_eq!(client.outcome(&reply).code, "DEADLINE_EXCEEDED", "{reply:?}");
    // The connection is not to blame.
    assert_eq!(client.outcome(&connection.ask(&ask)).code, "OK");
}

#[test]
fn a_request_that_comes_one_byte_at_a_time_is_served() {
    let door = Door::shared();
    let started = Instant::now();
    let mut connection = Http1::open(door.server.http());
    for byte in door.heartbeat(Client::Json1).on_http1() {
        connection.send(&[byte]);
    }
    assert_eq!(connection.reply().expect("an answer").status, 200);

    let ask = door.heartbeat(Client::Grpc2);
    let to = door.server.http();
    let mut trickled = Http2::over(|| async move {
        let io = tokio::net::TcpStream::connect(to).await?;
        io.set_nodelay(true)?;
        Ok(Trickle(io))
    });
    assert_eq!(Client::Grpc2.outcome(&trickled.ask(&ask)).code, "OK");
    assert!(started.elapsed() < Duration::from_secs(10), "took {:?}", started.elapsed());
}

/// Writes one byte at a time, so that the preface arrives in 24 pieces.
struct Trickle(tokio::net::TcpStream);

impl AsyncRead for Trickle {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Trickle {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, &bytes[..bytes.len().min(1)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A third have said nothing, a third half a head, a third have had an answer and are kept alive.
#[test]
fn a_thousand_idle_connections_do_not_slow_a_client_down() {
    let door = Door::shared();
    let before = door.server.resident_bytes();
    let to = door.server.http();
    let mut idle: Vec<TcpStream> = Vec::new();
    for n in 0..1_000 {
        let mut connection = Http1::open(to);
        match n % 3 {
            0 => {}
            1 => connection.send(b"POST /fleetd.v1.DeviceService/Heartbeat HTTP/1.1\r\nhost: fl"),
            _ => assert_eq!(connection.ask(&Ask::get("/healthz")).status, 200),
        }
        idle.push(connection.stream);
    }
    let mut connection = Http1::open(to);
    let mut slowest = Duration::ZERO;
    for _ in 0..200 {
        let asked = Instant::now();
        assert_eq!(connection.ask(&door.heartbeat(Client::Json1)).status, 200);
        slowest = slowest.max(asked.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "the slowest of 200 took {slowest:?}");
    let grown = door.server.resident_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "1,000 idle connections cost {} MiB", grown >> 20);
    drop(idle);
}

/// Each within its limits of size and time, and none of them whole: together they are bounded as well.
#[test]
fn large_bodies_that_do_not_end_fill_the_memory_only_so_far() {
    let server = Server::start();
    let key = server.register("small");
    let before = server.resident_bytes();
    let large = Client::Json1.call("DeviceService/BatchHeartbeat", None, &vec![b' '; 2_000_000]);
    let unfinished = large.on_http1();
    let begin = || {
        let mut connection = Http1::open(server.http());
        // The server may have refused it, and closed, before all is sent.
        let _ = connection.stream.write_all(&unfinished[..unfinished.len() - 1]);
        connection
    };
    let mut held: Vec<Http1> = (0..300).map(|_| begin()).collect();
    let grpc = Client::Grpc2.call("DeviceService/BatchHeartbeat", None, &vec![0; 2_000_000]);
    for (client, ask) in [(Client::Json1, &large), (Client::Grpc2, &grpc)] {
        let mut last = None;
        let is_refused = wait_until(Duration::from_secs(10), || {
            let outcome = client.outcome(&client.send(server.http(), ask));
            let is_refused = outcome.code == "UNAVAILABLE";
            last = Some(outcome);
            // Those that were refused together left room, maybe for some more.
            held.extend((!is_refused).then(begin));
            is_refused
        });
        assert!(is_refused, "{client:?}: {last:?}");
    }
    let heartbeat = Client::Json1.call("DeviceService/Heartbeat", Some(&key), br#"{"device_id":"small"}"#);
    assert_eq!(Client::Json1.outcome(&Client::Json1.send(server.http(), &heartbeat)).code, "OK");
    let mut grown = 0;
    // The allocator gives back what was refused when it has something to do; bodies that were not refused have 20 s to end.
    let is_bounded = wait_until(Duration::from_secs(15), || {
        assert_eq!(Http1::open(server.http()).ask(&Ask::get("/healthz")).status, 200);
        grown = server.resident_bytes().saturating_sub(before);
        grown < 420 << 20
    });
    assert!(is_bounded, "{} unfinished bodies cost {} MiB", held.len(), grown >> 20);
}

/// Whoever waits for a slow peer must sleep, not look again and again.
#[test]
fn waiting_for_the_rest_of_a_preface_costs_no_processor_time() {
    const FOR: Duration = Duration::from_secs(2);
    let server = Server::start();
    let waiting: Vec<Http1> = (0..1_000)
        .map(|n| {
            let mut connection = Http1::open(server.http());
            connection.send(if n % 2 == 0 { b"P" } else { b"PRI * HTTP/2.0\r\n" });
            connection
        })
        .collect();
    let before = server.cpu_time();
    std::thread::sleep(FOR);
    let used = server.cpu_time() - before;
    assert!(used < FOR / 10, "{} half prefaces used {used:?} of processor time in {FOR:?}", waiting.len());
}

/// "Rapid reset" (CVE-2023-44487) in small: streams opened and dropped before their answer.
#[test]
fn streams_that_are_dropped_at_once_cost_the_server_nothing_lasting() {
    let door = Door::shared();
    door.unharmed("2,000 dropped streams", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let io = tokio::net::TcpStream::connect(door.server.http()).await.expect("the server accepts");
            let (mut sender, connection) =
                hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                    .handshake::<_, http_body_util::Full<Bytes>>(hyper_util::rt::TokioIo::new(io))
                    .await
                    .expect("a handshake");
            tokio::spawn(connection);
            let ask = door.heartbeat(Client::Grpc2);
            for _ in 0..2_000 {
                let mut request = http::Request::post(format!("http://fleetd{}", ask.target));
                for (name, value) in &ask.headers {
                    request = request.header(name, value);
                }
                let request = request.body(Bytes::from(ask.body.clone()).into()).expect("a request");
                // The server may end the connection for this, which is an answer too.
                if sender.ready().await.is_err() {
                    break;
                }
                let answer = sender.send_request(request);
                tokio::select! {
                    biased;
                    _ = answer => {}
                    () = tokio::task::yield_now() => {}
                }
            }
        });
    });
}
