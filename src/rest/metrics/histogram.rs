//! How often a time fell below each of some bounds.

/// Counts by upper bound, with their sum.
#[derive(Debug, Clone)]
pub struct Histogram {
    bounds_s: &'static [f64],
    /// One more than bounds: the last is above all of them.
    counts: Vec<u64>,
    sum_s: f64,
}

impl Histogram {
    /// An empty histogram with these upper bounds, ascending, in seconds.
    pub fn new(bounds_s: &'static [f64]) -> Self {
        Self {
            bounds_s,
            counts: vec![0; bounds_s.len() + 1],
            sum_s: 0.0,
        }
    }

    /// Counts one time.
    pub fn add(&mut self, seconds: f64) {
        let at = self.bounds_s.partition_point(|bound| *bound < seconds);
        self.counts[at] += 1;
        self.sum_s += seconds;
    }

    /// Upper bound and how many times are not above it, ascending; the last bound is infinite.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds_s.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().scan(0, |total, count| {
            *total += count;
            Some(*total)
        }))
    }

    /// How many times there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum, seconds.
    pub fn sum_s(&self) -> f64 {
        self.sum_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_count() {
        let mut histogram = Histogram::new(&[0.1, 1.0]);
        for seconds in [0.05, 0.1, 0.5, 7.0] {
            histogram.add(seconds);
        }
        let found: Vec<_> = histogram.cumulative().collect();
        assert_eq!(found, [(0.1, 2), (1.0, 3), (f64::INFINITY, 4)]);
        assert_eq!((histogram.count(), histogram.sum_s()), (4, 7.65));
    }
}
