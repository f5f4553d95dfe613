//! The table of `yardstick calibrate`: truth beside what was reported.

use std::fmt::{self, Write};

use super::table::{Cell, Column, Table};
use super::terminal;
use crate::stats::misreading::{Pair, Reading};
use crate::units::{format_ms, format_significant};

/// Writes the table and the verdict.
///
/// # Errors
/// Those of `out`.
pub fn render(
    readings: &[Reading],
    color: bool,
    width: usize,
    out: &mut impl Write,
) -> fmt::Result {
    let Some(first) = readings.first() else { return Ok(()) };
    writeln!(
        out,
        "{} at once, {} requests a scenario: reported (true)\n",
        first.client_error.concurrency, first.client_error.n
    )?;
    terminal::render_table(&table(readings), color, width, out)?;
    writeln!(out)?;
    let wrong: Vec<_> = readings.iter().filter(|reading| !reading.is_true()).collect();
    for reading in &wrong {
        writeln!(out, "! {}: {}", reading.scenario, reading.misreported.join("; "))?;
    }
    if wrong.is_empty() {
        writeln!(out, "everything was reported as it was")?;
    }
    Ok(())
}

fn table(readings: &[Reading]) -> Table {
    let columns = vec![
        Column::words("scenario"),
        Column::numbers("TTFT", "p50 ms", 0),
        Column::numbers("TPOT", "p50 ms", 0),
        Column::numbers("longest gap", "ms", 0),
        Column::numbers("tokens", "", 0),
        Column::numbers("TTFT error", "p99 ms", 0),
        Column::numbers("ITL error", "p99 ms", 0),
        Column::numbers("spread", "µs", 1),
        Column::numbers("client", "µs/event", 1),
    ];
    let row = |reading: &Reading| {
        let error = &reading.client_error;
        let tail = |of: &crate::stats::summary::Distribution| {
            let text = match (of.p99, of.max) {
                (Some(p99), _) => Some(format_ms(p99)),
                // Too few for a p99.
                (None, Some(max)) => Some(format!("≤ {}", format_ms(max))),
                (None, None) => None,
            };
            Cell::or_absent(text, "no request completed")
        };
        let number =
            |value: Option<f64>| Cell::or_absent(value.map(format_significant), "not measured");
        vec![
            Cell::new(reading.scenario.as_str()),
            pair(reading.ttft_ms, format_ms),
            pair(reading.tpot_ms, format_ms),
            pair(reading.longest_gap_ms, format_ms),
            pair(reading.output_tokens, |tokens| format!("{tokens:.0}")),
            tail(&error.ttft_error_ms),
            tail(&error.itl_error_ms),
            number(error.send_spread_us),
            number(error.cpu_us_per_token_event),
        ]
    };
    Table {
        caption: "scenarios".to_owned(),
        columns,
        rows: readings.iter().map(row).collect(),
        notes: Vec::new(),
        continues: false,
    }
}

fn pair(pair: Pair, format: impl Fn(f64) -> String) -> Cell {
    let text = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), &format);
    Cell::new(format!("{} ({})", text(pair.reported), text(pair.truth)))
}
