//! Sums up the health of many devices, and keeps the worst of them.
use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use fleetd_proto::v1::device_health::Status;
use fleetd_proto::v1::HealthSummary;

use super::{Health, DEGRADED_FROM};

/// Devices are shown to it one by one; `T` is a handle on a device, in the order of ids.
pub struct Triage<T> {
    wanted: usize,
    /// The least sick on top.
    worst: BinaryHeap<Patient<T>>,
    summary: HealthSummary,
    known: u64,
    scores: u64,
    reasons: BTreeMap<&'static str, i32>,
}

/// A device and its health.
pub struct Patient<T> {
    pub device: T,
    pub health: Health,
}

/// The order in which devices are told: worst first, and those of which nothing is known after the unhealthy ones.
fn rank(health: &Health) -> i32 {
    match health.status {
        Status::Unspecified => 2 * DEGRADED_FROM - 1,
        _ => 2 * health.score,
    }
}

impl<T: Ord + Clone> Triage<T> {
    /// `wanted` is how many of the worst are kept.
    pub fn new(wanted: usize) -> Self {
        Self {
            wanted,
            worst: BinaryHeap::new(),
            summary: HealthSummary::default(),
            known: 0,
            scores: 0,
            reasons: BTreeMap::new(),
        }
    }

    pub fn take(&mut self, device: &T, health: Health) {
        let summary = &mut self.summary;
        summary.total_devices += 1;
        match health.status {
            Status::Unspecified => summary.unknown_devices += 1,
            Status::Healthy => summary.healthy_devices += 1,
            Status::Degraded => summary.degraded_devices += 1,
            Status::Unhealthy => summary.unhealthy_devices += 1,
        }
        if health.status != Status::Unspecified {
            self.known += 1;
            // 0 to 100.
            self.scores += health.score.unsigned_abs() as u64;
        }
        for finding in &health.findings {
            *self.reasons.entry(finding.code).or_default() += 1;
        }
        if self.worst.len() >= self.wanted {
            let is_worse =
                self.worst.peek().is_some_and(|least| (rank(&health), device) < (rank(&least.health), &least.device));
            if !is_worse {
                return;
            }
            self.worst.pop();
        }
        self.worst.push(Patient { device: device.clone(), health });
    }

    /// The worst, worst first, and all together.
    pub fn finish(self) -> (Vec<Patient<T>>, HealthSummary) {
        let mut summary = self.summary;
        summary.average_score = if self.known > 0 { self.scores as f64 / self.known as f64 } else { 0.0 };
        summary.reasons = self.reasons.into_iter().map(|(code, devices)| (code.to_owned(), devices)).collect();
        (self.worst.into_sorted_vec(), summary)
    }
}

impl<T: Ord> Ord for Patient<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (rank(&self.health), &self.device).cmp(&(rank(&other.health), &other.device))
    }
}

impl<T: Ord> PartialOrd for Patient<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ord> PartialEq for Patient<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T: Ord> Eq for Patient<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(score: Option<i32>) -> Health {
        let status = match score {
            None => Status::Unspecified,
            Some(80..) => Status::Healthy,
            Some(50..) => Status::Degraded,
            Some(_) => Status::Unhealthy,
        };
        Health { status, score: score.unwrap_or_default(), findings: vec![] }
    }

    #[test]
    fn the_worst_are_told_first_and_the_unknown_after_the_unhealthy() {
        let fleet = [
            ("healthy", Some(100)),
            ("b", Some(40)),
            ("unknown", None),
            ("degraded", Some(50)),
            ("a", Some(40)),
            ("worst", Some(0)),
            ("unhealthy", Some(49)),
        ];
        let expected = ["worst", "a", "b", "unhealthy", "unknown", "degraded", "healthy"];
        for wanted in [1, 3, 5, 7, 100] {
            let mut triage = Triage::new(wanted);
            fleet.iter().for_each(|(id, score)| triage.take(id, health(*score)));
            let (worst, summary) = triage.finish();
            let told: Vec<_> = worst.iter().map(|patient| patient.device).collect();
            assert_eq!(told, expected[..wanted.min(7)]);
            assert_eq!((summary.total_devices, summary.unknown_devices, summary.unhealthy_devices), (7, 1, 4));
            assert!((summary.average_score - 279.0 / 6.0).abs() < 1e-9, "{}", summary.average_score);
        }
    }

    #[test]
    fn of_nobody_nothing_is_told() {
        let (worst, summary) = Triage::<&str>::new(10).finish();
        assert!(worst.is_empty());
        assert_eq!(summary, HealthSummary::default());
    }
}
