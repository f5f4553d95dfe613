//! The report on a terminal: fits its width, makes sense without colour.

use std::fmt::{self, Write};

use comfy_table::{
    Cell as Boxed, CellAlignment, ColumnConstraint, ContentLineStyle, LineStyle, TableStyle, Width,
};

use super::compared::Sheet;
use super::prose::{printable, wrap};
use super::section::{Section, Topic};
use super::table::{Cell, Column, Table};
use super::view::View;

/// Narrower than this nothing is legible: text is then cut by the terminal.
const MIN_WIDTH: usize = 40;
/// Widest first column before its words are broken.
const MAX_HEAD: usize = 16;
/// Space between columns.
const GAP: usize = 1;

/// Writes the whole report.
///
/// # Errors
/// Those of `out`.
pub fn render(view: &View<'_>, color: bool, width: usize, out: &mut impl Write) -> fmt::Result {
    let width = width.max(MIN_WIDTH);
    let ink = Ink { color };
    writeln!(out, "{}", ink.strong(&printable(view.title)))?;
    for (label, value) in &view.facts {
        paragraph(out, &format!("{label:<10}"), value, width)?;
    }
    writeln!(out)?;
    let mut left_out = Vec::new();
    left_out.extend(table(out, &view.engines, ink, width)?);
    if let Some(contract) = &view.contract {
        writeln!(out, "\n{}", contract.caption)?;
        left_out.extend(table(out, contract, ink, width)?);
    }
    for experiment in &view.experiments {
        writeln!(out)?;
        writeln!(
            out,
            "{}",
            ink.strong(&rule(&printable(experiment.name), &experiment.load, width))
        )?;
        if !experiment.description.is_empty() {
            writeln!(out, "{}", experiment.description)?;
        }
        for shown in &experiment.tables {
            writeln!(out)?;
            if experiment.tables.len() > 1 {
                writeln!(out, "{}", shown.caption)?;
            }
            left_out.extend(table(out, shown, ink, width)?);
        }
        if !experiment.verdicts.is_empty() {
            writeln!(out)?;
        }
        for verdict in &experiment.verdicts {
            let text = format!("{}: {}; {}", verdict.metric, verdict.value, verdict.sentence);
            paragraph(out, "→ ", &text, width)?;
        }
    }
    for section in view.sections.iter().filter(|section| tells(section)) {
        writeln!(out)?;
        writeln!(out, "{}", ink.strong(&rule(section.topic.title(), "", width)))?;
        for (i, shown) in section.tables.iter().enumerate() {
            if i > 0 {
                writeln!(out)?;
            }
            paragraph(out, "", &shown.caption, width)?;
            left_out.extend(table(out, shown, ink, width)?);
        }
    }
    if !view.absent.is_empty() {
        writeln!(out)?;
        writeln!(out, "{}", ink.strong(&rule("not measured", "", width)))?;
    }
    for absent in &view.absent {
        let text = format!("{}, {}: {}", absent.engine, absent.cases, absent.reason);
        paragraph(out, "– ", &text, width)?;
    }
    warnings(view, ink, width, out)?;
    left_out.sort();
    left_out.dedup();
    if !left_out.is_empty() {
        writeln!(out)?;
        let text = format!("left out at this width, in the HTML report: {}", left_out.join(", "));
        paragraph(out, "", &text, width)?;
    }
    Ok(())
}

/// Whether a section has something to say here: sizes of pools do where a load
/// did not fit, and fill a screen where all did.
fn tells(section: &Section) -> bool {
    section.topic != Topic::KvSizing || section.tables.iter().any(|table| !table.notes.is_empty())
}

/// Writes one table, with the columns it had no room for below it.
///
/// # Errors
/// Those of `out`.
pub fn render_table(shown: &Table, color: bool, width: usize, out: &mut impl Write) -> fmt::Result {
    let left_out = table(out, shown, Ink { color }, width.max(MIN_WIDTH))?;
    if left_out.is_empty() {
        return Ok(());
    }
    paragraph(out, "", &format!("left out at this width: {}", left_out.join(", ")), width)
}

/// Writes a sheet.
///
/// # Errors
/// Those of `out`.
pub fn render_sheet(sheet: &Sheet, color: bool, width: usize, out: &mut impl Write) -> fmt::Result {
    let (width, ink) = (width.max(MIN_WIDTH), Ink { color });
    writeln!(out, "{}", ink.strong(&printable(&sheet.title)))?;
    for (label, value) in &sheet.facts {
        paragraph(out, &format!("{label:<10}"), value, width)?;
    }
    for shown in &sheet.tables {
        writeln!(out)?;
        for line in wrap(&printable(&shown.caption), width) {
            writeln!(out, "{}", ink.strong(&line))?;
        }
        render_table(shown, color, width, out)?;
    }
    for (heading, items) in &sheet.lists {
        writeln!(out)?;
        writeln!(out, "{}", ink.strong(&rule(heading, "", width)))?;
        for item in items {
            paragraph(out, "– ", item, width)?;
        }
    }
    Ok(())
}

fn warnings(view: &View<'_>, ink: Ink, width: usize, out: &mut impl Write) -> fmt::Result {
    if view.warnings.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    writeln!(out, "{}", ink.strong(&rule("beware", "", width)))?;
    for warning in view.warnings {
        let about: Vec<&str> = [&warning.engine, &warning.experiment]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        let text = if about.is_empty() {
            warning.message.clone()
        } else {
            format!("{}: {}", about.join(", "), warning.message)
        };
        paragraph(out, "! ", &text, width)?;
        paragraph(out, "  ", &warning.advice, width)?;
    }
    Ok(())
}

