//! The kinds of client that the server meets, each with its way to wrap a message and to be told of an error.
use super::wire::{http1, http2, Ask, Reply};
use std::net::SocketAddr;

/// A protocol on an HTTP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// `curl -H 'content-type: application/json' -d …`: errors in the API reference's envelope.
    Json1,
    Json2,
    /// A plain client that sends protobuf.
    Proto1,
    Proto2,
    ConnectJson1,
    ConnectJson2,
    Connect1,
    Connect2,
    GrpcWeb1,
    GrpcWeb2,
    Grpc2,
}

impl Client {
    pub const ALL: [Self; 11] = [
        Self::Json1,
        Self::Json2,
        Self::Proto1,
        Self::Proto2,
        Self::ConnectJson1,
        Self::ConnectJson2,
        Self::Connect1,
        Self::Connect2,
        Self::GrpcWeb1,
        Self::GrpcWeb2,
        Self::Grpc2,
    ];

    pub const fn is_json(self) -> bool {
        matches!(self, Self::Json1 | Self::Json2 | Self::ConnectJson1 | Self::ConnectJson2)
    }

    pub const fn is_plain(self) -> bool {
        matches!(self, Self::Json1 | Self::Json2 | Self::Proto1 | Self::Proto2)
    }

    pub const fn is_connect(self) -> bool {
        matches!(self, Self::ConnectJson1 | Self::ConnectJson2 | Self::Connect1 | Self::Connect2)
    }

    /// Messages are framed: gRPC or gRPC-Web.
    pub const fn is_framed(self) -> bool {
        matches!(self, Self::GrpcWeb1 | Self::GrpcWeb2 | Self::Grpc2)
    }

    pub const fn is_http2(self) -> bool {
        matches!(self, Self::Json2 | Self::Proto2 | Self::ConnectJson2 | Self::Connect2 | Self::GrpcWeb2 | Self::Grpc2)
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json1 | Self::Json2 | Self::ConnectJson1 | Self::ConnectJson2 => "application/json",
            Self::Proto1 | Self::Proto2 | Self::Connect1 | Self::Connect2 => "application/proto",
            Self::GrpcWeb1 | Self::GrpcWeb2 => "application/grpc-web+proto",
            Self::Grpc2 => "application/grpc",
        }
    }

    /// The name of the header that says how a message is compressed.
    pub const fn encoding_header(self) -> &'static str {
        if self.is_framed() {
            "grpc-encoding"
        } else {
            "content-encoding"
        }
    }

    /// A call of `rpc` (`DeviceService/Heartbeat`) with `message`, which is JSON or protobuf as the client sends.
    pub fn call(self, rpc: &str, key: Option<&str>, message: &[u8]) -> Ask {
        self.call_with_body(rpc, key, if self.is_framed() { frame(0, message) } else { message.to_vec() })
    }

    /// As [`Self::call`], with the body as it is.
    pub fn call_with_body(self, rpc: &str, key: Option<&str>, body: Vec<u8>) -> Ask {
        let mut ask = Ask::post(format!("/fleetd.v1.{rpc}"), body).header("content-type", self.content_type());
        if self.is_connect() {
            ask = ask.header("connect-protocol-version", "1");
        }
        if self == Self::Grpc2 {
            ask = ask.header("te", "trailers");
        }
        match key {
            Some(key) => ask.header("authorization", format!("Bearer {key}")),
            None => ask,
        }
    }

    pub fn send(self, to: SocketAddr, ask: &Ask) -> Reply {
        if self.is_http2() {
            http2(to, ask)
        } else {
            http1(to, ask)
        }
    }

    /// What the answer says: `OK` or an error's code in upper case, and the message. Panics when the answer does not
    /// have the form of this client's protocol.
    pub fn outcome(self, reply: &Reply) -> Outcome {
        let id = reply.header("x-request-id").unwrap_or_else(|| panic!("{self:?}: no X-Request-Id: {reply:?}"));
        assert!(!id.is_empty(), "{self:?}: an empty X-Request-Id");
        if self.is_framed() {
            return self.framed_outcome(reply);
        }
        if reply.status == 200 {
            return Outcome { code: "OK".into(), message: String::new(), http_status: 200 };
        }
        let content_type = reply.header("content-type").unwrap_or_default();
        assert_eq!(content_type, "application/json", "{self:?}: an error is JSON: {reply:?}");
        let error = reply.json();
        let code = error["code"].as_str().unwrap_or_else(|| panic!("{self:?}: no code: {reply:?}"));
        if self.is_plain() {
            assert_eq!(code, code.to_ascii_uppercase(), "the envelope's code is in upper case");
            assert_eq!(error["details"]["request_id"], id, "the envelope names the request: {reply:?}");
        } else {
            assert_eq!(code, code.to_ascii_lowercase(), "Connect's code is in lower case");
            assert!(error["details"].is_null() || error["details"].is_array(), "Connect's details: {reply:?}");
        }
        Outcome {
            code: code.to_ascii_uppercase(),
            message: error["message"].as_str().unwrap_or_default().to_owned(),
            http_status: reply.status,
        }
    }

    fn framed_outcome(self, reply: &Reply) -> Outcome {
        assert_eq!(reply.status, 200, "{self:?}: gRPC's own status is told in 200 OK: {reply:?}");
        let content_type = reply.header("content-type").unwrap_or_default();
        let expected = if self == Self::Grpc2 { "application/grpc" } else { "application/grpc-web" };
        assert!(content_type.starts_with(expected), "{self:?}: content type {content_type:?}");
        let in_body = trailers_in(&reply.body);
        let value = |name: &str| {
            let of_body = in_body.iter().find(|(present, _)| present == name).map(|(_, value)| value.clone());
            of_body.or_else(|| reply.trailer(name).map(str::to_owned))
        };
        let status = value("grpc-status").unwrap_or_else(|| panic!("{self:?}: no grpc-status: {reply:?}"));
        let number: usize = status.parse().unwrap_or_else(|_| panic!("{self:?}: grpc-status {status:?}"));
        Outcome {
            code: GRPC_CODES[number].to_owned(),
            message: percent_decoded(&value("grpc-message").unwrap_or_default()),
            http_status: 200,
        }
    }

    /// The message of a successful answer, out of its frame.
    pub fn message(self, reply: &Reply) -> Vec<u8> {
        if !self.is_framed() {
            return reply.body.clone();
        }
        let length = reply.body[1..5].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        reply.body[5..5 + length].to_vec()
    }
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub code: String,
    pub message: String,
    pub http_status: u16,
}

