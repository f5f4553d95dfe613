//! The noise floor: how far an engine differs from itself. A difference between
//! two engines that is no larger says nothing. Knows samples of one engine.

use serde::{Deserialize, Serialize};

use super::bootstrap::{Design, log_ratios, spread};
use super::sample::Sample;

/// How far an engine differs from itself under one load, in one metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NoiseFloor {
    /// Share by which two samples of it differ in 95 % of the draws: 0.02 for ratios
    /// between 1/1.02 and 1.02.
    pub share: f64,
    /// Where that is from.
    pub source: NoiseSource,
}

/// Where a noise floor is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoiseSource {
    /// The run measured the engine twice in each round: draws of those rounds.
    Measured,
    /// Two samples drawn from the engine's own rounds with replacement. What drifted
    /// from round to round is in it, so that it is too large rather than too small.
    Resampled,
}

impl NoiseSource {
    /// As files say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Resampled => "resampled",
        }
    }
}

/// The noise floor of one engine's rounds; `again` is its second arm, where the
/// run has one. `None` where there is one round and no second arm.
#[must_use]
pub fn floor(own: &Sample, again: Option<&Sample>) -> Option<NoiseFloor> {
    let of = |share: f64, source| share.is_finite().then_some(NoiseFloor { share, source });
    if let Some((own, again)) = again.map(|again| own.paired(again)).filter(|(a, _)| a.rounds() > 0)
    {
        return of(spread(&log_ratios(&own, &again, Design::Paired)), NoiseSource::Measured);
    }
    if own.rounds() < 2 {
        return None;
    }
    of(spread(&log_ratios(own, own, Design::Unpaired)), NoiseSource::Resampled)
}

/// The larger of two noise floors, where there are any.
#[must_use]
pub fn larger(a: Option<NoiseFloor>, b: Option<NoiseFloor>) -> Option<NoiseFloor> {
    a.into_iter().chain(b).max_by(|a, b| a.share.total_cmp(&b.share))
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::sample;
    use super::*;

    fn rounds(values: &[f64]) -> Sample {
        sample(&values.iter().map(|value| vec![*value]).collect::<Vec<_>>(), 0.5)
    }

    #[test]
    fn second_arm_is_believed_before_resampling() {
        let own = rounds(&[10.0, 20.0, 30.0, 40.0]);
        let again = rounds(&[10.1, 20.2, 30.3, 40.4]);
        let measured = floor(&own, Some(&again)).unwrap();
        assert_eq!(measured.source, NoiseSource::Measured);
        assert!((measured.share - 0.01).abs() < 1e-9, "{measured:?}");
        let resampled = floor(&own, None).unwrap();
        assert_eq!(resampled.source, NoiseSource::Resampled);
        assert!(resampled.share > 0.5, "rounds differ by as much: {resampled:?}");
    }

    #[test]
    fn one_round_says_nothing_of_the_next_but_two_arms_of_it_do() {
        let (own, again) = (rounds(&[10.0]), rounds(&[10.5]));
        assert_eq!(floor(&own, None), None);
        assert!((floor(&own, Some(&again)).unwrap().share - 0.05).abs() < 1e-9);
    }
}
