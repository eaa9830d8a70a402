//! How the measurements of a device move: slowly, with the time of day, and each device in its own way.
//!
//! Storage, rollups and dashboards behave on noise as they never do on a fleet, so the simulated one drifts as real ones
//! do: load follows the day and has bursts, memory leaks until the workload is restarted, logs fill the disk until they
//! are rotated, counters only grow until the device boots again. The same seed, number and times give the same values.
use fleetd_proto::v1::{device_status, process_info, DeviceStatus, HeartbeatRequest, ProcessInfo, SystemStats};
use fleetd_proto::Timestamp;

use crate::model::{Model, MODELS};
use crate::random::Random;

/// Names of the processes that a device reports when it is asked to report any; the rest are numbered.
const PROCESSES: [&str; 4] = ["fleet-agent", "sensor-reader", "mqtt-bridge", "node-exporter"];

const DAY_MS: i64 = 86_400_000;

/// A device that was silent for longer than this, in seconds, drifts no further in its first report.
const MAX_STEP_SECONDS: f32 = 900.0;

/// Mean time between two boots, in seconds: updates, power cuts and crashes together.
const BETWEEN_BOOTS: f32 = 20.0 * 86_400.0;

/// Mean time between two bursts of load, and the time in which one fades, in seconds.
const BETWEEN_BURSTS: f32 = 3_600.0;
const BURST_FADES: f32 = 90.0;

/// Share of the memory at which a leaking workload is ended and started again.
const MEMORY_LIMIT: f32 = 0.85;

/// Share of the disk at which whatever can go is deleted.
const DISK_LIMIT: f64 = 0.9;

/// What heartbeats carry beyond the API reference's example (state, uptime, boot time, processor, memory, disk).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// Processes in each heartbeat.
    pub processes: usize,
    /// Custom metrics in each heartbeat.
    pub metrics: usize,
    /// Whether every reading is reported that such a device has: load, temperature, traffic, swap, battery, signal.
    pub all_readings: bool,
}

/// The measurements of one device. Some 150 bytes.
#[derive(Clone, Debug)]
pub struct Drift {
    pub(crate) model: &'static Model,
    random: Random,
    number: u64,
    last_ms: i64,
    booted_ms: i64,
    /// When the workload was started, which is at boot or after it was ended for its memory.
    started_ms: i64,
    /// The device's own hour, in days: devices are all over the world.
    phase: f32,
    cpu: f32,
    burst: f32,
    /// MiB of the system and the workload, of which the workload leaks some a second.
    memory: f32,
    memory_at_start: f32,
    leak: f32,
    wobble: f32,
    /// GiB that stay, and GiB of logs.
    disk: f64,
    logs: f64,
    restarts: u32,
    load: [f32; 3],
    temperature: f32,
    battery: f32,
    signal: f32,
    /// Bytes received, sent, read and written since boot.
    counters: [u64; 4],
}

/// A value that is drawn to `target` within `seconds`, and pushed about by noise of the size `sigma` a root-second.
fn drawn(value: f32, target: f32, seconds: f32, elapsed: f32, sigma: f32, noise: f32) -> f32 {
    value + (target - value) * (elapsed / seconds).min(1.0) + sigma * elapsed.sqrt() * noise
}

