//! A run: generator threads that send a fleet's heartbeats, watched from outside, and what they measured.
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::device::{Device, Encoder};
use crate::drift::Extras;
use crate::error::LoadError;
use crate::fleet::Fleet;
use crate::latency::Tally;
use crate::ledger::MAX_LEDGER_BYTES;
use crate::link::{Link, SharedTarget};
use crate::report::Report;
use crate::schedule::Schedule;
use crate::slot::{Books, Generator, Live};
use crate::target::Target;
use crate::wire::{self, CallTemplate, Protocol};

/// How often a thread looks whether it was stopped or its time is over.
const SUPERVISE_STEP: Duration = Duration::from_millis(20);

/// How to heartbeat.
#[derive(Clone, Debug)]
pub struct Load {
    pub protocol: Protocol,
    /// TCP connections over all threads.
    pub connections: usize,
    /// Heartbeats in flight on each connection; only gRPC can have more than one.
    pub streams: usize,
    /// Generator threads, each with its share of devices and connections.
    pub threads: usize,
    /// Heartbeats a second over all; `None` sends the next as soon as the one before is answered.
    pub rate: Option<f64>,
    /// Time before measuring begins.
    pub warmup: Duration,
    /// Time of measuring; `None` goes on until [`Run::stop`].
    pub duration: Option<Duration>,
    /// How long a heartbeat may wait for its answer before its connection is given up, and how long the end of the run
    /// waits for those in flight.
    pub timeout: Duration,
    /// Whether to remember every acknowledged heartbeat, for [`crate::verify()`].
    pub keep_ledger: bool,
    /// Whether devices install the updates that they are offered, well and in a few heartbeats.
    pub take_updates: bool,
    pub extras: Extras,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            protocol: Protocol::Connect,
            connections: 64,
            streams: 1,
            threads: 1,
            rate: None,
            warmup: Duration::ZERO,
            duration: None,
            timeout: Duration::from_secs(10),
            keep_ledger: false,
            take_updates: false,
            extras: Extras::default(),
        }
    }
}

/// How far a run is; its warm-up is counted too.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub acknowledged: u64,
    /// Refused, broken or malformed.
    pub failed: u64,
    pub elapsed: Duration,
    pub is_finished: bool,
}

/// Heartbeats under way.
#[derive(Debug)]
pub struct Run {
    load: Load,
    started: Instant,
    measured_from: Instant,
    stop: Arc<AtomicBool>,
    live: Vec<Arc<Live>>,
    target: SharedTarget,
    results: Vec<oneshot::Receiver<Result<ThreadResult, LoadError>>>,
}

/// What one thread brings home.
#[derive(Debug)]
struct ThreadResult {
    devices: Vec<Device>,
    tally: Tally,
    reconnects: u64,
    ledger_full: bool,
    last_answer: Option<Instant>,
}

impl Run {
    pub(crate) fn start(fleet: Fleet, load: &Load) -> Result<Self, LoadError> {
        let mut load = load.clone();
        load.streams = if load.protocol == Protocol::Grpc { load.streams.max(1) } else { 1 };
        load.connections = load.connections.clamp(1, fleet.len().max(1));
        load.threads = load.threads.clamp(1, load.connections);
        if fleet.is_empty() {
            return Err(LoadError::Setup {
                what: "the fleet has no devices".to_owned(),
                todo: "register at least one",
            });
        }

        let template = CallTemplate::new(&fleet.target, load.protocol, wire::HEARTBEAT)?;
        let target: SharedTarget = Arc::new(Mutex::new(fleet.target));
        let mut shares: Vec<Vec<Device>> = (0..load.threads).map(|_| Vec::new()).collect();
        for (index, device) in fleet.devices.into_iter().enumerate() {
            shares[index % load.threads].push(device);
        }
        let started = Instant::now();
        let measured_from = started + load.warmup;
        let end = load.duration.map(|duration| measured_from + duration);
        let stop = Arc::new(AtomicBool::new(false));
        let (mut live, mut results) = (Vec::new(), Vec::new());
        for (thread, devices) in shares.into_iter().enumerate() {
            let share = 1.0 / load.threads as f64;
            // Threads are offset against each other, so that their schedules interleave.
            let offset = load.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(thread as f64 / rate));
            let schedule = Schedule::new(started + offset, end, load.rate.map(|rate| rate * share));
            let counters = Arc::new(Live::default());
            live.push(Arc::clone(&counters));
            let generator = Generator {
                schedule: Arc::new(schedule),
                template: template.clone(),
                live: counters,
                measured_from,
                protocol: load.protocol,
                take_updates: load.take_updates,
                ledger_limit: load.keep_ledger.then_some(MAX_LEDGER_BYTES / load.threads),
                books: Mutex::new(Books {
                    ledger_bytes: devices.iter().map(|device| device.trail.bytes()).sum(),
                    encoder: Encoder::new(load.protocol, load.extras),
                    tally: Tally::new(),
                    ledger_full: false,
                    last_answer: None,
                }),
            };
            let (sender, receiver) = oneshot::channel();
            results.push(receiver);
            let share = Share {
                generator: Arc::new(generator),
                devices,
                connections: (thread..load.connections).step_by(load.threads).count(),
                streams: load.streams,
                timeout: load.timeout,
                end,
                stop: Arc::clone(&stop),
                target: Arc::clone(&target),
                seed: thread as u64,
            };
            let spawned = std::thread::Builder::new().name(format!("generate-{thread}")).spawn(move || {
                // The receiver is gone only when nobody waits for the result any more.
                let _ = sender.send(share.run());
            });
            spawned.map_err(|source| LoadError::Io { operation: "start a generator thread".to_owned(), source })?;
        }
        Ok(Self { load, started, measured_from, stop, live, target, results })
    }

    /// Ends the run: what is in flight is waited for, nothing more is sent.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Sends all connections that are opened from now on elsewhere: for a server that came back on another port.
    pub fn retarget(&self, target: &Target) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target.clone();
    }

    pub fn progress(&self) -> Progress {
        let sum = |pick: fn(&Live) -> &std::sync::atomic::AtomicU64| {
            self.live.iter().map(|live| pick(live).load(Ordering::Relaxed)).sum()
        };
        Progress {
            acknowledged: sum(|live| &live.acknowledged),
            failed: sum(|live| &live.failed),
            elapsed: self.started.elapsed(),
            // The threads hold the other handles.
            is_finished: Arc::strong_count(&self.stop) == 1,
        }
    }

    /// Waits for the end and gives the fleet back with what was measured. Without a duration, call [`Self::stop`] first.
    pub async fn finish(self) -> Result<(Fleet, Report), LoadError> {
        let mut tally = Tally::new();
        let mut devices = Vec::new();
        let (mut reconnects, mut ledger_full, mut last_answer) = (0, false, None);
        for result in self.results {
            let thread = result.await.map_err(|_| LoadError::Setup {
                what: "a generator thread ended without a result".to_owned(),
                todo: "see the message of its panic above",
            })??;
            tally.merge(&thread.tally);
            devices.extend(thread.devices);
            reconnects += thread.reconnects;
            ledger_full |= thread.ledger_full;
            last_answer = last_answer.max(thread.last_answer);
        }
        // Heartbeats that were due in time and answered late are part of the work, so is the time that they took.
        let measured_until = last_answer.unwrap_or_else(Instant::now);
        let elapsed = measured_until.saturating_duration_since(self.measured_from);
        let elapsed =
            if tally.acknowledged == 0 { elapsed.max(self.load.duration.unwrap_or_default()) } else { elapsed };
        let target = self.target.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let report = Report::new(&self.load, devices.len(), &tally, elapsed, reconnects, ledger_full);
        Ok((Fleet { target, devices }, report))
    }
}

