//! One connection of the fleet, and the devices that speak over it, each in its turn.
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fleetd_proto::v1::{HeartbeatRequest, HeartbeatResponse};

use super::device::{Answer, Speech, Turn};
use super::{download, Shared};
use crate::random::Random;
use crate::transport::{self, SendError, Sender};
use crate::wire::{self, CallError, CallTemplate, Protocol};

/// How soon a stop or a new target is noticed.
pub(super) const WATCH_STEP: Duration = Duration::from_millis(50);

/// First wait after a failed connect; doubled up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(10);

/// Longest wait between two connects: a server's restart is seen within it.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

const REPORT: &str = "fleetd.v1.UpdateService/ReportUpdateStatus";

pub(super) struct Worker {
    shared: Arc<Shared>,
    /// Whose turn is when, the next one on top.
    agenda: BinaryHeap<Reverse<(Instant, usize)>>,
    link: Option<Link>,
    backoff: Duration,
    random: Random,
    message: HeartbeatRequest,
    buffer: BytesMut,
}

struct Link {
    generation: u64,
    sender: Sender,
    heartbeat: CallTemplate,
    report: CallTemplate,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, seed: u64, indices: Vec<usize>) -> Self {
        let mut random = Random::new(seed ^ shared.options.seed);
        // Spread over the first interval, so that the fleet does not speak in step.
        let spread = |index| Reverse((shared.epoch + shared.options.interval.mul_f32(random.unit()), index));
        let agenda = indices.into_iter().map(spread).collect();
        Self {
            shared,
            agenda,
            link: None,
            backoff: BACKOFF_MIN,
            random,
            message: HeartbeatRequest::default(),
            buffer: BytesMut::new(),
        }
    }

    /// Gives each device its turns until the fleet is stopped.
    pub(super) async fn run(mut self) {
        while let Some(Reverse((due, index))) = self.agenda.pop() {
            if !self.wait_until(due).await {
                return;
            }
            if self.link.as_ref().is_some_and(|link| link.generation != self.shared.generation.load(Ordering::Acquire))
            {
                self.link = None;
            }
            let at = match self.connected().await {
                // The device keeps its turn: what it has to say waits for the server.
                false => Instant::now(),
                true => self.take_turn(index).await,
            };
            self.agenda.push(Reverse((at, index)));
        }
    }

    async fn take_turn(&mut self, index: usize) -> Instant {
        let speech = match self.shared.turn(index, &mut self.message, &mut self.buffer) {
            Turn::Silent(until) => return until,
            Turn::Speak(speech) => speech,
        };
        let answer = tokio::time::timeout(self.shared.options.timeout, self.say(&speech)).await;
        let answer = answer.unwrap_or_else(|elapsed| Answer::Nothing(CallError::Broken { source: elapsed.into() }));
        let counters = &self.shared.counters;
        match &answer {
            Answer::Heartbeat(_) | Answer::Report(_) => {
                counters.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Answer::Nothing(CallError::Refused(refusal)) => {
                counters.refused[refusal.code.index()].fetch_add(1, Ordering::Relaxed);
            }
            Answer::Nothing(CallError::Malformed(_)) => {
                counters.malformed.fetch_add(1, Ordering::Relaxed);
            }
            Answer::Nothing(CallError::Broken { .. }) => {
                counters.broken.fetch_add(1, Ordering::Relaxed);
                self.link = None;
            }
        }
        let next = self.shared.answered(index, &speech, answer);
        if let Some(fetch) = next.fetch {
            tokio::spawn(download::fetch(Arc::clone(&self.shared), index, fetch));
        }
        next.at
    }

    async fn say(&mut self, speech: &Speech) -> Answer {
        let Some(link) = &mut self.link else {
            return Answer::Nothing(SendError::NotSent.into());
        };
        let template = if speech.is_call { &link.report } else { &link.heartbeat };
        let request = template.request(Some(&speech.token), speech.body.clone());
        let exchange = async {
            let response = link.sender.send(request).await?;
            let (_, message) = wire::read_answer(Protocol::Connect, response).await?;
            Ok(if speech.is_call {
                Answer::Report(wire::decode(Protocol::Connect, message)?)
            } else {
                let response: Box<HeartbeatResponse> = Box::new(wire::decode(Protocol::Connect, message)?);
                if !response.acknowledged {
                    return Err(CallError::Malformed("a heartbeat's answer without acknowledged".to_owned()));
                }
                Answer::Heartbeat(response)
            })
        };
        exchange.await.unwrap_or_else(Answer::Nothing)
    }

    /// Makes sure of a connection; false after a failed try and its backoff.
    async fn connected(&mut self) -> bool {
        if let Some(link) = &mut self.link {
            if link.sender.ready().await.is_ok() {
                return true;
            }
            self.link = None;
        }
        if let Some(link) = self.connect().await {
            self.backoff = BACKOFF_MIN;
            self.link = Some(link);
            return true;
        }
        // Half to all of the backoff, so that the connections do not come back in step.
        tokio::time::sleep(self.backoff.mul_f32(0.5 + 0.5 * self.random.unit())).await;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        false
    }

    async fn connect(&self) -> Option<Link> {
        let (generation, target) = self.shared.target();
        let connection = transport::connect(&target, Protocol::Connect).await.ok()?;
        // Ends by itself when the sender is dropped.
        tokio::spawn(connection.driver);
        Some(Link {
            generation,
            sender: connection.sender,
            heartbeat: CallTemplate::new(&target, Protocol::Connect, wire::HEARTBEAT).ok()?,
            report: CallTemplate::new(&target, Protocol::Connect, REPORT).ok()?,
        })
    }

    /// False when the fleet was stopped meanwhile.
    async fn wait_until(&self, due: Instant) -> bool {
        loop {
            if self.shared.is_stopped() {
                return false;
            }
            let rest = due.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return true;
            }
            tokio::time::sleep(rest.min(WATCH_STEP)).await;
        }
    }
}
