//! A simulation on a page: what was assumed first, then what came of it. Every
//! heading says that nothing of it was measured.

use super::compared::Sheet;
use super::numbers::{Scale, reason};
use super::table::{Cell, Column, Table};
use crate::simulation::capacity::Capacity;
use crate::simulation::step_time::StepTimeSource;
use crate::simulation::summary::{LoadFacts, Simulated};
use crate::stats::summary::Distribution;
use crate::units::{format_bytes, format_significant};

/// Rows of the table over time: neighbours of a longer series are put together.
const MAX_ROWS: usize = 12;

/// The page.
#[must_use]
pub fn sheet(simulated: &Simulated) -> Sheet {
    let mut tables = vec![latencies(simulated), engine(simulated)];
    tables.extend(objectives(simulated));
    tables.extend(capacity(simulated));
    tables.push(over_time(simulated));
    Sheet {
        title: "simulated: nothing on this page was measured".to_owned(),
        facts: facts(simulated),
        tables,
        lists: lists(simulated),
    }
}

fn facts(simulated: &Simulated) -> Vec<(&'static str, String)> {
    let engine = &simulated.engine;
    let size =
        engine.kv_bytes.map_or_else(String::new, |bytes| format!(", {}", format_bytes(bytes)));
    let queue = engine.max_queue.map_or("any number".to_owned(), |queue| queue.to_string());
    let caching = if engine.enable_prefix_caching { "on" } else { "off" };
    let mut facts = vec![
        ("steps", told_steps(&simulated.step_times)),
        (
            "kv pool",
            format!(
                "{} blocks of {} tokens{size}: {}",
                engine.num_blocks, engine.block_size, engine.num_blocks_source
            ),
        ),
        (
            "engine",
            format!(
                "{} sequences and {} tokens a step, sequences of {} tokens, {queue} waiting, prefix \
                 caching {caching}",
                engine.max_num_seqs, engine.max_num_batched_tokens, engine.max_model_len
            ),
        ),
        ("load", told_load(&simulated.load)),
        ("requests", told_requests(simulated)),
    ];
    if let Some(model) = &engine.model {
        facts.insert(0, ("model", model.clone()));
    }
    facts
}

fn told_steps(source: &StepTimeSource) -> String {
    match source {
        StepTimeSource::Roofline {
            gpu,
            bandwidth_gb_per_s,
            bandwidth_efficiency,
            tflop_per_s,
            compute_efficiency,
            overhead_ms,
            source,
            ..
        } => format!(
            "roofline of {gpu}: {} of {bandwidth_gb_per_s} GB/s, {} of {tflop_per_s} TFLOP/s, and \
             {overhead_ms} ms a step ({source})",
            percent(*bandwidth_efficiency),
            percent(*compute_efficiency),
        ),
        StepTimeSource::Fitted { run, engine, num_steps, mean_error, coefficients, .. } => format!(
            "fitted to {num_steps} steps of {engine} in {run}, {} off on average: {} us a step, \
             {} a prompt token, {} a decode, {} a KV token read",
            percent(*mean_error),
            format_significant(coefficients.step_us),
            format_significant(coefficients.prefill_token_us),
            format_significant(coefficients.decode_us),
            format_significant(coefficients.decode_kv_token_us),
        ),
        StepTimeSource::Equal { step_ms, reason } => {
            format!("{} ms each, whatever they compute: {reason}", format_significant(*step_ms))
        }
    }
}

fn told_load(load: &LoadFacts) -> String {
    let who = match (load.rate_per_s, load.users) {
        (Some(rate), _) => {
            let shape = load.burstiness.map_or_else(String::new, |k| format!(" of burstiness {k}"));
            format!("{} arrivals{shape}, {rate} a second", load.arrival)
        }
        (None, users) => {
            let think = load.think_s.filter(|think| *think > 0.0);
            let think = think.map_or("without pauses".to_owned(), |mean| {
                format!("pausing {} s on average", format_significant(mean))
            });
            format!("{} users {think}", users.unwrap_or_default())
        }
    };
    let prefix = match load.prefix_tokens {
        0 => String::new(),
        tokens => format!(", the first {tokens} shared"),
    };
    let until = match (load.duration_s, load.requests) {
        (Some(seconds), None) => format!("{seconds} s"),
        (Some(seconds), Some(requests)) => format!("{seconds} s or {requests} requests"),
        (None, requests) => format!("{} requests", requests.unwrap_or_default()),
    };
    format!(
        "{who}, for {until}; prompts of {} tokens{prefix}, answers of {}; seed {}",
        load.prompt_tokens, load.output_tokens, load.seed
    )
}

