//! Sweeps over KV settings: throughput over the size of the pool, measured and
//! predicted, and the use of each point's pool over time.

use std::fmt::{self, Write};

use super::Page;
use super::axis::Axis;
use super::charts::{Frame, WIDTH, figure};
use super::lanes::thinned;
use super::svg::{Anchor, Svg};
use crate::report::kv_table::{named, point_name, title};
use crate::stats::case::span;
use crate::stats::kv_sweep::{KvSweep, Point};
use crate::stats::resources::series::{KV_USED, between};
use crate::units::{format_significant, millis};

const HEIGHT: f64 = 264.0;
const FRAME: Frame = Frame { left: 40.0, right: 348.0, top: 24.0, bottom: 228.0 };
/// Height of a lane of use over time, and of the label in it.
const PITCH: f64 = 42.0;
const LABEL: f64 = 13.0;
/// Lanes drawn; the table has every point.
const MAX_LANES: usize = 12;

pub(super) fn charts(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    let sweeps = &page.summary.kv_sweep;
    for (i, sweep) in sweeps.iter().enumerate() {
        if let Some(drawing) = throughput(sweep, &format!("kv-pool-{i}")) {
            figure(
                out,
                &format!("Throughput over the pool, {}", title(sweep)),
                &drawing,
                "Output tokens a second. The solid line was measured, the dashed one predicted \
                 from the largest pool, where both are equal; the upright line is the smallest \
                 pool that keeps 95 % of the best.",
            )?;
        }
        if let Some(drawing) = use_over_time(page, sweep, &format!("kv-use-{i}")) {
            figure(
                out,
                &format!("Pool in use over time, {}", title(sweep)),
                &drawing,
                "Share of the blocks that sequences held; a lane reaches up to all of them. Of \
                 several rounds the first one.",
            )?;
        }
    }
    Ok(())
}

fn throughput(sweep: &KvSweep, id: &str) -> Option<String> {
    let tokens = |point: &Point| point.kv_tokens.map(|tokens| tokens as f64);
    let curve = |of: fn(&Point) -> Option<f64>| -> Vec<(&Point, f64, f64)> {
        let point = |point| Some((point, tokens(point)?, of(point)?));
        sweep.points.iter().filter_map(point).collect()
    };
    let measured = curve(|point| point.output_tokens_per_s);
    let predicted = curve(|point| point.predicted_tokens_per_s);
    if measured.is_empty() {
        return None;
    }
    let all = || measured.iter().chain(&predicted);
    let x_at = (FRAME.left + 12.0, FRAME.right - 12.0);
    let x = Axis::spread(all().map(|(_, tokens, _)| *tokens), x_at.0, x_at.1);
    let y =
        Axis::linear(all().map(|(.., rate)| *rate).fold(0.0, f64::max), FRAME.bottom, FRAME.top);
    let mut svg = Svg::new(WIDTH, HEIGHT);
    FRAME.y_axis(&mut svg, &y, "tok/s");
    let scale = if x.is_log() { ", log scale" } else { "" };
    FRAME.x_axis(&mut svg, &x, &format!("tokens in the pool{scale}"), false);
    svg.open("series s0");
    let found = sweep.smallest_sufficient.as_ref();
    let found = found.and_then(|name| measured.iter().find(|(point, ..)| point.engine == *name));
    if let Some((_, tokens, _)) = found {
        svg.line("whisker", (x.at(*tokens), FRAME.top), (x.at(*tokens), FRAME.bottom));
    }
    draw(&mut svg, &x, &y, &measured, ("curve", 0, "measured"), sweep);
    svg.close();
    svg.open("series s1");
    draw(&mut svg, &x, &y, &predicted, ("curve predicted", 1, "predicted"), sweep);
    svg.close();
    let ends = [(0, "measured", &measured), (1, "predicted", &predicted)];
    let labels = ends.into_iter().filter_map(|(series, text, curve)| {
        let y = y.at(curve.last()?.2);
        Some(super::charts::EndLabel { series, y, text: text.to_owned() })
    });
    super::charts::end_labels(&mut svg, labels.collect(), FRAME.right + 4.0, FRAME);
    let tell = |(point, _, rate): &(&Point, f64, f64)| {
        let expected = point.predicted_tokens_per_s.map(format_significant);
        let expected = expected.map_or("none".to_owned(), |rate| rate);
        let name = point_name(sweep, point);
        format!("{name} {} measured and {expected} predicted", format_significant(*rate))
    };
    let told: Vec<String> = measured.iter().map(tell).collect();
    let enough = found.map_or_else(String::new, |(point, ..)| {
        format!(" The smallest sufficient pool is {}.", named(sweep, &point.engine))
    });
    let heading = format!("Throughput over the KV pool, {}", title(sweep));
    Some(svg.finish(id, &heading, &format!("In tok/s: {}.{enough}", told.join("; "))))
}

