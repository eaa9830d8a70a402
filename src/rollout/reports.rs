//! What devices say of the update that they were offered. Reports may come late, twice and in any order: a number says
//! which offer they are about, and a device only ever moves forward.
use fleetd_proto::v1::update_progress::State as Said;

use super::machine::Rollout;
use super::record::{flag, is_working, Why};
use super::{DeviceState, Now, Place, Refusal};

impl Rollout {
    /// Takes a report in, or says why it does not count. A repeat counts, and changes nothing.
    pub(super) fn report(&mut self, place: Place, attempt: u32, said: Said, now: Now) -> Result<(), Refusal> {
        use DeviceState as D;
        let refused = |code| Err(Refusal::Report { code });
        let record = self.record(place);
        if record.attempt == 0 || attempt > record.attempt {
            return refused("NOT_OFFERED");
        }
        if attempt < record.attempt {
            return refused("OLD_ATTEMPT");
        }
        if said == Said::Unspecified {
            return refused("STATE_MISSING");
        }
        if record.has(flag::LEFT) {
            return refused("OFFER_REVOKED");
        }
        match (record.state(), said) {
            (D::Offered, Said::Rejected) => self.fail(place, D::Rejected, Why::Rejected, now),
            (D::Offered, Said::Failed | Said::Reverted) => self.fail(place, D::Failed, Why::Reported, now),
            (D::Offered, said) => self.accept(place, reached(said), now),
            (D::RollingBack, Said::Rejected) => self.fail_back(place, Why::Rejected, now),
            (D::RollingBack, Said::Failed) => self.fail_back(place, Why::Reported, now),
            (D::RollingBack, said) => self.report_on_way_back(place, said, now),
            (state, Said::Rejected) if is_working(state) => self.fail(place, D::Rejected, Why::Rejected, now),
            (state, Said::Failed) if is_working(state) => self.fail(place, D::Failed, Why::Reported, now),
            (state, Said::Reverted) if is_working(state) => self.fail(place, D::Failed, Why::Reverted, now),
            (state, said) if is_working(state) => {
                if reached(said) as i32 > state as i32 {
                    self.write(place, |record| {
                        record.enter(reached(said), Why::Nothing);
                        record.heard = now.watched;
                        record.since = now.watched;
                    });
                }
            }
            _ if self.head.is_final() => return refused("DEPLOYMENT_OVER"),
            // It is on the version before, whichever word it has for that.
            (D::Succeeded, Said::Reverted | Said::Failed) => self.fail(place, D::Reverted, Why::Reverted, now),
            (D::Succeeded, Said::Rejected) => return refused("OFFER_REVOKED"),
            // Repeats of what ended it.
            (D::Succeeded, _)
            | (D::Failed | D::RetryWait, Said::Failed)
            | (D::Rejected, Said::Rejected)
            | (D::Reverted, Said::Reverted)
            | (D::RolledBack, Said::Succeeded | Said::Reverted)
            | (D::RollbackFailed, Said::Failed) => {}
            _ => return refused("OFFER_REVOKED"),
        }
        Ok(())
    }

    fn report_on_way_back(&mut self, place: Place, said: Said, now: Now) {
        let record = self.record(place);
        if !record.has(flag::ACCEPTED) {
            self.accept(place, DeviceState::RollingBack, now);
        }
        let is_back = matches!(said, Said::Succeeded | Said::Reverted);
        if is_back && !record.has(flag::SAID_BACK) {
            self.write(place, |record| {
                record.put(flag::SAID_BACK, true);
                record.heard = now.watched;
                record.since = now.watched;
            });
        }
    }
}

/// The state that a report of progress leads to. Success is confirmed by heartbeats, never by the word alone.
fn reached(said: Said) -> DeviceState {
    match said {
        Said::Succeeded => DeviceState::Confirming,
        said => DeviceState::try_from(said as i32).unwrap_or(DeviceState::Accepted),
    }
}
