//! Prepare, slide, blend.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::mirrored::Mirrored;
use super::open::OpenScan;
use super::prepared::Prepared;
use super::windows;
use crate::imaging::{Geometry, ImagingError, Volume};
use crate::model::clicks::Click;
use crate::model::engine::{DeviceChoice, Engine, on_engine};
use crate::model::error::ModelError;
use crate::model::kernels::{Kernels, pages::give_back};
use crate::model::manifest::{Manifest, ModelDescription};
use crate::model::pct_net::{Mode, PctNet, Plan, precision_on_cpu};
use crate::model::precision::{Precision, PrecisionChoice};
use crate::model::weights::{import, to_f32};
use crate::rng::Rng;

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
    /// Logits `[classes, d, h, w]` of one patch `[channels, d, h, w]` of the model's size.
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
        let channels = patch.len() / (d * h * w);
        let shape = [1, channels, d, h, w];
        let input = Tensor::<B, 5>::from_data(TensorData::new(patch, shape), &self.device);
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
        Self::load_with(Manifest::read(dir)?, dir, device, precision)
    }

    /// As [`Segmenter::load`], with a window of half the sides where the network takes that, which needs an eighth of the
    /// memory for it; none when it cannot be smaller.
    ///
    /// # Errors
    /// As [`Segmenter::load`].
    pub fn load_smaller(
        dir: &Path,
        device: DeviceChoice,
        precision: PrecisionChoice,
    ) -> Result<Option<Self>, ModelError> {
        let mut manifest = Manifest::read(dir)?;
        let (whole, stride) = (manifest.model.patch, manifest.model.network.stride());
        let half = [0, 1, 2].map(|axis| {
            let half = whole[axis] / 2 / stride[axis] * stride[axis];
            half.max(stride[axis])
        });
        if half == whole {
            return Ok(None);
        }
        manifest.model.patch = half;
        Self::load_with(manifest, dir, device, precision).map(Some)
    }

    fn load_with(
        manifest: Manifest,
        dir: &Path,
        device: DeviceChoice,
        precision: PrecisionChoice,
    ) -> Result<Self, ModelError> {
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

    /// Segments one window of noise: whether the network answers at all, and answers fast the next time.
    ///
    /// # Errors
    /// As [`Segmenter::segment`].
    pub fn warm_up(&self) -> Result<(), ModelError> {
        let model = &self.manifest.model;
        let spacing_mm = model.preprocessing.spacing_mm.unwrap_or([1.0; 3]);
        let [z, y, x] = spacing_mm;
        let steps = [[0.0, 0.0, z], [0.0, y, 0.0], [x, 0.0, 0.0]];
        let grid = Geometry::new(model.patch, [0.0; 3], steps).map_err(ImagingError::from)?;
        let mut rng = Rng::new(0).named("warm-up");
        let noise = (0..grid.voxel_count()).map(|_| rng.range(-100.0, 200.0) as f32);
        let scan = Volume {
            voxels: noise.collect(),
            geometry: grid,
        };
        self.segment(&scan, &[], &mut |_, _| ControlFlow::Continue(()))?;
        Ok(())
    }

    /// Segments a scan in HU. `on_window` hears of each window (done, all) and may stop the work.
    ///
    /// # Errors
    /// [`ModelError::Stopped`] when `on_window` breaks; an image that cannot be resampled; clicks that the model does not
    /// take, or outside of the scan.
    pub fn segment(
        &self,
        scan: &Volume<f32>,
        clicks: &[Click],
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Segmentation, ModelError> {
        segment(&*self.net, &self.manifest, scan, clicks, on_window)
    }

    /// Segments a scan and keeps what further clicks on it need.
    ///
    /// # Errors
    /// As [`Segmenter::segment`].
    pub fn open(
        &self,
        scan: &Volume<f32>,
        clicks: &[Click],
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<OpenScan, ModelError> {
        OpenScan::new(&*self.net, &self.manifest, scan, clicks, on_window)
    }

    /// Bytes of memory that a scan on this grid would hold when it is open.
    pub fn open_bytes(&self, scan: &Geometry) -> usize {
        let spacing_mm = scan.spacing_mm();
        let network_mm = self.manifest.preprocessing.spacing_mm.unwrap_or(spacing_mm);
        let voxels = scan.voxel_count() as f64;
        let volume = |mm: [f64; 3]| mm.iter().product::<f64>();
        let network = voxels * volume(spacing_mm) / volume(network_mm);
        let floats = (self.manifest.network.class_num + 2) * size_of::<f32>();
        (network * floats as f64 + voxels * size_of::<u16>() as f64) as usize
    }

    /// Asks the network about the windows of an open scan that see other clicks than before; returns how many times it was
    /// asked. After an error the open scan is of no use any more.
    ///
    /// # Errors
    /// As [`Segmenter::segment`].
    pub fn update(
        &self,
        open: &mut OpenScan,
        clicks: &[Click],
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<usize, ModelError> {
        open.update(&*self.net, &self.manifest, clicks, on_window)
    }
}

/// [`Segmenter::segment`] for any network.
pub(in crate::model) fn segment(
    net: &dyn Forward,
    model: &ModelDescription,
    scan: &Volume<f32>,
    clicks: &[Click],
    on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Segmentation, ModelError> {
    let start = Instant::now();
    let prepared = Prepared::new(scan, model)?;
    let clicks = prepared.clicks(model, clicks)?;
    let prepare_s = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let weights = windows::gaussian(model.patch);
    let [zs, ys, xs] = prepared.starts();
    let total = zs.len() * ys.len() * xs.len();
    let (mut done, mut skipped, mut finish_s) = (0, 0, 0.0);
    let mut blend = prepared.blend(model.network.class_num);
    for &z in &zs {
        let finish = Instant::now();
        blend.finish_below(z.max(0) as usize);
        finish_s += finish.elapsed().as_secs_f64();
        for (&y, &x) in ys.iter().flat_map(|y| xs.iter().map(move |x| (y, x))) {
            match prepared.logits(net, [z, y, x], clicks.as_ref()) {
                Some(logits) => blend.add([z, y, x], model.patch, &logits, &weights),
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
    let labels = prepared.back(blend.into_labels());
    finish_s += finish.elapsed().as_secs_f64();
    Ok(Segmentation {
        labels,
        timings: vec![
            ("prepare", prepare_s),
            ("network", network_s),
            ("finish", finish_s),
        ],
        windows: total - skipped,
        windows_skipped: skipped,
    })
}
