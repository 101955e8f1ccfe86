//! Prepare, slide, blend.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::blend::Blend;
use super::mirrored::Mirrored;
use super::windows;
use crate::imaging::{ImagingError, Volume, orientation, resample};
use crate::model::engine::{DeviceChoice, Engine, on_engine};
use crate::model::error::ModelError;
use crate::model::kernels::{Kernels, pages::give_back};
use crate::model::manifest::{Manifest, ModelDescription, Preprocessing};
use crate::model::pct_net::{Mode, PctNet, Plan, precision_on_cpu};
use crate::model::precision::{Precision, PrecisionChoice};
use crate::model::weights::{import, to_f32};

/// A window whose every voxel is below this holds only air; it is background without asking the network.
pub(super) const AIR_HU: f32 = -900.0;

/// A model ready to segment.
pub struct Segmenter {
    manifest: Manifest,
    device: String,
    net: Box<dyn Forward>,
}

/// A segmented scan and what it took.
pub struct Segmentation {
    /// Label values of the model's schema on the scan's grid.
    pub labels: Volume<u16>,
    /// Seconds by stage, in order.
    pub timings: Vec<(&'static str, f64)>,
    /// Windows that went through the network.
    pub windows: usize,
    /// Windows that held only air.
    pub windows_skipped: usize,
}

/// The network on some device.
pub(in crate::model) trait Forward: Send {
    /// Logits `[classes, d, h, w]` of one patch `[1, d, h, w]` of the model's size.
    fn logits(&self, patch: Vec<f32>) -> Vec<f32>;
}

/// The network on any device, layer by layer.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))] // the CPU has its plan
struct NetworkOn<B: Backend> {
    pub net: PctNet<B>,
    pub device: B::Device,
    /// `[d, h, w]` of every patch.
    pub patch: [usize; 3],
}

impl<B: Kernels> Forward for NetworkOn<B> {
    fn logits(&self, patch: Vec<f32>) -> Vec<f32> {
        let [d, h, w] = self.patch;
        let input =
            Tensor::<B, 5>::from_data(TensorData::new(patch, [1, 1, d, h, w]), &self.device);
        to_f32(self.net.forward_finest(input, Mode::Eval).into_data())
    }
}

/// The precision of a plan on the CPU.
///
/// # Errors
/// The processor does not compute in it.
pub(in crate::model) fn cpu_precision(choice: PrecisionChoice) -> Result<Precision, ModelError> {
    precision_on_cpu(choice).map_err(ModelError::Precision)
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

/// A network in the form that answers fastest: a plan on the CPU, layer by layer elsewhere.
///
/// # Errors
/// The device does not compute in this precision.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))] // a plan has no device
pub(in crate::model) fn ready<B: Kernels + 'static>(
    engine: Engine,
    net: PctNet<B>,
    in_chns: usize,
    patch: [usize; 3],
    precision: PrecisionChoice,
    device: B::Device,
) -> Result<Box<dyn Forward>, ModelError> {
    Ok(match engine {
        Engine::Cpu => {
            let plan = Plan::new(&net, in_chns, patch, cpu_precision(precision)?);
            Box::new(Planned(Mutex::new(plan)))
        }
        #[cfg(feature = "cuda")]
        Engine::Cuda(_) => Box::new(NetworkOn { net, device, patch }),
    })
}

impl Segmenter {
    /// Loads a model directory onto a device. Every parameter must be there.
    ///
    /// # Errors
    /// The directory is not a model, its weights do not fit its manifest, or the device is not there or cannot compute
    /// in this precision.
    pub fn load(
        dir: &Path,
        device: DeviceChoice,
        precision: PrecisionChoice,
    ) -> Result<Self, ModelError> {
        let manifest = Manifest::read(dir)?;
        let state = manifest.read_weights(dir)?;
        let engine = Engine::open(device)?;
        let net: Box<dyn Forward> = on_engine!(engine, |B, device| {
            let net = PctNet::<B>::new(&manifest.network, 0, &device)?;
            let (net, report) = import(net, &state, manifest.network.resolution_mode);
            if let Some(name) = report
                .missing
                .first()
                .or(report.reshaped.first().map(|r| &r.name))
            {
                let reason = format!(
                    "the weights do not fit the manifest, for example {name}; convert the model again"
                );
                return Err(ModelError::bad(dir, reason));
            }
            // The file's tensors are not held beside the plan's.
            drop(state);
            let channels = manifest.network.in_chns;
            let net = ready(engine, net, channels, manifest.patch, precision, device)?;
            give_back();
            net
        });
        Ok(Self {
            manifest,
            device: engine.name(),
            net,
        })
    }

    /// Asks the network twice from now on, the second time with left and right exchanged, and takes the mean.
    ///
    /// # Errors
    /// Labels of which one side is missing: their names do not say what a mirrored structure is.
    pub fn with_flips(mut self) -> Result<Self, ModelError> {
        let Some(mirror) = self.manifest.labels.mirrored() else {
            let reason = "flips exchange left and right, but a structure of one side has no partner among the labels";
            return Err(ModelError::Data(reason.to_owned()));
        };
        self.net = Box::new(Mirrored::new(self.net, mirror, self.manifest.patch));
        Ok(self)
    }

