//! The report as GitHub-flavoured markdown, to be pasted into an issue or a README.

use std::fmt::{self, Write};

use super::compared::Sheet;
use super::definitions::DEFINITIONS;
use super::prose::{capitalise, printable};
use super::table::{Cell, Table};
use super::view::View;

/// Writes the whole report.
///
/// # Errors
/// Those of `out`.
pub fn render(view: &View<'_>, out: &mut impl Write) -> fmt::Result {
    writeln!(out, "# {}\n", escape(view.title))?;
    for (label, value) in &view.facts {
        writeln!(out, "- **{label}**: {}", escape(value))?;
    }
    writeln!(out, "\n## Engines\n")?;
    table(out, &view.engines)?;
    if let Some(contract) = &view.contract {
        writeln!(out, "\n**{}**\n", escape(&contract.caption))?;
        table(out, contract)?;
    }
    for experiment in &view.experiments {
        writeln!(out, "\n## {}\n", escape(experiment.name))?;
        let description = experiment.description;
        let lead = if description.is_empty() { String::new() } else { format!("{description}; ") };
        writeln!(out, "{lead}{}.", experiment.load)?;
        for shown in &experiment.tables {
            writeln!(out)?;
            if experiment.tables.len() > 1 {
                writeln!(out, "**{}**\n", escape(&shown.caption))?;
            }
            table(out, shown)?;
        }
        if !experiment.verdicts.is_empty() {
            writeln!(out)?;
        }
        for verdict in &experiment.verdicts {
            let value = escape(&verdict.value);
            // Another bullet than that of the notes above: two lists, not one.
            writeln!(out, "* {}: **{value}**; {}", verdict.metric, escape(&verdict.sentence))?;
        }
    }
    for required in &view.gates {
        writeln!(out, "\n## Requirements\n")?;
        table(out, required)?;
    }
    if !view.comparisons.is_empty() {
        writeln!(out, "\n## Comparison")?;
    }
    for compared in &view.comparisons {
        writeln!(out, "\n**{}**\n", escape(&compared.caption))?;
        table(out, compared)?;
    }
    if !view.capacity.is_empty() {
        writeln!(out, "\n## Capacity")?;
    }
    for sweep in &view.capacity {
        writeln!(out, "\n{}.\n", escape(&sweep.caption))?;
        table(out, sweep)?;
    }
    if !view.kv_sweep.is_empty() {
        writeln!(out, "\n## KV pool")?;
    }
    for sweep in &view.kv_sweep {
        writeln!(out, "\n{}.\n", escape(&sweep.caption))?;
        table(out, sweep)?;
    }
    if !view.http_cost.is_empty() {
        writeln!(out, "\n## The cost of HTTP")?;
    }
    for cost in &view.http_cost {
        writeln!(out, "\n{}.\n", escape(&cost.caption))?;
        table(out, cost)?;
    }
    if !view.cold_starts.is_empty() {
        writeln!(out, "\n## Cold starts")?;
    }
    for cold in &view.cold_starts {
        writeln!(out, "\n**{}**\n", escape(&cold.caption))?;
        table(out, cold)?;
    }
    if !view.inside.is_empty() {
        writeln!(out, "\n## Inside the engine")?;
    }
    for told in &view.inside {
        writeln!(out, "\n**{}**\n", escape(&told.caption))?;
        table(out, told)?;
    }
    if !view.resources.is_empty() {
        writeln!(out, "\n## What was used")?;
    }
    for used in &view.resources {
        writeln!(out, "\n**{}**\n", escape(&used.caption))?;
        table(out, used)?;
    }
    if !view.absent.is_empty() {
        writeln!(out, "\n## Not measured\n")?;
    }
    for absent in &view.absent {
        let (engine, cases) = (escape(&absent.engine), escape(&absent.cases));
        writeln!(out, "- **{engine}**, {cases}: {}", escape(&absent.reason))?;
    }
    if !view.warnings.is_empty() {
        writeln!(out, "\n## Beware\n")?;
    }
    for warning in view.warnings {
        let about = [&warning.engine, &warning.experiment].into_iter().flatten();
        let about: Vec<_> = about.map(|name| escape(name)).collect();
        let lead =
            if about.is_empty() { String::new() } else { format!("**{}**: ", about.join(", ")) };
        writeln!(out, "- {lead}{}. *{}.*", escape(&warning.message), escape(&warning.advice))?;
    }
    writeln!(out, "\n## Terms\n")?;
    for (term, meaning) in DEFINITIONS {
        writeln!(out, "- **{}**: {}", escape(term), escape(meaning))?;
    }
    Ok(())
}

/// Writes a sheet.
///
/// # Errors
/// Those of `out`.
pub fn render_sheet(sheet: &Sheet, out: &mut impl Write) -> fmt::Result {
    writeln!(out, "# {}\n", escape(&capitalise(&sheet.title)))?;
    for (label, value) in &sheet.facts {
        writeln!(out, "- **{label}**: {}", escape(value))?;
    }
    for shown in &sheet.tables {
        writeln!(out, "\n**{}**\n", escape(&shown.caption))?;
        table(out, shown)?;
    }
    for (heading, items) in &sheet.lists {
        writeln!(out, "\n## {}\n", capitalise(heading))?;
        for item in items {
            writeln!(out, "- {}", escape(item))?;
        }
    }
    Ok(())
}

fn table(out: &mut impl Write, table: &Table) -> fmt::Result {
    write!(out, "|")?;
    for column in &table.columns {
        write!(out, " {} |", escape(&column.title()))?;
    }
    write!(out, "\n|")?;
    for column in &table.columns {
        write!(out, "{}", if column.numeric { " ---: |" } else { " --- |" })?;
    }
    writeln!(out)?;
    for row in &table.rows {
        write!(out, "|")?;
        for (cell, column) in row.iter().zip(&table.columns) {
            write!(out, " {} |", cell_text(cell, column.numeric))?;
        }
        writeln!(out)?;
    }
    for (i, note) in table.notes.iter().enumerate() {
        let gap = if i == 0 { "\n" } else { "" };
        writeln!(out, "{gap}- {}", escape(note))?;
    }
    Ok(())
}

fn cell_text(cell: &Cell, numeric: bool) -> String {
    let text = escape(&cell.text);
    match (cell.detail.is_empty(), numeric) {
        (true, _) => text,
        (false, true) => format!("{text} \\[{}\\]", escape(&cell.detail)),
        (false, false) => format!("{text} ({})", escape(&cell.detail)),
    }
}

/// Text in which nothing is markup: neither markdown's nor HTML's.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '&' => escaped.push_str("&amp;"),
            '|' | '*' | '_' | '`' | '[' | ']' | '\\' | '#' | '~' => {
                escaped.push('\\');
                escaped.push(c);
            }
            c => escaped.push(c),
        }
    }
    escaped
}
