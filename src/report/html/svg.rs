//! Marks on paper: lines, text, markers. Knows coordinates and the classes of
//! the style sheet, no measurement.

use std::fmt::Write;

use super::escape::{coordinate, escape};

/// Where text is anchored.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// An SVG element under construction. Titles and descriptions are for readers
/// who do not see it.
pub(super) struct Svg {
    body: String,
    width: f64,
    height: f64,
}

impl Svg {
    /// An empty drawing.
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { body: String::new(), width, height }
    }

    /// Opens a group with classes.
    pub(super) fn open(&mut self, class: &str) {
        self.raw(&format!("<g class=\"{class}\">"));
    }

    /// Closes the group.
    pub(super) fn close(&mut self) {
        self.raw("</g>");
    }

    /// A line.
    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(coordinate);
        self.raw(&format!(
            "<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>"
        ));
    }

    /// A path given by its commands.
    pub(super) fn path(&mut self, class: &str, commands: &str) {
        self.raw(&format!("<path class=\"{class}\" d=\"{commands}\"/>"));
    }

    /// A line through points.
    pub(super) fn polyline(&mut self, class: &str, points: &[(f64, f64)]) {
        let mut commands = String::new();
        for (i, (x, y)) in points.iter().enumerate() {
            let letter = if i == 0 { 'M' } else { 'L' };
            // Writing to a string does not fail.
            let _ = write!(commands, "{letter}{} {}", coordinate(*x), coordinate(*y));
        }
        self.path(class, &commands);
    }

    /// A rectangle, with a text that appears when it is pointed at.
    pub(super) fn rect(&mut self, class: &str, at: (f64, f64), size: (f64, f64), title: &str) {
        let [x, y, w, h] = [at.0, at.1, size.0.max(0.0), size.1].map(coordinate);
        self.raw(&format!(
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\">\
             <title>{}</title></rect>",
            escape(title)
        ));
    }

    /// A series' marker, with a text that appears when it is pointed at.
    pub(super) fn marker(&mut self, series: usize, at: (f64, f64), size: f64, title: &str) {
        let shape = marker_path(series, at, size);
        self.raw(&format!(
            "<path class=\"mark\" d=\"{shape}\"><title>{}</title></path>",
            escape(title)
        ));
    }

    /// Text.
    pub(super) fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (x, y) = (coordinate(at.0), coordinate(at.1));
        self.raw(&format!(
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>",
            escape(text)
        ));
    }

    /// The finished element. `id` is unique in the page.
    pub(super) fn finish(self, id: &str, title: &str, description: &str) -> String {
        let (w, h) = (coordinate(self.width), coordinate(self.height));
        format!(
            "<svg id=\"{id}\" role=\"img\" viewBox=\"0 0 {w} {h}\" aria-labelledby=\"{id}-t {id}-d\">\
             <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>{}</svg>\n",
            escape(title),
            escape(description),
            self.body
        )
    }

    fn raw(&mut self, markup: &str) {
        self.body.push_str(markup);
    }
}

/// A small drawing of a series' marker for legends and tables.
pub(super) fn swatch(series: usize) -> String {
    let shape = marker_path(series, (6.0, 6.0), 4.0);
    format!(
        "<svg class=\"swatch\" aria-hidden=\"true\" viewBox=\"0 0 12 12\">\
         <path class=\"mark\" d=\"{shape}\"/></svg>"
    )
}

/// Shapes that are told apart without colour.
fn marker_path(series: usize, at: (f64, f64), r: f64) -> String {
    let (x, y) = at;
    let polygon = |points: &[(f64, f64)]| {
        let mut commands = String::new();
        for (i, (dx, dy)) in points.iter().enumerate() {
            let letter = if i == 0 { 'M' } else { 'L' };
            let _ =
                write!(commands, "{letter}{} {}", coordinate(x + dx * r), coordinate(y + dy * r));
        }
        commands.push('Z');
        commands
    };
    match series {
        0 => {
            let [left, mid, r2, d] = [x - r, y, r, 2.0 * r].map(coordinate);
            format!("M{left} {mid}a{r2} {r2} 0 1 0 {d} 0a{r2} {r2} 0 1 0 -{d} 0Z")
        }
        1 => polygon(&[(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
        2 => polygon(&[(0.0, -1.1), (1.05, 0.8), (-1.05, 0.8)]),
        3 => polygon(&[(0.0, -1.2), (1.2, 0.0), (0.0, 1.2), (-1.2, 0.0)]),
        4 => polygon(&[(0.0, 1.1), (1.05, -0.8), (-1.05, -0.8)]),
        5 => polygon(&[
            (-0.4, -1.1),
            (0.4, -1.1),
            (0.4, -0.4),
            (1.1, -0.4),
            (1.1, 0.4),
            (0.4, 0.4),
            (0.4, 1.1),
            (-0.4, 1.1),
            (-0.4, 0.4),
            (-1.1, 0.4),
            (-1.1, -0.4),
            (-0.4, -0.4),
        ]),
        6 => polygon(&[
            (-1.1, 0.0),
            (-0.55, -1.0),
            (0.55, -1.0),
            (1.1, 0.0),
            (0.55, 1.0),
            (-0.55, 1.0),
        ]),
        _ => polygon(&[(-1.1, -0.5), (1.1, -0.5), (1.1, 0.5), (-1.1, 0.5)]),
    }
}
