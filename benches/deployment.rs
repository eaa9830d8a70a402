//! What a deployment over a million devices costs the real server: its plan, its start, and the heartbeats of devices
//! beside it, with and without it in turn. Prints the figures of docs/performance.md.
//!
//! ```text
//! cargo bench --bench deployment                  # 1,000,000 devices
//! FLEETD_BENCH_DEVICES=100000 cargo bench --bench deployment
//! ```
#[path = "support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use fleetd_loadtest::{Client, Fleet, FleetOptions, Load, Protocol, Target};
use fleetd_proto::v1::{
    update_strategy, Artifact, BatchHeartbeatRequest, BatchHeartbeatResponse, CancelDeploymentRequest,
    CancelDeploymentResponse, CreateUpdateRequest, CreateUpdateResponse, DeployUpdateRequest, DeployUpdateResponse,
    DeploymentConfig, PlanDeploymentRequest, PlanDeploymentResponse, RolloutPolicy,
};
use serde::de::DeserializeOwned;
use serde::Serialize;
use support::{fill_registry, heartbeat, Server, ADMIN_KEY};

/// Devices whose heartbeats are counted, each offered the update when its turn comes.
const SPEAKERS: usize = 10_000;
const CONNECTIONS: usize = 64;
const ROUND: Duration = Duration::from_secs(6);
/// Rounds of each way; one before them warms up and does not count.
const ROUNDS: usize = 3;
const PLANS: usize = 5;
/// Devices at work at once.
const MAX_PARALLEL: i32 = 1_000;
/// Heartbeats in a call that brings devices to life.
const BATCH: usize = 5_000;

fn main() {
    let devices = support::devices();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(fill_registry(folder.path(), devices));
    let server = Server::start(folder.path());
    runtime.block_on(run(&server, devices));
}

struct Operator(Client);

impl Operator {
    async fn call<Q, A>(&mut self, rpc: &str, request: &Q) -> A
    where
        Q: prost::Message + Serialize,
        A: prost::Message + Default + DeserializeOwned,
    {
        self.0.call(&format!("fleetd.v1.{rpc}"), request).await.unwrap_or_else(|error| panic!("{rpc}: {error}")).message
    }

    async fn deploy(&mut self, update_id: &str) -> DeployUpdateResponse {
        let request = DeployUpdateRequest {
            update_id: update_id.to_owned(),
            device_filter: "id:*".to_owned(),
            config: Some(config()),
            ..DeployUpdateRequest::default()
        };
        self.call("UpdateService/DeployUpdate", &request).await
    }

    async fn cancel(&mut self, deployment_id: String) {
        let request = CancelDeploymentRequest { deployment_id, reason: "the round is over".to_owned() };
        self.call::<_, CancelDeploymentResponse>("UpdateService/CancelDeployment", &request).await;
    }
}

fn config() -> DeploymentConfig {
    DeploymentConfig {
        strategy: update_strategy::Type::Rolling.into(),
        max_parallel: Some(MAX_PARALLEL),
        policy: Some(RolloutPolicy {
            // Nobody takes the offers, and none lapses while the round goes on.
            accept_timeout: Some(Duration::from_secs(3_600).into()),
            start_spread: Some(Duration::ZERO.into()),
            ..RolloutPolicy::default()
        }),
        ..DeploymentConfig::default()
    }
}

async fn run(server: &Server, devices: usize) {
    let target = Target::parse(&server.url).expect("the server's address");
    let client = Client::new(&target, Protocol::Connect, Some(ADMIN_KEY)).expect("a client");
    let mut operator = Operator(client);
    for first in (0..devices).step_by(BATCH) {
        let heartbeats = (first..devices.min(first + BATCH)).map(heartbeat).collect();
        let request = BatchHeartbeatRequest { heartbeats };
        let answer: BatchHeartbeatResponse = operator.call("DeviceService/BatchHeartbeat", &request).await;
        assert_eq!(answer.acknowledged_count as usize, request.heartbeats.len());
    }
    let options = FleetOptions {
        target,
        admin_key: Some(ADMIN_KEY.to_owned()),
        protocol: Protocol::Connect,
        devices: SPEAKERS,
        id_prefix: None,
        keys: None,
    };
    let mut fleet = Fleet::register(&options, |_| ()).await.expect("a registered fleet");
    let update = CreateUpdateRequest {
        name: "bench".to_owned(),
        version: "2.0.0".to_owned(),
        artifacts: vec![Artifact {
            url: "https://updates.example/f".to_owned(),
            checksum: format!("sha256:{}", "a".repeat(64)),
            ..Artifact::default()
        }],
        ..CreateUpdateRequest::default()
    };
    let update: CreateUpdateResponse = operator.call("UpdateService/CreateUpdate", &update).await;
    plans(&mut operator, &update.update_id).await;

    println!("\n{:<34} {:>14} {:>10}", "single heartbeats, Connect", "heartbeats/s", "p99 ms");
    let load =
        Load { connections: CONNECTIONS, warmup: Duration::from_secs(1), duration: Some(ROUND), ..Load::default() };
    let mut rates = [0.0; 2];
    for round in 0..=ROUNDS {
        for (is_deploying, name) in [(false, "no deployment"), (true, "a deployment over all devices")] {
            let mut deployment = None;
            if is_deploying {
                let started = Instant::now();
                let answer = operator.deploy(&update.update_id).await;
                let took = started.elapsed().as_secs_f64();
                println!("{} devices are in a deployment after {took:.1} s", answer.target_device_count);
                deployment = Some(answer.deployment_id);
            }
            let (back, report) = fleet.start(&load).expect("generator threads").finish().await.expect("a report");
            fleet = back;
            assert!(report.rejected.is_empty() && report.errors == 0, "{report:?}");
            if let Some(deployment) = deployment {
                operator.cancel(deployment).await;
            }
            if round > 0 {
                rates[usize::from(is_deploying)] += report.heartbeats_per_second / ROUNDS as f64;
                println!("{name:<34} {:>14.0} {:>10.2}", report.heartbeats_per_second, report.p99_ms);
            }
        }
    }
    println!("with a deployment: {:.1} % of the heartbeats without (to reach: 95)", 100.0 * rates[1] / rates[0]);
    println!("resident memory of the server: {:.0} MiB", server.resident_mib());
}

async fn plans(operator: &mut Operator, update_id: &str) {
    let request = PlanDeploymentRequest {
        update_id: update_id.to_owned(),
        device_filter: "id:*".to_owned(),
        config: Some(DeploymentConfig {
            strategy: update_strategy::Type::Canary.into(),
            canary_percentage: Some(1.0),
            ..DeploymentConfig::default()
        }),
        ..PlanDeploymentRequest::default()
    };
    let mut times = Vec::new();
    for _ in 0..PLANS {
        let started = Instant::now();
        let plan: PlanDeploymentResponse = operator.call("UpdateService/PlanDeployment", &request).await;
        times.push(started.elapsed().as_secs_f64() * 1_000.0);
        assert_eq!(plan.waves.len(), 2);
    }
    times.sort_unstable_by(f64::total_cmp);
    println!(
        "PlanDeployment, canary of 1 %: median {:.0} ms, slowest {:.0} ms (to reach: 1,000)",
        times[times.len() / 2],
        times[times.len() - 1]
    );
}
