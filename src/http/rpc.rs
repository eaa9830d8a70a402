//! From bytes to services and back: `connectrpc` has dealt with the protocol, this decodes the message (protobuf or
//! protobuf JSON), calls the service, and encodes the answer.
//!
//! Every RPC of the contract is known here; one that no service serves yet answers UNIMPLEMENTED and says so.
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use connectrpc::dispatcher::{Dispatcher, MethodDescriptor, RequestStream, StreamingResult, UnaryResult};
use connectrpc::{
    CodecFormat, ConnectError, EncodedBody, EncodedResponse, Limits, Payload, RequestContext, Response, Router,
};
use connectrpc_health::StaticChecker;
use connectrpc_reflection::Reflector;
use fleetd_proto::{json, Method, MethodKind, METHODS};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde::Serialize;

use super::access::Call;
use super::analytics_service::{self as analytics, AnalyticsService};
use super::binary_service::{self as binaries, BinaryService};
use super::command_service;
use super::density;
use super::deployment_service as deployments;
use super::device_edit;
use super::device_service::{self as devices, DeviceService};
use super::event_service;
use super::heartbeats;
use super::listing;
use super::update_service::{self as updates, UpdateService};
use super::wire::{self, FactsSlot};
use crate::error::{ApiError, ErrorCode};

/// All services behind one dispatcher. Cheap to clone.
#[derive(Clone)]
pub struct FleetRpc {
    devices: Arc<DeviceService>,
    updates: Arc<UpdateService>,
    binaries: Arc<BinaryService>,
    analytics: Arc<AnalyticsService>,
}

static DESCRIPTORS: LazyLock<HashMap<&'static str, MethodDescriptor>> =
    LazyLock::new(|| METHODS.iter().map(|method| (method.path, descriptor(method))).collect());

fn descriptor(method: &Method) -> MethodDescriptor {
    let descriptor = match method.kind {
        MethodKind::Unary => MethodDescriptor::unary(method.no_side_effects),
        MethodKind::ServerStreaming => MethodDescriptor::server_streaming(),
        MethodKind::ClientStreaming => MethodDescriptor::client_streaming(),
        MethodKind::BidiStreaming => MethodDescriptor::bidi_streaming(),
    };
    match method.path {
        binaries::UPLOAD_BINARY => {
            descriptor.with_limits(Limits::default().with_max_message_size(binaries::MAX_UPLOAD_MESSAGE_BYTES))
        }
        _ => descriptor,
    }
}

/// The services that come with `connectrpc`: gRPC health, and reflection over the contract's descriptors, so that a
/// client needs no files. The checker is what health answers by: tell it when the server begins to stop.
pub fn companions() -> (Router, Arc<StaticChecker>) {
    let mut services: Vec<&str> = METHODS.iter().map(|method| method.service).collect();
    services.dedup();
    let (router, health) = connectrpc_health::install_static(Router::new(), services);
    let router = match Reflector::from_descriptor_set_bytes(fleetd_proto::FILE_DESCRIPTOR_SET) {
        Ok(reflector) => connectrpc_reflection::install(router, reflector),
        Err(error) => {
            // A test holds that the compiled-in descriptors link; without them RPCs still work.
            tracing::error!(error = &error as &dyn std::error::Error, "no server reflection");
            router
        }
    };
    (router, health)
}

impl FleetRpc {
    pub fn new(
        devices: Arc<DeviceService>,
        updates: Arc<UpdateService>,
        binaries: Arc<BinaryService>,
        analytics: Arc<AnalyticsService>,
    ) -> Self {
        Self { devices, updates, binaries, analytics }
    }

    pub(super) fn devices(&self) -> &Arc<DeviceService> {
        &self.devices
    }

    pub(super) fn binaries(&self) -> &Arc<BinaryService> {
        &self.binaries
    }

    pub(super) fn analytics(&self) -> &Arc<AnalyticsService> {
        &self.analytics
    }
}

/// One arm of [`Dispatcher::call_unary`]: decode, call, encode.
macro_rules! unary {
    ($service:expr, $method:ident, $context:expr, $request:expr, $format:expr) => {{
        let service = Arc::clone($service);
        Box::pin(async move {
            let mut call = Call::from_context(&$context);
            let facts = $context.extensions().get::<FactsSlot>().cloned();
            let answer = match decode(&$request.encoded()?, $format) {
                Ok(request) => service.$method(&mut call, request).await,
                Err(error) => Err(service.access.undecodable(&mut call, error)),
            };
            answer
                .and_then(|message| respond(&message, &mut call, $format))
                .map_err(|error| wire::connect_error(call.sign(error), call.quota.as_ref(), facts.as_ref()))
        })
    }};
}

/// As [`unary!`], for what changes the registry and then tells the rest of the server: it goes on to its end also when
/// nobody waits for the answer any more. A caller that hangs up or runs out of time drops its request's future, and
/// between the two steps that would leave a deleted device with a live key, or a command that no device hears of.
macro_rules! unary_to_its_end {
    ($service:expr, $method:ident, $context:expr, $request:expr, $format:expr) => {{
        let answer: UnaryResult = unary!($service, $method, $context, $request, $format);
        Box::pin(async move {
            tokio::spawn(answer).await.unwrap_or_else(|died| {
                let error = ApiError::internal("the call failed inside; report it with the server's log");
                Err(wire::connect_error(error.with_source(died), None, None))
            })
        })
    }};
}

