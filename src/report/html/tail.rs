//! The distribution of gaps between tokens: for each engine the share of gaps
//! longer than a length, both logarithmic, so that rare stalls are seen that a
//! median hides. The complement of the empirical distribution function.

use std::fmt::Write;

use super::Page;
use super::axis::Axis;
use super::charts::{EndLabel, Frame, WIDTH, end_labels, short};
use super::escape::coordinate;
use super::svg::{Anchor, Svg};
use crate::report::view::Experiment;
use crate::stats::distribution::percentile;
use crate::stats::latency::itl_ms;
use crate::units::format_significant;

const HEIGHT: f64 = 264.0;
const FRAME: Frame = Frame { left: 58.0, right: 322.0, top: 24.0, bottom: 228.0 };
/// Points of a curve; more would not be seen.
const POINTS: u32 = 160;
/// Shares with a grid line; the lowest one that is needed ends the axis.
const SHARES: [(f64, &str); 6] = [
    (1.0, "all"),
    (0.1, "1 in 10"),
    (0.01, "1 in 100"),
    (1e-3, "1 000"),
    (1e-4, "10 000"),
    (1e-5, "100 000"),
];

/// Draws the gaps at the experiment's highest concurrency; `None` where there are none.
pub(super) fn draw(page: &Page<'_>, experiment: &Experiment<'_>, id: &str) -> Option<String> {
    let curves = gaps(page, experiment);
    let most = curves.iter().map(|(_, gaps)| gaps.len()).max()?;
    // The shortest gaps of all would stretch the axis for nothing.
    let ends = curves
        .iter()
        .flat_map(|(_, gaps)| [percentile(gaps, 0.02), gaps.last().copied()].into_iter().flatten());
    let x = Axis::spread(ends, FRAME.left, FRAME.right);
    let (shares, y) = share_axis(most);
    let mut svg = Svg::new(WIDTH, HEIGHT);
    for (share, label) in shares {
        svg.line("grid", (FRAME.left, y(*share)), (FRAME.right, y(*share)));
        svg.text("tick", (FRAME.left - 6.0, y(*share) + 3.5), Anchor::End, label);
    }
    svg.text("axis", (4.0, FRAME.top - 11.0), Anchor::Start, "share of gaps that are longer");
    let title = if x.is_log() { "gap, ms, log scale" } else { "gap, ms" };
    FRAME.x_axis(&mut svg, &x, title, true);
    let mut labels = Vec::new();
    let mut told = Vec::new();
    for (engine, gaps) in &curves {
        let series = page.series(engine);
        let at = |q: f64| percentile(gaps, q).unwrap_or(0.0);
        svg.open(&format!("series s{series}"));
        svg.path("curve", &curve(gaps, &x, &y));
        for (q, share) in [(0.5, 0.5), (0.9, 0.1), (0.99, 0.01)] {
            let title = format!(
                "{engine}: {:.0} % of gaps are {} ms or less",
                q * 100.0,
                format_significant(at(q))
            );
            svg.marker(series, (x.at(at(q)), y(share)), 3.4, &title);
        }
        svg.close();
        labels.push(EndLabel { series, y: FRAME.top + 16.0, text: short(engine) });
        told.push(format!(
            "{engine} {} at the median, {} at 90 %, {} at most, of {} gaps",
            format_significant(at(0.5)),
            format_significant(at(0.9)),
            format_significant(at(1.0)),
            gaps.len()
        ));
    }
    end_labels(&mut svg, labels, FRAME.right + 8.0, FRAME);
    let title = format!("Gaps between tokens, {} at C = {}", experiment.name, experiment.widest());
    Some(svg.finish(id, &title, &format!("In ms: {}.", told.join("; "))))
}

/// Engines with their sorted gaps.
fn gaps<'a>(page: &Page<'_>, experiment: &Experiment<'a>) -> Vec<(&'a str, Vec<f64>)> {
    let widest = experiment.cases.iter().filter(|case| case.concurrency == experiment.widest());
    let mut curves = Vec::new();
    for case in widest {
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
    curves
}

/// The grid lines down to one gap of `most`, and where a share lies.
fn share_axis(most: usize) -> (&'static [(f64, &'static str)], impl Fn(f64) -> f64) {
    let needed = 1 + most.max(10).ilog10() as usize;
    let shares = &SHARES[..needed.clamp(2, SHARES.len())];
    #[expect(clippy::cast_precision_loss, reason = "counts of gaps are far below 2^52")]
    let decades = (most.max(10) as f64).log10();
    let y = move |share: f64| {
        let depth = (-share.log10() / decades).clamp(0.0, 1.0);
        (FRAME.bottom - FRAME.top).mul_add(depth, FRAME.top)
    };
    (shares, y)
}

/// Points at shares that are evenly spaced on the axis, down to the single
/// longest gap, as steps: a corner is a gap that occurred, never a blend of two.
#[expect(clippy::cast_precision_loss, reason = "counts of gaps are far below 2^52")]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share between 1/n and 1 times n lies between 1 and n"
)]
fn curve(gaps: &[f64], x: &Axis, y: &impl Fn(f64) -> f64) -> String {
    let n = gaps.len();
    let mut commands = String::new();
    let mut drawn = 0;
    for i in 0..=POINTS {
        let share = (1.0 / n as f64).powf(f64::from(i) / f64::from(POINTS));
        let longer = ((share * n as f64).round() as usize).clamp(1, n);
        if longer == drawn {
            continue;
        }
        drawn = longer;
        let at = coordinate(x.at(gaps[n - longer]));
        let height = coordinate(y(longer as f64 / n as f64));
        // Down where the shorter gaps end, then along to the next. Writing to a string does not fail.
        let _ = if i == 0 {
            write!(commands, "M{at} {height}")
        } else {
            write!(commands, "V{height}H{at}")
        };
    }
    commands
}
