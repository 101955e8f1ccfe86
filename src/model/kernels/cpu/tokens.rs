//! Moving rows of channels: windows out of maps, heads out of rows, blocks of voxels out of channels. All are copies of contiguous
//! pieces, which a tensor library's general permutation does element by element.

use rayon::prelude::*;

/// Rows per task.
const ROWS: usize = 256;

/// Marks a row of zeros in an index.
pub const EMPTY: u32 = u32::MAX;

/// `y[b, i, :] = x[b, index[i], :]` for `x` `[batch, rows, channels]`; zeros where the index is [`EMPTY`].
pub fn gather_rows(x: &[f32], batch: usize, channels: usize, index: &[u32]) -> Vec<f32> {
    let rows = x.len() / (batch * channels).max(1);
    let mut y = vec![0f32; batch * index.len() * channels];
    y.par_chunks_mut(ROWS * channels)
        .enumerate()
        .for_each(|(chunk, y)| {
            for (i, to) in y.chunks_exact_mut(channels).enumerate() {
                let at = chunk * ROWS + i;
                let from = index[at % index.len()];
                if from != EMPTY {
                    let from = (at / index.len() * rows + from as usize) * channels;
                    to.copy_from_slice(&x[from..from + channels]);
                }
            }
        });
    y
}

/// `[windows, tokens, parts * heads * dim]` to `parts` arrays `[windows, heads, tokens, dim]`.
pub fn split_heads(
    x: &[f32],
    tokens: usize,
    parts: usize,
    heads: usize,
    dim: usize,
) -> Vec<Vec<f32>> {
    let row = parts * heads * dim;
    let matrix = tokens * dim;
    (0..parts)
        .map(|part| {
            let mut y = vec![0f32; x.len() / parts];
            y.par_chunks_mut(heads * matrix)
                .zip(x.par_chunks(tokens * row))
                .for_each(|(y, x)| {
                    for (token, x) in x.chunks_exact(row).enumerate() {
                        for head in 0..heads {
                            let from = (part * heads + head) * dim;
                            y[head * matrix + token * dim..][..dim]
                                .copy_from_slice(&x[from..from + dim]);
                        }
                    }
                });
            y
        })
        .collect()
}

/// The inverse of [`split_heads`].
pub fn merge_heads(parts: &[&[f32]], tokens: usize, heads: usize, dim: usize) -> Vec<f32> {
    let row = parts.len() * heads * dim;
    let matrix = tokens * dim;
    let mut y = vec![0f32; parts.iter().map(|part| part.len()).sum()];
    y.par_chunks_mut(tokens * row)
        .enumerate()
        .for_each(|(window, y)| {
            for (token, y) in y.chunks_exact_mut(row).enumerate() {
                for (to, y) in y.chunks_exact_mut(dim).enumerate() {
                    let (part, head) = (parts[to / heads], to % heads);
                    let from = (window * heads + head) * matrix + token * dim;
                    y.copy_from_slice(&part[from..from + dim]);
                }
            }
        });
    y
}

/// `[batch, channels, rows]` to `[batch, rows, channels]`, by squares that stay in cache.
pub fn transpose(x: &[f32], channels: usize, rows: usize) -> Vec<f32> {
    const SIDE: usize = 32;
    let mut y = vec![0f32; x.len()];
    if x.is_empty() {
        return y;
    }
    let volume = channels * rows;
    y.par_chunks_mut(SIDE * channels)
        .enumerate()
        .for_each(|(task, y)| {
            // A task is up to SIDE rows of one sample when rows is a multiple of SIDE, else it may cross samples.
            for (i, to) in y.chunks_exact_mut(channels).enumerate() {
                let at = task * SIDE + i;
                let x = &x[at / rows * volume..];
                let row = at % rows;
                for (c, to) in to.iter_mut().enumerate() {
                    *to = x[c * rows + row];
                }
            }
        });
    y
}

