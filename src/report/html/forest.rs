//! A forest of ratios: a row a metric, its ratio with its interval, the margin of
//! sameness as a band, 1 marked.

use super::Page;
use super::charts::WIDTH;
use super::svg::{Anchor, Svg};
use crate::report::comparison::{write_interval, write_ratio};
use crate::stats::compare::Comparison;

const ROW: f64 = 27.0;
const TOP: f64 = 8.0;
/// Where the axis begins: labels are to the left of it, verdicts to the right.
const LEFT: f64 = 112.0;
const RIGHT: f64 = WIDTH - 84.0;
/// Ratios that may be ticks, in the order in which they are preferred.
const TICKS: [f64; 19] = [
    1.0, 2.0, 0.5, 1.5, 0.67, 1.2, 0.8, 1.1, 0.9, 1.05, 0.95, 5.0, 0.2, 10.0, 0.1, 1.02, 0.98,
    100.0, 0.01,
];
/// Ticks nearer than this would touch.
const APART: f64 = 30.0;

/// A logarithmic axis around 1.
struct Ratios {
    /// Logarithm of the outermost ratio on either side.
    reach: f64,
}

impl Ratios {
    fn of(group: &[&Comparison]) -> Self {
        let bounds = |c: &&Comparison| {
            let interval = c.interval.map(|interval| [interval.low, interval.high]);
            let margin = 1.0 + c.margin;
            interval.into_iter().flatten().chain([c.ratio, margin]).map(|x| x.ln().abs())
        };
        let most = group.iter().flat_map(bounds).filter(|log| log.is_finite());
        Self { reach: most.fold(0.02, f64::max).min(5.0) * 1.08 }
    }

    fn at(&self, ratio: f64) -> f64 {
        let share = (ratio.ln() / self.reach).clamp(-1.0, 1.0);
        let middle = f64::midpoint(LEFT, RIGHT);
        share.mul_add((RIGHT - LEFT) / 2.0, middle)
    }

    fn ticks(&self) -> Vec<(f64, f64)> {
        let mut ticks: Vec<(f64, f64)> = Vec::new();
        for ratio in TICKS.into_iter().filter(|ratio| ratio.ln().abs() <= self.reach) {
            let at = self.at(ratio);
            if ticks.iter().all(|(_, other)| (other - at).abs() >= APART) {
                ticks.push((ratio, at));
            }
        }
        ticks
    }
}

/// Draws comparisons of one pair; `None` where there are none.
pub(super) fn draw(page: &Page<'_>, group: &[&Comparison], id: &str) -> Option<String> {
    let first = group.first()?;
    let rows = f64::from(u32::try_from(group.len()).ok()?);
    let axis = Ratios::of(group);
    let bottom = ROW.mul_add(rows, TOP);
    let mut svg = Svg::new(WIDTH, bottom + 34.0);
    let margin = 1.0 + first.margin;
    let (low, high) = (axis.at(1.0 / margin), axis.at(margin));
    let title =
        format!("same: ratios from {} to {}", write_ratio(1.0 / margin), write_ratio(margin));
    svg.rect("same", (low, TOP), (high - low, bottom - TOP), &title);
    for (ratio, at) in axis.ticks() {
        let class = if (ratio - 1.0).abs() < f64::EPSILON { "one" } else { "grid" };
        svg.line(class, (at, TOP), (at, bottom));
        svg.text("tick", (at, bottom + 14.0), Anchor::Middle, &ratio.to_string());
    }
    svg.line("base", (LEFT, bottom), (RIGHT, bottom));
    let below = format!("{} / {}", first.candidate.engine, first.base.engine);
    svg.text("axis", (RIGHT, bottom + 28.0), Anchor::End, &below);
    let several = group.iter().any(|c| c.concurrency != first.concurrency);
    let mut told = Vec::new();
    let mut y = TOP + ROW / 2.0;
    for comparison in group {
        let mut name = comparison.metric.label();
        if several {
            name.push_str(&format!(", {}", comparison.concurrency));
        }
        row(&mut svg, page.series(&comparison.candidate.engine), comparison, &name, &axis, y);
        told.push(format!("{name} {}, {}", sentence(comparison), comparison.verdict.as_str()));
        y += ROW;
    }
    let title = format!("{} against {}", first.candidate.engine, first.base.engine);
    Some(svg.finish(id, &title, &format!("Ratios: {}.", told.join("; "))))
}

fn row(svg: &mut Svg, series: usize, comparison: &Comparison, name: &str, axis: &Ratios, y: f64) {
    svg.text("row", (LEFT - 10.0, y + 3.5), Anchor::End, name);
    svg.open(&format!("series s{series}"));
    if let Some(interval) = comparison.interval {
        let (low, high) = (axis.at(interval.low), axis.at(interval.high));
        svg.line("span", (low, y), (high, y));
        svg.line("span", (low, y - 4.0), (low, y + 4.0));
        svg.line("span", (high, y - 4.0), (high, y + 4.0));
    }
    let title = format!("{name}: {}", sentence(comparison));
    svg.marker(series, (axis.at(comparison.ratio), y), 4.0, &title);
    svg.close();
    svg.text("row", (RIGHT + 10.0, y + 3.5), Anchor::Start, comparison.verdict.as_str());
}

fn sentence(comparison: &Comparison) -> String {
    match write_interval(comparison) {
        Some(range) => format!("{} ({range})", write_ratio(comparison.ratio)),
        None => write_ratio(comparison.ratio),
    }
}
