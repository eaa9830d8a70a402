//! What judgements of health are shown, and who counts as online by what was told.
use std::time::{Duration, Instant};

use fleetd_proto::v1::device_status::State;
use fleetd_proto::v1::SystemStats;

use super::super::queries::{QueryFailure, Run};
use super::super::{CheckupRequest, FleetIndex};
use super::model::Report;
use super::rows::device;
use super::{put, INTERVAL, MOMENT, NOW};
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::health::{judge, HealthRules, HealthSettings};
use crate::query::Filter;

fn run() -> Run<'static> {
    Run { moment: MOMENT, until: Instant::now() + Duration::from_secs(60), is_abandoned: &|| false }
}

fn report(temperature: f64) -> Report {
    let stats = SystemStats {
        cpu_percent: 10.0,
        temperature_celsius: Some(temperature),
        battery_percent: Some(50.0),
        ..SystemStats::default()
    };
    Report {
        version: None,
        stats: Some(stats),
        uptime_seconds: 5,
        reported: State::Online,
        last_seen: UnixMillis::EPOCH,
        silent: Duration::ZERO,
    }
}

#[test]
fn each_device_is_examined_once_with_the_thresholds_of_its_labels() {
    let rules: HealthSettings = toml::from_str(
        "[[override]]\nlabel = \"site=freezer\"\ntemperature_celsius = { warning = -10, critical = -5 }\n",
    )
    .expect("valid");
    let rules = HealthRules::of(rules).expect("valid");
    let index = FleetIndex::new(INTERVAL);
    let entries: Vec<_> = [("a", "freezer"), ("b", "oven"), ("c", "freezer"), ("d", "")]
        .map(|(id, site)| {
            let mut model = device(id);
            model.record.labels.insert("site".to_owned(), site.to_owned());
            model.report = (id != "d").then(|| report(-7.0));
            put(&index, &model)
        })
        .into();
    let checked = |request: CheckupRequest| {
        let mut seen = Vec::new();
        let checked = index.checkup::<QueryFailure>(&request, &rules, &run(), &mut |device| {
            let health = judge(&device.vitals, device.thresholds);
            assert_eq!((device.registered_at, device.interval), (UnixMillis::EPOCH, INTERVAL));
            let codes: Vec<_> = health.findings.iter().map(|finding| finding.code).collect();
            seen.push((device.entry.id.to_string(), health.score, codes));
            Ok(())
        });
        checked.expect("time enough");
        seen
    };
    let named = |ids: &[usize]| ids.iter().map(|at| entries[*at].clone()).collect::<Vec<_>>();
    let (cold, warm) = (("b".to_owned(), 100, vec![]), |id: &str| (id.to_owned(), 85, vec!["TEMPERATURE_WARNING"]));
    let unknown = ("d".to_owned(), 0, vec![]);
    let everybody = CheckupRequest { filter: Some(Filter::matches_all()), devices: named(&[1, 1]) };
    assert_eq!(checked(everybody), [warm("a"), cold.clone(), warm("c"), unknown]);
    let filter = Filter::parse("labels.site:oven", NOW).expect("valid");
    let both = CheckupRequest { filter: Some(filter), devices: named(&[2, 1, 2]) };
    assert_eq!(checked(both), [cold.clone(), warm("c")]);
    assert_eq!(checked(CheckupRequest { filter: None, devices: named(&[1]) }), [cold]);
    assert_eq!(checked(CheckupRequest::default()), []);
    entries[0].forget();
    index.remove(&entries[0]);
    assert_eq!(checked(CheckupRequest { filter: None, devices: named(&[0]) }), [], "it is gone");
}

#[test]
fn who_was_told_to_be_online_counts_until_something_else_is_told() {
    let index = FleetIndex::new(INTERVAL);
    let entries = ["a", "b", "c"].map(|id| put(&index, &device(id)));
    entries.iter().for_each(|entry| entry.update_live(|live| report(0.0).apply(live)));
    let online = || {
        let online = index.online_now(&run()).expect("time enough");
        (online.count(), entries.each_ref().map(|entry: &std::sync::Arc<DeviceEntry>| online.has(entry)))
    };
    assert_eq!(online(), (0, [false; 3]), "nothing was told yet");
    index.changes(0, &MOMENT, &mut |change| change.to == State::Online && change.entry.id.as_str() != "b");
    assert_eq!(online(), (2, [true, false, true]));
    entries[2].forget();
    assert_eq!(index.remove(&entries[2]), Some(State::Online));
    assert_eq!(index.remove(&entries[2]), None);
    assert_eq!(online(), (1, [true, false, false]));
}
