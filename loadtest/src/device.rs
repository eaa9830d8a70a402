//! A simulated device: who it is, and what it sends. How its measurements move is `drift`'s affair.
use bytes::{Bytes, BytesMut};
use fleetd_proto::v1::{HeartbeatRequest, RegisterDeviceRequest, SystemInfo};
use http::header::HeaderValue;

use crate::drift::{Drift, Extras};
use crate::ledger::Trail;
use crate::model::MODELS;
use crate::random::Random;
use crate::updating::Updating;
use crate::wire::{self, Protocol};

const REGIONS: [&str; 5] = ["eu-west", "eu-central", "us-east", "us-west", "ap-south"];

/// One device. Some 200 bytes beside its id, key and trail, so that a million fit a small machine.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) id: String,
    pub(crate) token: HeaderValue,
    pub(crate) trail: Trail,
    /// Its updating, once it was offered an update in a run that takes them.
    pub(crate) updating: Option<Box<Updating>>,
    drift: Drift,
}

impl Device {
    /// The device with this place in its fleet; the same place gives the same kind of device.
    pub(crate) fn new(id: String, token: HeaderValue, index: usize, now_ms: i64) -> Self {
        Self { token, trail: Trail::default(), updating: None, drift: Drift::new(0, index, now_ms), id }
    }

    /// The version that it runs when it is registered: most are of one, some of another.
    pub(crate) fn version(index: usize) -> &'static str {
        if index.is_multiple_of(10) {
            "1.1.0"
        } else {
            "1.0.0"
        }
    }

    /// It restarted just now: what counts from the boot begins anew.
    pub(crate) fn reboot(&mut self, now_ms: i64) {
        self.drift.reboot(now_ms);
    }

    /// How this device introduces itself.
    pub(crate) fn registration(id: &str, index: usize) -> RegisterDeviceRequest {
        let model = &MODELS[index % MODELS.len()];
        RegisterDeviceRequest {
            device_id: id.to_owned(),
            device_name: format!("{} {index:06}", model.hardware),
            device_type: model.kind.to_owned(),
            version: Self::version(index).to_owned(),
            system_info: Some(SystemInfo {
                os: model.os.to_owned(),
                arch: model.arch.to_owned(),
                cpu_cores: model.cpu_cores,
                memory_mb: u64::from(model.memory_mb),
                disk_gb: f64::from(model.disk_gb),
                os_version: model.os_version.to_owned(),
                hostname: id.to_owned(),
                hardware_model: model.hardware.to_owned(),
                serial_number: format!("{:016x}", Random::new(index as u64).next()),
                agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                ..SystemInfo::default()
            }),
            labels: [("region".to_owned(), REGIONS[index % REGIONS.len()].to_owned())].into(),
            ..RegisterDeviceRequest::default()
        }
    }

    /// Lets time pass and fills `message` with what the device would report now; returns its timestamp in ms.
    ///
    /// It says nothing of updates. Only `message.device_id` changes hands: give it back with [`Self::take_back_id`].
    pub(crate) fn measure(&mut self, now_ms: i64, message: &mut HeartbeatRequest, extras: Extras) -> i64 {
        message.device_id = std::mem::take(&mut self.id);
        message.version.clear();
        message.update_progress = None;
        self.drift.report(now_ms, message, extras)
    }

    pub(crate) fn take_back_id(&mut self, message: &mut HeartbeatRequest) {
        self.id = std::mem::take(&mut message.device_id);
    }
}

/// Makes request bodies. Each heartbeat is encoded from its values, none is patched or replayed: with prost that costs
/// some 200 ns. What is reused is memory only: one message and one buffer a generator thread.
#[derive(Debug)]
pub(crate) struct Encoder {
    pub(crate) protocol: Protocol,
    pub(crate) extras: Extras,
    message: HeartbeatRequest,
    buffer: BytesMut,
}

impl Encoder {
    pub(crate) fn new(protocol: Protocol, extras: Extras) -> Self {
        // Room for some hundred bodies between two reuses of the buffer.
        Self { protocol, extras, message: HeartbeatRequest::default(), buffer: BytesMut::with_capacity(16 << 10) }
    }

    /// The device's next heartbeat as a request body, and its timestamp in ms.
    pub(crate) fn heartbeat(&mut self, device: &mut Device, now_ms: i64) -> (i64, Bytes) {
        let timestamp_ms = device.measure(now_ms, &mut self.message, self.extras);
        if let Some(updating) = &mut device.updating {
            if updating.speak(timestamp_ms, &mut self.message) {
                device.reboot(timestamp_ms);
            }
        }
        let body = wire::encode(self.protocol, &self.message, &mut self.buffer);
        device.take_back_id(&mut self.message);
        (timestamp_ms, body)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::drift::timestamp;

    fn device(index: usize) -> Device {
        Device::new(format!("sim-{index}"), HeaderValue::from_static("x"), index, 1_790_000_000_000)
    }

    #[test]
    fn timestamps_increase_strictly_even_when_the_clock_stands_or_jumps_back() {
        let mut device = device(0);
        let mut message = HeartbeatRequest::default();
        let mut last = 0;
        for now in [1_790_000_000_000, 1_790_000_000_000, 1_780_000_000_000, 1_790_000_000_001, 1_790_000_000_900] {
            let timestamp = device.measure(now, &mut message, Extras::default());
            device.take_back_id(&mut message);
            assert!(timestamp > last);
            last = timestamp;
        }
        assert_eq!(last, 1_790_000_000_900);
    }

    #[test]
    fn a_body_decodes_to_the_devices_own_values_within_the_contracts_ranges() {
        let extras = Extras { processes: 2, metrics: 3, all_readings: true };
        let mut encoder = Encoder::new(Protocol::Connect, extras);
        for index in 0..40 {
            let mut device = device(index);
            for second in 0..200 {
                let (timestamp_ms, body) = encoder.heartbeat(&mut device, 1_790_000_000_000 + second * 1000);
                let read = HeartbeatRequest::decode(body).unwrap();
                let stats = read.stats.unwrap();
                assert_eq!(read.device_id, format!("sim-{index}"));
                assert_eq!(device.id, read.device_id);
                assert_eq!(read.timestamp, Some(timestamp(timestamp_ms)));
                assert!((0.0..=100.0).contains(&stats.cpu_percent));
                assert!(stats.memory_used_mb > 0 && stats.memory_used_mb <= device.drift.capacity().0);
                assert!(stats.disk_used_gb > 0.0 && stats.disk_used_gb <= device.drift.capacity().1);
                assert_eq!((read.processes.len(), stats.metrics.len()), (2, 3));
            }
        }
    }

    #[test]
    fn values_drift_and_uptime_follows_the_clock() {
        let mut device = device(1);
        let mut message = HeartbeatRequest::default();
        let mut seen = std::collections::HashSet::new();
        let mut uptimes = Vec::new();
        for second in 0..100 {
            device.measure(1_790_000_000_000 + second * 1000, &mut message, Extras::default());
            device.take_back_id(&mut message);
            seen.insert(message.stats.as_ref().unwrap().cpu_percent.to_bits());
            uptimes.push(message.status.as_ref().unwrap().uptime_seconds);
        }
        assert!(seen.len() > 20, "the processor load hardly moved: {} values", seen.len());
        assert!(uptimes.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }
}
