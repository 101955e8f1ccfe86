//! Student's t distribution: intervals of means over few seeds, and paired tests.

/// Terms of the continued fraction; it converges much sooner.
const TERMS: usize = 300;

/// Probability that a t variable of `freedom` degrees is further from 0 than `t`, on either side.
pub fn two_sided(t: f64, freedom: f64) -> f64 {
    if !t.is_finite() {
        return 0.0;
    }
    incomplete_beta(freedom / (freedom + t * t), freedom / 2.0, 0.5)
}

/// The t that a variable of `freedom` degrees stays below, in size, with probability `level`.
pub fn quantile(level: f64, freedom: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1e6);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if two_sided(middle, freedom) > 1.0 - level {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// Regularised incomplete beta function (Abramowitz and Stegun, 26.5.8) by Lentz's method.
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    // The fraction converges fast below the mean; above it the other tail is taken.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    let front = (a * x.ln() + b * (1.0 - x).ln() - ln_beta(a, b)).exp() / a;
    let guard = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let (mut c, mut d) = (1.0, guard(1.0 - (a + b) * x / (a + 1.0)).recip());
    let mut fraction = d;
    for n in 1..TERMS {
        let m = n as f64;
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = fraction;
        for term in [even, odd] {
            d = guard(1.0 + term * d).recip();
            c = guard(1.0 + term / c);
            fraction *= c * d;
        }
        if (fraction - before).abs() < 1e-15 * fraction.abs() {
            break;
        }
    }
    front * fraction
}

fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// Stirling's series, after the argument was raised until it is accurate (Abramowitz and Stegun, 6.1.40).
fn ln_gamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 12.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let z = (x * x).recip();
    let series = (1.0 / 12.0 - z * (1.0 / 360.0 - z * (1.0 / 1260.0 - z / 1680.0))) / x;
    shift + (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_in_the_tables() {
        // Two-sided 95 % and 99 % points.
        for (freedom, t95, t99) in [
            (1.0, 12.706, 63.657),
            (2.0, 4.3027, 9.9248),
            (3.0, 3.1824, 5.8409),
            (10.0, 2.2281, 3.1693),
            (100.0, 1.9840, 2.6259),
        ] {
            assert!(
                (quantile(0.95, freedom) / t95 - 1.0).abs() < 1e-4,
                "{freedom}"
            );
            assert!(
                (quantile(0.99, freedom) / t99 - 1.0).abs() < 1e-4,
                "{freedom}"
            );
        }
        assert!((two_sided(0.0, 5.0) - 1.0).abs() < 1e-12);
        // Of one degree it is the Cauchy distribution.
        assert!((two_sided(1.0, 1.0) - 0.5).abs() < 1e-12);
        assert_eq!(two_sided(f64::INFINITY, 3.0), 0.0);
    }

    #[test]
    fn gamma_of_known_arguments() {
        assert!((ln_gamma(5.0) - 24f64.ln()).abs() < 1e-12);
        assert!((ln_gamma(0.5) - std::f64::consts::PI.sqrt().ln()).abs() < 1e-12);
    }
}
