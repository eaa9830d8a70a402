//! How a device stands, and what follows. Only heartbeats are evidence: what a device runs counts from the moment that
//! it was heard, never from before the state that it would change.
use super::machine::Rollout;
use super::record::{flag, is_working, Record, Why};
use super::{Action, DeploymentState, DeviceState, Now, Place, Reachability, Runs, Standing};

/// A standing, and when the device was heard, in watched time.
#[derive(Clone, Copy)]
struct Seen {
    standing: Standing,
    heard: Option<u64>,
}

impl Seen {
    fn is_heard_since(self, moment: u64) -> bool {
        self.heard.is_some_and(|heard| heard >= moment)
    }

    fn shows_target_since(self, moment: u64) -> bool {
        self.standing.runs == Runs::Target && self.is_heard_since(moment)
    }

    /// Whether an offer was in the reply to one of its heartbeats.
    fn has_offer_of(self, record: &Record) -> bool {
        self.heard.is_some_and(|heard| heard > record.offered)
    }
}

impl Rollout {
    pub(super) fn stand(&mut self, place: Place, standing: Standing, now: Now) {
        let record = self.record(place);
        if record.has(flag::LEFT) {
            return;
        }
        let seen = Seen { standing, heard: standing.silent_for.map(|silent| now.watched.saturating_sub(silent)) };
        match record.state() {
            DeviceState::Queued | DeviceState::Held => self.stand_waiting(place, &record, seen, now),
            DeviceState::Offered => self.stand_offered(place, &record, seen, now),
            state if is_working(state) => self.stand_working(place, &record, seen, now),
            DeviceState::RetryWait | DeviceState::Vanished | DeviceState::TimedOut => {
                let is_here = standing.reachability == Reachability::Online;
                if is_here && seen.shows_target_since(record.heard) {
                    self.recover(place, now);
                }
            }
            DeviceState::Succeeded => {
                let is_other = standing.runs != Runs::Target && seen.is_heard_since(record.since);
                // One that another deployment has is not ours to judge any more.
                if is_other && !standing.is_taken && !self.head.is_final() {
                    self.fail(place, DeviceState::Reverted, Why::Reverted, now);
                }
            }
            DeviceState::RollbackQueued => self.stand_back_queued(place, &record, seen, now),
            DeviceState::RollingBack => self.stand_rolling_back(place, &record, seen, now),
            _ => {}
        }
        if self.record(place).has(flag::DOUBTFUL) {
            if standing.runs == Runs::Target && self.head.state == DeploymentState::RollingBack {
                self.queue_back(place, now);
            } else {
                self.write(place, |record| record.put(flag::DOUBTFUL, false));
            }
        }
    }

    /// What is in the way of an offer. Windows that are the same for all are the deployment's affair.
    fn obstacle(&self, standing: Standing) -> Option<Why> {
        if standing.is_taken {
            return Some(Why::InOtherDeployment);
        }
        match standing.reachability {
            Reachability::Offline => Some(Why::Offline),
            Reachability::Maintenance => Some(Why::Maintenance),
            Reachability::Online if self.window.is_per_device && !standing.is_window_open => Some(Why::WindowClosed),
            Reachability::Online => None,
        }
    }

    fn stand_waiting(&mut self, place: Place, record: &Record, seen: Seen, now: Now) {
        if !self.is_open() {
            // A doubtful one is asked for what it runs, and nothing else.
            return;
        }
        if seen.shows_target_since(record.heard) {
            if record.attempt > 0 {
                self.recover(place, now);
            } else {
                self.write(place, |record| {
                    record.enter(DeviceState::AlreadyInstalled, Why::Nothing);
                    record.since = now.watched;
                });
                self.done(place, now);
            }
            return;
        }
        let is_held = record.state() == DeviceState::Held;
        match self.obstacle(seen.standing) {
            Some(why) if is_held && why == record.why => {}
            Some(why) if is_held || self.is_turn_of(record) => self.write(place, |record| {
                record.enter(DeviceState::Held, why);
                record.since = now.watched;
            }),
            Some(_) => {}
            None if is_held && self.is_waited_for(now) => self.write(place, |record| {
                record.enter(DeviceState::Queued, Why::Nothing);
                record.since = now.watched;
            }),
            None if is_held => {}
            None => {
                if self.is_turn_of(record) && self.may_offer(now) {
                    self.note_offer(record.wave(), now);
                    self.offer(place, false, now);
                }
            }
        }
    }

    fn stand_offered(&mut self, place: Place, record: &Record, seen: Seen, now: Now) {
        if seen.standing.runs == Runs::Target && seen.has_offer_of(record) {
            // It did not say so, but it must have taken it.
            self.accept(place, DeviceState::Confirming, now);
            self.effects.actions.push(Action::Revoke { place, attempt: record.attempt });
            let record = self.record(place);
            self.stand_working(place, &record, seen, now);
            return;
        }
        self.stand_with_offer(place, record, seen, now);
    }

