//! Pages while the fleet does not stand still.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use fleetd_proto::v1::device_status::State;
use fleetd_proto::v1::{SystemInfo, SystemStats};

use super::model::{Model, Report};
use super::{put, walk, INTERVAL};
use crate::auth::KeyHash;
use crate::clock::UnixMillis;
use crate::fleet::FleetIndex;
use crate::ids::DeviceId;
use crate::store::Device;

/// Devices that stay as they are.
const STEADY: u64 = 1_500;
/// Devices that change, come and go around them.
const RESTLESS: u64 = 1_500;
/// So many of them count as a fleet that does not stand still.
const CHANGES_DURING_A_WALK: u64 = 100;

fn device(id: String, turn: u64) -> Model {
    let record = Device {
        id: DeviceId::parse(&id).expect("a valid id"),
        name: format!("name-{}", turn * 31 % 97),
        device_type: ["gateway", "sensor"][(turn % 2) as usize].into(),
        version: format!("1.{}", turn % 7),
        metadata: BTreeMap::new(),
        labels: [("ring".to_owned(), (turn % 3).to_string())].into(),
        system_info: bytes::Bytes::new(),
        registered_at: UnixMillis::from_millis_clamped((turn * 17 % 1_000) as i64),
        last_seen: None,
        key_hash: KeyHash::of(&id),
        revision: 1,
        maintenance: false,
        heartbeat_interval: None,
    };
    Model { record, system: SystemInfo::default(), report: Some(report(turn)) }
}

fn report(turn: u64) -> Report {
    let stats = SystemStats { cpu_percent: (turn % 101) as f64, ..SystemStats::default() };
    Report {
        version: Some(format!("2.{}", turn % 5)),
        stats: Some(stats),
        uptime_seconds: turn,
        reported: State::Online,
        last_seen: UnixMillis::from_millis_clamped((turn * 13 % 1_000) as i64),
        silent: INTERVAL / 4,
    }
}

/// Changes the restless until told to stop: new reports, new records, deletions and registrations.
fn stir(index: &FleetIndex, lane: u64, is_over: &AtomicBool, changes: &AtomicU64) {
    let id = |number: u64| format!("device-{:05}-restless", number * 7 % RESTLESS * 2 + 1);
    let mine = (0..RESTLESS).filter(|number| number % 2 == lane);
    let mut entries: Vec<_> = mine.map(|number| (number, put(index, &device(id(number), number)))).collect();
    let mut turn = 0;
    while !is_over.load(Ordering::Relaxed) {
        turn += 1;
        let at = (turn * 101) as usize % entries.len();
        let (number, entry) = &mut entries[at];
        match turn % 5 {
            0 => {
                entry.forget();
                index.remove(entry);
                *entry = put(index, &device(id(*number), turn));
            }
            1 => {
                let mut record = device(id(*number), turn).record;
                record.revision = turn;
                entry.describe(&record);
            }
            _ => entry.update_live(|live| report(turn).apply(live)),
        }
        changes.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn devices_that_stay_as_they_are_come_once_and_in_order_while_others_change_come_and_go() {
    let index = FleetIndex::new(INTERVAL);
    let (is_over, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut turns = BTreeMap::new();
    for number in 0..STEADY {
        let id = format!("device-{:05}-steady", number * 11 % STEADY * 2);
        put(&index, &device(id.clone(), number));
        turns.insert(id, number);
    }
    thread::scope(|scope| {
        for lane in 0..2 {
            let (index, is_over, changes) = (&index, &is_over, &changes);
            scope.spawn(move || stir(index, lane, is_over, changes));
        }
        // Stops the others also when an assertion fails.
        let _stop = OnDrop(|| is_over.store(true, Ordering::Relaxed));
        for (filter, order, matches) in [
            ("", "", (|_| true) as fn(u64) -> bool),
            ("type:gateway", "name DESC", |turn| turn % 2 == 0),
            ("labels.ring:1 OR cpu_usage:>90", "cpu_usage DESC, uptime_seconds", |turn| {
                turn % 3 == 1 || turn % 101 > 90
            }),
            ("version:2.3 AND NOT labels.ring:0", "version, last_seen DESC", |turn| turn % 5 == 3 && turn % 3 != 0),
            ("status:online", "registered_at DESC", |_| true),
        ] {
            for size in [37, 100] {
                let before = changes.load(Ordering::Relaxed);
                let (mut ids, mut totals) = walk(&index, filter, order, size);
                // Again, if the others did not get a turn.
                while changes.load(Ordering::Relaxed) < before + CHANGES_DURING_A_WALK {
                    (ids, totals) = walk(&index, filter, order, size);
                }
                let steady: Vec<&String> = ids.iter().filter(|id| id.ends_with("-steady")).collect();
                let expected = turns.values().filter(|turn| matches(**turn)).count();
                assert_eq!(steady.len(), expected, "{filter} by {order}");
                let mut once = steady.clone();
                once.sort_unstable();
                once.dedup();
                assert_eq!(once.len(), expected, "one came twice: {filter} by {order}");
                assert!(steady.iter().all(|id| matches(turns[*id])), "{filter}");
                assert!(totals.iter().all(|total| *total >= expected));
                if order.is_empty() {
                    assert!(ids.is_sorted(), "not in the order of the ids");
                }
            }
        }
    });
    assert_eq!(index.len() as u64, STEADY + RESTLESS);
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
