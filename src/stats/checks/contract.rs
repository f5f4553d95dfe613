//! Settings that change what an engine is asked to do, and cases that measured
//! something else than was asked for.

use std::collections::BTreeMap;

use super::{Facts, about, count, name_cases};
use crate::record::EngineRecord;
use crate::stats::contract::parallel_slots;
use crate::stats::summary::CaseSummary;
use crate::stats::warnings::{Warning, WarningClass};

pub(super) fn unequal_context(facts: &Facts<'_>) -> Option<Warning> {
    // Points of a sweep over KV settings differ in it by what they are.
    let engines = facts.run.manifest.engines.iter().filter(|it| it.spec.kv_point.is_none());
    let told: Vec<(&str, u32)> = engines
        .filter_map(|it| Some((it.spec.name.as_str(), it.info.as_ref()?.max_model_len?)))
        .collect();
    let first = told.first()?.1;
    let named: Vec<_> = told.iter().map(|(engine, len)| format!("{engine} {len}")).collect();
    told.iter().any(|(_, len)| *len != first).then(|| {
        about(
            WarningClass::UnequalContext,
            None,
            format!("longest sequences differ, in tokens: {}", named.join(", ")),
            "speed hardly depends on it, memory does: engines reserve K and V by it; give all \
             engines the same one before comparing memory",
        )
    })
}

pub(super) fn fewer_slots(facts: &Facts<'_>, engine: &EngineRecord) -> Option<Warning> {
    let slots = parallel_slots(engine)?;
    let queues =
        |case: &&CaseSummary| case.under_load.open_loop.is_none() && case.concurrency > slots;
    let most = facts.cases_of(engine).filter(queues).map(|case| case.concurrency).max()?;
    Some(about(
        WarningClass::FewerSlots,
        Some(engine),
        format!(
            "serves {} at once by its settings, and was sent up to {most} in {}",
            count(slots as usize, "request"),
            name_cases(facts.cases_of(engine).filter(queues)),
        ),
        "the rest waited in its queue, and that wait is in TTFT: it is the setting that is \
         compared; give it as many slots as there are requests at once, or say so",
    ))
}

/// One warning an engine, with every reason and the cases that it is about.
pub(super) fn invalid_cases(facts: &Facts<'_>, engine: &EngineRecord) -> Option<Warning> {
    let mut reasons: BTreeMap<(WarningClass, &str), Vec<&CaseSummary>> = BTreeMap::new();
    // Failures have a warning of their own.
    let named = |case: &&CaseSummary| {
        case.invalid.iter().any(|invalid| invalid.class != WarningClass::Failures)
    };
    for case in facts.cases_of(engine).filter(named) {
        for invalid in &case.invalid {
            reasons.entry((invalid.class, &invalid.reason)).or_default().push(case);
        }
    }
    let cases = facts.cases_of(engine).filter(named).count();
    let described: Vec<_> = reasons
        .into_iter()
        .map(|((_, reason), cases)| format!("{}: {reason}", name_cases(cases.into_iter())))
        .collect();
    (cases > 0).then(|| {
        about(
            WarningClass::InvalidCases,
            Some(engine),
            format!("{} not compared, {}", count(cases, "case"), described.join("; ")),
            "they measured something else than was asked for: their numbers are shown, and are in \
             no comparison and no mean",
        )
    })
}
