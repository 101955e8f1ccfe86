//! What an NVIDIA GPU needs on this machine, and what to install when it is not there.
//!
//! CubeCL compiles its kernels when they are first used: besides the driver it needs NVIDIA's compiler NVRTC and the
//! headers of the toolkit. Without them it panics, so everything is looked at first. What was found is plain data; what
//! follows from it is a pure function, tested without a GPU.

use std::path::PathBuf;

/// How NVRTC and the headers come onto a machine without root rights and without a toolkit.
const WHEELS: &str = "install the CUDA toolkit, or, without root rights: python3 -m pip install nvidia-cuda-nvrtc \
    nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cuda-crt; then set CUDA_PATH to the folder nvidia/cu13 in its \
    site-packages";
/// Oldest driver, as the CUDA version that it supports, times 1000.
const OLDEST_DRIVER: i32 = 12_000;
/// Oldest compute capability: half precision and its matrix products begin there.
const OLDEST_COMPUTE: (i32, i32) = (7, 0);
/// The network's weights, its workspace and CUDA's own memory do not fit into less.
pub const LEAST_FREE_BYTES: u64 = 1 << 30;
/// What CubeCL's sources include, below `include` or `include/cccl`.
pub const HEADERS: [&str; 7] = [
    "cuda_runtime.h",
    "cuda_fp16.h",
    "cuda_bf16.h",
    "mma.h",
    "crt/mma.h",
    "cooperative_groups.h",
    "cuda/barrier",
];

/// The driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Driver {
    /// `libcuda` is not there.
    Missing,
    /// It is there, but does not start.
    Broken(String),
    /// The CUDA version that it supports: 1000 times the major, 10 times the minor number.
    Supports(i32),
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// As the driver calls it.
    pub name: String,
    /// Compute capability.
    pub compute: (i32, i32),
    /// Free and all memory in bytes, or why the GPU cannot be opened.
    pub memory: Result<(u64, u64), String>,
}

/// What was found of CUDA on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The driver.
    pub driver: Driver,
    /// NVRTC's version, 1000 times the major, 10 times the minor number.
    pub nvrtc: Option<i32>,
    /// Where headers were looked for.
    pub toolkit: Option<PathBuf>,
    /// Which of [`HEADERS`] are not there.
    pub missing_headers: Vec<&'static str>,
    /// The GPUs that the driver shows.
    pub count: usize,
    /// The one that was asked for, if it is there.
    pub gpu: Option<Gpu>,
}

impl Found {
    /// The GPU `number`, if everything that it needs is there; else what is missing and what to do.
    pub fn usable(&self, number: usize) -> Result<&Gpu, String> {
        let supported = match &self.driver {
            Driver::Missing => {
                return Err(
                    "there is no NVIDIA driver (libcuda.so is not found); install the driver of your GPU \
                     (nvidia-smi shows it), in a container start it with its GPUs (--gpus all)"
                        .into(),
                );
            }
            Driver::Broken(reason) => {
                return Err(format!(
                    "the NVIDIA driver does not start ({reason}); see what nvidia-smi says, in a container start it \
                     with its GPUs (--gpus all)"
                ));
            }
            Driver::Supports(version) => *version,
        };
        if supported < OLDEST_DRIVER {
            return Err(format!(
                "the NVIDIA driver is too old: it supports CUDA {}, {} is needed; install a newer driver (580 or later)",
                version(supported),
                version(OLDEST_DRIVER)
            ));
        }
        if self.count == 0 {
            return Err(
                "the NVIDIA driver shows no GPU; see nvidia-smi and the variable CUDA_VISIBLE_DEVICES"
                    .into(),
            );
        }
        let Some(gpu) = &self.gpu else {
            return Err(format!(
                "there is no GPU {number}; there are {}, numbered from 0",
                self.count
            ));
        };
        let (major, minor) = gpu.compute;
        if gpu.compute < OLDEST_COMPUTE {
            return Err(format!(
                "{} is too old: its compute capability is {major}.{minor}, 7.0 is needed",
                gpu.name
            ));
        }
        let Some(nvrtc) = self.nvrtc else {
            return Err(format!(
                "there is no NVRTC (libnvrtc.so), which compiles the kernels; {WHEELS}"
            ));
        };
        if nvrtc > supported {
            return Err(format!(
                "the NVIDIA driver is too old for this NVRTC: it supports CUDA {}, NVRTC is of {}; install a newer \
                 driver (580 or later for CUDA 13), or set CUDA_PATH to a toolkit of CUDA {} or earlier",
                version(supported),
                version(nvrtc),
                version(supported)
            ));
        }
        match &self.toolkit {
            None => {
                return Err(format!(
                    "the CUDA headers are not found (CUDA_PATH is not set, and there is no /usr/local/cuda); {WHEELS}"
                ));
            }
            Some(path) if !self.missing_headers.is_empty() => {
                return Err(format!(
                    "CUDA headers are missing below {}: {}; {WHEELS}",
                    path.join("include").display(),
                    self.missing_headers.join(", ")
                ));
            }
            Some(_) => {}
        }
        match &gpu.memory {
            Err(reason) => Err(format!("{} cannot be opened: {reason}", gpu.name)),
            Ok((free, all)) if *free < LEAST_FREE_BYTES => Err(format!(
                "{} has no free memory: {} of {} MB are free, {} are needed; nvidia-smi shows who holds it",
                gpu.name,
                free >> 20,
                all >> 20,
                LEAST_FREE_BYTES >> 20
            )),
            Ok(_) => Ok(gpu),
        }
    }
}

