//! A simulated device: who it is, and how its measurements drift from one heartbeat to the next.
use bytes::{Bytes, BytesMut};
use fleetd_proto::v1::{
    device_status, process_info, DeviceStatus, HeartbeatRequest, ProcessInfo, RegisterDeviceRequest, SystemInfo,
    SystemStats,
};
use fleetd_proto::Timestamp;
use http::header::HeaderValue;

use crate::ledger::Trail;
use crate::updating::Updating;
use crate::wire::{self, Protocol};

/// What a model of device is made of; a fleet is a mix of them, in this order of repetition.
#[derive(Debug)]
struct Model {
    kind: &'static str,
    hardware: &'static str,
    os: &'static str,
    os_version: &'static str,
    arch: &'static str,
    cpu_cores: u32,
    memory_mb: u32,
    disk_gb: f32,
    /// Load in per cent around which the processor wanders.
    usual_cpu: f32,
}

const MODELS: [Model; 4] = [
    Model {
        kind: "raspberry-pi",
        hardware: "Raspberry Pi 4 Model B Rev 1.5",
        os: "Linux",
        os_version: "12.5",
        arch: "arm64",
        cpu_cores: 4,
        memory_mb: 4096,
        disk_gb: 29.0,
        usual_cpu: 18.0,
    },
    Model {
        kind: "jetson-orin",
        hardware: "NVIDIA Jetson Orin Nano Developer Kit",
        os: "Linux",
        os_version: "22.04",
        arch: "arm64",
        cpu_cores: 6,
        memory_mb: 7620,
        disk_gb: 116.0,
        usual_cpu: 55.0,
    },
    Model {
        kind: "industrial-pc",
        hardware: "Siemens SIMATIC IPC227G",
        os: "Linux",
        os_version: "24.04",
        arch: "x86_64",
        cpu_cores: 4,
        memory_mb: 16384,
        disk_gb: 234.0,
        usual_cpu: 30.0,
    },
    Model {
        kind: "gateway",
        hardware: "Teltonika RUTX11",
        os: "OpenWrt",
        os_version: "23.05",
        arch: "armv7",
        cpu_cores: 4,
        memory_mb: 256,
        disk_gb: 0.24,
        usual_cpu: 8.0,
    },
];

const REGIONS: [&str; 5] = ["eu-west", "eu-central", "us-east", "us-west", "ap-south"];

/// Names of the processes that a device reports when it is asked to report any; the rest are numbered.
const PROCESSES: [&str; 4] = ["fleet-agent", "sensor-reader", "mqtt-bridge", "node-exporter"];

/// What heartbeats carry beyond the API reference's example (state, uptime, boot time, processor, memory, disk).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// Processes in each heartbeat.
    pub processes: usize,
    /// Custom metrics in each heartbeat.
    pub metrics: usize,
}

/// One device. Some 150 bytes beside its id, key and trail, so that a million fit a small machine.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) id: String,
    pub(crate) token: HeaderValue,
    pub(crate) trail: Trail,
    /// Its updating, once it was offered an update in a run that takes them.
    pub(crate) updating: Option<Box<Updating>>,
    /// The last timestamp that was sent, in ms since the epoch; the next is larger whatever the clock does.
    last_ms: i64,
    booted_ms: i64,
    model: &'static Model,
    random: Random,
    cpu: f32,
    memory: f32,
    disk: f32,
}

