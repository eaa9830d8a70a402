//! What questions to the telemetry cost: over 100 million heartbeats of 30 days, each beside the same question in plain SQL
//! on the rows, and beside a bare SELECT over the computed table; and what single heartbeats keep while analysts ask
//! without a pause. Prints the figures of docs/performance.md.
//!
//! ```text
//! cargo bench --bench analytics                                          # 10,000 devices, 100,000,000 rows
//! FLEETD_BENCH_DEVICES=1000 FLEETD_BENCH_ROWS=3000000 cargo bench --bench analytics
//! FLEETD_BENCH_DEVICES=1000 FLEETD_BENCH_ROWS=10000000 cargo bench --bench analytics -- beside   # heartbeats alone
//! ```
//!
//! The rows are made inside the embedded ClickHouse, and their computed tables by the server's own statements; every
//! question then goes through the real server. The three ways take turns.
#[path = "support/mod.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::{Duration, Instant};

use fleetd::telemetry::clickhouse::{ClickHouse, ClickHouseConfig};
use fleetd::telemetry::journal::JournalId;
use fleetd::telemetry::rollup;
use fleetd_loadtest::{Client, Code, Fleet, FleetOptions, Load, Protocol, Target};
use fleetd_proto::v1::{
    GetDeviceHealthRequest, GetDeviceHealthResponse, GetMetricsRequest, GetMetricsResponse, HealthCheckType,
};
use fleetd_proto::Timestamp;
use support::{fill_registry, Server, ADMIN_KEY};
use uuid::Uuid;

const GET_METRICS: &str = "fleetd.v1.AnalyticsService/GetMetrics";
const DAYS: u64 = 30;
const DAY: i64 = 86_400;
/// Askings of each question in each way; one before them warms up and does not count.
const TIMES: usize = 7;
/// The journal that the rows are said to have come through.
const JOURNAL: Uuid = Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0001);

/// Rounds with and without analysts; one before them warms up and does not count.
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(6);
const ANALYSTS: usize = 4;
const SPEAKERS: usize = 10_000;
const CONNECTIONS: usize = 64;

fn main() {
    let devices = std::env::var("FLEETD_BENCH_DEVICES").map_or(10_000, |n| n.parse().expect("a number of devices"));
    let rows = std::env::var("FLEETD_BENCH_ROWS").map_or(100_000_000, |n| n.parse().expect("a number of rows"));
    let only_beside = std::env::args().any(|argument| argument == "beside");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(fill_registry(folder.path(), devices));
    // Thirty days are all of the default, and the first would go while the benchmark looks at it.
    std::env::set_var("FLEETD_RETENTION_DAYS", "0");
    let end = fleetd::clock::UnixMillis::now().as_millis() / 1_000 / DAY * DAY;
    let plan = Plan { devices: devices as u64, rows_a_day: rows / DAYS / devices as u64, end };
    {
        let server = Server::start(folder.path());
        runtime.block_on(plan.fill(&server));
        if !only_beside {
            runtime.block_on(plan.compute(&server));
        }
    }
    // A start reads what is covered.
    let server = Server::start(folder.path());
    runtime.block_on(async {
        if !only_beside {
            plan.ask(&server).await;
        }
        beside(&server, &plan).await;
    });
}

/// The fleet of the benchmark.
struct Plan {
    devices: u64,
    /// Of one device.
    rows_a_day: u64,
    /// End of the last day, in seconds since 1970.
    end: i64,
}

/// A question in its three ways.
struct Question {
    name: &'static str,
    request: Request,
    on_rows: String,
    on_rollup: String,
}

enum Request {
    Metrics(GetMetricsRequest),
    Health(GetDeviceHealthRequest),
}

impl Plan {
    fn begin(&self) -> i64 {
        self.end - DAYS as i64 * DAY
    }

