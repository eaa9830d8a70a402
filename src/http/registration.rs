//! What RegisterDevice checks and makes, apart from who may call it and where it is kept.

use fleetd_proto::v1::{
    register_device_result, BatchRegisterDevicesRequest, BatchRegisterDevicesResponse, RegisterDeviceRequest,
    RegisterDeviceResponse, RegisterDeviceResult,
};

use super::device_fields::{self, Names};
use super::device_service::timestamp;
use super::heartbeats::told;
use crate::actors::entry::DeviceEntry;
use crate::auth::{ApiKey, KeyKind};
use crate::error::ApiError;
use crate::ids::DeviceId;
use crate::store::{Device, StoreError, UnixMillis};

/// Devices in one BatchRegisterDevices; the largest message holds as many with 200 bytes each.
pub const MAX_BATCH: usize = 10_000;
const NAMES: Names = Names { name: "device_name", device_type: "device_type" };

/// Checks a registration and makes the device with its key.
pub fn device_of(request: RegisterDeviceRequest, now: UnixMillis) -> Result<(Device, ApiKey), ApiError> {
    let id = DeviceId::parse(&request.device_id)
        .map_err(|reason| ApiError::invalid_argument(format!("device_id {reason}")))?;
    let key = ApiKey::generate(KeyKind::Device)
        .map_err(|error| ApiError::internal("no random bytes for a new API key").with_source(error))?;
    let device = Device {
        name: if request.device_name.is_empty() { request.device_id } else { request.device_name },
        device_type: request.device_type,
        version: request.version,
        metadata: request.metadata,
        labels: request.labels,
        system_info: device_fields::encode_system_info(request.system_info.as_ref()),
        registered_at: now,
        last_seen: None,
        key_hash: key.hash(),
        revision: 1,
        maintenance: false,
        heartbeat_interval: request.heartbeat_interval.map(device_fields::interval).transpose()?,
        id,
    };
    device_fields::check(&device, &NAMES)?;
    Ok((device, key))
}

/// The answer to a registration that is durable. The certificate is for mutual TLS, which is not served yet.
pub fn answer(device: &Device, key: &ApiKey) -> RegisterDeviceResponse {
    RegisterDeviceResponse {
        device_id: device.id.to_string(),
        api_key: key.expose().to_owned(),
        certificate: String::new(),
        registered_at: Some(timestamp(device.registered_at)),
    }
}

/// A batch under way: what was refused at once, and what goes to the store.
pub struct Batch {
    checked: Vec<Result<(Device, ApiKey), ApiError>>,
}

impl Batch {
    pub fn of(request: BatchRegisterDevicesRequest, now: UnixMillis) -> Result<Self, ApiError> {
        if request.devices.len() > MAX_BATCH {
            let message = format!("devices has {} entries; at most {MAX_BATCH} go at once", request.devices.len());
            return Err(ApiError::invalid_argument(message));
        }
        Ok(Self { checked: request.devices.into_iter().map(|device| device_of(device, now)).collect() })
    }

    /// The devices that passed, in their order.
    pub fn devices(&self) -> Vec<Device> {
        self.checked.iter().flatten().map(|(device, _)| device.clone()).collect()
    }

    /// `outcomes` are the store's, in the order of [`Self::devices`]; each registered device is handed to `admit`.
    pub fn answer(
        self,
        outcomes: Vec<Result<(), StoreError>>,
        mut admit: impl FnMut(DeviceEntry, &Device),
    ) -> BatchRegisterDevicesResponse {
        let mut outcomes = outcomes.into_iter();
        let mut registered_count = 0;
        let results = self
            .checked
            .into_iter()
            .map(|checked| {
                let outcome = checked.and_then(|(device, key)| {
                    // The store answers for each device that it was given.
                    outcomes.next().unwrap_or(Err(StoreError::Closed { operation: "register the device" }))?;
                    let answer = answer(&device, &key);
                    admit(DeviceEntry::new(device.id.clone(), device.key_hash, (&device).into()), &device);
                    Ok(answer)
                });
                registered_count += i32::from(outcome.is_ok());
                RegisterDeviceResult {
                    result: Some(match outcome {
                        Ok(response) => register_device_result::Result::Response(response),
                        Err(error) => register_device_result::Result::Error(told(error)),
                    }),
                }
            })
            .collect();
        BatchRegisterDevicesResponse { results, registered_count }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::error::ErrorCode;

    fn request(id: &str) -> RegisterDeviceRequest {
        RegisterDeviceRequest { device_id: id.into(), ..RegisterDeviceRequest::default() }
    }

    #[test]
    fn a_bad_field_is_named_in_the_error() {
        let long = "x".repeat(300);
        let many = (0..65).map(|n| (n.to_string(), String::new())).collect::<BTreeMap<_, _>>();
        for (request, field) in [
            (request(""), "device_id is empty"),
            (request("a/b"), "device_id has '/' at byte 1"),
            (RegisterDeviceRequest { device_name: long.clone(), ..request("a") }, "device_name has 300 bytes"),
            (RegisterDeviceRequest { version: "1\n".into(), ..request("a") }, "version has the control character"),
            (RegisterDeviceRequest { metadata: many, ..request("a") }, "metadata has 65 entries"),
        ] {
            let error = device_of(request, UnixMillis::EPOCH).expect_err(field);
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert!(error.message.contains(field), "{}", error.message);
        }
    }

    #[test]
    fn a_device_without_a_name_is_called_by_its_id() {
        let (device, key) = device_of(request("rpi-001"), UnixMillis::from_millis_clamped(17)).expect("valid");
        assert_eq!((device.name.as_str(), device.registered_at), ("rpi-001", UnixMillis::from_millis_clamped(17)));
        assert_eq!(device.key_hash, key.hash());
    }

    #[test]
    fn a_device_may_have_an_interval_of_its_own() {
        let of = |seconds| {
            let heartbeat_interval = Some(fleetd_proto::Duration { seconds, nanos: 0 });
            device_of(RegisterDeviceRequest { heartbeat_interval, ..request("a") }, UnixMillis::EPOCH)
        };
        let (device, _) = of(5).expect("in range");
        assert_eq!(device.heartbeat_interval, Some(std::time::Duration::from_secs(5)));
        for seconds in [0, -1, 86_401, i64::MAX] {
            let message = of(seconds).expect_err("out of range").message;
            assert!(message.contains("heartbeat_interval is") && message.contains("1s to 86400s"), "{message}");
        }
    }

    #[test]
    fn each_device_of_a_batch_gets_its_own_result() {
        let devices = vec![request("a"), request(""), request("b")];
        let batch = Batch::of(BatchRegisterDevicesRequest { devices }, UnixMillis::EPOCH).expect("small enough");
        assert_eq!(batch.devices().len(), 2);
        let mut admitted = Vec::new();
        let taken = StoreError::AlreadyExists(DeviceId::parse("b").expect("valid"));
        let answer = batch.answer(vec![Ok(()), Err(taken)], |entry, _| admitted.push(entry.id.to_string()));
        assert_eq!((answer.registered_count, admitted), (1, vec!["a".to_owned()]));
        let codes: Vec<_> = answer
            .results
            .iter()
            .map(|result| match result.result.as_ref().expect("a result each") {
                register_device_result::Result::Response(_) => "ok",
                register_device_result::Result::Error(error) => error.code.as_str(),
            })
            .collect();
        assert_eq!(codes, ["ok", "INVALID_ARGUMENT", "ALREADY_EXISTS"]);
    }
}