impl Device {
    /// The device with this place in its fleet; the same place gives the same kind of device.
    pub(crate) fn new(id: String, token: HeaderValue, index: usize, now_ms: i64) -> Self {
        let mut random = Random::new(index as u64);
        let model = &MODELS[index % MODELS.len()];
        Self {
            token,
            trail: Trail::default(),
            updating: None,
            last_ms: 0,
            // Up for some part of thirty days.
            booted_ms: now_ms - (random.unit() * 30.0 * 86_400_000.0) as i64,
            cpu: model.usual_cpu,
            memory: model.memory_mb as f32 * (0.3 + 0.3 * random.unit()),
            disk: model.disk_gb * (0.2 + 0.5 * random.unit()),
            model,
            random,
            id,
        }
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
        self.booted_ms = now_ms;
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
        let model = self.model;
        let timestamp_ms = now_ms.max(self.last_ms + 1);
        self.last_ms = timestamp_ms;
        // The processor wanders and is drawn back to its usual load; memory wanders within bounds; logs fill the disk
        // until they are rotated.
        self.cpu += (self.random.unit() - 0.5) * 6.0 + (model.usual_cpu - self.cpu) * 0.05;
        self.cpu = self.cpu.clamp(0.0, 100.0);
        let memory_mb = model.memory_mb as f32;
        self.memory = (self.memory + (self.random.unit() - 0.5) * 0.004 * memory_mb).clamp(0.1 * memory_mb, memory_mb);
        self.disk += self.random.unit() * 0.000_02 * model.disk_gb;
        if self.disk > 0.9 * model.disk_gb {
            self.disk = 0.5 * model.disk_gb;
        }
        let uptime_seconds = (timestamp_ms.saturating_sub(self.booted_ms) / 1000).unsigned_abs();

        message.device_id = std::mem::take(&mut self.id);
        let status = message.status.get_or_insert_with(DeviceStatus::default);
        status.state = device_status::State::Online.into();
        status.uptime_seconds = uptime_seconds;
        status.last_boot = Some(timestamp(self.booted_ms));
        let stats = message.stats.get_or_insert_with(SystemStats::default);
        // Agents report a digit or two; so do these, because noise in the low bits would defeat the codecs in ClickHouse.
        stats.cpu_percent = f64::from((self.cpu * 10.0).round()) / 10.0;
        stats.memory_used_mb = self.memory as u64;
        stats.disk_used_gb = f64::from((self.disk * 100.0).round()) / 100.0;
        message.timestamp = Some(timestamp(timestamp_ms));
        message.version.clear();
        message.update_progress = None;
        self.measure_extras(message, extras, uptime_seconds);
        timestamp_ms
    }

    fn measure_extras(&mut self, message: &mut HeartbeatRequest, extras: Extras, uptime_seconds: u64) {
        if message.processes.len() != extras.processes {
            message.processes = (0..extras.processes).map(process).collect();
        }
        for process in &mut message.processes {
            process.cpu_percent = f64::from((self.random.unit() * 100.0).round()) / 10.0;
            process.uptime_seconds = uptime_seconds;
        }
        if extras.metrics > 0 {
            let metrics = &mut message.stats.get_or_insert_with(SystemStats::default).metrics;
            if metrics.len() != extras.metrics {
                *metrics = (0..extras.metrics).map(|n| (format!("sensor_{n}"), 20.0)).collect();
            }
            for value in metrics.values_mut() {
                *value = f64::from((200.0 + self.random.unit() * 20.0).round()) / 10.0;
            }
        }
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

fn process(n: usize) -> ProcessInfo {
    ProcessInfo {
        pid: 300 + n as u32,
        name: PROCESSES.get(n).map_or_else(|| format!("worker-{n}"), |name| (*name).to_owned()),
        state: process_info::State::Sleeping.into(),
        memory_used_mb: 24,
        ..ProcessInfo::default()
    }
}

fn timestamp(ms: i64) -> Timestamp {
    Timestamp { seconds: ms.div_euclid(1000), nanos: (ms.rem_euclid(1000) * 1_000_000) as i32 }
}

/// SplitMix64 (Steele, Lea, Flood, 2014): eight bytes of state, and good enough for a device's whims.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in 0 to 1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

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
        let extras = Extras { processes: 2, metrics: 3 };
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
                assert!(stats.memory_used_mb > 0 && stats.memory_used_mb <= u64::from(device.model.memory_mb));
                assert!(stats.disk_used_gb > 0.0 && stats.disk_used_gb <= f64::from(device.model.disk_gb));
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
