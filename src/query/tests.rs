//! The language as a whole: the reference's lines word for word, errors with their columns, and properties.
use std::cell::RefCell;
use std::collections::BTreeMap;

use fleetd_proto::v1::device_status::State;
use proptest::prelude::*;

use super::*;
use crate::clock::UnixMillis;

/// 2024-06-01T00:00:00Z
const NOW: UnixMillis = UnixMillis::from_unix_seconds(1_717_200_000);

/// A device made of maps.
#[derive(Clone, Debug, Default)]
struct Device {
    texts: BTreeMap<String, Vec<String>>,
    numbers: BTreeMap<String, f64>,
    metadata: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    last_seen: Option<i64>,
    registered_at: i64,
    state: State,
}

impl Subject for Device {
    fn any_text(&self, field: TextField, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.texts.get(&Field::Text(field).to_string()).is_some_and(|texts| texts.iter().any(|text| test(text)))
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    fn number(&self, field: NumberField) -> Option<f64> {
        self.numbers.get(&Field::Number(field).to_string()).copied()
    }

    fn metric(&self, name: &str) -> Option<f64> {
        self.numbers.get(&format!("metrics.{name}")).copied()
    }

    fn last_seen(&self) -> Option<UnixMillis> {
        self.last_seen.map(UnixMillis::from_millis_clamped)
    }

    fn registered_at(&self) -> UnixMillis {
        UnixMillis::from_millis_clamped(self.registered_at)
    }

    fn state(&self) -> State {
        self.state
    }
}

/// The Raspberry Pi that the reference's examples register, online and busy.
fn raspberry() -> Device {
    let text = |name: &str, value: &str| (name.to_owned(), vec![value.to_owned()]);
    Device {
        texts: [
            text("id", "rpi-001"),
            text("name", "Raspberry Pi 001"),
            text("type", "raspberry-pi"),
            text("version", "1.0.0"),
            text("system_info.os", "Linux"),
            ("system_info.ip_addresses".into(), vec!["10.0.0.7".into(), "fe80::1".into()]),
        ]
        .into(),
        numbers: [("cpu_usage", 85.0), ("memory_usage", 95.0), ("system_info.cpu_cores", 4.0), ("metrics.rpm", 1200.0)]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
        metadata: [("location".into(), "datacenter-1".into()), ("odd key".into(), "x".into())].into(),
        labels: [("ring".into(), "3".into()), ("region".into(), "eu-west".into())].into(),
        last_seen: Some(NOW.as_millis() - 30 * 60 * 1_000),
        registered_at: 1_704_067_200_000,
        state: State::Online,
    }
}

fn matches(filter: &str, device: &Device) -> bool {
    Filter::parse(filter, NOW).unwrap_or_else(|error| panic!("{filter}: {error}")).matches(device)
}

#[test]
fn every_filter_line_of_the_reference_means_what_it_says() {
    let rpi = raspberry();
    let esp = Device {
        texts: [("type".to_owned(), vec!["esp32".to_owned()])].into(),
        state: State::Offline,
        last_seen: Some(1_600_000_000_000),
        numbers: [("cpu_usage".to_owned(), 10.0)].into(),
        ..Device::default()
    };
    for (filter, for_rpi, for_esp) in [
        ("status:online", true, false),
        ("type:raspberry-pi,esp32", true, true),
        ("last_seen:>2024-01-01", true, false),
        ("cpu_usage:>80 AND memory_usage:>90", true, false),
        ("NOT status:offline", true, false),
        // The operators, one by one.
        ("type:raspberry-pi", true, false),
        ("cpu_usage:>50", true, false),
        ("cpu_usage:<50", false, true),
        ("type:rasp*", true, false),
        ("type:*32", false, true),
        ("type:*berry*", true, false),
        ("NOT type:esp32", true, false),
        ("type:raspberry-pi AND status:online", true, false),
        ("type:esp32 OR status:online", true, true),
    ] {
        assert_eq!((matches(filter, &rpi), matches(filter, &esp)), (for_rpi, for_esp), "{filter}");
    }
}

#[test]
fn what_goes_beyond_the_reference_works() {
    let rpi = raspberry();
    for filter in [
        "",
        "  ",
        "cpu_usage:>=85",
        "cpu_usage:<=85",
        "cpu_usage:85,90",
        "(type:esp32 OR type:raspberry-pi) AND status:ONLINE",
        "NOT (type:esp32 OR status:offline)",
        "not not status:online",
        "name:\"Raspberry Pi 001\"",
        "name:\"Raspberry\"*",
        "name:*\"Pi 0\"*",
        "metadata.location:*",
        "NOT metadata.colour:*",
        "NOT metadata.colour:red",
        "metadata.\"odd key\":x",
        "labels.ring:>2",
        "labels.ring:3",
        "NOT labels.region:>2",
        "metrics.rpm:>1000",
        "system_info.os:Linux",
        "system_info.cpu_cores:4",
        "system_info.ip_addresses:10.0.*",
        "system_info.ip_addresses:fe80::1",
        "last_seen:>-1h",
        "last_seen:<-15m",
        "last_seen:2024-05-31",
        "registered_at:2024-01-01T00:00:00Z",
        "registered_at:>=2024-01-01",
        "NOT registered_at:>2024-01-01",
        "version:>=1",
        "version:<1.0.1",
        "version:>1.0.0-rc.1",
        "status:on*",
        "id:rpi-001, rpi-002",
        // AND binds tighter than OR.
        "status:online OR type:esp32 AND type:esp32",
        "uptime:* OR status:online",
    ] {
        assert!(matches(filter, &rpi), "{filter}");
    }
}

#[test]
fn an_error_tells_the_column_and_what_was_expected() {
    for (filter, column, part) in [
        ("stauts:online", 1, "did you mean status?"),
        ("status:online AND stat:x", 19, "no field \"stat\""),
        ("status:onlin", 8, "did you mean online?"),
        ("status", 7, "expected a :"),
        ("status:", 8, "expected a value"),
        ("status: online", 8, "expected a value"),
        ("cpu_usage:>high", 12, "cpu_usage is a number"),
        ("cpu_usage:8*", 11, "is a number"),
        ("cpu_usage:>nan", 12, "is a number"),
        ("name:>a", 7, "has no order"),
        ("last_seen:>yesterday", 12, "a day (2024-01-31)"),
        ("last_seen:-1h", 11, "with > or <"),
        ("labels.ring:>x", 14, "compares by number"),
        ("version:>latest", 10, "version such as"),
        ("(status:online", 15, "column 1"),
        ("status:online)", 14, "no ( opened"),
        ("status:online type:x", 15, "expected AND, OR or the end"),
        ("status:online AND", 18, "expected a field"),
        ("name:a*b", 8, "inside a value"),
        ("name:\"a", 6, "not closed"),
        ("name:\"a\\n\"", 8, "only \" or \\"),
        ("name:ü AND größe:1", 12, "no field"),
        ("AND", 1, "no field \"AND\""),
        ("metadata:x", 1, "metadata.KEY"),
        ("type:a,,b", 8, "expected a value"),
        ("cpu_usage:>*", 12, "without a *"),
    ] {
        let error = Filter::parse(filter, NOW).expect_err(filter);
        assert_eq!(error.column, column, "{filter}: {error}");
        assert!(error.message.contains(part), "{filter}: {error}");
    }
}

#[test]
fn every_order_of_the_reference_sorts_as_it_says() {
    let device = |name: &str, seen: i64, cpu: f64, memory: f64| Device {
        texts: [("name".to_owned(), vec![name.to_owned()]), ("id".to_owned(), vec![name.to_owned()])].into(),
        last_seen: Some(seen),
        numbers: [("cpu_usage".to_owned(), cpu), ("memory_usage".to_owned(), memory)].into(),
        ..Device::default()
    };
    let fleet = [device("b", 3, 50.0, 1.0), device("a", 1, 90.0, 2.0), device("c", 2, 50.0, 9.0)];
    for (order, expected) in [
        ("last_seen DESC", "b c a"),
        ("name ASC", "a b c"),
        ("name", "a b c"),
        ("cpu_usage DESC, memory_usage DESC", "a c b"),
        ("cpu_usage desc,memory_usage", "a b c"),
        ("", "a b c"),
    ] {
        let order_by = OrderBy::parse(order).expect(order);
        let mut sorted: Vec<_> =
            fleet.iter().map(|device| (order_by.values(device), device.texts["id"][0].as_str())).collect();
        sorted.sort_by(|a, b| order_by.compare((&a.0, a.1), (&b.0, b.1)));
        assert_eq!(sorted.iter().map(|(_, id)| *id).collect::<Vec<_>>().join(" "), expected, "{order}");
    }
}

#[test]
fn devices_that_lack_a_value_come_last_either_way() {
    for order in ["cpu_usage", "cpu_usage DESC"] {
        let order_by = OrderBy::parse(order).expect(order);
        let (with, without) = (order_by.values(&raspberry()), order_by.values(&Device::default()));
        assert!(order_by.compare((&with, "z"), (&without, "a")).is_lt(), "{order}");
    }
}

#[test]
fn an_order_that_is_none_is_refused_with_its_column() {
    for (order, column, part) in [
        ("nmae", 1, "did you mean name?"),
        ("name DOWN", 6, "expected ASC, DESC"),
        ("name,", 6, "another field"),
        ("name, name DESC", 7, "in the order already"),
        (", name", 1, "expected a field"),
        ("id,name,type,version,status,last_seen,registered_at,cpu_usage,disk_usage", 63, "at most 8"),
    ] {
        let error = OrderBy::parse(order).expect_err(order);
        assert_eq!(error.column, column, "{order}: {error}");
        assert!(error.message.contains(part), "{order}: {error}");
    }
}

#[test]
fn a_query_from_hell_is_refused_by_a_bound_with_a_short_message() {
    let many = (0..=MAX_VALUES).map(|at| format!("a{at}")).collect::<Vec<_>>().join(",");
    for (filter, part) in [
        ("(".repeat(10_000) + "status:online" + &")".repeat(10_000), "too long"),
        ("(".repeat(1_000) + "status:online" + &")".repeat(1_000), "nested deeper"),
        ("NOT ".repeat(1_000) + "status:online", "nested deeper"),
        ("x".repeat(10 << 20), "too long"),
        (format!("id:{many}"), "more than 1000 values"),
        ("\"".repeat(MAX_QUERY_BYTES), "expected a field"),
        ("y".repeat(MAX_QUERY_BYTES) + ":x", "too long"),
        ("y".repeat(MAX_QUERY_BYTES - 2) + ":x", "no field"),
    ] {
        let error = Filter::parse(&filter, NOW).expect_err(part).to_string();
        assert!(error.contains(part) && error.len() < 500, "{part}: {error}");
    }
    let nested = "(".repeat(MAX_DEPTH) + "status:online" + &")".repeat(MAX_DEPTH);
    assert!(matches(&nested, &raspberry()));
}

fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(Field::all_named().map(|(name, _)| name.to_owned()).collect::<Vec<_>>()),
        "[a-z ]{1,6}".prop_map(|key| format!("labels.\"{key}\"")),
        "[a-z]{1,6}".prop_map(|key| format!("metrics.{key}")),
    ]
}

