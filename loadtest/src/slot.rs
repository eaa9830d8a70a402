//! The hot path: a slot sends one heartbeat at a time over its link, and books what became of it.
//!
//! A generator thread owns a share of the devices and runs its slots, links and HTTP on one current-thread runtime, so
//! the locks here are never waited for.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fleetd_proto::v1::HeartbeatResponse;
use http::Request;
use http_body_util::Full;
use hyper::body::Incoming;

use crate::device::{Device, Encoder};
use crate::latency::Tally;
use crate::ledger::Entry;
use crate::link::Link;
use crate::schedule::{Schedule, Ticket};
use crate::transport::SendError;
use crate::updating::Updating;
use crate::wire::{self, CallError, CallTemplate, Protocol};

/// A slot that was refused waits so long before its next heartbeat. Without it a server that answers "not now" would be
/// hammered at full speed, and the machine that both share would measure little else.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(1);

/// Counters that others watch while a thread runs. Written by that thread only.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) acknowledged: AtomicU64,
    pub(crate) failed: AtomicU64,
}

/// What the slots of one thread share.
pub(crate) struct Generator {
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) template: CallTemplate,
    pub(crate) live: Arc<Live>,
    /// Outcomes of heartbeats that were due before this are left out of the tally.
    pub(crate) measured_from: Instant,
    pub(crate) protocol: Protocol,
    /// Whether devices do what they are offered.
    pub(crate) take_updates: bool,
    /// Whether trails are kept, and how many bytes they may take together.
    pub(crate) ledger_limit: Option<usize>,
    pub(crate) books: Mutex<Books>,
}

/// What changes with each heartbeat.
pub(crate) struct Books {
    pub(crate) encoder: Encoder,
    pub(crate) tally: Tally,
    pub(crate) ledger_bytes: usize,
    pub(crate) ledger_full: bool,
    /// When the last answer came.
    pub(crate) last_answer: Option<Instant>,
}

/// What became of a heartbeat that was sent.
enum Outcome {
    /// With the reply, when it says something of updates in a run that takes them.
    Acknowledged(Option<Box<HeartbeatResponse>>),
    Refused(crate::code::Code),
    Malformed,
    Broken,
}

impl Generator {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends heartbeats, one after the other, until the schedule ends. `slot` numbers it on its link.
    pub(crate) async fn run_slot(self: Arc<Self>, link: Arc<Link>, slot: usize) {
        self.send_all(&link, slot).await;
        // Its handle on the connection is dropped; nothing else runs on this thread before the link knows why.
        link.slot_ends();
    }

