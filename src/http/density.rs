//! How many parts an encoded message has, counted before it is decoded.
//!
//! An empty message in a list costs two bytes on the wire and some hundred in memory: a body of 2 MB, well within its
//! limit, would become half a gigabyte, of a caller who has not even shown a key yet. The services refuse long lists,
//! but only once they are decoded.
use connectrpc::CodecFormat;

use crate::error::ApiError;

/// Shorter messages are not counted: whatever is in them, they decode to some megabytes at most.
const COUNTED_FROM_BYTES: usize = 16 * 1024;

/// Parts of the message itself. Lists are of 10,000 at most, and each message has a few other parts.
const MAX_PARTS: usize = 20_000;

/// Parts of its parts, all levels together: the stats and processes of a whole batch of heartbeats, metadata and labels
/// of a batch of registrations. A real one has 10 bytes or more, so that 2 MB do not hold as many.
const MAX_NESTED_PARTS: usize = 200_000;

/// Levels that are counted; the messages of the contract nest less deep.
const LEVELS: usize = 6;

/// Refuses a message with more parts than any that means well.
///
/// A part is what may be a message: a length-delimited field of protobuf, an object of JSON. Text and bytes are looked
/// into as well, since nothing tells them from messages here; they read as few parts or none.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn check(bytes: &[u8], format: CodecFormat) -> Result<(), ApiError> {
    if bytes.len() < COUNTED_FROM_BYTES {
        return Ok(());
    }
    let mut parts = Parts::default();
    match format {
        CodecFormat::Proto => parts.count_proto(bytes, 0),
        CodecFormat::Json => parts.count_json(bytes),
        _ => return Ok(()),
    }
    if parts.are_too_many() {
        let message = format!(
            "the request has more parts than a message may have: {MAX_PARTS}, and {MAX_NESTED_PARTS} within them"
        );
        return Err(ApiError::invalid_argument(message));
    }
    Ok(())
}

#[derive(Default)]
struct Parts {
    own: usize,
    nested: usize,
}

impl Parts {
    fn add(&mut self, level: usize) {
        *(if level == 0 { &mut self.own } else { &mut self.nested }) += 1;
    }

    fn are_too_many(&self) -> bool {
        self.own > MAX_PARTS || self.nested > MAX_NESTED_PARTS
    }

    /// Counts up to the first byte that is not protobuf, as far as a decoder would come.
    fn count_proto(&mut self, mut bytes: &[u8], level: usize) {
        while let Some(tag) = varint(&mut bytes) {
            let skipped = match tag & 7 {
                0 => varint(&mut bytes).map(|_| ()),
                1 => skip(&mut bytes, 8).map(|_| ()),
                2 => {
                    let Some(length) = varint(&mut bytes) else { return };
                    self.add(level);
                    // One that says more than there is has its first part decoded all the same.
                    let length = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
                    skip(&mut bytes, length).map(|part| {
                        if level + 1 < LEVELS {
                            self.count_proto(part, level + 1);
                        }
                    })
                }
                // Begin and end of a group, whose fields follow.
                3 | 4 => Some(()),
                5 => skip(&mut bytes, 4).map(|_| ()),
                _ => None,
            };
            if skipped.is_none() || self.are_too_many() {
                return;
            }
        }
    }

    fn count_json(&mut self, bytes: &[u8]) {
        let (mut depth, mut is_text, mut is_escaped) = (0_usize, false, false);
        for &byte in bytes {
            if is_text {
                is_text = is_escaped || byte != b'"';
                is_escaped = !is_escaped && byte == b'\\';
                continue;
            }
            match byte {
                b'"' => is_text = true,
                b'{' | b'[' => {
                    if byte == b'{' && depth > 0 {
                        // A list in the message is at depth 1, its elements are at 2.
                        self.add(depth.saturating_sub(2));
                    }
                    depth += 1;
                }
                // `null`, which may stand for a message.
                b'n' => self.add(depth.saturating_sub(2)),
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if self.are_too_many() {
                return;
            }
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            *bytes = &bytes[at + 1..];
            return Some(value);
        }
    }
    None
}

fn skip<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (skipped, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(skipped)
}

#[cfg(test)]
mod tests {
    use fleetd_proto::json;
    use fleetd_proto::v1::{BatchHeartbeatRequest, HeartbeatRequest, ProcessInfo, SystemStats};
    use prost::Message as _;

