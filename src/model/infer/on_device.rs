//! A whole scan on the device: uploaded once, its windows cut, computed in batches, blended and labelled there; only the
//! labels come back. Windows that see a click go by way of the host, which draws it and sees to it that it is obeyed.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::Instant;

use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;

use super::blend::between;
use super::network::{Forward, NetworkOn};
use super::sliding::{Blended, Sliding};
use super::windows;
use crate::model::engine::Engine;
use crate::model::engine::faults::watch;
use crate::model::engine::memory::{Failure, Need, to_be_had, with_less};
use crate::model::error::ModelError;
use crate::model::kernels::windows::{Between, bytes_of};
use crate::model::kernels::{Kernels, WindowBlend, WindowJob, raw, wrap};
use crate::model::pct_net::PctNetConfig;
use crate::model::precision::Precision;

/// A network that takes whole scans.
pub(in crate::model) trait Volumes: Forward + Send {
    /// Labels of a prepared scan.
    ///
    /// # Errors
    /// [`ModelError::Stopped`] when `on_window` breaks; a device that fails, also with fewer windows at once.
    fn slide(
        &self,
        sliding: &Sliding,
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Blended, ModelError>;
}

/// A network on a GPU.
pub(in crate::model) struct OnDevice<B: Kernels> {
    engine: Engine,
    on: NetworkOn<B>,
    config: PctNetConfig,
    precision: Precision,
    /// After a failure, no more windows than this at once.
    most: Cell<usize>,
}

impl<B: Kernels> OnDevice<B> {
    pub fn new(
        engine: Engine,
        on: NetworkOn<B>,
        config: &PctNetConfig,
        precision: Precision,
    ) -> Self {
        Self {
            engine,
            on,
            config: config.clone(),
            precision,
            most: Cell::new(usize::MAX),
        }
    }

    /// Windows at once, by the memory that is free.
    fn planned(&self, sliding: &Sliding) -> Result<usize, ModelError> {
        let scan = sliding.scan;
        let fixed = bytes_of(
            scan.patch(),
            scan.grid(),
            scan.output_shape(),
            sliding.classes,
        );
        let need = Need::forward(&self.config, scan.patch(), self.precision, fixed);
        let free = to_be_had::<B>(self.engine, &self.on.device);
        let planned = need.windows(free).map_err(|needed| ModelError::Compute {
            device: self.engine.name(),
            reason: format!(
                "it has too little memory: this scan needs some {} MB, {} are free",
                needed >> 20,
                free.unwrap_or(0) >> 20
            ),
        })?;
        Ok(planned.min(self.most.get()))
    }

