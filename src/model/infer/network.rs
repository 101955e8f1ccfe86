//! A network in the form that answers fastest on its device.

use std::sync::{Mutex, PoisonError};

use crate::model::engine::Engine;
use crate::model::error::ModelError;
use crate::model::kernels::Kernels;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::model::pct_net::ReadyNet;
use crate::model::pct_net::{PctNet, PctNetConfig, Plan, precision_on_cpu};
use crate::model::precision::{Precision, PrecisionChoice};

/// A network on a device.
pub(in crate::model) enum Network {
    /// One patch after the other; the host blends.
    Patches(Box<dyn Forward + Send>),
    /// Whole scans: everything between the prepared scan and the labels happens on the device.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    Volumes(Box<dyn super::on_device::Volumes>),
}

impl Network {
    /// The network about one window after the other, on any device.
    pub fn by_windows(&self) -> &dyn Forward {
        match self {
            Self::Patches(net) => &**net,
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            Self::Volumes(net) => &**net,
        }
    }
}

/// The network, patch by patch.
pub(in crate::model) trait Forward {
    /// Logits `[classes, d, h, w]` of one patch `[channels, d, h, w]` of the model's size.
    fn logits(&self, patch: Vec<f32>) -> Vec<f32>;
}

/// The precision of a plan on the CPU.
///
/// # Errors
/// The processor does not compute in it.
pub(in crate::model) fn cpu_precision(choice: PrecisionChoice) -> Result<Precision, ModelError> {
    precision_on_cpu(choice).map_err(ModelError::Precision)
}

/// The precision of inference on a GPU: the one that was asked for, float32 else.
///
/// # Errors
/// The device does not compute in it.
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(in crate::model) fn gpu_precision<B: Kernels>(
    choice: PrecisionChoice,
    device: &B::Device,
) -> Result<Precision, ModelError> {
    let precision = match choice {
        PrecisionChoice::Auto => Precision::F32,
        PrecisionChoice::Fixed(precision) => precision,
    };
    if B::supports_dtype(device, precision.dtype()) {
        return Ok(precision);
    }
    let usable: Vec<String> = [Precision::F32, Precision::Bf16, Precision::F16]
        .into_iter()
        .filter(|other| B::supports_dtype(device, other.dtype()))
        .map(|other| other.to_string())
        .collect();
    Err(ModelError::Precision(format!(
        "this GPU does not compute in {precision}; it does in {}",
        usable.join(", ")
    )))
}

/// The network on the CPU, made ready for one patch size.
struct Planned(Mutex<Plan>);

impl Forward for Planned {
    fn logits(&self, patch: Vec<f32>) -> Vec<f32> {
        // A plan holds no state between runs, so one that a panic interrupted is as good as new.
        let mut plan = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        plan.run(&patch).to_vec()
    }
}

/// The network on a GPU, for one patch size.
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(super) struct NetworkOn<B: Kernels> {
    pub net: ReadyNet<B>,
    pub device: B::Device,
    /// `[d, h, w]` of every patch.
    pub patch: [usize; 3],
}

#[cfg(any(feature = "cuda", feature = "vulkan"))]
impl<B: Kernels> Forward for NetworkOn<B> {
    fn logits(&self, patch: Vec<f32>) -> Vec<f32> {
        use burn::tensor::{Tensor, TensorData};
        let [d, h, w] = self.patch;
        let channels = patch.len() / (d * h * w);
        let data = TensorData::new(patch, [1, channels, d, h, w]);
        let input = Tensor::<B, 5>::from_data(data, &self.device);
        let logits = self.net.forward(input).cast(burn::tensor::DType::F32);
        crate::model::weights::to_f32(logits.into_data())
    }
}

/// A network that is asked about single patches: a plan on the CPU, layers made ready on a GPU.
///
/// # Errors
/// The device does not compute in this precision.
#[cfg_attr(
    not(any(feature = "cuda", feature = "vulkan")),
    allow(unused_variables)
)] // a plan has no device
pub(super) fn by_patches<B: Kernels + 'static>(
    engine: Engine,
    net: PctNet<B>,
    config: &PctNetConfig,
    patch: [usize; 3],
    precision: PrecisionChoice,
    device: B::Device,
) -> Result<Box<dyn Forward + Send>, ModelError> {
    Ok(match engine {
        Engine::Cpu => {
            let plan = Plan::new(&net, config.in_chns, patch, cpu_precision(precision)?);
            Box::new(Planned(Mutex::new(plan)))
        }
        #[cfg(any(feature = "cuda", feature = "vulkan"))]
        _ => {
            let precision = gpu_precision::<B>(precision, &device)?;
            Box::new(NetworkOn {
                net: ReadyNet::new(&net, config.in_chns, patch, precision),
                device,
                patch,
            })
        }
    })
}

/// A network in the form that answers fastest: a plan on the CPU, whole scans at once on a GPU.
///
/// # Errors
/// The device does not compute in this precision.
pub(in crate::model) fn ready<B: Kernels + 'static>(
    engine: Engine,
    net: PctNet<B>,
    config: &PctNetConfig,
    patch: [usize; 3],
    precision: PrecisionChoice,
    device: B::Device,
) -> Result<Network, ModelError> {
    Ok(match engine {
        Engine::Cpu => Network::Patches(by_patches(engine, net, config, patch, precision, device)?),
        #[cfg(any(feature = "cuda", feature = "vulkan"))]
        _ => {
            let precision = gpu_precision::<B>(precision, &device)?;
            let on = NetworkOn {
                net: ReadyNet::new(&net, config.in_chns, patch, precision),
                device,
                patch,
            };
            let net = super::on_device::OnDevice::new(engine, on, config, precision);
            Network::Volumes(Box::new(net))
        }
    })
}
