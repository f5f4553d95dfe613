//! The report as one HTML file that needs nothing beside itself. Charts are SVG
//! made here, so that the page says the same without its script; colours are
//! in the style sheet, so that light and dark are the reader's choice.

mod axis;
mod capacity;
mod charts;
mod closing;
mod cold_start;
mod comparison;
mod escape;
mod experiment;
mod forest;
mod kv_capacity;
mod kv_sweep;
mod lanes;
mod over_concurrency;
mod over_rate;
mod policy;
mod sections;
mod strip;
mod summary;
mod svg;
mod tables;
mod tail;
mod timeline;

use std::fmt::{self, Write};

use crate::record::RunData;
use crate::stats::Summary;

use super::prose::capitalise;
use super::table::Cell;
use super::view::{View, engine_cell};
use escape::escape;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Colours and markers that the style sheet and [`svg`] distinguish.
const NUM_SERIES: usize = 8;

/// What every section is made from.
struct Page<'a> {
    run: &'a RunData,
    summary: &'a Summary,
    view: View<'a>,
}

impl Page<'_> {
    /// The colour and marker of an engine: its place in the manifest.
    fn series(&self, engine: &str) -> usize {
        let engines = &self.run.manifest.engines;
        engines.iter().position(|known| known.spec.name == engine).unwrap_or(0) % NUM_SERIES
    }

    fn engine_cell(&self, engine: &str) -> Cell {
        engine_cell(self.run, engine)
    }
}

/// Writes the page.
///
/// # Errors
/// Those of `out`.
pub fn render(run: &RunData, summary: &Summary, out: &mut impl Write) -> fmt::Result {
    let page = Page { run, summary, view: View::new(run, summary) };
    head(&page, out)?;
    header(&page, out)?;
    out.write_str("<main>\n")?;
    summary::section(&page, out)?;
    for (i, experiment) in page.view.experiments.iter().enumerate() {
        experiment::section(&page, i, experiment, out)?;
    }
    sections::write(&page, out)?;
    closing::engines(&page, out)?;
    closing::absent(&page, out)?;
    closing::warnings(&page, out)?;
    closing::terms(out)?;
    out.write_str("</main>\n")?;
    footer(&page, out)?;
    writeln!(out, "<script>{SCRIPT}</script>\n</body>\n</html>")
}

fn head(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{} – yardstick</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        policy::content_security_policy(STYLE, SCRIPT),
        escape(page.view.title),
    )
}

fn header(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    out.write_str(
        "<a class=\"skip\" href=\"#summary\">Skip to the results</a>\n<header class=\"top\">\n",
    )?;
    writeln!(out, "<p class=\"kicker\">yardstick run</p>\n<h1>{}</h1>", escape(page.view.title))?;
    out.write_str("<dl class=\"facts\">\n")?;
    for (label, value) in &page.view.facts {
        writeln!(out, "<div><dt>{label}</dt><dd>{}</dd></div>", escape(value))?;
    }
    out.write_str("</dl>\n")?;
    legend(page, out)?;
    out.write_str(
        "<nav aria-label=\"Contents\"><ul>\n<li><a href=\"#summary\">In short</a></li>\n",
    )?;
    for (i, experiment) in page.view.experiments.iter().enumerate() {
        writeln!(out, "<li><a href=\"#e{i}\">{}</a></li>", escape(experiment.name))?;
    }
    for section in &page.view.sections {
        let (id, title) = (section.topic.id(), capitalise(section.topic.title()));
        writeln!(out, "<li><a href=\"#{id}\">{title}</a></li>")?;
    }
    out.write_str("<li><a href=\"#engines\">Engines</a></li>\n")?;
    if !page.view.absent.is_empty() {
        out.write_str("<li><a href=\"#absent\">Not measured</a></li>\n")?;
    }
    if !page.view.warnings.is_empty() {
        out.write_str("<li><a href=\"#warnings\">Beware</a></li>\n")?;
    }
    out.write_str("<li><a href=\"#terms\">Terms</a></li>\n</ul></nav>\n</header>\n")
}

/// Engines with their colour and marker; the script turns them into switches.
fn legend(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    out.write_str("<ul class=\"legend\" aria-label=\"Engines\">\n")?;
    for engine in &page.run.manifest.engines {
        let name = &engine.spec.name;
        let series = page.series(name);
        let cell = page.engine_cell(name);
        writeln!(
            out,
            "<li class=\"chip s{series}\" data-series=\"s{series}\">{}<span>{}</span>\
             <small>{}</small></li>",
            svg::swatch(series),
            escape(name),
            escape(&cell.detail),
        )?;
    }
    out.write_str("</ul>\n")
}

fn footer(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    let manifest = &page.run.manifest;
    writeln!(
        out,
        "<footer><p>Made by yardstick {} from the raw lines of the run directory. Plan \
         <code>{}</code>, seed {}.</p></footer>",
        escape(&manifest.yardstick_version),
        escape(manifest.plan_sha256.get(..12).unwrap_or(&manifest.plan_sha256)),
        manifest.seed,
    )
}
