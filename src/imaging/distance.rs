//! Exact Euclidean distances on a grid with voxels of any size.
//!
//! Separable: squared distances along x, then the lower envelope of parabolas along y and along z
//! (Felzenszwalb, Huttenlocher: Distance Transforms of Sampled Functions, Theory of Computing 8,
//! 2012). Time is linear in the number of voxels; memory is one `f32` a voxel.

use rayon::prelude::*;

/// Distance in mm from every voxel to the nearest one for which `is_site` holds (asked by position in
/// C order `[z, y, x]`), between the voxels' centres; infinite everywhere when there is none. `shape`
/// and `spacing_mm` are `[z, y, x]`. The axes are taken to be at right angles.
pub fn distance_mm(
    shape: [usize; 3],
    spacing_mm: [f64; 3],
    is_site: impl Fn(usize) -> bool + Sync,
) -> Vec<f32> {
    let [nz, ny, nx] = shape;
    let mut squared = vec![f32::INFINITY; nz * ny * nx];
    if squared.is_empty() {
        return squared;
    }
    squared
        .par_chunks_mut(ny * nx)
        .enumerate()
        .for_each(|(z, plane)| {
            for (y, row) in plane.chunks_mut(nx).enumerate() {
                let first = (z * ny + y) * nx;
                along_row(row, spacing_mm[2], |x| is_site(first + x));
            }
            let mut envelope = Envelope::new(ny);
            for x in 0..nx {
                envelope.load((0..ny).map(|y| plane[y * nx + x]));
                envelope.transform(spacing_mm[1], |y, value| plane[y * nx + x] = value);
            }
        });
    // Along z: the rows at one y, of every plane, belong to one task.
    let mut rows_at: Vec<Vec<&mut [f32]>> = (0..ny).map(|_| Vec::with_capacity(nz)).collect();
    for (n, row) in squared.chunks_mut(nx).enumerate() {
        rows_at[n % ny].push(row);
    }
    rows_at.into_par_iter().for_each(|mut rows| {
        let mut envelope = Envelope::new(nz);
        for x in 0..nx {
            envelope.load(rows.iter().map(|row| row[x]));
            envelope.transform(spacing_mm[0], |z, value| rows[z][x] = value.sqrt());
        }
    });
    squared
}

/// Squared distance along a row to its nearest site.
fn along_row(row: &mut [f32], spacing_mm: f64, is_site: impl Fn(usize) -> bool) {
    let square = |voxels: usize| {
        let mm = voxels as f64 * spacing_mm;
        (mm * mm) as f32
    };
    let mut last = None;
    for (x, value) in row.iter_mut().enumerate() {
        if is_site(x) {
            last = Some(x);
        }
        if let Some(last) = last {
            *value = square(x - last);
        }
    }
    let mut next = None;
    for (x, value) in row.iter_mut().enumerate().rev() {
        if *value == 0.0 {
            next = Some(x);
        }
        if let Some(next) = next {
            *value = value.min(square(next - x));
        }
    }
}

/// The lower envelope of the parabolas `value[p] + spacing² (q - p)²` over a line of voxels.
struct Envelope {
    values: Vec<f64>,
    /// Positions of the parabolas that are lowest somewhere, and where each begins to be.
    lowest: Vec<(usize, f64)>,
}

impl Envelope {
    fn new(len: usize) -> Self {
        Self {
            values: Vec::with_capacity(len),
            lowest: Vec::with_capacity(len),
        }
    }

    fn load(&mut self, values: impl Iterator<Item = f32>) {
        self.values.clear();
        self.values.extend(values.map(f64::from));
    }

    fn transform(&mut self, spacing_mm: f64, mut put: impl FnMut(usize, f32)) {
        let (values, lowest) = (&self.values, &mut self.lowest);
        let square = spacing_mm * spacing_mm;
        let height = |p: usize| values[p] + square * (p * p) as f64;
        lowest.clear();
        for (q, value) in values.iter().enumerate() {
            if !value.is_finite() {
                continue;
            }
            let mut begins = f64::NEG_INFINITY;
            while let Some(&(p, begin)) = lowest.last() {
                begins = (height(q) - height(p)) / (2.0 * square * (q - p) as f64);
                if begins > begin {
                    break;
                }
                lowest.pop();
                begins = f64::NEG_INFINITY;
            }
            lowest.push((q, begins));
        }
        if lowest.is_empty() {
            return;
        }
        let mut at = 0;
        for q in 0..values.len() {
            while lowest.get(at + 1).is_some_and(|next| next.1 < q as f64) {
                at += 1;
            }
            let p = lowest[at].0;
            let steps = p.abs_diff(q) as f64;
            put(q, (values[p] + square * steps * steps) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_search(shape: [usize; 3], spacing_mm: [f64; 3], sites: &[bool]) -> Vec<f64> {
        let [_, ny, nx] = shape;
        let index = |n: usize| [n / (ny * nx), n / nx % ny, n % nx];
        let distance = |a: usize, b: usize| {
            let (a, b) = (index(a), index(b));
            (0..3)
                .map(|axis| (a[axis].abs_diff(b[axis]) as f64 * spacing_mm[axis]).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        (0..sites.len())
            .map(|voxel| {
                (0..sites.len())
                    .filter(|site| sites[*site])
                    .map(|site| distance(voxel, site))
                    .fold(f64::INFINITY, f64::min)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn as_found_by_search(
            shape in prop::array::uniform3(1usize..8),
            spacing_mm in prop::array::uniform3(0.2f64..6.0),
            seed in any::<u64>(),
            share in 0.0f64..0.3,
        ) {
            let mut rng = crate::rng::Rng::new(seed);
            let sites: Vec<bool> = (0..shape.iter().product()).map(|_| rng.chance(share)).collect();
            let found = distance_mm(shape, spacing_mm, |n| sites[n]);
            for (found, expected) in found.iter().zip(by_search(shape, spacing_mm, &sites)) {
                let same = f64::from(*found) == expected
                    || (f64::from(*found) - expected).abs() <= 1e-6 * expected;
                prop_assert!(same, "{found} is not {expected}");
            }
        }
    }

    #[test]
    fn no_site_is_infinitely_far() {
        assert_eq!(
            distance_mm([1, 2, 2], [1.0; 3], |_| false),
            [f32::INFINITY; 4]
        );
        assert!(distance_mm([0, 2, 2], [1.0; 3], |_| true).is_empty());
    }

    #[test]
    fn a_site_far_away_with_thick_slices() {
        let found = distance_mm([3, 1, 4], [5.0, 1.0, 2.0], |n| n == 0);
        let expected = [
            0.0,
            2.0,
            4.0,
            6.0,
            5.0,
            29f32.sqrt(),
            41f32.sqrt(),
            61f32.sqrt(),
        ];
        assert_eq!(found[..8], expected);
    }
}
