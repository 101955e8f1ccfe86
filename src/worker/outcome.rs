//! How a job ends.

use serde_json::Value;

use crate::imaging::ImagingError;

/// Why a job ended without a result.
pub enum Failure {
    /// It was stopped, or its lease was lost.
    Stopped,
    /// The image cannot be used.
    Image(ImagingError),
    /// What was asked for cannot be done with this image, and why: the client's matter.
    Refused(String),
    /// What to tell the client.
    Error(String),
}

/// Whether the words of an error, or of a panic, say that memory ran out. The libraries below have no type for it.
pub fn is_out_of_memory(text: &str) -> bool {
    let text = text.to_ascii_lowercase().replace(['_', '-'], " ");
    [
        "out of memory",
        "outofmemory",
        "memory allocation",
        "cannot allocate memory",
        "memory is full",
        "too little memory",
    ]
    .iter()
    .any(|words| text.contains(words))
}

/// The words of a panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.to_string())
    }
}

/// What a job gives.
pub type Outcome = Result<Value, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_errors_are_known_by_their_words() {
        for text in [
            "CUDA_ERROR_OUT_OF_MEMORY",
            "memory allocation of 8589934592 bytes failed",
            "Out of memory: can't allocate buffer",
            "device cuda:0 failed: its memory is full (BufferTooBig)",
            "device cuda:0 failed: it has too little memory: this scan needs some 900 MB, 800 are free",
        ] {
            assert!(is_out_of_memory(text), "{text}");
        }
        assert!(!is_out_of_memory("index out of bounds: the len is 3"));
        let panic: Box<dyn std::any::Any + Send> = Box::new("out of memory".to_owned());
        assert!(is_out_of_memory(&panic_text(&*panic)));
    }
}
