//! Cold starts: a bar for each start whose parts are its phases.

use std::fmt::{self, Write};

use super::Page;
use super::axis::Axis;
use super::charts::{Frame, WIDTH, figure, short};
use super::lanes::Lanes;
use super::svg::{Anchor, Svg};
use crate::plan::lifecycle::list;
use crate::report::cold_start::PHASES;
use crate::report::numbers::write_latency;
use crate::stats::cold_start::ColdStart;

const TOP: f64 = 8.0;
/// Height of a bar with the space below it, and of the bar alone.
const PITCH: f64 = 30.0;
const BAR: f64 = 13.0;
/// Bars drawn; the table has them all.
const MAX_BARS: usize = 24;
/// Starts whose memory and processors are drawn.
const MAX_CURVES: usize = 6;

pub(super) fn charts(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    let caption = "From the start to the first token. Each part ends with the phase that it is \
                   named after when pointed at; medians over the starts.";
    figure(out, "Cold start by phase", &draw(page), caption)?;
    for (index, start) in page.summary.cold_starts.iter().take(MAX_CURVES).enumerate() {
        let title = format!("Used while starting, {} in {}", start.engine, start.experiment);
        if let Some(svg) = draw_used(page, start, &format!("cold-start-used-{index}"), &title) {
            let caption = "The first of the starts, until its first token in the median.";
            figure(out, &title, &svg, caption)?;
        }
    }
    Ok(())
}

fn draw(page: &Page<'_>) -> String {
    let starts: Vec<&ColdStart> = page.summary.cold_starts.iter().take(MAX_BARS).collect();
    let end = |start: &&ColdStart| start.phases.iter().map(|it| it.at_ms).fold(0.0, f64::max);
    let until = starts.iter().map(end).fold(0.0, f64::max);
    let (per_ms, unit) = if until >= 2_000.0 { (1e-3, "s") } else { (1.0, "ms") };
    let rows = u32::try_from(starts.len()).unwrap_or_default();
    let bottom = PITCH.mul_add(f64::from(rows), TOP);
    let frame = Frame { left: 12.0, right: WIDTH - 12.0, top: TOP, bottom };
    let x = Axis::linear(until * per_ms, frame.left, frame.right);
    let mut svg = Svg::new(WIDTH, bottom + 32.0);
    frame.x_axis(&mut svg, &x, &format!("{unit} since the start"), true);
    for (row, start) in (0_u32..).zip(&starts) {
        let y = PITCH.mul_add(f64::from(row), TOP);
        bar(&mut svg, page.series(&start.engine), start, y, &|ms| x.at(ms * per_ms));
    }
    let told: Vec<String> = starts
        .iter()
        .map(|start| {
            let first = start.first_token_ms.p50.map_or("none".to_owned(), write_latency);
            format!("{} in {}: {first}", start.engine, start.experiment)
        })
        .collect();
    let description = format!("First token after: {}.", told.join("; "));
    svg.finish("cold-start-phases", "Cold start by phase", &description)
}

/// What the engine's processes used from the start on.
fn draw_used(page: &Page<'_>, start: &ColdStart, id: &str, title: &str) -> Option<String> {
    let until = start.phases.iter().map(|it| it.at_ms).fold(0.0, f64::max);
    let lanes = Lanes::of(page, &start.engine, start.first_at_ns?, until);
    if lanes.is_empty() {
        return None;
    }
    let (per_ms, unit) = if until >= 2_000.0 { (1e-3, "s") } else { (1.0, "ms") };
    let bottom = TOP + lanes.height();
    let frame = Frame { left: 12.0, right: WIDTH - 12.0, top: TOP, bottom };
    let x = Axis::linear(until * per_ms, frame.left, frame.right);
    let mut svg = Svg::new(WIDTH, bottom + 32.0);
    frame.x_axis(&mut svg, &x, &format!("{unit} since the start"), true);
    svg.open(&format!("series s{}", page.series(&start.engine)));
    lanes.draw(&mut svg, Frame { bottom: TOP, ..frame }, &|ms| x.at(ms * per_ms));
    svg.close();
    Some(svg.finish(id, title, lanes.describe().trim_start()))
}

fn bar(svg: &mut Svg, series: usize, start: &ColdStart, y: f64, x: &dyn Fn(f64) -> f64) {
    svg.open(&format!("series s{series}"));
    let label =
        format!("{}, {}, cold: {}", short(&start.engine), start.experiment, list(&start.cold));
    svg.text("tick", (x(0.0), y + 8.0), Anchor::Start, &label);
    let mut from = 0.0;
    for (index, phase) in start.phases.iter().enumerate() {
        let name = PHASES.iter().find(|(kind, _)| *kind == phase.phase).map_or("", |(_, it)| it);
        let took = write_latency((phase.at_ms - from).max(0.0));
        let title = format!("{name} after {}: {took} of it", write_latency(phase.at_ms));
        // Neighbours differ; what comes last is the token.
        let class = if index % 2 == 0 { "wait" } else { "decode" };
        svg.rect(class, (x(from), y + 11.0), (x(phase.at_ms) - x(from), BAR), &title);
        from = phase.at_ms.max(from);
    }
    svg.close();
}
