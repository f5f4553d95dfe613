//! When requests arrive in an open loop: a pure function of a process, a rate
//! and a seed. Knows no engine, no clock and no plan.

use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, Gamma};

/// Most arrivals of one load: beyond it a typo is likelier than a wish.
pub const MAX_ARRIVALS: u32 = 100_000;

/// How gaps between arrivals are drawn. Every process has gaps of mean 1 in
/// units of expected arrivals; the rate stretches them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Process {
    /// Equal gaps, the first arrival at once.
    Constant,
    /// Independent exponential gaps: many users who know nothing of each other.
    Poisson,
    /// Independent gamma gaps of shape `burstiness`: their coefficient of
    /// variation is 1 / sqrt(burstiness). 1 is Poisson, below it arrivals come
    /// in bursts, above it they are more even (the parameter of `vllm bench
    /// serve --burstiness`).
    Gamma {
        /// Shape, above 0.
        burstiness: f64,
    },
}

impl Process {
    /// The word used in plans and files, and the burstiness where there is one.
    #[must_use]
    pub const fn told(self) -> (&'static str, Option<f64>) {
        match self {
            Self::Constant => ("constant", None),
            Self::Poisson => ("poisson", None),
            Self::Gamma { burstiness } => ("gamma", Some(burstiness)),
        }
    }
}

/// Arrivals at a rate that may change from the beginning to the end of a ramp.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrivals {
    /// How gaps are drawn.
    pub process: Process,
    /// Arrivals a second at the beginning.
    pub rate: f64,
    /// Rate that the ramp ends at, and its length; the rate stays there after it.
    pub ramp: Option<(f64, Duration)>,
}

/// Where a load ends: at whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// Number of arrivals.
    pub requests: Option<u32>,
    /// No arrival at or after it.
    pub duration: Option<Duration>,
}

impl Arrivals {
    /// Instants of arrival since the beginning of the load, in order. The same
    /// seed and stream give the same instants. At least one, at most
    /// [`MAX_ARRIVALS`].
    ///
    /// A rate that changes stretches the gaps of a process of rate 1: an arrival
    /// at `s` expected arrivals happens when the integral of the rate is `s`
    /// (the time change by which a Poisson process becomes an inhomogeneous one).
    #[must_use]
    pub fn instants(&self, extent: Extent, seed: u64, stream: u64) -> Vec<Duration> {
        let most = extent.requests.unwrap_or(MAX_ARRIVALS).min(MAX_ARRIVALS);
        let within = |at: &Duration| extent.duration.is_none_or(|duration| *at < duration);
        let stream = self.stream(seed, stream).take(most as usize);
        let mut instants: Vec<_> = stream.take_while(within).collect();
        if instants.is_empty() {
            // A load that is too short for its rate still has its one request.
            instants.push(Duration::ZERO);
        }
        instants
    }

    /// The same instants one after another, without end.
    pub fn stream(self, seed: u64, stream: u64) -> impl Iterator<Item = Duration> {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        let mut expected = match self.process {
            Process::Constant => 0.0,
            Process::Poisson | Process::Gamma { .. } => self.gap(&mut generator),
        };
        std::iter::repeat_with(move || {
            let at = self.time_of(expected);
            expected += self.gap(&mut generator);
            at
        })
    }

    /// A gap of mean 1.
    fn gap(&self, generator: &mut ChaCha8Rng) -> f64 {
        match self.process {
            Process::Constant => 1.0,
            Process::Poisson => Exp1.sample(generator),
            Process::Gamma { burstiness } => Gamma::new(burstiness, 1.0 / burstiness)
                .map_or(1.0, |gamma| gamma.sample(generator)),
        }
    }

