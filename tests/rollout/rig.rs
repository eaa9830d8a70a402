//! A server with a simulated fleet that takes updates, and an operator.
use std::time::{Duration, Instant};

use fleetd_loadtest::{CallError, Client, Fleet, FleetOptions, Protocol, Snapshot, Target};
use fleetd_loadtest::{UpdateFleet, UpdateFleetOptions};
use fleetd_proto::v1::deployment_status::{Reason, State};
use fleetd_proto::v1::{
    update_strategy, Artifact, BinaryMetadata, CreateUpdateRequest, CreateUpdateResponse, DeployUpdateRequest,
    DeployUpdateResponse, DeploymentConfig, DeploymentStatus, Device, GetDeploymentStatusRequest,
    GetDeploymentStatusResponse, GetDeviceRequest, RolloutPolicy,
};
use serde::de::DeserializeOwned;
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::support::{wait_until, Options, Server, ADMIN_KEY};

pub const OLD: &str = "1.0.0";
pub const NEW: &str = "2.0.0";

/// How long any one step of these scenarios may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Rig {
    pub server: Server,
    pub fleet: UpdateFleet,
    runtime: Runtime,
    client: Client,
}

/// What most scenarios have in common; a quarter of a second between heartbeats.
pub fn fleet_options() -> UpdateFleetOptions {
    UpdateFleetOptions {
        interval: Duration::from_millis(250),
        initial_version: Some(OLD.to_owned()),
        ..UpdateFleetOptions::default()
    }
}

/// A rolling update, ten at a time, with the shortest times that a policy allows.
pub fn rolling() -> DeploymentConfig {
    DeploymentConfig {
        strategy: update_strategy::Type::Rolling.into(),
        max_parallel: Some(10),
        policy: Some(policy()),
        ..DeploymentConfig::default()
    }
}

/// A canary of a tenth that is watched for two seconds.
pub fn canary(auto_promote: bool) -> DeploymentConfig {
    DeploymentConfig {
        strategy: update_strategy::Type::Canary.into(),
        canary_percentage: Some(10.0),
        validation_duration: Some(Duration::from_secs(2).into()),
        auto_promote: Some(auto_promote),
        ..rolling()
    }
}

pub fn policy() -> RolloutPolicy {
    RolloutPolicy {
        accept_timeout: Some(Duration::from_secs(10).into()),
        finish_timeout: Some(Duration::from_secs(90).into()),
        vanish_timeout: Some(Duration::from_secs(60).into()),
        confirm_duration: Some(Duration::from_millis(500).into()),
        start_spread: Some(Duration::ZERO.into()),
        offline_grace: Some(Duration::from_secs(60).into()),
        seed: 1,
        ..RolloutPolicy::default()
    }
}

impl Rig {
    /// A server, and so many devices that were all heard, but for those that the options leave offline.
    pub fn start(devices: usize, options: UpdateFleetOptions) -> Self {
        // Twice what the devices keep: on a busy machine none of them shall be taken for late.
        let expected = (options.interval * 2).as_secs().max(1).to_string();
        let server = Server::with(Options::default().unlimited().env("FLEETD_HEARTBEAT_INTERVAL_SECONDS", &expected));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let fleet_options = FleetOptions {
            target: target(&server),
            admin_key: Some(ADMIN_KEY.to_owned()),
            protocol: Protocol::Connect,
            devices,
            id_prefix: Some("sim".to_owned()),
            keys: None,
        };
        let fleet = runtime.block_on(Fleet::register(&fleet_options, |_| ())).expect("the fleet is registered");
        let fleet = UpdateFleet::start(fleet, options).expect("the fleet starts");
        let client = Client::new(&target(&server), Protocol::Connect, Some(ADMIN_KEY)).expect("a client");
        let rig = Self { server, fleet, runtime, client };
        rig.await_fleet("every device was heard", |fleet| fleet.reported + fleet.offline == fleet.devices);
        rig
    }

    /// A device as DeviceService knows it.
    pub fn device(&mut self, device_id: &str) -> Device {
        let request = GetDeviceRequest { device_id: device_id.to_owned(), ..GetDeviceRequest::default() };
        let answer = self.runtime.block_on(self.client.get_device(&request));
        answer.expect("GetDevice").message.device.expect("a device")
    }

    /// Calls an RPC of UpdateService.
    pub fn call<Q, A>(&mut self, rpc: &str, request: &Q) -> Result<A, CallError>
    where
        Q: prost::Message + Serialize,
        A: prost::Message + Default + DeserializeOwned,
    {
        let answer = self.runtime.block_on(self.client.call(&format!("fleetd.v1.UpdateService/{rpc}"), request));
        answer.map(|reply| reply.message)
    }

    /// As [`Self::call`], for what must succeed.
    pub fn ok<Q, A>(&mut self, rpc: &str, request: &Q) -> A
    where
        Q: prost::Message + Serialize,
        A: prost::Message + Default + DeserializeOwned,
    {
        self.call(rpc, request).unwrap_or_else(|error| panic!("{rpc}: {error}; the log:\n{}", self.server.log()))
    }

    /// An update to [`NEW`] for every kind of device.
    pub fn create_update(&mut self, name: &str) -> String {
        self.create_update_named(name, NEW)
    }

