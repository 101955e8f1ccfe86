//! One slice of a canonical volume as a panel.

use super::canvas::Canvas;
use super::{TEXT, TEXT_SCALE, Window, font};
use crate::imaging::color;
use crate::imaging::geometry::Geometry;
use crate::imaging::volume::Volume;

/// Share of a label's colour over the grey value.
const FILL: f32 = 0.32;

/// Longest side of a panel.
const PANEL_PIXELS: f64 = 420.0;

/// Axial, coronal and sagittal panels at one scale.
pub(super) fn planes(canonical: &Geometry) -> [Plane; 3] {
    let [z, y, x] = canonical.spacing_mm();
    let [nz, ny, nx] = canonical.shape().map(|n| n as f64);
    let extents_mm = [nz * z, ny * y, nx * x];
    let mm_per_pixel = extents_mm.iter().copied().fold(f64::MIN_POSITIVE, f64::max) / PANEL_PIXELS;
    [
        Plane::axial(extents_mm, mm_per_pixel),
        Plane::coronal(extents_mm, mm_per_pixel),
        Plane::sagittal(extents_mm, mm_per_pixel),
    ]
}

/// An orthogonal plane of a canonical grid and its size in pixels.
pub(super) struct Plane {
    name: &'static str,
    pub width: usize,
    pub height: usize,
    /// Array axis across the plane, down the picture, and to the right.
    normal: usize,
    down: usize,
    right: usize,
    /// Whether the picture's top is the end of the axis (superior).
    flip_down: bool,
    /// Letters at the left and right edge.
    sides: [&'static str; 2],
}

impl Plane {
    fn axial(extents_mm: [f64; 3], mm_per_pixel: f64) -> Self {
        Self::new(
            "axial",
            [0, 1, 2],
            false,
            ["R", "L"],
            extents_mm,
            mm_per_pixel,
        )
    }

    fn coronal(extents_mm: [f64; 3], mm_per_pixel: f64) -> Self {
        Self::new(
            "coronal",
            [1, 0, 2],
            true,
            ["R", "L"],
            extents_mm,
            mm_per_pixel,
        )
    }

    fn sagittal(extents_mm: [f64; 3], mm_per_pixel: f64) -> Self {
        Self::new(
            "sagittal",
            [2, 0, 1],
            true,
            ["A", "P"],
            extents_mm,
            mm_per_pixel,
        )
    }

