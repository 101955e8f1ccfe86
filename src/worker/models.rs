//! Models on the device, and what is done when they do not fit.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::outcome::{Failure, is_out_of_memory, panic_text};
use crate::model::{DeviceChoice, PrecisionChoice, Segmenter};
use crate::rounds::registry::ModelVersion;

/// The live version, and another one that somebody looks at.
const MOST: usize = 2;

/// The sliding window of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    /// As the manifest says.
    Whole,
    /// With half the sides, where the network takes that.
    Smaller,
}

impl Window {
    /// For a job that workers took so often.
    pub fn of_attempt(attempts: i64) -> Self {
        match attempts {
            ..=1 => Self::Whole,
            _ => Self::Smaller,
        }
    }
}

/// Models on the device; those used last stay.
#[derive(Default)]
pub(super) struct Models {
    /// Used last first.
    loaded: Vec<Loaded>,
}

struct Loaded {
    weights_sha256: String,
    window: Window,
    segmenter: Segmenter,
}

impl Models {
    /// The model of a version.
    pub fn get(
        &mut self,
        version: &ModelVersion,
        window: Window,
        device: DeviceChoice,
        precision: PrecisionChoice,
    ) -> Result<&Segmenter, Failure> {
        let is_it = |loaded: &Loaded| {
            loaded.weights_sha256 == version.weights_sha256 && loaded.window == window
        };
        let loaded = match self.loaded.iter().position(is_it) {
            Some(index) => self.loaded.remove(index),
            None => {
                // Room first: both may not fit beside the new one.
                self.loaded.truncate(MOST - 1);
                let dir = &version.dir;
                let smaller = match window {
                    Window::Whole => None,
                    Window::Smaller => Segmenter::load_smaller(dir, device, precision)?,
                };
                let segmenter = match smaller {
                    Some(segmenter) => segmenter,
                    None => Segmenter::load(dir, device, precision)?,
                };
                Loaded {
                    weights_sha256: version.weights_sha256.clone(),
                    window,
                    segmenter,
                }
            }
        };
        self.loaded.insert(0, loaded);
        let newest = self.loaded.first();
        let newest = newest.ok_or_else(|| Failure::Error("no model is loaded".to_owned()))?;
        Ok(&newest.segmenter)
    }

    /// Takes in a model that is on the device already.
    pub fn put(&mut self, version: &ModelVersion, segmenter: Segmenter) {
        self.loaded.truncate(MOST - 1);
        let loaded = Loaded {
            weights_sha256: version.weights_sha256.clone(),
            window: Window::Whole,
            segmenter,
        };
        self.loaded.insert(0, loaded);
    }
}

/// Does `work` with a window; when memory runs out in it, once more with a smaller one.
pub(super) fn shrinking<T>(
    window: Window,
    mut work: impl FnMut(Window) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut tried = |window| {
        catch_unwind(AssertUnwindSafe(|| work(window))).unwrap_or_else(|panic| {
            match panic_text(&*panic) {
                text if is_out_of_memory(&text) => Err(Failure::Error(text)),
                _ => std::panic::resume_unwind(panic),
            }
        })
    };
    let ran_out =
        |failure: &Failure| matches!(failure, Failure::Error(text) if is_out_of_memory(text));
    match tried(window) {
        Err(failure) if window == Window::Whole && ran_out(&failure) => {
            tracing::warn!("there was too little memory; once more with a smaller window");
            tried(Window::Smaller)
        }
        outcome => outcome,
    }
    .map_err(|failure| match failure {
        Failure::Error(text) if is_out_of_memory(&text) => Failure::Error(format!(
            "there is too little memory on this device for the image, also with a smaller window ({text}); nothing was \
             changed. Free memory, or serve a smaller model"
        )),
        failure => failure,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was tried, and the outcome, when the first `bad` attempts run out of memory.
    fn run(bad: usize, panics: bool) -> (Vec<Window>, Result<(), String>) {
        let mut tried = Vec::new();
        let outcome = shrinking(Window::Whole, |window| {
            tried.push(window);
            match tried.len() <= bad {
                true if panics => panic!("CUDA_ERROR_OUT_OF_MEMORY"),
                true => Err(Failure::Error("out of memory".to_owned())),
                false => Ok(()),
            }
        });
        let outcome = outcome.map_err(|failure| match failure {
            Failure::Error(text) => text,
            _ => String::new(),
        });
        (tried, outcome)
    }

    #[test]
    fn once_more_with_a_smaller_window_and_then_a_plain_error() {
        use Window::{Smaller, Whole};
        for panics in [false, true] {
            assert_eq!(run(0, panics), (vec![Whole], Ok(())));
            assert_eq!(run(1, panics), (vec![Whole, Smaller], Ok(())));
            let (tried, outcome) = run(2, panics);
            assert_eq!(tried, [Whole, Smaller]);
            assert!(outcome.unwrap_err().contains("too little memory"));
        }
    }

    #[test]
    fn other_failures_are_not_repeated() {
        let mut tried = 0;
        let outcome = shrinking(Window::Whole, |_| {
            tried += 1;
            Err::<(), _>(Failure::Error("no such file".to_owned()))
        });
        assert!(matches!(outcome, Err(Failure::Error(text)) if text == "no such file"));
        assert_eq!(tried, 1);
    }
}
