//! Tables of loads beside the four experiments: what arrived and what became of
//! it, and what a sweep over rates found.

use crate::record::{LoadRecord, RunData};
use crate::stats::capacity::{Capacity, CapacityPoint};
use crate::stats::summary::{CaseSummary, Distribution};
use crate::units::format_significant;

use super::numbers::{Scale, reason, write_latency};
use super::table::{Cell, Column, Table};
use super::view::engine_cell;

/// What an open loop does, in a sentence without its end.
pub const DESCRIPTION: &str = "requests arrive whatever has not been answered yet";

/// The load of a case, where it is none of the four experiments.
#[must_use]
pub fn load_of<'a>(run: &'a RunData, case: &CaseSummary) -> Option<&'a LoadRecord> {
    run.manifest.cases.get(case.case as usize)?.load.as_ref()
}

/// Number and pace of a load's requests: `120 requests, poisson, 4 a second`.
/// `None` for the four experiments and other closed loops.
#[must_use]
pub fn pace(run: &RunData, cases: &[&CaseSummary]) -> Option<String> {
    let first = cases.first()?;
    let load = load_of(run, first).filter(|load| load.is_open())?;
    let mut parts = vec![match first.n {
        1 => "1 request".to_owned(),
        n => format!("{n} requests"),
    }];
    parts.push(match (load.arrival.as_str(), load.burstiness) {
        ("gamma", Some(burstiness)) => format!("gamma of burstiness {burstiness}"),
        ("trace", _) => match load.speed.filter(|speed| (*speed - 1.0).abs() > f64::EPSILON) {
            Some(speed) => format!("trace at {speed} times its speed"),
            None => "trace".to_owned(),
        },
        (word, _) => word.to_owned(),
    });
    match (load.rate_per_s, load.ramp_to_per_s) {
        (Some(from), Some(to)) => parts.push(format!("{from} to {to} a second")),
        (Some(rate), None) => parts.push(format!("{rate} a second")),
        (None, _) => {}
    }
    if let Some(turns) = load.turns {
        parts.push(format!("{turns} turns a conversation"));
    }
    Some(parts.join(", "))
}

/// Arrivals, latency from the intended instant and goodput of one load, the
/// engines side by side. `None` for the four experiments.
#[must_use]
pub fn load_table(run: &RunData, cases: &[&CaseSummary]) -> Option<Table> {
    let loaded: Vec<&CaseSummary> = cases
        .iter()
        .copied()
        .filter(|case| case.under_load.open_loop.is_some() || case.under_load.goodput.is_some())
        .collect();
    if loaded.is_empty() {
        return None;
    }
    let ttft = |case: &CaseSummary| case.under_load.ttft_from_intended_ms.clone();
    let e2el = |case: &CaseSummary| case.under_load.e2el_from_intended_ms.clone();
    let scale = |of: &dyn Fn(&CaseSummary) -> Option<Distribution>| {
        Scale::of(loaded.iter().filter_map(|case| of(case)?.p50))
    };
    let (ttft_scale, e2el_scale) = (scale(&ttft), scale(&e2el));
    let columns = vec![
        Column::words("engine"),
        Column::numbers("arrived", "/s", 0),
        Column::numbers("achieved", "/s", 0),
        Column::numbers("good", "/s", 1),
        Column::words("kept up"),
        Column::numbers("in flight", "most", 3),
        Column::numbers("late", "p50 ms", 4),
        Column::numbers("late", "max ms", 2),
        Column::numbers("TTFT", &format!("p50 {}", ttft_scale.unit), 0),
        Column::numbers("TTFT", &format!("p90 {}", ttft_scale.unit), 5),
        Column::numbers("E2EL", &format!("p50 {}", e2el_scale.unit), 1),
        Column::numbers("E2EL", &format!("p90 {}", e2el_scale.unit), 6),
    ];
    let rows = loaded.iter().map(|case| {
        let open = case.under_load.open_loop.as_ref();
        let delay = case.under_load.client_delay_ms.clone();
        let rate = |value: Option<f64>| {
            Cell::or_absent(value.map(format_significant), "too few instants for a rate")
        };
        vec![
            engine_cell(run, &case.engine),
            rate(open.and_then(|open| open.offered_per_s)),
            rate(open.and_then(|open| open.achieved_per_s)),
            Cell::or_absent(
                case.under_load.goodput_per_s.map(format_significant),
                "no objectives were given",
            ),
            kept_up(open.and_then(|open| open.sustained), open.and_then(|o| o.reason.as_deref())),
            Cell::or_absent(open.map(|open| open.peak_in_flight.to_string()), "a closed loop"),
            latency(delay.as_ref(), Scale::MS, "p50"),
            latency(delay.as_ref(), Scale::MS, "max"),
            latency(ttft(case).as_ref(), ttft_scale, "p50"),
            latency(ttft(case).as_ref(), ttft_scale, "p90"),
            latency(e2el(case).as_ref(), e2el_scale, "p50"),
            latency(e2el(case).as_ref(), e2el_scale, "p90"),
        ]
    });
    let mut table = Table {
        caption: "arrivals, with latency from the intended instant".to_owned(),
        rows: rows.collect(),
        columns,
        notes: notes(&loaded),
        continues: false,
    };
    table.drop_empty_columns();
    Some(table)
}

