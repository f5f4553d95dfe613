//! What was used over the time of one case, as lines to be drawn under its requests.

use super::window::{Gpus, Looks, Window};
use crate::clock::Timestamp;
use crate::record::{ResourceRecord, RunData, StepRecord};
use crate::units::millis;

/// Looks over which processor time is averaged: the system counts it in steps
/// of 10 ms, which at 20 looks a second would be steps of a fifth of a processor.
const CPU_SPAN: usize = 4;

/// Name of the series of the KV pool's use.
pub const KV_USED: &str = "KV cache used";

/// What a series counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Whole processors.
    Processors,
    /// A share, 0 to 1.
    Share,
    /// Watts.
    Watts,
    /// Requests.
    Requests,
}

/// One quantity over time.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name.
    pub name: &'static str,
    /// What it counts in.
    pub unit: Unit,
    /// Instant in ms since the origin, and value; in order of time.
    pub points: Vec<(f64, f64)>,
}

/// The series of an engine, by its index in the manifest, from `origin` for
/// `until_ms`; those of fewer than two points are left out.
#[must_use]
pub fn between(run: &RunData, engine: usize, origin: Timestamp, until_ms: f64) -> Vec<Series> {
    let looks = Looks::new(run);
    let length = std::time::Duration::try_from_secs_f64(until_ms / 1e3).unwrap_or_default();
    let window = Window::between(run, &looks, Some(engine), origin, origin.plus(length));
    let gpus = window.gpus();
    let series = |name, unit, points| Series { name, unit, points };
    let timed = |of: &dyn Fn(&ResourceRecord) -> Option<f64>| window.timed(of);
    let mut found = vec![
        series(
            "memory (RSS)",
            Unit::Bytes,
            timed(&|look| Some(window.engine_process(look)?.rss_bytes as f64)),
        ),
        series("processors", Unit::Processors, processors(&window)),
        series("GPU memory", Unit::Bytes, timed(&|look| window.gpu_bytes_at(&gpus, look))),
        series("GPU busy", Unit::Share, timed(&|look| busy(&gpus, look))),
        series("GPU power", Unit::Watts, timed(&|look| watts(&gpus, look))),
    ];
    let index = u32::try_from(engine).unwrap_or(u32::MAX);
    let steps = || {
        let inside = |step: &&StepRecord| step.engine == index && window.holds(step.at_ns);
        run.steps.iter().filter(inside)
    };
    let at = |instant: Timestamp| millis(instant.since(origin));
    let mut kv: Vec<(f64, f64)> = steps()
        .filter_map(|step| {
            let all = step.num_used_blocks.saturating_add(step.num_free_blocks);
            (all > 0).then(|| (at(step.at_ns), step.num_used_blocks as f64 / all as f64))
        })
        .collect();
    let mut waiting: Vec<(f64, f64)> =
        steps().map(|step| (at(step.at_ns), step.num_waiting as f64)).collect();
    for (instant, word) in window.timed_words() {
        kv.extend(word.kv_usage.map(|share| (at(instant), share)));
        waiting.extend(word.num_waiting.map(|number| (at(instant), number as f64)));
    }
    found.push(series(KV_USED, Unit::Share, kv));
    // A queue that was never there needs no room.
    if waiting.iter().any(|(_, number)| *number > 0.0) {
        found.push(series("waiting", Unit::Requests, waiting));
    }
    found.retain(|series| series.points.len() > 1);
    found
}

/// Growth of processor time over a few looks, as processors.
fn processors(window: &Window<'_, '_>) -> Vec<(f64, f64)> {
    let used = window.timed(&|look| Some(window.engine_process(look)?.cpu_ns as f64));
    let rate = |pair: &[(f64, f64)]| {
        let ((early, before), (late, after)) = (*pair.first()?, *pair.last()?);
        let elapsed = late - early;
        (elapsed > 0.0 && after >= before).then(|| (late, (after - before) / 1e6 / elapsed))
    };
    used.windows(CPU_SPAN + 1).filter_map(rate).collect()
}

fn busy(gpus: &Gpus, look: &ResourceRecord) -> Option<f64> {
    let shares: Vec<f64> = look
        .gpus
        .iter()
        .filter(|sample| gpus.holds(sample.gpu))
        .filter_map(|sample| Some(f64::from(sample.utilization_percent?) / 100.0))
        .collect();
    crate::stats::distribution::mean(&shares)
}

fn watts(gpus: &Gpus, look: &ResourceRecord) -> Option<f64> {
    let counted = look.gpus.iter().filter(|sample| gpus.holds(sample.gpu));
    counted.filter_map(|sample| Some(f64::from(sample.power_mw?) / 1e3)).reduce(|a, b| a + b)
}
