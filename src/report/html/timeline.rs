//! Every request of a burst on one time axis: waiting, then tokens. A queue
//! before a few slots shows as a staircase; what was used lies below.

use std::fmt::Write;

use super::Page;
use super::axis::Axis;
use super::charts::{Frame, WIDTH};
use super::escape::coordinate;
use super::lanes::Lanes;
use super::svg::{Anchor, Svg};
use crate::clock::Timestamp;
use crate::record::{Outcome, RequestRecord};
use crate::report::numbers::write_latency;
use crate::stats::distribution::median;
use crate::stats::latency::{itl_ms, ms, token_offsets};
use crate::stats::summary::CaseSummary;

const TOP: f64 = 8.0;
/// Requests drawn; a caption says so where there are more.
pub(super) const MAX_ROWS: usize = 40;
/// Nearest that token marks usually are, in units of the drawing.
const MIN_MARK_GAP: f64 = 2.0;

/// Longest stride; beyond it marks touch, which a damaged or huge record may make them.
const MAX_STRIDE: u32 = 1 << 12;

/// A request on the case's time axis, in ms since the first release.
struct Bar<'a> {
    request: &'a RequestRecord,
    sent: f64,
    first: Option<f64>,
    done: f64,
}

/// The end of a case on its time axis, in ms; for an axis shared by engines.
pub(super) fn extent(page: &Page<'_>, case: &CaseSummary) -> f64 {
    bars(page, case).iter().map(|bar| bar.done).fold(0.0, f64::max)
}

/// Draws one engine's case on an axis from 0 to `until` ms.
pub(super) fn draw(page: &Page<'_>, case: &CaseSummary, until: f64, id: &str) -> Option<String> {
    let bars = bars(page, case);
    let shown = &bars[..bars.len().min(MAX_ROWS)];
    if shown.is_empty() {
        return None;
    }
    let pitch = if shown.len() > 20 { 9.0 } else { 14.0 };
    let rows_end = TOP + pitch * f64::from(u32::try_from(shown.len()).ok()?);
    let lanes = Lanes::of(page, &case.engine, origin(page, case), until);
    let bottom = rows_end + lanes.height();
    let frame = Frame { left: 30.0, right: WIDTH - 12.0, top: TOP, bottom };
    let seconds = until >= 2_000.0;
    let (per_ms, unit) = if seconds { (1e-3, "s") } else { (1.0, "ms") };
    let x = Axis::linear(until * per_ms, frame.left, frame.right);
    let mut svg = Svg::new(WIDTH, bottom + 32.0);
    frame.x_axis(&mut svg, &x, &format!("{unit} since the release"), true);
    let stride = stride(shown, x.at(per_ms) - x.at(0.0));
    svg.open(&format!("series s{}", page.series(&case.engine)));
    for (i, bar) in shown.iter().enumerate() {
        let y = TOP + pitch * f64::from(u32::try_from(i).ok()?);
        draw_bar(&mut svg, bar, (y, pitch - 3.0), stride, &|ms| x.at(ms * per_ms));
    }
    lanes.draw(&mut svg, Frame { bottom: rows_end, ..frame }, &|ms| x.at(ms * per_ms));
    svg.close();
    let title = format!("Requests over time, {} in {}", case.engine, case.experiment);
    Some(svg.finish(id, &title, &(describe(case, &bars) + &lanes.describe())))
}

fn describe(case: &CaseSummary, bars: &[Bar<'_>]) -> String {
    let firsts = || bars.iter().filter_map(|bar| bar.first);
    let (earliest, latest) = (firsts().reduce(f64::min), firsts().reduce(f64::max));
    let mut text = match (earliest, latest) {
        (Some(earliest), Some(latest)) => format!(
            "{} requests; first tokens from {} to {} after the release.",
            bars.len(),
            write_latency(earliest),
            write_latency(latest)
        ),
        _ => format!("{} requests; no token came.", bars.len()),
    };
    if let Some(stair) = &case.staircase {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            " A staircase: {} at a time, each step {} high.",
            stair.slots,
            write_latency(stair.step_ms)
        );
    }
    text
}

