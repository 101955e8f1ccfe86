//! Half Dice, half cross entropy of one scale with its gradient, in two passes over the logits.
//!
//! With softmax probabilities p, one-hot labels y, N voxels (batch included) and C classes: cross entropy is
//! `-sum(y log p) / N`; Dice per class is `(2 sum(p y) + s) / (sum(p) + sum(y) + s)`, the loss one minus its mean.

use super::math::exp;
use rayon::prelude::*;

/// Voxels per task; part of the rounding of the sums.
const CHUNK: usize = 4096;

/// Sums of one class.
#[derive(Clone, Copy, Default)]
struct Sums {
    overlap: f64,
    predicted: f64,
    labelled: f64,
}

/// The loss, and the gradient of the logits.
///
/// `logits` `[batch, classes, voxels]`, `labels` `[batch, voxels]` with values below `classes`.
pub fn dice_cross_entropy(
    logits: &[f32],
    labels: &[u8],
    classes: usize,
    voxels: usize,
    smoothing: f64,
) -> (f32, Vec<f32>) {
    let count = labels.len() as f64;
    // First pass: probabilities, in the buffer that becomes the gradient.
    let mut p = vec![0f32; logits.len()];
    let tasks = Planes::of(&mut p, classes, voxels);
    let parts: Vec<(f64, Vec<Sums>)> = tasks
        .into_par_iter()
        .map(|mut planes| {
            let sample = &logits[planes.sample * classes * voxels..][..classes * voxels];
            let labels = &labels[planes.sample * voxels + planes.start..][..planes.len()];
            let (len, start) = (planes.len(), planes.start);
            let mut largest = vec![f32::NEG_INFINITY; len];
            for class in 0..classes {
                for (m, l) in largest
                    .iter_mut()
                    .zip(&sample[class * voxels + start..][..len])
                {
                    *m = m.max(*l);
                }
            }
            let mut total = vec![0f32; len];
            for class in 0..classes {
                let l = &sample[class * voxels + start..][..len];
                for (((p, l), m), t) in planes.rows[class]
                    .iter_mut()
                    .zip(l)
                    .zip(&largest)
                    .zip(&mut total)
                {
                    *p = exp::<false>(l - m);
                    *t += *p;
                }
            }
            let mut sums = vec![Sums::default(); classes];
            let mut entropy = 0f64;
            for (v, &label) in labels.iter().enumerate() {
                let class = usize::from(label);
                let l = sample[class * voxels + start + v];
                entropy -= f64::from(l - largest[v] - total[v].ln());
                sums[class].labelled += 1.0;
                sums[class].overlap += f64::from(planes.rows[class][v] / total[v]);
            }
            for t in &mut total {
                *t = 1.0 / *t;
            }
            for (row, sums) in planes.rows.iter_mut().zip(&mut sums) {
                let mut predicted = 0f32;
                for (p, t) in row.iter_mut().zip(&total) {
                    *p *= t;
                    predicted += *p;
                }
                sums.predicted += f64::from(predicted);
            }
            (entropy, sums)
        })
        .collect();
    let mut entropy = 0.0;
    let mut sums = vec![Sums::default(); classes];
    for (part, of_part) in parts {
        entropy += part;
        for (sum, part) in sums.iter_mut().zip(of_part) {
            sum.overlap += part.overlap;
            sum.predicted += part.predicted;
            sum.labelled += part.labelled;
        }
    }
    let dice = |s: &Sums| (2.0 * s.overlap + smoothing) / (s.predicted + s.labelled + smoothing);
    let mean = sums.iter().map(dice).sum::<f64>() / classes as f64;
    let loss = 0.5 * entropy / count + 0.5 * (1.0 - mean);

    // d(loss)/dp = -0.5 / C * (2 y - dice) / (sum(p) + sum(y) + s); through the softmax: p (g - sum(g p)).
    let slopes: Vec<(f32, f32)> = sums
        .iter()
        .map(|s| {
            let below = s.predicted + s.labelled + smoothing;
            let share = -0.5 / classes as f64 / below;
            ((share * 2.0) as f32, (-share * dice(s)) as f32)
        })
        .collect();
    let entropy_share = (0.5 / count) as f32;
    Planes::of(&mut p, classes, voxels)
        .into_par_iter()
        .for_each(|mut planes| {
            let labels = &labels[planes.sample * voxels + planes.start..][..planes.len()];
            let mut along = vec![0f32; planes.len()];
            for (class, row) in planes.rows.iter().enumerate() {
                let (on, always) = slopes[class];
                for ((a, p), &label) in along.iter_mut().zip(row.iter()).zip(labels) {
                    *a += p * (always + if usize::from(label) == class { on } else { 0.0 });
                }
            }
            for (class, row) in planes.rows.iter_mut().enumerate() {
                let (on, always) = slopes[class];
                for ((p, a), &label) in row.iter_mut().zip(&along).zip(labels) {
                    let here = usize::from(label) == class;
                    let (g, y) = (
                        always + if here { on } else { 0.0 },
                        if here { 1.0 } else { 0.0 },
                    );
                    *p = *p * (g - a) + entropy_share * (*p - y);
                }
            }
        });
    (loss as f32, p)
}