/// A curve with its markers, whose titles say what they are.
fn draw(
    svg: &mut Svg,
    x: &Axis,
    y: &Axis,
    curve: &[(&Point, f64, f64)],
    (class, series, word): (&str, usize, &str),
    sweep: &KvSweep,
) {
    let line: Vec<_> = curve.iter().map(|(_, tokens, rate)| (x.at(*tokens), y.at(*rate))).collect();
    svg.polyline(class, &line);
    for ((point, tokens, rate), at) in curve.iter().zip(&line) {
        let name = point_name(sweep, point);
        let rate = format_significant(*rate);
        svg.marker(series, *at, 3.4, &format!("{name}, {tokens:.0} tokens: {rate} tok/s {word}"));
    }
}

/// A lane a point; `None` where no engine told of its pool.
fn use_over_time(page: &Page<'_>, sweep: &KvSweep, id: &str) -> Option<String> {
    let lanes: Vec<(&Point, Vec<(f64, f64)>)> = sweep
        .points
        .iter()
        .filter_map(|point| Some((point, used(page, point)?)))
        .take(MAX_LANES)
        .collect();
    let until =
        lanes.iter().flat_map(|(_, used)| used.last()).map(|(ms, _)| *ms).reduce(f64::max)?;
    let (per_ms, unit) = if until >= 2_000.0 { (1e-3, "s") } else { (1.0, "ms") };
    let bottom = 4.0 + PITCH * lanes.iter().map(|_| 1.0).sum::<f64>();
    let frame = Frame { left: 12.0, right: WIDTH - 12.0, top: 4.0, bottom };
    let x = Axis::linear(until * per_ms, frame.left, frame.right);
    let mut svg = Svg::new(WIDTH, bottom + 32.0);
    frame.x_axis(&mut svg, &x, &format!("{unit} since the case began"), true);
    let (mut top, mut told) = (frame.top, Vec::new());
    for (point, used) in &lanes {
        let label = label(sweep, point);
        let (ceiling, floor) = (top + LABEL + 3.0, top + PITCH - 3.0);
        let y = |share: f64| (ceiling - floor).mul_add(share.clamp(0.0, 1.0), floor);
        let line: Vec<_> =
            thinned(used).into_iter().map(|(ms, share)| (x.at(ms * per_ms), y(share))).collect();
        svg.open("series s0");
        svg.text("axis", (frame.left, top + LABEL), Anchor::Start, &label);
        svg.line("grid", (frame.left, ceiling), (frame.right, ceiling));
        svg.polyline("lane", &line);
        svg.line("base", (frame.left, floor), (frame.right, floor));
        svg.close();
        told.push(label);
        top += PITCH;
    }
    let heading = format!("KV pool in use over time, {}", title(sweep));
    Some(svg.finish(id, &heading, &format!("{}.", told.join("; "))))
}

fn label(sweep: &KvSweep, point: &Point) -> String {
    let percent = |share: f64| format_significant(share * 100.0);
    let mut label = point_name(sweep, point);
    if let (Some(peak), Some(mean)) = (point.peak_kv_use, point.mean_kv_use) {
        label += &format!(": up to {} %, {} % on average", percent(peak), percent(mean));
    }
    match point.num_preemptions {
        None => {}
        Some(1) => label += ", 1 preemption",
        Some(many) => label += &format!(", {many} preemptions"),
    }
    if let Some(predicted) = point.predicted_preemptions.filter(|_| point.num_preemptions.is_some())
    {
        label += &format!(" ({predicted} predicted)");
    }
    label
}

/// Share of the pool in use over the case of a point, in ms since it began.
fn used(page: &Page<'_>, point: &Point) -> Option<Vec<(f64, f64)>> {
    let engines = &page.run.manifest.engines;
    let engine = engines.iter().position(|known| known.spec.name == point.engine)?;
    let (from, to) = span(point.case?, &page.run.journal)?;
    let series = between(page.run, engine, from, millis(to.since(from)));
    series.into_iter().find(|series| series.name == KV_USED).map(|series| series.points)
}