fn told_requests(simulated: &Simulated) -> String {
    let requests = &simulated.requests;
    let mut parts = vec![format!("{} answered", requests.num_answered)];
    for (count, what) in [
        (requests.num_too_long, "refused as too long"),
        (requests.num_busy, "refused by a full queue"),
        (requests.num_unfinished, "unfinished"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.join(", ")
}

fn latencies(simulated: &Simulated) -> Table {
    let row = |name: &str, values: &Distribution| {
        let all = [values.mean, values.p50, values.p90, values.p99, values.max];
        let scale = Scale::MS;
        let cell = |value: Option<f64>, field| {
            Cell::or_absent(value.map(|ms| scale.write(ms)), reason(values, field))
        };
        let fields = ["mean", "p50", "p90", "p99", "max"];
        let mut cells = vec![Cell::new(name), Cell::new(values.n.to_string())];
        cells.extend(all.into_iter().zip(fields).map(|(value, field)| cell(value, field)));
        cells
    };
    let mut columns = vec![Column::words("simulated"), Column::numbers("n", "", 1)];
    for (name, rank) in [("mean", 2), ("p50", 0), ("p90", 0), ("p99", 0), ("max", 3)] {
        columns.push(Column::numbers(name, "ms", rank));
    }
    Table {
        caption: "latency from arrival, simulated".to_owned(),
        columns,
        rows: vec![
            row("TTFT", &simulated.ttft_ms),
            row("TPOT", &simulated.tpot_ms),
            row("E2EL", &simulated.e2el_ms),
        ],
        ..Table::default()
    }
}

fn engine(simulated: &Simulated) -> Table {
    let (steps, kv) = (&simulated.steps, &simulated.kv);
    let number =
        |value: Option<f64>| Cell::or_absent(value.map(format_significant), "no step was computed");
    let share = |value: Option<f64>| Cell::or_absent(value.map(percent), "no step was computed");
    #[expect(clippy::cast_precision_loss, reason = "a share of blocks")]
    let of_pool = |blocks: f64| percent(blocks / (simulated.engine.num_blocks.max(1) as f64));
    let mean_blocks = kv.mean_used_blocks.map_or_else(
        || number(None),
        |blocks| Cell::new(format!("{} ({})", format_significant(blocks), of_pool(blocks))),
    );
    #[expect(clippy::cast_precision_loss, reason = "a share of blocks")]
    let peak = of_pool(kv.peak_used_blocks as f64);
    let mut rows = vec![
        vec![
            Cell::new("output tokens/s, first arrival to last token"),
            number(simulated.whole.output_tokens_per_s),
        ],
        vec![
            Cell::new("output tokens/s, while requests arrived"),
            number(simulated.while_loaded.output_tokens_per_s),
        ],
        vec![Cell::new("time with a step"), share(kv.busy_share)],
        vec![Cell::new("steps"), Cell::new(steps.num_steps.to_string())],
        vec![Cell::new("a step, mean ms"), number(steps.mean_ms)],
        vec![Cell::new("sequences in a step, mean"), number(kv.mean_running)],
        vec![Cell::new("sequences waiting, mean"), number(kv.mean_waiting)],
        vec![Cell::new("sequences waiting, most"), Cell::new(kv.peak_waiting.to_string())],
        vec![Cell::new("KV blocks held, mean"), mean_blocks],
        vec![
            Cell::new("KV blocks held, most"),
            Cell::new(format!("{} ({peak})", kv.peak_used_blocks)),
        ],
        vec![Cell::new("slots of them without a token"), share(kv.waste_share)],
        vec![Cell::new("preemptions"), Cell::new(steps.num_preemptions.to_string())],
    ];
    if simulated.load.prefix_tokens > 0 {
        let hits = format!("{} of {}", steps.prefix_hit_tokens, steps.prefix_query_tokens);
        rows.push(vec![Cell::new("prompt tokens from the prefix cache"), Cell::new(hits)]);
    }
    Table {
        caption: "inside the engine, simulated".to_owned(),
        // The first column of a table is narrow: what rows are about stands behind.
        columns: vec![Column::numbers("value", "", 0), Column::words("of")],
        rows: rows.into_iter().map(|row| row.into_iter().rev().collect()).collect(),
        ..Table::default()
    }
}

fn objectives(simulated: &Simulated) -> Option<Table> {
    let goodput = simulated.goodput.as_ref()?;
    let row = |one: &crate::stats::goodput::Objective| {
        let met = if one.met { "yes" } else { "no" };
        vec![Cell::new(&one.slo), Cell::new(percent(one.share)), Cell::new(met)]
    };
    let per_s = goodput.per_s.map_or_else(String::new, |per_s| {
        format!(", {} requests a second", format_significant(per_s))
    });
    Some(Table {
        caption: format!(
            "objectives, simulated: {} of the requests met all{per_s}",
            percent(goodput.share)
        ),
        columns: vec![
            Column::words("objective"),
            Column::numbers("requests", "", 0),
            Column::words("met"),
        ],
        rows: goodput.objectives.iter().map(row).collect(),
        ..Table::default()
    })
}

fn capacity(simulated: &Simulated) -> Option<Table> {
    let capacity = simulated.capacity.as_ref()?;
    let mut tried: Vec<_> = capacity.tried.iter().collect();
    tried.sort_by(|a, b| a.rate_per_s.total_cmp(&b.rate_per_s));
    let row = |one: &&crate::simulation::capacity::Tried| {
        let kept = one.sustained.map_or("unknown", |kept| if kept { "yes" } else { "no" });
        let why = one.reason.clone().unwrap_or_default();
        vec![Cell::new(format_significant(one.rate_per_s)), Cell::new(kept), Cell::new(why)]
    };
    Some(Table {
        caption: told_capacity(capacity),
        columns: vec![
            Column::numbers("requests/s", "", 0),
            Column::words("sustained"),
            Column::optional("why not", 1),
        ],
        rows: tried.iter().map(row).collect(),
        ..Table::default()
    })
}

fn told_capacity(capacity: &Capacity) -> String {
    let why = capacity.reason.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
    let unfinished = if capacity.complete { "" } else { "; the search did not come to its end" };
    match (capacity.rate_per_s, capacity.exceeded_at_per_s) {
        (Some(low), Some(high)) => format!(
            "capacity, simulated: {} requests a second, {} is too much{why}{unfinished}",
            format_significant(low),
            format_significant(high)
        ),
        (Some(low), None) => {
            format!("capacity, simulated: at least {}{unfinished}", format_significant(low))
        }
        (None, Some(high)) => {
            format!("capacity, simulated: below {}{why}{unfinished}", format_significant(high))
        }
        (None, None) => format!("capacity, simulated: not found{unfinished}"),
    }
}

fn over_time(simulated: &Simulated) -> Table {
    let series = &simulated.series;
    let rows = series.chunks(series.len().div_ceil(MAX_ROWS).max(1)).map(|points| {
        let mean = |of: fn(&crate::simulation::summary::SeriesPoint) -> Option<f64>| {
            let known: Vec<f64> = points.iter().filter_map(of).collect();
            let mean = crate::stats::distribution::mean(&known).map(format_significant);
            Cell::or_absent(mean, "no step was computed")
        };
        let peak = points.iter().map(|point| point.peak_used_blocks).max().unwrap_or_default();
        vec![
            Cell::new(points.first().map_or_else(String::new, |p| format_significant(p.at_s))),
            mean(|point| point.mean_running),
            mean(|point| point.mean_waiting),
            mean(|point| point.mean_used_blocks),
            Cell::new(peak.to_string()),
        ]
    });
    Table {
        caption: "queue and pool over time, simulated".to_owned(),
        columns: vec![
            Column::numbers("from", "s", 0),
            Column::numbers("running", "mean", 0),
            Column::numbers("waiting", "mean", 0),
            Column::numbers("KV blocks", "mean", 0),
            Column::numbers("KV blocks", "most", 0),
        ],
        rows: rows.collect(),
        ..Table::default()
    }
}

fn lists(simulated: &Simulated) -> Vec<(&'static str, Vec<String>)> {
    let mut beware = Vec::new();
    if simulated.interrupted {
        beware.push("broken off: the numbers are of what had been simulated until then".to_owned());
    }
    if let Some(refusal) = &simulated.refusal {
        beware.push(format!(
            "{} requests can never be served, the first of them since: {refusal}",
            simulated.requests.num_too_long
        ));
    }
    if simulated.bounded {
        beware.push("ended with the most requests that a simulation has".to_owned());
    }
    if simulated.kept_up == Some(false) {
        let why = simulated.kept_up_reason.clone().unwrap_or_default();
        beware.push(format!(
            "the engine did not keep up: {why}; latencies are then of how long the load lasted"
        ));
    }
    if simulated.requests.num_answered == 0 {
        beware.push("no request was answered".to_owned());
    }
    if beware.is_empty() { Vec::new() } else { vec![("beware", beware)] }
}

fn percent(share: f64) -> String {
    format!("{} %", format_significant(share * 100.0))
}
