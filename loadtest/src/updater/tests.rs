use fleetd_proto::v1::update_progress::State;
use fleetd_proto::v1::Artifact;

use super::*;

/// A device and the time it lives in. Heartbeats are as exact as the test makes them.
struct Bench {
    updater: Updater,
    now: u64,
}

impl Bench {
    fn new(behaviour: Behaviour) -> Self {
        Self { updater: Updater::new("1.0.0", 7, behaviour), now: 1_000 }
    }

    fn offer(&mut self, info: &UpdateInfo) {
        self.updater.offered(info, false, self.now);
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.updater.step(self.now);
    }

    fn says(&self) -> Option<(u32, State)> {
        let report = self.updater.report(self.now)?;
        Some((report.attempt, State::try_from(report.state).unwrap()))
    }

    /// What it says now, acknowledged.
    fn heard(&mut self) -> State {
        let report = self.updater.report(self.now).expect("a report");
        self.updater.acknowledged(&report, self.now);
        State::try_from(report.state).unwrap()
    }

    fn lost(&mut self) -> State {
        let report = self.updater.report(self.now).expect("a report");
        self.updater.unanswered(&report, self.now);
        State::try_from(report.state).unwrap()
    }

    /// Lives for ten seconds in steps of 50 ms with every heartbeat acknowledged; returns the states that it said, each
    /// once.
    fn live(&mut self) -> Vec<State> {
        let mut said = Vec::new();
        for _ in 0..200 {
            self.pass(50);
            if self.updater.is_silent() || self.says().is_none() {
                continue;
            }
            let state = self.heard();
            if said.last() != Some(&state) {
                said.push(state);
            }
        }
        said
    }
}

fn info(deployment_id: &str, attempt: u32) -> UpdateInfo {
    UpdateInfo {
        update_id: "upd".to_owned(),
        deployment_id: deployment_id.to_owned(),
        version: "2.0.0".to_owned(),
        artifact: Some(Artifact { checksum: "sha256:00".to_owned(), size_bytes: 9, ..Artifact::default() }),
        attempt,
        ..UpdateInfo::default()
    }
}

fn back(deployment_id: &str, attempt: u32) -> UpdateInfo {
    UpdateInfo { version: "1.0.0".to_owned(), rollback: true, ..info(deployment_id, attempt) }
}

const WELL: [State; 7] = [
    State::Accepted,
    State::Downloading,
    State::Downloaded,
    State::Installing,
    State::Rebooting,
    State::Confirming,
    State::Succeeded,
];

#[test]
fn a_well_behaved_device_says_every_state_once_it_is_there_and_ends_with_the_new_version() {
    let mut bench = Bench::new(Behaviour::default());
    assert_eq!((bench.says(), bench.updater.state()), (None, "IDLE"));
    bench.offer(&info("dep", 1));
    assert_eq!(bench.live(), WELL);
    let updater = &bench.updater;
    assert_eq!((updater.version(), updater.boots(), updater.installs()), ("2.0.0", 1, 1));
    assert_eq!((bench.says(), updater.state()), (None, "SUCCEEDED"));
    assert!(!updater.is_harmed() && !updater.is_working() && updater.violations().is_empty());
    assert_eq!((updater.attempts()[0].installs, updater.attempts()[0].is_answered), (1, true));
}

#[test]
fn each_mishap_ends_as_it_should() {
    let one = |change: fn(&mut Behaviour)| {
        let mut behaviour = Behaviour::default();
        change(&mut behaviour);
        let mut bench = Bench::new(behaviour);
        bench.offer(&info("dep", 1));
        let said = bench.live();
        let updater = bench.updater;
        (said, updater.version().to_owned(), updater.is_harmed(), updater.is_gone(), updater.boots())
    };
    let old = || "1.0.0".to_owned();
    assert_eq!(one(|b| b.p_reject = 1.0), (vec![State::Rejected], old(), false, false, 0));
    assert_eq!(one(|b| b.p_ignore = 1.0), (vec![], old(), false, false, 0));
    assert_eq!(one(|b| b.p_vanish = 1.0), (vec![State::Accepted], old(), true, true, 0));
    let failed = vec![State::Accepted, State::Downloading, State::Failed];
    assert_eq!(one(|b| b.p_download_fail = 1.0), (failed, old(), false, false, 0));
    let until = |last: &[State]| [&WELL[..4], last].concat();
    assert_eq!(one(|b| b.p_install_fail = 1.0), (until(&[State::Failed]), old(), true, false, 0));
    let booted = until(&[State::Rebooting, State::Failed]);
    assert_eq!(one(|b| b.p_boot_fail = 1.0), (booted, old(), true, false, 1));
    assert_eq!(one(|b| b.p_brick = 1.0), (until(&[State::Rebooting]), old(), true, true, 0));
    let reverted = [&WELL[..], &[State::Reverted]].concat();
    assert_eq!(one(|b| b.p_revert = 1.0), (reverted, old(), true, false, 2));
}