    fn attempt(
        &self,
        sliding: &Sliding,
        at_once: usize,
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Blended, Failure> {
        let start = Instant::now();
        let scan = sliding.scan;
        let (grid, patch) = (scan.grid(), scan.patch());
        let (output, scale) = (scan.output_shape(), scan.scale());
        let axes = [0, 1, 2].map(|axis| -> Vec<Between> {
            (0..output[axis])
                .map(|i| between(i, scale[axis], grid[axis]))
                .collect()
        });
        let row = |values: Vec<f32>| {
            let count = values.len();
            let data = TensorData::new(values, [count]);
            raw(Tensor::<B, 1>::from_data(data, &self.on.device))
        };
        let job = WindowJob {
            scan: row(scan.voxels().to_vec()),
            grid,
            patch,
            weights: row(windows::gaussian(patch)),
            classes: sliding.classes,
            output: &axes,
            mirror: sliding.mirror,
            channels: self.config.in_chns,
        };
        let Some(mut blend) = B::window_blend(job) else {
            let reason = "it cannot blend windows".to_owned();
            return Err(Failure::Device(reason));
        };
        self.wait()?;
        let upload_s = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let [zs, ys, xs] = scan.starts();
        let total = zs.len() * ys.len() * xs.len();
        let (mut done, mut skipped, mut labelled) = (0, 0, 0);
        let mut label = |blend: &mut Box<dyn WindowBlend<B>>, below: usize| {
            let complete = below >= grid[0];
            let from = labelled;
            let ready = axes[0][from..]
                .iter()
                .take_while(|(_, high, _)| complete || *high < below);
            labelled += ready.count();
            blend.label(from..labelled, below);
        };
        for &z in &zs {
            label(&mut blend, z.max(0) as usize);
            let level = ys.iter().flat_map(|y| xs.iter().map(move |x| [z, *y, *x]));
            let all: Vec<[isize; 3]> = level.collect();
            let tissue: Vec<bool> = all
                .par_iter()
                .map(|&start| scan.has_tissue(start))
                .collect();
            let windows: Vec<[isize; 3]> = all
                .iter()
                .zip(&tissue)
                .filter_map(|(start, tissue)| tissue.then_some(*start))
                .collect();
            let air = all.len() - windows.len();
            (skipped, done) = (skipped + air, done + air);
            // What a click changes is decided window by window on the host.
            let clicks = sliding.clicks.as_ref();
            let sees = |start: &[isize; 3]| clicks.is_some_and(|c| c.touch(*start, patch));
            let (clicked, others): (Vec<_>, Vec<_>) = windows.into_iter().partition(sees);
            let batches = others.chunks(at_once).chain(clicked.chunks(1));
            for (number, batch) in batches.enumerate() {
                if number < others.len().div_ceil(at_once) {
                    self.compute(&mut blend, batch, sliding.mirror.is_some());
                } else if let Some(logits) = sliding.logits(&self.on, batch[0]) {
                    let [d, h, w] = patch;
                    let data = TensorData::new(logits, [1, sliding.classes, d, h, w]);
                    let logits = Tensor::<B, 5>::from_data(data, &self.on.device);
                    blend.add(batch, raw(logits), None);
                }
                self.wait()?;
                done += batch.len();
                if on_window(done, total).is_break() {
                    return Err(ModelError::Stopped.into());
                }
            }
        }
        if on_window(total, total).is_break() {
            return Err(ModelError::Stopped.into());
        }
        let network_s = start.elapsed().as_secs_f64();

        let start = Instant::now();
        label(&mut blend, grid[0]);
        let labels = blend.into_labels().map_err(Failure::Device)?;
        let finish_s = start.elapsed().as_secs_f64();
        Ok(Blended {
            labels,
            stages: vec![
                ("upload", upload_s),
                ("network", network_s),
                ("finish", finish_s),
            ],
            windows: total - skipped,
            skipped,
        })
    }

    fn compute(&self, blend: &mut Box<dyn WindowBlend<B>>, starts: &[[isize; 3]], flips: bool) {
        let dtype: DType = self.precision.dtype();
        let logits = |mirrored: bool, blend: &dyn WindowBlend<B>| {
            let windows = blend.gather(starts, dtype, mirrored);
            raw(self.on.net.forward(wrap::<B, 5>(windows)))
        };
        let plain = logits(false, &**blend);
        let mirrored = flips.then(|| logits(true, &**blend));
        blend.add(starts, plain, mirrored);
    }

    /// Until the device has done everything.
    fn wait(&self) -> Result<(), Failure> {
        B::sync(&self.on.device).map_err(|error| Failure::Device(error.to_string()))
    }
}

impl<B: Kernels> Forward for OnDevice<B> {
    fn logits(&self, patch: Vec<f32>) -> Vec<f32> {
        self.on.logits(patch)
    }
}

impl<B: Kernels> Volumes for OnDevice<B> {
    fn slide(
        &self,
        sliding: &Sliding,
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Blended, ModelError> {
        let planned = self.planned(sliding)?;
        let mut at_once = planned;
        let blended = with_less(&self.engine.name(), &mut at_once, |at_once| {
            let tried = watch(|| self.attempt(sliding, at_once, on_window));
            if let Err(Failure::Device(_)) = tried {
                B::memory_cleanup(&self.on.device);
            }
            tried
        })?;
        if at_once < planned {
            self.most.set(at_once);
        }
        Ok(blended)
    }
}

#[cfg(test)]
#[path = "on_device_tests.rs"]
mod tests;
