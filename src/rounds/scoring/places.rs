//! Where a model is least sure: the slices and the box that an annotator should look at first.

use super::scores::{Place, Region};
use crate::imaging::Geometry;

/// Slices that are named.
const SLICES: usize = 5;
/// Smallest distance of two named slices.
const APART_MM: f64 = 10.0;
/// Side of the box.
const BOX_MM: f64 = 48.0;
/// Boxes begin at multiples of a quarter of their side.
const STEPS: usize = 4;

/// Entropy gathered by slice and by cells of a quarter of the box.
pub struct Places {
    grid: Geometry,
    slices: Vec<Slice>,
    /// Voxels of a cell along each axis.
    cell: [usize; 3],
    /// Cells along each axis.
    cells: [usize; 3],
    /// Sum per cell.
    sums: Vec<f64>,
}

#[derive(Clone, Copy, Default)]
struct Slice {
    voxels: u64,
    sum: f64,
    /// Sums of entropy times y and x.
    moments: [f64; 2],
}

impl Places {
    /// Nothing seen yet of a network's grid.
    pub fn new(grid: &Geometry) -> Self {
        let spacing_mm = grid.spacing_mm();
        let cell = spacing_mm.map(|mm| ((BOX_MM / STEPS as f64 / mm).round() as usize).max(1));
        let cells = [0, 1, 2].map(|axis| grid.shape()[axis].div_ceil(cell[axis]));
        Self {
            grid: *grid,
            slices: vec![Slice::default(); grid.shape()[0]],
            cell,
            cells,
            sums: vec![0.0; cells.iter().product()],
        }
    }

    /// Takes in the entropy of a voxel `[z, y, x]` that is not air.
    pub fn add(&mut self, at: [usize; 3], entropy: f32) {
        let entropy = f64::from(entropy);
        let slice = &mut self.slices[at[0]];
        slice.voxels += 1;
        slice.sum += entropy;
        slice.moments[0] += entropy * at[1] as f64;
        slice.moments[1] += entropy * at[2] as f64;
        let [z, y, x] = [0, 1, 2].map(|axis| at[axis] / self.cell[axis]);
        self.sums[(z * self.cells[1] + y) * self.cells[2] + x] += entropy;
    }

    /// The slices and the box with the most entropy, in voxels of the grid `file` too.
    pub fn find(&self, file: &Geometry) -> (Vec<Place>, Option<Region>) {
        (self.worst_slices(file), self.worst_box(file))
    }

    fn worst_slices(&self, file: &Geometry) -> Vec<Place> {
        // The entropy of a slice, not its mean: a slice at the edge with three voxels is no place to begin.
        let mut order: Vec<usize> = (0..self.slices.len()).collect();
        order.sort_by(|a, b| self.slices[*b].sum.total_cmp(&self.slices[*a].sum));
        let thickness_mm = self.grid.spacing_mm()[0];
        let mut named: Vec<usize> = Vec::new();
        for z in order {
            let apart = |other: &usize| z.abs_diff(*other) as f64 * thickness_mm >= APART_MM;
            if self.slices[z].sum > 0.0 && named.len() < SLICES && named.iter().all(apart) {
                named.push(z);
            }
        }
        let axis = along_the_body(file);
        let place = |z: &usize| {
            let slice = self.slices[*z];
            let [y, x] = slice.moments.map(|moment| moment / slice.sum);
            let centre_lps_mm = self.grid.to_world([*z as f64, y, x]);
            let index = nearest_voxel(file, centre_lps_mm)[axis];
            Place {
                index,
                // Arrays are [z, y, x], files i, j, k.
                axis: 2 - axis,
                centre_lps_mm,
                entropy: slice.sum / slice.voxels as f64,
            }
        };
        named.iter().map(place).collect()
    }

    fn worst_box(&self, file: &Geometry) -> Option<Region> {
        let size = [0, 1, 2].map(|axis| STEPS.min(self.cells[axis]));
        let last = [0, 1, 2].map(|axis| self.cells[axis] - size[axis]);
        let [_, ny, nx] = self.cells;
        let mut best: ([usize; 3], f64) = ([0; 3], 0.0);
        for z in 0..=last[0] {
            for y in 0..=last[1] {
                for x in 0..=last[2] {
                    let mut sum = 0.0;
                    for cz in z..z + size[0] {
                        for cy in y..y + size[1] {
                            let row = (cz * ny + cy) * nx;
                            sum += self.sums[row + x..row + x + size[2]].iter().sum::<f64>();
                        }
                    }
                    if sum > best.1 {
                        best = ([z, y, x], sum);
                    }
                }
            }
        }
        let (at, sum) = best;
        if sum <= 0.0 {
            return None;
        }
        let shape = self.grid.shape();
        let from = [0, 1, 2].map(|axis| at[axis] * self.cell[axis]);
        let to = [0, 1, 2].map(|axis| ((at[axis] + size[axis]) * self.cell[axis]).min(shape[axis]));
        let voxels: f64 = [0, 1, 2]
            .map(|axis| (to[axis] - from[axis]) as f64)
            .iter()
            .product();
        // Corners of the box at the edges of its voxels, and its voxels' centres for indices.
        let corners: [[f64; 3]; 8] = std::array::from_fn(|corner| {
            self.grid
                .to_world(std::array::from_fn(|axis| match corner >> axis & 1 {
                    0 => from[axis] as f64 - 0.5,
                    _ => to[axis] as f64 - 0.5,
                }))
        });
        let inner: [[usize; 3]; 8] = std::array::from_fn(|corner| {
            nearest_voxel(
                file,
                self.grid
                    .to_world(std::array::from_fn(|axis| match corner >> axis & 1 {
                        0 => from[axis] as f64,
                        _ => to[axis] as f64 - 1.0,
                    })),
            )
        });
        let ends = |axis: usize| {
            let values = inner.iter().map(|index| index[axis]);
            (values.clone().min().unwrap_or(0), values.max().unwrap_or(0))
        };
        // From [z, y, x] to i, j, k.
        let [i, j, k] = [2, 1, 0].map(ends);
        let fold = |start: f64, f: fn(f64, f64) -> f64| {
            std::array::from_fn(|d| corners.iter().map(|c| c[d]).fold(start, f))
        };
        Some(Region {
            first_ijk: [i.0, j.0, k.0],
            last_ijk: [i.1, j.1, k.1],
            low_lps_mm: fold(f64::INFINITY, f64::min),
            high_lps_mm: fold(f64::NEG_INFINITY, f64::max),
            entropy: sum / voxels,
        })
    }
}

