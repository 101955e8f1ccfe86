//! Distances between the surfaces of two structures.
//!
//! A surface is a set of elements, one for each 2 x 2 x 2 neighbourhood of voxels that holds both
//! inside and outside, at the corner that its voxels share; its area is that of the marching-cubes
//! patch in the neighbourhood. Distances are those between elements, and every average, share and
//! percentile weighs elements by their area. This is the definition of Nikolov and others (Clinically
//! Applicable Segmentation of Head and Neck Anatomy for Radiotherapy, JMIR 23(7), 2021) and of their
//! package `surface-distance`, with which the tests compare. Outside of the grid nothing is inside.

use crate::imaging::distance::distance_mm;

/// A distance this little (relative) above a tolerance still counts as within it: distances are kept
/// in single precision.
const ROUNDING: f64 = 1e-6;

/// Surface elements of two structures with their distance to the other surface, nearest first.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SurfaceDistances {
    /// (distance in mm, area in mm²) of each element, for either direction; never empty.
    directions: [Vec<(f32, f32)>; 2],
}

impl SurfaceDistances {
    /// Surfaces of the structures `a` and `b`: which voxels of a box are inside, asked by index
    /// `[z, y, x]` below `shape`. The box must hold both structures whole. `None` when one is empty.
    pub(super) fn new(
        shape: [usize; 3],
        spacing_mm: [f64; 3],
        a: impl Fn([usize; 3]) -> bool,
        b: impl Fn([usize; 3]) -> bool,
    ) -> Option<Self> {
        let areas = area_table(spacing_mm);
        let a = Elements::new(shape, a);
        let b = Elements::new(shape, b);
        let directions = [(&a, &b), (&b, &a)].map(|(from, to)| {
            let far = distance_mm(to.shape, spacing_mm, |n| is_surface(to.codes[n]));
            let mut elements: Vec<(f32, f32)> = from
                .codes
                .iter()
                .zip(far)
                .filter(|(code, _)| is_surface(**code))
                .map(|(code, far)| (far, areas[usize::from(*code)] as f32))
                .collect();
            elements.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
            elements
        });
        let whole = directions.iter().all(|elements| !elements.is_empty());
        whole.then_some(Self { directions })
    }

    /// Normalised surface Dice: the share of both surfaces' area that lies within `tolerance_mm` of
    /// the other surface, from 0 to 1.
    pub fn nsd(&self, tolerance_mm: f64) -> f64 {
        let limit = tolerance_mm * (1.0 + ROUNDING);
        let elements = || self.directions.iter().flatten();
        let within = area(elements().filter(|element| f64::from(element.0) <= limit));
        within / area(elements())
    }

    /// The larger of the two directions' percentiles (`percent` from 0 to 100) of distance in mm: the
    /// smallest distance within which at least that share of the surface's area lies.
    pub fn hausdorff_mm(&self, percent: f64) -> f64 {
        let percentile = |elements: &Vec<(f32, f32)>| {
            let wanted = area(elements.iter()) * percent / 100.0;
            let mut reached = 0.0;
            let found = elements.iter().find(|element| {
                reached += f64::from(element.1);
                reached >= wanted
            });
            f64::from(found.or(elements.last()).map_or(0.0, |element| element.0))
        };
        self.directions.iter().map(percentile).fold(0.0, f64::max)
    }

    /// Average symmetric surface distance in mm: the mean over both surfaces together.
    pub fn assd_mm(&self) -> f64 {
        let elements = || self.directions.iter().flatten();
        let sum: f64 = elements()
            .map(|(far, area)| f64::from(*far) * f64::from(*area))
            .sum();
        sum / area(elements())
    }
}

fn area<'a>(elements: impl Iterator<Item = &'a (f32, f32)>) -> f64 {
    elements.map(|element| f64::from(element.1)).sum()
}

/// For each corner of the voxels in a box which of the eight voxels around it are inside.
struct Elements {
    /// One more than the box along each axis.
    shape: [usize; 3],
    codes: Vec<u8>,
}