    /// When `expected` arrivals are to be expected: the inverse of the integral
    /// of the rate, which on a ramp from a to b over T is a t + (b - a) t^2 / (2 T).
    fn time_of(&self, expected: f64) -> Duration {
        let seconds = match self.ramp {
            None => expected / self.rate,
            Some((to, over)) => {
                let over = over.as_secs_f64();
                let on_ramp = f64::midpoint(self.rate, to) * over;
                if expected >= on_ramp {
                    over + (expected - on_ramp) / to
                } else {
                    let slope = (to - self.rate) / over;
                    // The root in the form that is exact where the slope is nearly 0.
                    let discriminant = self.rate.mul_add(self.rate, 2.0 * slope * expected);
                    2.0 * expected / (self.rate + discriminant.max(0.0).sqrt())
                }
            }
        };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arrivals(process: Process, rate: f64) -> Arrivals {
        Arrivals { process, rate, ramp: None }
    }

    fn gaps(instants: &[Duration]) -> Vec<f64> {
        instants.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
    }

    /// Mean and coefficient of variation.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand gaps")]
    fn moments(gaps: &[f64]) -> (f64, f64) {
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    const MANY: Extent = Extent { requests: Some(20_000), duration: None };

    #[test]
    fn constant_gaps_are_equal_and_begin_at_once() {
        let extent = Extent { requests: None, duration: Some(Duration::from_secs(2)) };
        let instants = arrivals(Process::Constant, 4.0).instants(extent, 1, 1);
        let expected: Vec<_> = (0..8).map(|i| Duration::from_millis(250 * i)).collect();
        assert_eq!(instants, expected);
    }

    #[test]
    fn ramp_has_the_number_of_its_mean_rate_and_most_of_them_late() {
        let over = Duration::from_secs(10);
        for process in [Process::Constant, Process::Poisson] {
            let ramp = Arrivals { process, rate: 10.0, ramp: Some((190.0, over)) };
            let extent = Extent { requests: None, duration: Some(over) };
            let instants = ramp.instants(extent, 3, 0);
            assert!((900..1_100).contains(&instants.len()), "{}", instants.len());
            let early = instants.iter().filter(|at| **at < over / 2).count();
            // The integral to T/2 is (3 a + b) / 8 T = 275.
            assert!((220..330).contains(&early), "{early}");
        }
    }

    #[test]
    fn seed_and_stream_decide_everything() {
        let poisson = arrivals(Process::Poisson, 5.0);
        let extent = Extent { requests: Some(50), duration: None };
        assert_eq!(poisson.instants(extent, 1, 2), poisson.instants(extent, 1, 2));
        assert_ne!(poisson.instants(extent, 1, 2), poisson.instants(extent, 1, 3));
        assert_ne!(poisson.instants(extent, 1, 2), poisson.instants(extent, 2, 2));
    }

    #[test]
    fn poisson_counts_have_the_variance_of_their_mean() {
        let instants = arrivals(Process::Poisson, 20.0).instants(MANY, 11, 0);
        let mut counts = [0_u32; 1_000];
        for at in &instants {
            if let Some(count) = counts.get_mut(usize::try_from(at.as_secs()).unwrap()) {
                *count += 1;
            }
        }
        let counts: Vec<f64> = counts[..900].iter().map(|count| f64::from(*count)).collect();
        let (mean, cv) = moments(&counts);
        let dispersion = (cv * mean).powi(2) / mean;
        assert!((19.0..21.0).contains(&mean) && (0.85..1.15).contains(&dispersion), "{dispersion}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn gaps_have_the_mean_of_the_rate_and_the_variation_of_the_burstiness(
            rate in 0.1_f64..1_000.0,
            burstiness in 0.2_f64..10.0,
            seed: u64,
        ) {
            for (process, variation) in [
                (Process::Constant, 0.0),
                (Process::Poisson, 1.0),
                (Process::Gamma { burstiness }, burstiness.powf(-0.5)),
            ] {
                let instants = arrivals(process, rate).instants(MANY, seed, 0);
                prop_assert_eq!(instants.len(), 20_000);
                let (mean, cv) = moments(&gaps(&instants));
                // Five standard errors of the mean of 20,000 gaps.
                let error = 5.0 * variation / 20_000_f64.sqrt() + 1e-4;
                prop_assert!((mean * rate - 1.0).abs() < error, "{process:?}: {}", mean * rate);
                prop_assert!((cv - variation).abs() < 0.1 * variation + 1e-3, "{process:?}: {cv}");
            }
        }

        #[test]
        fn instants_never_go_back_and_end_with_their_extent(
            rate in 0.01_f64..500.0,
            to in 0.01_f64..500.0,
            seconds in 1_u64..20,
            seed: u64,
        ) {
            let over = Duration::from_secs(seconds);
            let extent = Extent { requests: Some(3_000), duration: Some(over) };
            for process in [Process::Constant, Process::Gamma { burstiness: 0.3 }] {
                let ramp = Arrivals { process, rate, ramp: Some((to, over)) };
                let instants = ramp.instants(extent, seed, 9);
                prop_assert!(!instants.is_empty() && instants.len() <= 3_000);
                prop_assert!(instants.windows(2).all(|pair| pair[0] <= pair[1]));
                prop_assert!(instants.iter().all(|at| *at < over));
            }
        }
    }
}
