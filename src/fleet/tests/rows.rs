//! Rows as they are given out, written, and taken back.
use std::collections::BTreeMap;
use std::sync::Arc;

use fleetd_proto::v1::device_status::State;
use fleetd_proto::v1::{SystemInfo, SystemStats};
use prost::Message as _;

use super::model::{Model, Report};
use super::{page, put, walk, INTERVAL};
use crate::actors::entry::DeviceEntry;
use crate::auth::KeyHash;
use crate::clock::UnixMillis;
use crate::fleet::FleetIndex;
use crate::ids::DeviceId;
use crate::query::Filter;
use crate::store::Device;

pub(super) fn device(id: &str) -> Model {
    let record = Device {
        id: DeviceId::parse(id).expect("a valid id"),
        name: id.into(),
        device_type: "sensor".into(),
        version: "1.0".into(),
        metadata: BTreeMap::new(),
        labels: BTreeMap::new(),
        system_info: bytes::Bytes::new(),
        registered_at: UnixMillis::EPOCH,
        last_seen: None,
        key_hash: KeyHash::of(id),
        revision: 1,
        maintenance: false,
        heartbeat_interval: None,
    };
    Model { record, system: SystemInfo::default(), report: None }
}

fn hot_report(version: &str) -> Report {
    Report {
        version: Some(version.into()),
        stats: Some(SystemStats { cpu_percent: 99.0, ..SystemStats::default() }),
        uptime_seconds: 5,
        reported: State::Online,
        last_seen: UnixMillis::EPOCH,
        silent: INTERVAL,
    }
}

fn listed(index: &FleetIndex, filter: &str) -> Vec<String> {
    walk(index, filter, "", 100).0
}

#[test]
fn a_late_report_of_a_deleted_device_is_not_read_as_that_of_the_next_one_in_its_row() {
    let index = FleetIndex::new(INTERVAL);
    let deleted = put(&index, &device("old"));
    deleted.forget();
    index.remove(&deleted);
    index.remove(&deleted);
    let next = put(&index, &device("new"));
    assert!(Arc::ptr_eq(&deleted.row().expect("had one").chunk, &next.row().expect("has one").chunk));
    assert_eq!(deleted.row().expect("had one").slot, next.row().expect("has one").slot);

    deleted.update_live(|live| hot_report("9.9").apply(live));
    deleted.describe(&Device { revision: 7, name: "ghost".into(), ..device("old").record });
    assert_eq!(listed(&index, "cpu_usage:>1 OR version:9.9 OR name:ghost OR NOT status:unknown"), [""; 0]);
    assert_eq!(listed(&index, "id:new AND status:unknown AND version:1.0"), ["new"]);
    assert!(!index.matches(&deleted, &Filter::matches_all()));
    assert_eq!(index.len(), 1);
}

#[test]
fn the_version_that_a_device_reports_stands_over_the_one_it_registered_with() {
    let index = FleetIndex::new(INTERVAL);
    let entry = put(&index, &device("a"));
    entry.update_live(|live| hot_report("2.0").apply(live));
    assert_eq!(listed(&index, "version:2.0"), ["a"]);
    entry.describe(&Device { revision: 2, version: "1.5".into(), name: "b".into(), ..device("a").record });
    assert_eq!(listed(&index, "version:2.0 AND name:b AND cpu_usage:99"), ["a"]);
}

#[test]
fn of_two_changes_that_arrive_in_the_wrong_order_the_later_one_stays() {
    let index = FleetIndex::new(INTERVAL);
    let entry = put(&index, &device("a"));
    entry.describe(&Device { revision: 3, name: "third".into(), maintenance: true, ..device("a").record });
    entry.describe(&Device { revision: 2, name: "second".into(), ..device("a").record });
    assert_eq!(listed(&index, "name:third AND status:maintenance"), ["a"]);
    assert!(entry.live().settings.maintenance);
}

