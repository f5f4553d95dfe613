//! TTFT of every request, a row an engine: dots, the median and its interval.

use super::Page;
use super::axis::Axis;
use super::charts::{Frame, WIDTH};
use super::svg::{Anchor, Svg};
use crate::report::view::Experiment;
use crate::stats::latency::ttft_ms;
use crate::stats::summary::CaseSummary;
use crate::units::format_significant;

/// Height of the plot, shared by the rows within these bounds.
const PLOT: f64 = 204.0;
const ROW: (f64, f64) = (44.0, 64.0);
const TOP: f64 = 10.0;
/// Dots of a row; more would be a smear.
const MAX_DOTS: usize = 400;

/// Draws the experiment's requests; `None` where no token came.
pub(super) fn draw(page: &Page<'_>, experiment: &Experiment<'_>, id: &str) -> Option<String> {
    let rows: Vec<_> = experiment.cases.iter().map(|case| (*case, values(page, case))).collect();
    let all = || rows.iter().flat_map(|(_, values)| values.iter().copied());
    all().next()?;
    let number = f64::from(u32::try_from(rows.len()).ok()?);
    let height = (PLOT / number).clamp(ROW.0, ROW.1);
    let bottom = height.mul_add(number, TOP);
    let frame = Frame { left: 12.0, right: WIDTH - 14.0, top: TOP, bottom };
    let x = Axis::spanning(all(), frame.left, frame.right);
    let mut svg = Svg::new(WIDTH, bottom + 36.0);
    let title = if x.is_log() { "TTFT, ms, log scale" } else { "TTFT, ms" };
    frame.x_axis(&mut svg, &x, title, true);
    let mut told = Vec::new();
    let mut y = TOP;
    for (case, values) in &rows {
        row(&mut svg, page.series(&case.engine), case, values, &x, y);
        y += height;
        if let (Some(min), Some(p50), Some(max)) =
            (case.ttft_ms.min, case.ttft_ms.p50, case.ttft_ms.max)
        {
            let [min, p50, max] = [min, p50, max].map(format_significant);
            told.push(format!("{} median {p50}, from {min} to {max}", case.engine));
        } else {
            told.push(format!("{} none", case.engine));
        }
    }
    let title = format!("TTFT of every request, {}", experiment.name);
    Some(svg.finish(id, &title, &format!("In ms: {}.", told.join("; "))))
}

fn values(page: &Page<'_>, case: &CaseSummary) -> Vec<f64> {
    let requests = page.run.requests.iter();
    let of_case = requests.filter(|r| r.case == case.case && !r.warmup && r.outcome.is_ok());
    of_case.filter_map(ttft_ms).take(MAX_DOTS).collect()
}

fn row(svg: &mut Svg, series: usize, case: &CaseSummary, values: &[f64], x: &Axis, y: f64) {
    let middle = y + 29.0;
    svg.open(&format!("series s{series}"));
    let label = if values.is_empty() {
        format!("{}: no request completed", case.engine)
    } else {
        case.engine.clone()
    };
    svg.text("label", (x.at(0.0).max(12.0), y + 14.0), Anchor::Start, &label);
    if let Some(interval) = &case.ttft_ms.interval {
        let (low, high) = (x.at(interval.low), x.at(interval.high));
        let title = format!(
            "{}: 95 % interval of the median {}–{} ms",
            case.engine,
            format_significant(interval.low),
            format_significant(interval.high)
        );
        svg.rect("interval", (low, middle - 8.0), ((high - low).max(1.0), 16.0), &title);
    }
    // Dots that would cover each other are moved up and down in turn.
    let offsets = [0.0, -3.5, 3.5, -6.0, 6.0];
    for (i, value) in values.iter().enumerate() {
        let title = format!("{}: {} ms", case.engine, format_significant(*value));
        svg.marker(series, (x.at(*value), middle + offsets[i % offsets.len()]), 2.8, &title);
    }
    if let Some(p50) = case.ttft_ms.p50 {
        svg.line("median", (x.at(p50), middle - 10.0), (x.at(p50), middle + 10.0));
    }
    svg.close();
}
