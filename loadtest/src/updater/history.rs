//! What a device remembers of its offers: the witness against a server that commands twice.
use fleetd_proto::v1::UpdateInfo;
use serde::Serialize;

/// Violations that are kept in words; the rest are only counted.
const MAX_EXAMPLES: usize = 3;

/// One attempt, as the device saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub deployment_id: String,
    pub attempt: u32,
    pub is_rollback: bool,
    /// How often it was offered: until the device's answer is acknowledged, any number of times is right.
    pub offers: u32,
    /// Whether the server acknowledged the device's answer, yes or no.
    pub is_answered: bool,
    /// Offers in replies to requests that left after that acknowledgement. Each is a violation.
    pub offers_after_answer: u32,
    /// Whether the server said that the answer does not count.
    pub is_void: bool,
    /// Installations begun.
    pub installs: u32,
}

/// What the server must never do to a device, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Violations {
    /// An attempt was offered again after the device's answer to it was acknowledged.
    pub commanded_twice: u64,
    /// Another update was offered while the device worked on one that it was known to have accepted; or an offer came
    /// again with its old number after a different one had taken its place.
    pub two_at_once: u64,
    /// A deployment that the test knew to be over made an offer.
    pub after_end: u64,
    /// Some of them, in words.
    pub examples: Vec<String>,
}

impl Violations {
    pub fn total(&self) -> u64 {
        self.commanded_twice + self.two_at_once + self.after_end
    }

    pub fn is_empty(&self) -> bool {
        self.total() == 0
    }

    pub(crate) fn add(&mut self, other: &Self, device_id: &str) {
        self.commanded_twice += other.commanded_twice;
        self.two_at_once += other.two_at_once;
        self.after_end += other.after_end;
        let room = 10_usize.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.iter().take(room).map(|example| format!("{device_id}: {example}")));
    }

    fn tell(&mut self, example: impl FnOnce() -> String) {
        if self.examples.len() < MAX_EXAMPLES {
            self.examples.push(example());
        }
    }
}

/// All attempts of one device. There are few, so they are searched one by one.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) violations: Violations,
    /// Higher attempts that came while the device worked on a lower one of the same deployment. Right after a time-out
    /// or after an acceptance that came too late to count, so no violation.
    pub(crate) reoffered_while_working: u64,
    /// The attempt that was offered last.
    last: Option<usize>,
}

impl History {
    /// Notes an offer; returns its attempt, and whether the device meets it for the first time.
    pub(crate) fn offer(&mut self, info: &UpdateInfo, is_ended: bool) -> (usize, bool) {
        let name = || format!("attempt {} of {}", info.attempt, info.deployment_id);
        if is_ended {
            self.violations.after_end += 1;
            self.violations.tell(|| format!("{} was offered after the deployment's end", name()));
        }
        let Some(found) = self.find(&info.deployment_id, info.attempt) else {
            self.attempts.push(Attempt {
                deployment_id: info.deployment_id.clone(),
                attempt: info.attempt,
                is_rollback: info.rollback,
                offers: 1,
                is_answered: false,
                offers_after_answer: 0,
                is_void: false,
                installs: 0,
            });
            let index = self.attempts.len() - 1;
            self.last = Some(index);
            return (index, true);
        };
        let attempt = &mut self.attempts[found];
        attempt.offers += 1;
        if attempt.is_answered && !attempt.is_void {
            attempt.offers_after_answer += 1;
            self.violations.commanded_twice += 1;
            self.violations.tell(|| format!("{} was offered again after its answer was acknowledged", name()));
        } else if self.last != Some(found) {
            self.violations.two_at_once += 1;
            self.violations.tell(|| format!("{} was offered again after another offer had replaced it", name()));
        }
        self.last = Some(found);
        (found, false)
    }

    pub(crate) fn two_at_once(&mut self, info: &UpdateInfo, working_on: &UpdateInfo) {
        self.violations.two_at_once += 1;
        self.violations.tell(|| {
            format!(
                "attempt {} of {} was offered during attempt {} of {}",
                info.attempt, info.deployment_id, working_on.attempt, working_on.deployment_id
            )
        });
    }

    pub(crate) fn get_mut(&mut self, deployment_id: &str, attempt: u32) -> Option<&mut Attempt> {
        self.find(deployment_id, attempt).map(|found| &mut self.attempts[found])
    }

    fn find(&self, deployment_id: &str, attempt: u32) -> Option<usize> {
        // From the end: it is nearly always the last one.
        self.attempts.iter().rposition(|known| known.attempt == attempt && known.deployment_id == deployment_id)
    }
}
