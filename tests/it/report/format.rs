//! `docs/FORMAT.md` names every field that the run files have.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;
use yardstick::clock::Timestamp;
use yardstick::record::{JournalEntry, JournalEvent};
use yardstick::stats::Summary;

const FORMAT: &str = include_str!("../../../docs/FORMAT.md");

/// Fields whose keys are data, not names of the format.
const MAPS: [&str; 6] = ["settings", "notes", "server", "errors", "throttled", "reasons"];

#[test]
fn format_page_names_every_field_of_every_file() {
    let (run, summary) = super::measured();
    let mut names = BTreeSet::new();
    collect(&run.manifest, &mut names);
    collect(&run.requests, &mut names);
    collect(&run.journal, &mut names);
    collect(&run.steps, &mut names);
    collect(&super::watched().resources, &mut names);
    collect(&super::stats::summarise(&super::watched()), &mut names);
    let at_ns = Timestamp::from_nanos(0);
    for event in [
        JournalEvent::CaseFailed { case: 0, message: String::new() },
        JournalEvent::Interrupted,
        JournalEvent::ProbeStarted { interval_ns: 1, gpus: super::watch::gpus() },
        super::watch::absent(),
        JournalEvent::TelemetryLost { engine: 0, num_events: 1 },
        warmed_up(),
        stopped_early(),
    ] {
        collect(&JournalEntry { at_ns, event }, &mut names);
    }
    collect(&summary, &mut names);
    collect_required(&summary, &mut names);
    let swept = super::kv::swept();
    collect(&swept.manifest, &mut names);
    collect(&super::stats::summarise(&swept).kv_sweep, &mut names);
    let rounds = super::rounds::repeat(super::fixture::run(), 2);
    collect(&super::stats::summarise(&rounds), &mut names);
    assert!(names.len() > 90, "{}", names.len());
    let missing: Vec<_> =
        names.iter().filter(|name| !FORMAT.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/FORMAT.md does not name {missing:?}");
}

#[test]
fn format_page_names_every_word_of_the_journal_and_the_warnings() {
    let (run, summary) = super::measured();
    let mut journal = run.journal;
    let event = JournalEvent::TelemetryLost { engine: 0, num_events: 1 };
    let at_ns = Timestamp::from_nanos(0);
    journal
        .extend([event, warmed_up(), stopped_early()].map(|event| JournalEntry { at_ns, event }));
    let journal = serde_json::to_value(&journal).unwrap();
    for entry in journal.as_array().unwrap() {
        let word = entry["event"].as_str().unwrap();
        assert!(FORMAT.contains(&format!("`{word}`")), "{word}");
    }
    for warning in &summary.warnings {
        let word = serde_json::to_value(warning.class).unwrap();
        assert!(FORMAT.contains(&format!("`{}`", word.as_str().unwrap())), "{word}");
    }
}

fn warmed_up() -> JournalEvent {
    JournalEvent::WarmedUp {
        case: 0,
        num_bursts: 16,
        num_requests: 161,
        took_ns: 1,
        settled: Some(false),
        reason: Some("median TTFT from 1 to 9 ms".to_owned()),
    }
}

fn stopped_early() -> JournalEvent {
    JournalEvent::StoppedEarly { case: 0, num_requests: 62, reason: String::new() }
}

/// What only runs have that require something, end early or compare arms.
fn collect_required(summary: &Summary, names: &mut BTreeSet<String>) {
    let (mut run, _) = super::measured();
    let case = &summary.cases[0];
    let index = case.case as usize;
    run.manifest.cases[index].requirements = vec!["ttft_p90<500ms@99%".to_owned()];
    run.manifest.cases[index].stop_when_decided = true;
    run.manifest.cases[index].again = true;
    let at_ns = Timestamp::from_nanos(0);
    run.journal.extend([warmed_up(), stopped_early()].map(|event| JournalEntry { at_ns, event }));
    let summary = super::stats::summarise(&run);
    assert_eq!(summary.gates.len(), 1);
    assert!(
        summary.cases.iter().any(|case| case.warm_up.is_some() && case.stopped_early.is_some())
    );
    collect(&run.manifest, names);
    collect(&summary, names);
}

fn collect<T: Serialize>(value: &T, names: &mut BTreeSet<String>) {
    walk(&serde_json::to_value(value).unwrap(), names);
}

fn walk(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                names.insert(name.clone());
                if !MAPS.contains(&name.as_str()) {
                    walk(value, names);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| walk(value, names)),
        _ => {}
    }
}
