//! Cold starts by phase, as tables.

use crate::plan::Cold;
use crate::plan::lifecycle::list;
use crate::stats::cold_start::{ColdPhaseKind, ColdStart};
use crate::units::{format_bytes, format_significant};

use super::numbers::Scale;
use super::table::{Cell, Column, Table};

/// The instants of a start with their headings.
pub(super) const PHASES: [(ColdPhaseKind, &str); 7] = [
    (ColdPhaseKind::PortOpen, "port open"),
    (ColdPhaseKind::Healthy, "healthy"),
    (ColdPhaseKind::ModelListed, "model listed"),
    (ColdPhaseKind::Awake, "awake"),
    (ColdPhaseKind::RequestSent, "request sent"),
    (ColdPhaseKind::FirstByte, "first byte"),
    (ColdPhaseKind::FirstToken, "first token"),
];

/// Instants since the start, and phases inside the engines; none for a run in
/// which no engine was started, by yardstick or by its platform: there TTFT of
/// the first request says it all.
#[must_use]
pub fn tables(starts: &[ColdStart]) -> Vec<Table> {
    if !starts.iter().any(|start| was_started(start) || is_on_platform(start)) {
        return Vec::new();
    }
    let mut tables = vec![instants(starts), inside(starts)];
    tables.retain(|table| !table.rows.is_empty());
    tables
}

/// Whether it began before the first request did.
pub(super) fn was_started(start: &ColdStart) -> bool {
    start.phases.iter().any(|phase| phase.phase < ColdPhaseKind::RequestSent)
}

/// Whether its platform started it, unseen.
fn is_on_platform(start: &ColdStart) -> bool {
    start.cold.contains(&Cold::Instance)
}

fn instants(starts: &[ColdStart]) -> Table {
    let values = starts.iter().flat_map(|start| &start.phases).map(|phase| phase.at_ms);
    let scale = Scale::of(values.filter(|ms| *ms > 0.0));
    let unit = format!("{} p50", scale.unit);
    let mut columns = vec![
        Column::words("engine"),
        Column::words("experiment"),
        Column::words("cold"),
        Column::numbers("starts", "", 3),
    ];
    let ranks = [1, 2, 2, 1, 3, 1, 0];
    columns.extend(
        PHASES.iter().zip(ranks).map(|((_, name), rank)| Column::numbers(name, &unit, rank)),
    );
    columns.push(Column::numbers("2nd TTFT", "ms p50", 2));
    columns.push(Column::numbers("memory", "RSS peak", 3));
    let row = |start: &ColdStart| {
        let mut row = vec![
            Cell::new(start.engine.as_str()),
            Cell::detailed(start.experiment.as_str(), format!("C = {}", start.concurrency)),
            Cell::detailed(list(&start.cold), page_cache(start)),
            Cell::new(start.n.to_string()),
        ];
        for (kind, _) in PHASES {
            let found = start.phases.iter().find(|phase| phase.phase == kind);
            let text = found.map(|phase| scale.write(phase.at_ms));
            row.push(match found {
                Some(phase) if phase.n < start.n => {
                    Cell::detailed(text.unwrap_or_default(), format!("n = {}", phase.n))
                }
                _ if is_on_platform(start) => {
                    let why = "only its platform sees that: the clock starts as the first request \
                               is handed to its socket";
                    Cell::or_absent(text, why)
                }
                _ => Cell::or_absent(text, "it was not seen"),
            });
        }
        let second = start.second_ttft_ms.map(|ms| Scale::MS.write(ms));
        row.push(Cell::or_absent(second, "no request was sent after the first had ended"));
        let memory = start.peak_rss_bytes.map(format_bytes);
        row.push(Cell::or_absent(memory, "its processes were not seen"));
        row
    };
    let mut table = Table {
        caption: "cold starts by phase, each instant since the start".to_owned(),
        columns,
        rows: starts.iter().map(row).collect(),
        notes: vec![
            "a process starts as its command is executed; a model without one (cold: model), and a \
             service without instances (cold: instance), with the request that loads it"
                .to_owned(),
        ],
        ..Table::default()
    };
    table.drop_empty_columns();
    table
}

/// What share of the weights a start found in memory.
fn page_cache(start: &ColdStart) -> String {
    start.page_cache_share.map_or(String::new(), |share| {
        format!("{} % of the weights in page cache", format_significant(share * 100.0))
    })
}

fn inside(starts: &[ColdStart]) -> Table {
    let row = |start: &ColdStart, told: &crate::stats::cold_start::LogSummary| {
        vec![
            Cell::new(start.engine.as_str()),
            Cell::detailed(start.experiment.as_str(), format!("C = {}", start.concurrency)),
            Cell::new(told.phase.as_str()),
            Cell::new(told.n.to_string()),
            Cell::new(Scale::MS.write(told.took_ms)),
        ]
    };
    let rows = starts.iter().flat_map(|start| start.log.iter().map(|told| row(start, told)));
    Table {
        caption: "phases inside engines, as their logs tell".to_owned(),
        columns: vec![
            Column::words("engine"),
            Column::words("experiment"),
            Column::words("phase"),
            Column::numbers("starts", "", 1),
            Column::numbers("took", "ms p50", 0),
        ],
        rows: rows.collect(),
        ..Table::default()
    }
}
