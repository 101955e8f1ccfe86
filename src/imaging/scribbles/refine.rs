//! From strokes to a mask.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::likelihood::{Likelihood, Method};
use super::min_cut::{CERTAIN, MAX_EDGE, minimum_cut};
use crate::imaging::volume::Volume;

/// What is known of a voxel before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mark {
    /// Nothing.
    #[default]
    None,
    /// It is in the segment that is to be refined.
    Current,
    /// Painted as background.
    Background,
    /// Painted as foreground.
    Foreground,
}

/// A box of voxels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First voxel `[z, y, x]`.
    pub low: [usize; 3],
    /// The voxel after the last one.
    pub high: [usize; 3],
}

/// How strokes become a mask.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// How intensities are described.
    pub method: Method,
    /// Weight of a border between two voxels of the same intensity, against the logarithms of likelihoods.
    pub lamda: f64,
    /// Difference of intensity, as a share of the region's range, at which that weight has fallen to 0.6.
    pub sigma: f64,
}

/// Why strokes cannot be used. The texts are for whoever painted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ScribblesError {
    /// Nothing says what the structure looks like.
    #[error(
        "there are no foreground strokes: paint some of the structure as foreground (and some of its surroundings as background), \
         or draw a box around it, then update again; nothing was changed"
    )]
    NoForeground,
    /// The strokes lie elsewhere.
    #[error(
        "no stroke lies inside of the box (ROI): move the box over the strokes or remove it, then update again; nothing was changed"
    )]
    OutsideRegion,
}

impl Region {
    /// The whole of a grid.
    pub fn whole(shape: [usize; 3]) -> Self {
        Self {
            low: [0; 3],
            high: shape,
        }
    }

    /// Voxels `[z, y, x]`.
    pub fn shape(&self) -> [usize; 3] {
        std::array::from_fn(|a| self.high[a] - self.low[a])
    }

    /// The voxels of a volume that lie in the box.
    pub fn cut<T: Copy>(&self, volume: &Volume<T>) -> Vec<T> {
        self.indices(volume.geometry.shape())
            .map(|v| volume.voxels[v])
            .collect()
    }

    /// Puts a mask of the box into an image of `shape`, as 0 and 1.
    pub fn paste(&self, mask: &[bool], voxels: &mut [u16], shape: [usize; 3]) {
        for (v, inside) in self.indices(shape).zip(mask) {
            voxels[v] = u16::from(*inside);
        }
    }

    fn count(&self) -> usize {
        self.shape().iter().product()
    }

    /// The indices of all voxels, in order.
    fn indices(&self, shape: [usize; 3]) -> impl Iterator<Item = usize> + '_ {
        let rows = (self.low[0]..self.high[0])
            .flat_map(move |z| (self.low[1]..self.high[1]).map(move |y| (z, y)));
        rows.flat_map(move |(z, y)| {
            let row = (z * shape[1] + y) * shape[2];
            row + self.low[2]..row + self.high[2]
        })
    }

    /// The voxels around the box, `thickness` deep, inside of an image of `shape`.
    fn shell(&self, thickness: [usize; 3], shape: [usize; 3]) -> Self {
        Self {
            low: std::array::from_fn(|a| self.low[a].saturating_sub(thickness[a])),
            high: std::array::from_fn(|a| (self.high[a] + thickness[a]).min(shape[a])),
        }
    }

    fn holds(&self, index: usize, shape: [usize; 3]) -> bool {
        let at = [
            index / (shape[1] * shape[2]),
            index / shape[2] % shape[1],
            index % shape[2],
        ];
        (0..3).all(|a| (self.low[a]..self.high[a]).contains(&at[a]))
    }

    /// The middle fifth of the box along each axis.
    fn middle(&self) -> Self {
        let fifth = self.shape().map(|side| side / 5);
        Self {
            low: std::array::from_fn(|a| self.low[a] + 2 * fifth[a]),
            high: std::array::from_fn(|a| self.high[a] - 2 * fifth[a]),
        }
    }
}

