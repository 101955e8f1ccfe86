//! What every command that computes does with the device it was given.

use std::path::PathBuf;

use crate::model::{DeviceChoice, DeviceInfo, keep_kernels_in, probe_device};

/// Finds the device, says on standard error what it is where that was left open, and keeps compiled kernels in the
/// user's cache folder.
///
/// # Errors
/// The device is not there; the text says what to install.
pub fn announce(choice: DeviceChoice) -> anyhow::Result<DeviceInfo> {
    if let Some(folder) = cache_folder() {
        keep_kernels_in(&folder);
    }
    let device = probe_device(choice)?;
    if let Some(note) = device.note() {
        eprintln!("{note}");
    }
    Ok(device)
}

/// `$XDG_CACHE_HOME/fewlabel/kernels`, or the same below `~/.cache`.
fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let base = folder("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| Some(folder("HOME")?.join(".cache")))?;
    Some(base.join("fewlabel").join("kernels"))
}
