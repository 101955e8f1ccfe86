//! What the server says about itself: log lines, request ids, and the last lines kept for `/logs/`.
//!
//! Log lines never carry request bodies, image ids, file names or query strings: an image id is
//! often a patient's name. Requests are logged by route template, status and duration, and are
//! joined to a client's report by the request id.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// Lines that the ring keeps; `/logs/` can show no more than this.
const RING_LINES: usize = 2_000;
/// A longer line is cut, so that the ring's memory is bounded.
const RING_LINE_BYTES: usize = 4_096;

tokio::task_local! {
    static REQUEST_ID: String;
}

/// How log lines are written to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// The last log lines, in memory. Cheap to clone; clones share the lines.
#[derive(Clone, Debug, Default)]
pub struct LogRing(Arc<Mutex<VecDeque<String>>>);

impl LogRing {
    /// The newest `count` lines, oldest first; all that are kept for `None`.
    pub fn tail(&self, count: Option<usize>) -> String {
        let lines = self.lines();
        let skip = count.map_or(0, |count| lines.len().saturating_sub(count));
        lines
            .iter()
            .skip(skip)
            .flat_map(|line| [line.as_str(), "\n"])
            .collect()
    }

    fn push(&self, text: &str) {
        let mut lines = self.lines();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if lines.len() == RING_LINES {
                lines.pop_front();
            }
            lines.push_back(line[..line.floor_char_boundary(RING_LINE_BYTES)].to_owned());
        }
    }

    fn lines(&self) -> MutexGuard<'_, VecDeque<String>> {
        // A panic while the lock was held leaves whole lines behind, so the ring stays usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Collects one event and hands it to the ring when dropped, so that an event is one push.
pub struct RingWriter {
    ring: LogRing,
    event: Vec<u8>,
}

impl Write for RingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.event.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for RingWriter {
    fn drop(&mut self) {
        self.ring.push(&String::from_utf8_lossy(&self.event));
    }
}

impl<'a> MakeWriter<'a> for LogRing {
    type Writer = RingWriter;

    fn make_writer(&'a self) -> RingWriter {
        RingWriter {
            ring: self.clone(),
            event: Vec::new(),
        }
    }
}

/// Starts logging to standard error and to the returned ring.
///
/// `filter` has the syntax of `RUST_LOG`, for example `info` or `fewlabel=debug`; a directive that
/// cannot be read is left out.
///
/// # Errors
/// When this process already has a subscriber.
pub fn init(format: LogFormat, filter: &str) -> Result<LogRing, TryInitError> {
    let ring = LogRing::default();
    let registry = tracing_subscriber::registry()
        .with(EnvFilter::new(filter))
        .with(
            tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_writer(ring.clone()),
        );
    match format {
        LogFormat::Text => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_ansi(io::stderr().is_terminal())
                    .with_writer(io::stderr),
            )
            .try_init()?,
        LogFormat::Json => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(io::stderr),
            )
            .try_init()?,
    }
    Ok(ring)
}

/// Runs `work` as part of the request `id`; [`request_id`] gives that id inside.
pub async fn within_request<F: Future>(id: String, work: F) -> F::Output {
    REQUEST_ID.scope(id, work).await
}

/// The id of the request that is being answered, if any.
pub fn request_id() -> Option<String> {
    REQUEST_ID.try_with(Clone::clone).ok()
}

/// The id a client sent when it is safe to repeat (1 to 64 of `[A-Za-z0-9._-]`), else a new one.
pub fn accept_request_id(sent: Option<&str>) -> String {
    let safe = |id: &&str| {
        (1..=64).contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    sent.filter(safe)
        .map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}

/// The most memory that this process has held so far (peak resident set), in bytes; `None` where the system does not tell.
pub fn peak_memory_bytes() -> Option<u64> {
    memory_bytes("VmHWM:")
}

/// The memory that this process holds now (resident set), in bytes; `None` where the system does not tell.
pub fn resident_memory_bytes() -> Option<u64> {
    memory_bytes("VmRSS:")
}

fn memory_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_keeps_the_newest_lines_and_cuts_long_ones() {
        let ring = LogRing::default();
        for number in 0..RING_LINES + 5 {
            writeln!(ring.make_writer(), "line {number}").unwrap();
        }
        assert_eq!(ring.tail(Some(2)), "line 2003\nline 2004\n");
        assert!(ring.tail(None).starts_with("line 5\n"));
        ring.push(&"é".repeat(RING_LINE_BYTES));
        assert_eq!(ring.tail(Some(1)).len(), RING_LINE_BYTES + 1);
    }

    #[test]
    fn only_safe_request_ids_are_repeated() {
        assert_eq!(accept_request_id(Some("abc-1.2_Z")), "abc-1.2_Z");
        for sent in ["", "a b", "a\"b", &"x".repeat(65)] {
            assert_ne!(accept_request_id(Some(sent)), sent);
        }
    }

    #[tokio::test]
    async fn the_request_id_is_known_inside_only() {
        assert_eq!(
            within_request("r1".into(), async { request_id() }).await,
            Some("r1".into())
        );
        assert_eq!(request_id(), None);
    }
}
