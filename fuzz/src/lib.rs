//! What must hold for every decoder that strangers' bytes reach, one function each: it takes any bytes and panics when
//! a promise is broken. libFuzzer calls these (`fuzz_targets/`), and so does `tests/mutations.rs` in every test run.
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use fleetd::auth::credential;
use fleetd::http::{pages, registration};
use fleetd::ids::DeviceId;
use fleetd::query::{Digest, Filter, OrderBy, MAX_QUERY_BYTES};
use fleetd::telemetry::journal::MAX_PAYLOAD_BYTES;
use fleetd::telemetry::row::{encode_heartbeat, KnownDevice, Sections, Table, UnixMillis};
use fleetd_proto::json;
use fleetd_proto::v1::{HeartbeatRequest, RegisterDeviceRequest};
use prost::Message as _;

/// The journal's format is private to its crate and pure, so it is built in here a second time.
#[path = "../../src/telemetry/journal/format.rs"]
#[allow(dead_code, missing_docs)]
mod format;

/// As the journal's.
type Seq = u64;

const DEVICE: &str = "rpi-001";
const KNOWN: KnownDevice<'_> = KnownDevice { device_type: "sensor", version: "1.2.3", memory_mb: 4_096, disk_gb: 64.0 };
/// Errors are shown to people and go into headers (`grpc-message`): they do not grow with what was sent.
const LONGEST_ERROR_BYTES: usize = 1024;

/// A heartbeat as protobuf.
pub fn heartbeat_proto(bytes: &[u8]) {
    if let Ok(heartbeat) = HeartbeatRequest::decode(bytes) {
        rows_read_back(&heartbeat);
        // JSON has no form for some values (unknown enum numbers, years past 9999); what it writes, it reads.
        if let Ok(text) = json::to_vec(&heartbeat) {
            let read = json::from_slice::<HeartbeatRequest>(&text);
            let read = read.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&text)));
            // As text, in which one NaN is like another.
            assert_eq!(format!("{read:?}"), format!("{heartbeat:?}"), "{}", String::from_utf8_lossy(&text));
        }
    }
}

/// A heartbeat as protobuf JSON.
pub fn heartbeat_json(bytes: &[u8]) {
    match json::from_slice::<HeartbeatRequest>(bytes) {
        Ok(heartbeat) => {
            let encoded = heartbeat.encode_to_vec();
            let decoded = HeartbeatRequest::decode(&encoded[..]).expect("its own encoding");
            assert_eq!(decoded.encode_to_vec(), encoded);
            rows_read_back(&heartbeat);
        }
        Err(error) => is_short(&error.to_string()),
    }
}

fn is_short(error: &str) {
    assert!(!error.is_empty());
    assert!(error.len() <= LONGEST_ERROR_BYTES, "an error of {} bytes: {:.200}…", error.len(), error);
}

fn rows_read_back(heartbeat: &HeartbeatRequest) {
    let before = b"what was there before";
    let mut record = before.to_vec();
    match encode_heartbeat(DEVICE, &KNOWN, heartbeat, UnixMillis::EPOCH, &mut record) {
        Ok(()) => {
            let record = &record[before.len()..];
            assert!(record.len() <= MAX_PAYLOAD_BYTES, "a record of {} bytes", record.len());
            let rows: Vec<_> = Sections::of(record).map(|row| row.expect("a row that was just written")).collect();
            assert_eq!(rows.len(), 1 + heartbeat.processes.len());
            assert_eq!(rows.iter().filter(|row| row.table == Table::Heartbeats).count(), 1);
            assert!(rows.iter().all(|row| row.key == DEVICE.as_bytes() && row.received_at == 0));
            let times = UnixMillis::MIN.as_millis()..=UnixMillis::MAX.as_millis();
            assert!(rows.iter().all(|row| times.contains(&row.timestamp)));
        }
        Err(error) => {
            is_short(&error.to_string());
            assert_eq!(record, before, "an error leaves the record as it was");
        }
    }
}

/// A registration as protobuf JSON.
pub fn register_json(bytes: &[u8]) {
    match json::from_slice::<RegisterDeviceRequest>(bytes) {
        Ok(request) => match registration::device_of(request, UnixMillis::EPOCH) {
            Ok((device, key)) => {
                assert!(DeviceId::check(device.id.as_str()).is_ok());
                assert!(!device.name.is_empty() && device.name.len() <= 256);
                assert!(device.metadata.len() <= 64 && device.labels.len() <= 64);
                assert_eq!(key.hash(), device.key_hash);
            }
            Err(error) => is_short(&error.message),
        },
        Err(error) => is_short(&error.to_string()),
    }
}

