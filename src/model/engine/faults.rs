//! What a GPU says when it fails.
//!
//! CubeCL panics where memory runs out: on the thread that serves the device, which goes on, and sometimes on the calling
//! one. The next read then tells only that something is missing. Here the panics' texts are kept instead of printed, and
//! become the reason of an error.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::{Mutex, Once, PoisonError};

use super::memory::Failure;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// The first panics since the watch began.
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// More say nothing new.
const MOST_TOLD: usize = 2;
/// Longest reason, in characters; backtraces and kernels' sources follow after it.
const LONGEST: usize = 300;

/// Runs `work`, whose device errors come as text and whose panics are device errors too.
///
/// # Errors
/// [`Failure::Device`] with what the device said.
pub fn watch<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if WATCHED.get() || on_device_thread() {
                keep(info);
            } else {
                before(info);
            }
        }));
    });
    told().clear();
    let outer = WATCHED.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    WATCHED.set(outer);
    match outcome {
        Ok(Err(Failure::Device(reason))) => Err(Failure::Device(with_told(reason))),
        Ok(other) => other,
        Err(_) => Err(Failure::Device(with_told(String::new()))),
    }
}

/// CubeCL names the threads of its devices so.
fn on_device_thread() -> bool {
    std::thread::current()
        .name()
        .is_some_and(|name| name.starts_with("DSD-") || name.starts_with("DSU-"))
}

fn keep(info: &PanicHookInfo) {
    let payload = info.payload();
    let text = payload.downcast_ref::<String>().cloned().or_else(|| {
        payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
    });
    let mut told = told();
    if told.len() < MOST_TOLD {
        told.extend(text);
    }
}

fn told() -> std::sync::MutexGuard<'static, Vec<String>> {
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with_told(reason: String) -> String {
    let mut told = std::mem::take(&mut *told());
    told.push(reason);
    let short: Vec<String> = told.iter().map(|text| shortened(text)).collect();
    let parts: Vec<&str> = short.iter().map(String::as_str).collect();
    let known: Vec<&str> = parts.into_iter().filter(|text| !text.is_empty()).collect();
    let text = match known.is_empty() {
        true => "it stopped without a reason".to_owned(),
        false => known.join("; "),
    };
    let lower = text.to_lowercase();
    if [
        "buffertoobig",
        "out of memory",
        "outofmemory",
        "out_of_memory",
    ]
    .iter()
    .any(|word| lower.contains(word))
    {
        return format!("its memory is full ({text})");
    }
    text
}

/// The first lines of a text, without what debuggers want.
fn shortened(text: &str) -> String {
    let text = text.split("Backtrace").next().unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_reasons() {
        let told = watch::<()>(|| {
            panic!("called `Result::unwrap()` on an `Err` value: BufferTooBig {{ size: 7 }}")
        });
        let Err(Failure::Device(told)) = told else {
            panic!("{told:?}");
        };
        assert!(
            told.starts_with("its memory is full") && told.contains("size: 7"),
            "{told}"
        );
        assert!(watch(|| Ok::<_, Failure>(3)).is_ok());
        let told = watch::<()>(|| Err(Failure::Device("a read failed\nBacktrace:\n1".into())));
        assert!(matches!(told, Err(Failure::Device(told)) if told == "a read failed"));
    }
}
