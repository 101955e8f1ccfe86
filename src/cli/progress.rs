//! Progress of long commands: a bar with the time left on a terminal, plain lines elsewhere. Always on standard error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Pause between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress of one task.
pub struct Progress {
    bar: Option<ProgressBar>,
    what: String,
    started: Instant,
    /// Steps that were done before it started.
    before: usize,
    last_line: Option<Instant>,
}

impl Progress {
    /// A task of `total` steps.
    pub fn new(what: &str, total: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64);
            let style =
                ProgressStyle::with_template("{prefix} [{bar:32}] {pos}/{len} {msg} ({eta} left)");
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.set_prefix(what.to_owned());
            bar
        });
        Self {
            bar,
            what: what.to_owned(),
            started: Instant::now(),
            before: 0,
            last_line: None,
        }
    }

    /// The task goes on after `done` steps that were made earlier and say nothing about its speed.
    pub fn resume(&mut self, done: usize) {
        (self.started, self.before) = (Instant::now(), done);
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
            bar.reset_eta();
        }
        self.note(&format!("going on after step {done}"));
    }

    /// `done` of `total` steps are done.
    pub fn set(&mut self, done: usize, total: usize, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(message.to_owned());
            return;
        }
        let due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if due || done == total {
            self.last_line = Some(Instant::now());
            let left_s = self.started.elapsed().as_secs_f64()
                / done.saturating_sub(self.before).max(1) as f64
                * (total - done.min(total)) as f64;
            line(&format!(
                "{} {done}/{total} {message} ({left_s:.0} s left)",
                self.what
            ));
        }
    }

    /// A line that stays.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => line(text),
        }
    }
}

/// Writes a line; nobody reading it is no reason to stop the work.
fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