fn tenths(value: f32) -> f64 {
    f64::from((value * 10.0).round()) / 10.0
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// As a device's clock says it.
pub(crate) fn timestamp(ms: i64) -> Timestamp {
    Timestamp { seconds: ms.div_euclid(1000), nanos: (ms.rem_euclid(1000) * 1_000_000) as i32 }
}

impl Drift {
    /// The device with this number, up for some part of a month at `now_ms` (milliseconds since 1970).
    pub fn new(seed: u64, number: usize, now_ms: i64) -> Self {
        let number = number as u64;
        let mut random = Random::scattered(number ^ seed.rotate_left(32));
        let model = &MODELS[number as usize % MODELS.len()];
        let memory_mb = model.memory_mb as f32;
        let memory_at_start = memory_mb * (0.25 + 0.25 * random.unit());
        let booted_ms = now_ms - (random.unit() * 30.0 * DAY_MS as f32) as i64;
        // Every third workload leaks, and is full after six hours to ten days.
        let fills_in = 6.0 * 3_600.0 * (1.0 + 39.0 * random.unit());
        let leak = if number % 3 == 1 { (MEMORY_LIMIT * memory_mb - memory_at_start) / fills_in } else { 0.0 };
        let gone = random.unit();
        Self {
            model,
            number,
            last_ms: 0,
            booted_ms,
            started_ms: booted_ms,
            phase: random.unit(),
            cpu: model.usual_cpu,
            burst: 0.0,
            memory: memory_at_start + gone * fills_in * leak,
            memory_at_start,
            leak,
            wobble: 0.0,
            disk: f64::from(model.disk_gb * (0.2 + 0.4 * random.unit())),
            logs: f64::from(0.01 * model.disk_gb * random.unit()),
            restarts: (random.unit() * 3.0) as u32,
            load: [model.usual_cpu / 100.0 * model.cpu_cores as f32; 3],
            temperature: 35.0 + 0.3 * model.usual_cpu,
            battery: 60.0 + 40.0 * random.unit(),
            signal: -60.0 - 25.0 * random.unit(),
            counters: [0; 4].map(|_| (random.unit() * 4e9) as u64),
            random,
        }
    }

    /// What kind of device it is.
    pub fn device_type(&self) -> &'static str {
        self.model.kind
    }

    /// MiB of memory and GiB of disk that it has.
    pub fn capacity(&self) -> (u64, f64) {
        (u64::from(self.model.memory_mb), f64::from(self.model.disk_gb))
    }

    /// The device restarted just now: what counts from the boot begins anew.
    pub(crate) fn reboot(&mut self, now_ms: i64) {
        self.booted_ms = now_ms;
        self.started_ms = now_ms;
        self.memory = self.memory_at_start;
        self.counters = [0; 4];
        self.restarts = 0;
    }

    /// Lets time pass and fills `message` with all but the device's id; returns its timestamp in ms, which is later than
    /// the one before whatever the clock does.
    pub fn report(&mut self, now_ms: i64, message: &mut HeartbeatRequest, extras: Extras) -> i64 {
        let now_ms = now_ms.max(self.last_ms + 1);
        let elapsed_ms = if self.last_ms == 0 { 0 } else { now_ms - self.last_ms };
        let elapsed = (elapsed_ms as f32 / 1000.0).min(MAX_STEP_SECONDS);
        let day = (now_ms.rem_euclid(DAY_MS) as f32 / DAY_MS as f32 + self.phase).fract();
        self.last_ms = now_ms;
        self.step(now_ms, elapsed, day);

        let uptime_seconds = (now_ms.saturating_sub(self.booted_ms) / 1000).unsigned_abs();
        let status = message.status.get_or_insert_with(DeviceStatus::default);
        status.state = device_status::State::Online.into();
        status.uptime_seconds = uptime_seconds;
        status.last_boot = Some(timestamp(self.booted_ms));
        let cpu = self.cpu();
        let used = self.used();
        let stats = message.stats.get_or_insert_with(SystemStats::default);
        // Agents report a digit or two; so do these, because noise in the low bits would defeat the codecs in ClickHouse.
        stats.cpu_percent = tenths(cpu);
        stats.memory_used_mb = used as u64;
        stats.disk_used_gb = hundredths(self.disk + self.logs);
        message.timestamp = Some(timestamp(now_ms));
        if extras.all_readings {
            self.report_all(message, elapsed, day, cpu, used);
        }
        if extras.processes > 0 || !message.processes.is_empty() {
            self.report_processes(now_ms, message, extras.processes, cpu);
        }
        if extras.metrics > 0 {
            self.report_metrics(message, extras.metrics, day);
        }
        now_ms
    }

    fn cpu(&self) -> f32 {
        (self.cpu + self.burst).clamp(0.0, 100.0)
    }

    fn used(&self) -> f32 {
        let memory_mb = self.model.memory_mb as f32;
        (self.memory + self.wobble).clamp(0.05 * memory_mb, memory_mb)
    }

    /// What each device goes through: load, memory, disk, restarts.
    fn step(&mut self, now_ms: i64, elapsed: f32, day: f32) {
        let [chance, size, noise, memory_noise] = self.random.four();
        if chance < elapsed / BETWEEN_BOOTS {
            return self.reboot(now_ms);
        }
        let usual = self.model.usual_cpu;
        let target = usual * (1.0 + 0.35 * wave(day));
        self.cpu = drawn(self.cpu, target, 300.0, elapsed, 0.006 * usual + 0.05, spread(noise)).clamp(0.0, 100.0);
        self.burst -= self.burst * (elapsed / BURST_FADES).min(1.0);
        // From the other end, so that bursts and boots are not of the same chance.
        if 1.0 - chance < elapsed / BETWEEN_BURSTS {
            self.burst += (100.0 - usual) * (0.2 + 0.5 * size);
        }
        let memory_mb = self.model.memory_mb as f32;
        self.wobble = drawn(self.wobble, 0.0, 600.0, elapsed, 0.000_3 * memory_mb, spread(memory_noise));
        self.memory += self.leak * elapsed;
        if self.memory > MEMORY_LIMIT * memory_mb {
            self.memory = self.memory_at_start;
            self.started_ms = now_ms;
            self.restarts += 1;
        }
        // A hundredth of the disk a day in logs, of which a tenth stays; they are rotated in the device's night.
        let disk_gb = f64::from(self.model.disk_gb);
        let written = f64::from(elapsed * (0.5 + self.cpu / (2.0 * usual))) * disk_gb * 0.01 / 86_400.0;
        if day < elapsed / 86_400.0 {
            self.disk += 0.1 * self.logs;
            self.logs = 0.0;
        }
        self.logs += written;
        if self.disk + self.logs > DISK_LIMIT * disk_gb {
            self.disk = 0.5 * disk_gb;
        }
    }

    fn report_all(&mut self, message: &mut HeartbeatRequest, elapsed: f32, day: f32, cpu: f32, used: f32) {
        let model = self.model;
        let [received, sent, disk, signal] = self.random.four();
        let running = cpu / 100.0 * model.cpu_cores as f32;
        for (load, seconds) in self.load.iter_mut().zip([60.0, 300.0, 900.0]) {
            *load = drawn(*load, running, seconds, elapsed, 0.0, 0.0);
        }
        let ambient = 30.0 + 5.0 * wave(day);
        self.temperature = drawn(self.temperature, ambient + 0.35 * cpu, 180.0, elapsed, 0.02, spread(signal));
        let busy = 0.3 + cpu / 100.0;
        let bytes = model.bytes_a_second.map(|bytes| bytes * elapsed * busy);
        let shares = [0.5 + received, 0.5 + sent, 0.2 + disk * disk, 0.7 + 0.6 * disk];
        for ((counter, bytes), share) in self.counters.iter_mut().zip(bytes).zip(shares) {
            *counter += (bytes * share) as u64;
        }
        let status = message.status.get_or_insert_with(DeviceStatus::default);
        status.restart_count = self.restarts;
        self.put_boot_id(&mut status.boot_id);
        status.message.clear();
        if used > 0.8 * model.memory_mb as f32 {
            status.message.push_str("memory above 80 %");
        }
        let stats = message.stats.get_or_insert_with(SystemStats::default);
        stats.memory_total_mb = u64::from(model.memory_mb);
        stats.disk_total_gb = f64::from(model.disk_gb);
        let [one, five, fifteen] = self.load.map(|load| Some(hundredths(f64::from(load))));
        (stats.load_average_1m, stats.load_average_5m, stats.load_average_15m) = (one, five, fifteen);
        stats.temperature_celsius = Some(tenths(self.temperature));
        let [rx, tx, read, write] = self.counters;
        (stats.network_rx_bytes, stats.network_tx_bytes) = (rx, tx);
        (stats.disk_read_bytes, stats.disk_write_bytes) = (read, write);
        stats.swap_used_mb = (0.5 * (used - 0.7 * model.memory_mb as f32)).max(0.0) as u64;
        stats.battery_percent = None;
        stats.signal_dbm = None;
        if model.is_mobile {
            self.signal = drawn(self.signal, -72.0, 3_600.0, elapsed, 0.2, spread(sent)).clamp(-120.0, -40.0);
            stats.signal_dbm = Some(self.signal.round() as i32);
            // The sun charges it in six hours; in the night it loses two thirds.
            let a_second = if (0.25..0.75).contains(&day) { 100.0 / 21_600.0 } else { -66.0 / 43_200.0 };
            self.battery = (self.battery + a_second * elapsed).clamp(5.0, 100.0);
            stats.battery_percent = Some(f64::from(self.battery.round()));
        }
    }

    /// Thirty-six characters as Linux's boot_id has them, another for each boot.
    fn put_boot_id(&self, boot_id: &mut String) {
        let mut random = Random::new(self.number ^ self.booted_ms.unsigned_abs().rotate_left(20));
        let bits = u128::from(random.next()) << 64 | u128::from(random.next());
        boot_id.clear();
        for at in 0..32 {
            if matches!(at, 8 | 12 | 16 | 20) {
                boot_id.push('-');
            }
            let digit = (bits >> (4 * at)) as usize & 0xf;
            boot_id.push(char::from(b"0123456789abcdef"[digit]));
        }
    }

    fn report_processes(&mut self, now_ms: i64, message: &mut HeartbeatRequest, count: usize, cpu: f32) {
        if message.processes.len() != count {
            message.processes = (0..count).map(process).collect();
        }
        let uptime_seconds = (now_ms.saturating_sub(self.started_ms) / 1000).unsigned_abs();
        let (restarts, memory) = (self.restarts, self.memory);
        for (process, at) in message.processes.iter_mut().zip(1_u16..) {
            let part = 1.0 / f32::from(at + 1);
            process.cpu_percent = tenths(cpu * part * (0.8 + 0.4 * self.random.unit()));
            process.memory_used_mb = (memory * part * 0.4) as u64;
            process.uptime_seconds = uptime_seconds;
            // The first one is the workload that is ended for its memory.
            process.restart_count = if at == 1 { restarts } else { 0 };
        }
    }

    /// Sensors: each about a value of its own, with the day, and in steps of a tenth.
    fn report_metrics(&mut self, message: &mut HeartbeatRequest, count: usize, day: f32) {
        let metrics = &mut message.stats.get_or_insert_with(SystemStats::default).metrics;
        if metrics.len() != count {
            *metrics = (0..count).map(|n| (format!("sensor_{n}"), 0.0)).collect();
        }
        for (value, at) in metrics.values_mut().zip(0_u16..) {
            let own = (self.number % 16) as f32 + 3.0 * f32::from(at % 8);
            *value =
                tenths(20.0 + own + 4.0 * wave((day + 0.1 * f32::from(at % 8)).fract()) + 0.2 * self.random.unit());
        }
    }
}

