//! Heartbeats: one in a call, many in a call, many in each message of a stream. All take the same way: access, the
//! device's actor, the journal, the device's commands.
//!
//! Of many, each has its own result, and one that is refused stops no other. The messages for all actors are sent
//! before the first answer is awaited, and all wait for the journal together.
use std::collections::{BTreeMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use connectrpc::{CodecFormat, ConnectError, RequestContext};
use fleetd_proto::v1::{
    heartbeat_result, BatchHeartbeatRequest, BatchHeartbeatResponse, Error, HeartbeatRequest, HeartbeatResponse,
    HeartbeatResult, ReportUpdateStatusResponse, StreamHeartbeatsRequest, StreamHeartbeatsResponse, UpdateProgress,
};
use futures_util::stream::{self, Stream, StreamExt as _};

use super::access::{Call, Speaker};
use super::command_service::reports_of;
use super::device_service::DeviceService;
use super::rpc;
use super::wire;
use crate::actors::deployment::check_progress;
use crate::actors::device::Taken;
use crate::actors::directory::{self, HeartbeatBatch, Sent};
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::error::{ApiError, ErrorCode};
use crate::store::Report;

pub const HEARTBEAT: &str = "fleetd.v1.DeviceService/Heartbeat";
pub const BATCH_HEARTBEAT: &str = "fleetd.v1.DeviceService/BatchHeartbeat";
pub const STREAM_HEARTBEATS: &str = "fleetd.v1.DeviceService/StreamHeartbeats";

/// Heartbeats in one call or one message of a stream. The largest message holds as many with 200 bytes each.
const MAX_BATCH: usize = 10_000;

/// Exchanges of commands that one batch has under way: as many as the registry groups well.
const EXCHANGES_AT_ONCE: usize = 256;

/// Who has opened a stream and not said who it is by then is let go: a message that never ends holds its bytes. Twice
/// the usual time between heartbeats, for a device that opens its stream before it has anything to tell.
const FIRST_MESSAGE_WITHIN: Duration = Duration::from_secs(60);

/// When to open a stream anew that the server ended because it stops.
pub(super) const RETRY_STREAM: Duration = Duration::from_secs(1);

/// The answers of a stream, encoded.
pub type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, ConnectError>> + Send>>;

/// What became of one heartbeat of many so far, before the journal has it.
type Outcome = Result<(Arc<DeviceEntry>, Told, Taken), ApiError>;

/// What a heartbeat tells besides measurements.
struct Told {
    results: Vec<Report>,
    progress: Option<UpdateProgress>,
}

impl Told {
    /// Takes it out of a heartbeat.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for results and progress that no device can report.
    fn by(request: &mut HeartbeatRequest) -> Result<Self, ApiError> {
        let results = reports_of(std::mem::take(&mut request.command_results))?;
        let progress = request.update_progress.take();
        progress.as_ref().map_or(Ok(()), check_progress)?;
        Ok(Self { results, progress })
    }
}

impl DeviceService {
    /// Permission: `device:heartbeat`, with the device's own key. Acknowledged once its record is in the journal.
    pub async fn heartbeat(&self, call: &mut Call, request: HeartbeatRequest) -> Result<HeartbeatResponse, ApiError> {
        let outcome = self.take_heartbeat(call, request).await;
        self.metrics.count_heartbeat(outcome.as_ref().err().map(|error| error.code));
        outcome
    }

    async fn take_heartbeat(
        &self,
        call: &mut Call,
        mut request: HeartbeatRequest,
    ) -> Result<HeartbeatResponse, ApiError> {
        let entry = self.access.authorize_heartbeat(call, HEARTBEAT, &request.device_id).await?;
        let told = Told::by(&mut request)?;
        let taken = self.directory.heartbeat(&entry, request, UnixMillis::now()).await?;
        taken.ticket.committed().await?;
        self.acknowledge(&entry, told, taken.next_heartbeat).await
    }

    /// What follows from a heartbeat that is in the journal: what it told is durable before it is acknowledged.
    async fn acknowledge(
        &self,
        entry: &DeviceEntry,
        told: Told,
        next_heartbeat: Duration,
    ) -> Result<HeartbeatResponse, ApiError> {
        // Commands last: they are handed out when this is answered, and a report that is not kept is an error instead.
        let exchange = self.deployments.exchange(entry, told.progress).await?;
        let commands = self.exchange_commands(entry, told.results).await?;
        Ok(HeartbeatResponse {
            acknowledged: true,
            commands,
            pending_update: exchange.offer,
            next_heartbeat: Some(next_heartbeat.into()),
            update_report: exchange.report.map(report_answer),
        })
    }

    /// Permission: `device:heartbeat` for each device: all of them for an operator's key, its own for a device's.
    pub async fn batch_heartbeat(
        &self,
        call: &mut Call,
        request: BatchHeartbeatRequest,
    ) -> Result<BatchHeartbeatResponse, ApiError> {
        let speaker = self.access.authorize_speaker(call, BATCH_HEARTBEAT, first_device(&request.heartbeats)).await?;
        check_size(request.heartbeats.len())?;
        let results = self.take_many(call, &speaker, request.heartbeats).await;
        let acknowledged_count = acknowledged(&results);
        Ok(BatchHeartbeatResponse { results, acknowledged_count })
    }

    /// Permission: as [`Self::batch_heartbeat`]. One message at a time, so that the heartbeats of a device stay in
    /// order; the next is read when the answer to the last was taken, which is the stream's backpressure.
    pub fn stream_heartbeats(
        self: &Arc<Self>,
        context: &RequestContext,
        messages: impl Stream<Item = Result<Bytes, ConnectError>> + Send + Unpin + 'static,
        format: CodecFormat,
    ) -> Answers {
        let state = StreamState {
            service: Arc::clone(self),
            call: Call::from_context(context),
            speaker: None,
            messages,
            format,
            is_over: false,
        };
        Box::pin(stream::unfold(state, |mut state| async move {
            if state.is_over {
                return None;
            }
            let answer = state.answer().await?;
            state.is_over = answer.is_err();
            Some((answer, state))
        }))
    }

    /// What became of each heartbeat, in order.
    async fn take_many(
        &self,
        call: &mut Call,
        speaker: &Speaker,
        heartbeats: Vec<HeartbeatRequest>,
    ) -> Vec<HeartbeatResult> {
        let taken = match self.directory.begin_batch(heartbeats.len()) {
            Ok(batch) => self.hand_over(call, speaker, &batch, heartbeats).await,
            Err(_) => heartbeats.iter().map(|_| Err(directory::overloaded())).collect(),
        };
        let mut durable = Vec::with_capacity(taken.len());
        for taken in taken {
            durable.push(match taken {
                Ok((entry, told, Taken { ticket, next_heartbeat })) => match ticket.committed_in_turn().await {
                    Ok(_) => Ok((entry, told, next_heartbeat)),
                    Err(error) => Err(error.into()),
                },
                Err(error) => Err(error),
            });
        }
        stream::iter(durable)
            .map(|durable| async move {
                let (entry, told, next_heartbeat) = durable?;
                self.acknowledge(&entry, told, next_heartbeat).await
            })
            .buffered(EXCHANGES_AT_ONCE)
            .map(|outcome: Result<_, ApiError>| {
                self.metrics.count_heartbeat(outcome.as_ref().err().map(|error| error.code));
                HeartbeatResult {
                    result: Some(match outcome {
                        Ok(response) => heartbeat_result::Result::Response(response),
                        Err(error) => heartbeat_result::Result::Error(told(error)),
                    }),
                }
            })
            .collect()
            .await
    }
}

impl DeviceService {
    /// Has the devices' actors take the heartbeats, all at once as far as they are of different devices.
    async fn hand_over(
        &self,
        call: &mut Call,
        speaker: &Speaker,
        batch: &HeartbeatBatch,
        heartbeats: Vec<HeartbeatRequest>,
    ) -> Vec<Outcome> {
        let now = UnixMillis::now();
        let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(heartbeats.len());
        let mut sent: Vec<(usize, Arc<DeviceEntry>, Told, Sent)> = Vec::with_capacity(heartbeats.len());
        // Devices with a heartbeat in `sent`, by the address of their entry, which `sent` keeps alive.
        let mut unanswered: HashSet<usize> = HashSet::with_capacity(heartbeats.len());
        for (place, mut request) in heartbeats.into_iter().enumerate() {
            let admitted = self
                .access
                .admit_heartbeat(call, speaker, &request.device_id)
                .and_then(|entry| Ok((entry, Told::by(&mut request)?)));
            let (entry, told) = match admitted {
                Ok(admitted) => admitted,
                Err(error) => {
                    outcomes.push(Some(Err(error)));
                    continue;
                }
            };
            if !unanswered.insert(Arc::as_ptr(&entry) as usize) {
                gather(&mut sent, &mut outcomes).await;
                unanswered.clear();
                unanswered.insert(Arc::as_ptr(&entry) as usize);
            }
            match batch.send(&entry, request, now) {
                Ok(on_its_way) => {
                    outcomes.push(None);
                    sent.push((place, entry, told, on_its_way));
                }
                Err(error) => outcomes.push(Some(Err(error))),
            }
        }
        gather(&mut sent, &mut outcomes).await;
        // Every place was filled: at once, or by `gather`.
        outcomes.into_iter().flatten().collect()
    }
}

/// What a device is told of its report; `refused` is the code of why it does not count.
pub(super) fn report_answer(refused: Option<&'static str>) -> ReportUpdateStatusResponse {
    ReportUpdateStatusResponse { accepted: refused.is_none(), reason_code: refused.unwrap_or_default().to_owned() }
}

/// Waits for the actors' answers.
async fn gather(sent: &mut Vec<(usize, Arc<DeviceEntry>, Told, Sent)>, outcomes: &mut [Option<Outcome>]) {
    for (place, entry, told, on_its_way) in sent.drain(..) {
        outcomes[place] = Some(on_its_way.taken().await.map(|taken| (entry, told, taken)));
    }
}

/// One stream of a device or a gateway.
struct StreamState<S> {
    service: Arc<DeviceService>,
    call: Call,
    /// Known from the first message on.
    speaker: Option<Speaker>,
    messages: S,
    format: CodecFormat,
    is_over: bool,
}

impl<S> StreamState<S>
where
    S: Stream<Item = Result<Bytes, ConnectError>> + Send + Unpin,
{
    /// The answer to the next message; `None` when the client has sent its last.
    async fn answer(&mut self) -> Option<Result<Bytes, ConnectError>> {
        let mut stopping = self.service.stopping.clone();
        let message = tokio::select! {
            // What has come is answered before the end of the stream is told.
            biased;
            message = self.messages.next() => message?,
            _ = stopping.wait_for(|is_stopping| *is_stopping) => {
                let error = ApiError::unavailable("the server is stopping; open the stream anew", RETRY_STREAM);
                return Some(Err(wire::connect_error(error, None, None)));
            }
            () = tokio::time::sleep(FIRST_MESSAGE_WITHIN), if self.speaker.is_none() => {
                let message = format!("no first message came within {} s", FIRST_MESSAGE_WITHIN.as_secs());
                let error = ApiError::new(ErrorCode::DeadlineExceeded, message);
                return Some(Err(wire::connect_error(error, None, None)));
            }
        };
        let answer = match message {
            Ok(bytes) => self.take(&bytes).await,
            Err(error) => return Some(Err(error)),
        };
        Some(answer.map_err(|error| wire::connect_error(self.call.sign(error), self.call.quota.as_ref(), None)))
    }

    /// An error ends the stream; what is wrong with one heartbeat is in its result.
    async fn take(&mut self, bytes: &[u8]) -> Result<Bytes, ApiError> {
        let service = Arc::clone(&self.service);
        let message: StreamHeartbeatsRequest = match rpc::decode(bytes, self.format) {
            Ok(message) => message,
            Err(error) if self.speaker.is_some() => return Err(error),
            Err(error) => return Err(service.access.undecodable(&mut self.call, error)),
        };
        let speaker = match &self.speaker {
            Some(speaker) => speaker.clone(),
            None => {
                let first = first_device(&message.heartbeats);
                let speaker = service.access.authorize_speaker(&mut self.call, STREAM_HEARTBEATS, first).await?;
                self.speaker.insert(speaker).clone()
            }
        };
        check_size(message.heartbeats.len())?;
        let results = service.take_many(&mut self.call, &speaker, message.heartbeats).await;
        let acknowledged_count = acknowledged(&results);
        let answer = StreamHeartbeatsResponse { sequence: message.sequence, results, acknowledged_count };
        rpc::encode(&answer, self.format)
    }
}

/// By whose entry a device's key is most likely recognized.
fn first_device(heartbeats: &[HeartbeatRequest]) -> &str {
    heartbeats.first().map_or("", |first| &first.device_id)
}

fn check_size(heartbeats: usize) -> Result<(), ApiError> {
    match heartbeats {
        1..=MAX_BATCH => Ok(()),
        0 => Err(ApiError::invalid_argument("heartbeats is empty; give 1 to 10000")),
        _ => {
            let message = format!("heartbeats has {heartbeats} entries; at most {MAX_BATCH} go at once");
            Err(ApiError::invalid_argument(message))
        }
    }
}

fn acknowledged(results: &[HeartbeatResult]) -> i32 {
    let is_ok = |result: &&HeartbeatResult| matches!(result.result, Some(heartbeat_result::Result::Response(_)));
    // At most MAX_BATCH.
    results.iter().filter(is_ok).count() as i32
}

/// An error as one item of many carries it.
pub(super) fn told(error: ApiError) -> Error {
    if error.code == ErrorCode::Internal {
        tracing::error!(error = &error as &dyn std::error::Error, "one of many failed");
    }
    Error {
        code: error.code.name().to_owned(),
        message: error.message.into_owned(),
        details: BTreeMap::new(),
        retry_after: error.retry_after.map(Into::into),
    }
}