#[test]
fn presence_in_a_list_is_presence_in_a_single_read_at_every_bound() {
    let index = FleetIndex::new(INTERVAL);
    let entry = put(&index, &device("a"));
    let bounds = [INTERVAL * 3 / 2, INTERVAL * 3];
    for silent in bounds.into_iter().flat_map(|at| [at.saturating_sub(NANO), at, at + NANO]) {
        entry.update_live(|live| Report { silent, ..hot_report("1") }.apply(live));
        let state = crate::presence::presence(&entry.live().facts(), &super::MOMENT);
        let filter = format!("status:{}", state.as_str_name().to_ascii_lowercase());
        assert_eq!(listed(&index, &filter), ["a"], "silent for {silent:?}");
    }
}

#[test]
fn a_change_of_presence_is_shown_until_it_is_taken_and_then_no_more() {
    use fleetd_proto::v1::device_status::State;
    let index = FleetIndex::new(INTERVAL);
    let entry = put(&index, &device("a"));
    entry.update_live(|live| Report { silent: INTERVAL * 2, ..hot_report("1") }.apply(live));
    let changes = |takes: bool| {
        let mut seen = Vec::new();
        index.changes(0, &super::MOMENT, &mut |change| {
            seen.push((change.entry.id.to_string(), change.from, change.to));
            takes
        });
        seen
    };
    let late = vec![("a".to_owned(), State::Unknown, State::Late)];
    assert_eq!(changes(false), late);
    assert_eq!(changes(true), late);
    assert_eq!(changes(true), []);
    entry.update_live(|live| Report { silent: INTERVAL * 4, ..hot_report("1") }.apply(live));
    assert_eq!(changes(true), [("a".to_owned(), State::Late, State::Offline)]);
}

const NANO: std::time::Duration = std::time::Duration::from_nanos(1);

#[test]
fn an_index_that_is_dropped_lets_go_of_its_devices() {
    let index = FleetIndex::new(INTERVAL);
    let entry = Arc::downgrade(&put(&index, &device("a")));
    assert_eq!(page(&index, "", "", None, 1).total, 1);
    drop(index);
    assert!(entry.upgrade().is_none());
}

#[test]
fn a_value_that_is_longer_than_a_page_token_may_be_is_found_by_its_beginning() {
    let mut long = device("a");
    long.system.hostname = "h".repeat(5_000);
    long.record.system_info = prost::Message::encode_to_vec(&long.system).into();
    let index = FleetIndex::new(INTERVAL);
    put(&index, &long);
    put(&index, &device("b"));
    let first = page(&index, "system_info.hostname:hhh*", "system_info.hostname", None, 1);
    assert_eq!(first.places.len(), 1);
    assert!(format!("{:?}", first.places[0].values).len() < 1_100);
    assert_eq!(walk(&index, "", "system_info.hostname", 1).0, ["a", "b"]);
}

#[test]
fn what_is_known_of_a_device_is_its_record_and_the_version_that_it_reported() {
    let index = FleetIndex::new(INTERVAL);
    let mut model = device("cam");
    model.record.system_info =
        SystemInfo { memory_mb: 2_048, disk_gb: f64::NAN, ..SystemInfo::default() }.encode_to_vec().into();
    let entry = put(&index, &model);
    let known = |entry: &DeviceEntry| {
        entry.row().expect("had a row").with_known(entry, |known| {
            (known.device_type.to_owned(), known.version.to_owned(), known.memory_mb, known.disk_gb)
        })
    };
    assert_eq!(known(&entry), ("sensor".into(), "1.0".into(), 2_048, 0.0));
    entry.update_live(|live| live.version = Some("2.0".into()));
    let edited = Device { device_type: String::new(), revision: 2, ..model.record };
    entry.describe(&edited);
    assert_eq!(known(&entry), (String::new(), "2.0".into(), 2_048, 0.0));
    entry.forget();
    index.remove(&entry);
    put(&index, &device("next"));
    assert_eq!(known(&entry), (String::new(), String::new(), 0, 0.0), "its row may be another's by now");
}
