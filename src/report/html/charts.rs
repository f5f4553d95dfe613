//! What charts have in common: the frame with its axes, direct labels that do
//! not cover each other, the figure around the drawing.

use std::fmt::{self, Write};

use super::axis::Axis;
use super::escape::escape;
use super::svg::{Anchor, Svg};

/// Width of every chart in its own units; on a desk it is drawn larger, on a
/// phone at about four fifths.
pub(super) const WIDTH: f64 = 440.0;

/// The plot inside a chart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

impl Frame {
    /// Horizontal grid lines with labels at the left.
    pub(super) fn y_axis(&self, svg: &mut Svg, axis: &Axis, title: &str) {
        for tick in axis.ticks() {
            svg.line("grid", (self.left, tick.at), (self.right, tick.at));
            svg.text("tick", (self.left - 6.0, tick.at + 3.5), Anchor::End, &tick.label);
        }
        svg.text("axis", (4.0, self.top - 9.0), Anchor::Start, title);
    }

    /// The base line, ticks below it, and vertical grid lines if asked for.
    pub(super) fn x_axis(&self, svg: &mut Svg, axis: &Axis, title: &str, grid: bool) {
        for tick in axis.ticks() {
            if grid {
                svg.line("grid", (tick.at, self.top), (tick.at, self.bottom));
            }
            svg.text("tick", (tick.at, self.bottom + 14.0), Anchor::Middle, &tick.label);
        }
        svg.line("base", (self.left, self.bottom), (self.right, self.bottom));
        svg.text("axis", (self.right, self.bottom + 28.0), Anchor::End, title);
    }
}

/// A label beside the end of a line.
pub(super) struct EndLabel {
    pub(super) series: usize,
    pub(super) y: f64,
    pub(super) text: String,
}

/// Writes labels at `x`, moved apart where they would touch.
pub(super) fn end_labels(svg: &mut Svg, mut labels: Vec<EndLabel>, x: f64, frame: Frame) {
    const APART: f64 = 12.5;
    labels.sort_by(|a, b| a.y.total_cmp(&b.y));
    let mut least = frame.top;
    for label in &mut labels {
        label.y = label.y.max(least);
        least = label.y + APART;
    }
    let mut most = frame.bottom;
    for label in labels.iter_mut().rev() {
        label.y = label.y.min(most);
        most = label.y - APART;
    }
    for label in labels {
        svg.open(&format!("series s{}", label.series));
        svg.text("label", (x, label.y + 3.5), Anchor::Start, &label.text);
        svg.close();
    }
}

/// An engine's name, cut to what fits beside a chart.
pub(super) fn short(name: &str) -> String {
    const MAX: usize = 14;
    if name.chars().count() <= MAX {
        return name.to_owned();
    }
    let mut cut: String = name.chars().take(MAX - 1).collect();
    cut.push('…');
    cut
}

/// A figure with its heading above the drawing and a caption below.
pub(super) fn figure(
    out: &mut impl Write,
    title: &str,
    drawing: &str,
    caption: &str,
) -> fmt::Result {
    writeln!(
        out,
        "<figure class=\"chart\">\n<h3>{}</h3>\n{drawing}<figcaption>{}</figcaption>\n</figure>",
        escape(title),
        escape(caption)
    )
}
