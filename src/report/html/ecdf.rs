//! The distribution of gaps between tokens: for each engine the share of gaps
//! at or below a length. Shows stalls that a median hides.

use super::Page;
use super::axis::Axis;
use super::charts::{EndLabel, Frame, WIDTH, end_labels, short};
use super::svg::{Anchor, Svg};
use crate::report::view::Experiment;
use crate::stats::distribution::percentile;
use crate::stats::latency::itl_ms;
use crate::units::format_significant;

const HEIGHT: f64 = 264.0;
const FRAME: Frame = Frame { left: 40.0, right: 340.0, top: 24.0, bottom: 228.0 };
/// Points of a curve; more would not be seen.
const POINTS: u32 = 160;

/// Draws the gaps at the experiment's highest concurrency; `None` where there are none.
pub(super) fn draw(page: &Page<'_>, experiment: &Experiment<'_>, id: &str) -> Option<String> {
    let mut curves = Vec::new();
    for case in experiment.cases.iter().filter(|case| case.concurrency == experiment.widest()) {
        let requests = page.run.requests.iter().filter(|request| {
            request.case == case.case && !request.warmup && request.outcome.is_ok()
        });
        // A gap of nothing, two events of one read, has no place on a logarithm.
        let mut gaps: Vec<f64> = requests.flat_map(itl_ms).map(|gap| gap.max(1e-3)).collect();
        gaps.sort_by(f64::total_cmp);
        if gaps.len() > 1 {
            curves.push((case.engine.as_str(), gaps));
        }
    }
    if curves.is_empty() {
        return None;
    }
    // Half a percent at each end is left to the curve's flat parts.
    let ends = curves.iter().flat_map(|(_, gaps)| {
        [percentile(gaps, 0.005), gaps.last().copied()].into_iter().flatten()
    });
    let x = Axis::spanning(ends, FRAME.left, FRAME.right);
    let y = Axis::linear(1.0 / 1.05, FRAME.bottom, FRAME.top);
    let mut svg = Svg::new(WIDTH, HEIGHT);
    for (share, label) in
        [(0.0, "0 %"), (0.25, ""), (0.5, "50 %"), (0.75, ""), (0.9, "90 %"), (1.0, "100 %")]
    {
        svg.line("grid", (FRAME.left, y.at(share)), (FRAME.right, y.at(share)));
        svg.text("tick", (FRAME.left - 6.0, y.at(share) + 3.5), Anchor::End, label);
    }
    svg.text("axis", (4.0, FRAME.top - 11.0), Anchor::Start, "share of gaps");
    let title = if x.is_log() { "gap in ms or less, log scale" } else { "gap in ms or less" };
    FRAME.x_axis(&mut svg, &x, title, true);
    let mut labels = Vec::new();
    let mut told = Vec::new();
    for (engine, gaps) in &curves {
        let series = page.series(engine);
        svg.open(&format!("series s{series}"));
        svg.path("curve", &curve(gaps, &x, &y));
        let at = |q: f64| percentile(gaps, q).unwrap_or(0.0);
        for q in [0.5, 0.9] {
            let title = format!(
                "{engine}: {:.0} % of gaps are {} ms or less",
                q * 100.0,
                format_significant(at(q))
            );
            svg.marker(series, (x.at(at(q)), y.at(q)), 3.4, &title);
        }
        svg.close();
        labels.push(EndLabel { series, y: FRAME.top + 20.0, text: short(engine) });
        told.push(format!(
            "{engine} {} at the median, {} at 90 %, {} at most, of {} gaps",
            format_significant(at(0.5)),
            format_significant(at(0.9)),
            format_significant(at(1.0)),
            gaps.len()
        ));
    }
    // In the order of the medians, so that the labels read as the curves do.
    labels.sort_by_key(|label| label.series);
    end_labels(&mut svg, labels, FRAME.right + 8.0, FRAME);
    let title = format!("Gaps between tokens, {} at C = {}", experiment.name, experiment.widest());
    Some(svg.finish(id, &title, &format!("In ms: {}.", told.join("; "))))
}

fn curve(gaps: &[f64], x: &Axis, y: &Axis) -> String {
    let mut commands = String::new();
    for i in 0..=POINTS {
        let q = f64::from(i) / f64::from(POINTS);
        let gap = percentile(gaps, q).unwrap_or(0.0);
        let letter = if i == 0 { 'M' } else { 'L' };
        let (px, py) = (super::escape::coordinate(x.at(gap)), super::escape::coordinate(y.at(q)));
        commands.push_str(&format!("{letter}{px} {py}"));
    }
    commands
}
