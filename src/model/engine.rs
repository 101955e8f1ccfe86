//! Which device computes.
//!
//! | file | what it knows |
//! |---|---|
//! | `cuda`, `vulkan` | what a GPU needs here, and what to say when it is not there |
//! | `memory` | how much fits at once |
//! | `faults` | what a device that fails says |
//! | `cache` | where compiled kernels stay |

pub(in crate::model) mod cache;
#[cfg(any(test, feature = "cuda"))]
pub(in crate::model) mod cuda;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(in crate::model) mod faults;
#[cfg(any(test, feature = "cuda", feature = "vulkan"))]
pub(in crate::model) mod memory;
#[cfg(any(test, feature = "vulkan"))]
pub(in crate::model) mod vulkan;

use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::ModelError;

/// The device as the user names it: `auto`, `cpu`, `cuda`, `cuda:N`, `vulkan` or `vulkan:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// An NVIDIA GPU where there is one, else the CPU.
    #[default]
    Auto,
    /// All cores of this machine.
    Cpu,
    /// The NVIDIA GPU with this number.
    Cuda(usize),
    /// The Vulkan device with this number; without one the best, hardware before software.
    Vulkan(Option<usize>),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |prefix: &str| text.strip_prefix(prefix).and_then(|n| n.parse().ok());
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "vulkan" => Ok(Self::Vulkan(None)),
            _ => None
                .or(number("cuda:").map(Self::Cuda))
                .or(number("vulkan:").map(|n| Self::Vulkan(Some(n))))
                .ok_or_else(|| {
                    format!(
                        "{text:?} is not a device; use auto, cpu, cuda, cuda:N, vulkan or vulkan:N"
                    )
                }),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Vulkan(None) => f.write_str("vulkan"),
            Self::Vulkan(Some(number)) => write!(f, "vulkan:{number}"),
        }
    }
}

/// A device that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(usize),
    #[cfg(feature = "vulkan")]
    Vulkan(vulkan::Chosen),
}

/// What [`Engine::open`] did.
#[derive(Clone)]
pub(crate) struct Opened {
    pub engine: Engine,
    /// For people: what it is.
    pub name: String,
    /// Why it is not the GPU, where `auto` looked for one.
    pub no_gpu: Option<String>,
}

impl Engine {
    /// Finds the device.
    pub fn open(choice: DeviceChoice) -> Result<Self, ModelError> {
        Self::find(choice, true).map(|opened| opened.engine)
    }

    /// Finds the device, and says what it is. With `keep` it is about to be used.
    pub fn find(choice: DeviceChoice, keep: bool) -> Result<Opened, ModelError> {
        if keep && let Some(opened) = in_use(choice) {
            return Ok(opened);
        }
        let cpu = |no_gpu| Opened {
            engine: Self::Cpu,
            name: "cpu".into(),
            no_gpu,
        };
        let found = match choice {
            DeviceChoice::Cpu => return Ok(cpu(None)),
            DeviceChoice::Auto => match Self::cuda(0, keep) {
                Ok(opened) => Ok(opened),
                // A build without GPU support has no other choice; there is nothing to tell.
                Err(_) if !cfg!(feature = "cuda") => return Ok(cpu(None)),
                Err(reason) => return Ok(cpu(Some(reason))),
            },
            DeviceChoice::Cuda(number) => Self::cuda(number, keep),
            DeviceChoice::Vulkan(number) => Self::vulkan(number),
        };
        let opened = found.map_err(|reason| ModelError::Device {
            device: choice.to_string(),
            reason,
        })?;
        if keep {
            cache::apply(&opened.name);
            lock().push((choice, opened.clone()));
        }
        Ok(opened)
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_number: usize, _keep: bool) -> Result<Opened, String> {
        Err("this build has no support for NVIDIA GPUs (build with --features cuda)".into())
    }

    #[cfg(feature = "cuda")]
    fn cuda(number: usize, keep: bool) -> Result<Opened, String> {
        let found = super::kernels::cuda::find(number, keep);
        let gpu = found.usable(number)?;
        Ok(Opened {
            engine: Self::Cuda(number),
            name: format!(
                "cuda:{number} ({}, compute capability {}.{}, CUDA {})",
                gpu.name,
                gpu.compute.0,
                gpu.compute.1,
                found.nvrtc.unwrap_or(0) / 1000
            ),
            no_gpu: None,
        })
    }

    #[cfg(not(feature = "vulkan"))]
    fn vulkan(_number: Option<usize>) -> Result<Opened, String> {
        Err("this build has no support for Vulkan (build with --features vulkan)".into())
    }

    #[cfg(feature = "vulkan")]
    fn vulkan(number: Option<usize>) -> Result<Opened, String> {
        let adapters = super::kernels::vulkan::find();
        let chosen = vulkan::choose(&adapters, number)?;
        let name = adapters
            .get(chosen.number)
            .map_or("", |adapter| adapter.name.as_str());
        Ok(Opened {
            engine: Self::Vulkan(chosen),
            name: format!("vulkan:{} ({name})", chosen.number),
            no_gpu: None,
        })
    }

    /// Name for people and for `/info/`.
    pub fn name(self) -> String {
        match self {
            Self::Cpu => "cpu".into(),
            #[cfg(feature = "cuda")]
            Self::Cuda(number) => format!("cuda:{number}"),
            #[cfg(feature = "vulkan")]
            Self::Vulkan(chosen) => format!("vulkan:{}", chosen.number),
        }
    }