/// What lies this near around a box shows what the background looks like.
const SHELL_MM: f64 = 10.0;
/// Odds of a model are believed up to this probability.
const MOST_SURE: f32 = 0.98;
/// Share of the region's voxels on each side of the range of its intensities.
const TAIL: f64 = 0.005;
/// Steps of the table of border weights over the range of intensities.
const STEPS: usize = 1024;

/// Decides for every voxel of `region` whether it is foreground, in C order of the box.
///
/// `marks` is one mark per voxel of the scan. `prior` is the model's probability of foreground for each voxel of the box.
/// Voxels around the box stay what they are: those of the segment pull their neighbours into it, the others out of it, and
/// unless the box is the whole scan they show what the background looks like. Only parts that hold a foreground stroke, a
/// voxel of the segment or one that the model takes for foreground are kept.
///
/// Without foreground strokes the structure is what the model takes for it, else the middle of the box; without both it is
/// an error.
///
/// # Errors
/// [`ScribblesError`]: nothing to learn from.
pub fn refine(
    scan: &Volume<f32>,
    marks: &[Mark],
    region: Region,
    prior: Option<&[f32]>,
    options: &Options,
) -> Result<Vec<bool>, ScribblesError> {
    let shape = scan.geometry.shape();
    let whole = region == Region::whole(shape);
    let hu = |v: usize| scan.voxels[v];
    let of = |mark: Mark| region.indices(shape).filter(move |&v| marks[v] == mark);
    let window = window(scan, region);

    let background = of(Mark::Background).map(hu);
    let thickness = scan
        .geometry
        .spacing_mm()
        .map(|mm| (SHELL_MM / mm).ceil() as usize);
    let shell = region.shell(thickness, shape);
    let around = (!whole)
        .then(|| shell.indices(shape))
        .into_iter()
        .flatten()
        .filter(|&v| !region.holds(v, shape) && matches!(marks[v], Mark::None | Mark::Background));
    let background = background.chain(around.map(hu));
    let believed = || {
        prior
            .into_iter()
            .flat_map(|p| region.indices(shape).zip(p))
            .filter(|(_, p)| **p > 0.5)
    };
    let likelihood = if of(Mark::Foreground).next().is_some() {
        Likelihood::learn(
            options.method,
            window,
            of(Mark::Foreground).map(hu),
            background,
        )
    } else if marks.contains(&Mark::Foreground) {
        return Err(ScribblesError::OutsideRegion);
    } else if believed().next().is_some() {
        Likelihood::learn(
            options.method,
            window,
            believed().map(|(v, _)| hu(v)),
            background,
        )
    } else if whole {
        return Err(ScribblesError::NoForeground);
    } else {
        Likelihood::learn(
            options.method,
            window,
            region.middle().indices(shape).map(hu),
            background,
        )
    };

    let border = Borders::new(scan, window, options);
    let steps = [shape[1] * shape[2], shape[2], 1];
    let sides = region.shape();
    let index = |at: [usize; 3]| {
        let [z, y, x] = std::array::from_fn(|axis| at[axis] + region.low[axis]);
        (z * shape[1] + y) * shape[2] + x
    };
    let terminal = |at: [usize; 3]| {
        let v = index(at);
        match marks[v] {
            Mark::Foreground => return CERTAIN,
            Mark::Background => return -CERTAIN,
            Mark::None | Mark::Current => {}
        }
        let before = prior.map_or(0.0, |p| {
            let p =
                p[(at[0] * sides[1] + at[1]) * sides[2] + at[2]].clamp(1.0 - MOST_SURE, MOST_SURE);
            (p / (1.0 - p)).ln()
        });
        let mut pull = ((likelihood.log_ratio(hu(v)) + before) * border.scale) as i32;
        // What lies beyond the border of the box is not to be decided.
        for axis in 0..3 {
            let beyond = [
                (at[axis] == 0 && region.low[axis] > 0).then(|| v - steps[axis]),
                (at[axis] + 1 == sides[axis] && region.high[axis] < shape[axis])
                    .then(|| v + steps[axis]),
            ];
            for other in beyond.into_iter().flatten() {
                let weight = i32::from(border.between(v, other, axis));
                let inside = matches!(marks[other], Mark::Current | Mark::Foreground);
                pull += if inside { weight } else { -weight };
            }
        }
        pull
    };
    let mut mask = minimum_cut(sides, terminal, |at, axis| {
        let v = index(at);
        border.between(v, v + steps[axis], axis)
    });
    let seeds = region.indices(shape).enumerate().filter(|&(n, v)| {
        matches!(marks[v], Mark::Foreground | Mark::Current) || prior.is_some_and(|p| p[n] > 0.5)
    });
    let middle = believed().next().is_none() && of(Mark::Foreground).next().is_none();
    let seeds = seeds
        .map(|(n, _)| n)
        .chain(middle.then(|| middle_of(region)).into_iter().flatten());
    keep_reached(&mut mask, sides, seeds);
    Ok(mask)
}