    pub fn create_update_named(&mut self, name: &str, version: &str) -> String {
        let artifact = Artifact {
            url: "https://artifacts.example.com/new.bin".to_owned(),
            checksum: format!("sha256:{}", "0".repeat(64)),
            size_bytes: 1 << 20,
            ..Artifact::default()
        };
        self.create_update_of(name, version, artifact)
    }

    /// An update whose file is uploaded, so that devices can really fetch it.
    pub fn create_update_uploaded(&mut self, content: &[u8]) -> String {
        let metadata = BinaryMetadata {
            name: "new.bin".to_owned(),
            version: NEW.to_owned(),
            size_bytes: i64::try_from(content.len()).expect("a length"),
            ..BinaryMetadata::default()
        };
        let target = target(&self.server);
        let mut uploader = Client::new(&target, Protocol::Grpc, Some(ADMIN_KEY)).expect("a client");
        let uploaded = self.runtime.block_on(uploader.upload(metadata, content));
        let uploaded = uploaded.unwrap_or_else(|error| panic!("{error}; the log:\n{}", self.server.log())).message;
        assert_eq!(uploaded.size_bytes.unsigned_abs() as usize, content.len());
        let artifact = Artifact { binary_id: uploaded.binary_id, ..Artifact::default() };
        self.create_update_of("uploaded", NEW, artifact)
    }

    fn create_update_of(&mut self, name: &str, version: &str, artifact: Artifact) -> String {
        let request = CreateUpdateRequest {
            name: name.to_owned(),
            version: version.to_owned(),
            artifacts: vec![artifact],
            ..CreateUpdateRequest::default()
        };
        self.ok::<_, CreateUpdateResponse>("CreateUpdate", &request).update_id
    }

    pub fn try_deploy(&mut self, update_id: &str, config: DeploymentConfig) -> Result<DeployUpdateResponse, CallError> {
        let request = DeployUpdateRequest {
            update_id: update_id.to_owned(),
            device_filter: "id:*".to_owned(),
            config: Some(config),
            ..DeployUpdateRequest::default()
        };
        self.call("DeployUpdate", &request)
    }

    /// Deploys a fresh update to the whole fleet; returns the deployment's id.
    pub fn deploy(&mut self, config: DeploymentConfig) -> String {
        let update_id = self.create_update("scenario");
        let deployed = self.try_deploy(&update_id, config);
        deployed.unwrap_or_else(|error| panic!("{error}; the log:\n{}", self.server.log())).deployment_id
    }

    pub fn status(&mut self, deployment_id: &str) -> DeploymentStatus {
        let request = GetDeploymentStatusRequest { deployment_id: deployment_id.to_owned(), ..Default::default() };
        self.ok::<_, GetDeploymentStatusResponse>("GetDeploymentStatus", &request).status.expect("a status")
    }

    /// Waits until the deployment is as it should be.
    pub fn await_status(
        &mut self,
        deployment_id: &str,
        what: &str,
        is_so: impl Fn(&DeploymentStatus) -> bool,
    ) -> DeploymentStatus {
        let start = Instant::now();
        loop {
            let status = self.status(deployment_id);
            if is_so(&status) {
                return status;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "in {PATIENCE:?} not seen: {what}; it is {status:#?}\n{:#?}\n{}",
                self.fleet.snapshot(),
                self.server.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn await_state(&mut self, deployment_id: &str, state: State) -> DeploymentStatus {
        self.await_status(deployment_id, state.as_str_name(), |status| status.state() == state)
    }

    pub fn await_pause(&mut self, deployment_id: &str, reason: Reason) -> DeploymentStatus {
        self.await_status(deployment_id, reason.as_str_name(), |status| {
            status.state() == State::Paused && status.reason() == reason
        })
    }

    pub fn await_fleet(&self, what: &str, is_so: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let came = wait_until(PATIENCE, || is_so(&self.fleet.snapshot()));
        assert!(came, "in {PATIENCE:?} not seen: {what}; {:#?}\n{}", self.fleet.snapshot(), self.server.log());
        self.fleet.snapshot()
    }

    /// Kills the server, starts it again, and tells the fleet and the operator where it is.
    pub fn kill_and_restart(&mut self) {
        self.server.sigkill();
        self.server.restart();
        self.fleet.set_target(&target(&self.server));
        self.client = Client::new(&target(&self.server), Protocol::Connect, Some(ADMIN_KEY)).expect("a client");
    }

    /// What must hold at the end of every scenario.
    pub fn end(self, max_parallel: u64) -> Snapshot {
        let fleet = self.fleet.stop();
        assert!(fleet.violations.is_empty(), "{:#?}", fleet.violations);
        assert!(fleet.peak_working <= max_parallel, "{} devices at work, {max_parallel} allowed", fleet.peak_working);
        fleet
    }
}

/// How many devices of a deployment are in a state.
pub fn count(status: &DeploymentStatus, state: &str) -> usize {
    status.device_counts.get(state).map_or(0, |count| count.unsigned_abs() as usize)
}

fn target(server: &Server) -> Target {
    Target::parse(&format!("http://{}", server.http())).expect("an address")
}
