//! The training loss: half Dice, half cross entropy, on all four scales.
//!
//! As PyMIC computes it (the code base of the MIS-FM publication): softmax probabilities, voxels pooled over the batch,
//! background included, smoothing 1e-5; scales weighted 1, 1/2, 1/4, 1/8 and normalised by their sum; coarse logits
//! upsampled to the label's size. Cross entropy is taken from the log-softmax, so it stays finite.

use burn::tensor::{Int, Tensor, TensorData, activation, backend::Backend};

use super::kernels::{DICE_SMOOTHING, Kernels, VoxelLabels, raw, wrap};

/// Smallest probability whose logarithm is taken after merging classes.
const TINY: f64 = 1e-12;

/// Labels of a batch, ready for the loss.
pub struct Target<B: Backend> {
    labels: VoxelLabels,
    batch: usize,
    classes: usize,
    device: B::Device,
    /// 1 where a class counts as background because it was not annotated in that case: `[batch, classes, 1]`.
    merged: Option<Tensor<B, 3>>,
}

impl<B: Backend> Target<B> {
    /// `labels` holds class indices `[batch, depth, height, width]`, x fastest. `annotated[b]` says for each class of
    /// case `b` whether it was annotated; a class that was not is unknown there: the label 0 then means "background
    /// or one of the unknown classes", and so does a label of such a class.
    pub fn new(
        labels: &[u8],
        size: [usize; 3],
        annotated: &[Vec<bool>],
        device: &B::Device,
    ) -> Self {
        let batch = annotated.len();
        let classes = annotated.first().map_or(0, Vec::len);
        let partial = annotated.iter().any(|known| known[1..].contains(&false));
        let merged = partial.then(|| {
            let values = annotated
                .iter()
                .flat_map(|known| {
                    known
                        .iter()
                        .enumerate()
                        .map(|(c, &k)| if c == 0 || !k { 1.0f32 } else { 0.0 })
                })
                .collect::<Vec<_>>();
            Tensor::from_data(TensorData::new(values, [batch, classes, 1]), device)
        });
        let voxels = size.iter().product::<usize>().max(1);
        let classes_of = labels
            .chunks(voxels)
            .zip(annotated)
            .flat_map(|(labels, known)| {
                let known = |label: u8| known.get(usize::from(label)) == Some(&true);
                labels
                    .iter()
                    .map(move |&label| if known(label) { label } else { 0 })
            });
        let labels = VoxelLabels {
            classes: classes_of.collect(),
            size,
        };
        Self {
            labels,
            batch,
            classes,
            device: device.clone(),
            merged,
        }
    }

    /// `[batch, classes, voxels]`.
    fn one_hot(&self) -> Tensor<B, 3> {
        let voxels: usize = self.labels.size.iter().product();
        let mut values = vec![0f32; self.batch * self.classes * voxels];
        for (b, sample) in self.labels.classes.chunks_exact(voxels).enumerate() {
            for (v, &label) in sample.iter().enumerate() {
                values[(b * self.classes + usize::from(label)) * voxels + v] = 1.0;
            }
        }
        Tensor::from_data(
            TensorData::new(values, [self.batch, self.classes, voxels]),
            &self.device,
        )
    }
}

/// Weighted loss over the scales, finest first, each `[batch, classes, d, h, w]`. Returns `[1]`.
pub fn deep_supervised<B: Kernels>(logits: &[Tensor<B, 5>], target: &Target<B>) -> Tensor<B, 1> {
    let weights: Vec<f64> = (0..logits.len()).map(|i| 0.5f64.powi(i as i32)).collect();
    let total: f64 = weights.iter().sum();
    logits
        .iter()
        .zip(weights)
        .map(|(scale, weight)| dice_and_cross_entropy(scale.clone(), target) * (weight / total))
        .reduce(|a, b| a + b)
        .unwrap_or_else(|| Tensor::zeros([1], &target.device))
}

/// 0.5 Dice + 0.5 cross entropy of logits `[batch, classes, d, h, w]`, upsampled to the label's size first.
pub fn dice_and_cross_entropy<B: Kernels>(
    logits: Tensor<B, 5>,
    target: &Target<B>,
) -> Tensor<B, 1> {
    if target.merged.is_none()
        && let Some(loss) = B::dice_cross_entropy_loss(raw(logits.clone()), &target.labels)
    {
        return wrap(loss);
    }
    composed(logits, target)
}