    async fn fill(&self, server: &Server) {
        let clickhouse = engine(server);
        let rows = self.rows_a_day * self.devices;
        let started = Instant::now();
        for day in 0..DAYS {
            let sql = format!(
                "INSERT INTO heartbeats (journal_id, seq, row_index, received_at, device_id, timestamp, state, \
                 uptime_seconds, restart_count, version, device_type, cpu_percent, memory_used_mb, disk_used_gb, \
                 memory_total_mb, disk_total_gb, temperature_celsius, network_rx_bytes, network_tx_bytes, metrics) \
                 WITH intDiv(number, {each}) AS device, number % {each} AS turn, \
                 {begin} * 1000 + intDiv(turn * 86400000, {each}) + intHash32(device) % 1000 AS at, \
                 sin(6.283185307 * turn / {each}) AS daily, (intHash64(number) % 1000) / 1000 AS noise \
                 SELECT toUUID('{JOURNAL}'), {first} + turn * {devices} + device + 1, 0, \
                 fromUnixTimestamp64Milli(toInt64(at), 'UTC'), concat('device-', leftPad(toString(device), 7, '0')), \
                 fromUnixTimestamp64Milli(toInt64(at), 'UTC'), 'ONLINE', intDiv(at, 1000) - {begin} + 86400 * {day}, 0, \
                 ['1.0.0', '1.1.0', '2.0.0'][1 + device % 7 % 3], ['raspberry-pi', 'esp32', 'gateway'][1 + device % 3], \
                 45 + 20 * daily + 15 * noise, 1024 + toUInt64(512 * noise), 10 + {day} / 10, 4096, 32, \
                 50 + 8 * daily + 2 * noise, turn * 100000, turn * 20000, map('queue.depth', floor(10 * noise)) \
                 FROM numbers({rows}) SETTINGS max_insert_threads = 2, max_insert_block_size = 1048576",
                each = self.rows_a_day,
                begin = self.begin() + day as i64 * DAY,
                first = day * rows,
                devices = self.devices,
            );
            clickhouse.execute("make a day", clickhouse.query(&sql)).await.expect("a day of rows");
        }
        let took = started.elapsed().as_secs_f64();
        println!("{} rows made in {took:.0} s", DAYS * rows);
    }

    async fn compute(&self, server: &Server) {
        let clickhouse = engine(server);
        let rows = self.rows_a_day * self.devices;
        let started = Instant::now();
        let all = rollup::Positions { committed: DAYS * rows, audited: 0 };
        let parts = rollup::Parts {
            journal: JournalId(JOURNAL),
            positions: Box::new(move || all),
            clickhouse,
            coverage: rollup::Coverage::default(),
        };
        let builder = rollup::start(parts, rollup::RollupOptions::default()).expect("a thread for the builder");
        builder.build().await.expect("the computed tables");
        builder.shutdown(Duration::from_secs(10)).await;
        println!("computed tables built in {:.0} s", started.elapsed().as_secs_f64());
    }

