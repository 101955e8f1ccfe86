//! Where a voxel is: the one mapping between array indices and the patient.
//!
//! A [`Geometry`] is an affine from `[z, y, x]` indices to LPS millimetres. Readers normalise into
//! it (NIfTI is RAS, NRRD names its space); writers convert out. The conversions between RAS and
//! LPS and between file order `(i, j, k)` and array order live here and nowhere else.
//!
//! Invariants, checked on construction: every size at least 1, all numbers finite, the three steps
//! linearly independent. Shear is kept as it is and reported by [`Geometry::is_sheared`]: dropping
//! it would move voxels in the patient.
//!
//! Round trip: `to_index(to_world(i)) == i` to 1e-4 voxel (property test).

/// Steps whose normalised volume is below this are taken as linearly dependent.
const SINGULAR: f64 = 1e-6;
/// Largest cosine between two steps that still counts as a right angle.
pub(crate) const ORTHOGONAL: f64 = 1e-3;
/// Voxel sizes outside of this range are taken as a damaged header, not as an image of a patient.
const SPACING_MM: std::ops::RangeInclusive<f64> = 1e-5..=1e5;
/// Centres of voxels further away than this are taken as a damaged header; double precision still
/// resolves 1e-4 of the smallest voxel there.
const FARTHEST_MM: f64 = 1e6;

/// Why a geometry was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GeometryError {
    /// A size of zero, or more voxels than can be addressed.
    #[error(
        "an image of {0:?} voxels (z, y, x) cannot be used: every size must be at least 1 and the product must fit in memory"
    )]
    Shape([usize; 3]),
    /// NaN or infinity in origin or directions.
    #[error(
        "the position or direction of the voxels is not a finite number; write the image again with a valid affine"
    )]
    NotFinite,
    /// The directions do not span space.
    #[error(
        "the directions of the voxel axes are linearly dependent or zero; write the image again with a valid affine"
    )]
    Singular,
    /// A voxel size that no scan has.
    #[error("a voxel size of {0} mm is outside of {low} to {high} mm; check the units in the header", low = SPACING_MM.start(), high = SPACING_MM.end())]
    Spacing(f64),
    /// A position that no scan has.
    #[error(
        "the image lies more than {FARTHEST_MM} mm from the origin; check the position and units in the header"
    )]
    Far,
    /// Voxels and shape do not belong together.
    #[error("{voxels} voxels were given for a shape of {shape:?} (z, y, x)")]
    Length {
        /// Number of voxels given.
        voxels: usize,
        /// Shape they were given for.
        shape: [usize; 3],
    },
}

/// The regular grid of an image: shape in array order and an affine to LPS millimetres.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometry {
    shape: [usize; 3],
    origin_lps_mm: [f64; 3],
    steps_lps_mm: [[f64; 3]; 3],
    inverse: [[f64; 3]; 3],
}

impl Geometry {
    /// A grid of `shape` `[z, y, x]` voxels. `origin_lps_mm` is the centre of voxel `[0, 0, 0]` as
    /// (x, y, z); `steps_lps_mm[a]` is the way from a voxel to the next along array axis `a`.
    ///
    /// # Errors
    /// A size of zero, numbers that are not finite, steps that do not span space.
    pub fn new(
        shape: [usize; 3],
        origin_lps_mm: [f64; 3],
        steps_lps_mm: [[f64; 3]; 3],
    ) -> Result<Self, GeometryError> {
        let count = shape
            .iter()
            .try_fold(1usize, |product, &n| product.checked_mul(n));
        if count.is_none_or(|count| count == 0 || count > isize::MAX as usize) {
            return Err(GeometryError::Shape(shape));
        }
        if !origin_lps_mm
            .iter()
            .chain(steps_lps_mm.iter().flatten())
            .all(|v| v.is_finite())
        {
            return Err(GeometryError::NotFinite);
        }
        let lengths = steps_lps_mm.map(length);
        if lengths.contains(&0.0) {
            return Err(GeometryError::Singular);
        }
        if let Some(&odd) = lengths.iter().find(|&&mm| !SPACING_MM.contains(&mm)) {
            return Err(GeometryError::Spacing(odd));
        }
        let volume = dot(steps_lps_mm[0], cross(steps_lps_mm[1], steps_lps_mm[2]));
        if (volume / (lengths[0] * lengths[1] * lengths[2])).abs() < SINGULAR {
            return Err(GeometryError::Singular);
        }
        let geometry = Self::from_valid(shape, origin_lps_mm, steps_lps_mm);
        if geometry
            .corners()
            .iter()
            .flatten()
            .any(|mm| mm.abs() > FARTHEST_MM)
        {
            return Err(GeometryError::Far);
        }
        Ok(geometry)
    }

