//! The builder's one loop: what to build, what to compare, in which order.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::audit::{Audit, AuditReport};
use super::build::Builder;
use super::coverage::{Coverage, Rollup};
use super::handle::{AuditSpan, Request, RollupError, Shared};
use super::plan::{self, Progress, Range, MAX_DEVICE_RECORDS, MAX_RECORDS, MAX_WAITING_RANGES};
use super::progress;
use super::{Parts, Positions, RollupOptions, PASSES_OF_HOURS};
use crate::clock::UnixMillis;
use crate::telemetry::clickhouse::ClickHouseError;
use crate::telemetry::journal::Seq;
use crate::telemetry::writer::{chain, Backoff};

pub struct Task {
    builder: Builder,
    positions: Box<dyn Fn() -> Positions + Send>,
    coverage: Coverage,
    options: RollupOptions,
    shared: Arc<Shared>,
    /// Empty until ClickHouse was asked.
    progress: BTreeMap<Rollup, Progress>,
    /// The generation of the last attempt of a range that is planned.
    attempted: BTreeMap<Rollup, u32>,
    /// Ranges of minutes that were built since hours were.
    waiting_ranges: u32,
}

impl Task {
    pub fn new(parts: Parts, options: RollupOptions, shared: Arc<Shared>) -> Self {
        let Parts { journal, positions, clickhouse, coverage } = parts;
        Self {
            builder: Builder::new(clickhouse, journal.0),
            positions,
            coverage,
            options,
            shared,
            progress: BTreeMap::new(),
            attempted: BTreeMap::new(),
            waiting_ranges: 0,
        }
    }