    /// An offer that nobody accepted: it lapses, or is taken back when it cannot be accepted.
    fn stand_with_offer(&mut self, place: Place, record: &Record, seen: Seen, now: Now) {
        let has_offer = seen.has_offer_of(record);
        let is_late = now.watched >= record.offered.saturating_add(self.limits.accept);
        match self.obstacle(seen.standing) {
            Some(why @ (Why::InOtherDeployment | Why::Maintenance)) => self.revoke(place, why, now),
            Some(Why::Offline) if !has_offer => self.revoke(place, Why::Offline, now),
            _ if is_late && has_offer => {
                self.fail(place, DeviceState::TimedOut, Why::AcceptTimeout, now);
                self.effects.actions.push(Action::Revoke { place, attempt: record.attempt });
            }
            // It never fetched the offer: that is no sign against the update.
            _ if is_late => self.revoke(place, Why::Offline, now),
            _ => {}
        }
    }

    fn stand_working(&mut self, place: Place, record: &Record, seen: Seen, now: Now) {
        let is_confirming = record.state() == DeviceState::Confirming;
        let is_seen = is_confirming && record.has(flag::TARGET_SEEN);
        match seen.heard {
            Some(heard) if seen.shows_target_since(record.accepted) => {
                if !is_seen {
                    self.write(place, |record| {
                        if !is_confirming {
                            record.enter(DeviceState::Confirming, Why::Nothing);
                        }
                        record.put(flag::TARGET_SEEN, true);
                        record.since = heard;
                        record.heard = heard.max(record.heard);
                    });
                    if self.head.state == DeploymentState::RollingBack {
                        self.queue_back(place, now);
                        return;
                    }
                }
                let since = self.record(place).since;
                if heard >= since.saturating_add(self.limits.confirm) {
                    self.succeed(place, Why::Nothing, now);
                    return;
                }
            }
            Some(heard) if is_seen && heard >= record.since => self.write(place, |record| {
                record.put(flag::TARGET_SEEN, false);
                record.since = now.watched;
                record.heard = heard.max(record.heard);
            }),
            _ => {}
        }
        self.stand_silent(place, seen, now);
    }

    /// Silence after accepting. When it was heard is kept only when that is worth a write.
    fn stand_silent(&mut self, place: Place, seen: Seen, now: Now) {
        let record = self.record(place);
        let heard = seen.heard.unwrap_or(0).max(record.heard);
        if now.watched >= heard.saturating_add(self.limits.vanish) {
            self.fail(place, DeviceState::Vanished, Why::Silent, now);
        } else if heard >= record.heard.saturating_add((self.limits.vanish / 2).max(1)) {
            self.write(place, |record| record.heard = heard);
        }
    }

    /// It had been given up, and shows the version after all.
    fn recover(&mut self, place: Place, now: Now) {
        if self.is_open() {
            self.succeed(place, Why::Recovered, now);
        } else if self.head.state == DeploymentState::RollingBack {
            self.queue_back(place, now);
        }
    }

    fn stand_back_queued(&mut self, place: Place, record: &Record, seen: Seen, now: Now) {
        if self.head.state != DeploymentState::RollingBack {
            return;
        }
        if seen.standing.runs != Runs::Target && seen.is_heard_since(record.since) {
            self.is_back(place, seen.standing.runs, now);
            return;
        }
        let is_forced = self.head.rollback.as_ref().is_some_and(|rollback| rollback.is_forced);
        let obstacle = self.obstacle(seen.standing).filter(|why| !(is_forced && *why == Why::WindowClosed));
        let why = obstacle.unwrap_or_default();
        if record.why != why {
            self.write(place, |record| record.why = why);
        }
        if obstacle.is_none() && self.may_offer_back(record.wave()) {
            self.offer(place, true, now);
        }
    }

    fn stand_rolling_back(&mut self, place: Place, record: &Record, seen: Seen, now: Now) {
        let shows_before = seen.standing.runs == Runs::Before && seen.has_offer_of(record);
        let shows_what_it_said =
            record.has(flag::SAID_BACK) && seen.standing.runs != Runs::Target && seen.is_heard_since(record.since);
        if shows_before || shows_what_it_said {
            self.is_back(place, seen.standing.runs, now);
            if !record.has(flag::ACCEPTED) {
                self.effects.actions.push(Action::Revoke { place, attempt: record.attempt });
            }
        } else if record.has(flag::ACCEPTED) {
            self.stand_silent(place, seen, now);
        } else {
            self.stand_with_offer(place, record, seen, now);
        }
    }
}
