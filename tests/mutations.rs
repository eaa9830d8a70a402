//! A little fuzzing in every test run: good samples, mutated by a generator with a fixed seed, against the properties
//! that `fuzz/` gives to libFuzzer. The same inputs every time, so a failure here is found again by running it again.
#[path = "../fuzz/src/lib.rs"]
mod properties;

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::{Duration, Instant};

/// Inputs for each property, unless the machine is so slow that the time ends first.
const INPUTS: usize = 200_000;
const TIME: Duration = Duration::from_secs(10);
/// Mutations of one input, at most.
const MUTATIONS: u64 = 8;
/// Mutated inputs may grow by repetition; longer ones find nothing more and take longer.
const LONGEST: usize = 16 * 1024;

const HEARTBEAT_JSON: &[u8] = include_bytes!("reference/heartbeat.json");
const FULL_HEARTBEAT_JSON: &[u8] = br#"{"deviceId":"rpi-001","status":{"state":"MAINTENANCE","uptimeSeconds":"3600",
"lastBoot":"2024-01-01T12:00:00.123456789Z","message":"fan","bootId":"b-1","restartCount":2},"stats":{"cpuPercent":25.5,
"memoryUsedMb":"1024","metrics":{"queue.depth":3,"x":"NaN"},"loadAverage1m":0.5,"signalDbm":-70},"processes":[{"pid":1,
"name":"init","state":"RUNNING","cpuPercent":1e-3,"exitCode":-1},{"name":"x","state":4}],"version":"1.2.3",
"commandResults":[{"commandId":"c-1","state":"SUCCEEDED","exitCode":0,"output":"ok","finishedAt":"2024-01-01T00:00:00Z"}],
"updateProgress":{"deploymentId":"d","updateId":"u"},"timestamp":"1999-12-31T23:59:59Z","unknown":[{"a":null}]}"#;
const REGISTER_JSON: &[u8] = include_bytes!("reference/register_device.json");
const FULL_REGISTER_JSON: &[u8] = br#"{"deviceId":"AA:BB:CC","deviceName":"n","systemInfo":{"os":"Linux","diskGb":1.5,
"ipAddresses":["10.0.0.1","::1"],"timeZone":"Europe/Zurich"},"metadata":{"location":"a","":"b"},"labels":{"ring":"0"}}"#;

/// What decoders stumble over: edges of numbers, of UTF-8, of protobuf, of JSON.
const WORDS: &[&[u8]] = &[
    b"\0",
    b"\xff",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xff\xff\xff\xff\x0f",
    b"\x0b\x0c",
    b"\xf0\x9f\x92\xa9",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"null",
    b"\"\"",
    b"{}",
    b"[",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"-9223372036854775809",
    b"\"NaN\"",
    b"\"Infinity\"",
    b"\"\\ud800\"",
    b"\\u0000",
    b"\"9999-12-31T23:59:59.999999999Z\"",
    b"\"-0001-01-01T00:00:00Z\"",
    b"\"315576000001s\"",
    b"Bearer ",
    b"\n",
    b"v1.",
    b"2e2e2f",
];

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn pick<'a>(&mut self, from: &[&'a [u8]]) -> &'a [u8] {
        from[self.below(from.len())]
    }

    fn mutate(&mut self, input: &mut Vec<u8>, samples: &[&[u8]]) {
        let (at, until) = {
            let (one, other) = (self.below(input.len() + 1), self.below(input.len() + 1));
            (one.min(other), one.max(other))
        };
        match self.below(7) {
            0 if !input.is_empty() => {
                let bit = self.below(input.len() * 8);
                input[bit / 8] ^= 1 << (bit % 8);
            }
            1 if !input.is_empty() => {
                let place = self.below(input.len());
                input[place] = self.next() as u8;
            }
            2 => drop(input.drain(at..until)),
            3 => {
                let piece = input[at..until].to_vec();
                input.splice(at..at, piece);
            }
            4 => drop(input.splice(at..at, self.pick(WORDS).iter().copied())),
            5 => drop(input.splice(at..until, self.pick(WORDS).iter().copied())),
            _ => {
                let other = self.pick(samples);
                let from = self.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
        input.truncate(LONGEST);
    }
}

/// Runs `property` on the samples as they are and on mutations of them.
fn holds_for_mutations_of(samples: &[&[u8]], property: fn(&[u8])) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let started = Instant::now();
    for number in 0..INPUTS {
        let mut input = match samples.get(number) {
            Some(sample) => sample.to_vec(),
            None => random.pick(samples).to_vec(),
        };
        if number >= samples.len() {
            for _ in 0..=random.next() % MUTATIONS {
                random.mutate(&mut input, samples);
            }
        }
        if catch_unwind(AssertUnwindSafe(|| property(&input))).is_err() {
            panic!("input {number} breaks it: b\"{}\"", input.escape_ascii());
        }
        if started.elapsed() > TIME {
            assert!(number > INPUTS / 100, "only {number} inputs in {TIME:?}");
            return;
        }
    }
}

