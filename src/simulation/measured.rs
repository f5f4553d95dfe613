//! Steps of a run directory as measurements of step times. Knows the records,
//! no file.

use std::collections::BTreeSet;

use thiserror::Error;

use super::fit::{FitError, MeasuredStep, fit};
use super::step_time::{StepTime, StepTimeSource};
use crate::clock::Timestamp;
use crate::infer::scheduler::StepWork;
use crate::record::{JournalEvent, LoadPhaseKind, RunData, StepRecord};

/// A run that step times cannot be taken from.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StepsError {
    /// No engine of it told of its steps.
    #[error("{0} has no steps: no embedded engine was measured in it")]
    NoSteps(String),
    /// More than one did, and none was named.
    #[error("{run} has steps of {}", engines.join(", "))]
    SeveralEngines {
        /// The run.
        run: String,
        /// Their names.
        engines: Vec<String>,
    },
    /// The one that was named did not.
    #[error("{run} has no steps of `{engine}`, but of {}", engines.join(", "))]
    UnknownEngine {
        /// The run.
        run: String,
        /// The name.
        engine: String,
        /// Those that did.
        engines: Vec<String>,
    },
    /// Its steps do not say what was computed.
    #[error(
        "{0} was written by an older yardstick: its steps do not say how much K and V was read"
    )]
    Old(String),
    /// No line goes through them.
    #[error("{run}: {source}")]
    Fit {
        /// The run.
        run: String,
        /// Why.
        source: FitError,
    },
}

impl StepsError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoSteps(_) => {
                Some("measure one with `yardstick run --engine embedded`".to_owned())
            }
            Self::SeveralEngines { .. } | Self::UnknownEngine { .. } => {
                Some("name one with --steps-engine".to_owned())
            }
            Self::Old(_) => Some("measure it again".to_owned()),
            Self::Fit { .. } => Some(
                "measure prompts and answers of several lengths and several requests at once"
                    .to_owned(),
            ),
        }
    }
}

/// Step times of one engine of a run; `engine` names it where there are several.
///
/// # Errors
/// [`StepsError`].
pub fn step_time(
    run: &RunData,
    engine: Option<&str>,
) -> Result<(StepTime, StepTimeSource), StepsError> {
    let name = run.manifest.name.clone();
    let told: Vec<(u32, String)> = (0..)
        .zip(&run.manifest.engines)
        .filter(|(index, _)| run.steps.iter().any(|step| step.engine == *index))
        .map(|(index, engine)| (index, engine.spec.name.clone()))
        .collect();
    let names = || told.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>();
    let (index, engine) = match (engine, told.as_slice()) {
        (_, []) => return Err(StepsError::NoSteps(name)),
        (None, [one]) => one.clone(),
        (None, _) => return Err(StepsError::SeveralEngines { run: name, engines: names() }),
        (Some(engine), _) => match told.iter().find(|(_, known)| known == engine) {
            Some(found) => found.clone(),
            None => {
                let engine = engine.to_owned();
                return Err(StepsError::UnknownEngine { run: name, engine, engines: names() });
            }
        },
    };
    let of_engine: Vec<_> = run.steps.iter().filter(|step| step.engine == index).collect();
    let fresh = run.journal.iter().filter_map(|entry| match entry.event {
        JournalEvent::LoadPhase { engine, phase: LoadPhaseKind::FirstStep, .. }
            if engine == index =>
        {
            Some(entry.at_ns)
        }
        _ => None,
    });
    let Some(steps) = measured(&of_engine, &fresh.collect()) else {
        return Err(StepsError::Old(name));
    };
    let fit = fit(&steps).map_err(|source| StepsError::Fit { run: name.clone(), source })?;
    let source = StepTimeSource::Fitted {
        run: name,
        engine,
        num_steps: fit.num_steps as u64,
        coefficients: fit.coefficients,
        predicted_over_measured: fit.predicted_over_measured,
        mean_error: fit.mean_error,
    };
    Ok((StepTime::Fitted(fit.coefficients), source))
}

