//! Which device computes.

use std::str::FromStr;

use super::error::ModelError;

/// The device as the user names it: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// A GPU where there is one, else the CPU.
    #[default]
    Auto,
    /// All cores of this machine.
    Cpu,
    /// The NVIDIA GPU with this number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("{text:?} is not a device; use auto, cpu, cuda or cuda:N")),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// A device that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(usize),
}

impl Engine {
    /// Finds the device.
    pub fn open(choice: DeviceChoice) -> Result<Self, ModelError> {
        match choice {
            DeviceChoice::Cpu => Ok(Self::Cpu),
            DeviceChoice::Auto => Ok(Self::cuda(0).unwrap_or(Self::Cpu)),
            DeviceChoice::Cuda(number) => Self::cuda(number).map_err(|reason| ModelError::Device {
                device: choice.to_string(),
                reason,
            }),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_number: usize) -> Result<Self, String> {
        Err("this build has no GPU support (build with --features cuda)".into())
    }

    #[cfg(feature = "cuda")]
    fn cuda(number: usize) -> Result<Self, String> {
        let devices = super::kernels::cuda::device_count()?;
        if number < devices {
            Ok(Self::Cuda(number))
        } else {
            Err(format!("there are {devices} GPUs, numbered from 0"))
        }
    }

    /// Name for people and for `/info/`.
    pub fn name(self) -> String {
        match self {
            Self::Cpu => "cpu".into(),
            #[cfg(feature = "cuda")]
            Self::Cuda(number) => format!("cuda:{number}"),
        }
    }
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
        }
    };
}
pub(crate) use on_engine;

/// The device that `choice` would use here, or why it cannot be used.
pub fn probe_device(choice: DeviceChoice) -> Result<String, ModelError> {
    Engine::open(choice).map(Engine::name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        assert!("gpu".parse::<DeviceChoice>().is_err());
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
    }

    #[test]
    fn the_cpu_is_always_there() {
        assert!(probe_device(DeviceChoice::Cpu).is_ok());
        assert!(probe_device(DeviceChoice::Auto).is_ok());
    }
}
