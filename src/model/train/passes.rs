//! How a step's patches go through the network: in which precision, and how many at once.
//!
//! # Several GPUs
//! A run computes on one GPU. The pinned Burn (0.21) offers data-parallel training in two ways that are not used here:
//! `burn-train`'s `MultiDevice` and `DistributedDataParallel`, which bring their own training loop, and all-reduce
//! (`burn-collective` between threads, NCCL below it on CUDA). The seam is [`Passes::gradients`]: it deals a step's patches
//! in parts and adds their gradients up. With several GPUs a part would go to each device's copy of the network, and
//! `GradientsParams` of all copies be averaged there before the one optimiser step; batch normalisation would see each
//! part for itself, as it does when parts go one after the other.

use burn::backend::Autodiff;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Tensor, backend::Backend};

use crate::model::engine::Engine;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::model::engine::memory::{Need, to_be_had};
use crate::model::error::ModelError;
use crate::model::kernels::Kernels;
use crate::model::pct_net::{Mode, PctNet, PctNetConfig};
use crate::model::precision::{Precision, PrecisionChoice};
use crate::model::weights::to_f32;

/// How passes are computed.
pub(in crate::model) struct Passes {
    engine: Engine,
    precision: Precision,
    /// Patches that go through the network together.
    at_once: usize,
    /// Whether that number was taken back once.
    #[cfg_attr(not(any(feature = "cuda", feature = "vulkan")), allow(dead_code))]
    smaller: bool,
}

impl Passes {
    /// Passes of `batch` patches `[d, h, w]`, or of as many as the free memory of a GPU holds.
    ///
    /// # Errors
    /// The device does not train in this precision; not even one patch fits into its memory.
    #[cfg_attr(
        not(any(feature = "cuda", feature = "vulkan")),
        allow(unused_variables)
    )] // the CPU has one way
    pub fn plan<B: Kernels>(
        engine: Engine,
        choice: PrecisionChoice,
        net: &PctNet<Autodiff<B>>,
        config: &PctNetConfig,
        patch: [usize; 3],
        batch: usize,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        let precision = match choice {
            PrecisionChoice::Auto => Precision::F32,
            PrecisionChoice::Fixed(precision) => precision,
        };
        if precision == Precision::F16 {
            let reason =
                "training is in f32 or bf16: small gradients would vanish in f16".to_owned();
            return Err(ModelError::Precision(reason));
        }
        let whole = Self {
            engine,
            precision,
            at_once: batch,
            smaller: false,
        };
        match engine {
            Engine::Cpu if precision == Precision::F32 => Ok(whole),
            Engine::Cpu => Err(ModelError::Precision(
                "training on the CPU is in f32; bf16 is for GPUs".into(),
            )),
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            _ => {
                crate::model::infer::gpu_precision::<B>(PrecisionChoice::Fixed(precision), device)?;
                let free = to_be_had::<B>(engine, device);
                let parameters = net.num_params();
                let fits =
                    |patch| Need::step(config, patch, precision, parameters).fitting(free, batch);
                let at_once = fits(patch).map_err(|needed| {
                    let smaller = smaller_patches(config, patch).find(|patch| fits(*patch).is_ok());
                    let advice = smaller.map_or_else(String::new, |patch| {
                        format!("; a patch of {patch:?} voxels would fit")
                    });
                    ModelError::Compute {
                        device: engine.name(),
                        reason: format!(
                            "a training step on one patch of {patch:?} voxels needs some {} MB of its memory, {} are free{advice}",
                            needed >> 20,
                            free.unwrap_or(0) >> 20
                        ),
                    }
                })?;
                if at_once < batch {
                    tracing::warn!(
                        "{at_once} of a step's {batch} patches at once: more do not fit into the memory of {}",
                        engine.name()
                    );
                }
                Ok(Self { at_once, ..whole })
            }
        }
    }

    /// Logits of all scales, in float32.
    pub fn forward<B: Kernels>(
        &self,
        net: &PctNet<B>,
        input: Tensor<B, 5>,
        mode: Mode,
    ) -> [Tensor<B, 5>; 4] {
        match self.precision {
            Precision::F32 => net.forward(input, mode),
            precision => net.forward_in(input, mode, precision),
        }
    }

    /// The mean loss of a step's samples and its gradients; none when the loss is not finite. `loss_of` is asked for as many
    /// samples as go through the network together. With fewer than all, batch normalisation sees each part for itself.
    pub fn gradients<B: Kernels, S>(
        &self,
        net: &PctNet<Autodiff<B>>,
        samples: &[S],
        loss_of: impl Fn(&[S]) -> Tensor<Autodiff<B>, 1>,
    ) -> (f32, Option<GradientsParams>) {
        if samples.len() <= self.at_once {
            let loss = loss_of(samples);
            let value = scalar(&loss);
            let grads = value
                .is_finite()
                .then(|| GradientsParams::from_grads(loss.backward(), net));
            return (value, grads);
        }
        let (mut sum, mut accumulator) = (0.0, GradientsAccumulator::new());
        for part in samples.chunks(self.at_once) {
            let loss = loss_of(part) * (part.len() as f64 / samples.len() as f64);
            let value = scalar(&loss);
            if !value.is_finite() {
                return (value, None);
            }
            sum += value;
            let grads = GradientsParams::from_grads(loss.backward(), net);
            accumulator.accumulate(net, grads);
        }
        (sum, Some(accumulator.grads()))
    }

    /// Runs a step; the error is what a GPU says that fails.
    pub fn watched<T>(&self, step: impl FnOnce() -> T) -> Result<T, String> {
        self.engine.watched(step)
    }

    /// Halves the number of patches at once after a failure, the first time.
    ///
    /// # Errors
    /// It was halved before, or is one.
    pub fn shrink(&mut self, reason: &str) -> Result<(), ModelError> {
        if self.smaller || self.at_once <= 1 {
            return self.give_up(reason);
        }
        self.smaller = true;
        self.at_once = self.at_once.div_ceil(2);
        tracing::warn!(
            "{} failed ({reason}); going on with {} patches at once",
            self.engine.name(),
            self.at_once
        );
        Ok(())
    }

    /// The error of a GPU that failed.
    pub fn give_up(&self, reason: &str) -> Result<(), ModelError> {
        Err(ModelError::Compute {
            device: self.engine.name(),
            reason: reason.to_owned(),
        })
    }

    /// What the weights depend on, beside the options that are named: nothing in float32.
    pub fn identity(&self) -> Option<Precision> {
        (self.precision != Precision::F32).then_some(self.precision)
    }
}