/// Each step with its duration until the next one could begin: the engine's thread
/// hands tokens over between two steps. The last of a busy time has its own duration
/// alone. The first after a load is left out, since it pays for pages that no later
/// one pays for.
fn measured(steps: &[&StepRecord], fresh: &BTreeSet<Timestamp>) -> Option<Vec<MeasuredStep>> {
    let mut measured = Vec::with_capacity(steps.len());
    for (i, step) in steps.iter().enumerate() {
        if fresh.contains(&step.at_ns) {
            continue;
        }
        let goes_on = step.num_used_blocks > 0 || step.num_waiting > 0;
        let next = steps.get(i + 1).filter(|_| goes_on);
        let until = next.map(|next| next.at_ns.as_nanos().saturating_sub(step.at_ns.as_nanos()));
        // A pause longer than the step is no handing over: requests were given up, or
        // steps between were not recorded.
        let took = until.filter(|until| *until <= step.took_ns.saturating_mul(2));
        let took = took.unwrap_or(step.took_ns);
        let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let work = StepWork {
            num_prefill_tokens: count(step.num_prefill_tokens),
            num_decodes: count(step.num_tokens.saturating_sub(step.num_prefill_tokens)),
            num_decode_kv_tokens: count(step.num_decode_kv_tokens?),
            num_prefill_pairs: count(step.num_prefill_pairs?),
            // What a line is not fitted to.
            ..StepWork::default()
        };
        measured.push(MeasuredStep { work, micros: crate::stats::latency::ms(took) * 1e3 });
    }
    Some(measured)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::case::tests::run;

    /// A step a millisecond, each of which took half of it, of one sequence that
    /// ends with every tenth.
    fn steps(engine: u32, n: u64) -> Vec<StepRecord> {
        let step = |i: u64| StepRecord {
            engine,
            at_ns: Timestamp::from_nanos(i * 1_000_000),
            took_ns: 500_000,
            num_tokens: if i.is_multiple_of(10) { 32 } else { 1 },
            num_prefill_tokens: if i.is_multiple_of(10) { 32 } else { 0 },
            num_seqs: 1,
            num_decode_kv_tokens: Some(if i.is_multiple_of(10) { 0 } else { 32 + i % 10 }),
            num_prefill_pairs: Some(if i.is_multiple_of(10) { 32 * 33 / 2 } else { 0 }),
            num_waiting: 0,
            num_used_blocks: u64::from(i % 10 != 9),
            num_free_blocks: 9,
            num_cached_blocks: 0,
            num_waste_slots: 0,
            num_preemptions: 0,
            rss_bytes: None,
        };
        (0..n).map(step).collect()
    }

    #[test]
    fn step_lasts_until_the_next_begins_while_there_is_work() {
        let data = RunData { steps: steps(0, 100), ..run(&["ours:embedded"], Vec::new()) };
        let fresh = BTreeSet::from([Timestamp::from_nanos(0)]);
        let found = measured(&data.steps.iter().collect::<Vec<_>>(), &fresh).unwrap();
        assert_eq!(found.len(), 99, "the first after the load is left out");
        assert!((found[0].micros - 1_000.0).abs() < 1e-9, "{:?}", found[0]);
        assert!((found[8].micros - 500.0).abs() < 1e-9, "the last of its sequence");
    }

    #[test]
    fn engine_is_chosen_by_name_where_there_are_several() {
        let engines = ["a:embedded", "b:embedded", "c:vllm"];
        let steps = [steps(0, 60), steps(1, 60)].concat();
        let data = RunData { steps, ..run(&engines, Vec::new()) };
        let error = step_time(&data, None).unwrap_err();
        assert!(error.to_string().ends_with("has steps of a, b"), "{error}");
        let error = step_time(&data, Some("c")).unwrap_err();
        assert!(error.to_string().contains("no steps of `c`, but of a, b"), "{error}");
        let (_, source) = step_time(&data, Some("b")).unwrap();
        assert!(matches!(source, StepTimeSource::Fitted { engine, .. } if engine == "b"));
    }

    #[test]
    fn runs_without_the_counts_are_refused() {
        let mut steps = steps(0, 60);
        steps[30].num_prefill_pairs = None;
        let data = RunData { steps, ..run(&["a:embedded"], Vec::new()) };
        assert!(matches!(step_time(&data, None), Err(StepsError::Old(_))));
        let data = run(&["a:embedded"], Vec::new());
        assert!(matches!(step_time(&data, None), Err(StepsError::NoSteps(_))));
    }
}
