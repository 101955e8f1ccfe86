//! The one source of randomness: counter-based, so that a draw is a pure function of (seed, stream, position).
//!
//! Everything random here (initial weights, crops, augmentation, dropout, phantoms, strategies) names its seed and its
//! stream; the seed is recorded with the run, and a resumed run continues exactly. The mixing function is SplitMix64's
//! finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).

use std::f64::consts::TAU;

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Rng {
    key: u64,
    position: u64,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// Stream number `stream` of `seed`, at its start.
    pub fn new(seed: u64, stream: u64) -> Self {
        let key = mix(mix(seed.wrapping_add(GOLDEN)) ^ stream.wrapping_mul(GOLDEN).wrapping_add(1));
        Self { key, position: 0 }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.position = self.position.wrapping_add(1);
        mix(self.key.wrapping_add(self.position.wrapping_mul(GOLDEN)))
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[low, high)`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform integer in `0..bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // The high half of the 128-bit product is uniform up to a bias of bound / 2^64.
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (TAU * self.unit()).cos()
    }

    /// Puts the items in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// `len` values that are `1 / keep` with probability `keep` and 0 otherwise: a dropout mask.
    pub fn bernoulli_mask(&mut self, len: usize, keep: f64) -> Vec<f32> {
        let (scale, bound) = ((1.0 / keep) as f32, (keep * 65536.0) as u64);
        let mut mask = Vec::with_capacity(len);
        while mask.len() < len {
            let bits = self.next_u64();
            for part in 0..4.min(len - mask.len()) {
                let draw = (bits >> (16 * part)) & 0xffff;
                mask.push(if draw < bound { scale } else { 0.0 });
            }
        }
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_is_a_function_of_seed_and_stream() {
        let draw = |seed, stream| Rng::new(seed, stream).next_u64();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }

    #[test]
    fn moments_are_right() {
        let mut rng = Rng::new(7, 0);
        let n = 100_000;
        let normals: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let mean = normals.iter().sum::<f64>() / n as f64;
        let variance = normals.iter().map(|v| v * v).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        let units = (0..n).map(|_| rng.unit()).sum::<f64>() / n as f64;
        assert!((units - 0.5).abs() < 0.01);
        let mut counts = [0usize; 7];
        (0..n).for_each(|_| counts[rng.below(7)] += 1);
        assert!(counts.iter().all(|&c| c.abs_diff(n / 7) < 600), "{counts:?}");
    }

    #[test]
    fn a_mask_keeps_its_share() {
        let mask = Rng::new(3, 1).bernoulli_mask(100_001, 0.8);
        let kept = mask.iter().filter(|&&v| v == 1.25).count();
        assert_eq!(mask.len(), 100_001);
        assert!(kept.abs_diff(80_000) < 800);
        assert!(mask.iter().all(|&v| v == 0.0 || v == 1.25));
    }
}
