//! A running mean.

use std::collections::VecDeque;

/// Mean of the last few values.
pub struct Recent {
    values: VecDeque<f32>,
    len: usize,
}

impl Recent {
    /// Of the last `len` values.
    pub fn new(len: usize) -> Self {
        Self {
            values: Default::default(),
            len,
        }
    }

    /// Takes in a value.
    pub fn add(&mut self, value: f32) {
        if self.values.len() == self.len {
            self.values.pop_front();
        }
        self.values.push_back(value);
    }

    /// 0 without values.
    pub fn mean(&self) -> f32 {
        self.values.iter().sum::<f32>() / self.values.len().max(1) as f32
    }
}
