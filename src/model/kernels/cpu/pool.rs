//! Maximum over windows of 2 x 2 x 2 or 1 x 2 x 2 voxels that do not overlap.

use super::Isa;
use super::simd::{Output, per_isa};
use rayon::prelude::*;

/// Sizes of a pooling: input `[volumes, depth, height, width]`, where `volumes` = batch * channels. What does not fill a window is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    pub volumes: usize,
    pub depth: usize,
    pub height: usize,
    pub width: usize,
    /// Whether windows are two deep; otherwise they are 1 x 2 x 2.
    pub pool_depth: bool,
}

impl PoolShape {
    /// `[depth, height, width]` of the output.
    pub fn output(&self) -> [usize; 3] {
        [self.depth / self.planes(), self.height / 2, self.width / 2]
    }

    fn planes(&self) -> usize {
        if self.pool_depth { 2 } else { 1 }
    }

    fn input_len(&self) -> usize {
        self.volumes * self.depth * self.height * self.width
    }

    fn output_plane(&self) -> usize {
        self.output()[1] * self.output()[2]
    }
}

/// The maxima `[volumes, output]`, and for each the place in its window (`z * 4 + y * 2 + x`; the first one where several are equal).
/// NaN is larger than every number.
pub fn max_pool(x: &[f32], shape: PoolShape) -> (Vec<f32>, Vec<u8>) {
    max_pool_on(Isa::best(), x, shape)
}

/// The maxima alone, into a buffer `[volumes, output]`.
pub fn max_pool_into(x: &[f32], shape: PoolShape, y: &mut [f32]) {
    assert_eq!(x.len(), shape.input_len(), "max pool: length of the input");
    let [depth, height, width] = shape.output();
    let (isa, plane) = (Isa::best(), shape.output_plane());
    assert_eq!(
        y.len(),
        shape.volumes * depth * plane,
        "max pool: length of the output"
    );
    y.par_chunks_mut(plane.max(1))
        .enumerate()
        .for_each(|(index, y)| {
            let z = (index / depth * shape.depth + index % depth * shape.planes()) * shape.height;
            for (row, y) in y.chunks_exact_mut(width.max(1)).enumerate().take(height) {
                let input = |dz: usize, dy: usize| {
                    &x[(z + dz * shape.height + 2 * row + dy) * shape.width..][..2 * width]
                };
                maxima(isa, [input(0, 0), input(0, 1)], false, y);
                if shape.pool_depth {
                    maxima(isa, [input(1, 0), input(1, 1)], true, y);
                }
            }
        });
}

per_isa! {
    /// Takes two rows into the maxima `y`; `more`: they already hold some.
    fn maxima(rows: [&[f32]; 2], more: bool, y: &mut [f32]) {
        let [upper, lower] = rows.map(|r| r.as_chunks::<2>().0);
        for ((y, a), b) in y.iter_mut().zip(upper).zip(lower) {
            let mut top = if more { *y } else { a[0] };
            for value in [a[0], a[1], b[0], b[1]] {
                top = if (value > top) | value.is_nan() { value } else { top };
            }
            *y = top;
        }
    }
}

fn max_pool_on(isa: Isa, x: &[f32], shape: PoolShape) -> (Vec<f32>, Vec<u8>) {
    assert_eq!(x.len(), shape.input_len(), "max pool: length of the input");
    let [depth, height, width] = shape.output();
    let plane = shape.output_plane();
    let mut places = vec![0u8; shape.volumes * depth * plane];
    let y = Output::new(places.len());
    if !places.is_empty() {
        places
            .par_chunks_mut(plane)
            .enumerate()
            .for_each(|(index, places)| {
                // SAFETY: each task has its own plane.
                let y = unsafe { y.slice(index * plane, plane) };
                let z =
                    (index / depth * shape.depth + index % depth * shape.planes()) * shape.height;
                for row in 0..height {
                    let input = |dz: usize, dy: usize| {
                        &x[(z + dz * shape.height + 2 * row + dy) * shape.width..][..2 * width]
                    };
                    let (y, places) = (
                        &mut y[row * width..][..width],
                        &mut places[row * width..][..width],
                    );
                    pool_row(isa, [input(0, 0), input(0, 1)], None, y, places);
                    if shape.pool_depth {
                        pool_row(isa, [input(1, 0), input(1, 1)], Some(4), y, places);
                    }
                }
            });
    }
    // SAFETY: every plane was written.
    (unsafe { y.finish() }, places)
}

