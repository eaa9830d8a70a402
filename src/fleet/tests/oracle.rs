//! Filters, orders and pages of random fleets, as the index answers them and as a plain evaluation does.
use proptest::prelude::*;
use proptest::sample::select;

use super::model::{model, Model};
use super::{put, walk, INTERVAL, NOW};
use crate::fleet::FleetIndex;
use crate::query::{Field, Filter, Kind, OrderBy, SortValue};

fn field() -> impl Strategy<Value = (String, Kind)> {
    let mut names: Vec<String> = Field::all_named().map(|(name, _)| name.to_owned()).collect();
    let open = ["labels.ring", "labels.none", "metadata.site", "metadata.a", "metrics.queue", "metrics.none"];
    names.extend(open.map(str::to_owned));
    select(names).prop_map(|name| {
        let kind = Field::named(&name).expect("from the list").kind();
        (name, kind)
    })
}

/// A test that may hold for some of a fleet.
fn test() -> impl Strategy<Value = String> {
    let text = select(&["a", "b", "7", "1", "v1.10", "\"größe\"", "\"\"", "d-0000001"][..]);
    (field(), text, select(&[0, 1, 7, 50, 80, 100][..]), 0..8usize).prop_map(|((name, kind), text, number, form)| {
        let operator = ["", ">", ">=", "<", "<=", "", "", ""][form];
        match (kind, operator) {
            _ if form == 7 => format!("{name}:*"),
            (Kind::Text, _) | (Kind::Version | Kind::Note, "") => match form {
                0 => format!("{name}:{text}"),
                5 => format!("{name}:{text}*,*{text}"),
                6 => format!("{name}:*{text}*"),
                _ => format!("{name}:a,{text}"),
            },
            (Kind::Version, operator) => format!("{name}:{operator}1.{number}"),
            (Kind::Number | Kind::Note, operator) => format!("{name}:{operator}{number}"),
            (Kind::Time, "") => format!("{name}:1970-01-01,1969-12-31T23:00:00Z"),
            (Kind::Time, operator) => format!("{name}:{operator}-{}m", number * 3),
            (Kind::State, _) => format!("{name}:{}", ["online", "late,unknown", "off*", "maintenance"][form % 4]),
        }
    })
}

pub(super) fn filter() -> impl Strategy<Value = String> {
    let filled = test().prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|a| format!("NOT ({a})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) AND ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) OR ({b})")),
        ]
    });
    prop_oneof![1 => Just(String::new()), 9 => filled]
}

fn order() -> impl Strategy<Value = String> {
    prop::collection::btree_map(field().prop_map(|(name, _)| name), any::<bool>(), 0..4).prop_map(|keys| {
        let keys = keys.into_iter().map(|(name, descends)| name + if descends { " DESC" } else { "" });
        keys.collect::<Vec<_>>().join(", ")
    })
}

/// Devices of some kinds, under ids whose order has nothing to do with the order in which they come.
pub(super) fn fleet(kinds: &[Model], devices: usize) -> Vec<Model> {
    let scrambled = |number: usize| number * 7_919 % 100_003;
    (0..devices).map(|n| kinds[n * 5 % kinds.len()].named(&format!("d-{:07}-with-a-long-name", scrambled(n)))).collect()
}

/// What a list should be.
fn expected(fleet: &[Model], filter: &str, order: &str) -> Vec<String> {
    let filter = Filter::parse(filter, NOW).expect("a valid filter");
    let order = OrderBy::parse(order).expect("a valid order");
    let matching = fleet.iter().filter(|device| filter.matches(*device));
    let mut keyed: Vec<(Vec<SortValue>, &str)> =
        matching.map(|device| (order.values(device), device.record.id.as_str())).collect();
    keyed.sort_by(|a, b| order.compare((&a.0, a.1), (&b.0, b.1)));
    keyed.into_iter().map(|(_, id)| id.to_owned()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn lists_are_what_a_plain_evaluation_of_every_device_says(
        kinds in prop::collection::vec(model(), 1..30),
        // Up to more than two chunks.
        devices in prop_oneof![3 => 0..100usize, 1 => 1_000..2_200usize],
        filter in filter(),
        order in order(),
        size in 1..=100usize,
    ) {
        let fleet = fleet(&kinds, devices);
        let index = FleetIndex::new(INTERVAL);
        let entries: Vec<_> = fleet.iter().map(|device| put(&index, device)).collect();
        let expected = expected(&fleet, &filter, &order);

        let (listed, totals) = walk(&index, &filter, &order, size.max(devices / 20));
        prop_assert!(totals.iter().all(|total| *total == expected.len()), "{totals:?}, not {}", expected.len());
        prop_assert_eq!(&listed, &expected, "{} by {}", filter, order);

        let filter = Filter::parse(&filter, NOW).expect("a valid filter");
        for (entry, device) in entries.iter().zip(&fleet).filter(|(_, device)| device.report.is_none()).take(20) {
            // Who never reported has the same presence at any time.
            prop_assert_eq!(index.matches(entry, &filter), filter.matches(device));
        }
    }

    #[test]
    fn an_index_whose_rows_were_used_before_answers_as_a_fresh_one(
        before in prop::collection::vec(model(), 1..20),
        after in prop::collection::vec(model(), 1..20),
        filter in filter(),
        order in order(),
    ) {
        let index = FleetIndex::new(INTERVAL);
        for device in fleet(&before, 1_100) {
            let entry = put(&index, &device);
            entry.forget();
            index.remove(&entry);
        }
        let fleet = fleet(&after, 60);
        for device in &fleet {
            // Known with another record at first.
            let entry = put(&index, &Model { record: before[0].named(device.record.id.as_str()).record, ..device.clone() });
            let mut record = device.record.clone();
            record.revision = 2;
            entry.describe(&record);
        }
        // What nobody says again stays as it was when the device was registered.
        let fleet: Vec<_> = fleet.into_iter().map(|mut device| {
            device.record.last_seen = before[0].record.last_seen;
            device
        }).collect();
        prop_assert_eq!(walk(&index, &filter, &order, 17).0, expected(&fleet, &filter, &order));
        prop_assert_eq!(index.len(), 60);
    }
}
