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
    for section in &view.sections {
        writeln!(out, "\n## {}", capitalise(section.topic.title()))?;
        for shown in &section.tables {
            writeln!(out, "\n**{}**\n", escape(&shown.caption))?;
            table(out, shown)?;
        }
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
