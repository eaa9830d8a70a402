//! How a simulated device takes updates: how likely each mishap is, and how long each step takes.
use std::ops::Range;
use std::time::Duration;

use crate::random::Random;

/// How one device behaves. Probabilities are 0 to 1, and each is of the attempts that come so far: a device that
/// rejects an offer does not fail its download too. What is drawn depends on the device, the deployment and the attempt
/// alone, so a run with the same seed meets the same mishaps whatever the timing.
#[derive(Clone, Debug, PartialEq)]
pub struct Behaviour {
    /// Says REJECTED to an offer.
    pub p_reject: f64,
    /// Says nothing to an offer, and goes on with its heartbeats.
    pub p_ignore: f64,
    /// Goes silent for good once its acceptance is acknowledged.
    pub p_vanish: f64,
    /// Says FAILED half way through the download.
    pub p_download_fail: f64,
    /// Says FAILED at the end of the installation; still runs the version before.
    pub p_install_fail: f64,
    /// Comes up with the version before, and says FAILED.
    pub p_boot_fail: f64,
    /// Never comes up again.
    pub p_brick: f64,
    /// Says SUCCEEDED, and goes back to the version before by itself `revert_after` later.
    pub p_revert: f64,
    /// Works with the new version, but badly: see `bad_cpu_percent` and `bad_restart_every`.
    pub p_bad_metrics: f64,
    /// Says FAILED to an offer to go back. The other mishaps do not befall rollbacks.
    pub p_rollback_fail: f64,
    /// Attempts that mishaps befall; a later one goes well. `u32::MAX` spares none.
    pub faulty_attempts: u32,
    /// Time from the acknowledged acceptance to the whole artifact, unless it is fetched really.
    pub download: Duration,
    pub install: Duration,
    /// How long it says nothing while it restarts.
    pub reboot: Duration,
    /// How long it tests itself before it says SUCCEEDED.
    pub confirm: Duration,
    pub revert_after: Duration,
    /// What a bad version adds to the processor's load, in per cent.
    pub bad_cpu_percent: f64,
    /// How often the workload of a bad version is restarted.
    pub bad_restart_every: Duration,
    /// When it says nothing although nothing is wrong with it, counted from the start of the fleet. Its work goes on.
    pub offline: Option<Range<Duration>>,
    /// Whether it really fetches the artifact and checks its SHA-256; `download` is not used then.
    pub fetch: bool,
    /// Whether it accepts and rejects with ReportUpdateStatus, rather than with its next heartbeat, as it says all else.
    pub accept_by_call: bool,
}

impl Default for Behaviour {
    /// A well-behaved device that is done in a second or two.
    fn default() -> Self {
        Self {
            p_reject: 0.0,
            p_ignore: 0.0,
            p_vanish: 0.0,
            p_download_fail: 0.0,
            p_install_fail: 0.0,
            p_boot_fail: 0.0,
            p_brick: 0.0,
            p_revert: 0.0,
            p_bad_metrics: 0.0,
            p_rollback_fail: 0.0,
            faulty_attempts: u32::MAX,
            download: Duration::from_millis(300),
            install: Duration::from_millis(300),
            reboot: Duration::from_millis(300),
            confirm: Duration::from_millis(300),
            revert_after: Duration::from_secs(3),
            bad_cpu_percent: 60.0,
            bad_restart_every: Duration::from_secs(1),
            offline: None,
            fetch: false,
            accept_by_call: false,
        }
    }
}

/// What will become of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Ignores,
    Rejects,
    Vanishes,
    DownloadFails,
    InstallFails,
    BootFails,
    Bricks,
    Works { reverts: bool, is_bad: bool },
}

impl Behaviour {
    /// Draws what will become of an attempt.
    pub(crate) fn draw(&self, seed: u64, deployment_id: &str, attempt: u32, is_rollback: bool) -> Fate {
        let mut random = Random::new(seed ^ hash(deployment_id) ^ (u64::from(attempt) << 48));
        let mut happens = |probability: f64| f64::from(random.unit()) < probability;
        const WELL: Fate = Fate::Works { reverts: false, is_bad: false };
        if is_rollback {
            return if happens(self.p_rollback_fail) { Fate::InstallFails } else { WELL };
        }
        if attempt > self.faulty_attempts {
            return WELL;
        }
        let mishaps = [
            (self.p_ignore, Fate::Ignores),
            (self.p_reject, Fate::Rejects),
            (self.p_vanish, Fate::Vanishes),
            (self.p_download_fail, Fate::DownloadFails),
            (self.p_install_fail, Fate::InstallFails),
            (self.p_brick, Fate::Bricks),
            (self.p_boot_fail, Fate::BootFails),
        ];
        for (probability, fate) in mishaps {
            if happens(probability) {
                return fate;
            }
        }
        Fate::Works { reverts: happens(self.p_revert), is_bad: happens(self.p_bad_metrics) }
    }
}

/// FNV-1a, so that a seed means the same in every build.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(behaviour: &Behaviour, attempt: u32, is_rollback: bool, fate: Fate) -> f64 {
        let drawn = (0..20_000_u64).filter(|device| behaviour.draw(*device, "dep", attempt, is_rollback) == fate);
        drawn.count() as f64 / 20_000.0
    }

    #[test]
    fn mishaps_are_as_likely_as_they_are_said_to_be() {
        let behaviour = Behaviour { p_reject: 0.5, p_install_fail: 0.08, p_rollback_fail: 0.2, ..Behaviour::default() };
        assert!((share(&behaviour, 1, false, Fate::Rejects) - 0.5).abs() < 0.02);
        assert!((share(&behaviour, 1, false, Fate::InstallFails) - 0.04).abs() < 0.01, "of those that come so far");
        assert!((share(&behaviour, 1, true, Fate::InstallFails) - 0.2).abs() < 0.02);
        let certain = Behaviour { p_brick: 1.0, ..Behaviour::default() };
        assert_eq!(share(&certain, 1, false, Fate::Bricks), 1.0);
        assert_eq!(share(&certain, 1, true, Fate::Works { reverts: false, is_bad: false }), 1.0);
    }

    #[test]
    fn attempts_are_drawn_anew_and_the_same_attempt_never() {
        let behaviour = Behaviour { p_install_fail: 0.5, ..Behaviour::default() };
        let fates = |attempt| Vec::from_iter((0..100).map(|device| behaviour.draw(device, "dep", attempt, false)));
        assert_eq!(fates(1), fates(1));
        assert_ne!(fates(1), fates(2));
        let spared = Behaviour { p_install_fail: 1.0, faulty_attempts: 1, ..Behaviour::default() };
        assert_eq!(spared.draw(7, "dep", 1, false), Fate::InstallFails);
        assert_eq!(spared.draw(7, "dep", 2, false), Fate::Works { reverts: false, is_bad: false });
    }
}