/// The first 4 bytes are a page size, the rest is a token: no token is taken that the server did not make.
pub fn page_token(bytes: &[u8]) {
    let Some((size, token)) = bytes.split_first_chunk::<4>() else { return };
    let Ok(token) = std::str::from_utf8(token) else { return };
    match pages::size_of(i32::from_le_bytes(*size)) {
        Ok(size) => assert!((1..=100).contains(&size)),
        Err(error) => is_short(&error.message),
    }
    let (tokens, query) = (page_tokens(), Digest::of(&["mutations"]));
    match tokens.read(token, query) {
        Ok(None) => assert!(token.is_empty()),
        Ok(Some(read)) => assert_eq!(tokens.write(&read, query), token, "read, and not made here"),
        Err(error) => is_short(&error.message),
    }
}

/// Tokens under a secret that the corpus of mutated tokens was made with.
pub fn page_tokens() -> pages::Tokens {
    pages::Tokens::new([7; 32])
}

/// A filter, and an order.
pub fn query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Filter::parse(text, UnixMillis::EPOCH) {
        Ok(filter) => {
            let canonical = filter.to_string();
            // Quoting can make a text longer than what is read.
            if canonical.len() <= MAX_QUERY_BYTES {
                let again = Filter::parse(&canonical, UnixMillis::EPOCH);
                assert_eq!(again.as_ref(), Ok(&filter), "{text:?} became {canonical:?}");
            }
        }
        Err(error) => {
            assert!((1..=text.chars().count() + 1).contains(&error.column), "{text:?}: {error}");
            is_short(&error.to_string());
        }
    }
    match OrderBy::parse(text) {
        Ok(order) => assert_eq!(OrderBy::parse(&order.to_string()), Ok(order), "{text:?}"),
        Err(error) => is_short(&error.to_string()),
    }
}

/// Lines; the first half are values of `Authorization`, the rest of `X-API-Key`.
pub fn credential_headers(bytes: &[u8]) {
    let values: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let (authorization, x_api_key) = values.split_at(values.len() / 2);
    let read = credential::from_headers(authorization.iter().copied(), x_api_key.iter().copied());
    match read {
        Ok(Some(_)) => assert!(authorization.len() <= 1 && x_api_key.len() <= 1, "a repeated header was let through"),
        Ok(None) => assert!(authorization.is_empty() && x_api_key.is_empty(), "a credential was overlooked"),
        Err(error) => {
            let told = error.to_string();
            is_short(&told);
            let keys = values.iter().filter(|value| value.windows(4).any(|part| part == b"fdk_"));
            assert!(keys.count() == 0 || !told.contains("fdk_"), "an error repeats a key: {told}");
        }
    }
}

/// Clients do not know a journal's salt. With a constant one, libFuzzer learns to forge checksums.
fn salt_of(bytes: &[u8]) -> u32 {
    let mut hash = DefaultHasher::new();
    bytes.hash(&mut hash);
    hash.finish() as u32
}

/// The first byte says how the rest is used: as the frames of a segment as they are, or as the payloads of good
/// frames, one bit of which is then flipped.
pub fn journal_segment(bytes: &[u8]) {
    let Some((how, rest)) = bytes.split_first() else { return };
    let _ = format::SegmentHeader::decode(rest);
    let _ = format::SegmentFooter::decode(rest);
    if how % 2 == 0 {
        scan_is_sound(rest, salt_of(bytes));
    } else if let Some((flip, payloads)) = rest.split_first_chunk::<4>() {
        one_flipped_bit_loses_one_record(u32::from_le_bytes(*flip) as usize, payloads, salt_of(bytes));
    }
}

fn scan_is_sound(frames: &[u8], salt: u32) -> format::Scan {
    let after = 0;
    let found = format::scan(frames, salt, after, Seq::MAX);
    assert!(found.data_end <= frames.len());
    assert!(found.torn_bytes <= frames.len() && found.superseded_bytes <= frames.len());
    assert!(found.last_seq >= after);
    assert_eq!(found.last_seq == after, found.records == 0, "{found:?}");
    let mut end = 0;
    for damage in &found.damage {
        assert!(damage.range.start >= end && damage.range.start < damage.range.end, "{found:?}");
        assert!(damage.range.end <= frames.len() && damage.records_at_most >= 1, "{found:?}");
        end = damage.range.end;
    }
    found
}

fn one_flipped_bit_loses_one_record(flip: usize, payloads: &[u8], salt: u32) {
    let mut frames = Vec::new();
    let mut records = 0;
    for payload in payloads.split(|byte| *byte == 0) {
        records += 1;
        let crc = format::payload_crc(salt, payload);
        frames.extend(format::frame_header(salt, payload.len() as u32, records, crc));
        frames.extend(payload);
    }
    let whole = scan_is_sound(&frames, salt);
    assert_eq!((whole.records, whole.last_seq, whole.data_end), (records, records, frames.len()), "{whole:?}");
    assert!(whole.damage.is_empty() && whole.torn_bytes == 0);

    let bit = flip % (frames.len() * 8);
    frames[bit / 8] ^= 1 << (bit % 8);
    let hit = scan_is_sound(&frames, salt);
    assert_eq!(hit.records, records - 1, "bit {bit} of {}: {hit:?}", frames.len());
    assert!(!hit.damage.is_empty() || hit.torn_bytes > 0, "the flip was not noticed: {hit:?}");
}
