//! What the scenario asks of the server as an operator would.
use std::time::{Duration, Instant};

use fleetd_loadtest::{CallError, Client, Code, LoadError, Protocol};
use fleetd_proto::v1::{
    rollout_policy, update_strategy, Artifact, BinaryMetadata, CancelDeploymentRequest, CancelDeploymentResponse,
    CreateUpdateRequest, CreateUpdateResponse, DeployUpdateRequest, DeployUpdateResponse, DeploymentConfig,
    DeploymentStatus, GetDeploymentStatusRequest, GetDeploymentStatusResponse, RolloutPolicy, WaveSpec,
};

use super::args::RolloutArgs;
use super::{ARTIFACT_BYTES, ARTIFACT_URL};

/// How long the status may be unreadable: a server's restart takes seconds.
const STATUS_PATIENCE: Duration = Duration::from_secs(60);

/// Wait between two tries to read it.
const STATUS_BACKOFF: Duration = Duration::from_millis(250);

/// The shortest that the contract allows: simulated devices are done in seconds.
const VANISH_TIMEOUT: Duration = Duration::from_secs(60);
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);
const FINISH_TIMEOUT: Duration = Duration::from_secs(180);

pub(super) struct Operator {
    client: Client,
    /// For the upload, which is a stream.
    uploader: Client,
}

/// The update that is rolled out.
pub(super) struct Created {
    pub(super) id: String,
    pub(super) version: String,
}

impl Operator {
    pub(super) fn new(args: &RolloutArgs) -> Result<Self, LoadError> {
        let client = |protocol| Client::new(&args.url, protocol, args.key.as_deref());
        Ok(Self { client: client(Protocol::Connect)?, uploader: client(Protocol::Grpc)? })
    }

    /// An update whose version no other run has.
    pub(super) async fn create_update(&mut self, args: &RolloutArgs) -> Result<Created, LoadError> {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let version = format!("2.0.{}-sim", since.as_millis());
        let artifact = match args.upload {
            Some(bytes) => self.upload(&version, bytes).await?,
            None => Artifact {
                url: ARTIFACT_URL.to_owned(),
                checksum: format!("sha256:{:064x}", since.as_nanos()),
                size_bytes: ARTIFACT_BYTES,
                ..Artifact::default()
            },
        };
        let request = CreateUpdateRequest {
            name: "simulated-update".to_owned(),
            version: version.clone(),
            description: "made by fleetd-loadtest rollout for its simulated devices".to_owned(),
            artifacts: vec![artifact],
            ..CreateUpdateRequest::default()
        };
        let created = self.client.call::<_, CreateUpdateResponse>("fleetd.v1.UpdateService/CreateUpdate", &request);
        let created = created.await.map_err(|source| LoadError::Call { operation: "create the update", source })?;
        Ok(Created { id: created.message.update_id, version })
    }

    async fn upload(&mut self, version: &str, bytes: usize) -> Result<Artifact, LoadError> {
        // Repeats only after 251 bytes, and differs from version to version.
        let salt = version.bytes().fold(0_u8, u8::wrapping_add);
        let content = Vec::from_iter((0..bytes).map(|at| (at % 251) as u8 ^ salt));
        let metadata = BinaryMetadata {
            name: format!("simulated-{version}.bin"),
            version: version.to_owned(),
            size_bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
            ..BinaryMetadata::default()
        };
        let uploaded = self.uploader.upload(metadata, &content).await;
        let uploaded = uploaded.map_err(|source| LoadError::Call { operation: "take the upload", source })?;
        Ok(Artifact { binary_id: uploaded.message.binary_id, ..Artifact::default() })
    }

    pub(super) async fn deploy(
        &mut self,
        args: &RolloutArgs,
        update_id: &str,
        device_ids: Vec<String>,
    ) -> Result<String, LoadError> {
        let request = DeployUpdateRequest {
            update_id: update_id.to_owned(),
            device_ids,
            config: Some(config(args)),
            // A repeat after a lost answer starts nothing twice.
            request_id: format!("rollout-{update_id}"),
            ..DeployUpdateRequest::default()
        };
        let deployed = self.client.call::<_, DeployUpdateResponse>("fleetd.v1.UpdateService/DeployUpdate", &request);
        let deployed = deployed.await.map_err(|source| LoadError::Call { operation: "deploy the update", source })?;
        Ok(deployed.message.deployment_id)
    }

    /// Reads how far the deployment is, through a restart of the server if need be.
    pub(super) async fn status(&mut self, deployment_id: &str) -> Result<DeploymentStatus, LoadError> {
        let request = GetDeploymentStatusRequest { deployment_id: deployment_id.to_owned(), ..Default::default() };
        let deadline = Instant::now() + STATUS_PATIENCE;
        loop {
            let method = "fleetd.v1.UpdateService/GetDeploymentStatus";
            let asked = self.client.call::<_, GetDeploymentStatusResponse>(method, &request).await;
            let source = match asked {
                Ok(reply) => return Ok(reply.message.status.unwrap_or_default()),
                Err(error) => error,
            };
            let is_passing = match &source {
                CallError::Broken { .. } => true,
                other => matches!(other.code(), Some(Code::UNAVAILABLE | Code::RESOURCE_EXHAUSTED)),
            };
            if !is_passing || Instant::now() > deadline {
                return Err(LoadError::Call { operation: "tell how far the deployment is", source });
            }
            tokio::time::sleep(STATUS_BACKOFF).await;
        }
    }

    pub(super) async fn cancel(&mut self, deployment_id: &str) -> Result<DeploymentStatus, LoadError> {
        let request = CancelDeploymentRequest {
            deployment_id: deployment_id.to_owned(),
            reason: "the simulated fleet was stopped".to_owned(),
        };
        let method = "fleetd.v1.UpdateService/CancelDeployment";
        let cancelled = self.client.call::<_, CancelDeploymentResponse>(method, &request).await;
        let cancelled = cancelled.map_err(|source| LoadError::Call { operation: "cancel the deployment", source })?;
        Ok(cancelled.message.status.unwrap_or_default())
    }
}

fn config(args: &RolloutArgs) -> DeploymentConfig {
    let wave = |size: &super::args::WaveArg| WaveSpec {
        size: Some((*size).into()),
        soak_duration: Some(args.validation.into()),
        ..WaveSpec::default()
    };
    DeploymentConfig {
        strategy: update_strategy::Type::from(args.strategy).into(),
        canary_percentage: args.canary_percentage,
        validation_duration: Some(args.validation.into()),
        auto_promote: Some(args.auto_promote),
        max_parallel: Some(i32::try_from(args.max_parallel).unwrap_or(i32::MAX)),
        max_failure_percentage: args.max_failure,
        waves: args.waves.iter().map(wave).collect(),
        policy: Some(RolloutPolicy {
            accept_timeout: Some(ACCEPT_TIMEOUT.into()),
            finish_timeout: Some(FINISH_TIMEOUT.into()),
            vanish_timeout: Some(VANISH_TIMEOUT.into()),
            confirm_duration: Some((args.interval * 2).into()),
            retry_backoff: Some(Duration::from_secs(5).into()),
            max_attempts: Some(args.max_attempts),
            on_breach: rollout_policy::OnBreach::from(args.on_breach).into(),
            start_spread: Some(Duration::from_secs(2).into()),
            offline_grace: Some(args.offline_grace.into()),
            ..RolloutPolicy::default()
        }),
        ..DeploymentConfig::default()
    }
}