fn kept_up(sustained: Option<bool>, why: Option<&str>) -> Cell {
    match sustained {
        Some(true) => Cell::new("yes"),
        Some(false) => Cell::new("no"),
        None => Cell::absent(why.unwrap_or("not known")),
    }
}

fn latency(distribution: Option<&Distribution>, scale: Scale, field: &str) -> Cell {
    let Some(distribution) = distribution else { return Cell::absent("a closed loop") };
    let value = match field {
        "p50" => distribution.p50,
        "p90" => distribution.p90,
        _ => distribution.max,
    };
    Cell::or_absent(value.map(|ms| scale.write(ms)), reason(distribution, field))
}

fn notes(cases: &[&CaseSummary]) -> Vec<String> {
    let mut notes = Vec::new();
    for case in cases {
        let open = case.under_load.open_loop.as_ref();
        let why = open.filter(|open| open.sustained != Some(true));
        if let Some(reason) = why.and_then(|open| open.reason.as_ref()) {
            notes.push(format!("{}: {reason}", case.engine));
        }
        if let Some(held) = open.map(|open| open.num_held).filter(|held| *held > 0) {
            notes.push(format!(
                "{}: {held} of {} requests waited here, as many as allowed being in flight",
                case.engine, case.n
            ));
        }
        for objective in case.under_load.goodput.iter().flat_map(|goodput| &goodput.objectives) {
            let kept = if objective.met { "kept" } else { "missed" };
            let share = format_significant(objective.share * 100.0);
            notes.push(format!(
                "{}: {} {kept}, met by {share} % of requests",
                case.engine, objective.slo
            ));
        }
    }
    notes
}

/// A table a sweep: a row a rate, and what follows from them below.
#[must_use]
pub fn capacity_tables(sweeps: &[Capacity]) -> Vec<Table> {
    sweeps.iter().map(capacity_table).collect()
}

fn capacity_table(sweep: &Capacity) -> Table {
    let of = |value: Option<f64>| Cell::or_absent(value.map(format_significant), "not measured");
    let row = |point: &CapacityPoint| {
        vec![
            Cell::new(format!("{}/s", point.rate_per_s)),
            of(point.offered_per_s),
            of(point.achieved_per_s),
            Cell::or_absent(
                point.goodput_per_s.map(format_significant),
                "no objectives were given",
            ),
            of(point.ttft_from_intended_ms_p50),
            of(point.e2el_from_intended_ms_p50),
            kept_up(point.sustained, point.reason.as_deref()),
        ]
    };
    let mut table = Table {
        caption: format!("{}, {}: {}", sweep.engine, sweep.load, capacity_line(sweep)),
        columns: vec![
            Column::words("rate"),
            Column::numbers("arrived", "/s", 0),
            Column::numbers("achieved", "/s", 0),
            Column::numbers("good", "/s", 0),
            Column::numbers("TTFT", "p50 ms", 0),
            Column::numbers("E2EL", "p50 ms", 0),
            Column::words("kept up"),
        ],
        rows: sweep.points.iter().map(row).collect(),
        notes: Vec::new(),
        continues: false,
    };
    table.drop_empty_columns();
    if let (Some(at), Some(why)) = (sweep.exceeded_at_per_s, &sweep.reason) {
        table.notes.push(format!("at {at} a second: {why}"));
    }
    if let Some(knee) = sweep.knee_per_s {
        let at_knee = sweep.points.iter().find(|point| point.rate_per_s.total_cmp(&knee).is_eq());
        let latency = at_knee.and_then(|point| point.e2el_from_intended_ms_p50);
        let latency =
            latency.map_or_else(String::new, |ms| format!(", E2EL {}", write_latency(ms)));
        table.notes.push(format!(
            "the knee is at {knee} a second{latency}: most achieved for its latency"
        ));
    }
    table
}

/// `sustains 8 a second, not 16`.
#[must_use]
pub fn capacity_line(sweep: &Capacity) -> String {
    match (sweep.capacity_per_s, sweep.exceeded_at_per_s) {
        (Some(capacity), Some(exceeded)) => {
            format!("sustains {capacity} a second, not {exceeded}")
        }
        (Some(capacity), None) => format!("sustains {capacity} a second, the highest rate tried"),
        (None, Some(exceeded)) => format!("does not sustain {exceeded} a second, the lowest tried"),
        (None, None) => "no rate could be judged".to_owned(),
    }
}