    fn questions(&self) -> [Question; 4] {
        let (begin, end) = (self.begin(), self.end);
        let last_day = end - DAY;
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let metrics = |start, aggregation: &str, interval| GetMetricsRequest {
            start_time: at(start),
            end_time: at(end),
            metric_names: vec!["cpu_usage".to_owned()],
            aggregation: aggregation.to_owned(),
            interval: Some(Duration::from_secs(interval).into()),
            ..GetMetricsRequest::default()
        };
        let span = |start| format!("timestamp >= fromUnixTimestamp({start}) AND timestamp < fromUnixTimestamp({end})");
        let whole = |start| format!("time >= fromUnixTimestamp({start}) AND time < fromUnixTimestamp({end})");
        let device = support::device_id(self.devices as usize / 2);
        [
            Question {
                name: "24 hours by 1 hour, all devices, AVG",
                request: Request::Metrics(metrics(last_day, "AVG", 3_600)),
                on_rows: format!(
                    "SELECT toStartOfHour(timestamp) AS hour, avg(cpu_percent) FROM heartbeats WHERE {} GROUP BY hour",
                    span(last_day)
                ),
                on_rollup: format!(
                    "SELECT time, sum(sum) / sum(count) FROM rollup_1h FINAL WHERE metric = 'cpu_usage' AND {} \
                     GROUP BY time",
                    whole(last_day)
                ),
            },
            Question {
                name: "30 days by 6 hours, one device, AVG",
                request: Request::Metrics(GetMetricsRequest {
                    labels: HashMap::from([("device_id".to_owned(), device.clone())]).into_iter().collect(),
                    ..metrics(begin, "AVG", 21_600)
                }),
                on_rows: format!(
                    "SELECT toStartOfInterval(timestamp, INTERVAL 6 HOUR) AS part, avg(cpu_percent) FROM heartbeats \
                     WHERE device_id = '{device}' AND {} GROUP BY part",
                    span(begin)
                ),
                on_rollup: format!(
                    "SELECT toStartOfInterval(time, INTERVAL 6 HOUR) AS part, sum(cpu_usage.sum) / sum(cpu_usage.count) \
                     FROM device_1h FINAL WHERE device_id = '{device}' AND {} GROUP BY part",
                    whole(begin)
                ),
            },
            Question {
                name: "30 days by 1 day, by type, P99",
                request: Request::Metrics(GetMetricsRequest {
                    group_by: vec!["device_type".to_owned()],
                    ..metrics(begin, "P99", DAY as u64)
                }),
                on_rows: format!(
                    "SELECT device_type, toDate(timestamp) AS day, quantileDD(0.01, 0.99)(cpu_percent) FROM heartbeats \
                     WHERE {} GROUP BY device_type, day",
                    span(begin)
                ),
                on_rollup: format!(
                    "SELECT device_type, toDate(time) AS day, quantilesDDMerge(0.01, 0.5, 0.9, 0.95, 0.99)(sketch)[4] \
                     FROM rollup_1h FINAL WHERE metric = 'cpu_usage' AND {} GROUP BY device_type, day",
                    whole(begin)
                ),
            },
            Question {
                name: "health of all devices, COMPREHENSIVE",
                request: Request::Health(GetDeviceHealthRequest {
                    device_filter: "id:*".to_owned(),
                    check_type: HealthCheckType::Comprehensive as i32,
                    max_devices: 10_000,
                    ..GetDeviceHealthRequest::default()
                }),
                on_rows: format!(
                    "SELECT device_id, count(), max(gap) FROM (SELECT device_id, timestamp - lagInFrame(timestamp) OVER \
                     (PARTITION BY device_id ORDER BY timestamp) AS gap FROM heartbeats WHERE {}) GROUP BY device_id",
                    span(last_day)
                ),
                on_rollup: format!(
                    "SELECT device_id, sum(heartbeats) FROM device_1h FINAL WHERE {} GROUP BY device_id",
                    whole(last_day)
                ),
            },
        ]
    }

    async fn ask(&self, server: &Server) {
        let clickhouse = engine(server);
        let mut client = client(server);
        println!("\n{:<40} {:>10} {:>14} {:>14}", "median of milliseconds", "the RPC", "SQL on rows", "bare SELECT");
        for question in self.questions() {
            let mut times = [const { Vec::new() }; 3];
            for round in 0..=TIMES {
                let asked = Instant::now();
                question.request.ask(&mut client).await;
                let rpc = asked.elapsed();
                let asked = Instant::now();
                select(&clickhouse, &question.on_rows).await;
                let on_rows = asked.elapsed();
                let asked = Instant::now();
                select(&clickhouse, &question.on_rollup).await;
                if round > 0 {
                    for (times, time) in times.iter_mut().zip([rpc, on_rows, asked.elapsed()]) {
                        times.push(time.as_secs_f64() * 1e3);
                    }
                }
            }
            let [rpc, rows, bare] = times.map(|mut times| {
                times.sort_unstable_by(f64::total_cmp);
                times[times.len() / 2]
            });
            println!("{:<40} {rpc:>10.1} {rows:>14.1} {bare:>14.1}", question.name);
        }
    }
}

impl Request {
    /// Something must come back.
    async fn ask(&self, client: &mut Client) {
        match self {
            Self::Metrics(request) => {
                let answer = client.call::<_, GetMetricsResponse>(GET_METRICS, request);
                let answer = answer.await.expect("an answer").message;
                assert!(answer.series.iter().any(|series| !series.points.is_empty()), "{answer:?}");
            }
            Self::Health(request) => {
                let rpc = "fleetd.v1.AnalyticsService/GetDeviceHealth";
                let answer = client.call::<_, GetDeviceHealthResponse>(rpc, request).await.expect("an answer").message;
                assert!(!answer.device_health.is_empty());
            }
        }
    }
}