#[test]
fn a_bad_version_loads_the_processor_and_restarts_until_it_is_gone() {
    let mut bench = Bench::new(Behaviour { p_bad_metrics: 1.0, ..Behaviour::default() });
    assert_eq!((bench.updater.extra_cpu_percent(), bench.updater.restart_count(bench.now)), (0.0, 0));
    bench.offer(&info("dep", 1));
    assert_eq!(bench.live(), WELL, "every install succeeds");
    assert_eq!(bench.updater.extra_cpu_percent(), 60.0);
    assert!(bench.updater.restart_count(bench.now) >= 5 && bench.updater.is_harmed());
    bench.offer(&back("dep", 2));
    bench.live();
    assert_eq!((bench.updater.version(), bench.updater.rollbacks()), ("1.0.0", 1));
    assert_eq!((bench.updater.extra_cpu_percent(), bench.updater.restart_count(bench.now)), (0.0, 0));
}

#[test]
fn no_work_begins_before_the_acceptance_is_acknowledged_and_it_is_said_until_then() {
    let mut bench = Bench::new(Behaviour::default());
    bench.offer(&info("dep", 1));
    for _ in 0..5 {
        bench.pass(10_000);
        assert_eq!(bench.lost(), State::Accepted);
        bench.offer(&info("dep", 1));
        assert!(!bench.updater.is_working());
    }
    assert!(bench.updater.violations().is_empty(), "the server did not know of the acceptance");
    assert_eq!(bench.heard(), State::Accepted);
    assert!(bench.updater.is_working());
    assert_eq!(bench.updater.attempts()[0].offers, 6);
}

#[test]
fn each_state_is_reported_until_it_is_acknowledged_and_a_restart_waits_for_nobody() {
    let mut bench = Bench::new(Behaviour::default());
    bench.offer(&info("dep", 1));
    bench.heard();
    bench.pass(300);
    for _ in 0..3 {
        assert_eq!(bench.lost(), State::Downloaded, "it installs nothing while the server may not know");
        bench.pass(1_000);
    }
    bench.heard();
    bench.pass(300);
    assert_eq!(bench.lost(), State::Rebooting);
    assert!(bench.updater.is_silent());
    bench.pass(300);
    assert_eq!((bench.updater.is_silent(), bench.says()), (false, Some((1, State::Confirming))));
    bench.pass(300);
    for _ in 0..3 {
        assert_eq!(bench.lost(), State::Succeeded);
        bench.pass(1_000);
    }
    bench.heard();
    assert_eq!(bench.says(), None);
}

#[test]
fn a_late_acknowledgement_of_an_earlier_state_moves_nothing() {
    let mut bench = Bench::new(Behaviour::default());
    bench.offer(&info("dep", 1));
    let accepted = bench.updater.report(bench.now).unwrap();
    bench.heard();
    bench.pass(300);
    bench.updater.acknowledged(&accepted, bench.now);
    assert_eq!(bench.says(), Some((1, State::Downloaded)));
}

