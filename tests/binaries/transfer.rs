//! Uploads and downloads as clients of each protocol make them.
use bytes::Bytes;
use fleetd_proto::json;
use fleetd_proto::v1::{
    download_binary_response, upload_binary_request, BinaryMetadata, DownloadBinaryRequest, DownloadBinaryResponse,
    UploadBinaryRequest, UploadBinaryResponse,
};
use prost::Message;
use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::support::client::frame;
use crate::support::wire::{http1, http2, Ask, Reply};
use crate::support::{Server, ADMIN_KEY};

pub const UPLOAD: &str = "BinaryService/UploadBinary";
pub const DOWNLOAD: &str = "BinaryService/DownloadBinary";

/// A protocol for streams, on an HTTP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Grpc,
    GrpcWeb1,
    GrpcWeb2,
    Connect1,
    Connect2,
    ConnectJson1,
    ConnectJson2,
}

impl Via {
    pub const ALL: [Self; 7] = [
        Self::Grpc,
        Self::GrpcWeb1,
        Self::GrpcWeb2,
        Self::Connect1,
        Self::Connect2,
        Self::ConnectJson1,
        Self::ConnectJson2,
    ];

    pub const fn is_json(self) -> bool {
        matches!(self, Self::ConnectJson1 | Self::ConnectJson2)
    }

    const fn content_type(self) -> &'static str {
        match self {
            Self::Grpc => "application/grpc",
            Self::GrpcWeb1 | Self::GrpcWeb2 => "application/grpc-web+proto",
            Self::Connect1 | Self::Connect2 => "application/connect+proto",
            Self::ConnectJson1 | Self::ConnectJson2 => "application/connect+json",
        }
    }

    /// A call with messages that are already framed.
    pub fn ask(self, rpc: &str, key: Option<&str>, body: Vec<u8>) -> Ask {
        let mut ask = Ask::post(format!("/fleetd.v1.{rpc}"), body).header("content-type", self.content_type());
        if self == Self::Grpc {
            ask = ask.header("te", "trailers");
        }
        match key {
            Some(key) => ask.header("authorization", format!("Bearer {key}")),
            None => ask,
        }
    }

    pub fn encode<M: Message + Serialize>(self, message: &M) -> Vec<u8> {
        if self.is_json() {
            json::to_vec(message).expect("JSON")
        } else {
            message.encode_to_vec()
        }
    }

    fn decode<M: Message + Default + DeserializeOwned>(self, message: &[u8]) -> M {
        if self.is_json() {
            json::from_slice(message).expect("JSON of the contract")
        } else {
            M::decode(message).expect("protobuf of the contract")
        }
    }

    /// Sends `messages` as one call.
    pub fn call(self, server: &Server, rpc: &str, key: Option<&str>, messages: &[Vec<u8>]) -> Answer {
        let body = messages.iter().flat_map(|message| frame(0, message)).collect();
        let ask = self.ask(rpc, key, body);
        let is_http1 = matches!(self, Self::GrpcWeb1 | Self::Connect1 | Self::ConnectJson1);
        let reply = if is_http1 { http1(server.http(), &ask) } else { http2(server.http(), &ask) };
        Answer::of(self, &reply)
    }
}

/// What came back from a streaming call.
#[derive(Debug)]
pub struct Answer {
    pub via: Via,
    pub messages: Vec<Vec<u8>>,
    /// `OK`, or the error's code in upper case.
    pub code: String,
    pub message: String,
    pub retry_after: Option<String>,
}

