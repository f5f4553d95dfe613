//! Whether engines ran at their speed when warm cases began.

use super::{Facts, about, name_cases};
use crate::record::EngineRecord;
use crate::stats::summary::{CaseSummary, WarmUpSummary};
use crate::stats::warnings::{Warning, WarningClass};

pub(super) fn not_settled(facts: &Facts<'_>, engine: &EngineRecord) -> Option<Warning> {
    of(&facts.cases_of(engine).collect::<Vec<_>>(), engine)
}

fn of(cases: &[&CaseSummary], engine: &EngineRecord) -> Option<Warning> {
    let told =
        |case: &CaseSummary| case.warm_up.clone().filter(|warm_up| warm_up.settled == Some(false));
    let cases = || cases.iter().copied().filter(|case| told(case).is_some());
    let WarmUpSummary { num_bursts, reason, .. } = cases().find_map(told)?;
    let why = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
    let noun = if num_bursts == 1 { "burst" } else { "bursts" };
    Some(about(
        WarningClass::NotSettled,
        Some(engine),
        format!(
            "its speed was not flat after {num_bursts} {noun} of warm-up{why} before {}",
            name_cases(cases()),
        ),
        "it may still have been getting faster, or something else used the machine: see that \
         nothing does, warm it up longer with --warm-up N, or measure more rounds and compare them",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::record::{JournalEntry, JournalEvent};
    use crate::stats::case::{self, tests::*};

    #[test]
    fn engine_that_never_became_flat_is_named_with_its_numbers() {
        let warmed_up = |settled: Option<bool>| JournalEntry {
            at_ns: Timestamp::from_nanos(0),
            event: JournalEvent::WarmedUp {
                case: 0,
                num_bursts: 16,
                num_requests: 161,
                took_ns: 1,
                settled,
                reason: settled
                    .filter(|flat| !flat)
                    .map(|_| "median TTFT from 1 to 9 ms".to_owned()),
            },
        };
        let (record, requests) = (record("e", "concurrent-warm", 1), [request(0, 0, &[20, 25])]);
        let group = group(&record, &requests);
        let engine = EngineRecord { spec: "e:embedded".parse().unwrap(), info: None, error: None };
        let warning = |settled| of(&[&case::summarise(&group, &[warmed_up(settled)])], &engine);
        assert_eq!(warning(Some(true)), None);
        assert_eq!(warning(None), None, "the plan gave a number");
        let found = warning(Some(false)).unwrap();
        assert!(found.message.contains("16 bursts of warm-up (median TTFT from 1 to 9 ms)"));
        assert!(found.message.ends_with("before concurrent-warm"), "{}", found.message);
    }
}