fn requests<'a>(
    page: &Page<'a>,
    case: &CaseSummary,
) -> impl Iterator<Item = &'a RequestRecord> + use<'a> {
    let number = case.case;
    page.run.requests.iter().filter(move |r| r.case == number && !r.warmup)
}

/// The first release of a case.
fn origin(page: &Page<'_>, case: &CaseSummary) -> Timestamp {
    requests(page, case).map(|request| request.intended_at_ns).min().unwrap_or_default()
}

/// Measured requests of a case, those with the earliest first token first,
/// those without one last.
fn bars<'a>(page: &Page<'a>, case: &CaseSummary) -> Vec<Bar<'a>> {
    let origin = origin(page, case);
    let mut bars: Vec<Bar<'a>> = requests(page, case)
        .filter_map(|request| {
            let sent = crate::units::millis(request.sent_at_ns?.since(origin));
            Some(Bar {
                request,
                sent,
                first: token_offsets(request).next().map(|offset| sent + ms(offset)),
                done: sent + ms(request.done_ns),
            })
        })
        .collect();
    bars.sort_by(|a, b| {
        let key = |bar: &Bar<'_>| bar.first.unwrap_or(f64::INFINITY);
        key(a).total_cmp(&key(b)).then(a.request.index.cmp(&b.request.index))
    });
    bars
}

/// Every how many token events one is marked, the same in all rows: leaving
/// out whatever is near would draw patterns that are not in the data.
fn stride(bars: &[Bar<'_>], units_per_ms: f64) -> usize {
    let gap = median(bars.iter().flat_map(|bar| itl_ms(bar.request))).unwrap_or(0.0) * units_per_ms;
    (1..MAX_STRIDE).find(|k| gap * f64::from(*k) >= MIN_MARK_GAP).unwrap_or(MAX_STRIDE) as usize
}

fn draw_bar(
    svg: &mut Svg,
    bar: &Bar<'_>,
    (y, height): (f64, f64),
    stride: usize,
    x: &dyn Fn(f64) -> f64,
) {
    let index = bar.request.index;
    if height > 8.0 {
        svg.text("tick", (24.0, y + height - 2.0), Anchor::End, &format!("#{index}"));
    }
    let failed = !bar.request.outcome.is_ok();
    let begins = bar.first.unwrap_or(bar.done);
    let title = format!("#{index}: {} until the first token", write_latency(begins - bar.sent));
    let width = x(begins) - x(bar.sent);
    svg.rect("wait", (x(bar.sent), y), (width, height), &title);
    if let Some(first) = bar.first {
        let title = format!("#{index}: tokens for {}", write_latency(bar.done - first));
        let class = if failed { "decode failed" } else { "decode" };
        svg.rect(class, (x(first), y), ((x(bar.done) - x(first)).max(1.0), height), &title);
        let ticks = marks(bar, (y, height), stride, x);
        if !ticks.is_empty() {
            svg.path("token", &ticks);
        }
    }
    if let Outcome::Error { class, .. } = &bar.request.outcome {
        let at = x(bar.done) + 4.0;
        svg.text("failure", (at, y + height - 2.0), Anchor::Start, &format!("✕ {class}"));
    }
}

/// Marks of token events, every `stride`-th; a stall is a stretch without.
fn marks(bar: &Bar<'_>, (y, height): (f64, f64), stride: usize, x: &dyn Fn(f64) -> f64) -> String {
    let mut commands = String::new();
    for offset in token_offsets(bar.request).skip(1).step_by(stride) {
        // Writing to a string does not fail.
        let _ = write!(
            commands,
            "M{} {}v{}",
            coordinate(x(bar.sent + ms(offset))),
            coordinate(height.mul_add(0.25, y)),
            coordinate(height * 0.5)
        );
    }
    commands
}
