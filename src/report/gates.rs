//! The table of what was required, and whether it was shown.

use crate::record::RunData;
use crate::stats::gate::{Rule, Verdict};
use crate::stats::gates::Gate;

use super::table::{Cell, Column, Table};
use super::view::engine_cell;

/// One table, or none where nothing was required.
#[must_use]
pub fn tables(run: &RunData, gates: &[Gate]) -> Vec<Table> {
    if gates.is_empty() {
        return Vec::new();
    }
    let columns = vec![
        Column::words("engine"),
        Column::words("experiment"),
        Column::numbers("C", "", 2),
        Column::words("required"),
        Column::numbers("over", "of n", 0),
        Column::words("verdict"),
    ];
    let rows = gates.iter().map(|gate| {
        vec![
            engine_cell(run, &gate.engine),
            Cell::new(gate.experiment.as_str()),
            Cell::new(gate.concurrency.to_string()),
            Cell::new(gate.requirement.as_str()),
            Cell::new(format!("{}/{}", gate.num_over, gate.n)),
            Cell::new(gate.verdict.as_str()),
        ]
    });
    let mut notes: Vec<String> = gates.iter().filter_map(note).collect();
    if gates.iter().any(|gate| gate.rule == Some(Rule::Sequential)) {
        notes.push(
            "loads ended once all was decided: verdicts are those of a test that may be looked \
             at after every request"
                .to_owned(),
        );
    }
    vec![Table {
        caption: "what was required, and what the requests show".to_owned(),
        columns,
        rows: rows.collect(),
        notes,
        continues: false,
    }]
}

/// What a gate that is not decided lacks.
#[must_use]
pub fn lacks(gate: &Gate) -> Option<String> {
    if gate.verdict != Verdict::Undecided {
        return None;
    }
    let more = gate.more.map(|more| {
        let noun = if more == 1 { "request" } else { "requests" };
        format!("{more} more {noun} would show it, if none of them is over")
    });
    let parts: Vec<String> = more.into_iter().chain(gate.reason.clone()).collect();
    Some(if parts.is_empty() { "not measured".to_owned() } else { parts.join("; ") })
}

/// The gate in a line: `embedded concurrent-warm C = 10: ttft_p90<500ms@99%`.
#[must_use]
pub fn name(gate: &Gate) -> String {
    let Gate { engine, experiment, concurrency, requirement, .. } = gate;
    format!("{engine} {experiment} C = {concurrency}: {requirement}")
}

fn note(gate: &Gate) -> Option<String> {
    let said = lacks(gate).map(|lacks| format!("undecided: {lacks}"));
    let said = said.or_else(|| gate.reason.clone())?;
    Some(format!("{} {said}", name(gate)))
}
