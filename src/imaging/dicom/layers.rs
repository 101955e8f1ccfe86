//! Segments that may overlap, as layers of label values.

use std::collections::BTreeMap;

use crate::imaging::budget::Budget;
use crate::imaging::error::ImagingError;

/// Most layers of one file.
const MAX_LAYERS: usize = 1024;

/// Where a segment is: the slices that it touches, each with all of its pixels.
pub(super) type Mask = BTreeMap<usize, Vec<bool>>;

/// Layers of one grid; there is always one.
pub(super) struct Layers<'b> {
    budget: &'b Budget,
    shape: [usize; 3],
    layers: Vec<Vec<u16>>,
}

impl<'b> Layers<'b> {
    /// One empty layer of `shape` (z, y, x).
    ///
    /// # Errors
    /// A grid over the budget.
    pub fn new(shape: [usize; 3], budget: &'b Budget) -> Result<Self, ImagingError> {
        let mut layers = Self {
            budget,
            shape,
            layers: Vec::new(),
        };
        layers.add()?;
        Ok(layers)
    }

    /// Puts a segment into the first layer where its place is free, and tells which that is.
    ///
    /// # Errors
    /// Too many segments on top of each other.
    pub fn put(&mut self, value: u16, mask: &Mask) -> Result<usize, ImagingError> {
        let [_, rows, columns] = self.shape;
        let pixels = rows * columns;
        let free = |layer: &Vec<u16>| {
            mask.iter().all(|(slice, inside)| {
                let labels = &layer[slice * pixels..(slice + 1) * pixels];
                let mut pairs = labels.iter().zip(inside);
                pairs.all(|(label, inside)| !inside || *label == 0)
            })
        };
        let layer = match self.layers.iter().position(free) {
            Some(layer) => layer,
            None => self.add()?,
        };
        for (slice, inside) in mask {
            let labels = &mut self.layers[layer][slice * pixels..(slice + 1) * pixels];
            for (label, _) in labels.iter_mut().zip(inside).filter(|(_, inside)| **inside) {
                *label = value;
            }
        }
        Ok(layer)
    }

    /// The labels of a slice in the first layer.
    pub fn slice_mut(&mut self, slice: usize) -> &mut [u16] {
        let [_, rows, columns] = self.shape;
        let pixels = rows * columns;
        &mut self.layers[0][slice * pixels..(slice + 1) * pixels]
    }

    /// All layers, each `[z, y, x]`.
    pub fn into_inner(self) -> Vec<Vec<u16>> {
        self.layers
    }

    fn add(&mut self) -> Result<usize, ImagingError> {
        let count = self.layers.len() + 1;
        if count > MAX_LAYERS {
            return Err(ImagingError::TooLarge(format!(
                "more than {MAX_LAYERS} segments on top of each other"
            )));
        }
        let [z, y, x] = self.shape.map(|n| n as u64);
        self.budget.admit(&[z, y, x, count as u64], 2)?;
        self.layers.push(vec![0; self.shape.iter().product()]);
        Ok(count - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_gets_a_layer_of_its_own() {
        let budget = Budget::default();
        let mut layers = Layers::new([2, 1, 2], &budget).unwrap();
        let mask = |slice, inside: [bool; 2]| Mask::from([(slice, inside.to_vec())]);
        assert_eq!(layers.put(1, &mask(0, [true, false])).unwrap(), 0);
        assert_eq!(layers.put(2, &mask(0, [false, true])).unwrap(), 0);
        assert_eq!(layers.put(3, &mask(0, [true, true])).unwrap(), 1);
        assert_eq!(layers.put(4, &mask(1, [true, true])).unwrap(), 0);
        assert_eq!(layers.put(5, &Mask::new()).unwrap(), 0);
        assert_eq!(layers.into_inner(), [vec![1, 2, 4, 4], vec![3, 3, 0, 0]]);
    }

    #[test]
    fn a_grid_over_the_budget_is_refused_before_it_is_made() {
        let budget = Budget::default();
        let refused = Layers::new([100_000, 1024, 1024], &budget);
        assert!(matches!(refused.err(), Some(ImagingError::TooLarge(_))));
    }
}