fn protobuf_of(text: &[u8]) -> Vec<u8> {
    let heartbeat: fleetd_proto::v1::HeartbeatRequest = fleetd_proto::json::from_slice(text).expect("a good sample");
    prost::Message::encode_to_vec(&heartbeat)
}

#[test]
fn no_protobuf_breaks_the_way_of_a_heartbeat() {
    let samples = [protobuf_of(HEARTBEAT_JSON), protobuf_of(FULL_HEARTBEAT_JSON)];
    holds_for_mutations_of(&[&samples[0], &samples[1]], properties::heartbeat_proto);
}

#[test]
fn no_json_breaks_the_way_of_a_heartbeat() {
    holds_for_mutations_of(&[HEARTBEAT_JSON, FULL_HEARTBEAT_JSON], properties::heartbeat_json);
}

#[test]
fn no_json_registers_what_is_out_of_bounds() {
    holds_for_mutations_of(&[REGISTER_JSON, FULL_REGISTER_JSON], properties::register_json);
}

#[test]
fn no_bytes_confuse_the_reader_of_the_journal() {
    let flipped = [&b"\x01\x07\x03\x00\x00"[..], b"one\0two\0\0three"].concat();
    let mut whole = vec![0];
    whole.extend_from_slice(&[0; 200]);
    holds_for_mutations_of(&[&flipped, &whole], properties::journal_segment);
}

#[test]
fn no_page_token_is_taken_that_the_server_did_not_make() {
    let token = fleetd::query::PageToken {
        now: fleetd::telemetry::row::UnixMillis::EPOCH,
        values: vec![fleetd::query::SortValue::Number(0.5), fleetd::query::SortValue::Text("a".into())],
        id: "rpi-001".into(),
    };
    let token = properties::page_tokens().write(&token, fleetd::query::Digest::of(&["mutations"]));
    let sample = [b"\x14\0\0\0", token.as_bytes()].concat();
    holds_for_mutations_of(&[&sample, b"\0\0\0\0", b"\xff\xff\xff\xffx"], properties::page_token);
}

#[test]
fn no_text_breaks_the_query_language() {
    let samples: [&[u8]; 7] = [
        b"status:online",
        b"type:raspberry-pi,esp32 AND NOT (last_seen:<-1h OR cpu_usage:>=80.5)",
        b"labels.\"odd key\":*\"a \\\" b\"* or version:>1.2.0-rc.1",
        b"registered_at:2024-01-31,2024-01-31T12:00:00Z",
        b"metadata.location:* AND system_info.os:Lin*",
        b"cpu_usage DESC, memory_usage ASC,name",
        b"metrics.rpm:>1e3 AND id:\xc3\xbc*",
    ];
    holds_for_mutations_of(&samples, properties::query);
}

#[test]
fn no_header_gets_past_the_reader_of_keys() {
    let samples: [&[u8]; 3] = [
        b"Bearer fdk_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG\n",
        b"\nfdk_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG",
        b"Bearer an-admin-key\nan-admin-key",
    ];
    holds_for_mutations_of(&samples, properties::credential_headers);
}