/// What one generator thread works with.
struct Share {
    generator: Arc<Generator>,
    devices: Vec<Device>,
    connections: usize,
    streams: usize,
    timeout: Duration,
    end: Option<Instant>,
    stop: Arc<AtomicBool>,
    target: SharedTarget,
    seed: u64,
}

impl Share {
    fn run(mut self) -> Result<ThreadResult, LoadError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|source| LoadError::Io { operation: "make a generator thread's runtime".to_owned(), source })?;
        let links = runtime.block_on(self.send())?;
        // Ends the links and their connections, and with them all other handles on the generator.
        drop(runtime);
        let books = self.generator.books.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(ThreadResult {
            devices: links.iter().flat_map(|link| std::mem::take(&mut *link.idle())).collect(),
            tally: books.tally.clone(),
            reconnects: links.iter().map(|link| link.reconnects()).sum(),
            ledger_full: books.ledger_full,
            last_answer: books.last_answer,
        })
    }

    async fn send(&mut self) -> Result<Vec<Arc<Link>>, LoadError> {
        let generator = &self.generator;
        let mut dealt = Vec::from_iter((0..self.connections).map(|_| VecDeque::new()));
        for (index, device) in std::mem::take(&mut self.devices).into_iter().enumerate() {
            dealt[index % self.connections].push_back(device);
        }
        let mut links = Vec::new();
        let mut slots = JoinSet::new();
        for (number, devices) in dealt.into_iter().enumerate() {
            // A device waits for its answer before it reports again, so more slots than devices would have nothing to
            // send.
            let slots_here = self.streams.min(devices.len());
            let link = Arc::new(Link::new(slots_here, devices));
            links.push(Arc::clone(&link));
            for slot in 0..slots_here {
                slots.spawn(Arc::clone(generator).run_slot(Arc::clone(&link), slot));
            }
            let (target, protocol, timeout) = (Arc::clone(&self.target), generator.protocol, self.timeout);
            let seed = (self.seed << 32) | number as u64;
            tokio::spawn(async move { link.keep(target, protocol, timeout, seed).await });
        }
        generator
            .schedule
            .start_pacing()
            .map_err(|source| LoadError::Io { operation: "start the pacing thread".to_owned(), source })?;

        let mut over_since = None;
        while !slots.is_empty() {
            let now = Instant::now();
            if self.stop.load(Ordering::Relaxed) {
                generator.schedule.stop();
            }
            if over_since.is_none() && (generator.schedule.is_stopped() || self.end.is_some_and(|end| now >= end)) {
                over_since = Some(now);
            }
            if over_since.is_some_and(|since| now.saturating_duration_since(since) > self.timeout) {
                generator.schedule.stop();
                links.iter().for_each(|link| link.close());
            }
            let _ = tokio::time::timeout(SUPERVISE_STEP, slots.join_next()).await;
        }
        generator.schedule.stop();
        for ticket in generator.schedule.give_up_rest() {
            generator.give_up(ticket);
        }
        links.iter().for_each(|link| link.close());
        Ok(links)
    }
}