/// Single heartbeats without and with analysts who ask about the rows, over and over.
async fn beside(server: &Server, plan: &Plan) {
    let options = FleetOptions {
        target: Target::parse(&server.url).expect("the server's address"),
        admin_key: Some(ADMIN_KEY.to_owned()),
        protocol: Protocol::Connect,
        devices: SPEAKERS,
        id_prefix: None,
        keys: None,
    };
    let mut fleet = Fleet::register(&options, |_| ()).await.expect("a registered fleet");
    let load =
        Load { connections: CONNECTIONS, warmup: Duration::from_secs(1), duration: Some(ROUND), ..Load::default() };
    // By 90 s, which no computed table serves.
    let begin = plan.end - 7 * DAY;
    let request = GetMetricsRequest {
        start_time: Some(Timestamp { seconds: begin, nanos: 0 }),
        end_time: Some(Timestamp { seconds: plan.end, nanos: 0 }),
        metric_names: vec!["cpu_usage".to_owned()],
        aggregation: "P99".to_owned(),
        interval: Some(Duration::from_secs(90).into()),
        ..GetMetricsRequest::default()
    };
    println!(
        "\n{:<34} {:>14} {:>8} {:>8} {:>10} {:>8}",
        "single heartbeats, Connect", "heartbeats/s", "p99 ms", "answers", "median s", "refused"
    );
    let mut rates = [const { Vec::new() }; 2];
    for round in 0..=ROUNDS {
        for (way, rates) in rates.iter_mut().enumerate() {
            let run = fleet.start(&load).expect("a load");
            let asked = Asked::default();
            let analysts = futures_util::future::join_all((0..ANALYSTS * way).map(|_| asked.ask(server, &request)));
            let analysts = async {
                analysts.await;
                std::future::pending::<()>().await
            };
            let finished = tokio::select! {
                finished = run.finish() => finished.expect("a report"),
                () = analysts => unreachable!("analysts do not stop"),
            };
            let report;
            (fleet, report) = finished;
            if round > 0 {
                println!(
                    "{:<34} {:>14.0} {:>8.2} {}",
                    ["alone", "beside four analysts"][way],
                    report.heartbeats_per_second,
                    report.p99_ms,
                    asked
                );
                rates.push(report.heartbeats_per_second);
            }
        }
    }
    let [alone, beside] = rates.map(|mut rates| {
        rates.sort_unstable_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    println!("beside analysts: {:.0} % of alone (to keep: 80 %)", 100.0 * beside / alone);
}

/// What analysts got.
#[derive(Default)]
struct Asked {
    /// Seconds of each answer.
    answers: RefCell<Vec<f64>>,
    refused: Cell<usize>,
}

impl Asked {
    /// Asks over and over. Who has waited too long for a turn is told to come again, and does.
    async fn ask(&self, server: &Server, request: &GetMetricsRequest) {
        let mut client = client(server);
        loop {
            let begun = Instant::now();
            match client.call::<_, GetMetricsResponse>(GET_METRICS, request).await {
                Ok(_) => self.answers.borrow_mut().push(begun.elapsed().as_secs_f64()),
                Err(error) if error.code() == Some(Code::UNAVAILABLE) => self.refused.set(self.refused.get() + 1),
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut times = self.answers.borrow().clone();
        times.sort_unstable_by(f64::total_cmp);
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        write!(f, "{:>8} {median:>10.2} {:>8}", times.len(), self.refused.get())
    }
}

fn client(server: &Server) -> Client {
    let target = Target::parse(&server.url).expect("the server's address");
    Client::new(&target, Protocol::Connect, Some(ADMIN_KEY)).expect("a client")
}

fn engine(server: &Server) -> ClickHouse {
    let config =
        ClickHouseConfig { query_timeout: Duration::from_secs(600), ..ClickHouseConfig::new(&server.clickhouse_url) };
    ClickHouse::new(&config)
}

/// One thread, as questions of the server have.
async fn select(clickhouse: &ClickHouse, sql: &str) {
    let query = clickhouse.query(sql).with_setting("max_threads", "1");
    let mut answer = query.fetch_bytes("Native").expect("a query");
    answer.collect().await.expect("an answer");
}
