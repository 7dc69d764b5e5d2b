//! Randomness that looks like nature: seeded, and smooth over time whatever the step.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A seeded source. `stream` keeps the parts of a world independent of one another.
pub(crate) fn source(seed: u64, stream: u64) -> StdRng {
    StdRng::seed_from_u64(seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A standard normal number (Box–Muller).
pub(crate) fn normal(source: &mut StdRng) -> f64 {
    let radius = (-2.0 * (1.0 - source.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * source.random::<f64>()).cos()
}

/// How many of independent arrivals happen when `expected` do on average (Poisson, Knuth's method; for small means).
pub(crate) fn arrivals(source: &mut StdRng, expected: f64) -> u32 {
    let limit = (-expected.clamp(0.0, 50.0)).exp();
    let mut product: f64 = source.random();
    let mut count = 0;
    while product > limit {
        product *= source.random::<f64>();
        count += 1;
    }
    count
}

/// A value that wanders around zero and always comes back: AR(1) in continuous time, so that its character does not
/// depend on how often it is asked.
#[derive(Debug, Clone)]
pub(crate) struct Drift {
    value: f64,
    deviation: f64,
    memory_s: f64,
}

impl Drift {
    /// `deviation` is the standard deviation in the long run, `memory_s` the seconds after which a third of a departure
    /// is left.
    pub(crate) fn new(source: &mut StdRng, deviation: f64, memory_s: f64) -> Self {
        Self { value: deviation * normal(source), deviation, memory_s }
    }

    /// The value `elapsed_s` seconds after the last one.
    pub(crate) fn step(&mut self, source: &mut StdRng, elapsed_s: f64) -> f64 {
        let kept = (-elapsed_s.max(0.0) / self.memory_s).exp();
        self.value = kept * self.value + self.deviation * (1.0 - kept * kept).sqrt() * normal(source);
        self.value
    }
}

/// Rounds to `digits` decimals, as instruments do.
pub(crate) fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_has_the_deviation_asked_for_at_any_step() {
        for step_s in [1.0, 30.0] {
            let mut source = source(7, 0);
            let mut drift = Drift::new(&mut source, 2.0, 60.0);
            let count = 20_000;
            let squares: f64 = (0..count).map(|_| drift.step(&mut source, step_s).powi(2)).sum();
            let deviation = (squares / f64::from(count)).sqrt();
            assert!((1.7..2.3).contains(&deviation), "{deviation} at a step of {step_s} s");
        }
    }

    #[test]
    fn arrivals_have_the_mean_asked_for() {
        let mut source = source(7, 0);
        let total: u32 = (0..10_000).map(|_| arrivals(&mut source, 0.3)).sum();
        assert!((2_800..3_200).contains(&total), "{total}");
    }
}