    /// What the model is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The device it is on.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Segments a scan in HU. `on_window` hears of each window (done, all) and may stop the work.
    ///
    /// # Errors
    /// [`ModelError::Stopped`] when `on_window` breaks; an image that cannot be resampled.
    pub fn segment(
        &self,
        scan: &Volume<f32>,
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Segmentation, ModelError> {
        segment(&*self.net, &self.manifest, scan, on_window)
    }
}

/// [`Segmenter::segment`] for any network.
pub(in crate::model) fn segment(
    net: &dyn Forward,
    model: &ModelDescription,
    scan: &Volume<f32>,
    on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Segmentation, ModelError> {
    let start = Instant::now();
    let turn = orientation::to_lps(&scan.geometry);
    let turned = turn.apply(scan);
    let output = turned.geometry;
    let prepared = prepare(turned, &model.preprocessing)?;
    let prepare_s = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let grid = prepared.geometry.shape();
    let patch = model.patch;
    let weights = windows::gaussian(patch);
    let air = normalise(AIR_HU, model.preprocessing.hu_window);
    let [zs, ys, xs] = [0, 1, 2].map(|axis| windows::starts(grid[axis], patch[axis]));
    let total = zs.len() * ys.len() * xs.len();
    let (mut done, mut skipped, mut finish_s) = (0, 0, 0.0);
    let (out_mm, net_mm) = (output.spacing_mm(), prepared.geometry.spacing_mm());
    let scale = [0, 1, 2].map(|axis| out_mm[axis] / net_mm[axis]);
    let mut blend = Blend::new(model.network.class_num, grid, output.shape(), scale);
    for &z in &zs {
        let finish = Instant::now();
        blend.finish_below(z.max(0) as usize);
        finish_s += finish.elapsed().as_secs_f64();
        for (&y, &x) in ys.iter().flat_map(|y| xs.iter().map(move |x| (y, x))) {
            match cut(&prepared, [z, y, x], patch, air) {
                Some(voxels) => {
                    let logits = net.logits(voxels);
                    blend.add([z, y, x], patch, &logits, &weights);
                }
                None => skipped += 1,
            }
            done += 1;
            if on_window(done, total).is_break() {
                return Err(ModelError::Stopped);
            }
        }
    }
    let network_s = start.elapsed().as_secs_f64() - finish_s;

    let finish = Instant::now();
    let labels = Volume {
        geometry: output,
        voxels: blend.into_labels(),
    };
    let labels = turn.undo(&labels);
    finish_s += finish.elapsed().as_secs_f64();
    Ok(Segmentation {
        labels: Volume {
            geometry: scan.geometry,
            voxels: labels.voxels,
        },
        timings: vec![
            ("prepare", prepare_s),
            ("network", network_s),
            ("finish", finish_s),
        ],
        windows: total - skipped,
        windows_skipped: skipped,
    })
}

/// A scan in LPS order as network input: resampled to the model's spacing, HU window to [-1, 1].
pub(in crate::model) fn prepare(
    scan: Volume<f32>,
    preprocessing: &Preprocessing,
) -> Result<Volume<f32>, ModelError> {
    let mut scan = match preprocessing.spacing_mm {
        None => scan,
        Some(spacing_mm) => {
            let grid = resample::grid_with_spacing(&scan.geometry, spacing_mm)
                .map_err(ImagingError::from)?;
            let tolerance_mm = 1e-3;
            if grid.same_grid(&scan.geometry, tolerance_mm) {
                scan
            } else {
                resample::linear(&scan, &grid, preprocessing.hu_window[0])
            }
        }
    };
    for value in &mut scan.voxels {
        *value = normalise(*value, preprocessing.hu_window);
    }
    Ok(scan)
}

pub(super) fn normalise(hu: f32, [low, high]: [f32; 2]) -> f32 {
    (hu.clamp(low, high) - low) / (high - low) * 2.0 - 1.0
}

/// The voxels of a window, -1 outside the scan; `None` when nothing in it is above `air`.
pub(super) fn cut(
    scan: &Volume<f32>,
    start: [isize; 3],
    size: [usize; 3],
    air: f32,
) -> Option<Vec<f32>> {
    let [d, h, w] = size;
    let shape = scan.geometry.shape();
    let mut patch = vec![-1f32; d * h * w];
    let x_from = (-start[2]).max(0) as usize;
    let x_to = (shape[2] as isize - start[2]).clamp(0, w as isize) as usize;
    let mut tissue = false;
    for z in 0..d {
        let sz = start[0] + z as isize;
        if sz < 0 || sz >= shape[0] as isize {
            continue;
        }
        for y in 0..h {
            let sy = start[1] + y as isize;
            if sy < 0 || sy >= shape[1] as isize || x_from >= x_to {
                continue;
            }
            let from = (sz as usize * shape[1] + sy as usize) * shape[2]
                + (start[2] + x_from as isize) as usize;
            let row = &scan.voxels[from..from + x_to - x_from];
            patch[(z * h + y) * w + x_from..][..row.len()].copy_from_slice(row);
            tissue |= row.iter().any(|&v| v > air);
        }
    }
    tissue.then_some(patch)
}
