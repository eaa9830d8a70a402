//! What the JSON of the contract accepts and writes, beside the reference's own examples.

use std::error::Error as _;

use fleetd_proto::json::{from_slice, to_vec};
use fleetd_proto::v1::*;
use fleetd_proto::{Duration, FieldMask, Timestamp};
use serde::de::DeserializeOwned;

fn read<T: DeserializeOwned>(text: &str) -> T {
    from_slice(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refusal<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> String {
    from_slice::<T>(text.as_bytes()).expect_err(text).to_string()
}

fn written<T: serde::Serialize>(message: &T) -> String {
    String::from_utf8(to_vec(message).expect("it can be written")).expect("json is utf-8")
}

#[test]
fn both_spellings_of_a_name_are_read_and_lower_camel_case_is_written() {
    let snake: HeartbeatRequest = read(r#"{"device_id": "a", "stats": {"cpu_percent": 1, "load_average_1m": 2}}"#);
    let camel: HeartbeatRequest = read(r#"{"deviceId": "a", "stats": {"cpuPercent": 1, "loadAverage1m": 2}}"#);
    assert_eq!(snake, camel);
    assert_eq!(written(&snake), r#"{"deviceId":"a","stats":{"cpuPercent":1.0,"loadAverage1m":2.0}}"#);
}

#[test]
fn null_means_not_set_for_every_kind_of_field() {
    let request: HeartbeatRequest = read(
        r#"{"deviceId": null, "status": {"state": null, "uptimeSeconds": null, "lastBoot": null},
            "stats": {"cpuPercent": null, "metrics": null, "signalDbm": null}, "processes": null, "timestamp": null}"#,
    );
    let expected =
        HeartbeatRequest { status: Some(Default::default()), stats: Some(Default::default()), ..Default::default() };
    assert_eq!(request, expected);
    let upload: UploadBinaryRequest = read(r#"{"metadata": null}"#);
    assert_eq!(upload.data, None);
    assert!(!read::<GetDeviceRequest>(r#"{"include_health": null}"#).include_health);
    assert!(read::<SendCommandRequest>(r#"{"payload": null}"#).payload.is_empty());
    assert_eq!(read::<UpdateDeviceRequest>(r#"{"updateMask": null}"#).update_mask, None);
}

#[test]
fn fields_that_nobody_knows_are_skipped_whatever_they_hold() {
    let request: GetDeviceRequest =
        read(r#"{"future": {"a": [1, {"b": null}], "device_id": "no"}, "device_id": "a", "other": "x"}"#);
    assert_eq!(request, GetDeviceRequest { device_id: "a".into(), ..Default::default() });
}

#[test]
fn a_refusal_names_the_field_the_value_and_what_was_expected() {
    let cases = [
        (r#"{"stats": {"cpu_percent": "hot"}}"#, "stats.cpu_percent: ", "string \"hot\", expected a number"),
        (r#"{"stats": {"memory_used_mb": -1}}"#, "stats.memory_used_mb: ", "integer `-1`, expected a whole number"),
        (r#"{"stats": {"memory_used_mb": 1.5}}"#, "stats.memory_used_mb: ", "floating point `1.5`, expected a whole"),
        (r#"{"stats": {"metrics": {"rpm": []}}}"#, "stats.metrics.rpm: ", "sequence, expected a number"),
        (r#"{"status": {"state": "ONLIEN"}}"#, "status.state: ", "unknown variant `ONLIEN`, expected one of `UNKNOWN`"),
        (r#"{"status": {"state": 77}}"#, "status.state: ", "integer `77`"),
        (
            r#"{"status": {"last_boot": "yesterday"}}"#,
            "status.last_boot: ",
            "string \"yesterday\", expected an RFC 3339",
        ),
        (r#"{"processes": [{"name": "a"}, {"name": 5}]}"#, "processes[1].name: ", "integer `5`, expected a string"),
        (r#"{"device_id": "a", "deviceId": "b"}"#, "duplicate field `deviceId`", ""),
        (r#"{"update_progress": {"attempt": 4294967296}}"#, "update_progress.attempt: ", "from 0 to 4294967295"),
    ];
    for (text, field, reason) in cases {
        let refusal = refusal::<HeartbeatRequest>(text);
        assert!(refusal.starts_with(field), "{text}: {refusal}");
        assert!(refusal.contains(reason) && refusal.contains("at line 1 column "), "{text}: {refusal}");
    }
    let error = from_slice::<HeartbeatRequest>(br#"{"processes": [{"pid": "x"}]}"#).expect_err("x is no pid");
    assert_eq!(error.field(), Some("processes[0].pid"));
    assert_eq!(from_slice::<HeartbeatRequest>(b"[]").expect_err("no object").field(), None);
    let refusal = refusal::<SendCommandRequest>(r#"{"payload": "a*b"}"#);
    assert!(refusal.starts_with("payload: invalid base64: "), "{refusal}");
}

#[test]
fn a_refusal_of_a_huge_value_is_short_and_still_says_where_and_why() {
    let huge = "ü".repeat(1_000_000);
    for text in
        [format!(r#"{{"stats": {{"cpu_percent": "{huge}"}}}}"#), format!(r#"{{"status": {{"state": "{huge}"}}}}"#)]
    {
        let refusal = refusal::<HeartbeatRequest>(&text);
        assert!(refusal.len() < 1_200 && refusal.starts_with("stat"), "{refusal}");
        assert!(refusal.contains("expected") && refusal.contains("at line 1 column "), "{refusal}");
    }
    let refusal = refusal::<HeartbeatRequest>(&format!(r#"{{"stats": {{"metrics": {{"{huge}": "hot"}}}}}}"#));
    assert!(refusal.len() < 1_200 && refusal.starts_with("stats.metrics.ü"), "{refusal}");
}

#[test]
fn an_enum_that_is_no_name_or_number_of_its_is_refused_with_all_names() {
    for value in ["77", "true", "1.5"] {
        let refusal = refusal::<DeviceStatus>(&format!(r#"{{"state": {value}}}"#));
        assert!(refusal.contains(", expected one of UNKNOWN, ONLINE, "), "{refusal}");
        assert!(!refusal.contains("expected expected"), "{refusal}");
    }
}

#[test]
fn what_is_wrong_between_two_fields_is_in_the_field_around_them() {
    for (text, start) in [
        (r#"{"stats": {"cpu_percent": 1,}}"#, "stats: trailing comma"),
        (r#"{"device_id": "a",}"#, "trailing comma"),
        (r#"{"stats": {cpu_percent: 1}}"#, "stats: key must be a string"),
        (r#"{device_id: "a"}"#, "key must be a string"),
        (r#"{"stats": {"metrics": {"?": "hot"}}}"#, "stats.metrics.?: invalid value"),
    ] {
        let refusal = refusal::<HeartbeatRequest>(text);
        assert!(refusal.starts_with(start), "{text}: {refusal}");
    }
}

#[test]
fn what_is_no_message_at_all_is_refused() {
    for text in ["", " ", "{", "[]", "1", "\"a\"", "{}}", "{} {}", "{\"device_id\": \"a\"", "{'a': 1}", "\u{feff}{}"] {
        refusal::<GetDeviceRequest>(text);
    }
    from_slice::<GetDeviceRequest>(b"{\"device_id\": \"\xff\"}").expect_err("invalid utf-8");
    from_slice::<GetDeviceRequest>(br#"{"device_id": "\ud800"}"#).expect_err("half a surrogate pair");
    assert_eq!(refusal::<GetDeviceRequest>(""), "EOF while parsing a value at line 1 column 0");
}

#[test]
fn numbers_are_read_as_numbers_and_as_text() {
    for text in ["10", "10.0", "1e1", "\"10\"", "\"1e1\"", "\"10.0\""] {
        assert_eq!(read::<ListDevicesRequest>(&format!("{{\"page_size\": {text}}}")).page_size, 10, "{text}");
        assert_eq!(read::<DownloadBinaryRequest>(&format!("{{\"offset\": {text}}}")).offset, 10, "{text}");
    }
    for text in
        ["\"\"", "\" 1\"", "\"+1\"", "\"0x1\"", "\"1_0\"", "0.5", "\"0.5\"", "2147483648", "1e99", "true", "\"NaN\""]
    {
        refusal::<ListDevicesRequest>(&format!("{{\"page_size\": {text}}}"));
    }
    let status = DeviceStatus { uptime_seconds: u64::MAX, ..Default::default() };
    assert_eq!(written(&status), r#"{"uptimeSeconds":"18446744073709551615"}"#);
    for text in [r#"{"uptimeSeconds": 18446744073709551615}"#, r#"{"uptimeSeconds": "18446744073709551615"}"#] {
        assert_eq!(read::<DeviceStatus>(text), status);
    }
    for text in ["18446744073709551616", "\"18446744073709551616\"", "-1", "\"-1\""] {
        refusal::<DeviceStatus>(&format!("{{\"uptime_seconds\": {text}}}"));
    }
    let offset = i64::MIN;
    assert_eq!(read::<DownloadBinaryRequest>(&format!("{{\"offset\": {offset}}}")).offset, offset);
}

#[test]
fn numbers_that_are_not_finite_are_text_in_maps_too() {
    let stats = SystemStats {
        cpu_percent: f64::INFINITY,
        metrics: [("a".to_owned(), f64::NEG_INFINITY), ("b".to_owned(), 0.0)].into(),
        load_average_1m: Some(0.0),
        ..Default::default()
    };
    let text = written(&stats);
    assert_eq!(text, r#"{"cpuPercent":"Infinity","metrics":{"a":"-Infinity","b":0.0},"loadAverage1m":0.0}"#);
    assert_eq!(read::<SystemStats>(&text), stats);
    assert!(read::<SystemStats>(r#"{"cpu_percent": "NaN"}"#).cpu_percent.is_nan());
    assert_eq!(written(&SystemStats { cpu_percent: f64::NAN, ..Default::default() }), r#"{"cpuPercent":"NaN"}"#);
    for text in ["nan", "inf", "infinity", "+Infinity", "1e999", ""] {
        refusal::<SystemStats>(&format!("{{\"cpu_percent\": \"{text}\"}}"));
    }
}

#[test]
fn enums_are_read_by_name_and_number_and_written_by_name() {
    for text in [r#"{"state": "MAINTENANCE"}"#, r#"{"state": 4}"#] {
        let status: DeviceStatus = read(text);
        assert_eq!(status.state(), device_status::State::Maintenance);
        assert_eq!(written(&status), r#"{"state":"MAINTENANCE"}"#);
    }
    refusal::<DeviceStatus>(r#"{"state": "maintenance"}"#);
    let unknown = to_vec(&DeviceStatus { state: 99, ..Default::default() }).expect_err("99 is no state");
    assert_eq!(unknown.to_string(), "write a message as json");
    assert!(unknown.source().expect("a cause").to_string().contains("99"));
}

#[test]
fn bytes_are_read_in_both_alphabets_with_and_without_padding() {
    let payload: &[u8] = &[0xfb, 0xff, 0xfe, 0x01];
    for text in ["+//+AQ==", "+//+AQ", "-__-AQ==", "-__-AQ"] {
        assert_eq!(read::<SendCommandRequest>(&format!("{{\"payload\": \"{text}\"}}")).payload, payload, "{text}");
    }
    let command = Command { payload: payload.to_vec().into(), ..Default::default() };
    assert_eq!(written(&command), r#"{"payload":"+//+AQ=="}"#);
}

#[test]
fn a_oneof_takes_one_of_its_fields_and_no_two() {
    let request: UploadBinaryRequest = read(r#"{"chunk": "AQ=="}"#);
    assert_eq!(request.data, Some(upload_binary_request::Data::Chunk(vec![1].into())));
    let refusal = refusal::<UploadBinaryRequest>(r#"{"chunk": "AQ==", "metadata": {}}"#);
    assert!(refusal.contains("duplicate field"), "{refusal}");
}

#[test]
fn maps_are_written_in_the_order_of_their_keys() {
    let device: Device = read(r#"{"labels": {"b": "2", "c": "3", "a": "1"}}"#);
    assert_eq!(written(&device), r#"{"labels":{"a":"1","b":"2","c":"3"}}"#);
}

#[test]
fn a_field_mask_is_read_as_text_and_as_an_object() {
    let expected = FieldMask { paths: vec!["name".into(), "system_info.cpu_cores".into(), "metadata.rackUnit".into()] };
    for mask in [
        r#""name,systemInfo.cpuCores,metadata.rackUnit""#,
        r#""name,system_info.cpu_cores,metadata.rackUnit""#,
        r#"{"paths": ["name", "system_info.cpu_cores", "metadata.rackUnit"]}"#,
        r#"{"paths": ["name", "systemInfo.cpuCores", "metadata.rackUnit"], "more": {}}"#,
    ] {
        assert_eq!(read::<FieldMask>(mask), expected, "{mask}");
    }
    assert_eq!(written(&expected), r#""name,systemInfo.cpuCores,metadata.rackUnit""#);
    assert_eq!(read::<FieldMask>(&written(&expected)), expected);
}

#[test]
fn the_key_of_a_map_in_a_mask_is_nobodys_to_change() {
    for path in ["metadata.rackUnit", "metadata.rack_unit", "metadata.a.B_c", "labels.Ring", "metadata.größe"] {
        let mask = FieldMask { paths: vec![path.into()] };
        assert_eq!(written(&mask), format!("\"{path}\""));
        assert_eq!(read::<FieldMask>(&format!("\"{path}\"")), mask);
        assert_eq!(read::<FieldMask>(&format!("{{\"paths\": [\"{path}\"]}}")), mask);
    }
}

#[test]
fn a_mask_of_nothing_is_empty_and_other_forms_are_refused() {
    for mask in [r#""""#, "{}", r#"{"paths": []}"#, r#"{"paths": null}"#] {
        assert_eq!(read::<FieldMask>(mask), FieldMask::default(), "{mask}");
    }
    for mask in ["5", "[\"name\"]", r#"{"paths": "name"}"#, r#"{"paths": [1]}"#, r#"{"paths": [], "paths": []}"#] {
        let refusal = refusal::<UpdateDeviceRequest>(&format!("{{\"update_mask\": {mask}}}"));
        assert!(refusal.starts_with("update_mask"), "{mask}: {refusal}");
    }
}

#[test]
fn times_are_read_with_any_offset_and_written_in_utc() {
    let noon = Timestamp { seconds: 1_704_110_400, nanos: 0 };
    for text in
        ["2024-01-01T12:00:00Z", "2024-01-01T12:00:00.000Z", "2024-01-01T13:30:00+01:30", "2023-12-31T23:00:00-13:00"]
    {
        assert_eq!(text.parse(), Ok(noon), "{text}");
    }
    assert_eq!(written(&noon), "\"2024-01-01T12:00:00Z\"");
    for (nanos, text) in [(500_000_000, "500"), (500_000, "000500"), (5, "000000005")] {
        let moment = Timestamp { nanos, ..noon };
        assert_eq!(written(&moment), format!("\"2024-01-01T12:00:00.{text}Z\""));
        assert_eq!(read::<Timestamp>(&written(&moment)), moment);
    }
}

#[test]
fn texts_that_are_no_time_are_refused() {
    for text in [
        "",
        "2024",
        "2024-01-01",
        "2024-01-01 12:00:00Z",
        "2024-01-01T12:00:00",
        "2024-01-01t12:00:00z",
        "2023-02-29T00:00:00Z",
        "2024-13-01T00:00:00Z",
        "2024-00-01T00:00:00Z",
        "2024-01-00T00:00:00Z",
        "2024-01-01T24:00:00Z",
        "2024-01-01T00:60:00Z",
        "2024-01-01T00:00:60Z",
        "2024-01-01T00:00:00.Z",
        "2024-01-01T00:00:00.1234567890Z",
        "2024-01-01T00:00:00+24:00",
        "2024-01-01T00:00:00+1:00",
        "2024-01-01T00:00:00+01:00x",
        "2024-01-01T00:00:00x5Z",
        "2024-01-01T00:00:00ZZ",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "+2024-01-01T00:00:00Z",
        "２024-01-01T00:00:00Z",
        "2024-01-01T00:00:00.+5Z",
    ] {
        assert!(text.parse::<Timestamp>().is_err(), "{text}");
    }
}

#[test]
fn a_time_outside_of_the_calendar_is_not_written() {
    for (seconds, nanos) in
        [(i64::MAX, 0), (i64::MIN, 0), (253_402_300_800, 0), (-62_135_596_801, 0), (0, -1), (0, 1_000_000_000)]
    {
        let moment = Timestamp { seconds, nanos };
        assert!(!moment.is_valid() && moment.unix_millis().is_none(), "{moment}");
        assert!(to_vec(&moment).is_err(), "{moment}");
        assert!(std::time::SystemTime::try_from(moment).is_err(), "{moment}");
    }
    for text in ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z"] {
        assert_eq!(written(&read::<Timestamp>(&format!("\"{text}\""))), format!("\"{text}\""));
    }
}

#[test]
fn durations_are_read_and_written_in_seconds() {
    for (text, seconds, nanos) in [
        ("3600s", 3600, 0),
        ("0s", 0, 0),
        ("1.500s", 1, 500_000_000),
        ("-1.500s", -1, -500_000_000),
        ("-0.000000001s", 0, -1),
        ("315576000000s", 315_576_000_000, 0),
    ] {
        let span = Duration { seconds, nanos };
        assert_eq!(text.parse(), Ok(span), "{text}");
        assert_eq!(written(&span), format!("\"{text}\""));
    }
    for text in [
        "",
        "s",
        "1",
        "1m",
        "1.s",
        ".5s",
        "+1s",
        "--1s",
        "1.0000000001s",
        "1.-5s",
        "315576000001s",
        "1e3s",
        " 1s",
        "-9223372036854775808s",
        "--9223372036854775808s",
        "99999999999999999999s",
    ] {
        assert!(text.parse::<Duration>().is_err(), "{text}");
    }
    for span in [Duration { seconds: 1, nanos: -1 }, Duration { seconds: i64::MIN, nanos: i32::MIN }] {
        assert!(to_vec(&span).is_err() && std::time::Duration::try_from(span).is_err(), "{span}");
    }
}

#[test]
fn times_and_durations_convert_to_those_of_the_standard_library_and_back() {
    use std::time::{Duration as StdDuration, SystemTime, UNIX_EPOCH};
    for time in [
        UNIX_EPOCH,
        UNIX_EPOCH + StdDuration::new(1_704_110_400, 5),
        UNIX_EPOCH - StdDuration::new(1, 5),
        UNIX_EPOCH - StdDuration::from_secs(86_400),
    ] {
        let moment = Timestamp::from(time);
        assert!(moment.is_valid());
        assert_eq!(SystemTime::try_from(moment), Ok(time));
    }
    for millis in [0, 1, -1, 1_704_110_400_123, -86_400_001] {
        assert_eq!(Timestamp::from_unix_millis(millis).unix_millis(), Some(millis));
    }
    let span = StdDuration::new(90, 5);
    assert_eq!(StdDuration::try_from(Duration::from(span)), Ok(span));
    assert!(Duration::from(StdDuration::MAX).is_valid());
}
