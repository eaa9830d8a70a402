//! What the devices of a simulated fleet are.

/// What a model of device is made of; a fleet is a mix of them, in this order of repetition.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) kind: &'static str,
    pub(crate) hardware: &'static str,
    pub(crate) os: &'static str,
    pub(crate) os_version: &'static str,
    pub(crate) arch: &'static str,
    pub(crate) cpu_cores: u32,
    pub(crate) memory_mb: u32,
    pub(crate) disk_gb: f32,
    /// Load in per cent around which the processor wanders.
    pub(crate) usual_cpu: f32,
    /// Bytes a second that it receives, sends, reads from disk and writes to it, when half busy.
    pub(crate) bytes_a_second: [f32; 4],
    /// On a radio and a battery.
    pub(crate) is_mobile: bool,
}

pub(crate) const MODELS: [Model; 4] = [
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
        bytes_a_second: [3_000.0, 9_000.0, 4_000.0, 20_000.0],
        is_mobile: false,
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
        bytes_a_second: [20_000.0, 180_000.0, 30_000.0, 60_000.0],
        is_mobile: false,
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
        bytes_a_second: [40_000.0, 25_000.0, 80_000.0, 120_000.0],
        is_mobile: false,
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
        bytes_a_second: [12_000.0, 15_000.0, 200.0, 900.0],
        is_mobile: true,
    },
];
