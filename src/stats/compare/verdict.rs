//! What may be said of two samples: the same, different, or neither. A
//! difference that was not found is no sameness. Knows numbers, not engines.

use serde::{Deserialize, Serialize};

use super::bootstrap::{Design, RatioInterval};
use super::metric::Better;
use super::permutation::smallest_p;

/// Above this p a difference may be chance.
pub const SIGNIFICANT: f64 = 0.05;

/// What may be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The whole interval lies within the margin.
    Same,
    /// The interval excludes 1, p is small, and the effect is beyond the noise floor.
    Different,
    /// Neither.
    Undecided,
}

impl Verdict {
    /// As files say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Different => "different",
            Self::Undecided => "undecided",
        }
    }
}

/// One of the two that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// What is compared with.
    Base,
    /// What is compared.
    Candidate,
}

impl Side {
    /// As files say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Candidate => "candidate",
        }
    }
}

/// What a verdict is reached from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evidence {
    /// Rounds of the base and of the candidate.
    pub rounds: (usize, usize),
    /// How they belong together.
    pub design: Design,
    /// Candidate / base.
    pub ratio: f64,
    /// What encloses it; absent below two rounds.
    pub interval: Option<RatioInterval>,
    /// p of the permutation test.
    pub p: f64,
    /// The larger noise floor of the two engines, a share; absent where neither has one.
    pub noise: Option<f64>,
    /// Half-width of sameness, a share: 0.03 for ratios between 1/1.03 and 1.03.
    pub margin: f64,
    /// Which values are good ones.
    pub better: Better,
}

/// A verdict with whom it favours and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What may be said.
    pub verdict: Verdict,
    /// Who did better; only where they are different.
    pub winner: Option<Side>,
    /// Why, in words.
    pub reason: String,
}

/// Reaches a verdict. Sameness is decided first, by two one-sided tests in one
/// (Schuirmann 1987, with the 95 % interval instead of the usual 90 %): what
/// differs measurably, but by less than anyone asked about, is the same.
#[must_use]
pub fn decide(evidence: &Evidence) -> Decision {
    let undecided = |reason: String| Decision { verdict: Verdict::Undecided, winner: None, reason };
    if evidence.design == Design::Itself {
        let reason = "it is the same measurement".to_owned();
        return Decision { verdict: Verdict::Same, winner: None, reason };
    }
    let Some(interval) = evidence.interval else {
        return undecided(format!(
            "one round says nothing of the next: a difference takes {}",
            needed(evidence.design)
        ));
    };
    let limit = 1.0 + evidence.margin;
    let margin = percent(evidence.margin);
    if interval.low >= 1.0 / limit && interval.high <= limit {
        let reason = format!("the whole interval lies within {margin} of 1");
        return Decision { verdict: Verdict::Same, winner: None, reason };
    }
    let (base, candidate) = evidence.rounds;
    let smallest = smallest_p(base, candidate, evidence.design);
    if smallest > SIGNIFICANT {
        return undecided(format!(
            "p cannot be below {smallest:.2} with {}: a difference takes {}",
            written(base, candidate, evidence.design),
            needed(evidence.design)
        ));
    }
    if interval.low <= 1.0 && 1.0 <= interval.high {
        return undecided(format!("the interval holds 1 and reaches beyond {margin} of it"));
    }
    if evidence.p > SIGNIFICANT {
        return undecided(format!("p = {:.2}: it may be chance", evidence.p));
    }
    let effect = evidence.ratio.ln().abs().exp_m1();
    if let Some(noise) = evidence.noise.filter(|noise| effect <= *noise) {
        return undecided(format!(
            "{} is within the noise floor of {}",
            percent(effect),
            percent(noise)
        ));
    }
    let lower = evidence.ratio < 1.0;
    let winner =
        if lower == (evidence.better == Better::Lower) { Side::Candidate } else { Side::Base };
    let reason = "the interval excludes 1, beyond chance and the noise floor".to_owned();
    Decision { verdict: Verdict::Different, winner: Some(winner), reason }
}

/// How many rounds a difference takes.
fn needed(design: Design) -> &'static str {
    match design {
        Design::Unpaired => "4 rounds on each side",
        Design::Paired | Design::Itself => "6 rounds",
    }
}

fn written(base: usize, candidate: usize, design: Design) -> String {
    match design {
        Design::Unpaired => format!("{base} and {candidate} rounds"),
        Design::Paired | Design::Itself => format!("{base} rounds"),
    }
}

/// A share as a percentage of at most two digits after the point.
#[must_use]
pub fn percent(share: f64) -> String {
    let text = format!("{:.2}", share * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn evidence(low: f64, high: f64) -> Evidence {
        Evidence {
            rounds: (8, 8),
            design: Design::Paired,
            ratio: (low * high).sqrt(),
            interval: Some(RatioInterval { level: 0.95, low, high }),
            p: 0.01,
            noise: Some(0.01),
            margin: 0.03,
            better: Better::Lower,
        }
    }

    #[test]
    fn sameness_takes_the_whole_interval_and_a_wide_one_is_undecided() {
        assert_eq!(decide(&evidence(0.98, 1.02)).verdict, Verdict::Same);
        // A measurable difference of 1.5 % is the same within 3 %.
        assert_eq!(decide(&evidence(1.01, 1.02)).verdict, Verdict::Same);
        let wide = decide(&evidence(0.9, 1.1));
        assert_eq!(wide.verdict, Verdict::Undecided);
        assert_eq!(wide.reason, "the interval holds 1 and reaches beyond 3 % of it");
    }

    #[test]
    fn difference_takes_interval_p_and_noise_floor() {
        let found = decide(&evidence(1.1, 1.3));
        assert_eq!((found.verdict, found.winner), (Verdict::Different, Some(Side::Base)));
        let higher = Evidence { better: Better::Higher, ..evidence(1.1, 1.3) };
        assert_eq!(decide(&higher).winner, Some(Side::Candidate));
        let chance = decide(&Evidence { p: 0.2, ..evidence(1.1, 1.3) });
        assert_eq!(chance.reason, "p = 0.20: it may be chance");
        let noisy = decide(&Evidence { noise: Some(0.25), ..evidence(1.1, 1.3) });
        assert_eq!(noisy.reason, "19.58 % is within the noise floor of 25 %");
        assert_eq!((chance.verdict, noisy.verdict), (Verdict::Undecided, Verdict::Undecided));
    }

    #[test]
    fn few_rounds_are_undecided_and_say_how_many_it_takes() {
        let few = decide(&Evidence { rounds: (5, 5), ..evidence(1.4, 1.5) });
        assert_eq!(few.verdict, Verdict::Undecided);
        assert_eq!(few.reason, "p cannot be below 0.06 with 5 rounds: a difference takes 6 rounds");
        let apart = Evidence { design: Design::Unpaired, rounds: (3, 3), ..evidence(1.4, 1.5) };
        assert!(
            decide(&apart)
                .reason
                .ends_with("with 3 and 3 rounds: a difference takes 4 rounds on each side")
        );
        let one = decide(&Evidence { rounds: (1, 1), interval: None, ..evidence(1.4, 1.5) });
        assert_eq!(one.verdict, Verdict::Undecided);
    }

    proptest! {
        #[test]
        fn an_interval_that_holds_one_is_never_a_difference(
            low in 0.3_f64..1.0, high in 1.0_f64..3.0, p in 0.0_f64..1.0, n in 1_usize..20,
        ) {
            let found = decide(&Evidence { p, rounds: (n, n), ..evidence(low, high) });
            prop_assert!(found.verdict != Verdict::Different);
        }
    }
}
