//! What the probe saw that changes how numbers are read: clocks that were held
//! down, prompts that a prefix cache answered though no response said so.

use super::{about, count};
use crate::record::{EngineRecord, RunData};
use crate::stats::case::CaseRequests;
use crate::stats::resources::{CaseResources, Resources};
use crate::stats::warnings::{Warning, WarningClass};

/// What lowers clocks below what the GPU could do; the other reasons of NVML
/// are idleness and settings that somebody chose.
const LIMITS: [&str; 6] = [
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
];
/// Share of the looks above which a case counts as throttled.
const MIN_SHARE: f64 = 0.05;
/// As for hits that responses tell of.
const CACHED_TOLERANCE: f64 = 0.02;

/// Warnings by engine, in the manifest's order.
#[must_use]
pub fn find(
    run: &RunData,
    grouped: &[CaseRequests<'_>],
    resources: Option<&Resources>,
) -> Vec<Warning> {
    let Some(resources) = resources else { return Vec::new() };
    let mut warnings = Vec::new();
    for engine in &run.manifest.engines {
        let cases: Vec<&CaseResources> =
            resources.cases.iter().filter(|case| case.engine == engine.spec.name).collect();
        warnings.extend(throttled(engine, &cases));
        let told = grouped
            .iter()
            .filter(|group| group.record.engine == engine.spec.name)
            .flat_map(CaseRequests::completed)
            .any(|request| request.num_cached_tokens.is_some());
        if !told {
            warnings.extend(prefix_cache_hit(engine, &cases));
        }
    }
    warnings
}

fn throttled(engine: &EngineRecord, cases: &[&CaseResources]) -> Option<Warning> {
    let limits = |case: &CaseResources| {
        let held = case
            .throttled
            .iter()
            .filter(|(name, share)| LIMITS.contains(&name.as_str()) && **share >= MIN_SHARE);
        held.map(|(name, share)| (name.clone(), *share)).collect::<Vec<_>>()
    };
    let held: Vec<_> = cases.iter().map(|case| (*case, limits(case))).collect();
    let num_cases = held.iter().filter(|(_, limits)| !limits.is_empty()).count();
    let (worst, name, share) = held
        .iter()
        .flat_map(|(case, limits)| limits.iter().map(move |(name, share)| (*case, name, *share)))
        .max_by(|a, b| a.2.total_cmp(&b.2))?;
    let clock = worst
        .sm_clock_mhz
        .map_or_else(String::new, |mhz| format!(", with a median clock of {mhz:.0} MHz"));
    Some(about(
        WarningClass::Throttled,
        Some(engine),
        format!(
            "GPU clocks were held down in {}, most of all by {name} in {:.0} % of the looks of {} \
             at C = {}{clock}",
            count(num_cases, "case"),
            share * 100.0,
            worst.experiment,
            worst.concurrency,
        ),
        "an engine that meets a cooler GPU, or one with power to spare, computes faster: cool \
         down between engines, lock the clocks, or compare rounds that turn the engines round",
    ))
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
fn prefix_cache_hit(engine: &EngineRecord, cases: &[&CaseResources]) -> Option<Warning> {
    let counted = || cases.iter().filter_map(|case| case.prefix_queries.zip(case.prefix_hits));
    let queries = counted().fold(0_u64, |sum, (queries, _)| sum.saturating_add(queries));
    let hits = counted().fold(0_u64, |sum, (_, hits)| sum.saturating_add(hits));
    let share = hits as f64 / queries.max(1) as f64;
    (share > CACHED_TOLERANCE).then(|| {
        about(
            WarningClass::PrefixCacheHit,
            Some(engine),
            format!(
                "by its own metrics {hits} of {queries} prompt tokens came from its prefix cache, \
                 {:.0} %",
                share * 100.0
            ),
            "TTFT is that of a prompt shorter by so much: use --prompt-tokens N, whose prompts \
             share nothing, or switch the engine's prefix cache off",
        )
    })
}