impl Elements {
    fn new(shape: [usize; 3], inside: impl Fn([usize; 3]) -> bool) -> Self {
        let corners = shape.map(|n| n + 1);
        let mut codes = vec![0u8; corners.iter().product()];
        for z in 0..shape[0] {
            for y in 0..shape[1] {
                for x in 0..shape[2] {
                    if inside([z, y, x]) {
                        for bit in 0..8 {
                            let [dz, dy, dx] = offset(bit);
                            let at = ((z + dz) * corners[1] + y + dy) * corners[2] + x + dx;
                            codes[at] |= 1 << bit;
                        }
                    }
                }
            }
        }
        Self {
            shape: corners,
            codes,
        }
    }
}

/// `[z, y, x]` of a neighbourhood's voxel, each 0 or 1.
fn offset(bit: usize) -> [usize; 3] {
    [bit >> 2 & 1, bit >> 1 & 1, bit & 1]
}

fn is_surface(code: u8) -> bool {
    code != 0 && code != u8::MAX
}

/// Area in mm² of the marching-cubes patch in each of the 256 neighbourhoods.
///
/// The patch separates inside from outside through the middles of the cube's edges. At most four of
/// the eight corners are on one of the two sides; where both sides could be connected across a face, it
/// is these few that are not. Each group of them that hangs together along edges has its own patch.
fn area_table(spacing_mm: [f64; 3]) -> [f64; 256] {
    let [sz, sy, sx] = spacing_mm;
    // Area of the patch whose projections along the axes have these shares of the cube's faces.
    let patch = |shares: [f64; 3]| {
        let [z, y, x] = [
            shares[0] * sy * sx,
            shares[1] * sz * sx,
            shares[2] * sz * sy,
        ];
        (z * z + y * y + x * x).sqrt()
    };
    std::array::from_fn(|code| {
        let code = code as u8;
        let few = if code.count_ones() > 4 { !code } else { code };
        groups(few)
            .into_iter()
            .map(|group| group_area(group, &patch))
            .sum()
    })
}

/// The groups of a neighbourhood's voxels that hang together along edges of the cube.
fn groups(mut voxels: u8) -> Vec<u8> {
    let mut found = Vec::new();
    while voxels != 0 {
        let mut group = 1u8 << voxels.trailing_zeros();
        loop {
            let wider = (0..8)
                .filter(|bit| group >> bit & 1 == 1)
                .fold(group, |wider, bit| wider | neighbours(bit) & voxels);
            if wider == group {
                break;
            }
            group = wider;
        }
        voxels &= !group;
        found.push(group);
    }
    found
}

/// The three voxels that share an edge of the cube with a voxel.
fn neighbours(bit: u8) -> u8 {
    1 << (bit ^ 1) | 1 << (bit ^ 2) | 1 << (bit ^ 4)
}

/// Area of the patch around a group of one to four voxels that hang together.
fn group_area(group: u8, patch: &impl Fn([f64; 3]) -> f64) -> f64 {
    let bits: Vec<u8> = (0..8).filter(|bit| group >> bit & 1 == 1).collect();
    // How many edges of the group run along each axis, and how many meet at its busiest voxel.
    let mut along = [0; 3];
    for bit in &bits {
        for (axis, step) in [(0, 4), (1, 2), (2, 1)] {
            along[axis] += usize::from(bit & step == 0 && group >> (bit | step) & 1 == 1);
        }
    }
    let busiest = bits
        .iter()
        .map(|bit| (neighbours(*bit) & group).count_ones())
        .max();
    let only =
        |keep: fn(usize) -> bool, share: f64| along.map(|n| if keep(n) { share } else { 0.0 });
    match (bits.len(), busiest) {
        // A triangle that cuts the corner off.
        (1, _) => patch([0.125; 3]),
        // A rectangle beside the edge.
        (2, _) => patch(only(|edges| edges == 0, 0.5)),
        // A triangle in the plane of the three, and a slanted part.
        (3, _) => patch(only(|edges| edges == 0, 0.5)) + patch([0.375; 3]),
        // A hexagon around a corner with all its neighbours.
        (_, Some(3)) => patch([0.75; 3]),
        // A rectangle that halves the cube.
        (_, _) if along.contains(&0) => patch(only(|edges| edges == 0, 1.0)),
        // A twisted chain of three edges, one along each axis.
        _ => twisted_area(&bits, group, patch),
    }
}

