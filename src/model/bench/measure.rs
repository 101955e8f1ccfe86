//! Timed runs of the network: a patch, a training step, a whole scan.

use std::ops::ControlFlow;
use std::time::Instant;

use burn::backend::Autodiff;
use burn::optim::Optimizer;
use burn::tensor::{Tensor, TensorData, backend::Backend};

use crate::imaging::{Geometry, ImagingError, Volume};
use crate::model::engine::{DeviceChoice, Engine, on_engine};
use crate::model::error::ModelError;
use crate::model::infer::{Network, cpu_precision, ready, segment};
use crate::model::kernels::{
    Kernels,
    pages::{KeepPages, give_back},
};
use crate::model::loss::{Target, deep_supervised};
use crate::model::manifest::{Lineage, ModelDescription, Preprocessing};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::model::pct_net::ReadyNet;
use crate::model::pct_net::{DropoutStream, Mode, PctNet, PctNetConfig, Plan};
use crate::model::precision::{Precision, PrecisionChoice};
use crate::model::schema::LabelSchema;
use crate::model::train::{Passes, adam};
use crate::rng::Rng;

/// Voxel spacing that a whole scan is segmented at, `[z, y, x]`.
const MODEL_MM: [f64; 3] = [1.5; 3];
/// Voxel spacing of the scan itself.
const SCAN_MM: [f64; 3] = [1.5, 0.8, 0.8];

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Patches through the network in evaluation mode, finest scale.
    Forward,
    /// Forward with deep supervision, backward and one Adam step.
    TrainingStep,
    /// A scan of so many voxels `[z, y, x]`, from HU to labels on its grid.
    Volume([usize; 3]),
}

/// A measurement.
#[derive(Debug, Clone)]
pub struct Bench {
    /// The network; its weights are random.
    pub config: PctNetConfig,
    /// `[d, h, w]`.
    pub patch: [usize; 3],
    /// Patches of a forward pass or training step.
    pub batch: usize,
    /// Counted runs, after one that does not count.
    pub repeats: usize,
    /// Where.
    pub device: DeviceChoice,
    /// Numbers of activations.
    pub precision: PrecisionChoice,
}

/// What one run took.
#[derive(Debug, Clone)]
pub struct Run {
    /// Wall clock.
    pub seconds: f64,
    /// Processor time of all threads.
    pub busy_seconds: f64,
    /// Seconds by stage, of a whole scan.
    pub stages: Vec<(&'static str, f64)>,
}

/// What all runs took, and how much work one was.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The counted runs.
    pub runs: Vec<Run>,
    /// Precision that it was computed in.
    pub precision: Precision,
    /// Multiplications and additions of a run by the network's definition; a training step counts three times its forward pass.
    pub operations: f64,
    /// Bytes that its layers read and write once.
    pub bytes: f64,
    /// Least seconds of a run are the sum of its layers' on a machine with these limits; see [`Measured::bound_s`].
    layers: Vec<(f64, f64)>,
    /// How often a run computes the layers.
    times: f64,
    /// Windows of a whole scan that went through the network.
    pub windows: Option<usize>,
    /// Memory that was taken from the device, in bytes, where that is not the host's.
    pub device_bytes: Option<u64>,
}

impl Measured {
    /// The least seconds that a run could take: each layer's operations at the machine's peak, or its bytes at the
    /// machine's bandwidth.
    pub fn bound_s(&self, machine: &super::Machine) -> f64 {
        let layers = self.layers.iter();
        self.times
            * layers
                .map(|(operations, bytes)| machine.bound_s(*operations, *bytes))
                .sum::<f64>()
    }
}

impl Bench {
    /// Times each run of `work`.
    ///
    /// # Errors
    /// A patch that the network does not accept; a device that is not there, does not compute in this precision, or fails.
    pub fn measure(&self, work: Work) -> Result<Measured, ModelError> {
        self.config.validate()?;
        self.config.check_patch(self.patch)?;
        let engine = Engine::open(self.device)?;
        engine.guarded(|| {
            let mut measured = on_engine!(engine, |B, device| {
                let measured = match work {
                    Work::Forward => self.forward::<B>(engine, &device)?,
                    Work::TrainingStep => self.training_step::<B>(engine, &device)?,
                    Work::Volume(shape) => self.volume::<B>(engine, shape, &device)?,
                };
                let held = B::device_memory(&device).reserved;
                Measured {
                    device_bytes: (held > 0).then_some(held),
                    ..measured
                }
            });
            if measured.layers.is_empty() {
                // What ran had no plan at hand. This one comes after it, in memory that was given back.
                give_back();
                measured.layers = self.layers()?;
            }
            // Plans count float32; other activations and weights are half as long.
            let width = match measured.precision {
                Precision::F32 => 1.0,
                Precision::Bf16 | Precision::F16 => 0.5,
            };
            measured
                .layers
                .iter_mut()
                .for_each(|(_, bytes)| *bytes *= width);
            let times = measured.times;
            let sum = |part: fn(&(f64, f64)) -> f64| -> f64 {
                times * measured.layers.iter().map(part).sum::<f64>()
            };
            (measured.operations, measured.bytes) = (sum(|l| l.0), sum(|l| l.1));
            Ok(measured)
        })
    }