/// [`dice_and_cross_entropy`] of burn's operations, for backends without the kernel and for unknown classes.
fn composed<B: Backend>(logits: Tensor<B, 5>, target: &Target<B>) -> Tensor<B, 1> {
    let logits = upsample(logits, target.labels.size);
    let [batch, classes, d, h, w] = logits.dims();
    let voxels = d * h * w;
    let log_p = activation::log_softmax(logits.reshape([batch, classes, voxels]), 1);
    let p = log_p.clone().exp();
    let y = target.one_hot();
    let count = (batch * voxels) as f64;
    let Some(merged) = &target.merged else {
        let cross_entropy = (y.clone() * log_p).sum() * (-1.0 / count);
        return (cross_entropy + dice_loss(p, y, None)) * 0.5;
    };
    // Unknown classes join the background: their probabilities are summed, and they leave the Dice of their case.
    let background = (p.clone() * merged.clone()).sum_dim(1);
    let keep = merged.clone().neg() + 1.0;
    let first = Tensor::<B, 1, Int>::arange(0..classes as i64, &log_p.device())
        .equal_elem(0)
        .float()
        .reshape([1, classes, 1]);
    let p = p * keep.clone() + background.clone() * first.clone();
    let log_p = log_p * keep.clone() + (background + TINY).log() * first.clone();
    let cross_entropy = (y.clone() * log_p).sum() * (-1.0 / count);
    (cross_entropy + dice_loss(p, y, Some(keep + first))) * 0.5
}

/// One minus the mean Dice over classes; `counted` `[batch, classes, 1]` leaves out a class of a case.
fn dice_loss<B: Backend>(
    p: Tensor<B, 3>,
    y: Tensor<B, 3>,
    counted: Option<Tensor<B, 3>>,
) -> Tensor<B, 1> {
    let (p, y) = match &counted {
        Some(counted) => (p * counted.clone(), y * counted.clone()),
        None => (p, y),
    };
    let pooled = |t: Tensor<B, 3>| t.sum_dim(2).sum_dim(0).flatten::<1>(0, 2);
    let overlap = pooled(p.clone() * y.clone());
    let dice = (overlap * 2.0 + DICE_SMOOTHING) / (pooled(p) + pooled(y) + DICE_SMOOTHING);
    match counted {
        None => dice.mean().neg() + 1.0,
        Some(counted) => {
            // A class that nobody in the batch annotated says nothing.
            let present = counted
                .sum_dim(0)
                .flatten::<1>(0, 2)
                .greater_elem(0.0)
                .float();
            let dice = (dice * present.clone()).sum() / present.sum();
            dice.neg() + 1.0
        }
    }
}

/// Trilinear upsampling with centre-aligned grids (`align_corners=False`): one small matrix per axis.
fn upsample<B: Backend>(x: Tensor<B, 5>, size: [usize; 3]) -> Tensor<B, 5> {
    let mut x = x;
    for (axis, &to) in size.iter().enumerate() {
        let dims = x.dims();
        let from = dims[axis + 2];
        if from == to {
            continue;
        }
        let matrix = Tensor::<B, 2>::from_data(
            TensorData::new(linear_weights(from, to), [to, from]),
            &x.device(),
        );
        let inner: usize = dims[axis + 3..].iter().product();
        let outer: usize = dims[..axis + 2].iter().product();
        let y = if inner == 1 {
            x.reshape([1, outer, from])
                .matmul(matrix.transpose().unsqueeze())
        } else {
            matrix
                .unsqueeze::<3>()
                .expand([outer, to, from])
                .matmul(x.reshape([outer, from, inner]))
        };
        let mut shape = dims;
        shape[axis + 2] = to;
        x = y.reshape(shape);
    }
    x
}

