//! Surveys of random fleets, held to a plain evaluation of every device.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetd_proto::v1::device_status::State;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

use super::model::{model, Model};
use super::oracle::{filter, fleet};
use super::{put, INTERVAL, MOMENT, NOW};
use crate::actors::entry::DeviceEntry;
use crate::fleet::queries::Run;
use crate::fleet::targets::{Survey, SurveyRequest};
use crate::fleet::{FleetIndex, FleetQueries};
use crate::query::{Filter, Subject, TextField};
use crate::rollout::{stable_hash, Target, Targets};

fn request(filter: Option<&str>, devices: Vec<Arc<DeviceEntry>>) -> SurveyRequest {
    SurveyRequest {
        filter: filter.map(parsed),
        devices,
        stratify_labels: vec!["ring".into()],
        wave_filters: vec![],
        is_taken: Box::new(|entry| entry.id.as_str().ends_with("7-with-a-long-name")),
    }
}

fn parsed(filter: &str) -> Filter {
    Filter::parse(filter, NOW).expect("a valid filter")
}

fn survey(index: &FleetIndex, request: &SurveyRequest) -> Survey {
    let run = Run { moment: MOMENT, until: Instant::now() + Duration::from_secs(60), is_abandoned: &|| false };
    index.survey(request, &run).expect("time enough")
}

fn text(device: &Model, field: TextField) -> String {
    let mut found = String::new();
    device.any_text(field, &mut |text| {
        found = text.to_owned();
        true
    });
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_survey_says_of_every_device_what_a_plain_evaluation_says(
        kinds in prop::collection::vec(model(), 1..20),
        devices in prop_oneof![3 => 0..100usize, 1 => 1_000..2_200usize],
        by_filter in prop::option::of(filter()),
        waves in prop::collection::vec(filter(), 0..3),
        every in 1..50usize,
    ) {
        let fleet = fleet(&kinds, devices);
        let index = FleetIndex::new(INTERVAL);
        let entries: Vec<_> = fleet.iter().map(|device| put(&index, device)).collect();
        let named: Vec<_> = entries.iter().step_by(every).cloned().collect();
        let mut request = request(by_filter.as_deref(), named);
        request.wave_filters = waves.iter().map(|filter| parsed(filter)).collect();
        let found = survey(&index, &request);

        let matches = |filter: &Option<String>, device: &Model| filter.as_ref().is_some_and(|one| parsed(one).matches(device));
        let expected: BTreeMap<&str, &Model> = fleet.iter().enumerate()
            .filter(|(at, device)| at % every == 0 || matches(&by_filter, device))
            .map(|(_, device)| (device.record.id.as_str(), device))
            .collect();
        let ids: BTreeSet<&str> = (0..found.rows().len()).map(|at| found.id(at)).collect();
        prop_assert_eq!(ids.len(), found.rows().len(), "each once");
        prop_assert_eq!(ids, expected.keys().copied().collect());
        let mut strata = BTreeMap::new();
        for (at, row) in found.rows().iter().enumerate() {
            let device = expected[found.id(at)];
            let Target { id_hash, stratum, wave_matches, device_type, arch, version, is_online, is_taken } = *row;
            prop_assert_eq!(id_hash, stable_hash(found.id(at)));
            prop_assert_eq!(is_taken, found.id(at).ends_with("7-with-a-long-name"));
            prop_assert_eq!(is_online, matches!(device.state(), State::Online | State::Late));
            for (wave, filter) in waves.iter().enumerate() {
                prop_assert_eq!(wave_matches >> wave & 1 == 1, parsed(filter).matches(device), "{}", filter);
            }
            let known = [(device_type, TextField::Type), (arch, TextField::Arch), (version, TextField::Version)];
            for (number, field) in known {
                prop_assert_eq!(found.text(number), text(device, field));
            }
            let kind = (text(device, TextField::Type), text(device, TextField::Version), device.label("ring"));
            prop_assert_eq!(*strata.entry(kind).or_insert(stratum), stratum);
        }
        let different: BTreeSet<u64> = strata.values().copied().collect();
        prop_assert_eq!(different.len(), strata.len(), "two kinds are two strata");
    }
}

#[actix_rt::test]
async fn a_forgotten_device_is_not_found_and_what_follows_a_survey_runs_with_it() {
    let index = FleetIndex::new(INTERVAL);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let any = model().new_tree(&mut runner).expect("a model").current();
    let entries: Vec<_> = (0..10).map(|n| put(&index, &any.named(&format!("d-{n}")))).collect();
    entries[3].forget();
    index.remove(&entries[3]);
    assert_eq!(index.kind(&entries[3]), None);
    let kind = index.kind(&entries[4]).expect("it has a row");
    assert_eq!((kind.device_type, kind.time_zone), (any.record.device_type.clone(), any.system.time_zone.clone()));
    let queries = FleetQueries::start(index).expect("threads");
    let named = request(None, entries.clone());
    let count = queries.survey(named, |found| found.rows().len()).await.expect("an answer");
    assert_eq!(count, 9);
    let both = request(Some("id:d-1"), vec![Arc::clone(&entries[1]), Arc::clone(&entries[2])]);
    assert_eq!(queries.survey(both, |found| found.devices.len()).await.expect("an answer"), 2);
}
