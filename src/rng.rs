//! The one source of randomness: seeded and counter-based.
//!
//! Every number is a pure function of a seed, a stream and a counter, so a run is repeated exactly
//! from its recorded seed, whatever the number of threads. Streams are independent: a consumer takes
//! its own by name or number and may draw as much as it likes without moving the others. The mixing
//! is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
//! Generators, OOPSLA 2014), applied twice. Not for cryptography.

/// Odd, with well-spread bits: 2^64 divided by the golden ratio.
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of random numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng {
    key: u64,
    counter: u64,
}

impl Rng {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            key: mix(seed ^ GOLDEN),
            counter: 0,
        }
    }

    /// An independent stream, the same for the same `number` however much was drawn here.
    pub fn stream(&self, number: u64) -> Self {
        Self {
            key: mix(self.key ^ mix(number.wrapping_add(GOLDEN))),
            counter: 0,
        }
    }

    /// An independent stream by name.
    pub fn named(&self, name: &str) -> Self {
        // FNV-1a, 64 bit.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        self.stream(hash)
    }

    /// Key and counter, for those who compute [`Rng::at`] elsewhere.
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "cuda-sources"))]
    pub(crate) fn state(&self) -> [u64; 2] {
        [self.key, self.counter]
    }

    /// The number at `counter`, without moving the stream: for work in parallel.
    pub fn at(&self, counter: u64) -> u64 {
        mix(mix(self.key.wrapping_add(counter.wrapping_mul(GOLDEN))) ^ self.key)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let value = self.at(self.counter);
        self.counter = self.counter.wrapping_add(1);
        value
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        to_unit(self.next_u64())
    }

    /// Uniform in `[low, high)`.
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in `0..count`; 0 when `count` is 0.
    pub fn below(&mut self, count: usize) -> usize {
        // The bias of the product method is below count / 2^64.
        ((u128::from(self.next_u64()) * count as u128) >> 64) as usize
    }

    /// True with the given probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.uniform() < probability
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        let (a, b) = (self.next_u64(), self.next_u64());
        box_muller(a, b)
    }

    /// Standard normal number `n` of the stream, without moving it.
    pub fn normal_at(&self, n: u64) -> f64 {
        box_muller(
            self.at(n.wrapping_mul(2)),
            self.at(n.wrapping_mul(2).wrapping_add(1)),
        )
    }

    /// Puts `items` in random order, every order equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for n in (1..items.len()).rev() {
            items.swap(n, self.below(n + 1));
        }
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn to_unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn box_muller(a: u64, b: u64) -> f64 {
    // 1 - u is never 0.
    (-2.0 * (1.0 - to_unit(a)).ln()).sqrt() * (std::f64::consts::TAU * to_unit(b)).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_sequence() {
        let draw = |mut rng: Rng| (0..5).map(|_| rng.next_u64()).collect::<Vec<_>>();
        assert_eq!(draw(Rng::new(7)), draw(Rng::new(7)));
        assert_ne!(draw(Rng::new(7)), draw(Rng::new(8)));
        assert_ne!(draw(Rng::new(7)), draw(Rng::new(7).stream(0)));
        assert_ne!(draw(Rng::new(7).named("a")), draw(Rng::new(7).named("b")));
        // Recorded runs depend on these numbers: they must never change.
        assert_eq!(Rng::new(1).at(0), Rng::new(1).next_u64());
        let mut moved = Rng::new(7);
        moved.next_u64();
        assert_eq!(moved.stream(3), Rng::new(7).stream(3));
    }

    #[test]
    fn moments_of_uniform_and_normal() {
        let mut rng = Rng::new(42);
        let n = 200_000;
        let (mut mean, mut normal_mean, mut normal_square) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            let u = rng.uniform();
            assert!((0.0..1.0).contains(&u));
            mean += u / f64::from(n);
            let z = rng.normal();
            normal_mean += z / f64::from(n);
            normal_square += z * z / f64::from(n);
        }
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
        assert!(
            normal_mean.abs() < 0.01 && (normal_square - 1.0).abs() < 0.02,
            "{normal_mean} {normal_square}"
        );
    }

    #[test]
    fn bits_are_balanced_and_neighbours_unrelated() {
        let rng = Rng::new(3);
        for bit in 0..64 {
            let ones = (0..4096).filter(|n| rng.at(*n) >> bit & 1 == 1).count();
            let changes = (0..4096)
                .filter(|n| (rng.at(*n) ^ rng.at(n + 1)) >> bit & 1 == 1)
                .count();
            assert!(
                (1800..2300).contains(&ones) && (1800..2300).contains(&changes),
                "bit {bit}: {ones} {changes}"
            );
        }
    }

    #[test]
    fn shuffles_and_choices_reach_everything() {
        let mut rng = Rng::new(5);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..400 {
            let mut items = [1, 2, 3];
            rng.shuffle(&mut items);
            seen.insert(items);
            assert!(rng.below(3) < 3);
        }
        assert_eq!(seen.len(), 6);
        assert_eq!(rng.below(0), 0);
    }
}