/// `[to, from]` weights of linear interpolation between voxel centres, edges repeated.
fn linear_weights(from: usize, to: usize) -> Vec<f32> {
    let mut weights = vec![0f32; to * from];
    let scale = from as f64 / to as f64;
    for row in 0..to {
        let position = ((row as f64 + 0.5) * scale - 0.5).clamp(0.0, (from - 1) as f64);
        let low = position as usize;
        let high = (low + 1).min(from - 1);
        let share = (position - low as f64) as f32;
        weights[row * from + low] += 1.0 - share;
        weights[row * from + high] += share;
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    fn loss(logits: Vec<f32>, labels: &[u8], annotated: &[bool]) -> f32 {
        let device = Default::default();
        let classes = annotated.len();
        let voxels = labels.len();
        let logits = Tensor::<Flex, 5>::from_data(
            TensorData::new(logits, [1, classes, 1, 1, voxels]),
            &device,
        );
        let target = Target::new(labels, [1, 1, voxels], &[annotated.to_vec()], &device);
        dice_and_cross_entropy(logits, &target).into_scalar()
    }

    #[test]
    fn certainty_costs_nothing() {
        let right = loss(vec![50.0, -50.0, -50.0, 50.0], &[0, 1], &[true, true]);
        assert!(right.abs() < 1e-4, "{right}");
        let wrong = loss(vec![-50.0, 50.0, 50.0, -50.0], &[0, 1], &[true, true]);
        assert!(wrong.is_finite() && wrong > 40.0, "{wrong}");
    }

    #[test]
    fn an_unknown_class_may_be_predicted_in_the_background() {
        // three classes, two voxels: voxel 0 background by the label, predicted as class 2; voxel 1 class 1
        let logits = vec![-50.0, -50.0, -50.0, 50.0, 50.0, -50.0];
        let strict = loss(logits.clone(), &[0, 1], &[true, true, true]);
        let unknown = loss(logits, &[0, 1], &[true, true, false]);
        assert!(strict > 20.0, "{strict}");
        assert!(unknown.abs() < 1e-3, "{unknown}");
    }

    #[test]
    fn what_is_annotated_is_never_masked() {
        // Whatever else is unknown in the case, a wrong answer at a voxel of an annotated class costs.
        for other in [true, false] {
            let right = vec![-50.0, 50.0, 50.0, -50.0, -50.0, -50.0];
            let missed = vec![50.0, 50.0, -50.0, -50.0, -50.0, -50.0];
            let taken = vec![-50.0, 50.0, -50.0, -50.0, 50.0, -50.0];
            let cost = |logits| loss(logits, &[1, 0], &[true, true, other]);
            assert!(cost(right).abs() < 1e-3, "{other}");
            assert!(cost(missed) > 10.0 && cost(taken) > 10.0, "{other}");
        }
        // A marked voxel of a class that was not declared is unknown like the rest of it.
        for logits in [
            vec![50.0, -50.0, -50.0, 50.0, -50.0, -50.0],
            vec![-50.0, -50.0, -50.0, 50.0, 50.0, -50.0],
        ] {
            let cost = loss(logits, &[2, 1], &[true, true, false]);
            assert!(cost.abs() < 1e-3, "{cost}");
        }
    }

    #[test]
    fn the_kernel_and_the_composition_agree() {
        let device = Default::default();
        let size = [4, 8, 8];
        let mut rng = crate::rng::Rng::new(4);
        let labels: Vec<u8> = (0..2 * 256).map(|_| rng.below(3) as u8).collect();
        let target = Target::<Flex>::new(&labels, size, &[vec![true; 3], vec![true; 3]], &device);
        for shape in [[2, 3, 4, 8, 8], [2, 3, 4, 4, 4], [2, 3, 1, 2, 2]] {
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|_| rng.normal() as f32)
                .collect();
            let logits = Tensor::from_data(TensorData::new(values, shape), &device);
            let fused = dice_and_cross_entropy(logits.clone(), &target).into_scalar();
            let plain = composed(logits, &target).into_scalar();
            assert!((fused - plain).abs() < 1e-5, "{fused} {plain}");
        }
    }

    #[test]
    fn interpolation_weights_sum_to_one() {
        for (from, to) in [(4, 8), (3, 12), (1, 5)] {
            let weights = linear_weights(from, to);
            for row in weights.chunks(from) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }
        }
        // torch: interpolate of [0, 1] to 4 gives 0, 0.25, 0.75, 1
        assert_eq!(
            linear_weights(2, 4),
            [1.0, 0.0, 0.75, 0.25, 0.25, 0.75, 0.0, 1.0]
        );
    }
}
