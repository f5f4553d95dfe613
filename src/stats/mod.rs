//! From raw lines to numbers. Pure: reads no clock, touches no file. Each
//! formula is a small file; `docs/METRICS.md` states them in words.

pub mod capacity;
pub mod case;
pub mod cell;
pub mod checks;
pub mod client_error;
pub mod cold_start;
pub mod compare;
pub mod contract;
pub mod distribution;
pub mod gate;
pub mod gates;
pub mod goodput;
pub mod http_cost;
pub mod inside;
pub mod kv_capacity;
pub mod kv_sweep;
pub mod latency;
pub mod misreading;
pub mod open_loop;
pub mod order_statistics;
pub mod over_rounds;
pub mod resources;
pub mod settled;
pub mod staircase;
pub mod summary;
pub mod throughput;
pub mod validity;
pub mod warnings;
pub mod window;

use crate::record::{JournalEvent, RunData, SCHEMA_VERSION};

pub use case::CaseRequests;
pub use summary::Summary;

use summary::{AbsentCase, CaseSummary};

/// Derives everything that is derived from a run. The same run gives the same
/// summary, whatever the machine and the hour.
#[must_use]
pub fn summarise(run: &RunData) -> Summary {
    let complete = run.journal.iter().any(|entry| entry.event == JournalEvent::RunFinished);
    let grouped = case::group(run);
    let mut cases = Vec::new();
    let mut absent = Vec::new();
    for group in &grouped {
        // Why an engine has no second arm is said of its first.
        if group.record.again && group.record.absent.is_some() {
            continue;
        }
        if let Some(reason) = case::absence(group, run) {
            // Rates that a search left out are one entry, under the name of the load.
            let load = group.record.load.as_ref();
            let search = load.filter(|_| case::was_skipped(group.case, &run.journal));
            let case = AbsentCase {
                engine: group.record.engine.clone(),
                experiment: search.map_or(&group.record.experiment, |load| &load.name).clone(),
                concurrency: group.record.concurrency,
                reason,
            };
            let same = |known: &AbsentCase| {
                (&known.engine, &known.experiment) == (&case.engine, &case.experiment)
            };
            if search.is_none() || !absent.iter().any(same) {
                absent.push(case);
            }
        } else {
            cases.push(case::summarise(group, &run.journal));
        }
    }
    validity::judge(run, &grouped, &mut cases);
    let gates = gates::gates(run, &grouped, &cases);
    let over_rounds = over_rounds::pool(&grouped, &cases, &run.journal);
    let common_window = window::common(&grouped, &cases);
    // Second arms are there to be compared with the first, and are in nothing else.
    let first: Vec<CaseSummary> = cases.iter().filter(|case| !case.again).cloned().collect();
    let first_arms: Vec<_> = grouped.iter().filter(|group| !group.record.again).cloned().collect();
    let shown = if over_rounds.is_empty() { &first } else { &over_rounds };
    let inside = inside::summarise(run, &grouped);
    let client_error = client_error::find(run);
    let cold_starts = cold_start::summarise(run, &first_arms);
    let http_cost = http_cost::pair(&run.manifest.engines, shown);
    let capacity = capacity::capacities(&first);
    let kv_capacity = kv_capacity::capacities(run, &first_arms);
    let kv_sweep = kv_sweep::sweeps(run, &first_arms, shown, &absent);
    let compared = compare_rounds(&grouped, &cases);
    let resources = resources::summarise(run, &first_arms);
    let mut warnings = checks::find(run, &grouped, shown, client_error.as_ref(), complete);
    warnings.extend(checks::resources::find(run, &grouped, resources.as_ref()));
    Summary {
        schema_version: SCHEMA_VERSION,
        name: run.manifest.name.clone(),
        started_at: run.manifest.started_at.clone(),
        model: run.manifest.model.clone(),
        complete,
        cases,
        over_rounds,
        common_window,
        contract: contract::works(run, &grouped),
        absent,
        http_cost,
        capacity,
        kv_capacity,
        kv_sweep,
        gates,
        comparisons: compared.comparisons,
        not_compared: compared.not_compared,
        cold_starts,
        inside,
        client_error,
        resources,
        warnings,
    }
}

/// Engines beside each other, where there are rounds to tell chance from difference by.
fn compare_rounds(grouped: &[CaseRequests<'_>], cases: &[CaseSummary]) -> compare::cells::Compared {
    if cases.iter().all(|case| case.round == 0) {
        return compare::cells::Compared::default();
    }
    let measured = compare::cells::Measured::new(grouped, cases);
    let question = compare::cells::Question { metrics: &[], also: &[], margin: compare::MARGIN };
    compare::cells::compare_engines(&measured, None, &question)
}
