//! In short: what each experiment says, and how many reasons there are for doubt.

use std::fmt::{self, Write};

use super::Page;
use super::escape::escape;
use super::svg;
use crate::report::case_table::staircase_note;

/// Writes the section.
pub(super) fn section(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    out.write_str(
        "<section id=\"summary\" aria-labelledby=\"summary-h\">\n<h2 id=\"summary-h\">In short</h2>\n",
    )?;
    if !page.summary.complete {
        out.write_str("<p class=\"alert\">The run did not reach its end.</p>\n")?;
    }
    out.write_str("<div class=\"cards\">\n")?;
    for (i, experiment) in page.view.experiments.iter().enumerate() {
        writeln!(
            out,
            "<article class=\"card\">\n<h3><a href=\"#e{i}\">{}</a></h3>\n<dl>",
            escape(experiment.name)
        )?;
        for verdict in &experiment.verdicts {
            let named = verdict.best.as_deref().map_or_else(String::new, |best| {
                format!(
                    "<span class=\"s{0}\">{1}</span>",
                    page.series(best),
                    svg::swatch(page.series(best))
                )
            });
            writeln!(
                out,
                "<dt>{}</dt>\n<dd><strong>{named}{}</strong> <span>{}</span></dd>",
                escape(&verdict.metric),
                escape(&verdict.value),
                escape(&verdict.sentence)
            )?;
        }
        for case in experiment.cases.iter().filter(|case| case.concurrency == experiment.widest()) {
            if let Some(note) = staircase_note(case) {
                writeln!(out, "<dt>queue</dt>\n<dd>{}</dd>", escape(&note))?;
            }
        }
        out.write_str("</dl>\n")?;
        if experiment.verdicts.is_empty() {
            out.write_str("<p>Fewer than two engines to compare.</p>\n")?;
        }
        out.write_str("</article>\n")?;
    }
    out.write_str("</div>\n")?;
    doubts(page, out)?;
    out.write_str("</section>\n")
}

fn doubts(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    let number = page.view.warnings.len();
    if number == 0 {
        return Ok(());
    }
    let noun = if number == 1 { "thing" } else { "things" };
    writeln!(
        out,
        "<p class=\"doubts\"><a href=\"#warnings\">{number} {noun} to know before quoting these \
         numbers</a></p>"
    )
}
