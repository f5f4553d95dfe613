//! A bound on a change, for continuous integration: `ttft_p50 > +5%` fails where
//! the metric grew by more than 5 %. Knows comparisons, no exit code.

use std::fmt;
use std::slice;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::cells::{Compared, NotCompared, is_named};
use super::comparison::Comparison;
use super::metric::Metric;
use super::verdict::percent;

/// `METRIC [@EXPERIMENT[,C=N]] > +5%`, or `< -3%`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    metric: Metric,
    /// The one experiment that it is about; all if `None`.
    experiment: Option<String>,
    /// The one concurrency that it is about; all if `None`.
    concurrency: Option<u32>,
    beyond: Beyond,
    /// The bound as a ratio: 1.05 for +5 %.
    ratio: f64,
}

/// On which side of the bound a change fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beyond {
    Above,
    Below,
}

/// What became of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The whole interval lies within the bound.
    Kept,
    /// Neither.
    Undecided,
    /// The whole interval lies beyond the bound.
    Exceeded,
}

/// A gate with what it found in each comparison that it is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateResult {
    /// The gate as it is written.
    pub gate: String,
    /// The worst of its cells.
    pub outcome: Outcome,
    /// What it is about; never empty.
    pub cells: Vec<GateCell>,
}

/// A gate in one comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateCell {
    /// Engine compared with.
    pub base: String,
    /// Engine compared.
    pub candidate: String,
    /// Experiment name.
    pub experiment: String,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, with the numbers.
    pub reason: String,
}

impl Outcome {
    /// As files say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Undecided => "undecided",
            Self::Exceeded => "exceeded",
        }
    }
}

impl Gate {
    /// What must be compared for it.
    #[must_use]
    pub const fn metric(&self) -> Metric {
        self.metric
    }

    /// Holds it against every comparison that it is about. What could not be
    /// compared is undecided. `None` if there is nothing that it is about.
    #[must_use]
    pub fn hold(&self, compared: &Compared) -> Option<GateResult> {
        let comparisons = compared
            .comparisons
            .iter()
            .filter(|c| c.metric == self.metric && self.is_about(&c.experiment, c.concurrency));
        let missing = compared.not_compared.iter().filter(|missing| {
            let whole = missing.round.is_none()
                && missing.metric.is_none_or(|metric| metric == self.metric);
            whole && self.is_about(&missing.experiment, missing.concurrency)
        });
        let found: Vec<_> = comparisons.map(|comparison| self.look(comparison)).collect();
        if found.is_empty() {
            return None;
        }
        let cells: Vec<_> = found.into_iter().chain(missing.map(undecided)).collect();
        let outcome = cells.iter().map(|cell| cell.outcome).max()?;
        Some(GateResult { gate: self.to_string(), outcome, cells })
    }

    fn is_about(&self, experiment: &str, concurrency: u32) -> bool {
        self.experiment.as_ref().is_none_or(|name| is_named(experiment, slice::from_ref(name)))
            && self.concurrency.is_none_or(|c| c == concurrency)
    }

    fn look(&self, comparison: &Comparison) -> GateCell {
        let (outcome, reason) = match comparison.interval {
            None => (Outcome::Undecided, comparison.reason.clone()),
            Some(interval) => {
                let (near, far) = match self.beyond {
                    Beyond::Above => (interval.high <= self.ratio, interval.low > self.ratio),
                    Beyond::Below => (interval.low >= self.ratio, interval.high < self.ratio),
                };
                let outcome = match (near, far) {
                    (true, _) => Outcome::Kept,
                    (false, true) => Outcome::Exceeded,
                    (false, false) => Outcome::Undecided,
                };
                let change = |ratio: f64| signed_percent(ratio - 1.0);
                let reason = format!(
                    "{}, from {} to {}",
                    change(comparison.ratio),
                    change(interval.low),
                    change(interval.high)
                );
                (outcome, reason)
            }
        };
        GateCell {
            base: comparison.base.engine.clone(),
            candidate: comparison.candidate.engine.clone(),
            experiment: comparison.experiment.clone(),
            concurrency: comparison.concurrency,
            outcome,
            reason,
        }
    }
}

fn undecided(missing: &NotCompared) -> GateCell {
    GateCell {
        base: missing.engine.clone(),
        candidate: missing.candidate.clone().unwrap_or_else(|| missing.engine.clone()),
        experiment: missing.experiment.clone(),
        concurrency: missing.concurrency,
        outcome: Outcome::Undecided,
        reason: format!("not compared: {}", missing.reason),
    }
}