#[test]
fn an_offer_after_the_answer_was_acknowledged_is_commanding_twice() {
    for (behaviour, answer) in [
        (Behaviour::default(), State::Accepted),
        (Behaviour { p_reject: 1.0, ..Behaviour::default() }, State::Rejected),
    ] {
        let mut bench = Bench::new(behaviour);
        bench.offer(&info("dep", 1));
        bench.offer(&info("dep", 1));
        assert_eq!(bench.heard(), answer);
        assert_eq!(bench.updater.violations().total(), 0);
        bench.offer(&info("dep", 1));
        assert_eq!(bench.updater.violations().commanded_twice, 1);
        assert_eq!(bench.updater.attempts()[0].offers_after_answer, 1);
        // Whatever the server does, the device does nothing twice.
        bench.live();
        bench.offer(&info("dep", 1));
        bench.live();
        assert!(bench.updater.attempts()[0].installs <= 1);
        assert_eq!(bench.updater.violations().commanded_twice, 2);
        assert!(bench.updater.violations().examples[0].contains("attempt 1 of dep"));
    }
}

#[test]
fn an_offer_that_crosses_the_answer_is_no_repetition_and_a_newer_one_is_taken() {
    let mut bench = Bench::new(Behaviour::default());
    bench.offer(&info("dep", 1));
    bench.offer(&info("dep", 1));
    assert_eq!(bench.heard(), State::Accepted);
    assert!(bench.updater.violations().is_empty() && bench.updater.is_working());

    // The acceptance came too late to count: the reply to it has the next attempt.
    let mut bench = Bench::new(Behaviour::default());
    bench.offer(&info("dep", 1));
    let late = bench.updater.report(bench.now).unwrap();
    bench.offer(&info("dep", 2));
    bench.updater.acknowledged(&late, bench.now);
    assert_eq!((bench.says(), bench.updater.is_working()), (Some((2, State::Accepted)), false));
    assert!(bench.updater.violations().is_empty());
}

#[test]
fn an_update_offered_during_another_is_two_at_once_and_is_left_alone() {
    let mut bench = Bench::new(Behaviour::default());
    bench.offer(&info("dep", 1));
    bench.heard();
    bench.offer(&info("other", 1));
    assert_eq!(bench.updater.violations().two_at_once, 1);
    assert_eq!(bench.says(), Some((1, State::Downloading)));
    assert_eq!(bench.updater.report(bench.now).unwrap().deployment_id, "dep");
    let mut bench = Bench::new(Behaviour::default());
    bench.offer(&info("dep", 1));
    bench.heard();
    bench.offer(&back("dep", 2));
    assert_eq!(bench.updater.violations().two_at_once, 1, "nor is it told to go back half way");
}

#[test]
fn offers_that_alternate_are_two_at_once_and_a_withdrawn_one_is_not() {
    let mut bench = Bench::new(Behaviour { p_ignore: 1.0, ..Behaviour::default() });
    bench.offer(&info("dep", 1));
    bench.offer(&info("other", 1));
    bench.offer(&info("other", 1));
    assert!(bench.updater.violations().is_empty(), "the first may have been revoked");
    bench.offer(&info("dep", 1));
    assert_eq!(bench.updater.violations().two_at_once, 1);
    bench.offer(&info("dep", 2));
    assert_eq!(bench.updater.violations().total(), 1);
}

#[test]
fn an_offer_of_a_deployment_that_is_over_is_noticed() {
    let mut bench = Bench::new(Behaviour::default());
    bench.updater.offered(&info("dep", 1), true, bench.now);
    assert_eq!(bench.updater.violations().after_end, 1);
}

#[test]
fn a_higher_attempt_takes_over_the_work_under_way_and_installs_once() {
    let mut bench = Bench::new(Behaviour::default());
    bench.offer(&info("dep", 1));
    bench.heard();
    bench.offer(&info("dep", 2));
    assert_eq!(bench.says(), Some((2, State::Downloading)));
    bench.live();
    let updater = &bench.updater;
    assert_eq!((updater.installs(), updater.version()), (1, "2.0.0"));
    assert_eq!((updater.reoffered_while_working(), updater.violations().total()), (1, 0));
    assert!(updater.attempts()[1].is_answered);
}

