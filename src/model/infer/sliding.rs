//! Where the windows of a scan stand, and how they are walked through on the host.

use std::ops::ControlFlow;
use std::time::Instant;

use super::blend::Blend;
use super::mirrored::Mirrored;
use super::network::Forward;
use super::windows;
use crate::imaging::{Geometry, Volume};
use crate::model::error::ModelError;
use crate::model::manifest::ModelDescription;

/// A window whose every voxel is below this holds only air; it is background without asking the network.
pub const AIR_HU: f32 = -900.0;

/// A prepared scan and its windows.
pub struct Sliding<'a> {
    /// Network input, in LPS order.
    pub scan: Volume<f32>,
    /// `[z, y, x]` of the labels.
    pub output: [usize; 3],
    /// Output voxel size in network voxels, per axis.
    pub scale: [f64; 3],
    /// `[d, h, w]` of a window.
    pub patch: [usize; 3],
    /// Classes, background included.
    pub classes: usize,
    /// Window starts, per axis.
    pub starts: [Vec<isize>; 3],
    /// For each class the one on the other side of the body, when the network is to be asked twice.
    pub mirror: Option<&'a [u8]>,
    /// The largest value of air.
    air: f32,
}

/// Labels of all windows together.
pub struct Blended {
    /// `[z, y, x]` of the output.
    pub labels: Vec<u16>,
    /// Seconds by stage, in order.
    pub stages: Vec<(&'static str, f64)>,
    /// Windows that went through the network.
    pub windows: usize,
    /// Windows that held only air.
    pub skipped: usize,
}

impl<'a> Sliding<'a> {
    /// The windows of `model` over a prepared scan, for labels on the grid `output`; values up to `air` are air.
    pub fn new(
        scan: Volume<f32>,
        output: &Geometry,
        model: &ModelDescription,
        mirror: Option<&'a [u8]>,
        air: f32,
    ) -> Self {
        let (grid, patch) = (scan.geometry.shape(), model.patch);
        let (out_mm, net_mm) = (output.spacing_mm(), scan.geometry.spacing_mm());
        Self {
            output: output.shape(),
            scale: [0, 1, 2].map(|axis| out_mm[axis] / net_mm[axis]),
            patch,
            classes: model.network.class_num,
            starts: [0, 1, 2].map(|axis| windows::starts(grid[axis], patch[axis])),
            mirror,
            air,
            scan,
        }
    }

    /// `[z, y, x]` of the scan.
    pub fn grid(&self) -> [usize; 3] {
        self.scan.geometry.shape()
    }

    /// Windows in all.
    pub fn total(&self) -> usize {
        self.starts.iter().map(Vec::len).product()
    }

    /// Starts of the windows that begin at slice `z`.
    pub fn level(&self, z: isize) -> impl Iterator<Item = [isize; 3]> {
        let [_, ys, xs] = &self.starts;
        ys.iter()
            .flat_map(move |&y| xs.iter().map(move |&x| [z, y, x]))
    }

    /// Whether anything in a window is above air.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub fn has_tissue(&self, start: [isize; 3]) -> bool {
        has_tissue(&self.scan, start, self.patch, self.air)
    }
}

fn has_tissue(scan: &Volume<f32>, start: [isize; 3], size: [usize; 3], air: f32) -> bool {
    rows(scan, start, size).any(|(_, row)| row.iter().any(|&value| value > air))
}

/// The voxels of a window of `size` `[d, h, w]`, -1 outside the scan; `None` when nothing in it is above `air`.
pub fn cut(scan: &Volume<f32>, start: [isize; 3], size: [usize; 3], air: f32) -> Option<Vec<f32>> {
    has_tissue(scan, start, size, air).then(|| {
        let mut patch = vec![-1f32; size.iter().product()];
        for (at, row) in rows(scan, start, size) {
            patch[at..at + row.len()].copy_from_slice(row);
        }
        patch
    })
}

/// What of a window lies in the scan: rows, each with its place in the window.
fn rows(
    scan: &Volume<f32>,
    start: [isize; 3],
    size: [usize; 3],
) -> impl Iterator<Item = (usize, &[f32])> {
    let ([_, h, w], [depth, height, width]) = (size, scan.geometry.shape());
    let inside = |axis: usize, side: usize| {
        let from = (-start[axis]).max(0);
        let to = (side as isize - start[axis]).clamp(0, size[axis] as isize);
        (from as usize, to.max(from) as usize)
    };
    let ((z0, z1), (y0, y1), (x0, x1)) = (inside(0, depth), inside(1, height), inside(2, width));
    (z0..z1).flat_map(move |z| {
        (y0..y1).map(move |y| {
            let slice = (start[0] + z as isize) as usize * height;
            let line = (slice + (start[1] + y as isize) as usize) * width;
            let from = line + (start[2] + x0 as isize) as usize;
            ((z * h + y) * w + x0, &scan.voxels[from..from + x1 - x0])
        })
    })
}

/// Window by window, blended on the host.
pub fn slide_on_host(
    net: &dyn Forward,
    sliding: &Sliding,
    on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Blended, ModelError> {
    let start = Instant::now();
    let patch = sliding.patch;
    let mirrored = sliding
        .mirror
        .map(|mirror| Mirrored::new(net, mirror, patch));
    let net = mirrored.as_ref().map_or(net, |net| net as &dyn Forward);
    let weights = windows::gaussian(patch);
    let total = sliding.total();
    let (mut done, mut skipped, mut finish_s) = (0, 0, 0.0);
    let mut blend = Blend::new(
        sliding.classes,
        sliding.grid(),
        sliding.output,
        sliding.scale,
    );
    for &z in &sliding.starts[0] {
        let finish = Instant::now();
        blend.finish_below(z.max(0) as usize);
        finish_s += finish.elapsed().as_secs_f64();
        for start in sliding.level(z) {
            match cut(&sliding.scan, start, patch, sliding.air) {
                Some(voxels) => blend.add(start, patch, &net.logits(voxels), &weights),
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
    let labels = blend.into_labels();
    finish_s += finish.elapsed().as_secs_f64();
    Ok(Blended {
        labels,
        stages: vec![("network", network_s), ("finish", finish_s)],
        windows: total - skipped,
        skipped,
    })
}
