//! Devices that come to match while a deployment runs.
//!
//! Now and then the fleet is asked for devices that match the deployment's filter and are in no deployment; those that
//! need the update and can take it join the last wave.
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use fleetd_proto::v1::rollout_policy;
use fleetd_proto::v1::update_strategy::Type as Strategy;

use super::coordinator::DeploymentCoordinator;
use super::release::Release;
use super::seat::Seat;
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::fleet::{Survey, SurveyRequest};
use crate::ids::DeviceId;
use crate::query::Filter;
use crate::rollout::{DeploymentState, Event, Place, Policy, Target, Targets as _};

/// How long a newcomer waits to be seen. A look at a million devices takes a fifth of a second of a query thread.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Newcomers that one look takes in; the next one takes the rest.
const MAX_JOINING: usize = 5_000;

pub(super) struct Joiners {
    /// `None` where newcomers are left alone.
    filter: Option<String>,
    looked_at: Option<Instant>,
    is_looking: bool,
}

impl Joiners {
    pub fn new(policy: &Policy, filter: &str) -> Self {
        let includes = policy.joiners == rollout_policy::Joiners::Include && !filter.trim().is_empty();
        Self { filter: includes.then(|| filter.to_owned()), looked_at: None, is_looking: false }
    }
}

impl DeploymentCoordinator {
    pub(super) fn look_for_joiners(&mut self, context: &mut Context<Self>) {
        let is_due = self.joiners.looked_at.get_or_insert_with(Instant::now).elapsed() >= LOOK_EVERY;
        // A canary alone takes nobody: who joins it would be updated without having been watched for.
        let is_canary_alone = self.rollout.policy().strategy != Strategy::Rolling && self.rollout.waves().len() < 2;
        if self.joiners.is_looking
            || !is_due
            || is_canary_alone
            || !matches!(self.rollout.head().state, DeploymentState::Running | DeploymentState::Paused)
        {
            return;
        }
        let Some(Ok(filter)) = self.joiners.filter.as_deref().map(|text| Filter::parse(text, UnixMillis::now())) else {
            return;
        };
        self.joiners.is_looking = true;
        let queries = self.shared.queries.clone();
        let request = SurveyRequest {
            filter: Some(filter),
            devices: Vec::new(),
            stratify_labels: Vec::new(),
            wave_filters: Vec::new(),
            is_taken: Box::new(|entry| entry.assignment.is_claimed()),
        };
        let release = Arc::clone(&self.handle.release);
        let survey = async move { queries.survey(request, move |survey| newcomers(&release, &survey)).await };
        context.spawn(survey.into_actor(self).map(|found, this, context| {
            this.joiners.is_looking = false;
            this.joiners.looked_at = Some(Instant::now());
            match found {
                Ok(newcomers) => this.join(newcomers, context),
                Err(error) => tracing::debug!(
                    deployment = this.handle.id(),
                    error = &error as &dyn std::error::Error,
                    "newcomers are not looked for"
                ),
            }
        }));
    }

    fn join(&mut self, mut newcomers: Vec<(Arc<DeviceEntry>, Arc<str>)>, context: &mut Context<Self>) {
        if newcomers.is_empty() {
            return;
        }
        // One that was taken out of this deployment does not come back.
        let ids: HashSet<DeviceId> = newcomers.iter().map(|(entry, _)| entry.id.clone()).collect();
        let known: HashSet<&DeviceId> =
            self.seats.iter().map(|seat| &seat.device_id).filter(|id| ids.contains(*id)).collect();
        newcomers.retain(|(entry, _)| !known.contains(&entry.id));
        let first = self.seats.len();
        for (entry, from_version) in newcomers {
            if entry.assignment.claim(&self.handle, self.seats.len() as Place) {
                self.seats.push(Seat { device_id: entry.id.clone(), entry: Some(entry), from_version, said: None });
            }
        }
        let joined = self.seats.len() - first;
        if joined == 0 {
            return;
        }
        if let Err(refusal) = self.apply(Event::Joined { count: joined as u32 }) {
            tracing::debug!(deployment = self.handle.id(), %refusal, "newcomers are left alone");
            for seat in self.seats.drain(first..) {
                if let Some(entry) = seat.entry {
                    entry.assignment.release(&self.handle);
                }
            }
            return;
        }
        tracing::info!(deployment = self.handle.id(), devices = joined, "devices joined");
        self.flush(context);
    }
}

/// Devices that are in no deployment, need the update, and can take it; with the versions that they run.
fn newcomers(release: &Release, survey: &Survey) -> Vec<(Arc<DeviceEntry>, Arc<str>)> {
    let needs_it = |row: &Target| {
        !row.is_taken
            && survey.text(row.version) != release.update.version
            && release.artifact(survey.text(row.device_type), survey.text(row.arch)).is_some()
    };
    let rows = survey.rows().iter().enumerate().filter(|(_, row)| needs_it(row));
    rows.take(MAX_JOINING).map(|(at, row)| (Arc::clone(&survey.devices[at]), survey.shared_text(row.version))).collect()
}
