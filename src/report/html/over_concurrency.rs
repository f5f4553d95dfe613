//! A metric over concurrency: a line an engine, points with their intervals.

use super::Page;
use super::axis::Axis;
use super::charts::{EndLabel, Frame, WIDTH, end_labels, short};
use super::svg::{Anchor, Svg};
use crate::report::view::Experiment;
use crate::stats::summary::{CaseSummary, Interval};
use crate::units::format_significant;

const HEIGHT: f64 = 264.0;
const FRAME: Frame = Frame { left: 40.0, right: 324.0, top: 24.0, bottom: 228.0 };

/// A value and its interval, where it has one.
type Estimate<'a> = (f64, Option<&'a Interval>);

/// A metric that may be drawn over concurrency.
pub(super) struct Metric {
    /// Name, as in the tables.
    pub(super) name: &'static str,
    /// Unit.
    pub(super) unit: &'static str,
    /// What to know when looking at it.
    pub(super) caption: &'static str,
    /// Its value in a case, with an interval where there is one.
    pub(super) of: fn(&CaseSummary) -> Option<Estimate<'_>>,
}

/// TTFT, decode rate and throughput.
pub(super) const METRICS: [Metric; 3] = [
    Metric {
        name: "TTFT p50",
        unit: "ms",
        caption: "Whiskers are 95 % intervals of the median; none below six requests.",
        of: |case| Some((case.ttft_ms.p50?, case.ttft_ms.interval.as_ref())),
    },
    Metric {
        name: "output of the case",
        unit: "tok/s",
        caption: "Output tokens of completed requests, first send to last token.",
        of: |case| Some((case.output_tokens_per_s?, None)),
    },
    Metric {
        name: "decode p50 per stream",
        unit: "tok/s",
        caption: "1 / TPOT of one stream beside the others; whiskers are 95 % intervals of the median.",
        of: |case| {
            let decode = &case.decode_tokens_per_s;
            Some((decode.p50?, decode.interval.as_ref()))
        },
    },
];

/// Draws a metric; `None` where no case has it.
pub(super) fn draw(
    page: &Page<'_>,
    experiment: &Experiment<'_>,
    metric: &Metric,
    id: &str,
) -> Option<String> {
    let entries = || experiment.cases.iter().filter_map(|case| Some((*case, (metric.of)(case)?)));
    entries().next()?;
    let values = entries().flat_map(|(_, (value, interval))| {
        let bounds = interval.map(|interval| [interval.low, interval.high]);
        bounds.into_iter().flatten().chain([value])
    });
    let y = Axis::spanning(values, FRAME.bottom, FRAME.top);
    let widest = f64::from(experiment.widest());
    let x = |concurrency: u32| {
        let share = (f64::from(concurrency) - 1.0) / (widest - 1.0).max(1.0);
        (FRAME.right - FRAME.left - 24.0).mul_add(share, FRAME.left + 12.0)
    };
    let mut svg = Svg::new(WIDTH, HEIGHT);
    let scale = if y.is_log() { ", log scale" } else { "" };
    FRAME.y_axis(&mut svg, &y, &format!("{}{scale}", metric.unit));
    svg.line("base", (FRAME.left, FRAME.bottom), (FRAME.right, FRAME.bottom));
    for concurrency in ticks(experiment) {
        let at = (x(concurrency), FRAME.bottom + 14.0);
        svg.text("tick", at, Anchor::Middle, &concurrency.to_string());
    }
    svg.text("axis", (FRAME.right, FRAME.bottom + 28.0), Anchor::End, "requests at once");
    let mut labels = Vec::new();
    let mut told = Vec::new();
    for engine in &page.run.manifest.engines {
        let name = &engine.spec.name;
        let series = page.series(name);
        let mut points: Vec<_> = entries().filter(|(case, _)| case.engine == *name).collect();
        points.sort_by_key(|(case, _)| case.concurrency);
        let (Some((first, from)), Some((last, to))) = (points.first(), points.last()) else {
            continue;
        };
        let place = |case: &CaseSummary, value: f64| (x(case.concurrency), y.at(value));
        svg.open(&format!("series s{series}"));
        let line: Vec<_> = points.iter().map(|(case, (value, _))| place(case, *value)).collect();
        svg.polyline("curve", &line);
        for (case, (value, interval)) in &points {
            let at = place(case, *value);
            if let Some(interval) = interval {
                // Beside each other, so that equal intervals of two engines are both seen.
                let x = at.0 + whisker_offset(series);
                whisker(&mut svg, x, y.at(interval.low), y.at(interval.high));
            }
            svg.marker(series, at, 3.4, &point_title(case, metric, *value, *interval));
        }
        svg.close();
        labels.push(EndLabel { series, y: place(last, to.0).1, text: short(name) });
        told.push(format!(
            "{name} from {} at C = {} to {} at C = {}",
            format_significant(from.0),
            first.concurrency,
            format_significant(to.0),
            last.concurrency
        ));
    }
    end_labels(&mut svg, labels, FRAME.right + 4.0, FRAME);
    let title = format!("{} over concurrency, {}", metric.name, experiment.name);
    Some(svg.finish(id, &title, &format!("In {}: {}.", metric.unit, told.join("; "))))
}

fn whisker_offset(series: usize) -> f64 {
    [0.0, -2.0, 2.0, -4.0, 4.0, -6.0, 6.0, 8.0][series % 8]
}

fn whisker(svg: &mut Svg, x: f64, low: f64, high: f64) {
    svg.line("whisker", (x, low), (x, high));
    for y in [low, high] {
        svg.line("whisker", (x - 2.5, y), (x + 2.5, y));
    }
}

fn point_title(
    case: &CaseSummary,
    metric: &Metric,
    value: f64,
    interval: Option<&Interval>,
) -> String {
    let bounds = interval.map_or_else(String::new, |interval| {
        format!(
            ", 95 % interval {}–{}",
            format_significant(interval.low),
            format_significant(interval.high)
        )
    });
    format!(
        "{}, C = {}: {} {} {}{bounds}, {} of {} ok",
        case.engine,
        case.concurrency,
        metric.name,
        format_significant(value),
        metric.unit,
        case.num_ok,
        case.n
    )
}

/// The concurrencies measured, thinned to what can be labelled.
fn ticks(experiment: &Experiment<'_>) -> Vec<u32> {
    let mut found: Vec<u32> = experiment.cases.iter().map(|case| case.concurrency).collect();
    found.sort_unstable();
    found.dedup();
    let every = found.len().div_ceil(12).max(1);
    found.into_iter().step_by(every).collect()
}