/// A day's swing between -1 and 1, near enough to a sine and cheaper: two parabolas.
fn wave(day: f32) -> f32 {
    let around = 2.0 * day - 1.0;
    4.0 * around * (1.0 - around.abs())
}

/// From uniform in 0 to 1 to a mean of 0 and a deviation of 1.
fn spread(unit: f32) -> f32 {
    (unit - 0.5) * 3.464
}

fn process(n: usize) -> ProcessInfo {
    ProcessInfo {
        pid: 300 + n as u32,
        name: PROCESSES.get(n).map_or_else(|| format!("worker-{n}"), |name| (*name).to_owned()),
        state: process_info::State::Sleeping.into(),
        version: "2.4.1".to_owned(),
        ..ProcessInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_790_000_000_000;
    const ALL: Extras = Extras { processes: 2, metrics: 3, all_readings: true };

    /// The reports of a device, half a minute apart.
    fn reports(seed: u64, number: usize, count: i64) -> Vec<HeartbeatRequest> {
        let mut drift = Drift::new(seed, number, START);
        let mut message = HeartbeatRequest::default();
        let report = |at: i64| {
            drift.report(START + at * 30_000, &mut message, ALL);
            message.clone()
        };
        (0..count).map(report).collect()
    }

    fn stats(report: &HeartbeatRequest) -> &SystemStats {
        report.stats.as_ref().expect("stats")
    }

    fn boot(report: &HeartbeatRequest) -> &str {
        &report.status.as_ref().expect("a status").boot_id
    }

    #[test]
    fn the_same_seed_number_and_times_give_the_same_values_and_others_do_not() {
        for number in 0..8 {
            assert_eq!(reports(1, number, 300), reports(1, number, 300), "{number}");
            assert_ne!(reports(1, number, 3), reports(2, number, 3), "{number}");
            assert_ne!(reports(1, number, 3), reports(1, number + 4, 3), "{number}");
        }
    }

    #[test]
    fn neighbours_do_not_repeat_each_other() {
        let cpu = |number| reports(1, number, 50).iter().map(|report| stats(report).cpu_percent).collect::<Vec<_>>();
        // Of one model, so from the same load on.
        let (one, next) = (cpu(0), cpu(4));
        for shift in 0..8 {
            let same = one[shift..].iter().zip(&next).filter(|(one, next)| one == next).count();
            assert!(same < 10, "{same} of 50, {shift} later");
        }
    }

    #[test]
    fn readings_stay_within_the_contracts_ranges_and_the_devices_own() {
        for number in 0..24 {
            let (memory, disk) = Drift::new(1, number, START).capacity();
            for report in reports(1, number, 2_880) {
                let stats = stats(&report);
                assert!((0.0..=100.0).contains(&stats.cpu_percent), "{stats:?}");
                assert!((1..=memory).contains(&stats.memory_used_mb) && stats.swap_used_mb <= memory, "{stats:?}");
                assert!(stats.disk_used_gb > 0.0 && stats.disk_used_gb <= disk, "{stats:?}");
                assert!(stats.battery_percent.is_none_or(|battery| (0.0..=100.0).contains(&battery)), "{stats:?}");
                assert!(stats.signal_dbm.is_none_or(|signal| (-120..=-40).contains(&signal)), "{stats:?}");
                assert!(stats.temperature_celsius.is_some_and(|celsius| (0.0..100.0).contains(&celsius)), "{stats:?}");
                assert!(stats.load_average_1m.is_some_and(|load| (0.0..=8.0).contains(&load)), "{stats:?}");
                assert_eq!((report.processes.len(), stats.metrics.len()), (2, 3));
            }
        }
    }

    #[test]
    fn values_half_a_minute_apart_are_close_and_those_of_a_day_are_not() {
        for number in 0..24 {
            let reports = reports(1, number, 2_880);
            let cpu: Vec<f64> = reports.iter().map(|report| stats(report).cpu_percent).collect();
            let mean = cpu.iter().sum::<f64>() / cpu.len() as f64;
            let variance: f64 = cpu.iter().map(|value| (value - mean).powi(2)).sum();
            let together: f64 = cpu.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
            assert!(together / variance > 0.5, "device {number}: autocorrelation {}", together / variance);
            let jumps = cpu.windows(2).filter(|pair| (pair[1] - pair[0]).abs() > 10.0).count();
            assert!(jumps < reports.len() / 20, "device {number}: {jumps} jumps");
            let range = cpu.iter().copied().fold(f64::MIN, f64::max) - cpu.iter().copied().fold(f64::MAX, f64::min);
            assert!(range > 0.3 * mean, "device {number}: within {range}");
            let warmed = |pair: &[HeartbeatRequest]| {
                let celsius = |at: usize| stats(&pair[at]).temperature_celsius.expect("reported");
                (celsius(1) - celsius(0)).abs()
            };
            assert!(reports.windows(2).all(|pair| warmed(pair) < 8.0), "device {number}");
        }
    }

    #[test]
    fn counters_and_uptime_grow_until_the_device_boots_again() {
        let mut boots = 0;
        for number in 0..120 {
            for pair in reports(3, number, 2_880).windows(2) {
                let (before, after) = (stats(&pair[0]), stats(&pair[1]));
                let uptime = |at: usize| pair[at].status.as_ref().expect("a status").uptime_seconds;
                if boot(&pair[0]) == boot(&pair[1]) {
                    assert!(after.network_rx_bytes > before.network_rx_bytes);
                    assert!(after.disk_write_bytes > before.disk_write_bytes);
                    assert_eq!(uptime(1), uptime(0) + 30);
                } else {
                    boots += 1;
                    assert_eq!(uptime(1), 0);
                    assert!(after.network_rx_bytes < 1 << 30);
                }
            }
        }
        assert!((1..=16).contains(&boots), "{boots} boots of 120 devices in a day, where 6 are to be expected");
    }

    #[test]
    fn memory_that_leaks_comes_back_with_a_restart_that_is_counted() {
        let restarts = |report: &HeartbeatRequest| report.status.as_ref().expect("a status").restart_count;
        let mut seen = 0;
        for number in (1..60).step_by(3) {
            for pair in reports(1, number, 2_880).windows(2) {
                if restarts(&pair[1]) > restarts(&pair[0]) {
                    seen += 1;
                    assert!(stats(&pair[1]).memory_used_mb * 5 < stats(&pair[0]).memory_used_mb * 4);
                    assert_eq!(pair[1].processes[0].uptime_seconds, 0);
                }
            }
        }
        assert!(seen >= 3, "{seen} restarts");
    }
}