    /// A grid of which the caller knows that it keeps the invariants, such as a turned one.
    pub(super) fn from_valid(
        shape: [usize; 3],
        origin_lps_mm: [f64; 3],
        steps_lps_mm: [[f64; 3]; 3],
    ) -> Self {
        let [a, b, c] = steps_lps_mm;
        let volume = dot(a, cross(b, c));
        // Rows of the inverse are the reciprocal vectors of the steps.
        let inverse = [cross(b, c), cross(c, a), cross(a, b)].map(|row| row.map(|v| v / volume));
        Self {
            shape,
            origin_lps_mm,
            steps_lps_mm,
            inverse,
        }
    }

    /// A grid from file order: size, and the RAS affine of `(i, j, k)` with `i` fastest, as in NIfTI.
    ///
    /// # Errors
    /// As [`Geometry::new`].
    pub fn from_affine_ras(
        size_ijk: [usize; 3],
        affine_ras: [[f64; 4]; 3],
    ) -> Result<Self, GeometryError> {
        let column = |c: usize| [-affine_ras[0][c], -affine_ras[1][c], affine_ras[2][c]];
        Self::from_ijk(size_ijk, column(3), [column(0), column(1), column(2)])
    }

    /// A grid from file order `(i, j, k)` with `i` fastest and LPS steps per file axis, as in NRRD.
    ///
    /// # Errors
    /// As [`Geometry::new`].
    pub fn from_ijk(
        size_ijk: [usize; 3],
        origin_lps_mm: [f64; 3],
        steps_ijk_lps_mm: [[f64; 3]; 3],
    ) -> Result<Self, GeometryError> {
        let [i, j, k] = size_ijk;
        let [di, dj, dk] = steps_ijk_lps_mm;
        Self::new([k, j, i], origin_lps_mm, [dk, dj, di])
    }

    /// The RAS affine of `(i, j, k)` with `i` fastest (`i` is array axis x), last row included.
    pub fn affine_ras(&self) -> [[f64; 4]; 4] {
        let [dk, dj, di] = self.steps_lps_mm;
        let row = |r: usize, sign: f64| {
            // Adding zero turns a negated zero into a plain one.
            [di[r], dj[r], dk[r], self.origin_lps_mm[r]].map(|v| v * sign + 0.0)
        };
        [
            row(0, -1.0),
            row(1, -1.0),
            row(2, 1.0),
            [0.0, 0.0, 0.0, 1.0],
        ]
    }

    /// Number of voxels along `[z, y, x]`.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Centre of voxel `[0, 0, 0]` as (x, y, z) in LPS millimetres.
    pub fn origin_lps_mm(&self) -> [f64; 3] {
        self.origin_lps_mm
    }

    /// Way in LPS millimetres (x, y, z) from a voxel to its next along each array axis `[z, y, x]`.
    pub fn steps_lps_mm(&self) -> [[f64; 3]; 3] {
        self.steps_lps_mm
    }

    /// Voxel size along `[z, y, x]` in millimetres.
    pub fn spacing_mm(&self) -> [f64; 3] {
        self.steps_lps_mm.map(length)
    }

    /// Number of voxels.
    pub fn voxel_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// LPS millimetres (x, y, z) of a continuous index `[z, y, x]`.
    pub fn to_world(&self, index_zyx: [f64; 3]) -> [f64; 3] {
        std::array::from_fn(|w| {
            self.origin_lps_mm[w]
                + (0..3)
                    .map(|a| self.steps_lps_mm[a][w] * index_zyx[a])
                    .sum::<f64>()
        })
    }

    /// Continuous index `[z, y, x]` of a point (x, y, z) in LPS millimetres.
    pub fn to_index(&self, world_lps_mm: [f64; 3]) -> [f64; 3] {
        let offset = std::array::from_fn(|w| world_lps_mm[w] - self.origin_lps_mm[w]);
        self.inverse.map(|row| dot(row, offset))
    }

    /// Whether both grids have the same shape and all eight corner voxels within `tolerance_mm`.
    pub fn same_grid(&self, other: &Self, tolerance_mm: f64) -> bool {
        self.shape == other.shape
            && self
                .corners()
                .iter()
                .zip(other.corners())
                .all(|(a, b)| length(std::array::from_fn(|w| a[w] - b[w])) <= tolerance_mm)
    }

    /// Whether two voxel axes are further from a right angle than a cosine of 1e-3.
    pub fn is_sheared(&self) -> bool {
        let [a, b, c] = self.steps_lps_mm.map(normalised);
        [dot(a, b), dot(b, c), dot(c, a)]
            .iter()
            .any(|cosine| cosine.abs() > ORTHOGONAL)
    }

    pub(super) fn corners(&self) -> [[f64; 3]; 8] {
        std::array::from_fn(|corner| {
            self.to_world(std::array::from_fn(|a| {
                if corner >> a & 1 == 1 {
                    (self.shape[a] - 1) as f64
                } else {
                    0.0
                }
            }))
        })
    }
}

pub(crate) fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

pub(crate) fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]
}

pub(crate) fn length(v: [f64; 3]) -> f64 {
    dot(v, v).sqrt()
}