/// A test that fits the kind of its field.
fn test_text() -> impl Strategy<Value = String> {
    (field(), any::<u32>(), "[a-zA-Z0-9 \"\\\\()*,.:<>é-]{0,8}", 0..6usize).prop_map(|(name, number, text, form)| {
        let field = parser_field(&name);
        let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let operator = ["", ">", ">=", "<", "<=", ""][form];
        match (field.kind(), operator) {
            (_, "") if form == 5 => format!("{name}:*"),
            (Kind::Number, operator) => format!("{name}:{operator}{}", f64::from(number) / 7.0),
            (Kind::Time, "") => format!("{name}:2024-0{}-01,2024-01-02T03:04:05Z", 1 + number % 9),
            (Kind::Time, operator) => format!("{name}:{operator}-{}s", number),
            (Kind::State, _) => format!("{name}:{}", ["online", "Late", "off*", "*e"][number as usize % 4]),
            (Kind::Version, "") | (Kind::Text | Kind::Note, _) => match number % 4 {
                0 => format!("{name}:{quoted}"),
                1 => format!("{name}:{quoted}*,*{quoted}"),
                2 => format!("{name}:*{quoted}*"),
                _ => format!("{name}:plain,{quoted}"),
            },
            (Kind::Version, operator) => format!("{name}:{operator}1.{number}.0"),
        }
    })
}