/// A version as people write it.
fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Found {
        Found {
            driver: Driver::Supports(13_000),
            nvrtc: Some(13_000),
            toolkit: Some("/opt/cuda".into()),
            missing_headers: Vec::new(),
            count: 1,
            gpu: Some(Gpu {
                name: "NVIDIA H100".into(),
                compute: (9, 0),
                memory: Ok((70 << 30, 80 << 30)),
            }),
        }
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Found), words: &[&str]) {
        let mut found = complete();
        change(&mut found);
        let told = found.usable(0).unwrap_err();
        for word in words {
            assert!(told.contains(word), "{told:?} does not say {word:?}");
        }
    }

    #[test]
    fn everything_there_is_usable() {
        assert_eq!(complete().usable(0).unwrap().name, "NVIDIA H100");
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        refused(
            |f| f.driver = Driver::Missing,
            &["libcuda.so", "install the driver"],
        );
        refused(
            |f| f.driver = Driver::Broken("CUDA_ERROR_UNKNOWN".into()),
            &["CUDA_ERROR_UNKNOWN", "nvidia-smi"],
        );
        refused(
            |f| f.driver = Driver::Supports(11_040),
            &["too old", "11.4", "newer driver"],
        );
        refused(|f| f.count = 0, &["no GPU", "CUDA_VISIBLE_DEVICES"]);
        refused(
            |f| f.gpu = None,
            &["no GPU 0", "there are 1, numbered from 0"],
        );
        refused(
            |f| f.gpu.as_mut().unwrap().compute = (6, 1),
            &["NVIDIA H100", "6.1"],
        );
        refused(
            |f| f.nvrtc = None,
            &["libnvrtc.so", "nvidia-cuda-nvrtc", "CUDA_PATH"],
        );
        refused(
            |f| f.driver = Driver::Supports(12_080),
            &["too old for this NVRTC", "12.8", "13.0", "CUDA_PATH"],
        );
        refused(|f| f.toolkit = None, &["CUDA_PATH", "nvidia-cuda-crt"]);
        refused(
            |f| f.missing_headers = vec![HEADERS[4]],
            &["/opt/cuda/include", "crt/mma.h", "nvidia-cuda-crt"],
        );
        refused(
            |f| f.gpu.as_mut().unwrap().memory = Ok((200 << 20, 80 << 30)),
            &["200 of 81920 MB", "nvidia-smi"],
        );
        refused(
            |f| f.gpu.as_mut().unwrap().memory = Err("CUDA_ERROR_OUT_OF_MEMORY".into()),
            &["cannot be opened", "CUDA_ERROR_OUT_OF_MEMORY"],
        );
    }
}
