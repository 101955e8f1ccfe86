//! The mean of the largest values of a stream, in bounded memory.

/// Bins between 0 and the largest possible value.
const BINS: usize = 4096;

/// Counts and sums of values by size. Exact but for the values of one bin, a 4096th of the range wide, whose own mean stands
/// for those that still belong to the largest.
pub struct Top {
    limit: f32,
    counts: Vec<u64>,
    sums: Vec<f64>,
}

impl Top {
    /// Values from 0 to `limit`.
    pub fn new(limit: f32) -> Self {
        Self {
            limit: limit.max(f32::MIN_POSITIVE),
            counts: vec![0; BINS],
            sums: vec![0.0; BINS],
        }
    }

    /// Takes a value in.
    pub fn add(&mut self, value: f32) {
        // A saturating cast: what is not a number counts as 0.
        let bin = ((value / self.limit * BINS as f32) as usize).min(BINS - 1);
        self.counts[bin] += 1;
        self.sums[bin] += f64::from(value);
    }

    /// Mean of the largest `share` of the values, of one at least; 0 of none.
    pub fn mean(&self, share: f64) -> f64 {
        let total: u64 = self.counts.iter().sum();
        let wanted = ((total as f64 * share).ceil() as u64).max(1).min(total);
        let (mut sum, mut left) = (0.0, wanted);
        for (count, bin_sum) in self.counts.iter().zip(&self.sums).rev() {
            if *count == 0 {
                continue;
            }
            let taken = left.min(*count);
            sum += bin_sum * taken as f64 / *count as f64;
            left -= taken;
            if left == 0 {
                break;
            }
        }
        sum / wanted.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_if_sorted(values in prop::collection::vec(0f32..2.0, 1..300), share in 0.01..1.0f64) {
            let mut top = Top::new(2.0);
            values.iter().for_each(|v| top.add(*v));
            let mut sorted = values.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let count = ((values.len() as f64 * share).ceil() as usize).max(1);
            let mean = sorted[..count].iter().map(|v| f64::from(*v)).sum::<f64>() / count as f64;
            prop_assert!((top.mean(share) - mean).abs() < 2.0 / BINS as f64);
        }
    }

    #[test]
    fn nothing_and_nonsense() {
        let mut top = Top::new(1.0);
        assert_eq!(top.mean(0.5), 0.0);
        top.add(5.0);
        assert_eq!(top.mean(0.5), 5.0);
    }
}
