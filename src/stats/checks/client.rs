//! Whether our own client may be what was measured: by its error against the
//! scripted server, and by the processor time that it used.

use super::{Facts, about, is_embedded, name_cases};
use crate::record::EngineRecord;
use crate::stats::client_error::ClientErrors;
use crate::stats::distribution::median;
use crate::stats::summary::CaseSummary;
use crate::stats::warnings::{Warning, WarningClass};
use crate::units::format_ms;

/// Share of a median above which the client's error is part of the result.
const MAX_ERROR_SHARE: f64 = 0.02;
/// Share of one processor above which the client may be what is measured.
const SATURATED_SHARE: f64 = 0.7;

/// The client's error on TTFT and TPOT beside the medians of the cases. Of
/// engines over HTTP only: the error is that of sockets and parsing.
pub(super) fn saturated(
    facts: &Facts<'_>,
    errors: Option<&ClientErrors>,
    engine: &EngineRecord,
) -> Option<Warning> {
    if is_embedded(engine) && !engine.spec.is_embedded_over_http() {
        return None;
    }
    let errors = errors?;
    let ttft = errors.worst(|error| error.ttft_error_ms.p50);
    let tpot = errors.worst(|error| error.tpot_error_ms.p50);
    let mut parts = Vec::new();
    for (what, error, of) in [
        ("TTFT", ttft, (|case| case.ttft_ms.p50) as fn(&CaseSummary) -> Option<f64>),
        ("TPOT", tpot, |case| case.tpot_ms.p50),
    ] {
        let Some(error) = error else { continue };
        let share = |case: &CaseSummary| of(case).filter(|p50| *p50 > 0.0).map(|p50| error / p50);
        let wide: Vec<_> = facts
            .cases_of(engine)
            .filter_map(|case| Some((share(case)?, case)))
            .filter(|(share, _)| *share > MAX_ERROR_SHARE)
            .collect();
        let Some((worst, _)) = wide.iter().max_by(|a, b| a.0.total_cmp(&b.0)) else { continue };
        parts.push(format!(
            "{} ms on {what}, up to {:.1} % of its median in {}",
            format_ms(error),
            worst * 100.0,
            name_cases(wide.iter().map(|(_, case)| *case)),
        ));
    }
    (!parts.is_empty()).then(|| {
        about(
            WarningClass::ClientSaturated,
            Some(engine),
            format!("the client's own median error was {}", parts.join("; ")),
            "differences of that size are the client's own: free processors, or measure with \
             fewer streams or from another machine",
        )
    })
}

/// The load of a case may be heavier than the one that the client was measured
/// with, so its share of a processor is looked at too.
pub(super) fn processor(facts: &Facts<'_>, engine: &EngineRecord) -> Option<Warning> {
    if is_embedded(engine) {
        // Its share includes the engine, which is meant to use the processors.
        return None;
    }
    let used = |case: &&CaseSummary| case.client_cpu_share.is_some_and(|s| s > SATURATED_SHARE);
    let most = facts
        .cases_of(engine)
        .filter(used)
        .filter_map(|case| case.client_cpu_share)
        .max_by(f64::total_cmp)?;
    let typical = median(facts.cases_of(engine).filter_map(|case| case.client_cpu_share))?;
    Some(about(
        WarningClass::ClientSaturated,
        Some(engine),
        format!(
            "the client used up to {:.0} % of a processor (median {:.0} %) in {}",
            most * 100.0,
            typical * 100.0,
            name_cases(facts.cases_of(engine).filter(used)),
        ),
        "latencies may be the client's own: measure from another machine, or with fewer streams",
    ))
}
