//! Tables of sweeps over KV settings: a row a point, measured beside predicted,
//! and what follows for the size of the pool below.

use std::collections::BTreeMap;

use crate::simulation::step_time::StepTimeSource;
use crate::stats::kv_sweep::{Basis, KvSweep, Point, SUFFICIENT};
use crate::units::{format_bytes, format_significant};

use super::numbers::{Scale, write_latency};
use super::table::{Cell, Column, Table};

/// A table a sweep.
#[must_use]
pub fn tables(sweeps: &[KvSweep]) -> Vec<Table> {
    sweeps.iter().map(table).collect()
}

fn table(sweep: &KvSweep) -> Table {
    let measured = || sweep.points.iter().filter(|point| point.absent.is_none());
    let ttft = |point: &Point| [point.ttft_ms_p50, point.predicted_ttft_ms_p50];
    let ttft = Scale::of(measured().flat_map(ttft).flatten());
    let mut table = Table {
        caption: format!("{}: {}", title(sweep), line(sweep)),
        columns: vec![
            Column::words("point"),
            Column::numbers("pool", "blocks", 0),
            Column::numbers("pool", "tokens", 7),
            Column::numbers("output", "tok/s", 0),
            Column::numbers("predicted", "tok/s", 0),
            Column::numbers("TTFT", &format!("p50 {}", ttft.unit), 0),
            Column::numbers("predicted", &format!("TTFT {}", ttft.unit), 4),
            Column::numbers("running", "mean", 3),
            Column::numbers("fit", "", 5),
            Column::numbers("preempted", "", 0),
            Column::numbers("predicted", "preempted", 0),
            Column::numbers("KV used", "peak %", 1),
            Column::numbers("KV used", "mean %", 2),
            Column::numbers("waste", "%", 0),
            Column::numbers("prefix hits", "%", 6),
            Column::numbers("memory", "as told", 8),
        ],
        rows: sweep.points.iter().map(|point| row(sweep, point, ttft)).collect(),
        notes: notes(sweep),
        continues: false,
    };
    table.drop_empty_columns();
    table
}

fn row(sweep: &KvSweep, point: &Point, ttft: Scale) -> Vec<Cell> {
    let cell = |field: &str, text: Option<String>| {
        let why = point.absent.as_ref().or_else(|| point.reasons.get(field));
        Cell::or_absent(text, why.map_or("not measured", String::as_str))
    };
    let number = |field, value: Option<f64>| cell(field, value.map(format_significant));
    let whole = |field, value: Option<u64>| cell(field, value.map(|value| value.to_string()));
    let percent =
        |field, value: Option<f64>| cell(field, value.map(|share| write_share(share * 100.0)));
    vec![
        Cell::new(point_name(sweep, point)),
        whole("num_blocks", point.num_blocks),
        whole("kv_tokens", point.kv_tokens),
        number("output_tokens_per_s", point.output_tokens_per_s),
        number("predicted_tokens_per_s", point.predicted_tokens_per_s),
        cell("ttft_ms_p50", point.ttft_ms_p50.map(|ms| ttft.write(ms))),
        cell("predicted_ttft_ms_p50", point.predicted_ttft_ms_p50.map(|ms| ttft.write(ms))),
        number("mean_running", point.mean_running),
        whole("predicted_tokens_per_s", point.fits),
        whole("num_preemptions", point.num_preemptions),
        whole("predicted_preemptions", point.predicted_preemptions),
        percent("peak_kv_use", point.peak_kv_use),
        percent("mean_kv_use", point.mean_kv_use),
        percent("waste_share", point.waste_share),
        percent("prefix_hit_share", point.prefix_hit_share),
        cell("model_bytes", point.model_bytes.map(format_bytes)),
    ]
}

/// Percent with three digits, and a plain zero.
fn write_share(percent: f64) -> String {
    if percent == 0.0 { "0".to_owned() } else { format_significant(percent) }
}

/// The engine, the load, and what all points of the curve share.
#[must_use]
pub fn title(sweep: &KvSweep) -> String {
    let settings = words(&sweep.settings);
    let settings = if settings.is_empty() { settings } else { format!(", {settings}") };
    format!("{}{settings}, {}", sweep.engine, sweep.experiment)
}

/// What tells a point from the others of its curve: `kv_blocks=64`.
#[must_use]
pub fn point_name(sweep: &KvSweep, point: &Point) -> String {
    let own = |(key, _): &(&String, &String)| !sweep.settings.contains_key(*key);
    let own: BTreeMap<String, String> =
        point.settings.iter().filter(own).map(|(k, v)| (k.clone(), v.clone())).collect();
    words(&own)
}

fn words(settings: &BTreeMap<String, String>) -> String {
    settings.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

/// The name of a point, by its engine's.
#[must_use]
pub fn named(sweep: &KvSweep, engine: &str) -> String {
    let point = sweep.points.iter().find(|point| point.engine == engine);
    point.map_or_else(|| engine.to_owned(), |point| point_name(sweep, point))
}

/// `kv_blocks=64 is the smallest pool that keeps 95 % of the throughput, as predicted`.
#[must_use]
pub fn line(sweep: &KvSweep) -> String {
    let share = SUFFICIENT * 100.0;
    let predicted = sweep.predicted_sufficient.as_ref();
    match (&sweep.smallest_sufficient, predicted) {
        (None, _) => match &sweep.reason {
            Some(reason) => reason.clone(),
            None => format!(
                "the largest pool does not give {share} % of the best throughput, so that its size \
                 is not what decides here, or --rounds are too few"
            ),
        },
        (Some(found), Some(predicted)) if found == predicted => format!(
            "{} is the smallest pool that keeps {share} % of the throughput, as predicted",
            named(sweep, found)
        ),
        (Some(found), predicted) => format!(
            "{} is the smallest pool that keeps {share} % of the throughput; predicted was {}",
            named(sweep, found),
            predicted.map_or_else(|| "none".to_owned(), |predicted| named(sweep, predicted))
        ),
    }
}

fn notes(sweep: &KvSweep) -> Vec<String> {
    let mut notes = Vec::new();
    for point in &sweep.points {
        // What was not measured at all stands among all that was not.
        if let Some(reason) = point.absent.as_ref().filter(|_| point.case.is_some()) {
            notes.push(format!("{}: {reason}", point_name(sweep, point)));
        }
    }
    if let Some(basis) = &sweep.basis {
        notes.push(told_basis(sweep, basis));
    } else if let Some(why) =
        sweep.points.iter().find_map(|p| p.reasons.get("predicted_tokens_per_s"))
    {
        notes.push(format!("nothing is predicted: {why}"));
    }
    notes
}

fn told_basis(sweep: &KvSweep, basis: &Basis) -> String {
    let steps = match &basis.step_times {
        StepTimeSource::Fitted { num_steps, mean_error, .. } => format!(
            "step times fitted to its {num_steps} steps ({} % off on average),",
            format_significant(mean_error * 100.0)
        ),
        StepTimeSource::Roofline { gpu, .. } => format!("step times of a roofline of {gpu},"),
        StepTimeSource::Equal { step_ms, reason } => {
            format!("steps that all take {}: {reason};", write_latency(*step_ms))
        }
    };
    let mut told = format!(
        "predicted by a simulation of the {} requests of {} on each pool, with {steps} times \
         stretched by {}, so that its throughput is the measured one",
        basis.num_requests,
        named(sweep, &basis.point),
        format_significant(basis.simulated_over_measured)
    );
    if !basis.assumed.is_empty() {
        told += &format!("; assumed, since the engine does not tell: {}", words(&basis.assumed));
    }
    told
}
