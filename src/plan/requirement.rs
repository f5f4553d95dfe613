//! What a run has to show: a bound on a tail, how surely, and of which cases.

use std::fmt;
use std::str::FromStr;

use super::Slo;

/// Confidence where none is given, in percent.
const CONFIDENCE: f64 = 99.0;

/// `ttft_p90<=500ms@99%`: that nine requests in ten keep the bound is to be
/// shown so surely that it would be wrongly said at most once in a hundred times.
#[derive(Debug, Clone, PartialEq)]
pub struct Requirement {
    /// The experiment or load that it is about; `None` for every warm case.
    pub of: Option<String>,
    /// The bound, and the percent of the requests that have to keep it.
    pub slo: Slo,
    /// In percent.
    pub confidence: f64,
}

impl Requirement {
    /// Whether a case has to meet it. Cold cases have to only where they are
    /// named: what is promised to users is promised of an engine that runs.
    #[must_use]
    pub fn applies(&self, experiment: &str, load: Option<&str>, cold: bool) -> bool {
        match &self.of {
            Some(name) => name == experiment || Some(name.as_str()) == load,
            None => !cold,
        }
    }

    /// Share of the requests that may exceed the bound.
    #[must_use]
    pub fn allowed(&self) -> f64 {
        1.0 - self.slo.percent / 100.0
    }

    /// Probability of a wrong verdict that is granted.
    #[must_use]
    pub fn error(&self) -> f64 {
        1.0 - self.confidence / 100.0
    }
}

impl FromStr for Requirement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |problem: &str| {
            format!(
                "requirement `{text}` is not understood: {problem}; expected \
                 [EXPERIMENT:]METRIC_pNN<=LIMIT[@CONFIDENCE%], such as ttft_p90<=500ms@99%"
            )
        };
        let (of, rest) = match text.split_once(':') {
            Some((of, rest)) if !of.trim().is_empty() => (Some(of.trim().to_owned()), rest),
            Some(_) => return Err(bad("no experiment stands before the colon")),
            None => (None, text),
        };
        let (slo, confidence) = match rest.rsplit_once('@') {
            Some((slo, confidence)) => {
                let number = confidence.trim().strip_suffix('%').and_then(|n| n.parse().ok());
                (slo, number.ok_or_else(|| bad("its confidence is no percentage"))?)
            }
            None => (rest, CONFIDENCE),
        };
        let slo: Slo =
            slo.trim().parse().map_err(|_| bad("it is no bound on ttft, tpot or e2el"))?;
        if slo.percent >= 100.0 {
            return Err(bad("that all requests ever keep a bound cannot be shown by some"));
        }
        if !(50.0..100.0).contains(&confidence) {
            return Err(bad("its confidence is not from 50 % to below 100 %"));
        }
        Ok(Self { of, slo, confidence })
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(of) = &self.of {
            write!(f, "{of}:")?;
        }
        write!(f, "{}@{}%", self.slo, self.confidence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_read_and_written_alike() {
        for (text, written) in [
            ("ttft_p90<=500ms@99%", "ttft_p90<500ms@99%"),
            ("tpot_p50 < 0.05s", "tpot_p50<50ms@99%"),
            ("sequential-cold:e2el_p99.9<=2s@ 95%", "sequential-cold:e2el_p99.9<2000ms@95%"),
            ("sweep@5:ttft_p90<1s@90%", "sweep@5:ttft_p90<1000ms@90%"),
        ] {
            let requirement: Requirement = text.parse().unwrap();
            assert_eq!(requirement.to_string(), written);
            assert_eq!(written.parse(), Ok(requirement));
        }
    }

    #[test]
    fn what_is_no_requirement_is_named_with_its_fault() {
        for (text, fault) in [
            ("ttft<500ms", "cannot be shown"),
            ("ttft_p90<500ms@100%", "below 100 %"),
            ("ttft_p90<500ms@99", "no percentage"),
            ("itl_p90<5ms", "no bound"),
            (":ttft_p90<5ms", "before the colon"),
            ("", "no bound"),
        ] {
            let error = text.parse::<Requirement>().unwrap_err();
            assert!(error.contains(&format!("`{text}`")) && error.contains(fault), "{error}");
        }
    }

    #[test]
    fn cold_cases_are_meant_only_by_name() {
        let of = |text: &str| text.parse::<Requirement>().unwrap();
        let all = of("ttft_p90<1s");
        assert!(all.applies("concurrent-warm", None, false));
        assert!(!all.applies("sequential-cold", None, true));
        let cold = of("sequential-cold:ttft_p90<1s");
        assert!(cold.applies("sequential-cold", None, true));
        assert!(!cold.applies("concurrent-warm", None, false));
        assert!(of("peak:ttft_p90<1s").applies("peak@4", Some("peak"), false));
    }
}