/// The array axis that runs along the body the most.
fn along_the_body(file: &Geometry) -> usize {
    let steps = file.steps_lps_mm();
    let share = |axis: usize| {
        let [x, y, z] = steps[axis];
        z.abs() / (x * x + y * y + z * z).sqrt()
    };
    let mut best = 0;
    for axis in 1..3 {
        if share(axis) > share(best) {
            best = axis;
        }
    }
    best
}

/// The voxel `[z, y, x]` whose centre is nearest to a point, within the image.
fn nearest_voxel(file: &Geometry, lps_mm: [f64; 3]) -> [usize; 3] {
    let index = file.to_index(lps_mm);
    // Saturating casts: what is before the first voxel becomes the first.
    [0, 1, 2].map(|axis| (index[axis].round() as usize).min(file.shape()[axis] - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::geometry::tests::any_straight_geometry;
    use crate::imaging::{orientation, resample};
    use proptest::prelude::*;

    fn file(flip: bool) -> Geometry {
        // 40 slices of 3 mm, from the head down when flipped.
        let step = if flip { -3.0 } else { 3.0 };
        Geometry::new(
            [40, 64, 64],
            [10.0, 20.0, 30.0],
            [[0.0, 0.0, step], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0]],
        )
        .unwrap()
    }

    fn blob(places: &mut Places, centre: [usize; 3], entropy: f32) {
        for (dz, dy, dx) in
            (0..5).flat_map(|z| (0..5).flat_map(move |y| (0..5).map(move |x| (z, y, x))))
        {
            let at = [centre[0] + dz - 2, centre[1] + dy - 2, centre[2] + dx - 2];
            places.add(at, entropy);
        }
    }

    #[test]
    fn the_worst_slice_and_box_are_found_in_the_files_order() {
        for flip in [false, true] {
            let file = file(flip);
            let grid = *orientation::to_lps(&file).target();
            let mut places = Places::new(&grid);
            blob(&mut places, [30, 40, 20], 0.9);
            blob(&mut places, [10, 10, 50], 0.5);
            let (slices, region) = places.find(&file);
            // The grid counts from the feet, the flipped file from the head.
            let expected = |z: usize| if flip { 39 - z } else { z };
            let found = slices.iter().map(|s| s.index).collect::<Vec<_>>();
            assert!((28..=32).map(expected).any(|z| z == found[0]), "{found:?}");
            assert!(
                found
                    .iter()
                    .any(|z| (8..=12).map(expected).any(|e| e == *z))
            );
            assert!(slices.iter().all(|s| s.axis == 2 && s.entropy > 0.0));
            let centre = grid.to_world([30.0, 40.0, 20.0]);
            assert!((slices[0].centre_lps_mm[0] - centre[0]).abs() < 1e-9);
            assert!((slices[0].centre_lps_mm[1] - centre[1]).abs() < 1e-9);
            let region = region.unwrap();
            for (d, mm) in centre.into_iter().enumerate() {
                assert!(region.low_lps_mm[d] < mm && mm < region.high_lps_mm[d]);
                assert!((region.high_lps_mm[d] - region.low_lps_mm[d] - BOX_MM).abs() <= 6.0);
            }
            for (d, at) in [20, 40, expected(30)].into_iter().enumerate() {
                let side = region.first_ijk[d]..=region.last_ijk[d];
                assert!(side.contains(&at), "{region:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn places_are_inside_of_any_image(file in any_straight_geometry(24), at in 0.0..1.0f64) {
            let turned = *orientation::to_lps(&file).target();
            let Ok(grid) = resample::grid_with_spacing(&turned, [4.0; 3]) else { return Ok(()) };
            prop_assume!(grid.voxel_count() < 200_000);
            let mut places = Places::new(&grid);
            let voxel = grid.shape().map(|n| ((n as f64 * at) as usize).min(n - 1));
            places.add(voxel, 1.0);
            let (slices, region) = places.find(&file);
            let [z, y, x] = file.shape();
            let size = [x, y, z];
            prop_assert_eq!(slices.len(), 1);
            prop_assert!(slices[0].index < size[slices[0].axis]);
            let region = region.unwrap();
            let centre = grid.to_world(voxel.map(|v| v as f64));
            for d in 0..3 {
                prop_assert!(region.first_ijk[d] <= region.last_ijk[d] && region.last_ijk[d] < size[d]);
                prop_assert!(region.low_lps_mm[d] <= centre[d] && centre[d] <= region.high_lps_mm[d]);
            }
        }
    }
}
