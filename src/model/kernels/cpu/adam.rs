//! Adam, all of it in one pass over a parameter.

use rayon::prelude::*;

use super::Isa;
use super::simd::per_isa;
use crate::model::kernels::AdamStep;

/// Values per task.
const STRETCH: usize = 64 * 1024;
/// A weight, or a mean of gradients, of less is zero. Weights that nothing but the penalty moves (taps that only ever see
/// padding, channels that died) shrink by a factor with each step until they are subnormal numbers, with which a processor
/// multiplies many times slower; a step of training then takes four times as long. Nothing that can be seen depends on
/// numbers so small.
const NEGLIGIBLE: f32 = 1e-20;
/// A mean of squares of less is zero: its root is far below epsilon.
const NEGLIGIBLE_SQUARE: f32 = 1e-30;

/// Changes a parameter and both moments by its gradient; all four are of one length.
pub fn adam_step(
    parameter: &mut [f32],
    grad: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    step: AdamStep,
) {
    let isa = Isa::best();
    let tasks = parameter
        .par_chunks_mut(STRETCH)
        .zip(grad.par_chunks(STRETCH))
        .zip(first.par_chunks_mut(STRETCH))
        .zip(second.par_chunks_mut(STRETCH));
    tasks.for_each(|(((parameter, grad), first), second)| {
        stretch(isa, parameter, grad, first, second, step)
    });
}

per_isa! {
    fn stretch(parameter: &mut [f32], grad: &[f32], first: &mut [f32], second: &mut [f32], step: AdamStep) {
        let (factor, epsilon) = step.corrections();
        for (((p, g), m), v) in parameter.iter_mut().zip(grad).zip(first).zip(second) {
            let g = g + *p * step.weight_decay;
            *m = kept(*m * step.beta_1 + g * (1.0 - step.beta_1), NEGLIGIBLE);
            *v = kept(*v * step.beta_2 + g * g * (1.0 - step.beta_2), NEGLIGIBLE_SQUARE);
            *p = kept(*p - step.rate * (*m * factor / (v.sqrt() + epsilon)), NEGLIGIBLE);
        }
    }
}

/// The value, or zero where it is smaller; what is not a number stays.
#[inline(always)]
fn kept(value: f32, least: f32) -> f32 {
    if value.abs() < least { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_without_a_gradient_shrink_and_never_become_subnormal() {
        let mut weights: Vec<f32> = (1..40).map(|n| n as f32 * 1e-3 - 0.02).collect();
        let (mut first, mut second) = (vec![0.0; weights.len()], vec![0.0; weights.len()]);
        let grad = vec![0.0; weights.len()];
        for time in 1..6000 {
            let step = AdamStep {
                rate: 4e-3,
                weight_decay: 1e-5,
                beta_1: 0.9,
                beta_2: 0.999,
                epsilon: 1e-8,
                time,
            };
            adam_step(&mut weights, &grad, &mut first, &mut second, step);
            for values in [&weights, &first, &second] {
                assert!(!values.iter().any(|v| v.is_subnormal()), "step {time}");
            }
        }
        assert!(weights.iter().all(|w| w.abs() < 1e-12), "{weights:?}");
    }

    #[test]
    fn what_is_not_a_number_stays_visible() {
        let step = AdamStep {
            rate: 4e-3,
            weight_decay: 0.0,
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            time: 1,
        };
        let (mut weight, mut first, mut second) = ([1.0], [0.0], [0.0]);
        adam_step(&mut weight, &[f32::NAN], &mut first, &mut second, step);
        assert!(weight[0].is_nan() && first[0].is_nan() && second[0].is_nan());
    }
}