const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A gRPC frame: flags, length, message.
pub fn frame(flags: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a message below 4 GiB");
    [&[flags][..], &length.to_be_bytes(), message].concat()
}

/// The trailers that gRPC-Web writes as the last frame of the body, whose flags have the highest bit set.
fn trailers_in(mut body: &[u8]) -> Vec<(String, String)> {
    while body.len() >= 5 {
        let length = body[1..5].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let Some(message) = body.get(5..5 + length) else { break };
        if body[0] & 0x80 != 0 {
            let text = String::from_utf8_lossy(message);
            let pair = |line: &str| {
                line.split_once(':').map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
            };
            return text.lines().filter_map(pair).collect();
        }
        body = &body[5 + length..];
    }
    Vec::new()
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = (*first == b'%' && tail.len() >= 2).then(|| std::str::from_utf8(&tail[..2]).ok()).flatten();
        match hex.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The smallest encoder of protobuf: enough to write the messages that tests send, and to write wrong ones.
pub mod proto {
    pub fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    pub fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
        [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
    }

    pub fn integer(field: u64, value: u64) -> Vec<u8> {
        [varint(field << 3), varint(value)].concat()
    }

    pub fn double(field: u64, value: f64) -> Vec<u8> {
        [varint(field << 3 | 1), value.to_le_bytes().to_vec()].concat()
    }

    /// The reference's heartbeat.
    pub fn heartbeat(device_id: &str) -> Vec<u8> {
        let status = [integer(1, 1), integer(2, 3600)].concat();
        let stats = [double(1, 25.5), integer(2, 1024), double(3, 10.5)].concat();
        [bytes(1, device_id.as_bytes()), bytes(2, &status), bytes(3, &stats)].concat()
    }
}
