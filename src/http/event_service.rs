//! StreamEvents: what happens to devices, as it happens.
use std::sync::Arc;

use bytes::Bytes;
use connectrpc::{CodecFormat, ConnectError};
use fleetd_proto::v1::{
    stream_events_response::Data, DeviceDeploymentStatus, StatusChange, StreamEventsRequest, StreamEventsResponse,
    SystemInfo,
};
use futures_util::stream;

use super::access::Call;
use super::device_service::{metrics_of, timestamp, DeviceService};
use super::heartbeats::{Answers, RETRY_STREAM};
use super::{rpc, wire};
use crate::clock::UnixMillis;
use crate::error::{beginning, ApiError, ErrorCode};
use crate::events::{Event, Kind, Subscription, What};
use crate::query::Filter;
use crate::store;

pub const STREAM_EVENTS: &str = "fleetd.v1.DeviceService/StreamEvents";

/// A name of the contract under which nothing is told yet.
const NOT_YET_TOLD: [&str; 1] = ["command"];

/// One reader.
struct Reader {
    service: Arc<DeviceService>,
    subscription: Subscription,
    kinds: Vec<Kind>,
    filter: Filter,
    format: CodecFormat,
    sequence: u64,
    /// Events that were missed since the last one that was sent.
    missed: u64,
    is_over: bool,
}

impl DeviceService {
    /// Permission: `device:view`. From the call on; a reader that is too slow misses events and is told how many.
    pub async fn stream_events(
        self: &Arc<Self>,
        call: &mut Call,
        request: StreamEventsRequest,
        format: CodecFormat,
    ) -> Result<Answers, ApiError> {
        self.access.authorize(call, STREAM_EVENTS).await?;
        let filter = Filter::parse(&request.device_filter, UnixMillis::now())
            .map_err(|error| ApiError::invalid_argument(format!("device_filter: {error}")))?;
        let kinds = kinds_of(&request.events)?;
        let to_heartbeats = kinds.contains(&Kind::Heartbeat);
        let to_changes = kinds.iter().any(|kind| *kind != Kind::Heartbeat);
        let subscription = self.events.subscribe(to_changes, to_heartbeats).map_err(|error| {
            ApiError::new(ErrorCode::ResourceExhausted, error.to_string()).with_retry_after(RETRY_STREAM)
        })?;
        let service = Arc::clone(self);
        let reader = Reader { service, subscription, kinds, filter, format, sequence: 0, missed: 0, is_over: false };
        Ok(Box::pin(stream::unfold(reader, |mut reader| async move {
            if reader.is_over {
                return None;
            }
            let next = reader.next().await;
            reader.is_over = next.is_err();
            Some((next, reader))
        })))
    }
}

/// Characters of an event's name that an error repeats: more than any has.
const MAX_SHOWN: usize = 40;

/// No names mean all events but heartbeats, which are many.
fn kinds_of(names: &[String]) -> Result<Vec<Kind>, ApiError> {
    if names.is_empty() {
        return Ok(Kind::ALL.into_iter().filter(|kind| *kind != Kind::Heartbeat).collect());
    }
    let mut kinds = Vec::new();
    for name in names {
        match Kind::ALL.into_iter().find(|kind| kind.name() == name) {
            Some(kind) => kinds.push(kind),
            None if NOT_YET_TOLD.contains(&name.as_str()) => {}
            None => {
                let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).chain(NOT_YET_TOLD).collect();
                let shown = beginning(name, MAX_SHOWN);
                let message = format!("events has {shown:?}, which is no event; there are {}", known.join(", "));
                return Err(ApiError::invalid_argument(message));
            }
        }
    }
    Ok(kinds)
}

impl Reader {
    async fn next(&mut self) -> Result<Bytes, ConnectError> {
        let mut stopping = self.service.stopping.clone();
        loop {
            let (event, missed) = tokio::select! {
                received = self.subscription.next() => received,
                _ = stopping.wait_for(|is_stopping| *is_stopping) => {
                    let error = ApiError::unavailable("the server is stopping; open the stream anew", RETRY_STREAM);
                    return Err(wire::connect_error(error, None, None));
                }
            };
            self.missed += missed;
            if self.kinds.contains(&event.what.kind()) && self.is_asked_for(&event.what) {
                self.sequence += 1;
                let message = self.message(event).await;
                return rpc::encode(&message, self.format).map_err(|error| wire::connect_error(error, None, None));
            }
        }
    }

    /// A filter is asked of the device as it is now. One that is gone matches a filter of its id at most.
    fn is_asked_for(&self, what: &What) -> bool {
        if self.filter.root().is_none() {
            return true;
        }
        let directory = &self.service.directory;
        match what {
            What::StatusChange { device, .. } | What::Heartbeat { device } | What::Deployment { device, .. } => {
                directory.fleet().matches(device, &self.filter)
            }
            What::Registered { device } | What::Updated { device } => {
                let entry = directory.find(device.id.as_str());
                entry.is_some_and(|entry| directory.fleet().matches(&entry, &self.filter))
            }
            // Its row is gone: what was known of it at the end answers.
            What::Deleted { device, .. } => self.filter.matches(&**device),
        }
    }

    async fn message(&mut self, event: Event) -> StreamEventsResponse {
        let kind = event.what.kind();
        let device_id = event.what.device_id().to_owned();
        let data = match event.what {
            What::StatusChange { from, to, last_seen, .. } => Some(Data::StatusChange(StatusChange {
                from: from.into(),
                to: to.into(),
                last_seen: last_seen.map(timestamp),
            })),
            What::Heartbeat { device } => metrics_of(&SystemInfo::default(), &device.live()).map(Data::Heartbeat),
            What::Registered { device } | What::Updated { device } => Some(Data::Device(self.shown(&device))),
            What::Deleted { .. } => None,
            What::Deployment { progress, .. } => Some(Data::Deployment(DeviceDeploymentStatus {
                device_id: device_id.clone(),
                state: progress.state.into(),
                wave: i32::try_from(progress.wave).unwrap_or(i32::MAX),
                attempt: progress.attempt,
                reason_code: progress.reason_code.to_owned(),
                updated_at: Some(timestamp(event.at)),
                deployment_id: progress.deployment.id().to_owned(),
                ..DeviceDeploymentStatus::default()
            })),
        };
        StreamEventsResponse {
            event: kind.name().to_owned(),
            timestamp: Some(timestamp(event.at)),
            device_id,
            data,
            sequence: self.sequence,
            missed_count: std::mem::take(&mut self.missed),
        }
    }

    fn shown(&self, device: &store::Device) -> fleetd_proto::v1::Device {
        let live = self.service.directory.find(device.id.as_str()).map(|entry| entry.live()).unwrap_or_default();
        self.service.shown(device.clone(), &live)
    }
}