/// One arm of [`Dispatcher::call_server_streaming`]: decode, call, hand the stream on as `$respond` makes it.
macro_rules! streaming {
    ($service:expr, $method:ident, $context:expr, $request:expr, $format:expr, $respond:expr) => {{
        let service = Arc::clone($service);
        Box::pin(async move {
            let mut call = Call::from_context(&$context);
            let facts = $context.extensions().get::<FactsSlot>().cloned();
            let answer = match decode(&$request, $format) {
                Ok(request) => service.$method(&mut call, request, $format).await,
                Err(error) => Err(service.access.undecodable(&mut call, error)),
            };
            answer
                .map($respond)
                .map_err(|error| wire::connect_error(call.sign(error), call.quota.as_ref(), facts.as_ref()))
        })
    }};
}

impl Dispatcher for FleetRpc {
    fn lookup(&self, path: &str) -> Option<MethodDescriptor> {
        DESCRIPTORS.get(path).copied()
    }

    fn call_unary(&self, path: &str, context: RequestContext, request: Payload, format: CodecFormat) -> UnaryResult {
        match path {
            heartbeats::HEARTBEAT => unary!(&self.devices, heartbeat, context, request, format),
            heartbeats::BATCH_HEARTBEAT => unary!(&self.devices, batch_heartbeat, context, request, format),
            devices::REGISTER_DEVICE => unary_to_its_end!(&self.devices, register, context, request, format),
            devices::BATCH_REGISTER_DEVICES => {
                unary_to_its_end!(&self.devices, register_batch, context, request, format)
            }
            devices::GET_DEVICE => unary!(&self.devices, get, context, request, format),
            device_edit::UPDATE_DEVICE => unary_to_its_end!(&self.devices, update, context, request, format),
            device_edit::DELETE_DEVICE => unary_to_its_end!(&self.devices, delete, context, request, format),
            command_service::SEND_COMMAND => unary_to_its_end!(&self.devices, send_command, context, request, format),
            command_service::LIST_COMMANDS => unary!(&self.devices, list_commands, context, request, format),
            command_service::CANCEL_COMMAND => unary!(&self.devices, cancel_command, context, request, format),
            listing::LIST_DEVICES => unary!(&self.devices, list, context, request, format),
            _ => self.call_updates(path, context, request, format),
        }
    }

    fn call_server_streaming(
        &self,
        path: &str,
        context: RequestContext,
        request: Bytes,
        format: CodecFormat,
    ) -> StreamingResult {
        match path {
            event_service::STREAM_EVENTS => {
                streaming!(&self.devices, stream_events, context, request, format, streamed)
            }
            binaries::DOWNLOAD_BINARY => {
                // Files of updates are compressed already, or it is their format's business.
                let uncompressed = |messages| Response::new(messages).compress(false);
                streaming!(&self.binaries, download, context, request, format, uncompressed)
            }
            _ => {
                let refusal = self.not_served(path, &context);
                Box::pin(async move { Err(refusal) })
            }
        }
    }

    fn call_client_streaming(
        &self,
        path: &str,
        context: RequestContext,
        messages: RequestStream,
        format: CodecFormat,
    ) -> UnaryResult {
        if path == binaries::UPLOAD_BINARY {
            let service = Arc::clone(&self.binaries);
            return Box::pin(async move {
                let mut call = Call::from_context(&context);
                let answer = service.upload(&mut call, messages, format).await;
                answer
                    .and_then(|message| respond(&message, &mut call, format))
                    .map_err(|error| wire::connect_error(call.sign(error), call.quota.as_ref(), None))
            });
        }
        let refusal = self.not_served(path, &context);
        Box::pin(async move { Err(refusal) })
    }

    fn call_bidi_streaming(
        &self,
        path: &str,
        context: RequestContext,
        messages: RequestStream,
        format: CodecFormat,
    ) -> StreamingResult {
        if path == heartbeats::STREAM_HEARTBEATS {
            let answers = self.devices.stream_heartbeats(&context, messages, format);
            return Box::pin(async move { Ok(streamed(answers)) });
        }
        let refusal = self.not_served(path, &context);
        Box::pin(async move { Err(refusal) })
    }
}