fn parser_field(name: &str) -> Field {
    Field::named(&name.replace('"', "")).expect("generated from the list")
}

fn filter_text() -> impl Strategy<Value = String> {
    test_text().prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|a| format!("NOT ({a})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) and {b}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a} OR {b}")),
        ]
    })
}

/// Truth of each test by its text alone, so that the shape of an expression can be checked apart from its leaves.
fn holds_by_coin(expr: &Expr, coins: &RefCell<BTreeMap<String, bool>>) -> bool {
    match expr {
        Expr::Not(inner) => !holds_by_coin(inner, coins),
        Expr::And(terms) => terms.iter().fold(true, |all, term| holds_by_coin(term, coins) & all),
        Expr::Or(terms) => terms.iter().fold(false, |any, term| holds_by_coin(term, coins) | any),
        Expr::Test(test) => {
            let text = test.to_string();
            let coin = text.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) & 16 != 0;
            *coins.borrow_mut().entry(text).or_insert(coin)
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_without_a_panic(text in "\\PC{0,80}") {
        let _ = (Filter::parse(&text, NOW), OrderBy::parse(&text));
    }

    #[test]
    fn texts_of_the_languages_own_signs_never_panic(text in "[a-z:()*,\"\\\\ <>=ANDORT.é-]{0,60}") {
        let _ = (Filter::parse(&text, NOW), OrderBy::parse(&text));
    }

    #[test]
    fn the_canonical_text_parses_to_an_equal_filter(text in filter_text()) {
        let filter = Filter::parse(&text, NOW).map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
        let canonical = filter.to_string();
        let again = Filter::parse(&canonical, NOW).map_err(|error| TestCaseError::fail(format!("{canonical}: {error}")))?;
        prop_assert_eq!(&again, &filter, "{} became {}", text, canonical);
        prop_assert_eq!(again.to_string(), canonical);
    }

    #[test]
    fn not_turns_every_answer_round(text in filter_text()) {
        let device = raspberry();
        prop_assert_ne!(matches(&text, &device), matches(&format!("NOT ({text})"), &device));
    }

    #[test]
    fn and_and_or_follow_de_morgan(a in filter_text(), b in filter_text()) {
        let coins = RefCell::default();
        let truth = |text: String| {
            let filter = Filter::parse(&text, NOW).expect("generated");
            holds_by_coin(filter.root().expect("not empty"), &coins)
        };
        prop_assert_eq!(truth(format!("NOT (({a}) AND ({b}))")), truth(format!("NOT ({a}) OR NOT ({b})")));
    }
}
