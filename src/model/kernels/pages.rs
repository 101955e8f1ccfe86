//! When the allocator gives memory back to the system.
//!
//! A page that comes fresh from the system is cleared first, by one thread, while the others wait: in a training step, where
//! every operation makes large tensors, that took a third of the time. On the other hand a network that was packed for inference
//! leaves its own weights behind as free memory that nobody asks for again.

use std::ffi::{c_int, c_long};
use std::sync::{Mutex, PoisonError};

// The crate is named so that its library is linked wherever this one is.
use mimalloc as _;

unsafe extern "C" {
    fn mi_collect(force: bool);
    fn mi_option_get(option: c_int) -> c_long;
    fn mi_option_set(option: c_int, value: c_long);
}

/// `mi_option_purge_delay`: milliseconds until free memory goes back to the system; never when negative.
const PURGE_DELAY: c_int = 15;
const NEVER: c_long = -1;

/// How many [`KeepPages`] there are, and the delay before the first of them.
static KEPT: Mutex<(usize, c_long)> = Mutex::new((0, 0));

/// As long as one exists, free memory stays with the process; then it goes back.
pub struct KeepPages(());

impl KeepPages {
    /// From now on.
    #[allow(clippy::new_without_default)] // it does something
    pub fn new() -> Self {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.0 == 0 {
            // SAFETY: the option exists in every version 3 of the allocator; reading and setting it is atomic.
            unsafe {
                kept.1 = mi_option_get(PURGE_DELAY);
                mi_option_set(PURGE_DELAY, NEVER);
            }
        }
        kept.0 += 1;
        Self(())
    }
}

impl Drop for KeepPages {
    fn drop(&mut self) {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.0 -= 1;
        if kept.0 == 0 {
            // SAFETY: as above; collecting frees nothing that is in use.
            unsafe {
                mi_option_set(PURGE_DELAY, kept.1);
                mi_collect(true);
            }
        }
    }
}

/// Gives free memory back to the system now.
pub fn give_back() {
    // SAFETY: collecting frees nothing that is in use.
    unsafe { mi_collect(true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_is_as_before_afterwards() {
        let delay = || unsafe { mi_option_get(PURGE_DELAY) };
        let before = {
            let _all = (KeepPages::new(), KeepPages::new());
            assert_eq!(delay(), NEVER);
            KEPT.lock().unwrap().1
        };
        // The allocator's own default, which shows that this is the option that is meant.
        assert_eq!(before, 1000);
    }
}
