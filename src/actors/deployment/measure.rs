//! The gates of a wave: what its devices measure, compared with those that are held back.
use std::time::Duration;

use actix::prelude::*;

use super::coordinator::DeploymentCoordinator;
use crate::clock::UnixMillis;
use crate::ids::DeviceId;
use crate::rollout::{DeviceState, Event, Place, WaveState};
use crate::telemetry::analysis;
use crate::telemetry::clickhouse::ClickHouseError;

/// Devices that a gate looks at on either side. The error of an average over so many is a fiftieth of the spread among
/// devices; more would only cost ClickHouse time.
const MAX_MEASURED: usize = 2_000;

/// Pause before ClickHouse is asked again that did not answer. The wave waits for it: no answer is no verdict.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The shortest span that is measured: a wave without soak was watched while it ran.
const SHORTEST_SPAN: Duration = Duration::from_secs(60);

impl DeploymentCoordinator {
    /// Measures the gates of a wave, until ClickHouse answers.
    pub(super) fn measure(&mut self, wave: usize, context: &mut Context<Self>) {
        if self.measuring.contains(&wave) {
            return;
        }
        let Some(head) = self.rollout.waves().get(wave) else { return };
        let gates = head.gates.clone();
        let to = UnixMillis::now();
        let span = Duration::from_millis(head.soak_millis).max(SHORTEST_SPAN);
        let from = UnixMillis::from_millis_clamped(to.as_millis() - span.as_millis() as i64);
        let (updated, held_back) = (self.updated_devices(wave), self.held_back_devices(wave));
        let clickhouse = self.shared.clickhouse.clone();
        self.measuring.push(wave);
        let measured = async move {
            let mut results = Vec::with_capacity(gates.len());
            for gate in &gates {
                results.push(analysis::measure(&clickhouse, gate, &updated, &held_back, from, to).await?);
            }
            Ok::<_, ClickHouseError>(results)
        };
        context.spawn(measured.into_actor(self).map(move |outcome, this, context| {
            this.measuring.retain(|other| *other != wave);
            match outcome {
                Ok(results) => {
                    if let Err(refusal) = this.apply(Event::Measured { wave, results }) {
                        tracing::debug!(deployment = this.handle.id(), wave, %refusal, "a measurement came too late");
                    }
                    this.flush(context);
                }
                Err(error) => {
                    tracing::warn!(
                        deployment = this.handle.id(),
                        wave,
                        error = &error as &dyn std::error::Error,
                        "gates are not measured, tried again"
                    );
                    context.run_later(AGAIN_AFTER, move |this, context| {
                        if this.rollout.waves().get(wave).is_some_and(|head| head.state == WaveState::Analyzing) {
                            this.measure(wave, context);
                        }
                    });
                }
            }
        }));
    }

    fn updated_devices(&self, wave: usize) -> Vec<DeviceId> {
        self.sample(|state, at| at == wave && state == DeviceState::Succeeded)
    }

    /// Devices whose turn has not come, of the last wave first of all: that is where the held-back ones are.
    fn held_back_devices(&self, wave: usize) -> Vec<DeviceId> {
        let last = self.rollout.waves().len().saturating_sub(1);
        if last == wave {
            return Vec::new();
        }
        self.sample(|state, at| at == last && matches!(state, DeviceState::Queued | DeviceState::Held))
    }

    /// Up to [`MAX_MEASURED`] devices, spread evenly over those that fit.
    fn sample(&self, fits: impl Fn(DeviceState, usize) -> bool) -> Vec<DeviceId> {
        let places: Vec<Place> = (0..self.seats.len() as Place)
            .filter(|place| {
                let record = self.rollout.record(*place);
                fits(record.state(), record.wave())
            })
            .collect();
        let step = places.len().div_ceil(MAX_MEASURED).max(1);
        places.iter().step_by(step).map(|place| self.seats[*place as usize].device_id.clone()).collect()
    }
}
