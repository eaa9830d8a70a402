//! SendCommand, ListCommands, CancelCommand, and the part of a heartbeat that concerns commands.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fleetd_proto::v1::{
    command, CancelCommandRequest, CancelCommandResponse, Command, CommandResult, CommandStatus, ListCommandsRequest,
    ListCommandsResponse, SendCommandRequest, SendCommandResponse,
};
use prost::Message as _;

use super::access::Call;
use super::device_service::{timestamp, DeviceService};
use super::pages;
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::error::{ApiError, ErrorCode};
use crate::ids::DeviceId;
use crate::query::{Digest, PageToken, SortValue};
use crate::store::{CommandPlace, CommandQuery, CommandRecord, Delivery, NewCommand, Report};

pub const SEND_COMMAND: &str = "fleetd.v1.DeviceService/SendCommand";
pub const LIST_COMMANDS: &str = "fleetd.v1.DeviceService/ListCommands";
pub const CANCEL_COMMAND: &str = "fleetd.v1.DeviceService/CancelCommand";

const MAX_KIND_BYTES: usize = 64;
const MAX_PARAMETERS: usize = 64;
const MAX_PARAMETER_NAME_BYTES: usize = 64;
const MAX_PARAMETER_BYTES: usize = 4_096;
const MAX_PAYLOAD_BYTES: usize = 65_536;
const MAX_REQUEST_ID_BYTES: usize = 128;
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Results that one heartbeat may carry.
const MAX_RESULTS: usize = 256;
/// Bytes kept of what a command printed, and of the device's sentence about it.
const MAX_OUTPUT_BYTES: usize = 65_536;
const MAX_MESSAGE_BYTES: usize = 1_024;

