//! From what an operator asked for to a plan: which devices, in which waves, and who is left out.
//!
//! The fleet index is asked on its own threads; nothing is claimed or started here.
use std::collections::HashMap;
use std::sync::Arc;

use fleetd_proto::v1::{DeploymentConfig, PlanDeploymentResponse, Update};

use super::release::Release;
use super::{update_of, Deployments};
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::error::{ApiError, ErrorCode};
use crate::fleet::{Survey, SurveyRequest};
use crate::ids::DeviceId;
use crate::query::{Filter, QueryError};
use crate::rollout::{DeviceState, Exclusion, InitialDevice, InitialWave, Place, Plan, Policy, Targets as _, Wave};

/// Versions that a fleet runs for which a way back is looked up. Fleets run a handful; one that runs thousands is one whose
/// devices make them up, and goes back by its own means.
const MAX_WAYS_BACK: usize = 256;

/// Which devices an operator wants, and how.
pub struct Wish {
    pub device_ids: Vec<DeviceId>,
    /// In the query language; empty adds nobody.
    pub device_filter: String,
    pub config: DeploymentConfig,
}

/// A wish that was looked at.
pub(super) struct Planned {
    pub release: Arc<Release>,
    pub policy: Policy,
    pub survey: Survey,
    pub plan: Plan,
}

impl Deployments {
    /// What a deployment would do.
    ///
    /// # Errors
    /// As [`Self::deploy`], but for a target without devices, which is a plan too.
    pub async fn plan(&self, update_id: &str, wish: Wish) -> Result<PlanDeploymentResponse, ApiError> {
        let planned = self.planned(update_id, &wish).await?;
        let mut response = planned.plan.to_response(&planned.policy, &planned.survey);
        response.warnings.extend(planned.policy.timing_warnings(self.0.directory.heartbeat_interval()));
        Ok(response)
    }

    pub(super) async fn planned(&self, update_id: &str, wish: &Wish) -> Result<Planned, ApiError> {
        let update = self.update(update_id).await?;
        let policy = self.policy(&update.strategy.clone().unwrap_or_default(), &wish.config)?;
        if wish.device_ids.is_empty() && wish.device_filter.trim().is_empty() {
            return Err(ApiError::invalid_argument(
                "neither device_ids nor device_filter is set; the filter id:* means all devices",
            ));
        }
        let now = UnixMillis::now();
        let unreadable = |field: &str, error: QueryError| ApiError::invalid_argument(format!("{field}: {error}"));
        let filter = match wish.device_filter.trim() {
            "" => None,
            text => Some(Filter::parse(text, now).map_err(|error| unreadable("device_filter", error))?),
        };
        let mut entries = Vec::with_capacity(wish.device_ids.len());
        for id in &wish.device_ids {
            let entry = self.0.directory.find(id.as_str());
            entries.push(entry.ok_or_else(|| {
                ApiError::not_found(format!("device {id} is not registered; RegisterDevice makes it known"))
            })?);
        }
        let supersede = policy.supersede;
        let is_taken = move |entry: &DeviceEntry| match supersede {
            true => entry.assignment.is_working(),
            false => entry.assignment.is_claimed(),
        };
        let request = SurveyRequest::of(&policy, filter, entries, now, is_taken)
            .map_err(|error| unreadable("config.waves", error))?;
        let (wanted, version, artifacts) = (policy.clone(), update.version.clone(), update.artifacts.clone());
        // On the thread of the query: a million devices take a while.
        let make = move |survey: Survey| {
            let plan = Plan::of(&wanted, &version, &artifacts, &survey);
            (survey, plan)
        };
        let (survey, plan) = self.0.queries.survey(request, make).await?;
        let ways_back = self.ways_back(versions_of(&survey, &plan)).await?;
        let release = Arc::new(Release::new(update, self.0.urls.clone(), ways_back));
        Ok(Planned { release, policy, survey, plan })
    }

    /// The updates that brought these versions, where there are any.
    pub(super) async fn ways_back(&self, versions: Vec<Arc<str>>) -> Result<HashMap<String, Update>, ApiError> {
        let mut ways_back = HashMap::new();
        for version in versions.into_iter().take(MAX_WAYS_BACK) {
            if let Some(update) = self.0.store.update_of_version(&version).await?.and_then(update_of) {
                ways_back.insert(version.to_string(), update);
            }
        }
        Ok(ways_back)
    }
}

impl Planned {
    /// The devices of the deployment by their places: the number of the target, and how it begins.
    pub(super) fn places(&self) -> impl Iterator<Item = (u32, InitialDevice)> + '_ {
        let last = self.plan.waves.len().saturating_sub(1);
        let to_update = self.plan.waves.iter().enumerate().flat_map(|(wave, members)| {
            let state = DeviceState::Queued;
            members.members.iter().map(move |target| (*target, InitialDevice { wave: wave as u16, state }))
        });
        let no_work = self.plan.excluded.iter().filter(|left_out| left_out.is_no_work()).flat_map(move |left_out| {
            let state = match left_out.reason {
                Exclusion::AlreadyInstalled => DeviceState::AlreadyInstalled,
                Exclusion::Incompatible | Exclusion::InOtherDeployment => DeviceState::Incompatible,
            };
            left_out.members.iter().map(move |target| (*target, InitialDevice { wave: last as u16, state }))
        });
        to_update.chain(no_work)
    }

    pub(super) fn waves(&self) -> Vec<InitialWave> {
        let wave = |wave: &Wave| InitialWave {
            name: wave.name.clone(),
            soak: wave.soak,
            gates: wave.gates.clone(),
            auto_promote: wave.auto_promote,
        };
        self.plan.waves.iter().map(wave).collect()
    }

    /// The devices that are to be updated, with their places.
    pub(super) fn targets(&self) -> impl Iterator<Item = (Place, &Arc<DeviceEntry>)> {
        let members = self.plan.waves.iter().flat_map(|wave| &wave.members);
        members.enumerate().map(|(place, target)| (place as Place, &self.survey.devices[*target as usize]))
    }

    /// # Errors
    /// FAILED_PRECONDITION when no device is left to update, with what became of those that match.
    pub(super) fn check(&self, wish: &Wish) -> Result<(), ApiError> {
        if self.plan.target_count() > 0 {
            return Ok(());
        }
        let message = match self.survey.devices.len() {
            0 => format!(
                "device_filter {:?} matches no device; ListDevices shows what a filter matches",
                wish.device_filter
            ),
            matching => {
                let reasons = self
                    .plan
                    .excluded
                    .iter()
                    .map(|left_out| format!("{} {}", left_out.members.len(), left_out.reason.code()));
                let reasons: Vec<_> = reasons.collect();
                format!("none of the {matching} chosen devices is to be updated: {}", reasons.join(", "))
            }
        };
        Err(ApiError::new(ErrorCode::FailedPrecondition, message))
    }
}

/// A seed for the random choices of a deployment that names none.
pub(super) fn draw_seed() -> Result<u64, ApiError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::internal("no random bytes for a seed").with_source(error))?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

/// The versions that the devices of a plan run.
fn versions_of(survey: &Survey, plan: &Plan) -> Vec<Arc<str>> {
    let rows = survey.rows();
    let mut numbers: Vec<u32> =
        plan.waves.iter().flat_map(|wave| &wave.members).map(|target| rows[*target as usize].version).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.into_iter().map(|number| survey.shared_text(number)).collect()
}