/// The voxels of the middle of a box, numbered as those of the box.
fn middle_of(region: Region) -> impl Iterator<Item = usize> {
    let shape = region.shape();
    let middle = Region {
        low: [0; 3],
        high: shape,
    }
    .middle();
    (0..region.count()).filter(move |&n| middle.holds(n, shape))
}

/// The range of the region's intensities without its tails, at least one HU wide.
fn window(scan: &Volume<f32>, region: Region) -> [f32; 2] {
    const LOW_HU: f32 = -1200.0;
    let mut counts = vec![0usize; 4600];
    let last = counts.len() - 1;
    let shape = scan.geometry.shape();
    // A saturating cast.
    region
        .indices(shape)
        .for_each(|v| counts[((scan.voxels[v] - LOW_HU) as usize).min(last)] += 1);
    let tail = (region.count() as f64 * TAIL) as usize;
    // The first bin beyond the tail, of those in this order.
    let beyond = |bins: &mut dyn Iterator<Item = usize>| {
        let mut passed = 0;
        for bin in bins {
            passed += counts[bin];
            if passed > tail {
                return bin as f32 + LOW_HU;
            }
        }
        LOW_HU
    };
    let (low, high) = (beyond(&mut (0..=last)), beyond(&mut (0..=last).rev()));
    [low, high.max(low) + 1.0]
}

/// What it costs to part two neighbours.
struct Borders<'a> {
    voxels: &'a [f32],
    /// Per axis the capacity by difference of intensity.
    tables: [Vec<u16>; 3],
    steps_per_hu: f32,
    /// Capacity per natural logarithm.
    scale: f32,
}

impl<'a> Borders<'a> {
    fn new(scan: &'a Volume<f32>, window: [f32; 2], options: &Options) -> Self {
        let spacing_mm = scan.geometry.spacing_mm();
        let finest = spacing_mm.into_iter().fold(f64::INFINITY, f64::min);
        let lamda = options.lamda.max(0.0);
        let scale = f64::from(MAX_EDGE) / lamda.max(1.0);
        let sigma = options.sigma.max(1e-6);
        let tables = spacing_mm.map(|mm| {
            let at = |step: usize| {
                let difference = step as f64 / STEPS as f64;
                let weight = lamda * finest / mm * (-0.5 * (difference / sigma).powi(2)).exp();
                (weight * scale) as u16
            };
            (0..=STEPS).map(at).collect()
        });
        Self {
            voxels: &scan.voxels,
            tables,
            steps_per_hu: STEPS as f32 / (window[1] - window[0]),
            scale: scale as f32,
        }
    }

    fn between(&self, v: usize, other: usize, axis: usize) -> u16 {
        let difference = (self.voxels[v] - self.voxels[other]).abs() * self.steps_per_hu;
        self.tables[axis][(difference as usize).min(STEPS)]
    }
}