    /// Runs until it is told to stop.
    pub async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let shared = Arc::clone(&self.shared);
        let mut backoff = Backoff::default();
        // The first pass comes at once: until it has read how far the tables are, questions wait.
        let mut next_pass = Instant::now();
        while !shared.is_stopping() {
            let request = tokio::select! {
                () = shared.wake.notified() => continue,
                Some(request) = requests.recv() => Some(request),
                () = tokio::time::sleep_until(next_pass) => None,
            };
            // An audit puts no pass off, however often somebody asks for one.
            let is_pass = !matches!(request, Some(Request::Audit(..)));
            let outcome = tokio::select! {
                biased;
                // Whatever statement runs is given up; see the module's text on why that does no harm.
                () = shared.abort.notified() => return,
                outcome = self.serve(request) => outcome,
            };
            if is_pass {
                let wait = match outcome {
                    Ok(()) => {
                        backoff = Backoff::default();
                        jittered(self.options.every)
                    }
                    Err(()) => backoff.next(),
                };
                next_pass = Instant::now() + wait;
            }
        }
    }

    /// One request, or one pass of its own accord. Failures are told here, once for each cause.
    async fn serve(&mut self, request: Option<Request>) -> Result<(), ()> {
        match request {
            None => self.pass(false).await.map_err(|error| self.failed(&error)),
            // Who asked may have gone; that is no reason to fail.
            Some(Request::Build(answer)) => {
                let outcome = self.pass(true).await;
                let told = outcome.as_ref().map(|_| ()).map_err(|error| self.failed(error));
                let _ = answer.send(outcome);
                told
            }
            Some(Request::Audit(span, answer)) => {
                let outcome = self.audit_span(span).await;
                let told = outcome.as_ref().map(|_| ()).map_err(|error| self.failed(error));
                let _ = answer.send(outcome);
                told
            }
        }
    }

    fn failed(&self, error: &RollupError) {
        let text = chain(error);
        let mut status = self.shared.status.lock();
        if let RollupError::ClickHouse { rollup, .. } = error {
            status.of_mut(*rollup).failures += 1;
        }
        if status.last_error.as_ref() != Some(&text) {
            tracing::warn!(error = text, "a computed table could not be brought up to date, trying again");
            status.last_error = Some(text);
        }
    }

    /// Builds and compares what is new; with `is_whole`, hours that are not over, too. One table that fails does not hold
    /// up the others.
    async fn pass(&mut self, is_whole: bool) -> Result<(), RollupError> {
        self.load().await.map_err(of(Rollup::Minutes))?;
        let Positions { committed, audited } = (self.positions)();
        self.shared.status.lock().committed_seq = committed;
        let minutes = self.minutes(committed).await;
        let latest = self.build_through(Rollup::Latest, committed, MAX_RECORDS).await;
        let hours = self.hours(is_whole).await;
        // As long as a pause, so that a backlog of ranges to compare does not hold up those to build.
        let until = (!is_whole).then(|| Instant::now() + self.options.every);
        let audit = self.audit_new(audited, until).await;
        self.publish(committed);
        minutes.and(latest).and(hours).and(audit)
    }

    /// Each time, because other servers build, too.
    async fn load(&mut self) -> Result<(), ClickHouseError> {
        let found = progress::load(self.builder.clickhouse(), self.builder.journal(), &self.coverage).await?;
        for (rollup, found) in found {
            // A replica that is behind must not take anything back.
            let known = self.progress.entry(rollup).or_default();
            known.through = known.through.max(found.through);
            known.planned = known.planned.max(found.planned);
            known.audited = known.audited.max(found.audited);
            known.built_at = known.built_at.max(found.built_at);
        }
        Ok(())
    }

    fn of(&self, rollup: Rollup) -> Progress {
        self.progress.get(&rollup).copied().unwrap_or_default()
    }

    async fn minutes(&mut self, committed: Seq) -> Result<(), RollupError> {
        self.skip_what_is_gone(committed).await.map_err(of(Rollup::Minutes))?;
        let mut hours = Ok(());
        while let Some(range) = plan::next(self.of(Rollup::Minutes), committed, MAX_RECORDS) {
            if self.shared.is_stopping() {
                break;
            }
            self.build(Rollup::Minutes, range).await?;
            self.waiting_ranges += 1;
            if self.waiting_ranges >= MAX_WAITING_RANGES {
                hours = hours.and(self.hours(true).await);
            }
            self.publish(committed);
        }
        hours
    }

    /// A journal that is older than these tables begins where its heartbeats do: those before were dropped long ago. Hours
    /// begin at 1 all the same: they are merged of whatever minutes there are, and must not begin within a range of these.
    async fn skip_what_is_gone(&mut self, committed: Seq) -> Result<(), ClickHouseError> {
        const OF_HEARTBEATS: [Rollup; 3] = [Rollup::Minutes, Rollup::DeviceHours, Rollup::Latest];
        let is_new = |task: &Self, rollup| task.of(rollup).planned == 0 && task.of(rollup).through == 0;
        if committed <= MAX_RECORDS || !OF_HEARTBEATS.into_iter().any(|rollup| is_new(self, rollup)) {
            return Ok(());
        }
        let Some(first) = self.builder.first_seq().await? else { return Ok(()) };
        for rollup in OF_HEARTBEATS {
            if is_new(self, rollup) && first > 1 {
                self.save(rollup, Progress { through: first - 1, planned: first - 1, ..self.of(rollup) }).await?;
            }
        }
        Ok(())
    }

    async fn hours(&mut self, is_whole: bool) -> Result<(), RollupError> {
        let every = self.options.every.saturating_mul(PASSES_OF_HOURS);
        let is_due = |progress: Progress| plan::is_due(progress.built_at, UnixMillis::now().as_millis(), every);
        // They end where a range of minutes ends, because hours are merged from whole ranges.
        let ready = self.of(Rollup::Minutes).through;
        let are_many = self.waiting_ranges >= MAX_WAITING_RANGES;
        if is_whole || are_many {
            // Also when they fail: minutes are not to wait for them again with each range.
            self.waiting_ranges = 0;
        }
        let mut outcome = Ok(());
        for (rollup, at_most) in [(Rollup::Hours, Seq::MAX), (Rollup::DeviceHours, MAX_DEVICE_RECORDS)] {
            if is_whole || are_many || is_due(self.of(rollup)) {
                outcome = outcome.and(self.build_through(rollup, ready, at_most).await);
            }
        }
        outcome
    }

    async fn build_through(&mut self, rollup: Rollup, ready: Seq, at_most: u64) -> Result<(), RollupError> {
        while let Some(range) = plan::next(self.of(rollup), ready, at_most) {
            if self.shared.is_stopping() {
                break;
            }
            self.build(rollup, range).await?;
        }
        Ok(())
    }

    /// Plans, builds, records, and only then lets questions know.
    async fn build(&mut self, rollup: Rollup, range: Range) -> Result<(), RollupError> {
        self.try_build(rollup, range).await.map_err(of(rollup))
    }

    async fn try_build(&mut self, rollup: Rollup, range: Range) -> Result<(), ClickHouseError> {
        let mut progress = self.of(rollup);
        let mut generation = 0;
        if progress.planned < range.last {
            progress.planned = range.last;
            // device_latest keeps no ranges, so whatever is built there twice does no harm.
            if rollup != Rollup::Latest {
                self.save(rollup, progress).await?;
            }
        } else if rollup != Rollup::Latest {
            let present = self.builder.ranges(rollup, range).await?;
            let newest = present.iter().filter(|one| one.first == range.first).map(|one| one.newest).max();
            generation = newest.max(self.attempted.get(&rollup).copied()).map_or(0, |newest| newest.saturating_add(1));
        }
        self.attempted.insert(rollup, generation);
        self.builder.build(rollup, range, generation).await?;
        (progress.through, progress.built_at) = (range.last, UnixMillis::now().as_millis());
        self.save(rollup, progress).await?;
        self.attempted.remove(&rollup);
        self.coverage.advance(rollup, self.builder.journal(), range.last);
        self.shared.status.lock().of_mut(rollup).ranges += 1;
        Ok(())
    }

    async fn save(&mut self, rollup: Rollup, progress: Progress) -> Result<(), ClickHouseError> {
        progress::save(self.builder.clickhouse(), self.builder.journal(), rollup, progress).await?;
        self.progress.insert(rollup, progress);
        Ok(())
    }

    /// Compares the ranges that the writer has counted by now: one of each table, and more until `until`.
    async fn audit_new(&mut self, counted: Seq, until: Option<Instant>) -> Result<(), RollupError> {
        for rollup in [Rollup::Minutes, Rollup::Hours, Rollup::DeviceHours] {
            // Hours are compared with minutes, so after them.
            let compared = if rollup == Rollup::Hours { self.of(Rollup::Minutes).audited } else { counted };
            let Progress { through, audited, .. } = self.of(rollup);
            let limit = through.min(compared);
            if limit <= audited {
                continue;
            }
            let mut differed = Vec::new();
            let within = Range { first: audited + 1, last: limit };
            let outcome = self.audit_range(rollup, within, until, &mut differed).await;
            if rollup == Rollup::Minutes {
                for range in differed {
                    self.audit_all(range).await?;
                }
            }
            outcome?;
        }
        Ok(())
    }

    /// Compares what a table has within a range, as far as ranges end in it, and moves on what was audited.
    async fn audit_range(
        &mut self,
        rollup: Rollup,
        within: Range,
        until: Option<Instant>,
        differed: &mut Vec<Range>,
    ) -> Result<(), RollupError> {
        let subjects = self.audit().subjects(rollup, within).await.map_err(of(rollup))?;
        let mut is_whole = true;
        for (at, subject) in subjects.into_iter().enumerate() {
            // One each time, or nothing would ever be compared where a pause is short.
            let is_late = at > 0 && until.is_some_and(|until| Instant::now() >= until);
            if is_late || self.shared.is_stopping() || subject.range.last > within.last {
                is_whole = false;
                break;
            }
            let report = self.audit().examine(rollup, subject).await.map_err(of(rollup))?;
            if self.count(rollup, report) {
                differed.push(subject.range);
            }
            let progress = Progress { audited: subject.range.last, ..self.of(rollup) };
            self.save(rollup, progress).await.map_err(of(rollup))?;
        }
        if is_whole {
            let progress = Progress { audited: within.last, ..self.of(rollup) };
            self.save(rollup, progress).await.map_err(of(rollup))?;
        }
        Ok(())
    }

    /// Compares whatever was computed of the heartbeats of a range, and of those that are in one hour with them: an hour is
    /// merged from its minutes, so these have to be right before.
    async fn audit_all(&mut self, range: Range) -> Result<AuditReport, RollupError> {
        let mut whole = range;
        for rollup in [Rollup::Hours, Rollup::Minutes] {
            let present = self.builder.ranges(rollup, whole).await.map_err(of(rollup))?;
            for one in present {
                whole = Range { first: whole.first.min(one.first), last: whole.last.max(one.last) };
            }
        }
        let mut report = AuditReport::default();
        for rollup in Rollup::ALL {
            report.add(self.audit_covered(rollup, whole).await?);
        }
        Ok(report)
    }

    /// Compares all of a table that touches a range, as far as it was built.
    async fn audit_covered(&mut self, rollup: Rollup, range: Range) -> Result<AuditReport, RollupError> {
        let mut report = AuditReport::default();
        let last = range.last.min(self.of(rollup).through);
        if range.first > last {
            return Ok(report);
        }
        let within = Range { first: range.first, last };
        for subject in self.audit().subjects(rollup, within).await.map_err(of(rollup))? {
            let found = self.audit().examine(rollup, subject).await.map_err(of(rollup))?;
            self.count(rollup, found);
            report.add(found);
        }
        Ok(report)
    }

    async fn audit_span(&mut self, span: AuditSpan) -> Result<AuditReport, RollupError> {
        self.load().await.map_err(of(Rollup::Minutes))?;
        let range = match span {
            AuditSpan::Seqs { first, last } => Some(Range { first: first.max(1), last }),
            AuditSpan::Time { from, until } => {
                let found = self.builder.seqs_of_time(from.as_millis(), until.as_millis()).await;
                found.map_err(of(Rollup::Minutes))?
            }
        };
        let Some(range) = range else { return Ok(AuditReport::default()) };
        // What the writer has not counted may be incomplete, and is compared once it was.
        let range = Range { last: range.last.min((self.positions)().audited), ..range };
        if range.first > range.last {
            return Ok(AuditReport::default());
        }
        let report = self.audit_all(range).await?;
        self.publish((self.positions)().committed);
        Ok(report)
    }

    fn audit(&self) -> Audit<'_> {
        Audit { builder: &self.builder, retention: self.options.retention }
    }

    /// Whether something differed.
    fn count(&self, rollup: Rollup, report: AuditReport) -> bool {
        let mut status = self.shared.status.lock();
        let table = status.of_mut(rollup);
        table.audits += report.compared;
        table.repairs += report.repaired;
        table.failures += report.unrepaired;
        report.repaired + report.unrepaired > 0
    }

    fn publish(&self, committed: Seq) {
        let mut status = self.shared.status.lock();
        for rollup in Rollup::ALL {
            let Progress { through, audited, .. } = self.of(rollup);
            let table = status.of_mut(rollup);
            (table.through_seq, table.audited_seq) = (through, audited);
            table.lag_seqs = committed.saturating_sub(through);
        }
    }
}

fn of(rollup: Rollup) -> impl Fn(ClickHouseError) -> RollupError {
    move |source| RollupError::ClickHouse { rollup, source }
}

/// Between seven and nine eighths, so that servers on one ClickHouse do not all build at the same moment.
fn jittered(every: Duration) -> Duration {
    let random = getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX));
    every.mul_f64(0.875 + random / 4.0)
}