    /// Runs `work`; what a GPU says that fails is the error, instead of a panic.
    pub fn watched<T>(self, work: impl FnOnce() -> T) -> Result<T, String> {
        match self {
            Self::Cpu => Ok(work()),
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            _ => faults::watch(|| Ok(work())).map_err(|failure| match failure {
                memory::Failure::Device(reason) => reason,
                memory::Failure::Other(error) => error.to_string(),
            }),
        }
    }

    /// [`Engine::watched`] for work that has errors of its own.
    pub fn guarded<T>(self, work: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
        self.watched(work).unwrap_or_else(|reason| {
            Err(ModelError::Compute {
                device: self.name(),
                reason,
            })
        })
    }

    /// Memory of the device that nobody uses, in bytes; `None` where the system does not tell.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub fn free_bytes(self) -> Option<u64> {
        match self {
            Self::Cpu => memory::available_bytes(),
            #[cfg(feature = "cuda")]
            Self::Cuda(number) => super::kernels::cuda::memory(number)
                .ok()
                .map(|(free, _)| free),
            #[cfg(feature = "vulkan")]
            Self::Vulkan(chosen) => match chosen.kind {
                vulkan::Kind::Software | vulkan::Kind::Integrated => memory::available_bytes(),
                _ => None,
            },
        }
    }
}

/// The GPUs that this process computes on, as they were chosen. They are not looked at again: what they lack in free memory
/// may be what this process itself holds ready.
static IN_USE: Mutex<Vec<(DeviceChoice, Opened)>> = Mutex::new(Vec::new());

fn lock() -> MutexGuard<'static, Vec<(DeviceChoice, Opened)>> {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn in_use(choice: DeviceChoice) -> Option<Opened> {
    let known = lock();
    let (_, opened) = known.iter().find(|(known, _)| *known == choice)?;
    Some(opened.clone())
}

/// Runs an expression with `$B` as the engine's backend and `$device` as its device.
macro_rules! on_engine {
    ($engine:expr, |$B:ident, $device:ident| $body:expr) => {
        match $engine {
            $crate::model::engine::Engine::Cpu => {
                type $B = burn_flex::Flex;
                let $device = Default::default();
                $body
            }
            #[cfg(feature = "cuda")]
            $crate::model::engine::Engine::Cuda(number) => {
                type $B = burn::backend::Cuda;
                let $device = burn::backend::cuda::CudaDevice::new(number);
                $body
            }
            #[cfg(feature = "vulkan")]
            $crate::model::engine::Engine::Vulkan(chosen) => {
                type $B = burn::backend::Vulkan;
                let $device = $crate::model::kernels::vulkan::device(chosen);
                $body
            }
        }
    };
}
pub(crate) use on_engine;

/// The device that `choice` uses here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Short name, such as `cuda:0`.
    pub name: String,
    /// What it is, such as `cuda:0 (NVIDIA H200, compute capability 9.0, CUDA 13)`.
    pub description: String,
    /// Why `auto` took the CPU in a build for GPUs, with what to do.
    pub no_gpu: Option<String>,
}

impl DeviceInfo {
    /// What to tell the user, if there is anything that was not asked for by name.
    pub fn note(&self) -> Option<String> {
        match &self.no_gpu {
            Some(reason) => Some(format!("computing on the CPU: {reason}")),
            None if self.name == "cpu" => None,
            None => Some(format!("computing on {}", self.description)),
        }
    }
}

/// The device that `choice` would use here, or why it cannot be used.
///
/// # Errors
/// The device that was asked for is not there, or something that it needs: the text says what to install.
pub fn probe_device(choice: DeviceChoice) -> Result<DeviceInfo, ModelError> {
    let opened = Engine::find(choice, true)?;
    Ok(DeviceInfo {
        name: opened.engine.name(),
        description: opened.name,
        no_gpu: opened.no_gpu,
    })
}

/// Whether another process could use the device here; nothing of it stays open in this one.
///
/// # Errors
/// As [`probe_device`].
pub fn check_device(choice: DeviceChoice) -> Result<(), ModelError> {
    Engine::find(choice, false).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        for name in ["auto", "cpu", "cuda:3", "vulkan", "vulkan:1"] {
            let choice: DeviceChoice = name.parse().unwrap();
            assert_eq!(choice.to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for name in ["gpu", "cuda:x", "vulkan:-1", "cuda0"] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name}");
        }
    }

    #[test]
    fn the_cpu_is_always_there() {
        assert_eq!(probe_device(DeviceChoice::Cpu).unwrap().name, "cpu");
        let auto = probe_device(DeviceChoice::Auto).unwrap();
        assert!(!auto.name.starts_with("vulkan"), "{auto:?}");
        // A build for GPUs says why it did not take one.
        let on_cpu = auto.name == "cpu";
        assert_eq!(auto.note().is_some(), !on_cpu || cfg!(feature = "cuda"));
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_says_what_to_do() {
        for (name, hint) in [("cuda:99", "cuda"), ("vulkan:99", "vulkan")] {
            let told = probe_device(name.parse().unwrap()).unwrap_err().to_string();
            assert!(
                told.contains(hint) && told.contains("--device cpu"),
                "{told}"
            );
        }
    }
}
