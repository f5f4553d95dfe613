//! Every number of the summary in long form, for spreadsheets and data frames:
//! one row a case and metric, an empty field where there is no number.

use std::fmt::{self, Write};

use crate::stats::Summary;
use crate::stats::kv_sweep::Point;
use crate::stats::resources::CaseResources;
use crate::stats::summary::{CaseSummary, Distribution, Interval};

/// The columns, in order: what identifies a row, then its numbers.
pub const COLUMNS: [&str; 26] = [
    "case",
    "engine",
    "experiment",
    "concurrency",
    "round",
    "cold",
    "invalid",
    "requests",
    "completed",
    "metric",
    "unit",
    "n",
    "value",
    "mean",
    "p50",
    "p50_low",
    "p50_high",
    "p90",
    "p90_low",
    "p90_high",
    "p99",
    "p99_low",
    "p99_high",
    "min",
    "max",
    "reason",
];

/// Fields from `n` on.
type Numbers = [String; 15];

/// Writes a header and the rows.
///
/// # Errors
/// Those of `out`.
pub fn render(summary: &Summary, out: &mut impl Write) -> fmt::Result {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    // Writing to memory fails only for rows of unequal length, and fields are counted by type.
    writer.write_record(COLUMNS).map_err(|_| fmt::Error)?;
    let single = summary.cases.iter().filter(|case| !case.again);
    for case in single.chain(&summary.over_rounds) {
        for (metric, unit, distribution) in distributions(case) {
            let fields = statistics(distribution);
            writer.write_record(row(case, metric, unit, fields)).map_err(|_| fmt::Error)?;
        }
        for (metric, unit, value) in values(case) {
            let mut fields = Numbers::default();
            fields[1] = number(value);
            if metric == "steady_output_tokens_per_s" {
                fields[14] = case.steady_absent.clone().unwrap_or_default();
            }
            writer.write_record(row(case, &metric, unit, fields)).map_err(|_| fmt::Error)?;
        }
        let is_shown = summary.over_rounds.is_empty() || case.num_rounds.is_some();
        let points = summary.kv_sweep.iter().flat_map(|sweep| &sweep.points);
        for point in points.filter(|point| is_shown && point.case == Some(case.case)) {
            for (metric, unit, value) in point_values(point) {
                let mut fields = Numbers::default();
                fields[1] = number(value);
                let reason = point.absent.as_ref().or_else(|| point.reasons.get(metric));
                fields[14] = reason.filter(|_| value.is_none()).cloned().unwrap_or_default();
                writer.write_record(row(case, metric, unit, fields)).map_err(|_| fmt::Error)?;
            }
        }
        let used = summary.resources.iter().flat_map(|resources| &resources.cases);
        let is_single = case.num_rounds.is_none();
        for used in used.filter(|used| is_single && used.case == case.case) {
            for (metric, unit, value) in resource_values(used) {
                let mut fields = Numbers::default();
                fields[1] = number(value);
                writer.write_record(row(case, metric, unit, fields)).map_err(|_| fmt::Error)?;
            }
        }
    }
    let bytes = writer.into_inner().map_err(|_| fmt::Error)?;
    out.write_str(&String::from_utf8(bytes).map_err(|_| fmt::Error)?)
}

fn distributions(case: &CaseSummary) -> Vec<(&'static str, &'static str, &Distribution)> {
    let load = &case.under_load;
    let of_load = [
        ("ttft_from_intended", load.ttft_from_intended_ms.as_ref()),
        ("e2el_from_intended", load.e2el_from_intended_ms.as_ref()),
        ("client_delay", load.client_delay_ms.as_ref()),
    ];
    let all = [
        ("ttft", "ms", &case.ttft_ms),
        ("tpot", "ms", &case.tpot_ms),
        ("itl", "ms", &case.itl_ms),
        ("e2el", "ms", &case.e2el_ms),
        ("decode_tokens_per_s", "1/s", &case.decode_tokens_per_s),
    ];
    let of_load = of_load.into_iter().filter_map(|(name, of)| Some((name, "ms", of?)));
    all.into_iter().chain(of_load).collect()
}

