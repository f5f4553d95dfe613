//! Finds what a reader must know before believing the numbers. Each check is a
//! pure function of the run; wording lives beside the finding, rendering elsewhere.

mod arrivals;
mod client;
mod cold;
mod contract;
mod fairness;
mod gpu;
mod measurement;
pub mod resources;
mod settling;

use std::collections::BTreeMap;

use crate::engine::{EngineInfo, EngineKind};
use crate::record::{EngineRecord, RequestRecord, RunData};

use super::case::CaseRequests;
use super::client_error::ClientErrors;
use super::summary::CaseSummary;
use super::warnings::{Warning, WarningClass};

/// All warnings of a run: those about the whole run first, then by engine in
/// the manifest's order.
#[must_use]
pub fn find(
    run: &RunData,
    grouped: &[CaseRequests<'_>],
    cases: &[CaseSummary],
    client_error: Option<&ClientErrors>,
    complete: bool,
) -> Vec<Warning> {
    let facts = Facts { run, grouped, cases };
    let mut warnings = Vec::new();
    warnings.extend(measurement::incomplete(&facts, complete));
    warnings.extend(fairness::unequal_precision(&facts));
    warnings.extend(fairness::unequal_prompts(&facts));
    warnings.extend(contract::unequal_context(&facts));
    warnings.extend(measurement::busy_machine(&facts));
    warnings.extend(measurement::few_samples(&facts));
    for engine in &run.manifest.engines {
        warnings.extend(measurement::failures(&facts, engine));
        warnings.extend(contract::invalid_cases(&facts, engine));
        warnings.extend(fairness::other_model(&facts, engine));
        warnings.extend(fairness::dummy_weights(engine));
        warnings.extend(gpu::emulated(engine));
        warnings.extend(gpu::no_graphs(run, engine));
        warnings.extend(fairness::short_outputs(&facts, engine));
        warnings.extend(fairness::prefix_cache_hit(&facts, engine));
        warnings.extend(contract::fewer_slots(&facts, engine));
        warnings.extend(measurement::multi_token_chunks(&facts, engine));
        warnings.extend(measurement::count_source(&facts, engine));
        warnings.extend(settling::not_settled(&facts, engine));
        warnings.extend(measurement::send_spread(&facts, engine));
        warnings.extend(client::saturated(&facts, client_error, engine));
        warnings.extend(client::processor(&facts, engine));
        warnings.extend(arrivals::late(&facts, engine));
        warnings.extend(arrivals::held(&facts, engine));
        warnings.extend(cold::page_cache_warm(run, engine));
    }
    warnings
}

/// What the checks look at.
struct Facts<'a> {
    run: &'a RunData,
    grouped: &'a [CaseRequests<'a>],
    cases: &'a [CaseSummary],
}

impl<'a> Facts<'a> {
    /// Engines that described themselves.
    fn described(&self) -> impl Iterator<Item = (&'a str, &'a EngineInfo)> {
        let engines = self.run.manifest.engines.iter();
        engines.filter_map(|e| Some((e.spec.name.as_str(), e.info.as_ref()?)))
    }

    fn cases_of(&self, engine: &'a EngineRecord) -> impl Iterator<Item = &'a CaseSummary> {
        self.cases.iter().filter(|case| case.engine == engine.spec.name)
    }

    fn requests_of(&self, engine: &'a EngineRecord) -> impl Iterator<Item = &'a RequestRecord> {
        self.grouped
            .iter()
            .filter(|group| group.record.engine == engine.spec.name)
            .flat_map(|group| group.requests.iter().copied())
    }

    fn completed_of(&self, engine: &'a EngineRecord) -> impl Iterator<Item = &'a RequestRecord> {
        self.requests_of(engine).filter(|request| request.outcome.is_ok())
    }
}

fn about(
    class: WarningClass,
    engine: Option<&EngineRecord>,
    message: String,
    advice: impl Into<String>,
) -> Warning {
    Warning {
        class,
        engine: engine.map(|engine| engine.spec.name.clone()),
        experiment: None,
        message,
        advice: advice.into(),
    }
}

fn is_embedded(engine: &EngineRecord) -> bool {
    engine.spec.kind == EngineKind::Embedded
}

/// Cases in few words: `concurrent-warm, batched-warm C = 2-5, 8`. An
/// experiment measured at one concurrency is named without it.
fn name_cases<'a>(cases: impl Iterator<Item = &'a CaseSummary>) -> String {
    let mut names: Vec<&str> = Vec::new();
    let mut concurrencies: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for case in cases {
        if !names.contains(&case.experiment.as_str()) {
            names.push(&case.experiment);
        }
        concurrencies.entry(&case.experiment).or_default().push(case.concurrency);
    }
    let write = |name: &str| {
        let mut found = concurrencies.get(name).cloned().unwrap_or_default();
        found.sort_unstable();
        found.dedup();
        if found.len() > 1 { format!("{name} C = {}", ranges(&found)) } else { name.to_owned() }
    };
    names.into_iter().map(write).collect::<Vec<_>>().join(", ")
}

/// Sorted numbers in few words: `1-3, 5`.
fn ranges(sorted: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for number in sorted {
        match parts.last_mut() {
            Some((_, end)) if *number <= end.saturating_add(1) => *end = *number,
            _ => parts.push((*number, *number)),
        }
    }
    let write = |(start, end): (u32, u32)| {
        if start == end { start.to_string() } else { format!("{start}-{end}") }
    };
    parts.into_iter().map(write).collect::<Vec<_>>().join(", ")
}

/// `1 request`, `2 requests`.
fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_named_in_ranges() {
        assert_eq!(ranges(&[1, 2, 3, 5, 8, 9]), "1-3, 5, 8-9");
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[u32::MAX]), u32::MAX.to_string());
    }
}
