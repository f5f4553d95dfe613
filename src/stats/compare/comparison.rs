//! One metric of one engine compared with another's: numbers and verdict. The
//! shape is an interface, in `summary.json` and of `yardstick compare --json`.

use serde::{Deserialize, Serialize};

use super::bootstrap::{Design, RatioInterval, interval};
use super::metric::{Better, Metric};
use super::noise::{NoiseFloor, floor, larger};
use super::permutation::{p, smallest_p};
use super::sample::Sample;
use super::verdict::{Decision, Evidence, Side, Verdict, decide};
use crate::stats::order_statistics::LEVEL;

/// One metric of two engines under one load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Experiment name.
    pub experiment: String,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// What is compared.
    pub metric: Metric,
    /// Whether it is over the tokens that all engines gave, since answers differ in length.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub common_window: bool,
    /// Unit of the values.
    pub unit: String,
    /// Which values are good ones.
    pub better: Better,
    /// What is compared with.
    pub base: Arm,
    /// What is compared.
    pub candidate: Arm,
    /// How their rounds belong together.
    pub design: Design,
    /// Candidate / base.
    pub ratio: f64,
    /// What encloses the ratio; absent below two rounds, and where requests failed.
    pub interval: Option<RatioInterval>,
    /// p of the permutation test.
    pub p: f64,
    /// The smallest p that so many rounds could have given.
    pub smallest_p: f64,
    /// Half-width of sameness, a share.
    pub margin: f64,
    /// What may be said.
    pub verdict: Verdict,
    /// Who did better, where they are different.
    pub winner: Option<Side>,
    /// Why the verdict is what it is.
    pub reason: String,
}

/// One of the two.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// Engine name.
    pub engine: String,
    /// The statistic of all rounds.
    pub value: f64,
    /// Rounds that it is of.
    pub rounds: usize,
    /// Values that it is of: requests, gaps, or one a round.
    pub n: usize,
    /// How far the engine differs from itself; absent where one round cannot tell.
    pub noise: Option<NoiseFloor>,
}

/// What is known of an engine under a load before it is compared.
#[derive(Debug, Clone)]
pub struct Contender<'a> {
    /// Engine name.
    pub engine: &'a str,
    /// Its rounds.
    pub sample: Sample,
    /// Its second arm, where the run has one.
    pub again: Option<Sample>,
    /// Why its latencies are those of survivors, if they are.
    pub survivors: Option<String>,
}

/// Where and what is compared, and how closely.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// Experiment name.
    pub experiment: &'a str,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// What is compared.
    pub metric: Metric,
    /// Whether it is over the tokens that all engines gave.
    pub common_window: bool,
    /// How the rounds belong together.
    pub design: Design,
    /// Half-width of sameness, a share.
    pub margin: f64,
}

/// Compares two samples. Where the design is paired, rounds that only one has are left out.
///
/// # Errors
/// Why they cannot be compared.
pub fn compare(
    base: &Contender<'_>,
    candidate: &Contender<'_>,
    terms: &Terms<'_>,
) -> Result<Comparison, String> {
    let (mine, others) = match terms.design {
        Design::Unpaired => (base.sample.clone(), candidate.sample.clone()),
        Design::Paired | Design::Itself => base.sample.paired(&candidate.sample),
    };
    if mine.rounds() == 0 {
        return Err("no round was measured on both sides".to_owned());
    }
    let arms = (arm(base, &mine), arm(candidate, &others));
    let ratio = arms.1.value / arms.0.value;
    let survivors = base.survivors.as_ref().or(candidate.survivors.as_ref());
    let interval = match (survivors, terms.design) {
        (Some(_), _) => None,
        (None, Design::Itself) => Some(RatioInterval { level: LEVEL, low: ratio, high: ratio }),
        (None, Design::Paired | Design::Unpaired) => interval(&mine, &others, terms.design),
    };
    let (rounds, p) = ((mine.rounds(), others.rounds()), p(&mine, &others, terms.design));
    let decision = match survivors {
        Some(survivors) => {
            Decision { verdict: Verdict::Undecided, winner: None, reason: survivors.clone() }
        }
        None => decide(&Evidence {
            rounds,
            design: terms.design,
            ratio,
            interval,
            p,
            noise: larger(arms.0.noise, arms.1.noise).map(|floor| floor.share),
            margin: terms.margin,
            better: terms.metric.better(),
        }),
    };
    Ok(Comparison {
        experiment: terms.experiment.to_owned(),
        concurrency: terms.concurrency,
        metric: terms.metric,
        common_window: terms.common_window,
        unit: terms.metric.unit().to_owned(),
        better: terms.metric.better(),
        base: arms.0,
        candidate: arms.1,
        design: terms.design,
        ratio,
        interval,
        p,
        smallest_p: smallest_p(rounds.0, rounds.1, terms.design),
        margin: terms.margin,
        verdict: decision.verdict,
        winner: decision.winner,
        reason: decision.reason,
    })
}

impl Comparison {
    /// The engine that did better, where they are different.
    #[must_use]
    pub fn winning_engine(&self) -> Option<&str> {
        self.winner.map(|side| match side {
            Side::Base => self.base.engine.as_str(),
            Side::Candidate => self.candidate.engine.as_str(),
        })
    }

    /// Who did better, in a word: the engine, or its side where both have one name.
    #[must_use]
    pub fn winning_name(&self) -> Option<&str> {
        if self.base.engine == self.candidate.engine {
            return self.winner.map(Side::as_str);
        }
        self.winning_engine()
    }

    /// The larger of the two noise floors.
    #[must_use]
    pub fn noise(&self) -> Option<NoiseFloor> {
        larger(self.base.noise, self.candidate.noise)
    }
}

fn arm(of: &Contender<'_>, sample: &Sample) -> Arm {
    Arm {
        engine: of.engine.to_owned(),
        value: sample.value(),
        rounds: sample.rounds(),
        n: sample.n(),
        noise: floor(sample, of.again.as_ref()),
    }
}
