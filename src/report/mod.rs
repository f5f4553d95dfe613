//! A run as people and machines read it: one [`view`] of it made of [`table`]s,
//! a renderer per format. Pure: writes into what it is given, reads no clock,
//! so the same run gives the same bytes.

pub mod case_table;
pub mod cold_start;
pub mod compared;
pub mod comparison;
pub mod conduct;
pub mod contract;
pub mod csv;
pub mod definitions;
pub mod gates;
pub mod html;
pub mod http_cost;
pub mod inside;
pub mod kv_capacity;
pub mod kv_table;
pub mod load_table;
pub mod markdown;
pub mod matrix;
pub mod misreading;
pub mod numbers;
pub mod own_error;
pub mod prose;
pub mod resources;
pub mod section;
pub mod simulation;
pub mod sizing;
pub mod table;
pub mod terminal;
pub mod verdict;
pub mod view;

use std::fmt;

use crate::record::RunData;
use crate::stats::Summary;

/// A report for a terminal `width` columns wide; with `color`, ANSI sequences
/// that repeat nothing but emphasis.
///
/// # Errors
/// Those of `out`.
pub fn render_terminal(
    run: &RunData,
    summary: &Summary,
    color: bool,
    width: usize,
    out: &mut impl fmt::Write,
) -> fmt::Result {
    terminal::render(&view::View::new(run, summary), color, width, out)
}

/// A report in GitHub-flavoured markdown.
///
/// # Errors
/// Those of `out`.
pub fn render_markdown(run: &RunData, summary: &Summary, out: &mut impl fmt::Write) -> fmt::Result {
    markdown::render(&view::View::new(run, summary), out)
}

/// Every number of the summary in long form: one row a case and metric.
///
/// # Errors
/// Those of `out`.
pub fn render_csv(_: &RunData, summary: &Summary, out: &mut impl fmt::Write) -> fmt::Result {
    csv::render(summary, out)
}

/// The bytes of `summary.json`.
///
/// # Errors
/// Those of `out`.
pub fn render_json(_: &RunData, summary: &Summary, out: &mut impl fmt::Write) -> fmt::Result {
    // Strings and finite numbers always serialise; there is no map with another key.
    let text = serde_json::to_string_pretty(summary).map_err(|_| fmt::Error)?;
    out.write_str(&text)?;
    out.write_char('\n')
}

/// One HTML file that needs nothing beside itself: no network, no script to be read.
///
/// # Errors
/// Those of `out`.
pub fn render_html(run: &RunData, summary: &Summary, out: &mut impl fmt::Write) -> fmt::Result {
    html::render(run, summary, out)
}