/// Area of the patch around a chain of four voxels with one edge along each axis.
fn twisted_area(bits: &[u8], group: u8, patch: &impl Fn([f64; 3]) -> f64) -> f64 {
    let ends = bits
        .iter()
        .filter(|bit| (neighbours(**bit) & group).count_ones() == 1);
    let slanted: f64 = ends
        .map(|end| {
            let axis = [4, 2, 1]
                .iter()
                .position(|step| group >> (end ^ step) & 1 == 1);
            patch(std::array::from_fn(|n| {
                if Some(n) == axis { 0.0 } else { 0.25 }
            }))
        })
        .sum();
    slanted + patch([0.5; 3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A cube of `side` voxels from `from`.
    fn cube(from: [usize; 3], side: usize) -> impl Fn([usize; 3]) -> bool {
        move |at| (0..3).all(|axis| (from[axis]..from[axis] + side).contains(&at[axis]))
    }

    fn ball(centre: [f64; 3], radius_mm: f64, spacing_mm: [f64; 3]) -> impl Fn([usize; 3]) -> bool {
        move |at| {
            (0..3)
                .map(|axis| ((at[axis] as f64 - centre[axis]) * spacing_mm[axis]).powi(2))
                .sum::<f64>()
                <= radius_mm * radius_mm
        }
    }

    #[test]
    fn areas_of_the_known_patches() {
        let areas = area_table([2.0, 1.0, 3.0]);
        assert_eq!((areas[0], areas[255]), (0.0, 0.0));
        // The four voxels at z = 0: a face of 1 x 3 mm. At y = 0 and x = 0 likewise.
        assert!((areas[0b0000_1111] - 3.0).abs() < 1e-12);
        assert!((areas[0b0011_0011] - 6.0).abs() < 1e-12);
        assert!((areas[0b0101_0101] - 2.0).abs() < 1e-12);
        let same = area_table([1.0; 3]);
        let triangle = 3f64.sqrt() / 8.0;
        for (code, expected) in [
            (0b1, triangle),
            (0b11, 0.5f64.sqrt()),
            (0b1001, 2.0 * triangle),
            (0b0110_1001, 4.0 * triangle),
            (0b111, 0.5 + 3.0 * triangle),
            (0b1_0111, 6.0 * triangle),
        ] {
            assert!((same[code] - expected).abs() < 1e-12, "{code:#b}");
        }
    }

    #[test]
    fn areas_do_not_depend_on_the_side_or_the_direction() {
        let areas = area_table([0.7, 1.1, 2.3]);
        for code in 0..=255u8 {
            let at = |code: u8| areas[usize::from(code)];
            assert_eq!(at(code), at(!code));
            for flip in 1..8 {
                let turned = (0..8).fold(0u8, |all, bit| all | (code >> bit & 1) << (bit ^ flip));
                assert!((at(code) - at(turned)).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn a_large_cube_has_nearly_its_area_and_a_ball_too() {
        let spacing_mm = [2.0, 1.0, 0.5];
        let total = |inside: &dyn Fn([usize; 3]) -> bool, shape| {
            let areas = area_table(spacing_mm);
            let elements = Elements::new(shape, inside);
            elements
                .codes
                .iter()
                .map(|code| areas[usize::from(*code)])
                .sum::<f64>()
        };
        let faces = 2.0 * (40.0 * 20.0 + 80.0 * 20.0 + 80.0 * 40.0);
        let found = total(&cube([1, 1, 1], 40), [42; 3]);
        assert!((found / faces - 1.0).abs() < 0.03, "{found} {faces}");
        let sphere = 4.0 * std::f64::consts::PI * 400.0;
        let found = total(&ball([11.0, 21.0, 41.0], 20.0, spacing_mm), [23, 43, 83]);
        // Steps of a mask without grey values make slanted surfaces larger.
        assert!((1.0..1.2).contains(&(found / sphere)), "{found} {sphere}");
    }

    #[test]
    fn a_shifted_cube_is_as_far_as_it_was_shifted() {
        let spacing_mm = [3.0, 1.0, 1.0];
        let found = SurfaceDistances::new(
            [14, 12, 12],
            spacing_mm,
            cube([1, 1, 1], 10),
            cube([3, 1, 1], 10),
        )
        .unwrap();
        assert_eq!(found.hausdorff_mm(100.0), 6.0);
        assert_eq!(found.hausdorff_mm(95.0), 6.0);
        assert_eq!(found.nsd(6.0), 1.0);
        assert!(found.nsd(5.9) < 1.0 && found.nsd(0.0) > 0.3);
        assert!((0.0..6.0).contains(&found.assd_mm()));
    }

    #[test]
    fn concentric_balls_are_as_far_as_their_radii() {
        let spacing_mm = [1.0, 0.5, 0.5];
        let centre = [16.0, 32.0, 32.0];
        let (small, large) = (
            ball(centre, 10.0, spacing_mm),
            ball(centre, 14.0, spacing_mm),
        );
        let found = SurfaceDistances::new([33, 65, 65], spacing_mm, small, large).unwrap();
        assert!((found.assd_mm() - 4.0).abs() < 0.5, "{}", found.assd_mm());
        assert!((found.hausdorff_mm(95.0) - 4.0).abs() < 0.8);
        assert_eq!(found.nsd(5.0), 1.0);
        assert_eq!(found.nsd(2.5), 0.0);
    }

    #[test]
    fn an_empty_structure_has_no_distance() {
        assert!(SurfaceDistances::new([3; 3], [1.0; 3], cube([0; 3], 2), |_| false).is_none());
        assert!(SurfaceDistances::new([3; 3], [1.0; 3], |_| false, cube([0; 3], 2)).is_none());
        // The whole box is a surface against what lies outside of it.
        let whole = SurfaceDistances::new([3; 3], [1.0; 3], |_| true, |_| true).unwrap();
        assert_eq!((whole.nsd(0.0), whole.assd_mm()), (1.0, 0.0));
    }

    proptest! {
        #[test]
        fn symmetric_bounded_and_zero_for_the_same(
            shape in prop::array::uniform3(1usize..7),
            spacing_mm in prop::array::uniform3(0.2f64..6.0),
            seed in any::<u64>(),
            tolerance_mm in 0.0f64..10.0,
        ) {
            let mut rng = crate::rng::Rng::new(seed);
            let count = shape.iter().product::<usize>();
            let masks: [Vec<bool>; 2] = std::array::from_fn(|_| (0..count).map(|_| rng.chance(0.3)).collect());
            let inside = |n: usize| {
                let mask = &masks[n];
                move |[z, y, x]: [usize; 3]| mask[(z * shape[1] + y) * shape[2] + x]
            };
            let found = SurfaceDistances::new(shape, spacing_mm, inside(0), inside(1));
            prop_assume!(found.is_some());
            let found = found.unwrap();
            let back = SurfaceDistances::new(shape, spacing_mm, inside(1), inside(0)).unwrap();
            prop_assert!((found.nsd(tolerance_mm) - back.nsd(tolerance_mm)).abs() < 1e-9);
            prop_assert!((found.assd_mm() - back.assd_mm()).abs() < 1e-6);
            prop_assert_eq!(found.hausdorff_mm(95.0), back.hausdorff_mm(95.0));
            prop_assert!((0.0..=1.0).contains(&found.nsd(tolerance_mm)));
            prop_assert!(found.nsd(tolerance_mm) <= found.nsd(tolerance_mm + 1.0));
            prop_assert!(found.hausdorff_mm(50.0) <= found.hausdorff_mm(95.0));
            prop_assert!(found.assd_mm() <= found.hausdorff_mm(100.0) * (1.0 + 1e-6));
            let same = SurfaceDistances::new(shape, spacing_mm, inside(0), inside(0)).unwrap();
            prop_assert_eq!((same.nsd(0.0), same.hausdorff_mm(100.0), same.assd_mm()), (1.0, 0.0, 0.0));
        }
    }
}
