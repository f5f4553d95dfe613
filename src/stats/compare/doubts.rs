//! What differs between two runs beside the engines, so that a difference may
//! not be theirs. Knows manifests and counts, no statistics.

use super::verdict::percent;
use crate::engine::EngineInfo;
use crate::record::{Machine, Manifest};
use crate::stats::Summary;
use crate::stats::cell::Cell;
use crate::stats::distribution::mean;
use crate::stats::summary::CaseSummary;

/// Lengths that differ by more than this share are not the same.
const SAME_LENGTH: f64 = 0.01;

/// Keys of a plan that say nothing of the load that an engine met: names, who was
/// measured, and how often. The seed changes the prompts, not their lengths.
const OF_NO_LOAD: [&str; 6] = ["name", "analysis", "engine", "seed", "rounds", "resident"];

/// What two whole runs differ in.
#[must_use]
pub fn of_runs(base: (&Manifest, &Summary), candidate: (&Manifest, &Summary)) -> Vec<String> {
    let mut found = Vec::new();
    for (side, (_, summary)) in [("base", base), ("candidate", candidate)] {
        if !summary.complete {
            found.push(format!("the {side} did not reach its end"));
        }
    }
    let (mine, others) = (base.0, candidate.0);
    found.extend(differ("model", &mine.model, &others.model));
    found.extend(differ("yardstick", &mine.yardstick_version, &others.yardstick_version));
    found.extend(machines(&mine.machine, &others.machine));
    found.extend(plans(&mine.plan, &others.plan));
    found
}

/// What two engines' descriptions of themselves differ in.
#[must_use]
pub fn of_engines(
    base: (&str, Option<&EngineInfo>),
    candidate: (&str, Option<&EngineInfo>),
) -> Vec<String> {
    let (Some(mine), Some(others)) = (base.1, candidate.1) else { return Vec::new() };
    let about = if base.0 == candidate.0 {
        base.0.to_owned()
    } else {
        format!("{} and {}", base.0, candidate.0)
    };
    let told = |text: &Option<String>| text.clone().unwrap_or_else(|| "not told".to_owned());
    [
        differ("precision", &told(&mine.precision), &told(&others.precision)),
        differ("model as the engine knows it", &mine.model, &others.model),
        differ("dummy weights", yes(mine.dummy_weights), yes(others.dummy_weights)),
    ]
    .into_iter()
    .flatten()
    .map(|what| format!("{about}: {what}"))
    .collect()
}

/// What the loads of two cells that are compared differ in.
#[must_use]
pub fn of_cells(base: &Cell<'_>, candidate: &Cell<'_>) -> Vec<String> {
    let apart = |what: &str, of: fn(&CaseSummary) -> Option<f64>| {
        let mean_of = |cell: &Cell<'_>| mean(&cell.valid().filter_map(of).collect::<Vec<_>>());
        let (mine, others) = (mean_of(base)?, mean_of(candidate)?);
        let apart = (mine / others).ln().abs().exp_m1();
        (apart > SAME_LENGTH).then(|| {
            format!(
                "{} C = {}, {what}: {mine:.1} a request in the base, {others:.1} in the \
                 candidate, {} apart",
                base.experiment,
                base.concurrency,
                percent(apart)
            )
        })
    };
    [
        apart("prompt tokens", |case| case.mean_prompt_tokens),
        apart("output tokens", |case| case.mean_output_tokens),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn differ(what: &str, base: &str, candidate: &str) -> Option<String> {
    (base != candidate).then(|| format!("{what}: {base} in the base, {candidate} in the candidate"))
}

const fn yes(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn machines(base: &Machine, candidate: &Machine) -> Vec<String> {
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
    let list =
        |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let bytes =
        |machine: &Machine| or_unknown(machine.memory_bytes.map(crate::units::format_bytes));
    [
        differ("operating system", &base.os, &candidate.os),
        differ("processor", &or_unknown(base.cpu.clone()), &or_unknown(candidate.cpu.clone())),
        differ("processors", &base.num_cpus.to_string(), &candidate.num_cpus.to_string()),
        differ("memory", &bytes(base), &bytes(candidate)),
        differ("GPUs", &list(&base.gpus), &list(&candidate.gpus)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Keys of two plans that are not equal; a plan that is no TOML has none.
fn plans(base: &str, candidate: &str) -> Vec<String> {
    let parse = |text: &str| text.parse::<toml::Table>().unwrap_or_default();
    let (base, candidate) = (parse(base), parse(candidate));
    let mut keys: Vec<&String> = base.keys().chain(candidate.keys()).collect();
    keys.sort();
    keys.dedup();
    let written = |value: Option<&toml::Value>| match value {
        None => "unset".to_owned(),
        Some(toml::Value::Array(_) | toml::Value::Table(_)) => "another one".to_owned(),
        Some(value) => value.to_string(),
    };
    keys.into_iter()
        .filter(|key| !OF_NO_LOAD.contains(&key.as_str()) && *key != "model")
        .filter(|key| base.get(*key) != candidate.get(*key))
        .map(|key| match (base.get(key), candidate.get(key)) {
            (Some(toml::Value::Array(_)), _) | (_, Some(toml::Value::Array(_))) => {
                format!("plan: `{key}` is not the same in both")
            }
            (mine, others) => format!(
                "plan: `{key}` is {} in the base, {} in the candidate",
                written(mine),
                written(others)
            ),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_that_ask_for_other_loads_are_named_key_by_key() {
        let base = "name = \"a\"\nseed = 1\nmax_tokens = 64\nprompt = \"why\"\n[[engine]]\nkind = \"vllm\"";
        let other =
            "name = \"b\"\nseed = 2\nmax_tokens = 128\nprompt_tokens = 9\n[[load]]\nrate = 3";
        assert_eq!(
            plans(base, other),
            [
                "plan: `load` is not the same in both",
                "plan: `max_tokens` is 64 in the base, 128 in the candidate",
                "plan: `prompt` is \"why\" in the base, unset in the candidate",
                "plan: `prompt_tokens` is unset in the base, 9 in the candidate",
            ]
        );
        assert_eq!(plans(base, base), Vec::<String>::new());
    }

    #[test]
    fn equal_words_are_no_doubt() {
        assert_eq!(differ("model", "m", "m"), None);
        let found = differ("model", "m", "n");
        assert_eq!(found.as_deref(), Some("model: m in the base, n in the candidate"));
    }
}
