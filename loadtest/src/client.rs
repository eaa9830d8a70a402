//! One caller with one connection, for set-up work and for tests: register, heartbeat, get, list.
//!
//! The generator's hot path does not go through here; see `slot`.
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fleetd_proto::v1::{
    upload_binary_request, BinaryMetadata, GetDeviceRequest, GetDeviceResponse, HeartbeatRequest, HeartbeatResponse,
    ListDevicesRequest, ListDevicesResponse, RegisterDeviceRequest, RegisterDeviceResponse, UploadBinaryRequest,
    UploadBinaryResponse,
};
use http::header::{HeaderMap, HeaderValue};
use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::error::LoadError;
use crate::target::Target;
use crate::transport::{self, SendError, Sender};
use crate::wire::{self, CallError, CallTemplate, Protocol};

/// How long a call may take before the connection is given up: far above a healthy answer, below a test's patience.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Length of a chunk of an upload, as the contract recommends it.
const UPLOAD_CHUNK_BYTES: usize = 1 << 20;

/// A client of the server over one protocol, with one token. It connects on the first call and again after a
/// connection broke; it never repeats a call whose outcome it does not know.
#[derive(Debug)]
pub struct Client {
    target: Target,
    protocol: Protocol,
    token: Option<HeaderValue>,
    sender: Option<Sender>,
    buffer: BytesMut,
}

/// An answer with the headers that came with it (`x-request-id`, `x-ratelimit-limit`, …).
#[derive(Clone, Debug)]
pub struct Reply<M> {
    pub message: M,
    pub headers: HeaderMap,
}

impl Client {
    /// `token` is an admin key or a device's; `None` calls without one. Nothing is sent yet.
    pub fn new(target: &Target, protocol: Protocol, token: Option<&str>) -> Result<Self, LoadError> {
        let token = token.map(|token| wire::bearer(token, "the key")).transpose()?;
        Ok(Self { target: target.clone(), protocol, token, sender: None, buffer: BytesMut::new() })
    }

    pub(crate) fn authority(&self) -> &str {
        self.target.authority()
    }

    /// Speaks for somebody else from the next call on, over the same connection.
    pub fn set_token(&mut self, token: Option<&str>) -> Result<(), LoadError> {
        self.token = token.map(|token| wire::bearer(token, "the key")).transpose()?;
        Ok(())
    }

    pub async fn register(
        &mut self,
        request: &RegisterDeviceRequest,
    ) -> Result<Reply<RegisterDeviceResponse>, CallError> {
        self.call("fleetd.v1.DeviceService/RegisterDevice", request).await
    }

    pub async fn heartbeat(&mut self, request: &HeartbeatRequest) -> Result<Reply<HeartbeatResponse>, CallError> {
        self.call(wire::HEARTBEAT, request).await
    }

    pub async fn get_device(&mut self, request: &GetDeviceRequest) -> Result<Reply<GetDeviceResponse>, CallError> {
        self.call("fleetd.v1.DeviceService/GetDevice", request).await
    }

    pub async fn list_devices(
        &mut self,
        request: &ListDevicesRequest,
    ) -> Result<Reply<ListDevicesResponse>, CallError> {
        self.call("fleetd.v1.DeviceService/ListDevices", request).await
    }

    /// Any unary call: `method` is `package.Service/Method`.
    pub async fn call<Q, A>(&mut self, method: &str, request: &Q) -> Result<Reply<A>, CallError>
    where
        Q: prost::Message + Serialize,
        A: prost::Message + Default + DeserializeOwned,
    {
        let body = wire::encode(self.protocol, request, &mut self.buffer);
        self.exchange(method, body).await
    }

    /// Uploads a file with UploadBinary. Only gRPC carries the stream of a call; it is made in memory before it is
    /// sent, so this is for files of test size.
    pub async fn upload(
        &mut self,
        metadata: BinaryMetadata,
        content: &[u8],
    ) -> Result<Reply<UploadBinaryResponse>, CallError> {
        if self.protocol != Protocol::Grpc {
            return Err(CallError::Malformed("an upload is a stream, which only a gRPC client sends".to_owned()));
        }
        let first = UploadBinaryRequest { data: Some(upload_binary_request::Data::Metadata(metadata)) };
        let mut stream = BytesMut::with_capacity(content.len() + content.len() / 1024 + 4096);
        stream.extend_from_slice(&wire::encode(self.protocol, &first, &mut self.buffer));
        for chunk in content.chunks(UPLOAD_CHUNK_BYTES) {
            let data = Some(upload_binary_request::Data::Chunk(Bytes::copy_from_slice(chunk)));
            stream.extend_from_slice(&wire::encode(self.protocol, &UploadBinaryRequest { data }, &mut self.buffer));
        }
        self.exchange("fleetd.v1.BinaryService/UploadBinary", stream.freeze()).await
    }

    async fn exchange<A>(&mut self, method: &str, body: Bytes) -> Result<Reply<A>, CallError>
    where
        A: prost::Message + Default + DeserializeOwned,
    {
        let broken = |source: LoadError| CallError::Broken { source: source.into() };
        let template = CallTemplate::new(&self.target, self.protocol, method).map_err(broken)?;
        let mut sender = self.connected().await.map_err(broken)?;
        let exchange = async {
            let mut sent = sender.send(template.request(self.token.as_ref(), body.clone())).await;
            if matches!(sent, Err(SendError::NotSent)) {
                // The kept connection had died unnoticed. Nothing left on it, so a fresh one may carry the call.
                sender = self.fresh().await.map_err(broken)?;
                sent = sender.send(template.request(self.token.as_ref(), body)).await;
            }
            let (headers, message) = wire::read_answer(self.protocol, sent?).await?;
            Ok(Reply { message: wire::decode(self.protocol, message)?, headers })
        };
        let answer = tokio::time::timeout(CALL_TIMEOUT, exchange)
            .await
            .unwrap_or_else(|elapsed| Err(CallError::Broken { source: elapsed.into() }));
        if !matches!(answer, Err(CallError::Broken { .. })) {
            self.sender = Some(sender);
        }
        answer
    }

    async fn connected(&mut self) -> Result<Sender, LoadError> {
        if let Some(mut sender) = self.sender.take() {
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        self.fresh().await
    }

    async fn fresh(&self) -> Result<Sender, LoadError> {
        let connection = transport::connect(&self.target, self.protocol).await?;
        // Ends by itself when the sender is dropped.
        tokio::spawn(connection.driver);
        Ok(connection.sender)
    }
}
