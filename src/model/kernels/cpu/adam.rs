//! Adam, all of it in one pass over a parameter.

use rayon::prelude::*;

use super::Isa;
use super::simd::per_isa;
use crate::model::kernels::AdamStep;

/// Values per task.
const STRETCH: usize = 64 * 1024;

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
            *m = *m * step.beta_1 + g * (1.0 - step.beta_1);
            *v = *v * step.beta_2 + g * g * (1.0 - step.beta_2);
            *p -= step.rate * (*m * factor / (v.sqrt() + epsilon));
        }
    }
}
