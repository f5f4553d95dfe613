//! Which rates of a sweep still say something, as it runs: those between the
//! highest that an engine kept up with and the lowest that it did not.

use std::collections::HashMap;

use crate::plan::{Case, LoadShape};
use crate::record::{CaseRecord, RequestRecord};
use crate::stats::{capacity, open_loop};

/// Why a rate was left out.
pub(super) const NOT_NEEDED: &str = "the search for the capacity did not need these rates";

/// What is known so far, by engine, load, round and arm.
#[derive(Debug, Default)]
pub(super) struct Search(HashMap<Place, Bounds>);

type Place = (usize, usize, u32, bool);

#[derive(Debug, Clone, Copy)]
struct Bounds {
    kept_up: f64,
    exceeded: f64,
}

impl Search {
    /// Whether a case would say nothing new. Only cases of a search can.
    pub(super) fn needs(&self, case: &Case) -> bool {
        let Some((key, rate)) = place(case) else { return true };
        let bounds = self.0.get(&key);
        bounds.is_none_or(|bounds| rate > bounds.kept_up && rate < bounds.exceeded)
    }

    /// Takes in how a case went. One that could not be measured to its end was too much.
    pub(super) fn learn(&mut self, case: &Case, record: &CaseRecord, requests: &[RequestRecord]) {
        let Some((key, rate)) = place(case) else { return };
        let requests: Vec<&RequestRecord> = requests.iter().collect();
        let (kept_up, _) = capacity::verdict(&open_loop::summarise(record, &requests));
        let bounds = self.0.entry(key).or_insert(Bounds { kept_up: 0.0, exceeded: f64::INFINITY });
        match kept_up {
            Some(true) => bounds.kept_up = bounds.kept_up.max(rate),
            Some(false) => bounds.exceeded = bounds.exceeded.min(rate),
            None if requests.is_empty() => bounds.exceeded = bounds.exceeded.min(rate),
            None => {}
        }
    }
}

fn place(case: &Case) -> Option<(Place, f64)> {
    let open = matches!(case.shape, LoadShape::Open { .. });
    let rate = case.told.as_ref()?.rate_per_s.filter(|_| open && case.search)?;
    Some(((case.engine, case.load_plan?, case.round, case.again), rate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, Subject, expand};

    #[test]
    fn search_doubles_then_looks_between_what_was_kept_up_with_and_what_was_not() {
        let text = "[[load]]\nsweep = 'auto'\nrequests = 40\narrival = 'constant'\n";
        let plan = Plan::from_toml(text).unwrap();
        let subject = Subject { name: "e".to_owned(), unusable: None, no_cold: None, holds: None };
        let mut search = Search::default();
        let mut tried = Vec::new();
        for case in expand(&plan, std::slice::from_ref(&subject)) {
            if !search.needs(&case) {
                continue;
            }
            let record = case.record(std::slice::from_ref(&subject));
            let rate = record.load.as_ref().unwrap().rate_per_s.unwrap();
            tried.push(rate);
            search.learn(&case, &record, &answered(rate));
        }
        assert_eq!(tried, [1.0, 2.0, 4.0, 8.0, 16.0, 11.3, 9.51]);
    }

    /// Forty requests to an engine that answers ten a second, one at a time.
    fn answered(rate: f64) -> Vec<RequestRecord> {
        let mut free = 0.0_f64;
        (0..40)
            .map(|i| {
                let arrives = f64::from(i) * 1e3 / rate;
                free = free.max(arrives) + 100.0;
                let [arrives, took] =
                    [arrives, free - arrives].map(|ms| format!("{:.0}", ms * 1e6));
                let text = format!(
                    r#"{{"case":0,"index":{i},"warmup":false,"cold":false,"max_tokens":1,
                    "prompt_sha256":"","intended_at_ns":{arrives},"sent_at_ns":{arrives},
                    "done_ns":{took},"events":[],"num_events_dropped":0,"count_source":"none",
                    "outcome":{{"status":"ok"}},"server":{{}},"text":""}}"#
                );
                serde_json::from_str(&text).unwrap()
            })
            .collect()
    }
}