    async fn send_all(&self, link: &Link, slot: usize) {
        let mut connection = None;
        let mut generation = 0;
        'tickets: while let Some(ticket) = self.schedule.next().await {
            let (mut device, timestamp_ms, outcome) = loop {
                let Some(sender) = &mut connection else {
                    match link.connection_after(generation).await {
                        Some((newer, sender)) => (generation, connection) = (newer, Some(sender)),
                        None => {
                            self.give_up(ticket);
                            break 'tickets;
                        }
                    }
                    continue;
                };
                if sender.ready().await.is_err() {
                    connection = None;
                    continue;
                }
                let Some((device, timestamp_ms, request)) = self.next_heartbeat(link) else {
                    self.give_up(ticket);
                    break 'tickets;
                };
                link.departs(slot, Instant::now());
                let sent = sender.send(request).await;
                let outcome = match sent {
                    Err(SendError::NotSent) => {
                        link.arrived(slot);
                        link.idle().push_front(device);
                        connection = None;
                        continue;
                    }
                    Err(SendError::Broken(_)) => Outcome::Broken,
                    Ok(response) => self.read(response).await,
                };
                link.arrived(slot);
                break (device, timestamp_ms, outcome);
            };
            if self.take_updates {
                update(&mut device, &outcome);
            }
            self.book(ticket, &mut device, timestamp_ms, &outcome);
            link.idle().push_back(device);
            match outcome {
                Outcome::Broken => connection = None,
                Outcome::Refused(_) => tokio::time::sleep(PAUSE_AFTER_REFUSAL).await,
                Outcome::Acknowledged(_) | Outcome::Malformed => {}
            }
        }
    }

    /// Takes the link's device that was idle longest and makes its next heartbeat. There is always one: a link has no
    /// more slots than devices.
    fn next_heartbeat(&self, link: &Link) -> Option<(Device, i64, Request<Full<Bytes>>)> {
        let now_ms = unix_ms();
        let mut device = link.idle().pop_front()?;
        let mut books = self.books();
        let (timestamp_ms, body) = books.encoder.heartbeat(&mut device, now_ms);
        drop(books);
        let request = self.template.request(Some(&device.token), body);
        Some((device, timestamp_ms, request))
    }

    async fn read(&self, response: http::Response<Incoming>) -> Outcome {
        let answer = wire::read_answer(self.protocol, response).await;
        let answer = answer.and_then(|(_, message)| wire::decode::<HeartbeatResponse>(self.protocol, message));
        match answer {
            Ok(response) if response.acknowledged => {
                let is_of_updates = response.pending_update.is_some() || response.update_report.is_some();
                Outcome::Acknowledged((is_of_updates && self.take_updates).then(|| Box::new(response)))
            }
            Ok(_) | Err(CallError::Malformed(_)) => Outcome::Malformed,
            Err(CallError::Refused(refusal)) => Outcome::Refused(refusal.code),
            Err(CallError::Broken { .. }) => Outcome::Broken,
        }
    }

    fn book(&self, ticket: Ticket, device: &mut Device, timestamp_ms: i64, outcome: &Outcome) {
        let now = Instant::now();
        let mut books = self.books();
        let fate = match outcome {
            Outcome::Acknowledged(_) => Some(true),
            Outcome::Refused(code) => code.leaves_outcome_open().then_some(false),
            Outcome::Malformed | Outcome::Broken => Some(false),
        };
        if let (Some(limit), Some(acknowledged)) = (self.ledger_limit, fate) {
            books.ledger_bytes += device.trail.push(Entry { timestamp_ms, acknowledged });
            if books.ledger_bytes > limit {
                books.ledger_full = true;
                self.schedule.stop();
            }
        }
        books.last_answer = Some(now);
        let live =
            if matches!(outcome, Outcome::Acknowledged(_)) { &self.live.acknowledged } else { &self.live.failed };
        live.store(live.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if ticket.due < self.measured_from {
            return;
        }
        let tally = &mut books.tally;
        tally.sent += 1;
        tally.record(now.saturating_duration_since(ticket.due));
        match outcome {
            Outcome::Acknowledged(_) => tally.acknowledged += 1,
            Outcome::Refused(code) => tally.rejected[code.index()] += 1,
            Outcome::Malformed => tally.malformed += 1,
            Outcome::Broken => tally.broken += 1,
        }
    }

    /// Counts a heartbeat that was due and never left, with the time it waited until now.
    pub(crate) fn give_up(&self, ticket: Ticket) {
        // Without a schedule nothing was due: the slot would only have liked to go on.
        if self.schedule.is_open_loop() && ticket.due >= self.measured_from {
            let mut books = self.books();
            books.tally.unsent += 1;
            books.tally.record(ticket.due.elapsed());
        }
    }
}

/// Tells a device's updating, if there is any, what came of its heartbeat.
fn update(device: &mut Device, outcome: &Outcome) {
    let reply = match outcome {
        Outcome::Acknowledged(reply) => reply.as_deref(),
        _ => None,
    };
    if device.updating.is_none() && reply.is_none() {
        return;
    }
    let now_ms = unix_ms();
    let updating = device.updating.get_or_insert_with(|| Box::new(Updating::new(&device.id)));
    if let Some(offer) = reply.and_then(|reply| reply.pending_update.as_ref()) {
        updating.offered(offer, now_ms);
    }
    if reply.and_then(|reply| reply.update_report.as_ref()).is_some_and(|report| !report.accepted) {
        return updating.refused();
    }
    updating.answered(now_ms, matches!(outcome, Outcome::Acknowledged(_)));
}

/// The clock that devices report by.
pub(crate) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
