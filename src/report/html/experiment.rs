//! One experiment: its engines side by side, then what a table cannot show.

use std::fmt::{self, Write};

use super::Page;
use super::charts::figure;
use super::escape::escape;
use super::{over_concurrency, strip, svg, tables, tail, timeline};
use crate::report::prose::capitalise;
use crate::report::view::Experiment;

/// Writes the section with the id `e{index}`.
pub(super) fn section(
    page: &Page<'_>,
    index: usize,
    experiment: &Experiment<'_>,
    out: &mut impl Write,
) -> fmt::Result {
    writeln!(
        out,
        "<section id=\"e{index}\" aria-labelledby=\"e{index}-h\">\n<h2 id=\"e{index}-h\">{}</h2>\n\
         <p class=\"lead\">{}</p>",
        escape(experiment.name),
        escape(&lead(experiment))
    )?;
    // Of a sweep the curves say most; of one concurrency the table does.
    if experiment.is_sweep() {
        charts(page, index, experiment, out)?;
    }
    for table in &experiment.tables {
        tables::table(page, table, out)?;
    }
    if !experiment.is_sweep() {
        charts(page, index, experiment, out)?;
    }
    if experiment.widest() > 1 {
        timelines(page, index, experiment, out)?;
    }
    out.write_str("</section>\n")
}

fn charts(
    page: &Page<'_>,
    index: usize,
    experiment: &Experiment<'_>,
    out: &mut impl Write,
) -> fmt::Result {
    out.write_str("<div class=\"charts\">\n")?;
    if experiment.is_sweep() {
        for (i, metric) in over_concurrency::METRICS.iter().enumerate() {
            let id = format!("e{index}-c{i}");
            if let Some(drawing) = over_concurrency::draw(page, experiment, metric, &id) {
                let title = format!("{} over concurrency", capitalise(metric.name));
                figure(out, &title, &drawing, metric.caption)?;
            }
        }
    } else if let Some(drawing) = strip::draw(page, experiment, &format!("e{index}-strip")) {
        figure(
            out,
            "TTFT of every request",
            &drawing,
            "A mark is a request; the upright line is the median, the band its 95 % interval.",
        )?;
    }
    if let Some(drawing) = tail::draw(page, experiment, &format!("e{index}-itl")) {
        let at = if experiment.is_sweep() {
            format!(" at C = {}", experiment.widest())
        } else {
            String::new()
        };
        let caption = "How many of all gaps (ITL) are longer than a length; marks at 50, 90 and \
                       99 %. The further left, the faster; a long tail is stalls.";
        figure(out, &format!("Gaps between tokens{at}"), &drawing, caption)?;
    }
    out.write_str("</div>\n")
}

fn lead(experiment: &Experiment<'_>) -> String {
    match capitalise(experiment.description) {
        description if description.is_empty() => format!("{}.", experiment.load),
        description => format!("{description}: {}.", experiment.load),
    }
}

/// One drawing an engine at the highest concurrency, all on the same axis.
fn timelines(
    page: &Page<'_>,
    index: usize,
    experiment: &Experiment<'_>,
    out: &mut impl Write,
) -> fmt::Result {
    let widest = experiment.widest();
    let cases = || experiment.cases.iter().filter(|case| case.concurrency == widest);
    let until = cases().map(|case| timeline::extent(page, case)).fold(0.0, f64::max);
    writeln!(
        out,
        "<h3 class=\"wide\">Every request over time{}</h3>\n<p class=\"key\">\
         <span><i class=\"k wait\"></i>waiting for the first token</span>\
         <span><i class=\"k decode\"></i>tokens arriving</span>\
         <span><i class=\"k token\"></i>token events, every second or further one where they are dense</span></p>\n<div class=\"charts\">",
        if experiment.is_sweep() { format!(" at C = {widest}") } else { String::new() }
    )?;
    for (i, case) in cases().enumerate() {
        let Some(drawing) = timeline::draw(page, case, until, &format!("e{index}-t{i}")) else {
            continue;
        };
        let series = page.series(&case.engine);
        writeln!(
            out,
            "<figure class=\"chart\">\n<h4 class=\"engine s{series}\">{}{}</h4>\n{drawing}\
             <figcaption>{}</figcaption>\n</figure>",
            svg::swatch(series),
            escape(&case.engine),
            escape(&caption(case))
        )?;
    }
    out.write_str("</div>\n")
}

fn caption(case: &crate::stats::summary::CaseSummary) -> String {
    let mut parts = Vec::new();
    if let Some(rounds) = case.num_rounds {
        parts.push(format!("The first of {rounds} rounds."));
    } else if case.n > timeline::MAX_ROWS as u64 {
        parts.push(format!("The first {} of {} requests.", timeline::MAX_ROWS, case.n));
    }
    if let Some(stair) = &case.staircase {
        parts.push(format!(
            "A staircase: {} served at once, the others wait in steps of {}.",
            stair.slots,
            crate::report::numbers::write_latency(stair.step_ms)
        ));
    }
    if case.num_ok < case.n {
        parts.push(format!("{} of {} failed.", case.n - case.num_ok, case.n));
    }
    if parts.is_empty() {
        parts.push("Sorted by first token; the axis is the same for all engines.".to_owned());
    }
    parts.join(" ")
}
