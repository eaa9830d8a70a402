//! Whatever bytes arrive, reading them ends with a message or an error, never with a panic; and what is read can be
//! written and read again without loss.

use bytes::Bytes;
use fleetd_proto::json::{from_slice, to_vec};
use fleetd_proto::v1::*;
use fleetd_proto::{Duration, FieldMask, Timestamp};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use prost::Message;

/// Deeper than serde_json's 128 levels, and deep enough to overflow the stack of a reader without a bound.
const HOSTILE_DEPTH: usize = 200_000;

#[test]
fn json_of_any_depth_is_answered_without_overflowing_the_stack() {
    let deep = "[".repeat(HOSTILE_DEPTH);
    let deep_objects = "{\"a\":".repeat(HOSTILE_DEPTH);
    for text in [
        deep.clone(),
        deep_objects.clone(),
        format!("{{\"unknown\": {deep}"),
        format!("{{\"unknown\": {deep_objects}"),
        format!("{{\"device_id\": {deep}"),
        format!("{{\"stats\": {{\"metrics\": {deep_objects}"),
        format!("{{\"processes\": {deep}"),
    ] {
        assert!(from_slice::<HeartbeatRequest>(text.as_bytes()).is_err());
    }
}

#[test]
fn an_unknown_group_of_any_depth_is_answered_without_overflowing_the_stack() {
    // 0xfb 0x01: the start of a group with number 31, which no message of the contract has.
    let bytes = [0xfb, 0x01].repeat(HOSTILE_DEPTH);
    let error = HeartbeatRequest::decode(Bytes::from(bytes)).expect_err("it never ends");
    assert!(error.to_string().contains("recursion limit"), "{error}");
}

#[test]
fn a_length_beyond_the_message_reserves_no_memory() {
    // Field 4 (processes) and field 1 (device_id) that claim 2^62 bytes.
    for tag in [0x22, 0x0a] {
        let bytes = [&[tag][..], &[0xff; 8], &[0x3f]].concat();
        assert!(HeartbeatRequest::decode(Bytes::from(bytes)).is_err());
    }
}

#[test]
fn text_that_is_not_utf_8_is_refused_in_binary() {
    let error = HeartbeatRequest::decode(&b"\x0a\x02\xff\xfe"[..]).expect_err("0xff is no utf-8");
    assert!(error.to_string().contains("HeartbeatRequest.device_id"), "{error}");
}

fn number() -> impl Strategy<Value = f64> {
    // NaN is left out: it is not equal to itself. tests/json.rs holds it.
    prop_oneof![
        proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL | proptest::num::f64::ZERO,
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        (-1_000_i32..1_000).prop_map(f64::from),
    ]
}

fn moment() -> impl Strategy<Value = Timestamp> {
    (-62_135_596_800_i64..=253_402_300_799, 0..1_000_000_000_i32)
        .prop_map(|(seconds, nanos)| Timestamp { seconds, nanos })
}

fn span() -> impl Strategy<Value = Duration> {
    (any::<bool>(), 0..=315_575_999_999_i64, 0..1_000_000_000_i32).prop_map(|(negative, seconds, nanos)| {
        let sign = if negative { -1 } else { 1 };
        Duration { seconds: sign * seconds, nanos: sign as i32 * nanos }
    })
}

prop_compose! {
    fn status()(state in 0..=4_i32, uptime_seconds: u64, last_boot in proptest::option::of(moment()), message: String,
                boot_id: String, restart_count: u32) -> DeviceStatus {
        DeviceStatus { state, uptime_seconds, last_boot, message, boot_id, restart_count }
    }
}

prop_compose! {
    fn stats()(cpu_percent in number(), memory_used_mb: u64, disk_used_gb in number(), network_rx_bytes: u64,
               metrics in btree_map(any::<String>(), number(), 0..4), signal_dbm: Option<i32>,
               load_average_1m in proptest::option::of(number())) -> SystemStats {
        SystemStats { cpu_percent, memory_used_mb, disk_used_gb, network_rx_bytes, metrics, signal_dbm,
                      load_average_1m, ..Default::default() }
    }
}

prop_compose! {
    fn process()(pid: u32, name: String, state in 0..=5_i32, cpu_percent in number(), exit_code: Option<i32>)
                -> ProcessInfo {
        ProcessInfo { pid, name, state, cpu_percent, exit_code, ..Default::default() }
    }
}

prop_compose! {
    fn heartbeat()(device_id: String, status in proptest::option::of(status()), stats in proptest::option::of(stats()),
                   processes in vec(process(), 0..3), version: String, timestamp in proptest::option::of(moment()))
                  -> HeartbeatRequest {
        HeartbeatRequest { device_id, status, stats, processes, version, timestamp, ..Default::default() }
    }
}

