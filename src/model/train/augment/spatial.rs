//! Where the voxels of a training patch come from: one interpolation, whatever was turned, stretched and bent.

use crate::model::kernels::Bend;
use crate::rng::Rng;

/// Distance of the control points of a deformation.
const CONTROL_MM: f64 = 48.0;
/// Control points are moved by at most so many standard deviations, which keeps the deformation free of folds:
/// neighbours 48 mm apart come at most `2 * 2 * 5` mm nearer.
const MOST_DEVIATIONS: f64 = 2.0;

/// Rows of a 3 x 3 matrix that acts on `[z, y, x]`.
pub type Matrix = [[f64; 3]; 3];

const IDENTITY: Matrix = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];

/// First `b`, then `a`.
pub fn product(a: &Matrix, b: &Matrix) -> Matrix {
    std::array::from_fn(|i| std::array::from_fn(|j| (0..3).map(|k| a[i][k] * b[k][j]).sum()))
}

fn apply(matrix: &Matrix, v: [f64; 3]) -> [f64; 3] {
    matrix.map(|row| row[0] * v[0] + row[1] * v[1] + row[2] * v[2])
}

/// Turns by `degrees` about the axes `[z, y, x]`, x first; lengths are mm.
pub fn rotation(degrees: [f64; 3]) -> Matrix {
    let about = |axis: usize| {
        let (sin, cos) = degrees[axis].to_radians().sin_cos();
        let (a, b) = ((axis + 1) % 3, (axis + 2) % 3);
        let mut matrix = IDENTITY;
        (matrix[a][a], matrix[a][b], matrix[b][a], matrix[b][b]) = (cos, -sin, sin, cos);
        matrix
    };
    product(&about(0), &product(&about(1), &about(2)))
}

/// Makes everything in the patch `factor` times as large, the same along all axes.
pub fn scaling(factor: f64) -> Matrix {
    IDENTITY.map(|row| row.map(|v| v / factor))
}

/// The map from a voxel of the patch to a position in the case.
pub struct Spatial {
    /// From an offset to the patch's centre, in voxels, to an offset in the case, in voxels.
    matrix: Matrix,
    elastic: Option<Elastic>,
    size: [usize; 3],
}

impl Spatial {
    /// A patch of `size` `[z, y, x]` whose content is mapped by `millimetres` (offsets from the centre in mm, patch to case),
    /// in a case with voxels of `spacing_mm`. `deviation_mm` is the standard deviation of the control points of a smooth
    /// deformation, 0 for none, at most 5.
    pub fn new(
        size: [usize; 3],
        spacing_mm: [f64; 3],
        millimetres: &Matrix,
        deviation_mm: f64,
        rng: &mut Rng,
    ) -> Self {
        let matrix = std::array::from_fn(|i| {
            // On the diagonal nothing is divided, so that the identity stays exact.
            std::array::from_fn(|j| match i == j {
                true => millimetres[i][j],
                false => millimetres[i][j] * spacing_mm[j] / spacing_mm[i],
            })
        });
        let elastic =
            (deviation_mm > 0.0).then(|| Elastic::new(size, spacing_mm, deviation_mm, rng));
        Self {
            matrix,
            elastic,
            size,
        }
    }

    /// From an offset to the patch's centre to an offset in the case, in voxels.
    pub fn matrix(&self) -> Matrix {
        self.matrix
    }

    /// The smooth deformation, if there is one, in voxels of the patch.
    pub fn bend(&self) -> Option<Bend> {
        self.elastic.as_ref().map(|elastic| Bend {
            planes: elastic.planes.clone(),
            step_z: elastic.step_z,
        })
    }

    fn half(&self) -> [f64; 3] {
        self.size.map(|side| (side as f64 - 1.0) * 0.5)
    }

    /// First and last-but-one voxel, per axis, of all that a patch around `centre` reads.
    pub fn bounds(&self, centre: [f64; 3]) -> [[isize; 2]; 3] {
        let (half, most) = (
            self.half(),
            self.elastic.as_ref().map_or([0.0; 3], |e| e.most),
        );
        std::array::from_fn(|axis| {
            let reach: f64 = (0..3)
                .map(|j| self.matrix[axis][j].abs() * (half[j] + most[j]))
                .sum();
            let low = (centre[axis] - reach).floor() as isize;
            let high = (centre[axis] + reach).floor() as isize + 2;
            [low, high]
        })
    }

