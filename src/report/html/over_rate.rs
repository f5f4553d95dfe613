//! A sweep over rates: what was achieved and how long it took, a line an
//! engine, the knee marked.

use super::Page;
use super::axis::Axis;
use super::charts::{EndLabel, Frame, WIDTH, end_labels, short};
use super::svg::{Anchor, Svg};
use crate::stats::capacity::{Capacity, CapacityPoint};
use crate::units::format_significant;

const HEIGHT: f64 = 264.0;
const FRAME: Frame = Frame { left: 40.0, right: 324.0, top: 24.0, bottom: 228.0 };

/// A number that is drawn over the rate.
pub(super) struct Metric {
    /// Name, as in the tables.
    pub(super) name: &'static str,
    unit: &'static str,
    /// What to know when looking at it.
    pub(super) caption: &'static str,
    of: fn(&CapacityPoint) -> Option<f64>,
}

/// Achieved rate, and latency from the intended instant.
pub(super) const METRICS: [Metric; 3] = [
    Metric {
        name: "achieved",
        unit: "requests/s",
        caption: "Completions a second over the rate that was asked for; where the line bends \
                  away from what is asked, requests queue. The upright line is the knee.",
        of: |point| point.achieved_per_s,
    },
    Metric {
        name: "TTFT p50",
        unit: "ms",
        caption: "From the instant at which a request was meant to be sent.",
        of: |point| point.ttft_from_intended_ms_p50,
    },
    Metric {
        name: "E2EL p50",
        unit: "ms",
        caption: "From the instant at which a request was meant to be sent.",
        of: |point| point.e2el_from_intended_ms_p50,
    },
];

/// Draws a metric of every engine under one load; `None` where no rate has it.
pub(super) fn draw(
    page: &Page<'_>,
    sweeps: &[&Capacity],
    metric: &Metric,
    id: &str,
) -> Option<String> {
    let points = || sweeps.iter().flat_map(|sweep| &sweep.points);
    points().find_map(metric.of)?;
    let x_at = (FRAME.left + 12.0, FRAME.right - 12.0);
    let x = Axis::spanning(points().map(|point| point.rate_per_s), x_at.0, x_at.1);
    let y = Axis::spanning(points().filter_map(metric.of), FRAME.bottom, FRAME.top);
    let mut svg = Svg::new(WIDTH, HEIGHT);
    let scale = if y.is_log() { ", log scale" } else { "" };
    FRAME.y_axis(&mut svg, &y, &format!("{}{scale}", metric.unit));
    svg.line("base", (FRAME.left, FRAME.bottom), (FRAME.right, FRAME.bottom));
    for tick in x.ticks() {
        svg.text("tick", (tick.at, FRAME.bottom + 14.0), Anchor::Middle, &tick.label);
    }
    let scale = if x.is_log() { ", log scale" } else { "" };
    let text = format!("requests/s asked for{scale}");
    svg.text("axis", (FRAME.right, FRAME.bottom + 28.0), Anchor::End, &text);
    let (mut labels, mut told) = (Vec::new(), Vec::new());
    for sweep in sweeps {
        let series = page.series(&sweep.engine);
        let drawn: Vec<_> =
            sweep.points.iter().filter_map(|point| Some((point, (metric.of)(point)?))).collect();
        let (Some(first), Some(last)) = (drawn.first(), drawn.last()) else { continue };
        svg.open(&format!("series s{series}"));
        if let Some(knee) = sweep.knee_per_s {
            svg.line("whisker", (x.at(knee), FRAME.top), (x.at(knee), FRAME.bottom));
        }
        let line: Vec<_> =
            drawn.iter().map(|(point, value)| (x.at(point.rate_per_s), y.at(*value))).collect();
        svg.polyline("curve", &line);
        for ((point, value), at) in drawn.iter().zip(&line) {
            let knee = if sweep.knee_per_s == Some(point.rate_per_s) { ", the knee" } else { "" };
            let title = format!(
                "{}, {}/s asked for: {} {} {}{knee}",
                sweep.engine,
                point.rate_per_s,
                metric.name,
                format_significant(*value),
                metric.unit
            );
            svg.marker(series, *at, 3.4, &title);
        }
        svg.close();
        labels.push(EndLabel { series, y: y.at(last.1), text: short(&sweep.engine) });
        told.push(format!(
            "{} from {} at {}/s to {} at {}/s",
            sweep.engine,
            format_significant(first.1),
            first.0.rate_per_s,
            format_significant(last.1),
            last.0.rate_per_s
        ));
    }
    end_labels(&mut svg, labels, FRAME.right + 4.0, FRAME);
    let load = sweeps.first().map_or("", |sweep| sweep.load.as_str());
    let title = format!("{} over rate, {load}", metric.name);
    Some(svg.finish(id, &title, &format!("In {}: {}.", metric.unit, told.join("; "))))
}