per_isa! {
    /// Takes two rows into the maxima `y` and their places; `later`: the place of the first of them, or none if they come first.
    fn pool_row(rows: [&[f32]; 2], later: Option<u8>, y: &mut [f32], places: &mut [u8]) {
        let [upper, lower] = rows.map(|r| r.as_chunks::<2>().0);
        let first = later.unwrap_or(0);
        for (((y, place), a), b) in y.iter_mut().zip(places).zip(upper).zip(lower) {
            let (mut top, mut at) = if later.is_some() { (*y, *place) } else { (a[0], first) };
            for (i, value) in [a[0], a[1], b[0], b[1]].into_iter().enumerate() {
                // False for a NaN that is already there.
                let larger = (value > top) | (value.is_nan() & !top.is_nan());
                top = if larger { value } else { top };
                at = if larger { first + i as u8 } else { at };
            }
            *y = top;
            *place = at;
        }
    }
}

/// The gradient of the input: each gradient `dy` goes to the place of its maximum, everything else is 0.
pub fn max_pool_backward(dy: &[f32], places: &[u8], shape: PoolShape) -> Vec<f32> {
    max_pool_backward_on(Isa::best(), dy, places, shape)
}

fn max_pool_backward_on(isa: Isa, dy: &[f32], places: &[u8], shape: PoolShape) -> Vec<f32> {
    let [depth, height, width] = shape.output();
    let len = shape.volumes * depth * shape.output_plane();
    assert_eq!(
        (dy.len(), places.len()),
        (len, len),
        "max pool: lengths of the gradient and the places"
    );
    // SAFETY: every row is filled or written by `spread_row`.
    unsafe {
        Output::in_chunks(
            shape.input_len(),
            shape.height * shape.width,
            |index, dx| {
                let (volume, z) = (index / shape.depth, index % shape.depth);
                for (y, dx) in dx.chunks_exact_mut(shape.width).enumerate() {
                    if y / 2 >= height || z / shape.planes() >= depth {
                        dx.fill(0.0);
                        continue;
                    }
                    let from = ((volume * depth + z / shape.planes()) * height + y / 2) * width;
                    let first = (z % shape.planes() * 4 + y % 2 * 2) as u8;
                    spread_row(
                        isa,
                        &dy[from..][..width],
                        &places[from..][..width],
                        first,
                        dx,
                    );
                }
            },
        )
    }
}

per_isa! {
    fn spread_row(dy: &[f32], places: &[u8], first: u8, dx: &mut [f32]) {
        let (pairs, rest) = dx.split_at_mut(2 * dy.len());
        for ((dx, &dy), &place) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(dy).zip(places) {
            *dx = [if place == first { dy } else { 0.0 }, if place == first + 1 { dy } else { 0.0 }];
        }
        rest.fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::noise;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn matches_the_definition(volumes in 1usize..4, depth in 1usize..6, height in 1usize..7, width in 1usize..80, pool_depth: bool, seed in 0u64..1000) {
            let shape = PoolShape { volumes, depth, height, width, pool_depth };
            // Few different values, so that there are ties.
            let x: Vec<f32> = noise(seed, shape.input_len()).iter().map(|v| (v * 4.0).round()).collect();
            let [out_z, out_y, out_x] = shape.output();
            let dy = noise(seed + 1, volumes * out_z * out_y * out_x);
            let (mut want, mut want_dx) = (vec![], vec![0.0; x.len()]);
            for v in 0..volumes {
                for z in 0..out_z {
                    for y in 0..out_y {
                        for c in 0..out_x {
                            let planes = shape.planes();
                            let mut best: Option<usize> = None;
                            for i in 0..4 * planes {
                                let at = ((v * depth + z * planes + i / 4) * height + 2 * y + i / 2 % 2) * width + 2 * c + i % 2;
                                if best.is_none_or(|b| x[at] > x[b]) {
                                    best = Some(at);
                                }
                            }
                            let best = best.unwrap();
                            want_dx[best] = dy[want.len()];
                            want.push(x[best]);
                        }
                    }
                }
            }
            for isa in Isa::available() {
                let (y, places) = max_pool_on(isa, &x, shape);
                prop_assert_eq!(&y, &want);
                prop_assert_eq!(&max_pool_backward_on(isa, &dy, &places, shape), &want_dx);
            }
        }
    }

    #[test]
    fn nan_is_the_largest() {
        let shape = PoolShape {
            volumes: 1,
            depth: 2,
            height: 2,
            width: 2,
            pool_depth: true,
        };
        let (y, places) = max_pool(&[1.0, 2.0, f32::NAN, 9.0, 3.0, 4.0, f32::NAN, 5.0], shape);
        assert!(y[0].is_nan());
        assert_eq!(places, [2]);
    }

    #[test]
    fn the_maxima_alone_are_the_same() {
        for pool_depth in [false, true] {
            let shape = PoolShape {
                volumes: 3,
                depth: 5,
                height: 6,
                width: 37,
                pool_depth,
            };
            let mut x = noise(4, shape.input_len());
            x[17] = f32::NAN;
            let (want, _) = max_pool(&x, shape);
            let mut got = vec![0.0; want.len()];
            max_pool_into(&x, shape, &mut got);
            let same = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
            assert!(got.iter().zip(&want).all(same));
        }
    }
}
