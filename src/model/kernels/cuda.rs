//! What there is of CUDA on this machine. Never panics: CubeCL itself would, without a driver, without NVRTC or without
//! the toolkit's headers.

use std::path::Path;

use cudarc::driver::{result, sys};
use cudarc::nvrtc;

use crate::model::engine::cuda::{Driver, Found, Gpu, HEADERS};

/// Looks for driver, compiler, headers and GPU `number`. With `keep` the GPU's context stays open for what comes next;
/// else nothing stays on the GPU.
pub fn find(number: usize, keep: bool) -> Found {
    let toolkit = cubecl::cuda::install::cuda_path();
    if let Some(toolkit) = &toolkit {
        load_nvrtc(toolkit);
    }
    let there = |header: &&str| {
        let below = |folder: &str| {
            let path = toolkit.as_ref().map(|path| path.join(folder).join(header));
            path.is_some_and(|path| path.exists())
        };
        below("include") || below("include/cccl")
    };
    let driver = driver();
    let count = match driver {
        Driver::Supports(_) => result::device::get_count().unwrap_or(0),
        _ => 0,
    };
    let count = usize::try_from(count).unwrap_or(0);
    Found {
        driver,
        nvrtc: nvrtc_version(),
        missing_headers: HEADERS.iter().copied().filter(|h| !there(h)).collect(),
        toolkit,
        count,
        gpu: (number < count).then(|| gpu(number, keep)),
    }
}

fn driver() -> Driver {
    // SAFETY: only tries to open a shared library and calls nothing in it.
    if !unsafe { sys::is_culib_present() } {
        return Driver::Missing;
    }
    if let Err(error) = result::init() {
        return Driver::Broken(format!("{:?}", error.0));
    }
    let mut version = 0;
    // SAFETY: the driver was started; it writes one number.
    match unsafe { sys::cuDriverGetVersion(&mut version) }.result() {
        Ok(()) => Driver::Supports(version),
        Err(error) => Driver::Broken(format!("{:?}", error.0)),
    }
}

/// Opens the toolkit's own NVRTC, so that one that is in no place the loader looks in is found by its name afterwards.
fn load_nvrtc(toolkit: &Path) {
    for folder in ["lib", "lib64", "targets/x86_64-linux/lib"] {
        let Ok(files) = std::fs::read_dir(toolkit.join(folder)) else {
            continue;
        };
        for file in files.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if name.starts_with("libnvrtc.so") {
                // SAFETY: NVIDIA's library has no initialisation that touches this process's state. It is never closed.
                if let Ok(library) = unsafe { libloading::Library::new(file.path()) } {
                    std::mem::forget(library);
                    return;
                }
            }
        }
    }
}

fn nvrtc_version() -> Option<i32> {
    // SAFETY: only tries to open a shared library and calls nothing in it.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        return None;
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there; it writes two numbers.
    let told = unsafe { nvrtc::sys::nvrtcVersion(&mut major, &mut minor) };
    told.result().ok()?;
    Some(major * 1000 + minor * 10)
}

fn gpu(number: usize, keep: bool) -> Gpu {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let opened = || {
        let device = result::device::get(number as i32)?;
        // SAFETY: `device` is one of the driver's.
        let [major, minor] =
            [MAJOR, MINOR].map(|a| unsafe { result::device::get_attribute(device, a) });
        Ok((result::device::get_name(device)?, (major?, minor?)))
    };
    let named: Result<_, result::DriverError> = opened();
    let (name, compute) = named.unwrap_or_else(|_| (format!("GPU {number}"), (0, 0)));
    Gpu {
        name,
        compute,
        memory: memory_of(number, keep),
    }
}

/// Free and all memory of a GPU in bytes.
pub fn memory(number: usize) -> Result<(u64, u64), String> {
    memory_of(number, false)
}

fn memory_of(number: usize, keep: bool) -> Result<(u64, u64), String> {
    let asked = || {
        let device = result::device::get(number as i32)?;
        // SAFETY: the context is the GPU's primary one, which CubeCL uses too. What is retained here is released here, or
        // kept until the process ends.
        unsafe {
            let context = result::primary_ctx::retain(device)?;
            let told = result::ctx::set_current(context).and_then(|()| result::mem_get_info());
            if !keep {
                result::primary_ctx::release(device)?;
            }
            told
        }
    };
    let (free, all) = asked().map_err(|error: result::DriverError| format!("{:?}", error.0))?;
    Ok((free as u64, all as u64))
}