    /// Positions in the case of one row of a patch around `centre`, in voxels `[z, y, x]`.
    pub fn row(&self, centre: [f64; 3], z: usize, y: usize, positions: &mut Vec<[f64; 3]>) {
        let half = self.half();
        let bend = self.elastic.as_ref().map(|elastic| elastic.row(z, y));
        positions.clear();
        positions.extend((0..self.size[2]).map(|x| {
            let mut offset = [z as f64 - half[0], y as f64 - half[1], x as f64 - half[2]];
            if let Some(bend) = &bend {
                for (axis, offset) in offset.iter_mut().enumerate() {
                    *offset += f64::from(bend[axis][x]);
                }
            }
            let moved = apply(&self.matrix, offset);
            std::array::from_fn(|axis| centre[axis] + moved[axis])
        }));
    }
}

/// A smooth deformation: a cubic B-spline over control points 48 mm apart.
struct Elastic {
    /// Per component, `[control z][y][x]` of the patch, in voxels; the slowest axis is still to be interpolated.
    planes: [Vec<f32>; 3],
    size: [usize; 3],
    /// Spacing of the patch along z over that of the control points.
    step_z: f64,
    /// Largest displacement per axis, in voxels.
    most: [f64; 3],
}

/// First control point and weights at `position`, which counts from control point 1.
fn spline(position: f64) -> (usize, [f64; 4]) {
    let first = position.floor().max(0.0);
    let t = position - first;
    let (t2, t3) = (t * t, t * t * t);
    let weights = [
        (1.0 - t).powi(3) / 6.0,
        (3.0 * t3 - 6.0 * t2 + 4.0) / 6.0,
        (-3.0 * t3 + 3.0 * t2 + 3.0 * t + 1.0) / 6.0,
        t3 / 6.0,
    ];
    (first as usize, weights)
}