impl Answer {
    pub fn of(via: Via, reply: &Reply) -> Self {
        let mut messages = Vec::new();
        let (mut code, mut message) = (None, String::new());
        let mut retry_after = reply.header("retry-after").map(str::to_owned);
        let mut rest = reply.body.as_slice();
        while rest.len() >= 5 {
            let length = rest[1..5].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            let piece = &rest[5..5 + length];
            match rest[0] {
                0 => messages.push(piece.to_vec()),
                // Connect's end of stream.
                2 => {
                    let end: serde_json::Value = serde_json::from_slice(piece).expect("JSON at the end");
                    let error = &end["error"];
                    code = Some(error["code"].as_str().unwrap_or("ok").to_uppercase());
                    message = error["message"].as_str().unwrap_or_default().to_owned();
                    retry_after = retry_after.or(end["metadata"]["retry-after"][0].as_str().map(str::to_owned));
                }
                0x80 => {
                    let text = String::from_utf8_lossy(piece).into_owned();
                    let value = |name: &str| {
                        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                        line.map(|value| value.trim().to_owned())
                    };
                    code = value("grpc-status").map(|status| grpc_name(&status));
                    message = value("grpc-message").unwrap_or_default();
                }
                flags => panic!("{via:?}: a frame with flags {flags}"),
            }
            rest = &rest[5 + length..];
        }
        if let Some(status) = reply.trailer("grpc-status") {
            code = Some(grpc_name(status));
            message = reply.trailer("grpc-message").unwrap_or_default().to_owned();
        }
        let code =
            code.unwrap_or_else(|| panic!("{via:?}: the stream has no end: {} {:?}", reply.status, reply.headers));
        // gRPC percent-encodes what is not printable ASCII; here only quotes and signs matter.
        let message = message.replace("%22", "\"").replace("%5C", "\\").replace("%0A", "\n").replace("%25", "%");
        Self { via, messages, code, message, retry_after }
    }

    /// The one message of an upload's answer; panics when it failed.
    pub fn uploaded(&self) -> UploadBinaryResponse {
        assert_eq!((self.code.as_str(), self.messages.len()), ("OK", 1), "{:?}: {}", self.via, self.message);
        self.via.decode(&self.messages[0])
    }

    /// Metadata and bytes of a download; panics when it failed.
    pub fn downloaded(&self) -> (BinaryMetadata, Vec<Vec<u8>>) {
        use download_binary_response::Data;
        assert_eq!(self.code, "OK", "{:?}: {}", self.via, self.message);
        let mut messages = self
            .messages
            .iter()
            .map(|message| self.via.decode::<DownloadBinaryResponse>(message).data.expect("metadata or a chunk"));
        let Some(Data::Metadata(metadata)) = messages.next() else { panic!("metadata comes first") };
        let chunks = messages.map(|data| match data {
            Data::Chunk(chunk) => chunk.to_vec(),
            Data::Metadata(_) => panic!("metadata again"),
        });
        (metadata, chunks.collect())
    }

    #[track_caller]
    pub fn is_refused(&self, code: &str, parts_of_message: &[&str]) {
        assert_eq!(self.code, code, "{:?}: {}", self.via, self.message);
        for part in parts_of_message {
            assert!(self.message.contains(part), "{:?}: {part:?} is not in {:?}", self.via, self.message);
        }
    }
}

fn grpc_name(status: &str) -> String {
    let code = status.trim().parse().ok().and_then(connectrpc::ErrorCode::from_grpc_code);
    code.map_or_else(|| "OK".to_owned(), |code| code.as_str().to_uppercase())
}

pub fn named(name: &str) -> BinaryMetadata {
    BinaryMetadata {
        name: name.into(),
        version: "2.0.0".into(),
        platform: "raspberry-pi".into(),
        ..BinaryMetadata::default()
    }
}

pub fn metadata_message(via: Via, metadata: BinaryMetadata) -> Vec<u8> {
    via.encode(&UploadBinaryRequest { data: Some(upload_binary_request::Data::Metadata(metadata)) })
}

pub fn chunk_message(via: Via, chunk: &[u8]) -> Vec<u8> {
    let chunk = Bytes::copy_from_slice(chunk);
    via.encode(&UploadBinaryRequest { data: Some(upload_binary_request::Data::Chunk(chunk)) })
}

/// Uploads with the admin key, in chunks of `chunk` bytes.
pub fn upload(server: &Server, via: Via, metadata: BinaryMetadata, bytes: &[u8], chunk: usize) -> Answer {
    let mut messages = vec![metadata_message(via, metadata)];
    messages.extend(bytes.chunks(chunk).map(|chunk| chunk_message(via, chunk)));
    via.call(server, UPLOAD, Some(ADMIN_KEY), &messages)
}

pub fn download(server: &Server, via: Via, key: Option<&str>, request: DownloadBinaryRequest) -> Answer {
    via.call(server, DOWNLOAD, key, &[via.encode(&request)])
}

/// Uploads small bytes; gives the file's id.
pub fn uploaded(server: &Server, name: &str, bytes: &[u8]) -> String {
    upload(server, Via::Grpc, named(name), bytes, 1 << 20).uploaded().binary_id
}
