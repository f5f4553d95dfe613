//! The compact table of an experiment that varies concurrency: a row an
//! engine, a column a concurrency, one number in each cell.

use std::collections::BTreeSet;

use crate::record::RunData;
use crate::stats::summary::CaseSummary;
use crate::units::format_significant;

use super::case_table::{MARK, invalid_note, staircase_note};
use super::numbers::{Scale, reason};
use super::table::{Cell, Column, Table};
use super::view::engine_cell;

/// TTFT, decode rate and throughput over concurrency.
#[must_use]
pub fn matrices(run: &RunData, cases: &[&CaseSummary]) -> Vec<Table> {
    let scale = Scale::of(cases.iter().filter_map(|case| case.ttft_ms.p50));
    let mut ttft = matrix(run, cases, |case| {
        Cell::or_absent(case.ttft_ms.p50.map(|ms| scale.write(ms)), reason(&case.ttft_ms, "p50"))
    });
    ttft.caption = format!("TTFT p50, {}, by requests at once", scale.unit);
    let mut decode = matrix(run, cases, |case| {
        Cell::or_absent(
            case.decode_tokens_per_s.p50.map(format_significant),
            reason(&case.decode_tokens_per_s, "p50"),
        )
    });
    decode.caption = "decode p50 per stream, tok/s, by requests at once".to_owned();
    let mut output = matrix(run, cases, |case| {
        Cell::or_absent(
            case.output_tokens_per_s.map(format_significant),
            "no counted tokens over the case",
        )
    });
    output.caption = "output of the case, tok/s, by requests at once".to_owned();
    output.notes = notes(cases);
    vec![ttft, decode, output]
}

fn matrix(run: &RunData, cases: &[&CaseSummary], of: impl Fn(&CaseSummary) -> Cell) -> Table {
    let concurrencies: BTreeSet<u32> = cases.iter().map(|case| case.concurrency).collect();
    let mut columns = vec![Column::words("engine")];
    columns.extend(concurrencies.iter().map(|c| Column::numbers(&c.to_string(), "", 0)));
    let mut engines: Vec<&str> = Vec::new();
    for case in cases {
        if !engines.contains(&case.engine.as_str()) {
            engines.push(&case.engine);
        }
    }
    let row = |engine: &&str| {
        let mut row = vec![engine_cell(run, engine)];
        row.extend(concurrencies.iter().map(|concurrency| {
            let found = cases
                .iter()
                .find(|case| case.engine == *engine && case.concurrency == *concurrency);
            let Some(case) = found else { return Cell::absent("not measured") };
            let mut cell = of(case);
            if cell.reason.is_none() && !case.invalid.is_empty() {
                cell.text.push(MARK);
            }
            cell
        }));
        row
    };
    let rows = engines.iter().map(row).collect();
    Table { columns, rows, continues: true, ..Table::default() }
}

fn notes(cases: &[&CaseSummary]) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    notes.extend(cases.iter().filter_map(|case| invalid_note(case)));
    // The widest case that shows a staircase stands for the engine.
    let mut stairs: Vec<&CaseSummary> = Vec::new();
    for case in cases.iter().filter(|case| case.staircase.is_some()) {
        match stairs.iter_mut().find(|known| known.engine == case.engine) {
            Some(known) if known.concurrency < case.concurrency => *known = case,
            Some(_) => {}
            None => stairs.push(case),
        }
    }
    notes.extend(stairs.into_iter().filter_map(staircase_note));
    notes
}