#[expect(clippy::cast_precision_loss, reason = "request counts are far below 2^52")]
fn values(case: &CaseSummary) -> Vec<(String, &'static str, Option<f64>)> {
    let mut values: Vec<(String, &'static str, Option<f64>)> = [
        ("output_tokens_per_s", "1/s", case.output_tokens_per_s),
        ("steady_output_tokens_per_s", "1/s", case.steady_output_tokens_per_s),
        ("requests_per_s", "1/s", case.requests_per_s),
        ("cold_ttft", "ms", case.cold_ttft_ms),
        ("send_spread", "us", case.send_spread_us),
        ("tokens_per_event", "1", case.tokens_per_event),
        ("mean_prompt_tokens", "1", case.mean_prompt_tokens),
        ("mean_output_tokens", "1", case.mean_output_tokens),
        ("client_cpu_share", "1", case.client_cpu_share),
        ("staircase_slots", "1", case.staircase.as_ref().map(|stair| f64::from(stair.slots))),
        ("staircase_step", "ms", case.staircase.as_ref().map(|stair| stair.step_ms)),
    ]
    .map(|(metric, unit, value)| (metric.to_owned(), unit, value))
    .into();
    if let Some(open) = &case.under_load.open_loop {
        for (metric, unit, value) in [
            ("offered_per_s", "1/s", open.offered_per_s),
            ("achieved_per_s", "1/s", open.achieved_per_s),
            ("peak_in_flight", "1", Some(open.peak_in_flight as f64)),
            ("held", "1", Some(open.num_held as f64)),
        ] {
            values.push((metric.to_owned(), unit, value));
        }
    }
    if let Some(goodput) = &case.under_load.goodput {
        values.push(("goodput_per_s".to_owned(), "1/s", goodput.per_s));
        values.push(("goodput_share".to_owned(), "1", Some(goodput.share)));
    }
    for (class, count) in &case.errors {
        values.push((format!("errors_{class}"), "1", Some(*count as f64)));
    }
    values
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn resource_values(used: &CaseResources) -> [(&'static str, &'static str, Option<f64>); 14] {
    let whole = |count: Option<u64>| count.map(|count| count as f64);
    [
        ("rss_peak", "B", used.rss_bytes.map(|level| level.peak)),
        ("rss_median", "B", used.rss_bytes.map(|level| level.median)),
        ("cpu_share", "1", used.cpu_share),
        ("gpu_memory_peak", "B", used.gpu_bytes.map(|level| level.peak)),
        ("gpu_memory_median", "B", used.gpu_bytes.map(|level| level.median)),
        ("gpu_utilization", "%", used.gpu_utilization_percent),
        ("power", "W", used.power_w),
        ("energy", "J", used.energy_j),
        ("energy_per_output_token", "J", used.energy_per_output_token_j),
        ("kv_usage_peak", "1", used.kv_usage.map(|level| level.peak)),
        ("peak_waiting", "1", whole(used.peak_waiting)),
        ("preemptions", "1", whole(used.preemptions)),
        ("prefix_queries", "1", whole(used.prefix_queries)),
        ("prefix_hits", "1", whole(used.prefix_hits)),
    ]
}

/// What a point of a sweep over KV settings adds to its case.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn point_values(point: &Point) -> [(&'static str, &'static str, Option<f64>); 15] {
    let whole = |count: Option<u64>| count.map(|count| count as f64);
    [
        ("num_blocks", "1", whole(point.num_blocks)),
        ("block_size", "1", whole(point.block_size)),
        ("kv_tokens", "1", whole(point.kv_tokens)),
        ("num_preemptions", "1", whole(point.num_preemptions)),
        ("peak_kv_use", "1", point.peak_kv_use),
        ("mean_kv_use", "1", point.mean_kv_use),
        ("waste_share", "1", point.waste_share),
        ("peak_waste_slots", "1", whole(point.peak_waste_slots)),
        ("prefix_hit_share", "1", point.prefix_hit_share),
        ("mean_running", "1", point.mean_running),
        ("fits", "1", whole(point.fits)),
        ("predicted_tokens_per_s", "1/s", point.predicted_tokens_per_s),
        ("predicted_ttft_ms_p50", "ms", point.predicted_ttft_ms_p50),
        ("predicted_running", "1", point.predicted_running),
        ("predicted_preemptions", "1", whole(point.predicted_preemptions)),
    ]
}

fn statistics(distribution: &Distribution) -> Numbers {
    let low = |interval: &Option<Interval>| number(interval.as_ref().map(|i| i.low));
    let high = |interval: &Option<Interval>| number(interval.as_ref().map(|i| i.high));
    let mut reasons: Vec<String> = Vec::new();
    for (field, reason) in &distribution.reasons {
        // The interval of a percentile that is absent itself is no news.
        if !field.ends_with("_interval") {
            reasons.push(format!("{field}: {reason}"));
        }
    }
    [
        distribution.n.to_string(),
        String::new(),
        number(distribution.mean),
        number(distribution.p50),
        low(&distribution.interval),
        high(&distribution.interval),
        number(distribution.p90),
        low(&distribution.p90_interval),
        high(&distribution.p90_interval),
        number(distribution.p99),
        low(&distribution.p99_interval),
        high(&distribution.p99_interval),
        number(distribution.min),
        number(distribution.max),
        reasons.join("; "),
    ]
}

fn row(case: &CaseSummary, metric: &str, unit: &str, rest: Numbers) -> Vec<String> {
    let mut row = vec![
        case.case.to_string(),
        case.engine.clone(),
        case.experiment.clone(),
        case.concurrency.to_string(),
        case.num_rounds.map_or_else(|| case.round.to_string(), |_| "all".to_owned()),
        case.cold.to_string(),
        case.invalid.iter().map(|invalid| invalid.reason.as_str()).collect::<Vec<_>>().join("; "),
        case.n.to_string(),
        case.num_ok.to_string(),
        metric.to_owned(),
        unit.to_owned(),
    ];
    row.extend(rest);
    row
}

/// The shortest digits that read back to the same number; empty for none.
fn number(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}
