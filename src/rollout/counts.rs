//! Counts of devices that follow each change of a record, so that nothing is ever counted over.
use serde::{Deserialize, Serialize};

use super::head::Head;
use super::record::{is_active, is_without_work, Record, Why};
use super::DeviceState;

/// Numbers of states of devices, 0 (not set) included.
const STATES: usize = 25;

/// Devices by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts([u32; STATES]);

impl Counts {
    pub fn get(&self, state: DeviceState) -> u32 {
        self.0.get(state as usize).copied().unwrap_or_default()
    }

    /// Those that have devices.
    pub fn iter(&self) -> impl Iterator<Item = (DeviceState, u32)> + '_ {
        (0..)
            .zip(&self.0)
            .filter(|(_, count)| **count > 0)
            .filter_map(|(number, count)| Some((DeviceState::try_from(number).ok()?, *count)))
    }

    fn sum(&self, which: impl Fn(DeviceState) -> bool) -> u32 {
        self.iter().filter(|(state, _)| which(*state)).map(|(_, count)| count).sum()
    }

    /// Devices that hold a slot of `max_parallel`.
    pub fn active(&self) -> u32 {
        self.sum(is_active)
    }

    /// Devices that had work, and are done in any way.
    pub fn done(&self) -> u32 {
        use DeviceState as D;
        self.sum(|state| {
            matches!(
                state,
                D::Succeeded
                    | D::Failed
                    | D::TimedOut
                    | D::Rejected
                    | D::Vanished
                    | D::Reverted
                    | D::Removed
                    | D::Superseded
                    | D::RolledBack
                    | D::RollbackFailed
            )
        })
    }

    pub(super) fn without_work(&self) -> u32 {
        self.sum(is_without_work)
    }

    pub(super) fn step(&mut self, state: DeviceState, is_up: bool) {
        if let Some(count) = self.0.get_mut(state as usize) {
            step(count, is_up);
        }
    }
}

/// What the brake judges: devices since counting began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Devices that took an offer, declined one, let one lapse, or ended.
    pub attempted: u32,
    /// Of them, those that failed and did not succeed since.
    pub failed: u32,
    /// Of those, the ones that went silent.
    pub vanished: u32,
}

impl Sample {
    /// Failed in per cent of attempted.
    pub fn failure_percentage(&self) -> f64 {
        if self.attempted == 0 {
            return 0.0;
        }
        f64::from(self.failed) * 100.0 / f64::from(self.attempted)
    }
}

/// Devices by why they failed last; numbers are those of [`Why`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyCounts([u32; Why::ALL.len()]);

impl WhyCounts {
    /// Codes that have devices.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        Why::ALL.iter().zip(&self.0).filter(|(_, count)| **count > 0).map(|(why, count)| (why.code(), *count))
    }
}

impl Head {
    /// Takes a device into all counts, or out of them.
    pub(super) fn count(&mut self, record: &Record, is_up: bool) {
        let state = record.state();
        let is_sampled = record.attempted_in == self.epoch;
        let is_failed_in_sample = record.failed_in == self.epoch;
        let is_vanished_in_sample = is_failed_in_sample && record.failed_why == Why::Silent;
        let sample = |sample: &mut Sample| {
            step_if(&mut sample.attempted, is_sampled, is_up);
            step_if(&mut sample.failed, is_failed_in_sample, is_up);
            step_if(&mut sample.vanished, is_vanished_in_sample, is_up);
        };
        self.counts.step(state, is_up);
        sample(&mut self.sample);
        step_if(&mut self.attempted, record.is_attempted(), is_up);
        step_if(&mut self.failed, record.has_failed(), is_up);
        if let Some(count) = self.failures.0.get_mut(record.failed_why as usize) {
            step_if(count, record.has_failed(), is_up);
        }
        if let Some(rollback) = &mut self.rollback {
            step_if(&mut rollback.attempted, record.has(super::record::flag::BACK_ATTEMPTED), is_up);
        }
        if let Some(wave) = self.waves.get_mut(record.wave()) {
            wave.counts.step(state, is_up);
            sample(&mut wave.sample);
            let is_held_for_window = state == DeviceState::Held && record.why == Why::WindowClosed;
            step_if(&mut wave.held_for_window, is_held_for_window, is_up);
        }
    }

    /// Takes a new device in.
    pub(super) fn count_new(&mut self, record: &Record) {
        self.count(record, true);
        let has_work = !is_without_work(record.state());
        self.total_work += u32::from(has_work);
        if let Some(wave) = self.waves.get_mut(record.wave()) {
            wave.total += 1;
            wave.total_work += u32::from(has_work);
        }
    }

    /// Counts every device over. Of those that joined and are not in the head yet, all have work.
    pub(super) fn recount(&mut self, records: &[Record]) {
        let known: u32 = self.waves.iter().map(|wave| wave.total).sum();
        let joined = u32::try_from(records.len()).unwrap_or(u32::MAX).saturating_sub(known);
        self.total_work += joined;
        if let Some(last) = self.waves.last_mut() {
            last.total_work += joined;
        }
        (self.counts, self.sample, self.failures) = Default::default();
        (self.attempted, self.failed) = (0, 0);
        if let Some(rollback) = &mut self.rollback {
            rollback.attempted = 0;
        }
        for wave in &mut self.waves {
            (wave.counts, wave.sample) = Default::default();
            (wave.total, wave.held_for_window) = (0, 0);
        }
        for record in records {
            self.count(record, true);
            if let Some(wave) = self.waves.get_mut(record.wave()) {
                wave.total += 1;
            }
        }
    }

    /// Begins the brake's counts anew.
    pub(super) fn begin_epoch(&mut self) {
        // Zero means never in records. 65,535 resumes of one deployment are more than one operator's lifetime of them.
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
        self.sample = Sample::default();
        for wave in &mut self.waves {
            wave.sample = Sample::default();
        }
    }
}

fn step_if(count: &mut u32, is_one: bool, is_up: bool) {
    if is_one {
        step(count, is_up);
    }
}

fn step(count: &mut u32, is_up: bool) {
    *count = if is_up { count.saturating_add(1) } else { count.saturating_sub(1) };
}
