//! What a person sees while the fleet works: one bar on a terminal, nothing in a pipe.
use std::io::IsTerminal;
use std::time::Duration;

use fleetd_loadtest::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The bar of the phase that is under way.
pub(crate) struct Display {
    bar: ProgressBar,
    is_shown: bool,
    acknowledged_before: u64,
    elapsed_before: Duration,
}

impl Display {
    /// Shows something only if it is wanted and standard error is a terminal.
    pub(crate) fn new(is_wanted: bool) -> Self {
        let is_shown = is_wanted && std::io::stderr().is_terminal();
        Self { bar: ProgressBar::hidden(), is_shown, acknowledged_before: 0, elapsed_before: Duration::ZERO }
    }

    pub(crate) fn begin_registering(&mut self, devices: usize) {
        self.begin(devices as u64, "registering  {bar:30} {pos}/{len} devices");
    }

    pub(crate) fn registered(&self, devices: usize) {
        self.bar.set_position(devices as u64);
    }

    pub(crate) fn begin_heartbeats(&mut self, total: Duration) {
        self.begin(total.as_millis() as u64, "heartbeats   {bar:30} {msg}");
    }

    pub(crate) fn heartbeats(&mut self, progress: &Progress) {
        if !self.is_shown {
            return;
        }
        let since = progress.elapsed.saturating_sub(self.elapsed_before).as_secs_f64();
        let rate = (progress.acknowledged - self.acknowledged_before) as f64 / since.max(0.001);
        (self.acknowledged_before, self.elapsed_before) = (progress.acknowledged, progress.elapsed);
        let seconds = progress.elapsed.as_secs();
        self.bar.set_position(progress.elapsed.as_millis() as u64);
        self.bar.set_message(format!(
            "{seconds} s  {rate:.0}/s  {} acknowledged, {} not",
            progress.acknowledged, progress.failed
        ));
    }

    pub(crate) fn begin_verifying(&mut self, heartbeats: u64) {
        self.begin(heartbeats, "verifying    {spinner} {len} heartbeats in ClickHouse");
        if self.is_shown {
            self.bar.enable_steady_tick(Duration::from_millis(120));
        }
    }

    /// Takes the bar away; what comes next on the terminal starts on a clean line.
    pub(crate) fn end(&mut self) {
        self.bar.finish_and_clear();
    }

    fn begin(&mut self, length: u64, template: &str) {
        self.end();
        if self.is_shown {
            self.bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
            // Falls back to the plain style only if a template above is malformed.
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style);
            }
        }
    }
}