/// Blocks of output voxels out of channels: `x` `[batch, out * kd * kh * kw, d, h, w]` to `[batch, out, d * kd, h * kh, w * kw]`, plus a
/// bias per output channel.
pub fn blocks_to_space(
    x: &[f32],
    out: usize,
    kernel: [usize; 3],
    map: [usize; 3],
    bias: &[f32],
) -> Vec<f32> {
    let mut y = vec![0f32; x.len()];
    blocks_to_space_into(x, out, kernel, map, bias, &mut y);
    y
}

/// [`blocks_to_space`] into a buffer as long as `x`.
pub fn blocks_to_space_into(
    x: &[f32],
    out: usize,
    kernel: [usize; 3],
    map: [usize; 3],
    bias: &[f32],
    y: &mut [f32],
) {
    let [kd, kh, kw] = kernel;
    let [d, h, w] = map;
    let (voxels, taps) = (d * h * w, kd * kh * kw);
    y.par_chunks_mut(kh * h * kw * w)
        .enumerate()
        .for_each(|(plane, y)| {
            let (volume, z) = (plane / (d * kd), plane % (d * kd));
            let x = &x[volume * taps * voxels..][..taps * voxels];
            let bias = bias[volume % out];
            for (row, y) in y.chunks_exact_mut(kw * w).enumerate() {
                for k in 0..kw {
                    let tap = (z % kd * kh + row % kh) * kw + k;
                    let x = &x[tap * voxels + (z / kd * h + row / kh) * w..][..w];
                    for (y, x) in y[k..].iter_mut().step_by(kw).zip(x) {
                        *y = x + bias;
                    }
                }
            }
        });
}

/// The adjoint of [`blocks_to_space`] without its bias.
pub fn space_to_blocks(y: &[f32], kernel: [usize; 3], map: [usize; 3]) -> Vec<f32> {
    let [kd, kh, kw] = kernel;
    let [d, h, w] = map;
    let (voxels, taps) = (d * h * w, kd * kh * kw);
    let mut x = vec![0f32; y.len()];
    x.par_chunks_mut(voxels)
        .enumerate()
        .for_each(|(channel, x)| {
            let (volume, tap) = (channel / taps, channel % taps);
            let (kz, ky, kx) = (tap / (kh * kw), tap / kw % kh, tap % kw);
            let y = &y[volume * taps * voxels..][..taps * voxels];
            for (row, x) in x.chunks_exact_mut(w).enumerate() {
                let (z, at) = (row / h * kd + kz, row % h * kh + ky);
                let y = &y[(z * h * kh + at) * w * kw..][..w * kw];
                for (x, y) in x.iter_mut().zip(y[kx..].iter().step_by(kw)) {
                    *x = *y;
                }
            }
        });
    x
}

/// Sum over the rows of `[rows, channels]`, in an order that depends on the shape alone.
pub fn sum_rows(x: &[f32], channels: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = x
        .par_chunks(ROWS * channels)
        .map(|x| {
            let mut sum = vec![0f32; channels];
            for row in x.chunks_exact(channels) {
                for (sum, x) in sum.iter_mut().zip(row) {
                    *sum += x;
                }
            }
            sum
        })
        .collect();
    let mut total = vec![0f64; channels];
    for part in parts {
        for (total, part) in total.iter_mut().zip(part) {
            *total += f64::from(part);
        }
    }
    total.into_iter().map(|sum| sum as f32).collect()
}

