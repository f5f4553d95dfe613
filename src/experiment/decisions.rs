//! What is required of a run's cases, as far as it is decided while it runs: so
//! that a load can end once nothing is left to decide.

use std::collections::HashMap;

use crate::plan::{Case, LoadShape, Requirement};
use crate::record::RequestRecord;
use crate::stats::gate::{Test, Verdict};
use crate::stats::gates;

/// Why a later round was left out.
pub(super) const NOT_NEEDED: &str = "all that is required of it was decided in an earlier round";

/// By engine and load; rounds are one sample.
#[derive(Debug, Default)]
pub(super) struct Decisions(HashMap<(usize, String, u32), Vec<Tally>>);

#[derive(Debug)]
struct Tally {
    requirement: Requirement,
    test: Test,
    n: u64,
    num_over: u64,
    verdict: Verdict,
}

impl Decisions {
    /// Takes in a request; whether nothing is left to decide of its case. Never
    /// so of a case whose load does not end early.
    pub(super) fn learn(&mut self, case: &Case, request: &RequestRecord) -> bool {
        if !case.stop_when_decided || case.requirements.is_empty() {
            return false;
        }
        let tallies = self.0.entry(place(case)).or_insert_with(|| {
            let tally = |requirement: &Requirement| Tally {
                requirement: requirement.clone(),
                test: gates::test(requirement, true),
                n: 0,
                num_over: 0,
                verdict: Verdict::Undecided,
            };
            case.requirements.iter().map(tally).collect()
        });
        for tally in tallies.iter_mut().filter(|tally| tally.verdict == Verdict::Undecided) {
            let Some(over) = gates::is_over(&tally.requirement, request) else { continue };
            tally.n += 1;
            tally.num_over += u64::from(over);
            tally.verdict = tally.test.verdict(tally.n, tally.num_over);
        }
        self.are_made(case)
    }

    /// Whether nothing is left to decide of a case.
    pub(super) fn are_made(&self, case: &Case) -> bool {
        let tallies = self.0.get(&place(case)).filter(|_| case.stop_when_decided);
        tallies.is_some_and(|all| all.iter().all(|tally| tally.verdict != Verdict::Undecided))
    }

    /// What was decided of a case, in words.
    pub(super) fn told(&self, case: &Case) -> String {
        let tell = |tally: &Tally| {
            let Tally { requirement, n, num_over, verdict, .. } = tally;
            format!("{requirement} {} with {num_over} of {n} over", verdict.as_str())
        };
        let tallies = self.0.get(&place(case)).into_iter().flatten();
        tallies.map(tell).collect::<Vec<_>>().join("; ")
    }
}

fn place(case: &Case) -> (usize, String, u32) {
    let concurrency = match case.shape {
        LoadShape::Closed { concurrency } => concurrency,
        // How many happen to arrive differs from round to round.
        LoadShape::Open { .. } => 0,
    };
    (case.engine, case.experiment.clone(), concurrency)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, Subject, expand};
    use crate::stats::case::tests::request;

    fn cases(stop: bool) -> Vec<Case> {
        let text = format!(
            "rounds = 2\nexperiments = ['concurrent-warm']\nstop_when_decided = {stop}\n\
             require = ['ttft_p90<=50ms', 'e2el_p50<=1s']\n"
        );
        let subject = Subject { name: "e".to_owned(), unusable: None, no_cold: None, holds: None };
        expand(&Plan::from_toml(&text).unwrap(), &[subject])
    }

    #[test]
    fn load_ends_with_its_last_decision_and_later_rounds_have_nothing_to_add() {
        let cases = cases(true);
        let mut decisions = Decisions::default();
        assert!(!decisions.are_made(&cases[0]));
        let fast = request(0, 0, &[10, 20]);
        let fewest = (1..500).find(|_| decisions.learn(&cases[0], &fast));
        assert!(fewest.is_some_and(|n| (44..100).contains(&n)), "{fewest:?}");
        assert!(decisions.are_made(&cases[1]), "a round of the same engine and load");
        let told = decisions.told(&cases[0]);
        assert!(told.contains("ttft_p90<50ms@99% met with 0 of"), "{told}");
        assert!(told.contains("e2el_p50<1000ms@99% met"), "{told}");
    }

    #[test]
    fn load_goes_on_unless_it_was_to_end_early() {
        let cases = cases(false);
        let mut decisions = Decisions::default();
        let fast = request(0, 0, &[10, 20]);
        assert!(!(0..500).any(|_| decisions.learn(&cases[0], &fast)));
    }
}