impl Elastic {
    fn new(size: [usize; 3], spacing_mm: [f64; 3], deviation_mm: f64, rng: &mut Rng) -> Self {
        let step = spacing_mm.map(|mm| mm / CONTROL_MM);
        let count: [usize; 3] =
            std::array::from_fn(|a| ((size[a] - 1) as f64 * step[a]) as usize + 4);
        let [gz, gy, gx] = count;
        let planes = std::array::from_fn(|axis| {
            let control: Vec<f64> = (0..gz * gy * gx)
                .map(|_| {
                    let deviations = rng.normal().clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS);
                    deviations * deviation_mm / spacing_mm[axis]
                })
                .collect();
            let mut rows = Vec::with_capacity(gz * gy * size[2]);
            for line in control.chunks_exact(gx) {
                rows.extend((0..size[2]).map(|x| {
                    let (first, weights) = spline(x as f64 * step[2]);
                    (0..4).map(|k| weights[k] * line[first + k]).sum::<f64>()
                }));
            }
            let mut planes = Vec::with_capacity(gz * size[1] * size[2]);
            for plane in rows.chunks_exact(gy * size[2]) {
                for y in 0..size[1] {
                    let (first, weights) = spline(y as f64 * step[1]);
                    planes.extend((0..size[2]).map(|x| {
                        let at = |k: usize| plane[(first + k) * size[2] + x];
                        (0..4).map(|k| weights[k] * at(k)).sum::<f64>() as f32
                    }));
                }
            }
            planes
        });
        Self {
            planes,
            size,
            step_z: step[0],
            most: spacing_mm.map(|mm| MOST_DEVIATIONS * deviation_mm / mm),
        }
    }

    /// Displacement of a row of the patch in voxels, per axis.
    fn row(&self, z: usize, y: usize) -> [Vec<f32>; 3] {
        let [_, h, w] = self.size;
        let (first, weights) = spline(z as f64 * self.step_z);
        std::array::from_fn(|axis| {
            let line = |k: usize| &self.planes[axis][((first + k) * h + y) * w..][..w];
            let lines = [line(0), line(1), line(2), line(3)];
            (0..w)
                .map(|x| (0..4).map(|k| weights[k] as f32 * lines[k][x]).sum())
                .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::*;

    fn positions(spatial: &Spatial, centre: [f64; 3]) -> Vec<[f64; 3]> {
        let (mut all, mut row) = (Vec::new(), Vec::new());
        for z in 0..spatial.size[0] {
            for y in 0..spatial.size[1] {
                spatial.row(centre, z, y, &mut row);
                all.extend_from_slice(&row);
            }
        }
        all
    }

    #[test]
    fn without_strength_nothing_moves() {
        let millimetres = product(&rotation([0.0; 3]), &scaling(1.0));
        let spatial = Spatial::new(
            [4, 5, 6],
            [3.0, 0.7, 0.7],
            &millimetres,
            0.0,
            &mut Rng::new(1),
        );
        let centre = [11.5, 22.0, 30.5];
        let found = positions(&spatial, centre);
        assert_eq!(found[0], [10.0, 20.0, 28.0]);
        assert_eq!(found[4 * 5 * 6 - 1], [13.0, 24.0, 33.0]);
        assert_eq!(spatial.bounds(centre), [[10, 15], [20, 26], [28, 35]]);
    }

    #[test]
    fn a_point_lands_where_the_affine_says() {
        // A quarter turn about z with voxels of 1 x 2 x 4 mm: 8 mm along x become 8 mm along y, which are 4 voxels.
        let spatial = Spatial::new(
            [1, 1, 5],
            [1.0, 2.0, 4.0],
            &rotation([90.0, 0.0, 0.0]),
            0.0,
            &mut Rng::new(1),
        );
        let found = positions(&spatial, [0.0; 3]);
        let moved = [found[4][1].abs(), found[4][2].abs()];
        assert!(
            (moved[0] - 4.0).abs() < 1e-9 && moved[1] < 1e-9,
            "{found:?}"
        );
        // Twice as large: the patch shows half the length.
        let spatial = Spatial::new(
            [1, 1, 5],
            [1.0, 2.0, 4.0],
            &scaling(2.0),
            0.0,
            &mut Rng::new(1),
        );
        assert!((positions(&spatial, [0.0; 3])[4][2] - 1.0).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn rotations_keep_lengths(angles in prop::array::uniform3(-180.0..180.0f64), v in prop::array::uniform3(-9.0..9.0f64)) {
            let turned = apply(&rotation(angles), v);
            let square = |v: [f64; 3]| v.iter().map(|v| v * v).sum::<f64>();
            prop_assert!((square(turned) - square(v)).abs() < 1e-9);
        }

        #[test]
        fn bounds_hold_and_nothing_folds(
            seed in any::<u64>(),
            deviation in 0.0..5.0f64,
            angles in prop::array::uniform3(-20.0..20.0f64),
            spacing in prop::array::uniform3(0.5..5.0f64),
            factor in 0.8..1.25f64,
        ) {
            let size = [6, 9, 10];
            let millimetres = product(&rotation(angles), &scaling(factor));
            let spatial = Spatial::new(size, spacing, &millimetres, deviation, &mut Rng::new(seed));
            let centre = [40.25, 50.5, 60.75];
            let (bounds, found) = (spatial.bounds(centre), positions(&spatial, centre));
            for position in &found {
                for axis in 0..3 {
                    let [low, high] = bounds[axis];
                    prop_assert!(position[axis] >= low as f64 && position[axis] < high as f64 - 0.999_999);
                }
            }
            // Along x of the patch the source advances along the same direction, in mm.
            let ahead = apply(&millimetres, [0.0, 0.0, 1.0]);
            for pair in found.chunks_exact(size[2]).flat_map(|row| row.windows(2)) {
                let along: f64 = (0..3).map(|a| (pair[1][a] - pair[0][a]) * spacing[a] * ahead[a]).sum();
                prop_assert!(along > 0.0);
            }
        }
    }
}
