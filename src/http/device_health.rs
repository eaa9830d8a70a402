//! AnalyticsService/GetDeviceHealth: which devices, how thoroughly, and what is told of them.
//!
//! BASIC looks at the fleet index and the live state behind it, on the threads of queries, so that a million devices
//! hold up no heartbeat. COMPREHENSIVE adds what became of the devices in the last day ([`Histories`]), for as many as that
//! can be asked for at once.
use std::sync::Arc;

use fleetd_proto::v1::{GetDeviceHealthRequest, GetDeviceHealthResponse, HealthCheckType};

use super::access::Call;
use super::analytics_service::{AnalyticsService, GET_DEVICE_HEALTH};
use super::device_service::health_told;
use crate::actors::directory::DeviceDirectory;
use crate::actors::entry::DeviceEntry;
use crate::analytics::health::{Histories, Subject};
use crate::clock::UnixMillis;
use crate::error::{beginning, ApiError, ErrorCode};
use crate::fleet::{CheckupRequest, Examined};
use crate::health::{self, Thresholds, Triage, Vitals};
use crate::query::Filter;

/// Ids of one request, and devices told one by one: the contract's.
const MAX_DEVICES: usize = 10_000;
const DEFAULT_DEVICES: usize = 1_000;

/// Devices of a COMPREHENSIVE check. So many take some seconds of a thread of ClickHouse's and 60 MB here; a whole
/// fleet is first looked through with BASIC, and then where it hurts.
const MAX_COMPREHENSIVE: usize = 100_000;

/// Ids that an error names, and characters of each.
const MAX_NAMED: usize = 5;
const MAX_SHOWN: usize = 80;

/// A request that was understood.
struct Asked {
    request: CheckupRequest,
    is_comprehensive: bool,
    wanted: usize,
}

impl Asked {
    fn of(request: GetDeviceHealthRequest, directory: &DeviceDirectory, now: UnixMillis) -> Result<Self, ApiError> {
        let ids = request.device_ids.len();
        if ids > MAX_DEVICES {
            let message = format!(
                "device_ids has {ids} entries; at most {MAX_DEVICES} go at once, or name them by device_filter"
            );
            return Err(ApiError::invalid_argument(message));
        }
        let wanted = match usize::try_from(request.max_devices) {
            Ok(0) => DEFAULT_DEVICES,
            Ok(wanted @ 1..=MAX_DEVICES) => wanted,
            _ => {
                let given = request.max_devices;
                let message = format!("max_devices is {given}; give 1 to {MAX_DEVICES}, or 0 for {DEFAULT_DEVICES}");
                return Err(ApiError::invalid_argument(message));
            }
        };
        let is_comprehensive = match HealthCheckType::try_from(request.check_type) {
            Ok(HealthCheckType::Unspecified | HealthCheckType::Basic) => false,
            Ok(HealthCheckType::Comprehensive) => true,
            Err(_) => {
                let given = request.check_type;
                return Err(ApiError::invalid_argument(format!(
                    "check_type is {given}; give BASIC (1) or COMPREHENSIVE (2)"
                )));
            }
        };
        let filter = Filter::parse(&request.device_filter, now)
            .map_err(|error| ApiError::invalid_argument(format!("device_filter: {error}")))?;
        // An empty filter beside ids means just these; without ids, everybody.
        let filter = Some(filter).filter(|filter| filter.root().is_some() || ids == 0);
        let devices = known(&request.device_ids, directory)?;
        Ok(Self { request: CheckupRequest { filter, devices }, is_comprehensive, wanted })
    }
}

/// The devices of these ids.
///
/// # Errors
/// NOT_FOUND that names the first few that are not registered: health that says nothing of them would look like health
/// that has nothing to say.
fn known(ids: &[String], directory: &DeviceDirectory) -> Result<Vec<Arc<DeviceEntry>>, ApiError> {
    let mut unknown = Vec::new();
    let mut devices = Vec::with_capacity(ids.len());
    for id in ids {
        match directory.find(id) {
            Some(entry) => devices.push(entry),
            None => unknown.push(id),
        }
    }
    if unknown.is_empty() {
        return Ok(devices);
    }
    // Bounded, because the answer repeats them.
    let named: Vec<String> =
        unknown.iter().take(MAX_NAMED).map(|id| format!("{:?}", beginning(id, MAX_SHOWN))).collect();
    let others = match unknown.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        others => format!(" and {others} more"),
    };
    Err(ApiError::not_found(format!(
        "device_ids: {}{others} of {} not registered; leave them out, or name devices by device_filter",
        named.join(", "),
        ids.len()
    )))
}