/// `name ───── right`.
fn rule(name: &str, right: &str, width: usize) -> String {
    let right = if right.is_empty() { String::new() } else { format!(" {right}") };
    let used = name.chars().count() + 1 + right.chars().count();
    format!("{name} {}{right}", "─".repeat(width.saturating_sub(used)))
}

/// Wrapped text with a hanging indent as wide as its lead.
fn paragraph(out: &mut impl Write, lead: &str, text: &str, width: usize) -> fmt::Result {
    let indent = lead.chars().count();
    for (i, line) in wrap(&printable(text), width.saturating_sub(indent)).iter().enumerate() {
        let lead = if i == 0 { lead.to_owned() } else { " ".repeat(indent) };
        writeln!(out, "{}", format!("{lead}{line}").trim_end())?;
    }
    Ok(())
}

/// Writes a table with its notes and returns the titles of the columns left out.
fn table(
    out: &mut impl Write,
    table: &Table,
    ink: Ink,
    width: usize,
) -> Result<Vec<String>, fmt::Error> {
    let mut left_out = Vec::new();
    if table.continues {
        for part in pages(table, width) {
            print(out, &part, ink, width)?;
        }
    } else {
        let shown;
        (shown, left_out) = fit(table, width);
        print(out, &shown, ink, width)?;
    }
    for note in &table.notes {
        paragraph(out, "· ", note, width)?;
    }
    Ok(left_out)
}

/// Leaves out the columns of the highest rank until the rest fits.
fn fit(table: &Table, width: usize) -> (Table, Vec<String>) {
    let mut shown = table.clone();
    let mut left_out = Vec::new();
    while needed(&shown) > width {
        let last = (0..shown.columns.len())
            .filter(|i| shown.columns[*i].rank > 0)
            .max_by_key(|i| (shown.columns[*i].rank, *i));
        let Some(last) = last else { break };
        left_out.push(shown.columns[last].title());
        let keep: Vec<bool> = (0..shown.columns.len()).map(|i| i != last).collect();
        shown.keep_columns(&keep);
    }
    left_out.reverse();
    (shown, left_out)
}

/// Splits a table of many columns into tables that fit, each with the first column.
fn pages(table: &Table, width: usize) -> Vec<Table> {
    let mut pages = Vec::new();
    let mut from = 1;
    while from < table.columns.len() {
        let mut to = from + 1;
        let page = |to: usize| {
            let mut page = table.clone();
            let keep: Vec<bool> =
                (0..table.columns.len()).map(|i| i == 0 || (from..to).contains(&i)).collect();
            page.keep_columns(&keep);
            page
        };
        while to < table.columns.len() && needed(&page(to + 1)) <= width {
            to += 1;
        }
        pages.push(page(to));
        from = to;
    }
    pages
}

fn needed(table: &Table) -> usize {
    let column = |i: usize| {
        let cells = table.rows.iter().map(|row| cell_lines(&row[i]));
        let lines = cells.chain([header_lines(&table.columns[i])]).flatten();
        let widest = lines.map(|line| line.chars().count()).max().unwrap_or(0);
        if i == 0 { widest.min(MAX_HEAD) } else { widest }
    };
    (0..table.columns.len()).map(|i| column(i) + GAP).sum::<usize>().saturating_sub(GAP)
}

fn header_lines(column: &Column) -> [String; 2] {
    [column.name.clone(), column.unit.clone()]
}

fn cell_lines(cell: &Cell) -> [String; 2] {
    [printable(&cell.text), printable(&cell.detail)]
}

fn print(out: &mut impl Write, table: &Table, ink: Ink, width: usize) -> fmt::Result {
    const STYLE: TableStyle = TableStyle::new()
        .header_lines(ContentLineStyle::none())
        .header_separator(LineStyle::none().fill('─'))
        .content_lines(ContentLineStyle::none());
    let mut boxed = comfy_table::Table::new();
    boxed.load_style(STYLE);
    boxed.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    let has_units = table.columns.iter().any(|column| !column.unit.is_empty());
    boxed.set_header(table.columns.iter().map(|column| {
        let [name, unit] = header_lines(column);
        let text = if has_units { format!("{name}\n{unit}") } else { name };
        Boxed::new(text).set_alignment(alignment(column))
    }));
    for row in &table.rows {
        let details = row.iter().any(|cell| !cell.detail.is_empty());
        boxed.add_row(row.iter().zip(&table.columns).map(|(cell, column)| {
            let [text, detail] = cell_lines(cell);
            let text = if details { format!("{text}\n{detail}") } else { text };
            Boxed::new(text).set_alignment(alignment(column))
        }));
    }
    for (i, column) in boxed.column_iter_mut().enumerate() {
        column.set_padding((0, u16::from(i + 1 < table.columns.len())));
    }
    if let Some(first) = boxed.column_mut(0) {
        let limit = u16::try_from(MAX_HEAD + GAP).unwrap_or(u16::MAX);
        first.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(limit)));
    }
    for (i, line) in boxed.lines().enumerate() {
        let line = line.trim_end();
        let header = i < 1 + usize::from(has_units);
        writeln!(out, "{}", if header { ink.faint(line) } else { line.to_owned() })?;
    }
    Ok(())
}

fn alignment(column: &Column) -> CellAlignment {
    if column.numeric { CellAlignment::Right } else { CellAlignment::Left }
}

/// Emphasis that repeats what words and position say already.
#[derive(Clone, Copy)]
struct Ink {
    color: bool,
}

impl Ink {
    fn strong(self, text: &str) -> String {
        self.style("1", text)
    }

    fn faint(self, text: &str) -> String {
        self.style("2", text)
    }

    fn style(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