    /// Operations and bytes of each layer on one patch, in float32.
    fn layers(&self) -> Result<Vec<(f64, f64)>, ModelError> {
        let net = PctNet::<burn_flex::Flex>::new(&self.config, 1, &Default::default())?;
        let plan = Plan::new(&net, self.config.in_chns, self.patch, Precision::F32);
        Ok(bounds(&plan))
    }

    fn input<B: Backend>(&self, device: &B::Device) -> Tensor<B, 5> {
        let [d, h, w] = self.patch;
        let values = noise(self.batch * d * h * w);
        Tensor::from_data(TensorData::new(values, [self.batch, 1, d, h, w]), device)
    }

    fn forward<B: Kernels>(
        &self,
        engine: Engine,
        device: &B::Device,
    ) -> Result<Measured, ModelError> {
        let net = PctNet::<B>::new(&self.config, 1, device)?;
        let of = |precision, runs| Measured::of(runs, precision, self.batch as f64);
        match engine {
            Engine::Cpu => {
                let precision = cpu_precision(self.precision)?;
                let mut plan = Plan::new(&net, self.config.in_chns, self.patch, precision);
                drop(net);
                give_back();
                let input = noise(self.patch.iter().product());
                let runs = timed(self.repeats, || {
                    for _ in 0..self.batch {
                        plan.run(&input);
                    }
                    Ok(())
                })?;
                Ok(Measured {
                    layers: bounds(&plan),
                    ..of(precision, runs)
                })
            }
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            _ => {
                let precision = crate::model::infer::gpu_precision::<B>(self.precision, device)?;
                let ready = ReadyNet::new(&net, self.config.in_chns, self.patch, precision);
                let input = self.input::<B>(device).cast(precision.dtype());
                let runs = timed(self.repeats, || {
                    drop(ready.forward(input.clone()));
                    wait::<B>(engine, device)
                })?;
                Ok(of(precision, runs))
            }
        }
    }

    fn training_step<B: Kernels>(
        &self,
        engine: Engine,
        device: &B::Device,
    ) -> Result<Measured, ModelError> {
        let _pages = KeepPages::new();
        let first = PctNet::<Autodiff<B>>::new(&self.config, 1, device)?;
        // The CPU trains in float32 whatever inference is measured in.
        let precision = match self.precision {
            PrecisionChoice::Fixed(precision) if engine != Engine::Cpu => precision,
            _ => Precision::F32,
        };
        let passes = Passes::plan(
            engine,
            PrecisionChoice::Fixed(precision),
            &first,
            &self.config,
            self.patch,
            self.batch,
            device,
        )?;
        let mut net = Some(first);
        let mut optimiser = adam(1e-5).init();
        let input = self.input::<Autodiff<B>>(device);
        let mut rng = Rng::new(2);
        let voxels = self.batch * self.patch.iter().product::<usize>();
        let labels: Vec<u8> = (0..voxels)
            .map(|_| rng.below(self.config.class_num) as u8)
            .collect();
        let known = vec![vec![true; self.config.class_num]; self.batch];
        let target = Target::new(&labels, self.patch, &known, device);
        let runs = timed(self.repeats, || {
            if let Some(old) = net.take() {
                let dropout = DropoutStream::new(3);
                let (_, grads) = passes.gradients(&old, &[()], |_| {
                    let mode = Mode::Train(&dropout);
                    deep_supervised(&passes.forward(&old, input.clone(), mode), &target)
                });
                net = Some(match grads {
                    Some(grads) => optimiser.step(1e-3, old, grads),
                    None => old,
                });
            }
            wait::<B>(engine, device)
        })?;
        // The gradients for data and for weights are a forward pass each.
        Ok(Measured::of(runs, precision, 3.0 * self.batch as f64))
    }