    fn new(
        name: &'static str,
        [normal, down, right]: [usize; 3],
        flip_down: bool,
        sides: [&'static str; 2],
        extents_mm: [f64; 3],
        mm_per_pixel: f64,
    ) -> Self {
        // A single thin slice still gets a visible line.
        let pixels = |axis: usize| ((extents_mm[axis] / mm_per_pixel).round() as usize).max(4);
        Self {
            name,
            width: pixels(right),
            height: pixels(down),
            normal,
            down,
            right,
            flip_down,
            sides,
        }
    }

    /// Which slice this is, and where.
    pub fn caption(&self, geometry: &Geometry, centre: [usize; 3]) -> String {
        let world = geometry.to_world(centre.map(|n| n as f64));
        let (axis, mm) = [("z", world[2]), ("y", world[1]), ("x", world[0])][self.normal];
        format!("{} {axis}={mm:.0} mm", self.name)
    }

    pub fn draw(
        &self,
        scan: &Volume<f32>,
        label: &Volume<u16>,
        centre: [usize; 3],
        window: Window,
    ) -> Canvas {
        let shape = scan.geometry.shape();
        let mut canvas = Canvas::new(self.width, self.height, [0; 3]);
        let index = |down: usize, right: usize| {
            let mut index = centre;
            index[self.down] = if self.flip_down {
                shape[self.down] - 1 - down
            } else {
                down
            };
            index[self.right] = right;
            (index[0] * shape[1] + index[1]) * shape[2] + index[2]
        };
        let (nd, nr) = (shape[self.down], shape[self.right]);
        // Continuous position of a pixel's centre among the voxels' centres.
        let position = |pixel: usize, pixels: usize, voxels: usize| {
            ((pixel as f64 + 0.5) * voxels as f64 / pixels as f64 - 0.5)
                .clamp(0.0, (voxels - 1) as f64)
        };
        // The label with the largest share among the four voxels around: smooth outlines without
        // mixing label values.
        let value_at = |row: usize, column: usize| -> u16 {
            let (down, right) = (
                position(row, self.height, nd),
                position(column, self.width, nr),
            );
            let (d0, r0) = (down as usize, right as usize);
            let (d1, r1) = ((d0 + 1).min(nd - 1), (r0 + 1).min(nr - 1));
            let (dw, rw) = (down.fract(), right.fract());
            let around = [
                (label.voxels[index(d0, r0)], (1.0 - dw) * (1.0 - rw)),
                (label.voxels[index(d0, r1)], (1.0 - dw) * rw),
                (label.voxels[index(d1, r0)], dw * (1.0 - rw)),
                (label.voxels[index(d1, r1)], dw * rw),
            ];
            let share = |value: u16| -> f64 {
                around
                    .iter()
                    .filter(|(v, _)| *v == value)
                    .map(|(_, w)| w)
                    .sum()
            };
            let (mut best, mut largest) = (around[0].0, share(around[0].0));
            for &(value, _) in &around[1..] {
                if share(value) > largest {
                    (best, largest) = (value, share(value));
                }
            }
            best
        };
        let values: Vec<u16> = (0..self.height * self.width)
            .map(|n| value_at(n / self.width, n % self.width))
            .collect();
        for row in 0..self.height {
            let down = position(row, self.height, nd);
            let (d0, d1, dw) = (
                down as usize,
                (down as usize + 1).min(nd - 1),
                down.fract() as f32,
            );
            for column in 0..self.width {
                let right = position(column, self.width, nr);
                let (r0, r1, rw) = (
                    right as usize,
                    (right as usize + 1).min(nr - 1),
                    right.fract() as f32,
                );
                let mix = |a: f32, b: f32, weight: f32| a + (b - a) * weight;
                let hu = mix(
                    mix(scan.voxels[index(d0, r0)], scan.voxels[index(d0, r1)], rw),
                    mix(scan.voxels[index(d1, r0)], scan.voxels[index(d1, r1)], rw),
                    dw,
                );
                let grey =
                    ((hu - window.level) / window.width.max(1.0) + 0.5).clamp(0.0, 1.0) * 255.0;
                let at = row * self.width + column;
                let value = values[at];
                let share = if value == 0 {
                    0.0
                } else if self.on_contour(&values, row, column) {
                    1.0
                } else {
                    FILL
                };
                let color =
                    color::of_value(value).map(|c| mix(grey, f32::from(c), share).round() as u8);
                canvas.set(column, row, color);
            }
        }
        let top = (self.height.saturating_sub(font::HEIGHT * TEXT_SCALE)) / 2;
        canvas.text(3, top, TEXT_SCALE, TEXT, self.sides[0]);
        canvas.text(
            self.width.saturating_sub(font::WIDTH * TEXT_SCALE + 3),
            top,
            TEXT_SCALE,
            TEXT,
            self.sides[1],
        );
        canvas
    }

    /// Whether a neighbouring pixel has another value.
    fn on_contour(&self, values: &[u16], row: usize, column: usize) -> bool {
        let at = row * self.width + column;
        let differs = |other: usize| values[other] != values[at];
        (row > 0 && differs(at - self.width))
            || (row + 1 < self.height && differs(at + self.width))
            || (column > 0 && differs(at - 1))
            || (column + 1 < self.width && differs(at + 1))
    }
}

/// The slice along each axis that shows the most organs, and much of each; the middle where there
/// is no label.
pub(super) fn mid_organ(label: &Volume<u16>) -> [usize; 3] {
    let shape = label.geometry.shape();
    let classes = label
        .voxels
        .iter()
        .copied()
        .max()
        .map_or(1, |v| usize::from(v) + 1);
    std::array::from_fn(|axis| {
        let mut areas = vec![0u32; shape[axis] * classes];
        for (n, &value) in label.voxels.iter().enumerate() {
            if value > 0 {
                let index = [
                    n / (shape[1] * shape[2]),
                    n / shape[2] % shape[1],
                    n % shape[2],
                ];
                areas[index[axis] * classes + usize::from(value)] += 1;
            }
        }
        // Roots of areas: a second organ counts more than a larger first one.
        let score = |slice: usize| {
            areas[slice * classes..][..classes]
                .iter()
                .map(|a| f64::from(*a).sqrt())
                .sum::<f64>()
        };
        (0..shape[axis])
            .map(|slice| (slice, score(slice)))
            .filter(|(_, score)| *score > 0.0)
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or(shape[axis] / 2, |(slice, _)| slice)
    })
}
