//! Dice of a network on labelled cases.

use std::ops::ControlFlow;

use super::data::{TrainCase, load};
use crate::imaging::metrics;
use crate::model::error::ModelError;
use crate::model::infer::{Network, segment};
use crate::model::manifest::ModelDescription;

/// Mean Dice per structure over cases, only where the structure was annotated; with `mirror` the network is asked twice. One
/// case is in memory at a time.
pub fn dice_on(
    net: &Network,
    model: &ModelDescription,
    mirror: Option<&[u8]>,
    cases: &[TrainCase],
    between: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<ControlFlow<(), Vec<Option<f64>>>, ModelError> {
    let classes = model.network.class_num;
    let mut per_case = Vec::with_capacity(cases.len());
    for case in cases {
        let (case, _) = load(case, classes).map_err(|note| ModelError::Data(note.to_string()))?;
        let result = match segment(net, model, mirror, &case.scan, &[], &mut |_, _| between()) {
            Err(ModelError::Stopped) => return Ok(ControlFlow::Break(())),
            result => result?,
        };
        let dice = metrics::dice_per_class(&result.labels.voxels, &case.labels.voxels, classes);
        let known = dice
            .into_iter()
            .zip(&case.annotated)
            .map(|(dice, &known)| dice.filter(|_| known));
        per_case.push(known.collect::<Vec<_>>());
    }
    let mean = |class: usize| metrics::mean(per_case.iter().map(|dice| dice[class]));
    Ok(ControlFlow::Continue((1..classes).map(mean).collect()))
}