    fn volume<B: Kernels + 'static>(
        &self,
        engine: Engine,
        shape: [usize; 3],
        device: &B::Device,
    ) -> Result<Measured, ModelError> {
        let names: Vec<String> = (1..self.config.class_num)
            .map(|class| format!("structure {class}"))
            .collect();
        let model = ModelDescription {
            name: "bench".into(),
            network: self.config.clone(),
            labels: LabelSchema::new(names)?,
            preprocessing: Preprocessing {
                spacing_mm: Some(MODEL_MM),
                ..Preprocessing::default()
            },
            patch: self.patch,
            clicks: None,
            trained: false,
            lineage: Lineage::made_by("bench"),
        };
        let precision = match engine {
            Engine::Cpu => cpu_precision(self.precision)?,
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            _ => crate::model::infer::gpu_precision::<B>(self.precision, device)?,
        };
        let net = PctNet::<B>::new(&self.config, 1, device)?;
        let fixed = PrecisionChoice::Fixed(precision);
        let net = ready(engine, net, &self.config, self.patch, fixed, device.clone())?;
        let run = |scan: &Volume<f32>, windows: &mut usize| -> Result<_, ModelError> {
            let result = segment(&net, &model, None, scan, &[], &mut |_, _| {
                ControlFlow::Continue(())
            })?;
            *windows = result.windows;
            Ok(result.timings)
        };
        // What is compiled or searched at the first use is so on two windows.
        let small = [0, 1, 2].map(|axis| {
            let side = self.patch[axis] as f64 * MODEL_MM[axis] / SCAN_MM[axis];
            if axis == 0 {
                (1.5 * side) as usize
            } else {
                side as usize
            }
        });
        let mut windows = 0;
        run(&body(small)?, &mut windows)?;
        let scan = body(shape)?;
        // A scan takes minutes on a CPU: once is enough.
        let repeats = match net {
            Network::Patches(_) => 1,
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            Network::Volumes(_) => self.repeats,
        };
        let runs: Result<Vec<Run>, ModelError> = (0..repeats)
            .map(|_| one(|| run(&scan, &mut windows)))
            .collect();
        Ok(Measured {
            windows: Some(windows),
            ..Measured::of(runs?, precision, windows as f64)
        })
    }
}

impl Measured {
    fn of(runs: Vec<Run>, precision: Precision, times: f64) -> Self {
        Self {
            runs,
            precision,
            operations: 0.0,
            bytes: 0.0,
            layers: Vec::new(),
            times,
            windows: None,
            device_bytes: None,
        }
    }
}

/// Operations and bytes of each of a plan's steps.
fn bounds(plan: &Plan) -> Vec<(f64, f64)> {
    let steps = plan.steps();
    steps.iter().map(|s| (s.operations, s.bytes)).collect()
}

/// One patch through a network with random weights, from nothing: what a first answer takes besides reading files.
///
/// # Errors
/// As [`Bench::measure`].
pub fn first_inference(bench: &Bench) -> Result<(), ModelError> {
    let engine = Engine::open(bench.device)?;
    engine.guarded(|| {
        on_engine!(engine, |B, device| {
            let once = Bench {
                repeats: 0,
                ..bench.clone()
            };
            once.forward::<B>(engine, &device).map(|_| ())
        })
    })
}

/// A body of water-like tissue in air.
fn body(shape: [usize; 3]) -> Result<Volume<f32>, ModelError> {
    let [d, h, w] = shape;
    let axis = |n: usize, side: usize| 2.0 * (n as f32 + 0.5) / side as f32 - 1.0;
    let tissue = noise(4096);
    let mut voxels = Vec::with_capacity(d * h * w);
    for z in 0..d {
        for y in 0..h {
            for x in 0..w {
                let (u, v) = (axis(y, h) / 0.7, axis(x, w) / 0.9);
                let hu = 40.0 + 30.0 * tissue[(z * 31 + y * 17 + x) % tissue.len()];
                voxels.push(if u * u + v * v < 1.0 { hu } else { -1000.0 });
            }
        }
    }
    let step = |axis: usize| {
        let mut step = [0.0; 3];
        step[2 - axis] = SCAN_MM[axis];
        step
    };
    let geometry =
        Geometry::new(shape, [0.0; 3], [step(0), step(1), step(2)]).map_err(ImagingError::from)?;
    Ok(Volume { geometry, voxels })
}

/// Normally distributed numbers.
pub fn noise(len: usize) -> Vec<f32> {
    let rng = Rng::new(1);
    (0..len as u64).map(|i| rng.normal_at(i) as f32).collect()
}

/// Until the device has done everything.
fn wait<B: Backend>(engine: Engine, device: &B::Device) -> Result<(), ModelError> {
    B::sync(device).map_err(|error| ModelError::Compute {
        device: engine.name(),
        reason: error.to_string(),
    })
}

/// Times `repeats` runs after one that does not count.
fn timed(
    repeats: usize,
    mut work: impl FnMut() -> Result<(), ModelError>,
) -> Result<Vec<Run>, ModelError> {
    work()?;
    let mut stageless = || work().map(|()| Vec::new());
    (0..repeats).map(|_| one(&mut stageless)).collect()
}

/// Times one run, which says what its stages took.
fn one(
    work: impl FnOnce() -> Result<Vec<(&'static str, f64)>, ModelError>,
) -> Result<Run, ModelError> {
    let (start, busy) = (Instant::now(), processor_s());
    let stages = work()?;
    Ok(Run {
        seconds: start.elapsed().as_secs_f64(),
        busy_seconds: processor_s() - busy,
        stages,
    })
}

/// Processor time of this process so far.
fn processor_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
