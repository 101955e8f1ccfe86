//! The loss that is reported at the end.

/// Mean of the last few values.
pub struct Recent {
    values: std::collections::VecDeque<f32>,
    len: usize,
}

impl Recent {
    /// Of the last `len`.
    pub fn new(len: usize) -> Self {
        Self {
            values: Default::default(),
            len,
        }
    }

    /// One more.
    pub fn add(&mut self, value: f32) {
        if self.values.len() == self.len {
            self.values.pop_front();
        }
        self.values.push_back(value);
    }

    /// Their mean; 0 of none.
    pub fn mean(&self) -> f32 {
        self.values.iter().sum::<f32>() / self.values.len().max(1) as f32
    }
}