/// Ever smaller patches that the network takes, the largest side halved each time.
#[cfg(any(test, feature = "cuda", feature = "vulkan"))]
fn smaller_patches(
    config: &PctNetConfig,
    patch: [usize; 3],
) -> impl Iterator<Item = [usize; 3]> + '_ {
    let halved = |patch: &[usize; 3]| {
        let axis = (0..3).max_by_key(|&axis| patch[axis])?;
        let mut next = *patch;
        next[axis] /= 2;
        (next[axis] > 0).then_some(next)
    };
    std::iter::successors(halved(&patch), halved).filter(|patch| config.check_patch(*patch).is_ok())
}

/// The value of a loss.
pub(in crate::model) fn scalar<B: Backend>(loss: &Tensor<B, 1>) -> f32 {
    to_f32(loss.clone().into_data())
        .first()
        .copied()
        .unwrap_or(f32::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use burn_flex::Flex;

    type A = Autodiff<Flex>;

    #[test]
    fn parts_of_a_step_add_up() {
        let config = PctNetConfig::pct_net_s(2, PctNetConfig::SMALL_PATCH, 1);
        let device = Default::default();
        let net = PctNet::<A>::new(&config, 1, &device).unwrap();
        let plan = |batch| {
            let choice = PrecisionChoice::Auto;
            let size = PctNetConfig::SMALL_PATCH;
            Passes::plan::<Flex>(Engine::Cpu, choice, &net, &config, size, batch, &device).unwrap()
        };
        let loss_of = |part: &[f32]| {
            let [d, h, w] = PctNetConfig::SMALL_PATCH;
            let values: Vec<f32> = part
                .iter()
                .flat_map(|scale| (0..d * h * w).map(move |n| scale * (n % 11) as f32 / 11.0))
                .collect();
            let data = TensorData::new(values, [part.len(), 1, d, h, w]);
            let input = Tensor::<A, 5>::from_data(data, &device);
            // Running statistics: the parts do not see each other's values.
            let [finest, ..] = net.forward(input, Mode::Eval);
            (finest.clone() * finest).mean()
        };
        let samples = [1.0, -2.0, 0.5];
        let (whole, grads) = plan(3).gradients::<Flex, _>(&net, &samples, loss_of);
        let norm = super::super::gradients::norm(&net, &grads.unwrap());
        let (parts, grads) = plan(2).gradients::<Flex, _>(&net, &samples, loss_of);
        let norm_of_parts = super::super::gradients::norm(&net, &grads.unwrap());
        assert!(
            (whole - parts).abs() < 1e-5 * whole.abs(),
            "{whole} {parts}"
        );
        assert!(
            (norm - norm_of_parts).abs() < 1e-3 * norm,
            "{norm} {norm_of_parts}"
        );
    }

    #[test]
    fn smaller_patches_are_found() {
        let config = PctNetConfig::pct_net_s(2, [64, 128, 128], 1);
        let found: Vec<_> = smaller_patches(&config, [64, 128, 128]).take(3).collect();
        assert!(found.len() == 3 && found.iter().all(|p| config.check_patch(*p).is_ok()));
        assert!(found[2].iter().product::<usize>() * 4 <= 64 * 128 * 128);
    }

    #[test]
    fn less_is_tried_once() {
        let mut passes = Passes {
            engine: Engine::Cpu,
            precision: Precision::F32,
            at_once: 4,
            smaller: false,
        };
        passes.shrink("its memory is full").unwrap();
        assert_eq!(passes.at_once, 2);
        let told = passes.shrink("its memory is full").unwrap_err().to_string();
        assert!(
            told.contains("its memory is full") && told.contains("--batch"),
            "{told}"
        );
    }
}