#[test]
fn a_failed_attempt_is_followed_by_the_next_and_the_fate_is_drawn_anew() {
    let behaviour = Behaviour { p_install_fail: 1.0, faulty_attempts: 1, ..Behaviour::default() };
    let mut bench = Bench::new(behaviour);
    bench.offer(&info("dep", 1));
    assert_eq!(bench.live().last(), Some(&State::Failed));
    bench.offer(&info("dep", 2));
    assert_eq!(bench.live(), WELL);
    assert_eq!((bench.updater.version(), bench.updater.violations().total()), ("2.0.0", 0));
}

#[test]
fn a_void_offer_is_dropped_before_the_installation_and_not_after_it_began() {
    let mut bench = Bench::new(Behaviour { accept_by_call: true, ..Behaviour::default() });
    bench.offer(&info("dep", 1));
    assert!(bench.updater.reports_by_call());
    let report = bench.updater.report(bench.now).unwrap();
    bench.updater.refused(&report);
    assert_eq!((bench.says(), bench.updater.state(), bench.updater.reports_by_call()), (None, "IDLE", false));
    assert!(bench.updater.attempts()[0].is_void && bench.updater.violations().is_empty());

    bench.offer(&info("dep", 2));
    bench.heard();
    assert!(!bench.updater.reports_by_call(), "only the answer is a call of its own");
    bench.pass(300);
    bench.heard();
    assert_eq!(bench.says(), Some((2, State::Installing)));
    let report = bench.updater.report(bench.now).unwrap();
    bench.updater.refused(&report);
    bench.live();
    assert_eq!(bench.updater.version(), "2.0.0", "half an installation is worse than a whole one");
}

#[test]
fn a_vanished_device_comes_back_as_it_was_when_it_is_switched_on() {
    let mut bench = Bench::new(Behaviour { p_vanish: 1.0, ..Behaviour::default() });
    bench.offer(&info("dep", 1));
    bench.live();
    assert!(bench.updater.is_silent() && bench.updater.due().is_none());
    bench.updater.revive();
    assert_eq!((bench.updater.is_silent(), bench.says(), bench.updater.version()), (false, None, "1.0.0"));
    assert!(bench.updater.is_harmed(), "it is not forgotten");
}

#[test]
fn a_failed_way_back_keeps_the_new_version() {
    let mut bench = Bench::new(Behaviour { p_rollback_fail: 1.0, ..Behaviour::default() });
    bench.offer(&info("dep", 1));
    bench.live();
    bench.offer(&back("dep", 2));
    assert_eq!(bench.live().last(), Some(&State::Failed));
    assert_eq!((bench.updater.version(), bench.updater.rollbacks()), ("2.0.0", 0));
}

#[test]
fn a_real_download_ends_when_it_is_told_so() {
    let mut bench = Bench::new(Behaviour { fetch: true, ..Behaviour::default() });
    let offer = UpdateInfo { download_url: "http://h/f".to_owned(), ..info("dep", 1) };
    bench.offer(&offer);
    bench.heard();
    let fetch = bench.updater.take_fetch().expect("a file to fetch");
    assert_eq!((fetch.url.as_str(), fetch.checksum.as_str(), fetch.size_bytes), ("http://h/f", "sha256:00", 9));
    assert_eq!(bench.updater.take_fetch(), None);
    bench.pass(10_000);
    bench.updater.fetching(&fetch, 40.0);
    assert_eq!(bench.updater.report(bench.now).unwrap().progress_percent, 40.0);
    let mut broken = Bench { updater: bench.updater.clone(), now: bench.now };
    broken.updater.fetched(&fetch, Err("the checksum is wrong"), broken.now);
    assert_eq!((broken.says(), broken.updater.is_harmed()), (Some((1, State::Failed)), false));
    bench.updater.fetched(&fetch, Ok(()), bench.now);
    assert_eq!(bench.says(), Some((1, State::Downloaded)));
    assert_eq!(bench.live().last(), Some(&State::Succeeded));
}

#[test]
fn progress_within_a_state_grows_with_time() {
    let mut bench = Bench::new(Behaviour::default());
    bench.offer(&info("dep", 1));
    bench.heard();
    let percent = |bench: &Bench| bench.updater.report(bench.now).unwrap().progress_percent;
    assert_eq!(percent(&bench), 0.0);
    bench.pass(150);
    assert_eq!(percent(&bench), 50.0);
}
