//! What NVIDIA GPUs need besides the kernels.

/// CUDA devices that can be used here, or why none can. Never panics: CubeCL itself would, without a driver, without
/// NVRTC or without the toolkit's headers.
pub fn device_count() -> Result<usize, String> {
    use cudarc::{driver, nvrtc};
    // SAFETY: both functions only try to open a shared library and call nothing in it.
    let (driver_there, nvrtc_there) = unsafe {
        (
            driver::sys::is_culib_present(),
            nvrtc::sys::is_culib_present(),
        )
    };
    if !driver_there {
        return Err("there is no NVIDIA driver (libcuda.so)".into());
    }
    if !nvrtc_there {
        return Err("there is no NVRTC (libnvrtc.so); install the CUDA runtime".into());
    }
    driver::result::init().map_err(|e| format!("the CUDA driver does not start: {e:?}"))?;
    let count = driver::result::device::get_count().map_err(|e| format!("{e:?}"))?;
    let headers = cubecl::cuda::install::cuda_path()
        .is_some_and(|path| path.join("include/cuda_runtime.h").exists());
    if !headers {
        return Err("the CUDA headers are missing; set CUDA_PATH to the toolkit".into());
    }
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("the driver sees no GPU".into()),
    }
}