impl FleetRpc {
    fn call_updates(&self, path: &str, context: RequestContext, request: Payload, format: CodecFormat) -> UnaryResult {
        let service = &self.updates;
        match path {
            updates::CREATE_UPDATE => unary_to_its_end!(service, create_update, context, request, format),
            updates::GET_UPDATE => unary!(service, get_update, context, request, format),
            updates::LIST_UPDATES => unary!(service, list_updates, context, request, format),
            deployments::DEPLOY_UPDATE => unary_to_its_end!(service, deploy, context, request, format),
            deployments::PLAN_DEPLOYMENT => unary!(service, plan_deployment, context, request, format),
            deployments::GET_DEPLOYMENT_STATUS => unary!(service, deployment_status, context, request, format),
            deployments::LIST_DEPLOYMENTS => unary!(service, list_deployments, context, request, format),
            deployments::PAUSE_DEPLOYMENT => unary_to_its_end!(service, pause_deployment, context, request, format),
            deployments::RESUME_DEPLOYMENT => unary_to_its_end!(service, resume_deployment, context, request, format),
            deployments::PROMOTE_DEPLOYMENT => unary_to_its_end!(service, promote_deployment, context, request, format),
            deployments::APPROVE_DEPLOYMENT => unary_to_its_end!(service, approve_deployment, context, request, format),
            deployments::CANCEL_DEPLOYMENT => unary_to_its_end!(service, cancel_deployment, context, request, format),
            deployments::ROLLBACK_DEPLOYMENT => {
                unary_to_its_end!(service, rollback_deployment, context, request, format)
            }
            deployments::RETRY_FAILED => unary_to_its_end!(service, retry_failed, context, request, format),
            deployments::EXPLAIN_DEVICE => unary!(service, explain_device, context, request, format),
            deployments::REPORT_UPDATE_STATUS => unary!(service, report_update_status, context, request, format),
            _ => self.call_analytics(path, context, request, format),
        }
    }

    fn call_analytics(
        &self,
        path: &str,
        context: RequestContext,
        request: Payload,
        format: CodecFormat,
    ) -> UnaryResult {
        let service = &self.analytics;
        match path {
            analytics::GET_METRICS => unary!(service, get_metrics, context, request, format),
            analytics::GET_DEVICE_HEALTH => unary!(service, get_device_health, context, request, format),
            analytics::EXPORT_DATA => unary_to_its_end!(service, export_data, context, request, format),
            analytics::GET_EXPORT => unary!(service, get_export, context, request, format),
            _ => {
                let refusal = self.not_served(path, &context);
                Box::pin(async move { Err(refusal) })
            }
        }
    }

    /// The answer for an RPC of the contract that this version does not serve. No key is asked for: the answer
    /// tells nothing that the published contract does not.
    fn not_served(&self, path: &str, context: &RequestContext) -> ConnectError {
        let facts = context.extensions().get::<FactsSlot>();
        let message = format!("{path} is in the contract, but this version of fleetd does not serve it yet");
        wire::connect_error(ApiError::new(ErrorCode::Unimplemented, message), None, facts)
    }
}

/// Decodes a request. What is wrong with it, and where, is in the error.
pub(super) fn decode<M>(bytes: &[u8], format: CodecFormat) -> Result<M, ApiError>
where
    M: prost::Message + Default + DeserializeOwned,
{
    density::check(bytes, format)?;
    match format {
        // Connect counts an empty body as an empty message in either format.
        CodecFormat::Json => json::from_slice(if bytes.is_empty() { b"{}" } else { bytes }).map_err(|error| {
            ApiError::invalid_argument(format!("the request is not valid JSON for this RPC: {error}"))
        }),
        CodecFormat::Proto => M::decode(bytes)
            .map_err(|error| ApiError::invalid_argument(format!("the request is not valid protobuf: {error}"))),
        // `connectrpc` may learn further formats; it offers none that it was not asked for.
        other => Err(ApiError::new(ErrorCode::Unimplemented, format!("messages in {other} are not understood"))),
    }
}

/// As [`decode`], with byte fields that share the message's memory in place of copies: for messages that are mostly
/// such a field, and are dropped soon.
pub(super) fn decode_sharing<M>(bytes: Bytes, format: CodecFormat) -> Result<M, ApiError>
where
    M: prost::Message + Default + DeserializeOwned,
{
    match format {
        CodecFormat::Proto => M::decode(bytes)
            .map_err(|error| ApiError::invalid_argument(format!("the request is not valid protobuf: {error}"))),
        _ => decode(&bytes, format),
    }
}

/// Encodes an answer in the format that the request came in.
pub(super) fn encode<M>(message: &M, format: CodecFormat) -> Result<Bytes, ApiError>
where
    M: prost::Message + Serialize,
{
    match format {
        CodecFormat::Proto => Ok(message.encode_to_vec().into()),
        CodecFormat::Json => json::to_vec(message)
            .map(Bytes::from)
            .map_err(|error| ApiError::internal("the answer could not be written as JSON").with_source(error)),
        other => Err(ApiError::new(ErrorCode::Unimplemented, format!("messages in {other} are not written"))),
    }
}

/// A stream of encoded messages as `connectrpc` sends it.
fn streamed(messages: heartbeats::Answers) -> Response<connectrpc::response::EncodedStream> {
    Response::new(Box::pin(messages.map(|message| message.map(EncodedBody::from))))
}

fn respond<M>(message: &M, call: &mut Call, format: CodecFormat) -> Result<EncodedResponse, ApiError>
where
    M: prost::Message + Serialize,
{
    let body = encode(message, format)?;
    call.settle(body.len())?;
    let mut response = Response::new(EncodedBody::from(body));
    if let Some(quota) = &call.quota {
        wire::set_limit_headers(&mut response.headers, quota);
    }
    Ok(response)
}