prop_compose! {
    fn command()(id: String, r#type: String, parameters in btree_map(any::<String>(), any::<String>(), 0..3),
                 payload in vec(any::<u8>(), 0..64), attempt: u32, timeout in proptest::option::of(span())) -> Command {
        Command { id, r#type, parameters, payload: payload.into(), attempt, timeout, ..Default::default() }
    }
}

/// Text that looks like the JSON of a message enough to reach the readers of its fields.
fn almost_json() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just(","),
        Just(":"),
        Just("null"),
        Just("true"),
        Just("0"),
        Just("-1"),
        Just("1e400"),
        Just("0.5"),
        Just("\"device_id\""),
        Just("\"deviceId\""),
        Just("\"status\""),
        Just("\"state\""),
        Just("\"ONLINE\""),
        Just("\"stats\""),
        Just("\"metrics\""),
        Just("\"cpu_percent\""),
        Just("\"NaN\""),
        Just("\"last_boot\""),
        Just("\"2024-01-01T00:00:00Z\""),
        Just("\"processes\""),
        Just("\"system_info\""),
        Just("\"heartbeat_interval\""),
        Just("\"--9223372036854775808s\""),
        Just("\"\\u0000\""),
    ];
    vec(token, 0..40).prop_map(|tokens| tokens.concat())
}

/// A good JSON text with one of its bytes changed, cut out or put in.
fn damaged(text: Vec<u8>, at: prop::sample::Index, byte: u8, how: u8) -> Vec<u8> {
    let mut text = text;
    let at = at.index(text.len());
    match how % 4 {
        0 => text[at] = byte,
        1 => text.insert(at, byte),
        2 => text.truncate(at),
        _ => drop(text.remove(at)),
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_decode_to_a_message_or_an_error(bytes in vec(any::<u8>(), 0..512)) {
        let bytes = Bytes::from(bytes);
        if let Ok(message) = HeartbeatRequest::decode(bytes.clone()) {
            // Text and depth are bounded already, so that writing what was read cannot fail but for values of no JSON.
            let _ = to_vec(&message);
        }
        if let Ok(message) = RegisterDeviceRequest::decode(bytes) {
            let _ = to_vec(&message);
        }
    }

    #[test]
    fn any_text_reads_as_a_message_or_an_error(bytes in vec(any::<u8>(), 0..256), text in almost_json(), noise: String) {
        for text in [&bytes[..], text.as_bytes(), noise.as_bytes()] {
            let _ = from_slice::<HeartbeatRequest>(text);
            let _ = from_slice::<RegisterDeviceRequest>(text);
        }
    }

    #[test]
    fn a_damaged_heartbeat_is_a_heartbeat_or_an_error(
        message in heartbeat(), at: prop::sample::Index, byte: u8, how: u8,
    ) {
        let json = to_vec(&message).expect("a good heartbeat");
        let _ = from_slice::<HeartbeatRequest>(&damaged(json, at, byte, how));
        let binary = message.encode_to_vec();
        prop_assume!(!binary.is_empty());
        let _ = HeartbeatRequest::decode(Bytes::from(damaged(binary, at, byte, how)));
    }

    #[test]
    fn any_text_is_a_time_a_duration_and_a_mask_or_an_error(text: String, digits in "[-+0-9TZ:.s]{0,40}") {
        for text in [text, digits] {
            let (moment, span) = (text.parse::<Timestamp>(), text.parse::<Duration>());
            prop_assert!(moment.is_err() || moment.is_ok_and(|moment| moment.is_valid()));
            prop_assert!(span.is_err() || span.is_ok_and(|span| span.is_valid()));
            let quoted = serde_json::to_vec(&text).expect("text is json");
            let _ = from_slice::<FieldMask>(&quoted);
        }
    }

    #[test]
    fn any_time_and_duration_can_be_shown(seconds: i64, nanos: i32) {
        let (moment, span) = (Timestamp { seconds, nanos }, Duration { seconds, nanos });
        prop_assert_eq!(moment.to_string().parse::<Timestamp>().is_ok(), moment.is_valid());
        prop_assert_eq!(span.to_string().parse::<Duration>().is_ok(), span.is_valid());
    }

    #[test]
    fn times_and_durations_survive_their_text(moment in moment(), span in span()) {
        prop_assert_eq!(moment.to_string().parse::<Timestamp>(), Ok(moment));
        prop_assert_eq!(span.to_string().parse::<Duration>(), Ok(span));
    }

    #[test]
    fn a_heartbeat_survives_binary_and_json(message in heartbeat()) {
        prop_assert_eq!(&HeartbeatRequest::decode(Bytes::from(message.encode_to_vec())).expect("binary"), &message);
        prop_assert_eq!(&from_slice::<HeartbeatRequest>(&to_vec(&message).expect("json")).expect("json"), &message);
    }

    #[test]
    fn a_reply_with_commands_survives_binary_and_json(commands in vec(command(), 0..3), next in span()) {
        let reply = HeartbeatResponse { acknowledged: true, commands, next_heartbeat: Some(next), ..Default::default() };
        prop_assert_eq!(&HeartbeatResponse::decode(Bytes::from(reply.encode_to_vec())).expect("binary"), &reply);
        prop_assert_eq!(&from_slice::<HeartbeatResponse>(&to_vec(&reply).expect("json")).expect("json"), &reply);
    }
}
