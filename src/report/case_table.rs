//! The wide table: engines of one experiment at one concurrency side by side.

use crate::record::RunData;
use crate::stats::summary::{CaseSummary, Distribution};
use crate::units::format_significant;

use super::numbers::{Scale, reason, write_latency};
use super::table::{Cell, Column, Table};
use super::view::engine_cell;

/// A metric's column and its cell for each case, in the order of the cases.
type Filled = (Column, Vec<Cell>);

/// Builds the table of cases that differ only in their engine. All columns are
/// there; a renderer leaves out those that do not fit.
#[must_use]
pub fn case_table(run: &RunData, cases: &[&CaseSummary]) -> Table {
    let cold = cases.iter().any(|case| case.cold);
    let ttft = |case: &CaseSummary| case.ttft_ms.clone();
    let columns = vec![
        (
            Column::words("engine"),
            cases.iter().map(|case| marked(engine_cell(run, &case.engine), case)).collect(),
        ),
        (Column::numbers("ok", "of n", 0), cases.iter().map(|case| count_cell(case)).collect()),
        medians("TTFT", 0, cases, ttft),
        if cold { first_cold(cases) } else { maxima("TTFT", 2, cases, ttft) },
        tails("TTFT", "p90", 7, cases, ttft),
        tails("TTFT", "p99", 9, cases, ttft),
        medians("TPOT", 0, cases, |case| case.tpot_ms.clone()),
        bare_medians("ITL", 3, cases, |case| case.itl_ms.clone()),
        tails("ITL", "p99", 6, cases, |case| case.itl_ms.clone()),
        medians("E2EL", 1, cases, |case| case.e2el_ms.clone()),
        rates("decode", 2, cases, |case| {
            Cell::or_absent(
                case.decode_tokens_per_s.p50.map(format_significant),
                reason(&case.decode_tokens_per_s, "p50"),
            )
        }),
        rates("output", 0, cases, |case| {
            Cell::or_absent(
                case.output_tokens_per_s.map(format_significant),
                "no counted tokens over the case",
            )
        }),
        rates("steady", 4, cases, |case| {
            Cell::or_absent(
                case.steady_output_tokens_per_s.map(format_significant),
                case.steady_absent.as_deref().unwrap_or("no steady window"),
            )
        }),
        sent_within(cases),
        tokens("prompt", cases, |case| case.mean_prompt_tokens),
        tokens("output", cases, |case| case.mean_output_tokens),
    ];
    let mut table = assemble(columns);
    table.caption = "engines side by side".to_owned();
    table.drop_empty_columns();
    table.notes = notes(cases, cold);
    table
}

fn assemble(columns: Vec<Filled>) -> Table {
    let mut table = Table::default();
    for (column, cells) in columns {
        table.columns.push(column);
        table.rows.resize_with(cells.len(), Vec::new);
        for (row, cell) in table.rows.iter_mut().zip(cells) {
            row.push(cell);
        }
    }
    table
}

/// Marks what stands for a case that is not compared.
pub(super) const MARK: char = '✗';

/// The name of a case's engine, marked where the case is not compared.
fn marked(mut cell: Cell, case: &CaseSummary) -> Cell {
    if !case.invalid.is_empty() {
        cell.text = format!("{MARK} {}", cell.text);
    }
    cell
}

/// `vllm, C = 9: not compared, 1 of 9 requests failed`.
#[must_use]
pub fn invalid_note(case: &CaseSummary) -> Option<String> {
    let reasons: Vec<_> = case.invalid.iter().map(|invalid| invalid.reason.as_str()).collect();
    (!reasons.is_empty()).then(|| {
        let (engine, c) = (&case.engine, case.concurrency);
        format!("{MARK} {engine}, C = {c}: not compared, {}", reasons.join("; "))
    })
}

fn count_cell(case: &CaseSummary) -> Cell {
    Cell::new(format!("{}/{}", case.num_ok, case.n))
}

fn medians(
    name: &str,
    rank: u8,
    cases: &[&CaseSummary],
    of: impl Fn(&CaseSummary) -> Distribution,
) -> Filled {
    let (column, mut cells) = bare_medians(name, rank, cases, &of);
    let scale = Scale::of(cases.iter().filter_map(|case| of(case).p50));
    for (cell, case) in cells.iter_mut().zip(cases) {
        if let Some(interval) = &of(case).interval {
            cell.detail = scale.write_interval(interval);
        }
    }
    (column, cells)
}

fn bare_medians(
    name: &str,
    rank: u8,
    cases: &[&CaseSummary],
    of: impl Fn(&CaseSummary) -> Distribution,
) -> Filled {
    latencies(name, "p50", rank, cases, |case| (of(case).p50, reason(&of(case), "p50").to_owned()))
}

fn maxima(
    name: &str,
    rank: u8,
    cases: &[&CaseSummary],
    of: impl Fn(&CaseSummary) -> Distribution,
) -> Filled {
    latencies(name, "max", rank, cases, |case| (of(case).max, reason(&of(case), "max").to_owned()))
}