    use super::*;
    use crate::error::ErrorCode;

    fn is_refused(bytes: &[u8], format: CodecFormat) -> bool {
        match check(bytes, format) {
            Ok(()) => false,
            Err(error) => {
                assert_eq!(error.code, ErrorCode::InvalidArgument);
                true
            }
        }
    }

    fn both_refused(message: &BatchHeartbeatRequest) -> [bool; 2] {
        let text = json::to_vec(message).expect("JSON");
        [is_refused(&message.encode_to_vec(), CodecFormat::Proto), is_refused(&text, CodecFormat::Json)]
    }

    #[test]
    fn the_largest_batches_that_are_served_pass() {
        let heartbeat = HeartbeatRequest {
            device_id: "rpi-001".into(),
            status: Some(Default::default()),
            stats: Some(SystemStats {
                metrics: (0..4).map(|n| (format!("metric_{n}"), f64::from(n))).collect(),
                ..SystemStats::default()
            }),
            timestamp: Some(Default::default()),
            ..HeartbeatRequest::default()
        };
        let batch = BatchHeartbeatRequest { heartbeats: vec![heartbeat.clone(); 10_000] };
        assert!(batch.encoded_len() < super::super::gateway::MAX_BODY_BYTES);
        assert_eq!(both_refused(&batch), [false; 2]);
        let process = ProcessInfo { name: "node{exporter}".into(), ..ProcessInfo::default() };
        let busy = HeartbeatRequest { processes: vec![process; 256], ..heartbeat };
        let batch = BatchHeartbeatRequest { heartbeats: vec![busy; 350] };
        assert!(batch.encoded_len() < super::super::gateway::MAX_BODY_BYTES);
        assert_eq!(both_refused(&batch), [false; 2]);
    }

    #[test]
    fn a_body_of_empty_messages_is_refused_on_every_level() {
        let flat = BatchHeartbeatRequest { heartbeats: vec![HeartbeatRequest::default(); 500_000] };
        assert_eq!(both_refused(&flat), [true; 2]);
        let processes = vec![ProcessInfo::default(); 500_000];
        let deep = HeartbeatRequest { processes, ..HeartbeatRequest::default() };
        let deep = BatchHeartbeatRequest { heartbeats: vec![deep] };
        assert_eq!(both_refused(&deep), [true; 2]);
        // What a decoder has built before it finds the fault counts as well.
        for fault in [&[0xff_u8; 12][..], &[0x07], &[0x0a, 0x7f]] {
            let broken = [flat.encode_to_vec(), fault.to_vec()].concat();
            assert!(is_refused(&broken, CodecFormat::Proto));
            let mut cut = deep.encode_to_vec();
            cut.pop();
            assert!(is_refused(&cut, CodecFormat::Proto));
        }
        let in_a_group = [&[0x7b, 0x7c][..], &flat.encode_to_vec()].concat();
        assert!(is_refused(&in_a_group, CodecFormat::Proto));
    }

    #[test]
    fn text_and_bytes_of_any_kind_pass() {
        let texts = ["{\\\"{[".repeat(20_000), "x".repeat(1_000_000), "\n\n".repeat(50_000), "zoo ".repeat(250_000)];
        for text in texts {
            let one = HeartbeatRequest { device_id: text, ..HeartbeatRequest::default() };
            assert_eq!(both_refused(&BatchHeartbeatRequest { heartbeats: vec![one] }), [false; 2]);
        }
    }
}
