//! Draws lengths from a distribution.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal, Normal};

use crate::plan::Lengths;

/// A length in tokens, from 1 to [`Lengths::most`].
#[must_use]
pub fn draw(lengths: &Lengths, generator: &mut ChaCha8Rng) -> u32 {
    let value = match *lengths {
        Lengths::Fixed(tokens) => return tokens,
        Lengths::Uniform { least, most } => return generator.random_range(least..=most),
        Lengths::Normal { mean, sd } => {
            Normal::new(mean, sd).map_or(mean, |normal| normal.sample(generator))
        }
        Lengths::Lognormal { mean, sd } => {
            // Parameters of the logarithm that give the lengths this mean and deviation.
            let spread = (1.0 + (sd / mean).powi(2)).ln();
            let location = mean.ln() - spread / 2.0;
            LogNormal::new(location, spread.sqrt()).map_or(mean, |normal| normal.sample(generator))
        }
    };
    round(value, lengths.most())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the bound before"
)]
fn round(value: f64, most: u32) -> u32 {
    value.round().clamp(1.0, f64::from(most)) as u32
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn moments(lengths: &str) -> (f64, f64) {
        let lengths = lengths.parse().unwrap();
        let mut generator = ChaCha8Rng::seed_from_u64(5);
        let drawn: Vec<f64> = (0..20_000).map(|_| draw(&lengths, &mut generator).into()).collect();
        let mean = drawn.iter().sum::<f64>() / 20_000.0;
        let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        (mean, variance.sqrt())
    }

    #[test]
    fn lengths_have_the_moments_that_were_asked_for() {
        for (lengths, mean, sd) in [
            ("256", 256.0, 0.0),
            ("uniform:100-300", 200.0, 58.0),
            ("normal:256,40", 256.0, 40.0),
            ("lognormal:256,200", 256.0, 200.0),
        ] {
            let (got_mean, got_sd) = moments(lengths);
            assert!((got_mean / mean - 1.0).abs() < 0.02, "{lengths}: {got_mean}");
            assert!((got_sd - sd).abs() <= 0.06 * sd, "{lengths}: {got_sd}");
        }
    }

    #[test]
    fn nothing_is_shorter_than_a_token() {
        let lengths = "normal:1,50".parse().unwrap();
        let mut generator = ChaCha8Rng::seed_from_u64(5);
        assert!((0..1_000).all(|_| (1..=501).contains(&draw(&lengths, &mut generator))));
    }
}