fn tails(
    name: &str,
    field: &str,
    rank: u8,
    cases: &[&CaseSummary],
    of: impl Fn(&CaseSummary) -> Distribution,
) -> Filled {
    let value = |d: &Distribution| if field == "p90" { d.p90 } else { d.p99 };
    latencies(name, field, rank, cases, |case| {
        let distribution = of(case);
        (value(&distribution), reason(&distribution, field).to_owned())
    })
}

fn first_cold(cases: &[&CaseSummary]) -> Filled {
    latencies("TTFT", "cold", 0, cases, |case| {
        (case.cold_ttft_ms, "the first request to the cold engine gave no token".to_owned())
    })
}

fn latencies(
    name: &str,
    statistic: &str,
    rank: u8,
    cases: &[&CaseSummary],
    of: impl Fn(&CaseSummary) -> (Option<f64>, String),
) -> Filled {
    let scale = Scale::of(cases.iter().filter_map(|case| of(case).0));
    let cell = |case: &&CaseSummary| {
        let (value, reason) = of(case);
        Cell::or_absent(value.map(|ms| scale.write(ms)), &reason)
    };
    let column = Column::numbers(name, &format!("{statistic} {}", scale.unit), rank);
    (column, cases.iter().map(cell).collect())
}

fn rates(
    name: &str,
    rank: u8,
    cases: &[&CaseSummary],
    of: impl Fn(&CaseSummary) -> Cell,
) -> Filled {
    (Column::numbers(name, "tok/s", rank), cases.iter().map(|case| of(case)).collect())
}

fn sent_within(cases: &[&CaseSummary]) -> Filled {
    let cell = |case: &&CaseSummary| {
        Cell::or_absent(case.send_spread_us.map(format_significant), "one request at a time")
    };
    (Column::numbers("sent", "within µs", 8), cases.iter().map(cell).collect())
}

fn tokens(name: &str, cases: &[&CaseSummary], of: impl Fn(&CaseSummary) -> Option<f64>) -> Filled {
    let cell = |case: &&CaseSummary| {
        Cell::or_absent(of(case).map(format_significant), "nobody counted them")
    };
    (Column::numbers(name, "tokens", 10), cases.iter().map(cell).collect())
}

fn notes(cases: &[&CaseSummary], cold: bool) -> Vec<String> {
    let mut notes = Vec::new();
    for case in cases {
        if !case.errors.is_empty() {
            let classes: Vec<_> =
                case.errors.iter().map(|(class, number)| format!("{number} {class}")).collect();
            notes.push(format!(
                "{}: {} of {} requests failed ({}); latencies are of the others",
                case.engine,
                case.n - case.num_ok,
                case.n,
                classes.join(", ")
            ));
        }
        notes.extend(invalid_note(case));
        if let Some(note) = staircase_note(case) {
            notes.push(note);
        }
    }
    notes.extend(steady_note(cases));
    let spreads: Vec<f64> = cases.iter().filter_map(|case| case.send_spread_us).collect();
    if let (Some(least), Some(most)) =
        (spreads.iter().copied().reduce(f64::min), spreads.iter().copied().reduce(f64::max))
    {
        let (least, most) = (format_significant(least), format_significant(most));
        let range = if least == most { most } else { format!("{least}–{most}") };
        notes.push(format!("requests of a burst were sent within {range} µs"));
    }
    if cold {
        notes.push(
            "TTFT cold is of the first request, which pays for loading; p50 is over all of them"
                .to_owned(),
        );
    }
    notes
}

/// Throughput while every stream was generating, which narrow tables leave out.
fn steady_note(cases: &[&CaseSummary]) -> Option<String> {
    let told: Vec<_> = cases
        .iter()
        .filter(|case| case.concurrency > 1 && case.num_ok > 0)
        .filter(|case| case.under_load.open_loop.is_none())
        .map(|case| match (case.steady_output_tokens_per_s, &case.steady_absent) {
            (Some(rate), _) => format!("{} {}", case.engine, format_significant(rate)),
            (None, reason) => {
                format!("{} none ({})", case.engine, reason.as_deref().unwrap_or("not measured"))
            }
        })
        .collect();
    (!told.is_empty()).then(|| format!("steady output, tok/s: {}", told.join(", ")))
}

/// What a staircase in TTFT means, in a sentence.
#[must_use]
pub fn staircase_note(case: &CaseSummary) -> Option<String> {
    case.staircase.as_ref().map(|stair| {
        format!(
            "{}: at C = {} TTFT climbs in steps of {}: {} served at once, the rest queue",
            case.engine,
            case.concurrency,
            write_latency(stair.step_ms),
            match stair.slots {
                1 => "1 request is".to_owned(),
                many => format!("{many} requests are"),
            },
        )
    })
}