/// `+5 %`, `-3.2 %`.
#[must_use]
pub fn signed_percent(share: f64) -> String {
    let text = percent(share.abs());
    match (text.as_str(), share < 0.0) {
        ("0 %", _) => text,
        (_, true) => format!("-{text}"),
        (_, false) => format!("+{text}"),
    }
}

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |what: &str| {
            format!(
                "gate `{text}` {what}: expected METRIC [@EXPERIMENT[,C=N]] > +PERCENT% or \
                 < -PERCENT%, such as ttft_p50 > +5%"
            )
        };
        let at = text.rfind(['<', '>']).ok_or_else(|| bad("has no > or <"))?;
        let (about, bound) = text.split_at(at);
        let beyond = if bound.starts_with('>') { Beyond::Above } else { Beyond::Below };
        let share = bound[1..].trim().strip_suffix('%').map(str::trim);
        let share = share.and_then(|number| number.parse::<f64>().ok()).map(|share| share / 100.0);
        let share = share.filter(|share| share.is_finite() && *share > -1.0);
        let share = share.ok_or_else(|| bad("has no bound in percent above -100"))?;
        let (metric, place) = match about.split_once('@') {
            Some((metric, place)) => (metric, Some(place.trim())),
            None => (about, None),
        };
        let metric = metric.trim().parse().map_err(|error| format!("gate `{text}`: {error}"))?;
        let (mut experiment, mut concurrency) = (None, None);
        for part in place.iter().flat_map(|place| place.split(',')).map(str::trim) {
            match part.strip_prefix("C=") {
                Some(number) => {
                    concurrency = Some(number.parse().map_err(|_| bad("has no number after C="))?);
                }
                None if !part.is_empty() && experiment.is_none() => {
                    experiment = Some(part.to_owned());
                }
                None => return Err(bad("names no experiment after @")),
            }
        }
        Ok(Self { metric, experiment, concurrency, beyond, ratio: 1.0 + share })
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.metric)?;
        let concurrency = self.concurrency.map(|c| format!("C={c}"));
        let place: Vec<_> = self.experiment.iter().cloned().chain(concurrency).collect();
        if !place.is_empty() {
            write!(f, " @{}", place.join(","))?;
        }
        let sign = if self.beyond == Beyond::Above { '>' } else { '<' };
        write!(f, " {sign} {}", signed_percent(self.ratio - 1.0).replace(' ', ""))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::comparison;
    use super::*;

    fn held(gate: &str, low: f64, high: f64) -> Outcome {
        let comparisons = vec![comparison("ttft_p50", "concurrent-warm", 10, Some((low, high)))];
        let compared = Compared { comparisons, ..Compared::default() };
        gate.parse::<Gate>().unwrap().hold(&compared).unwrap().outcome
    }

    #[test]
    fn gates_are_read_and_written_alike() {
        for (text, written) in [
            ("ttft_p50 > +5%", "ttft_p50 > +5%"),
            ("ttft_p50>5%", "ttft_p50 > +5%"),
            (
                "output_tokens_per_s @batched-warm,C=4 < -3%",
                "output_tokens_per_s @batched-warm,C=4 < -3%",
            ),
            ("e2el_p90 @sweep@12.5 > 0.5 %", "e2el_p90 @sweep@12.5 > +0.5%"),
            ("tpot_p50 @C=8 > 0%", "tpot_p50 @C=8 > 0%"),
        ] {
            let gate: Gate = text.parse().unwrap();
            assert_eq!(gate.to_string(), written);
            assert_eq!(written.parse::<Gate>().unwrap().to_string(), written);
        }
    }

    #[test]
    fn what_is_no_gate_is_named() {
        for (text, what) in [
            ("", "has no > or <"),
            ("ttft_p50", "has no > or <"),
            ("ttft_p50 > 5", "has no bound in percent"),
            ("ttft_p50 > nan%", "has no bound in percent"),
            ("ttft_p50 < -100%", "has no bound in percent"),
            ("ttft > 5%", "unknown metric `ttft`"),
            ("ttft_p50 @ > 5%", "names no experiment"),
            ("ttft_p50 @a,C=x > 5%", "has no number after C="),
            ("ttft_p50 @a,b > 5%", "names no experiment"),
        ] {
            let error = text.parse::<Gate>().unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn whole_interval_decides_and_a_part_of_it_does_not() {
        assert_eq!(held("ttft_p50 > +5%", 1.06, 1.2), Outcome::Exceeded);
        assert_eq!(held("ttft_p50 > +5%", 0.9, 1.05), Outcome::Kept);
        assert_eq!(held("ttft_p50 > +5%", 1.04, 1.06), Outcome::Undecided);
        assert_eq!(held("ttft_p50 < -3%", 0.8, 0.96), Outcome::Exceeded);
        assert_eq!(held("ttft_p50 < -3%", 0.98, 1.2), Outcome::Kept);
        assert_eq!(held("ttft_p50 < -3%", 0.9, 1.2), Outcome::Undecided);
    }

    #[test]
    fn gate_about_nothing_is_no_result_and_missing_cells_are_undecided() {
        let comparisons = vec![comparison("ttft_p50", "concurrent-warm", 10, Some((0.99, 1.01)))];
        let missing = NotCompared {
            engine: "a".to_owned(),
            candidate: None,
            experiment: "batched-warm".to_owned(),
            concurrency: 4,
            round: None,
            metric: None,
            reason: "not measured".to_owned(),
        };
        let compared = Compared { comparisons, not_compared: vec![missing] };
        let hold = |gate: &str| gate.parse::<Gate>().unwrap().hold(&compared);
        assert_eq!(hold("e2el_p50 > 5%"), None);
        assert_eq!(hold("ttft_p50 @batched-warm > 5%"), None);
        assert_eq!(hold("ttft_p50 @concurrent-warm > 5%").unwrap().outcome, Outcome::Kept);
        let all = hold("ttft_p50 > 5%").unwrap();
        assert_eq!((all.outcome, all.cells.len()), (Outcome::Undecided, 2));
    }
}