/// A device in the order of ids.
#[derive(Clone)]
struct Patient(Arc<DeviceEntry>);

impl Patient {
    fn id(&self) -> &str {
        self.0.id.as_str()
    }
}

impl PartialEq for Patient {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Patient {}

impl PartialOrd for Patient {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Patient {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.id().cmp(other.id())
    }
}

/// The devices of a COMPREHENSIVE check; what each is judged by is in the same place.
#[derive(Default)]
struct Ward {
    subjects: Vec<Subject>,
    judged_by: Vec<(Vitals, Thresholds)>,
}

impl Ward {
    fn take(&mut self, device: Examined<'_>) -> Result<(), ApiError> {
        if self.subjects.len() >= MAX_COMPREHENSIVE {
            let message = format!(
                "more than {MAX_COMPREHENSIVE} devices match; a COMPREHENSIVE check takes no more: narrow device_filter, \
                 or check BASIC"
            );
            return Err(ApiError::new(ErrorCode::ResourceExhausted, message));
        }
        let Examined { entry, vitals, thresholds, registered_at, interval } = device;
        self.subjects.push(Subject { entry: Arc::clone(entry), registered_at, interval });
        self.judged_by.push((vitals, *thresholds));
        Ok(())
    }
}

impl AnalyticsService {
    /// Permission: `analytics:view`.
    pub async fn get_device_health(
        &self,
        call: &mut Call,
        request: GetDeviceHealthRequest,
    ) -> Result<GetDeviceHealthResponse, ApiError> {
        self.access.authorize(call, GET_DEVICE_HEALTH).await?;
        let now = UnixMillis::now();
        let Asked { request, is_comprehensive, wanted } = Asked::of(request, &self.directory, now)?;
        // Counted once it is encoded: before, it is small beside the limit.
        call.held = Some(self.room.hold());
        let rules = Arc::clone(&self.health);
        if !is_comprehensive {
            let triage = self.queries.checkup(request, rules, Triage::new(wanted), see).await?;
            return Ok(self.queries.work(move || told(triage, now)).await?);
        }
        let ward = self.queries.checkup(request, rules, Ward::default(), Ward::take).await?;
        if ward.subjects.is_empty() {
            return Ok(told(Triage::new(wanted), now));
        }
        let histories = self.histories().of(&ward.subjects).await?;
        let judged = move || {
            let mut triage = Triage::new(wanted);
            let judged_by = ward.judged_by.into_iter().zip(histories);
            for (subject, ((vitals, thresholds), history)) in ward.subjects.into_iter().zip(judged_by) {
                let vitals = Vitals { history: Some(history), ..vitals };
                triage.take(&Patient(subject.entry), health::judge(&vitals, &thresholds));
            }
            told(triage, now)
        };
        Ok(self.queries.work(judged).await?)
    }

    fn histories(&self) -> Histories {
        Histories {
            pool: self.pool.clone(),
            store: Arc::clone(&self.store),
            coverage: self.coverage.clone(),
            writer: self.writer.clone(),
        }
    }
}

fn see(triage: &mut Triage<Patient>, device: Examined<'_>) -> Result<(), ApiError> {
    triage.take(&Patient(Arc::clone(device.entry)), health::judge(&device.vitals, device.thresholds));
    Ok(())
}

fn told(triage: Triage<Patient>, at: UnixMillis) -> GetDeviceHealthResponse {
    let (worst, summary) = triage.finish();
    let device_health = worst.into_iter().map(|patient| {
        let id = patient.device.id().to_owned();
        let told = health_told(&id, &patient.health, at);
        (id, told)
    });
    GetDeviceHealthResponse { device_health: device_health.collect(), summary: Some(summary) }
}
