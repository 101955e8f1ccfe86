//! Trilinear upsampling by whole factors, with the corners not aligned: output voxel `o` lies at `(o + 0.5) / factor - 0.5` of the input, and
//! positions outside take the value of the nearest voxel.

use super::simd::{Output, with_scratch};

/// Sizes of an upsampling: input `[volumes, size]`, output `[volumes, size * factors]`, `volumes` = batch * channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpsampleShape {
    pub volumes: usize,
    /// `[depth, height, width]` of the input.
    pub size: [usize; 3],
    /// `[z, y, x]`, each at least 1.
    pub factors: [usize; 3],
}

impl UpsampleShape {
    /// `[depth, height, width]` of the output.
    pub fn output(&self) -> [usize; 3] {
        std::array::from_fn(|i| self.size[i] * self.factors[i])
    }

    fn lens(&self) -> (usize, usize) {
        (
            self.volumes * self.size.iter().product::<usize>(),
            self.volumes * self.output().iter().product::<usize>(),
        )
    }

    /// Per axis and output index: the two input indices and the weight of the second.
    fn sources(&self) -> [Vec<(usize, usize, f32)>; 3] {
        std::array::from_fn(|axis| {
            let (size, factor) = (self.size[axis], self.factors[axis]);
            (0..size * factor)
                .map(|o| {
                    let at = ((o as f32 + 0.5) / factor as f32 - 0.5).max(0.0);
                    let first = at as usize;
                    (first, (first + 1).min(size - 1), at - first as f32)
                })
                .collect()
        })
    }
}

/// The upsampled volumes.
pub fn upsample(x: &[f32], shape: UpsampleShape) -> Vec<f32> {
    let (input_len, output_len) = shape.lens();
    assert_eq!(x.len(), input_len, "upsample: length of the input");
    let [depth, height, width] = shape.size;
    let [out_depth, out_height, out_width] = shape.output();
    let [z_sources, y_sources, x_sources] = shape.sources();
    // SAFETY: every row of every plane is written.
    unsafe {
        Output::in_chunks(output_len, out_height * out_width, |index, to| {
            let (z0, z1, z_weight) = z_sources[index % out_depth];
            let volume = &x[index / out_depth * depth * height * width..][..depth * height * width];
            with_scratch([width], |[row]| {
                for (to, &(y0, y1, y_weight)) in to.chunks_exact_mut(out_width).zip(&y_sources) {
                    let input = |z: usize, y: usize| &volume[(z * height + y) * width..][..width];
                    let (a, b, c, d) = (input(z0, y0), input(z0, y1), input(z1, y0), input(z1, y1));
                    for (i, row) in row[..width].iter_mut().enumerate() {
                        *row = mix(
                            mix(a[i], b[i], y_weight),
                            mix(c[i], d[i], y_weight),
                            z_weight,
                        );
                    }
                    for (to, &(x0, x1, x_weight)) in to.iter_mut().zip(&x_sources) {
                        *to = mix(row[x0], row[x1], x_weight);
                    }
                }
            });
        })
    }
}

fn mix(a: f32, b: f32, weight: f32) -> f32 {
    a * (1.0 - weight) + b * weight
}

/// The gradient of the input: the adjoint of [`upsample`].
pub fn upsample_backward(dy: &[f32], shape: UpsampleShape) -> Vec<f32> {
    let (input_len, output_len) = shape.lens();
    assert_eq!(dy.len(), output_len, "upsample: length of the gradient");
    let [depth, height, width] = shape.size;
    let [out_depth, out_height, out_width] = shape.output();
    let [z_sources, y_sources, x_sources] = shape.sources();
    // SAFETY: every plane is zeroed before it is added to.
    unsafe {
        Output::in_chunks(input_len, height * width, |index, dx| {
            dx.fill(0.0);
            let z = index % depth;
            let volume = &dy[index / depth * out_depth * out_height * out_width..]
                [..out_depth * out_height * out_width];
            with_scratch([width], |[row]| {
                let row = &mut row[..width];
                for (out_z, &(z0, z1, weight)) in z_sources.iter().enumerate() {
                    let z_weight = if z0 == z { 1.0 - weight } else { 0.0 }
                        + if z1 == z { weight } else { 0.0 };
                    if z_weight == 0.0 {
                        continue;
                    }
                    let plane = &volume[out_z * out_height * out_width..][..out_height * out_width];
                    for (from, &(y0, y1, y_weight)) in plane.chunks_exact(out_width).zip(&y_sources)
                    {
                        row.fill(0.0);
                        for (&g, &(x0, x1, x_weight)) in from.iter().zip(&x_sources) {
                            row[x0] += g * (1.0 - x_weight);
                            row[x1] += g * x_weight;
                        }
                        for (y, weight) in
                            [(y0, z_weight * (1.0 - y_weight)), (y1, z_weight * y_weight)]
                        {
                            for (dx, row) in dx[y * width..][..width].iter_mut().zip(&*row) {
                                *dx += weight * row;
                            }
                        }
                    }
                }
            });
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, relative_error};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn matches_the_definition(volumes in 1usize..3, size in [1usize..5, 1usize..5, 1usize..20], factors in [1usize..4, 1usize..4, 1usize..5], seed in 0u64..1000) {
            let shape = UpsampleShape { volumes, size, factors };
            let (x, dy) = (noise(seed, shape.lens().0), noise(seed + 1, shape.lens().1));
            let (mut want, mut want_dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
            let [d, h, w] = size;
            let [od, oh, ow] = shape.output();
            let axis = |o: usize, i: usize, factor: usize, size: usize| {
                let at = ((o as f64 + 0.5) / factor as f64 - 0.5).clamp(0.0, (size - 1) as f64);
                (1.0 - (at - i as f64).abs()).max(0.0)
            };
            for v in 0..volumes {
                for (o, i) in (0..od * oh * ow).flat_map(|o| (0..d * h * w).map(move |i| (o, i))) {
                    let weight = axis(o / (oh * ow), i / (h * w), factors[0], d)
                        * axis(o / ow % oh, i / w % h, factors[1], h)
                        * axis(o % ow, i % w, factors[2], w);
                    want[v * od * oh * ow + o] += weight * f64::from(x[v * d * h * w + i]);
                    want_dx[v * d * h * w + i] += weight * f64::from(dy[v * od * oh * ow + o]);
                }
            }
            prop_assert!(relative_error(&upsample(&x, shape), &want, 0.3) < 1e-5);
            prop_assert!(relative_error(&upsample_backward(&dy, shape), &want_dx, 0.3) < 1e-5);
        }
    }
}