/// The same stretch of voxels of every class of one sample.
struct Planes<'a> {
    sample: usize,
    start: usize,
    rows: Vec<&'a mut [f32]>,
}

impl<'a> Planes<'a> {
    fn of(values: &'a mut [f32], classes: usize, voxels: usize) -> Vec<Self> {
        let stretches = voxels.div_ceil(CHUNK);
        let mut tasks = Vec::new();
        for (sample, values) in values.chunks_exact_mut(classes * voxels).enumerate() {
            let mut of_sample: Vec<Self> = (0..stretches)
                .map(|i| Self {
                    sample,
                    start: i * CHUNK,
                    rows: Vec::with_capacity(classes),
                })
                .collect();
            for plane in values.chunks_exact_mut(voxels) {
                for (task, row) in of_sample.iter_mut().zip(plane.chunks_mut(CHUNK)) {
                    task.rows.push(row);
                }
            }
            tasks.append(&mut of_sample);
        }
        tasks
    }

    fn len(&self) -> usize {
        self.rows.first().map_or(0, |row| row.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::noise;
    use super::*;
    use proptest::prelude::*;

    fn plain(logits: &[f64], labels: &[u8], classes: usize, voxels: usize, smoothing: f64) -> f64 {
        let mut entropy = 0.0;
        let (mut overlap, mut sizes) = (vec![0.0; classes], vec![0.0; classes]);
        for (i, &label) in labels.iter().enumerate() {
            let (b, v) = (i / voxels, i % voxels);
            let l: Vec<f64> = (0..classes)
                .map(|c| logits[(b * classes + c) * voxels + v])
                .collect();
            let total: f64 = l.iter().map(|l| l.exp()).sum();
            for (c, l) in l.iter().enumerate() {
                let p = l.exp() / total;
                sizes[c] += p;
                if c == usize::from(label) {
                    overlap[c] += p;
                    sizes[c] += 1.0;
                    entropy -= p.ln();
                }
            }
        }
        let dice: f64 = overlap
            .iter()
            .zip(&sizes)
            .map(|(o, s)| (2.0 * o + smoothing) / (s + smoothing))
            .sum();
        0.5 * entropy / labels.len() as f64 + 0.5 * (1.0 - dice / classes as f64)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn loss_and_gradient(batch in 1usize..3, classes in 2usize..5, voxels in 1usize..40, seed in 0u64..999) {
            let logits: Vec<f32> = noise(seed, batch * classes * voxels).iter().map(|v| v * 3.0).collect();
            let labels: Vec<u8> = noise(seed + 1, batch * voxels).iter().map(|v| ((v + 1.0) * 0.4999 * classes as f32) as u8).collect();
            let (loss, gradient) = dice_cross_entropy(&logits, &labels, classes, voxels, 1e-5);
            let exact: Vec<f64> = logits.iter().map(|v| f64::from(*v)).collect();
            let want = plain(&exact, &labels, classes, voxels, 1e-5);
            prop_assert!((f64::from(loss) - want).abs() < 1e-5, "{loss} {want}");
            for i in 0..logits.len().min(12) {
                let step = 1e-5;
                let (mut up, mut down) = (exact.clone(), exact.clone());
                up[i] += step;
                down[i] -= step;
                let slope = (plain(&up, &labels, classes, voxels, 1e-5) - plain(&down, &labels, classes, voxels, 1e-5)) / (2.0 * step);
                prop_assert!((f64::from(gradient[i]) - slope).abs() < 2e-5, "{i}: {} {slope}", gradient[i]);
            }
        }
    }

    #[test]
    fn many_voxels_and_extreme_logits() {
        let voxels = CHUNK * 2 + 77;
        let logits: Vec<f32> = noise(5, 2 * voxels).iter().map(|v| v * 200.0).collect();
        let labels = vec![1u8; voxels];
        let (loss, gradient) = dice_cross_entropy(&logits, &labels, 2, voxels, 1e-5);
        assert!(loss.is_finite() && gradient.iter().all(|g| g.is_finite()));
    }
}