/// Sum of each channel of `[batch, channels, voxels]`.
pub fn sum_channels(x: &[f32], channels: usize, voxels: usize) -> Vec<f32> {
    let mut total = vec![0f64; channels];
    let sums: Vec<f64> = x
        .par_chunks(voxels.max(1))
        .map(|x| {
            x.chunks(ROWS)
                .map(|x| f64::from(x.iter().sum::<f32>()))
                .sum()
        })
        .collect();
    for (i, sum) in sums.into_iter().enumerate() {
        total[i % channels] += sum;
    }
    total.into_iter().map(|sum| sum as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::noise;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn rows_go_where_the_index_says(batch in 1usize..3, rows in 1usize..20, channels in 1usize..9, seed in 0u64..99) {
            let x = noise(seed, batch * rows * channels);
            let index: Vec<u32> = (0..rows as u32 * 2).map(|i| if i % 3 == 0 { EMPTY } else { (i * 7) % rows as u32 }).collect();
            let y = gather_rows(&x, batch, channels, &index);
            for b in 0..batch {
                for (i, &from) in index.iter().enumerate() {
                    for c in 0..channels {
                        let want = if from == EMPTY { 0.0 } else { x[(b * rows + from as usize) * channels + c] };
                        prop_assert_eq!(y[(b * index.len() + i) * channels + c], want);
                    }
                }
            }
        }

        #[test]
        fn heads_come_back(windows in 1usize..4, tokens in 1usize..9, parts in 1usize..4, heads in 1usize..4, dim in 1usize..6, seed in 0u64..99) {
            let x = noise(seed, windows * tokens * parts * heads * dim);
            let split = split_heads(&x, tokens, parts, heads, dim);
            let w = windows - 1;
            let (t, p, h) = (tokens - 1, parts - 1, heads - 1);
            prop_assert_eq!(
                split[p][((w * heads + h) * tokens + t) * dim],
                x[((w * tokens + t) * parts + p) * heads * dim + h * dim]
            );
            let borrowed: Vec<&[f32]> = split.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(merge_heads(&borrowed, tokens, heads, dim), x);
        }

        #[test]
        fn transposition(batch in 1usize..3, channels in 1usize..40, rows in 1usize..80, seed in 0u64..99) {
            let x = noise(seed, batch * channels * rows);
            let y = transpose(&x, channels, rows);
            for (i, y) in y.iter().enumerate() {
                let (b, r, c) = (i / (rows * channels), i / channels % rows, i % channels);
                prop_assert_eq!(*y, x[(b * channels + c) * rows + r]);
            }
        }

        #[test]
        fn blocks_become_space(batch in 1usize..3, out in 1usize..4, deep in 1usize..3, d in 1usize..4, h in 1usize..4, w in 1usize..6, seed in 0u64..99) {
            let kernel = [deep, 2, 2];
            let x = noise(seed, batch * out * deep * 4 * d * h * w);
            let bias = noise(seed + 1, out);
            let y = blocks_to_space(&x, out, kernel, [d, h, w], &bias);
            for (i, y) in y.iter().enumerate() {
                let (ow, oh, od) = (2 * w, 2 * h, deep * d);
                let (b, c) = (i / (ow * oh * od * out), i / (ow * oh * od) % out);
                let (z, r, k) = (i / (ow * oh) % od, i / ow % oh, i % ow);
                let tap = (z % deep * 2 + r % 2) * 2 + k % 2;
                let from = ((((b * out + c) * deep * 4 + tap) * d + z / deep) * h + r / 2) * w + k / 2;
                prop_assert_eq!(*y, x[from] + bias[c]);
            }
            let zero = vec![0.0; out];
            let back = space_to_blocks(&blocks_to_space(&x, out, kernel, [d, h, w], &zero), kernel, [d, h, w]);
            prop_assert_eq!(back, x);
        }

        #[test]
        fn sums(rows in 1usize..600, channels in 1usize..7, seed in 0u64..99) {
            let x = noise(seed, rows * channels);
            let want: Vec<f64> = (0..channels).map(|c| x.iter().skip(c).step_by(channels).map(|v| f64::from(*v)).sum()).collect();
            for (got, want) in sum_rows(&x, channels).iter().zip(&want) {
                prop_assert!((f64::from(*got) - want).abs() < 1e-3);
            }
            let by_channel = sum_channels(&transpose(&x, rows, channels), channels, rows);
            for (got, want) in by_channel.iter().zip(&want) {
                prop_assert!((f64::from(*got) - want).abs() < 1e-3);
            }
        }
    }
}