/// `v` at length 1; the steps of a [`Geometry`] are never zero.
pub(crate) fn normalised(v: [f64; 3]) -> [f64; 3] {
    let mm = length(v);
    v.map(|c| c / mm)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any usable grid: spacing 0.1 to 10 mm, any rotation, sheared, perhaps mirrored.
    pub(crate) fn any_geometry(max_size: usize) -> impl Strategy<Value = Geometry> {
        geometry_with(max_size, 0.2)
    }

    /// As [`any_geometry`] with axes at right angles.
    pub(crate) fn any_straight_geometry(max_size: usize) -> impl Strategy<Value = Geometry> {
        geometry_with(max_size, 0.0)
    }

    fn geometry_with(max_size: usize, max_shear: f64) -> impl Strategy<Value = Geometry> {
        (
            prop::array::uniform3(1..=max_size),
            prop::array::uniform3(-1000.0..1000.0f64),
            prop::array::uniform3(0.1..10.0f64),
            prop::array::uniform4(-1.0..1.0f64),
            prop::array::uniform3(-1.0..1.0f64),
            any::<bool>(),
        )
            .prop_filter_map(
                "steps span space",
                move |(shape, origin, spacing, quaternion, shear, mirror)| {
                    let norm = quaternion.iter().map(|v| v * v).sum::<f64>().sqrt();
                    if norm < 0.1 {
                        return None;
                    }
                    let [w, x, y, z] = quaternion.map(|v| v / norm);
                    let rows = [
                        [
                            1.0 - 2.0 * (y * y + z * z),
                            2.0 * (x * y - w * z),
                            2.0 * (x * z + w * y),
                        ],
                        [
                            2.0 * (x * y + w * z),
                            1.0 - 2.0 * (x * x + z * z),
                            2.0 * (y * z - w * x),
                        ],
                        [
                            2.0 * (x * z - w * y),
                            2.0 * (y * z + w * x),
                            1.0 - 2.0 * (x * x + y * y),
                        ],
                    ];
                    let mut steps: [[f64; 3]; 3] =
                        std::array::from_fn(|a| std::array::from_fn(|r| rows[r][a] * spacing[a]));
                    if mirror {
                        steps[0] = steps[0].map(|v| -v);
                    }
                    for a in 0..3 {
                        let next = steps[(a + 1) % 3].map(|v| v / spacing[(a + 1) % 3]);
                        for (step, next) in steps[a].iter_mut().zip(next) {
                            *step += max_shear * shear[a] * spacing[a] * next;
                        }
                    }
                    Geometry::new(shape, origin, steps).ok()
                },
            )
    }

    proptest! {
        #[test]
        fn index_and_world_are_inverse(
            geometry in any_geometry(300),
            index in prop::array::uniform3(-50.0..350.0f64),
        ) {
            let back = geometry.to_index(geometry.to_world(index));
            for axis in 0..3 {
                prop_assert!((back[axis] - index[axis]).abs() < 1e-4, "{index:?} came back as {back:?}");
            }
        }

        #[test]
        fn ras_affine_and_back(geometry in any_geometry(50)) {
            let [z, y, x] = geometry.shape();
            let [r, a, s, _] = geometry.affine_ras();
            let back = Geometry::from_affine_ras([x, y, z], [r, a, s]).unwrap();
            prop_assert!(back.same_grid(&geometry, 1e-9));
        }
    }

    #[test]
    fn refuses_what_is_no_grid() {
        let steps = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
        assert_eq!(
            Geometry::new([0, 1, 1], [0.0; 3], steps),
            Err(GeometryError::Shape([0, 1, 1]))
        );
        assert!(matches!(
            Geometry::new([usize::MAX, 2, 1], [0.0; 3], steps),
            Err(GeometryError::Shape(_))
        ));
        assert_eq!(
            Geometry::new([1; 3], [f64::NAN, 0.0, 0.0], steps),
            Err(GeometryError::NotFinite)
        );
        assert_eq!(
            Geometry::new([1; 3], [0.0; 3], [steps[0], steps[0], steps[2]]),
            Err(GeometryError::Singular)
        );
        assert_eq!(
            Geometry::new([1; 3], [0.0; 3], [steps[0], [0.0; 3], steps[2]]),
            Err(GeometryError::Singular)
        );
        assert!(matches!(
            Geometry::new([1; 3], [0.0; 3], steps.map(|s| s.map(|v| v * 1e9))),
            Err(GeometryError::Spacing(_))
        ));
        assert_eq!(
            Geometry::new([1; 3], [1e9, 0.0, 0.0], steps),
            Err(GeometryError::Far)
        );
    }

    #[test]
    fn shear_is_seen_and_kept() {
        let straight = Geometry::new(
            [4; 3],
            [0.0; 3],
            [[0.0, 0.0, 2.5], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]],
        )
        .unwrap();
        let sheared = Geometry::new(
            [4; 3],
            [0.0; 3],
            [[0.0, -0.75, 2.5], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]],
        )
        .unwrap();
        assert!(!straight.is_sheared());
        assert!(sheared.is_sheared());
        assert_eq!(sheared.to_world([2.0, 0.0, 0.0]), [0.0, -1.5, 5.0]);
        assert!(!straight.same_grid(&sheared, 0.1));
    }
}
