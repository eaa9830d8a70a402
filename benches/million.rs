//! A million devices: registered, then live. Prints the figures of docs/performance.md: how long the server takes to
//! start with them in its registry, what it weighs then, and what it weighs once each has sent a heartbeat.
//!
//! ```text
//! cargo bench --bench million                 # 1,000,000 devices
//! FLEETD_BENCH_DEVICES=100000 cargo bench --bench million
//! ```
//!
//! The registry is filled directly; everything after that is the real server, as a process of its own.
#[path = "support/mod.rs"]
mod support;

use std::time::Instant;

use fleetd_loadtest::{Client, Protocol, Target};
use fleetd_proto::v1::ListDevicesRequest;

use support::{fill_registry, heartbeat, Server, ADMIN_KEY, LISTS};

/// Connections that send the first heartbeats; enough to keep two cores busy.
const CONNECTIONS: usize = 32;
/// Lists of each case that are timed.
const TIMES: usize = 100;

fn main() {
    let devices = support::devices();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");

    let started = Instant::now();
    runtime.block_on(fill_registry(folder.path(), devices));
    println!("{devices} devices put into the registry in {:.1} s", started.elapsed().as_secs_f64());

    let started = Instant::now();
    let server = Server::start(folder.path());
    println!("start to ready                     {:8.2} s", started.elapsed().as_secs_f64());
    let registered = server.resident_mib();
    println!("resident, all registered           {registered:8.0} MiB");

    let started = Instant::now();
    runtime.block_on(heartbeat_each(&server.url, devices));
    let took = started.elapsed().as_secs_f64();
    println!("one heartbeat each                 {:8.1} s ({:.0}/s)", took, devices as f64 / took);
    let live = server.resident_mib();
    println!("resident, all live                 {live:8.0} MiB");
    let bytes = |mib: f64| mib * 1024.0 * 1024.0 / devices as f64;
    println!(
        "a device, all that the server holds divided by all: registered {:.0} bytes, live {:.0} bytes",
        bytes(registered),
        bytes(live)
    );
    runtime.block_on(lists(&server.url));
}

async fn heartbeat_each(url: &str, devices: usize) {
    let target = Target::parse(url).expect("the server's address");
    let lanes = (0..CONNECTIONS).map(|lane| {
        let mut client = Client::new(&target, Protocol::Connect, Some(ADMIN_KEY)).expect("a client");
        async move {
            for number in (lane..devices).step_by(CONNECTIONS) {
                let reply = client.heartbeat(&heartbeat(number)).await.expect("an answer");
                assert!(reply.message.acknowledged);
            }
        }
    });
    futures_util::future::join_all(lanes).await;
}

/// Lists through the front door: filter, order, and what a page of 100 takes.
async fn lists(url: &str) {
    let target = Target::parse(url).expect("the server's address");
    let mut client = Client::new(&target, Protocol::Connect, Some(ADMIN_KEY)).expect("a client");
    for (filter, order_by) in LISTS {
        let mut page_token = String::new();
        let mut times = Vec::with_capacity(TIMES);
        for _ in 0..TIMES {
            let (filter, order_by) = (filter.to_owned(), order_by.to_owned());
            let request = ListDevicesRequest { page_size: 100, page_token, filter, order_by };
            let asked = Instant::now();
            let page = client.list_devices(&request).await.expect("a page").message;
            times.push(asked.elapsed());
            page_token = page.next_page_token;
        }
        times.sort_unstable();
        let millis = |at: usize| times[at].as_secs_f64() * 1e3;
        println!("list {filter} | {order_by}: p50 {:.1} ms, p99 {:.1} ms", millis(TIMES / 2), millis(TIMES * 99 / 100));
    }
}
