//! A service-level objective: a bound on a latency, and how many of the
//! requests have to keep it.

use std::fmt;
use std::str::FromStr;

/// A latency that an objective can bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SloMetric {
    /// Time to first token; in an open loop from the intended instant.
    Ttft,
    /// Time per output token after the first.
    Tpot,
    /// End-to-end latency; in an open loop from the intended instant.
    E2el,
}

impl SloMetric {
    const ALL: [Self; 3] = [Self::Ttft, Self::Tpot, Self::E2el];

    /// The word used in plans and files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::E2el => "e2el",
        }
    }
}

/// `ttft<500ms`: every request; `ttft_p90<500ms`: nine in ten.
#[derive(Debug, Clone, PartialEq)]
pub struct Slo {
    /// What is bounded.
    pub metric: SloMetric,
    /// Percent of the requests that have to keep the bound; 100 for all.
    pub percent: f64,
    /// The bound in milliseconds.
    pub limit_ms: f64,
}

impl Slo {
    /// Reads objectives with commas between them.
    ///
    /// # Errors
    /// What is wrong with the first bad one.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        text.split(',').map(|part| part.trim().parse()).collect()
    }
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "objective `{text}` is not understood: expected METRIC<LIMIT or \
                 METRIC_pNN<LIMIT, such as ttft<500ms or tpot_p90<50ms, of ttft, tpot and e2el"
            )
        };
        let (left, right) = text.split_once(['<', '=']).ok_or_else(bad)?;
        let right = right.strip_prefix('=').unwrap_or(right).trim();
        let (metric, percent) = match left.trim().split_once("_p") {
            Some((metric, percent)) => (metric, percent.parse().map_err(|_| bad())?),
            None => (left.trim(), 100.0),
        };
        let metric =
            SloMetric::ALL.into_iter().find(|known| known.as_str() == metric).ok_or_else(bad)?;
        let limit_ms = match (right.strip_suffix("ms"), right.strip_suffix('s')) {
            (Some(number), _) => number.trim().parse::<f64>().map_err(|_| bad())?,
            (None, Some(number)) => number.trim().parse::<f64>().map_err(|_| bad())? * 1e3,
            (None, None) => return Err(bad()),
        };
        let sane = limit_ms > 0.0 && limit_ms.is_finite() && percent > 0.0 && percent <= 100.0;
        sane.then_some(Self { metric, percent, limit_ms }).ok_or_else(bad)
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.metric.as_str())?;
        if self.percent < 100.0 {
            write!(f, "_p{}", self.percent)?;
        }
        write!(f, "<{}ms", self.limit_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_read_and_written_alike() {
        for (text, written) in [
            ("ttft<500ms", "ttft<500ms"),
            ("ttft_p90=500ms", "ttft_p90<500ms"),
            ("tpot_p50 <= 0.05s", "tpot_p50<50ms"),
            ("e2el_p99.9<2s", "e2el_p99.9<2000ms"),
        ] {
            let slo: Slo = text.parse().unwrap();
            assert_eq!(slo.to_string(), written);
            assert_eq!(written.parse(), Ok(slo));
        }
        assert_eq!(Slo::parse_list("ttft<1s, tpot<9ms").map(|list| list.len()), Ok(2));
    }

    #[test]
    fn what_is_no_objective_is_named() {
        for text in [
            "",
            "ttft",
            "ttft<500",
            "itl<3ms",
            "ttft_p0<3ms",
            "ttft_p101<3ms",
            "ttft<-1ms",
            "ttft<nanms",
            "ttft_px<3ms",
        ] {
            let error = text.parse::<Slo>().unwrap_err();
            assert!(
                error.contains(&format!("`{text}`")) && error.contains("METRIC<LIMIT"),
                "{error}"
            );
        }
    }
}