/// What commands did since the start; for `/metrics`.
#[derive(Debug, Default)]
pub struct CommandCounters {
    /// Devices that commands were queued for.
    pub queued: AtomicU64,
    /// Devices that had too many waiting.
    pub refused: AtomicU64,
    /// Deliveries, repeats included.
    pub delivered: AtomicU64,
    /// Results that changed something, and those that did not.
    pub results_applied: AtomicU64,
    pub results_ignored: AtomicU64,
    pub expired: AtomicU64,
    pub canceled: AtomicU64,
    /// Heartbeats that were acknowledged without their commands because the registry did not answer.
    pub deliveries_put_off: AtomicU64,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl DeviceService {
    /// Permission: `device:command`. Durable when this answers.
    pub async fn send_command(
        &self,
        call: &mut Call,
        request: SendCommandRequest,
    ) -> Result<SendCommandResponse, ApiError> {
        let devices = match (request.device_id.as_str(), request.device_filter.as_str()) {
            ("", "") => {
                self.access.authorize(call, SEND_COMMAND).await?;
                return Err(ApiError::invalid_argument(
                    "neither device_id nor device_filter is set; the filter id:* means all devices",
                ));
            }
            (id, "") => vec![self.access.authorize_for_device(call, SEND_COMMAND, id).await?],
            ("", filter) => {
                self.access.authorize(call, SEND_COMMAND).await?;
                self.select("device_filter", filter).await?
            }
            _ => {
                self.access.authorize(call, SEND_COMMAND).await?;
                return Err(ApiError::invalid_argument("device_id and device_filter are both set; give one of them"));
            }
        };
        let is_single = request.device_filter.is_empty();
        let command = command_of(request, call.user_id().unwrap_or_default(), UnixMillis::now())?;
        let ids = devices.iter().map(|entry| entry.id.clone()).collect();
        let sent = self.store.send_command(command, ids).await?;
        // Durable first; a device that asks between the two gets it at its next heartbeat.
        devices.iter().for_each(|entry| entry.commands.sent());
        add(&self.commands.queued, sent.targets.into());
        add(&self.commands.refused, sent.refused.into());
        if is_single && sent.targets == 0 {
            return Err(match sent.refused {
                // Deleted between the two looks.
                0 => super::device_service::no_device(devices[0].id.as_str()),
                _ => {
                    let message = format!(
                        "device {} has {} commands waiting, which is the most; cancel some, or wait until it takes them",
                        devices[0].id,
                        crate::commands::MAX_PENDING
                    );
                    ApiError::new(ErrorCode::ResourceExhausted, message)
                }
            });
        }
        Ok(SendCommandResponse {
            command_id: sent.id,
            target_device_count: i32::try_from(sent.targets).unwrap_or(i32::MAX),
            refused_device_count: i32::try_from(sent.refused).unwrap_or(i32::MAX),
            created_at: Some(timestamp(sent.created_at)),
            expires_at: Some(timestamp(sent.expires_at)),
        })
    }

    /// Permission: `device:view`.
    pub async fn list_commands(
        &self,
        call: &mut Call,
        request: ListCommandsRequest,
    ) -> Result<ListCommandsResponse, ApiError> {
        self.access.authorize(call, LIST_COMMANDS).await?;
        let state = command::State::try_from(request.state)
            .map_err(|_| ApiError::invalid_argument(format!("state is {}, which is no state", request.state)))?;
        let page = pages::size_of(request.page_size)?;
        let digest = Digest::of(&["commands", &request.device_id, &request.command_id, state.as_str_name()]);
        let token = self.tokens.read(&request.page_token, digest)?;
        let query = CommandQuery {
            device: Some(request.device_id).filter(|id| !id.is_empty()),
            command_id: Some(request.command_id).filter(|id| !id.is_empty()),
            state: Some(state).filter(|state| *state != command::State::Unspecified),
            after: token.as_ref().and_then(place_of),
            limit: page + 1,
        };
        let mut found = self.store.list_commands(query).await?;
        let has_more = found.records.len() > page;
        found.records.truncate(page);
        let next_page_token = match found.records.last() {
            Some(last) if has_more => self.tokens.write(&token_of(last), digest),
            _ => String::new(),
        };
        Ok(ListCommandsResponse {
            commands: found.records.into_iter().map(status_of).collect(),
            next_page_token,
            total_count: i32::try_from(found.total).unwrap_or(i32::MAX),
        })
    }

    /// Permission: `device:command`. Where a device has the command already, it is too late.
    pub async fn cancel_command(
        &self,
        call: &mut Call,
        request: CancelCommandRequest,
    ) -> Result<CancelCommandResponse, ApiError> {
        self.access.authorize(call, CANCEL_COMMAND).await?;
        let device = Some(&request.device_id).filter(|id| !id.is_empty()).map(|id| DeviceId::parse(id)).transpose();
        let device = device.map_err(|reason| ApiError::invalid_argument(format!("device_id {reason}")))?;
        if request.command_id.is_empty() {
            return Err(ApiError::invalid_argument("command_id is empty; SendCommand answers with it"));
        }
        let outcome = self.store.cancel_command(&request.command_id, device.as_ref(), UnixMillis::now()).await?;
        let outcome = outcome.ok_or_else(|| {
            ApiError::not_found(format!(
                "there is no command {:?}; ListCommands names those that are",
                request.command_id
            ))
        })?;
        add(&self.commands.canceled, outcome.canceled);
        Ok(CancelCommandResponse {
            canceled_count: i32::try_from(outcome.canceled).unwrap_or(i32::MAX),
            too_late_count: i32::try_from(outcome.too_late).unwrap_or(i32::MAX),
        })
    }

    /// What a heartbeat that is in the journal does to its device's commands: results are applied before the
    /// heartbeat is acknowledged, and what is delivered is marked so before the device hears of it. A device with
    /// neither costs two atomic loads.
    ///
    /// # Errors
    /// When results could not be kept; then the device keeps them and reports again. Deliveries that could not be
    /// marked are put off to the next heartbeat instead.
    pub(super) async fn exchange_commands(
        &self,
        entry: &DeviceEntry,
        reports: Vec<Report>,
    ) -> Result<Vec<Command>, ApiError> {
        let looked = entry.commands.look();
        if looked.is_none() && reports.is_empty() {
            return Ok(Vec::new());
        }
        let has_reports = !reports.is_empty();
        let exchange = match self.store.exchange_commands(&entry.id, reports, UnixMillis::now()).await {
            Ok(exchange) => exchange,
            Err(error) if has_reports => return Err(error.into()),
            Err(error) => {
                add(&self.commands.deliveries_put_off, 1);
                tracing::warn!(device_id = %entry.id, error = &error as &dyn std::error::Error, "commands are put off");
                return Ok(Vec::new());
            }
        };
        if let (Some(seen), false) = (looked, exchange.has_pending) {
            entry.commands.settled(seen);
        }
        add(&self.commands.results_applied, exchange.applied);
        add(&self.commands.results_ignored, exchange.ignored);
        add(&self.commands.expired, exchange.expired);
        add(&self.commands.delivered, exchange.commands.len() as u64);
        Ok(exchange.commands.into_iter().map(command_message).collect())
    }
}

/// Checks the results of a heartbeat, and cuts what is too long.
///
/// # Errors
/// INVALID_ARGUMENT for too many, and for a state that a device cannot report.
pub(super) fn reports_of(results: Vec<CommandResult>) -> Result<Vec<Report>, ApiError> {
    if results.len() > MAX_RESULTS {
        let message = format!("command_results has {} entries; at most {MAX_RESULTS} go at once", results.len());
        return Err(ApiError::invalid_argument(message));
    }
    results.into_iter().enumerate().map(|(place, result)| report_of(place, result)).collect()
}

fn report_of(place: usize, mut result: CommandResult) -> Result<Report, ApiError> {
    let state = result.state();
    if !matches!(state, command::State::Acked | command::State::Succeeded | command::State::Failed) {
        let name = state.as_str_name();
        let message = format!("command_results[{place}].state is {name}; a device reports ACKED, SUCCEEDED or FAILED");
        return Err(ApiError::invalid_argument(message));
    }
    cut(&mut result.output, MAX_OUTPUT_BYTES);
    cut(&mut result.message, MAX_MESSAGE_BYTES);
    Ok(Report { state, result: result.encode_to_vec().into(), command_id: result.command_id })
}

fn cut(text: &mut String, max_bytes: usize) {
    if text.len() > max_bytes {
        let end = (0..=max_bytes).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
}

/// Checks a request and makes the command.
fn command_of(request: SendCommandRequest, created_by: &str, now: UnixMillis) -> Result<NewCommand, ApiError> {
    let SendCommandRequest { r#type: kind, parameters, payload, ttl, timeout, request_id, .. } = request;
    let too_long = |field: &str, bytes: usize, most: usize| {
        ApiError::invalid_argument(format!("{field} has {bytes} bytes; at most {most} are kept"))
    };
    if kind.is_empty() {
        return Err(ApiError::invalid_argument("type is empty; it says what to do, such as reboot"));
    }
    if kind.len() > MAX_KIND_BYTES {
        return Err(too_long("type", kind.len(), MAX_KIND_BYTES));
    }
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(too_long("payload", payload.len(), MAX_PAYLOAD_BYTES));
    }
    if request_id.len() > MAX_REQUEST_ID_BYTES {
        return Err(too_long("request_id", request_id.len(), MAX_REQUEST_ID_BYTES));
    }
    check_parameters(&parameters)?;
    let in_range = |field: &str, given: fleetd_proto::Duration, least: Duration| {
        Duration::try_from(given).ok().filter(|given| (least..=MAX_TTL).contains(given)).ok_or_else(|| {
            let (least, most) = (least.as_secs_f64(), MAX_TTL.as_secs());
            ApiError::invalid_argument(format!("{field} is {given}; give {least}s to {most}s"))
        })
    };
    let ttl = ttl.map_or(Ok(DEFAULT_TTL), |ttl| in_range("ttl", ttl, MIN_TTL))?;
    let timeout = timeout.map(|timeout| in_range("timeout", timeout, Duration::from_millis(1))).transpose()?;
    Ok(NewCommand {
        id: uuid::Uuid::now_v7().to_string(),
        request_id,
        created_by: created_by.to_owned(),
        kind,
        parameters,
        payload,
        created_at: now,
        expires_at: UnixMillis::from_millis_clamped(now.as_millis() + ttl.as_millis() as i64),
        timeout,
    })
}

fn check_parameters(parameters: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if parameters.len() > MAX_PARAMETERS {
        let message = format!("parameters has {} entries; at most {MAX_PARAMETERS} are kept", parameters.len());
        return Err(ApiError::invalid_argument(message));
    }
    for (name, value) in parameters {
        if name.is_empty() || name.len() > MAX_PARAMETER_NAME_BYTES {
            let bytes = name.len();
            let message = format!("a name of parameters has {bytes} bytes; give 1 to {MAX_PARAMETER_NAME_BYTES}");
            return Err(ApiError::invalid_argument(message));
        }
        if value.len() > MAX_PARAMETER_BYTES {
            let bytes = value.len();
            let message = format!("parameters.{name} has {bytes} bytes; at most {MAX_PARAMETER_BYTES} are kept");
            return Err(ApiError::invalid_argument(message));
        }
    }
    Ok(())
}

fn command_message(delivery: Delivery) -> Command {
    Command {
        id: delivery.id,
        r#type: delivery.kind,
        parameters: delivery.parameters,
        payload: delivery.payload,
        created_at: Some(timestamp(delivery.created_at)),
        expires_at: Some(timestamp(delivery.expires_at)),
        attempt: delivery.attempt,
        timeout: delivery.timeout.map(Into::into),
    }
}

fn status_of(record: CommandRecord) -> CommandStatus {
    CommandStatus {
        command: Some(command_message(record.command)),
        device_id: record.device_id,
        state: record.state.into(),
        delivered_at: record.delivered_at.map(timestamp),
        finished_at: record.finished_at.map(timestamp),
        // Bytes that this server encoded itself; should they not decode, the rest is still shown.
        result: Some(record.result)
            .filter(|bytes| !bytes.is_empty())
            .and_then(|bytes| CommandResult::decode(bytes).ok()),
        created_by: record.created_by,
    }
}

/// The places are row numbers, far below 2^53.
fn token_of(record: &CommandRecord) -> PageToken {
    let values = vec![SortValue::Number(record.place.command as f64), SortValue::Number(record.place.device as f64)];
    PageToken { now: UnixMillis::EPOCH, values, id: String::new() }
}

fn place_of(token: &PageToken) -> Option<CommandPlace> {
    match token.values[..] {
        [SortValue::Number(command), SortValue::Number(device)] => {
            Some(CommandPlace { command: command as i64, device: device as i64 })
        }
        _ => None,
    }
}
