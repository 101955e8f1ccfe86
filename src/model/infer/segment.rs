//! Prepare, slide, blend.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use super::mirrored::Mirrored;
use super::network::{Forward, Network, ready};
use super::open::OpenScan;
use super::prepared::Prepared;
use super::sliding::{Blended, Sliding, slide_on_host};
use crate::imaging::{Geometry, ImagingError, Volume};
use crate::model::clicks::Click;
use crate::model::engine::{DeviceChoice, Engine, on_engine};
use crate::model::error::ModelError;
use crate::model::kernels::pages::give_back;
use crate::model::manifest::{Manifest, ModelDescription};
use crate::model::pct_net::PctNet;
use crate::model::precision::PrecisionChoice;
use crate::model::schema::ONE_SIDED;
use crate::model::weights::import;
use crate::rng::Rng;

/// A model ready to segment.
pub struct Segmenter {
    manifest: Manifest,
    engine: Engine,
    device: String,
    net: Network,
    /// For test-time augmentation: for each class the one on the other side of the body.
    mirror: Option<Vec<u8>>,
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
        let load = || -> Result<Network, ModelError> {
            on_engine!(engine, |B, device| {
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
                let net = ready(
                    engine,
                    net,
                    &manifest.network,
                    manifest.patch,
                    precision,
                    device,
                )?;
                give_back();
                Ok(net)
            })
        };
        let net = engine.guarded(load)?;
        Ok(Self {
            manifest,
            engine,
            device: engine.name(),
            net,
            mirror: None,
        })
    }

    /// Asks the network twice from now on, the second time with left and right exchanged, and takes the mean.
    ///
    /// # Errors
    /// Labels of which one side is missing: their names do not say what a mirrored structure is.
    pub fn with_flips(mut self) -> Result<Self, ModelError> {
        self.mirror = self.manifest.labels.mirrored();
        if self.mirror.is_none() {
            return Err(ModelError::Data(ONE_SIDED.to_owned()));
        }
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

    /// Segments a scan in HU. `on_window` hears of windows that are done (done, all) and may stop the work.
    ///
    /// # Errors
    /// [`ModelError::Stopped`] when `on_window` breaks; an image that cannot be resampled; clicks that the model does not
    /// take, or outside of the scan; a device that fails.
    pub fn segment(
        &self,
        scan: &Volume<f32>,
        clicks: &[Click],
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Segmentation, ModelError> {
        let mirror = self.mirror.as_deref();
        segment(&self.net, &self.manifest, mirror, scan, clicks, on_window)
    }

    /// Segments a scan and keeps what further clicks on it need. Its logits lie in the memory of the host, whatever the
    /// device: windows go to a GPU one by one, and their answers come back.
    ///
    /// # Errors
    /// As [`Segmenter::segment`].
    pub fn open(
        &self,
        scan: &Volume<f32>,
        clicks: &[Click],
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<OpenScan, ModelError> {
        self.window_by_window(|net| OpenScan::new(net, &self.manifest, scan, clicks, on_window))
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
        self.window_by_window(|net| open.update(net, &self.manifest, clicks, on_window))
    }

    fn window_by_window<T>(
        &self,
        work: impl FnOnce(&dyn Forward) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        let net = self.net.by_windows();
        let patch = self.manifest.patch;
        let mirror = self.mirror.as_deref();
        let mirrored = mirror.map(|mirror| Mirrored::new(net, mirror, patch));
        let net = mirrored.as_ref().map_or(net, |net| net as &dyn Forward);
        self.engine.guarded(|| work(net))
    }
}

/// [`Segmenter::segment`] for any network; with `mirror` it is asked twice, as [`Segmenter::with_flips`] says.
pub(in crate::model) fn segment(
    net: &Network,
    model: &ModelDescription,
    mirror: Option<&[u8]>,
    scan: &Volume<f32>,
    clicks: &[Click],
    on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Segmentation, ModelError> {
    let start = Instant::now();
    let prepared = Prepared::new(scan, model)?;
    let sliding = Sliding {
        clicks: prepared.clicks(model, clicks)?,
        scan: &prepared,
        classes: model.network.class_num,
        mirror,
    };
    let prepare_s = start.elapsed().as_secs_f64();

    let Blended {
        labels,
        stages,
        windows,
        skipped,
    } = match net {
        Network::Patches(net) => slide_on_host(&**net, &sliding, on_window)?,
        #[cfg(any(feature = "cuda", feature = "vulkan"))]
        Network::Volumes(net) => net.slide(&sliding, on_window)?,
    };

    let finish = Instant::now();
    let labels = prepared.back(labels);
    let mut timings = vec![("prepare", prepare_s)];
    timings.extend(stages);
    if let Some((_, seconds)) = timings.iter_mut().find(|(stage, _)| *stage == "finish") {
        *seconds += finish.elapsed().as_secs_f64();
    }
    Ok(Segmentation {
        labels,
        timings,
        windows,
        windows_skipped: skipped,
    })
}
