//! What an engine used under its requests, on the same time axis: a lane each
//! for memory, processors, GPU, KV cache and queue.

use std::fmt::Write;

use super::Page;
use super::charts::Frame;
use super::escape::coordinate;
use super::svg::{Anchor, Svg};
use crate::clock::Timestamp;
use crate::stats::resources::series::{Series, Unit, between};
use crate::units::{format_bytes, format_significant};

/// Height of a lane with its label.
const PITCH: f64 = 40.0;
/// Height of the label.
const LABEL: f64 = 13.0;
/// Points that a lane is drawn from: more could not be told apart.
const MAX_POINTS: usize = 220;

/// The lanes of one case.
pub(super) struct Lanes(Vec<Series>);

impl Lanes {
    /// Those of an engine from `origin` for `until` ms.
    pub(super) fn of(page: &Page<'_>, engine: &str, origin: Timestamp, until: f64) -> Self {
        let engines = &page.run.manifest.engines;
        let engine = engines.iter().position(|known| known.spec.name == engine);
        Self(engine.map_or_else(Vec::new, |engine| between(page.run, engine, origin, until)))
    }

    /// Whether nothing was seen of the engine then.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Room that they take.
    pub(super) fn height(&self) -> f64 {
        PITCH * self.0.iter().map(|_| 1.0).sum::<f64>()
    }

    /// Draws them below each other from `frame.bottom` on.
    pub(super) fn draw(&self, svg: &mut Svg, frame: Frame, x: &dyn Fn(f64) -> f64) {
        let mut top = frame.bottom;
        for series in &self.0 {
            lane(svg, series, frame, top, x);
            top += PITCH;
        }
    }

    /// What they show, for readers who do not see it.
    pub(super) fn describe(&self) -> String {
        let told = self.0.iter().map(|s| format!("{} up to {}", s.name, write(s.unit, most(s))));
        let told: Vec<String> = told.collect();
        if told.is_empty() { String::new() } else { format!(" Below: {}.", told.join(", ")) }
    }
}

fn lane(svg: &mut Svg, series: &Series, frame: Frame, top: f64, x: &dyn Fn(f64) -> f64) {
    let (ceiling, floor) = (top + LABEL + 3.0, top + PITCH - 3.0);
    let most = most(series);
    let y = |value: f64| {
        let share = if most > 0.0 { (value / most).clamp(0.0, 1.0) } else { 0.0 };
        (ceiling - floor).mul_add(share, floor)
    };
    let points: Vec<(f64, f64)> =
        thinned(&series.points).into_iter().map(|(ms, value)| (x(ms), y(value))).collect();
    let label = format!("{}, up to {}", series.name, write(series.unit, most));
    svg.text("axis", (frame.left, top + LABEL), Anchor::Start, &label);
    svg.line("grid", (frame.left, floor), (frame.right, floor));
    if let (Some(first), Some(last)) = (points.first(), points.last()) {
        let mut area = format!("M{} {}", coordinate(first.0), coordinate(floor));
        for (x, y) in &points {
            // Writing to a string does not fail.
            let _ = write!(area, "L{} {}", coordinate(*x), coordinate(*y));
        }
        let _ = write!(area, "L{} {}Z", coordinate(last.0), coordinate(floor));
        svg.path("interval", &area);
        svg.polyline("lane", &points);
    }
}

/// At most [`MAX_POINTS`], of each stretch the highest: a peak must not vanish.
pub(super) fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let every = points.len().div_ceil(MAX_POINTS).max(1);
    let highest = |stretch: &[(f64, f64)]| {
        stretch.iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a })
    };
    points.chunks(every).filter_map(highest).collect()
}

fn most(series: &Series) -> f64 {
    series.points.iter().map(|(_, value)| *value).fold(0.0, f64::max)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "memory is not negative and below 2^52 bytes"
)]
fn write(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Bytes => format_bytes(value as u64),
        Unit::Processors => format_significant(value),
        Unit::Share => format!("{} %", format_significant(value * 100.0)),
        Unit::Watts => format!("{} W", format_significant(value)),
        Unit::Requests => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_every_peak() {
        let mut points: Vec<(f64, f64)> = (0..5_000).map(|i| (f64::from(i), 1.0)).collect();
        points[3_333].1 = 9.0;
        let thin = thinned(&points);
        assert!(thin.len() <= MAX_POINTS, "{}", thin.len());
        assert!(thin.contains(&(3_333.0, 9.0)));
        assert_eq!(thinned(&points[..7]), points[..7]);
    }
}