/// Clears the voxels of a mask that cannot be reached from a seed inside of it over faces.
fn keep_reached(mask: &mut [bool], shape: [usize; 3], seeds: impl Iterator<Item = usize>) {
    let [_, h, w] = shape;
    let steps = [h * w, w, 1];
    let mut reached = vec![false; mask.len()];
    let mut waiting = Vec::new();
    for seed in seeds {
        if mask[seed] && !reached[seed] {
            reached[seed] = true;
            waiting.push(seed);
        }
        while let Some(v) = waiting.pop() {
            let at = [v / (h * w), v / w % h, v % w];
            for axis in 0..3 {
                let next = [
                    (at[axis] > 0).then(|| v - steps[axis]),
                    (at[axis] + 1 < shape[axis]).then(|| v + steps[axis]),
                ];
                for other in next.into_iter().flatten() {
                    if mask[other] && !reached[other] {
                        reached[other] = true;
                        waiting.push(other);
                    }
                }
            }
        }
    }
    mask.par_iter_mut()
        .zip(reached)
        .for_each(|(mask, reached)| *mask = reached);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::Geometry;
    use crate::rng::Rng;
    use proptest::prelude::*;

    const SHAPE: [usize; 3] = [12, 24, 28];

    const OPTIONS: [Options; 2] = [
        Options {
            method: Method::Histogram { bins: 64 },
            lamda: 1.0,
            sigma: 0.1,
        },
        Options {
            method: Method::Mixture { components: 20 },
            lamda: 1.0,
            sigma: 0.1,
        },
    ];

    fn place(v: usize) -> [usize; 3] {
        [
            v / (SHAPE[1] * SHAPE[2]),
            v / SHAPE[2] % SHAPE[1],
            v % SHAPE[2],
        ]
    }

    fn in_ball(v: usize, centre: [f64; 3], radius: f64) -> bool {
        let at = place(v);
        (0..3)
            .map(|a| (at[a] as f64 - centre[a]).powi(2))
            .sum::<f64>()
            < radius * radius
    }

    /// Two noisy balls of the same brightness in a darker body.
    fn scan() -> Volume<f32> {
        let mut rng = Rng::new(5);
        let steps = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
        let geometry = Geometry::new(SHAPE, [0.0; 3], steps).unwrap();
        let voxels = (0..geometry.voxel_count())
            .map(|v| {
                let bright = in_ball(v, FIRST, 5.0) || in_ball(v, SECOND, 3.0);
                (if bright { 120.0 } else { 20.0 } + 20.0 * rng.normal()) as f32
            })
            .collect();
        Volume::new(geometry, voxels).unwrap()
    }

    const FIRST: [f64; 3] = [6.0, 11.0, 9.0];
    const SECOND: [f64; 3] = [6.0, 12.0, 22.0];

    fn index(at: [usize; 3]) -> usize {
        (at[0] * SHAPE[1] + at[1]) * SHAPE[2] + at[2]
    }

    /// A stroke through the first ball and one through the body.
    fn strokes() -> Vec<Mark> {
        let mut marks = vec![Mark::None; SHAPE.iter().product()];
        (7..12).for_each(|x| marks[index([6, 11, x])] = Mark::Foreground);
        (2..26).for_each(|x| marks[index([2, 3, x])] = Mark::Background);
        marks
    }

    fn wrong(mask: &[bool], region: Region, radius: f64) -> usize {
        let indices = region.indices(SHAPE);
        indices
            .zip(mask)
            .filter(|&(v, &inside)| inside != in_ball(v, FIRST, radius))
            .count()
    }

    #[test]
    fn a_stroke_fills_its_structure_and_no_other() {
        let (scan, marks, whole) = (scan(), strokes(), Region::whole(SHAPE));
        for options in OPTIONS {
            let mask = refine(&scan, &marks, whole, None, &options).unwrap();
            let missed = wrong(&mask, whole, 5.0);
            assert!(missed < 25, "{options:?}: {missed} voxels of a ball of 515");
            assert!(!mask[index([6, 12, 22])], "the other ball has no stroke");
        }
    }

    #[test]
    fn a_box_limits_what_is_changed_and_needs_no_stroke() {
        let scan = scan();
        let marks = vec![Mark::None; SHAPE.iter().product()];
        let region = Region {
            low: [0, 4, 2],
            high: [12, 18, 17],
        };
        for options in OPTIONS {
            let mask = refine(&scan, &marks, region, None, &options).unwrap();
            assert_eq!(mask.len(), 12 * 14 * 15);
            let missed = wrong(&mask, region, 5.0);
            assert!(missed < 40, "{options:?}: {missed}");
        }
    }

    #[test]
    fn the_model_decides_where_intensities_do_not() {
        let mut scan = scan();
        scan.voxels.fill(40.0);
        let whole = Region::whole(SHAPE);
        let prior: Vec<f32> = (0..scan.voxels.len())
            .map(|v| if in_ball(v, FIRST, 4.0) { 0.9 } else { 0.1 })
            .collect();
        let marks = strokes();
        for options in OPTIONS {
            let mask = refine(&scan, &marks, whole, Some(&prior), &options).unwrap();
            assert!(wrong(&mask, whole, 4.0) < 30, "{options:?}");
            // A background stroke over what the model believes takes its voxels away.
            let mut corrected = marks.clone();
            (9..14).for_each(|x| corrected[index([6, 13, x])] = Mark::Background);
            let after = refine(&scan, &corrected, whole, Some(&prior), &options).unwrap();
            assert!((9..14).all(|x| !after[index([6, 13, x])]));
        }
    }

    #[test]
    fn what_cannot_be_learned_from_is_refused() {
        let scan = scan();
        let none = vec![Mark::None; SHAPE.iter().product()];
        let whole = Region::whole(SHAPE);
        let run = |marks: &[Mark], region| refine(&scan, marks, region, None, &OPTIONS[0]);
        assert_eq!(run(&none, whole), Err(ScribblesError::NoForeground));
        let mut background = none;
        background[7] = Mark::Background;
        assert_eq!(run(&background, whole), Err(ScribblesError::NoForeground));
        let elsewhere = Region {
            low: [0, 18, 18],
            high: [5, 24, 28],
        };
        assert_eq!(
            run(&strokes(), elsewhere),
            Err(ScribblesError::OutsideRegion)
        );
    }

    #[test]
    fn the_segment_beyond_the_box_pulls() {
        // No intensity says anything; all that is known is what lies around the box.
        let mut scan = scan();
        scan.voxels.fill(0.0);
        let region = Region {
            low: [0, 0, 10],
            high: [12, 24, 14],
        };
        let mut marks = vec![Mark::Current; SHAPE.iter().product()];
        marks[index([6, 12, 12])] = Mark::Foreground;
        let mask = refine(&scan, &marks, region, None, &OPTIONS[0]).unwrap();
        assert!(mask.iter().all(|inside| *inside));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn painted_voxels_are_what_was_painted(seed in any::<u64>(), lamda in 0.0..20.0f64, with_prior in any::<bool>()) {
            let scan = scan();
            let mut rng = Rng::new(seed);
            let mut marks = vec![Mark::None; SHAPE.iter().product()];
            for _ in 0..60 {
                let v = rng.below(marks.len());
                marks[v] = [Mark::Foreground, Mark::Background, Mark::Current][rng.below(3)];
            }
            marks[0] = Mark::Foreground;
            let prior: Vec<f32> = marks.iter().map(|_| rng.uniform() as f32).collect();
            let whole = Region::whole(SHAPE);
            let options = Options { lamda, ..OPTIONS[rng.below(2)] };
            let mask = refine(&scan, &marks, whole, with_prior.then_some(&prior[..]), &options).unwrap();
            for (mark, inside) in marks.iter().zip(mask) {
                match mark {
                    Mark::Foreground => prop_assert!(inside),
                    Mark::Background => prop_assert!(!inside),
                    Mark::None | Mark::Current => {}
                }
            }
        }
    }
}
