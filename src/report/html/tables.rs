//! The table model as an HTML table in a box that scrolls by itself.

use std::fmt::{self, Write};

use super::Page;
use super::escape::escape;
use super::svg;
use crate::report::table::{Cell, Column, Table};

/// Writes a table with its notes. Rows whose header is an engine carry its
/// colour and marker.
pub(super) fn table(page: &Page<'_>, table: &Table, out: &mut impl Write) -> fmt::Result {
    let caption = escape(&table.caption);
    writeln!(
        out,
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{caption}\">\n<table>\n\
         <caption>{caption}</caption>\n<thead><tr>"
    )?;
    for column in &table.columns {
        header(column, out)?;
    }
    out.write_str("</tr></thead>\n<tbody>\n")?;
    for row in &table.rows {
        out.write_str("<tr>")?;
        for (i, (cell, column)) in row.iter().zip(&table.columns).enumerate() {
            if i == 0 { row_header(page, cell, out)? } else { data(cell, column, out)? }
        }
        out.write_str("</tr>\n")?;
    }
    out.write_str("</tbody>\n</table>\n</div>\n")?;
    notes(&table.notes, out)
}

/// Sentences under a table.
pub(super) fn notes(notes: &[String], out: &mut impl Write) -> fmt::Result {
    if notes.is_empty() {
        return Ok(());
    }
    out.write_str("<ul class=\"notes\">\n")?;
    for note in notes {
        writeln!(out, "<li>{}</li>", escape(note))?;
    }
    out.write_str("</ul>\n")
}

fn header(column: &Column, out: &mut impl Write) -> fmt::Result {
    let class = if column.numeric { " class=\"n\"" } else { "" };
    write!(out, "<th scope=\"col\"{class}>{}", escape(&column.name))?;
    if !column.unit.is_empty() {
        write!(out, " <small>{}</small>", escape(&column.unit))?;
    }
    out.write_str("</th>")
}

fn row_header(page: &Page<'_>, cell: &Cell, out: &mut impl Write) -> fmt::Result {
    let engines = &page.run.manifest.engines;
    let is_engine = engines.iter().any(|engine| engine.spec.name == cell.text);
    if is_engine {
        let series = page.series(&cell.text);
        let swatch = svg::swatch(series);
        write!(out, "<th scope=\"row\"><span class=\"engine s{series}\">{swatch}")?;
        write!(out, "{}</span>", escape(&cell.text))?;
    } else {
        write!(out, "<th scope=\"row\">{}", escape(&cell.text))?;
    }
    detail(cell, out)?;
    out.write_str("</th>")
}

fn data(cell: &Cell, column: &Column, out: &mut impl Write) -> fmt::Result {
    let class = if column.numeric { " class=\"n\"" } else { "" };
    match &cell.reason {
        Some(reason) => {
            let reason = escape(reason);
            write!(out, "<td{class}><abbr title=\"{reason}\">{}</abbr></td>", escape(&cell.text))
        }
        None => {
            write!(out, "<td{class}>{}", escape(&cell.text))?;
            detail(cell, out)?;
            out.write_str("</td>")
        }
    }
}

fn detail(cell: &Cell, out: &mut impl Write) -> fmt::Result {
    if cell.detail.is_empty() {
        return Ok(());
    }
    write!(out, "<small>{}</small>", escape(&cell.detail))
}
