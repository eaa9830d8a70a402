//! Queries on their threads: answers, bounds, and what happens at them.
use std::time::{Duration, Instant};

use super::model::Model;
use super::{put, INTERVAL, MOMENT};
use crate::auth::KeyHash;
use crate::clock::UnixMillis;
use crate::error::{ApiError, ErrorCode};
use crate::fleet::queries::Run;
use crate::fleet::{FleetIndex, FleetQueries, QueryFailure};
use crate::ids::DeviceId;
use crate::query::{Field, Filter, OrderBy};
use crate::store::Device;

fn fleet(devices: usize) -> FleetIndex {
    let index = FleetIndex::new(INTERVAL);
    for number in 0..devices {
        let id = format!("device-{number:06}");
        let notes = (0..8).map(|n| (format!("note-{n}"), format!("{number} {n} {}", "x".repeat(500)))).collect();
        let record = Device {
            id: DeviceId::parse(&id).expect("a valid id"),
            name: id.clone(),
            device_type: "sensor".into(),
            version: "1.0".into(),
            metadata: notes,
            labels: [("ring".to_owned(), (number % 10).to_string())].into(),
            system_info: bytes::Bytes::new(),
            registered_at: UnixMillis::EPOCH,
            last_seen: None,
            key_hash: KeyHash::of(&id),
            revision: 1,
            maintenance: false,
            heartbeat_interval: None,
        };
        put(&index, &Model { record, system: Default::default(), report: None });
    }
    index
}

fn filter(text: &str) -> Filter {
    Filter::parse(text, UnixMillis::EPOCH).expect("a valid filter")
}

#[actix_rt::test]
async fn a_selection_is_bounded_and_counts_what_it_leaves_out() {
    let queries = FleetQueries::start(fleet(2_500)).expect("threads");
    let selection = queries.select(filter("labels.ring:3"), 100).await.expect("an answer");
    assert_eq!((selection.devices.len(), selection.total), (100, 250));
    assert!(selection.devices.iter().all(|device| device.id.as_str().ends_with('3')));
    assert_eq!(queries.count(filter("labels.ring:3,4")).await.expect("an answer"), 500);
    assert_eq!(queries.stats().answered, 2);
}

#[actix_rt::test]
async fn devices_are_told_apart_by_their_labels_whatever_chunk_they_are_in() {
    let queries = FleetQueries::start(fleet(2_500)).expect("threads");
    let fields = ["labels.ring", "type", "labels.nobody_has_this"].map(|name| Field::named(name).expect("a field"));
    let members = queries.members(filter("NOT labels.ring:3"), fields.to_vec()).await.expect("an answer");
    assert_eq!((members.devices.len(), members.group_of.len(), members.groups.len()), (2_250, 2_250, 9));
    for (device, group) in members.devices.iter().zip(&members.group_of) {
        let ring = device.id.as_str().chars().last().expect("a digit").to_string();
        let group: Vec<&str> = members.groups[*group as usize].iter().map(AsRef::as_ref).collect();
        assert_eq!(group, [ring.as_str(), "sensor", ""]);
    }
    let together = queries.members(filter("labels.ring:3"), vec![]).await.expect("an answer");
    assert_eq!((together.devices.len(), together.groups.len()), (250, 1));
}

#[actix_rt::test]
async fn a_label_is_there_if_a_device_has_it_and_metadata_is_no_label() {
    let queries = FleetQueries::start(fleet(2_500)).expect("threads");
    let has = async |key: &str| queries.has_label(key.to_owned()).await.expect("an answer");
    assert!(has("ring").await);
    assert!(!has("type").await && !has("note-1").await && !has("").await);
}

#[test]
fn a_filter_that_costs_too_much_is_stopped_and_says_what_to_do() {
    let index = fleet(10);
    let run = Run { moment: MOMENT, until: Instant::now() - Duration::from_nanos(1), is_abandoned: &|| false };
    let failure = index.select(&filter("metadata.note-1:*x*"), 10, &run).err().expect("its time is over");
    assert!(matches!(failure, QueryFailure::TooCostly { percent: 0 }), "{failure}");
    let told = ApiError::from(failure);
    assert_eq!(told.code, ErrorCode::ResourceExhausted);
    assert!(told.message.contains("narrow it by status"), "{}", told.message);
}

#[actix_rt::test]
async fn what_no_thread_can_take_soon_is_refused_counted_and_told_when_to_come_again() {
    let queries = FleetQueries::start(fleet(1_500)).expect("threads");
    let page = || queries.page(filter("metadata.note-7:*nowhere*"), OrderBy::default(), None, 10);
    let outcomes = futures_util::future::join_all((0..500).map(|_| page())).await;
    let refused = outcomes.iter().filter(|outcome| matches!(outcome, Err(QueryFailure::Busy))).count();
    let answered = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(refused + answered, 500);
    assert!(refused > 0 && answered >= 64, "{refused} refused, {answered} answered");
    let stats = queries.stats();
    assert_eq!((stats.refused, stats.answered, stats.waiting), (refused as u64, answered as u64, 0));
    let told = ApiError::from(QueryFailure::Busy);
    assert_eq!(told.code, ErrorCode::Unavailable);
    assert!(told.retry_after.is_some());
}

#[test]
fn a_query_that_nobody_waits_for_is_not_run() {
    let index = fleet(10);
    let until = Instant::now() + Duration::from_secs(60);
    let failure = index.select(&filter(""), 10, &Run { moment: MOMENT, until, is_abandoned: &|| true }).err();
    assert!(matches!(failure, Some(QueryFailure::Abandoned)));
}
