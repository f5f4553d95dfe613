//! What engines in this process told of themselves, as tables.

use crate::record::{GpuMemory, LoadPhaseKind};
use crate::stats::inside::{Inside, LoadSummary, MemorySummary};
use crate::units::{format_bytes, format_significant};

use super::numbers::{Scale, reason};
use super::table::{Cell, Column, Table};

/// Steps and blocks, memory by part, of a GPU too, phases of loading; none where nobody told.
#[must_use]
pub fn tables(engines: &[Inside]) -> Vec<Table> {
    if engines.is_empty() {
        return Vec::new();
    }
    let mut tables = vec![steps(engines), memory(engines), gpu_memory(engines), load(engines)];
    tables.retain(|table| !table.rows.is_empty());
    tables
}

fn steps(engines: &[Inside]) -> Table {
    let columns = vec![
        Column::words("engine"),
        Column::numbers("steps", "", 2),
        Column::numbers("decode step", "p50 ms", 0),
        Column::numbers("from cache", "prompt tok", 0),
        Column::numbers("preempted", "", 0),
        Column::numbers("KV blocks", "peak of all", 0),
        Column::numbers("waste", "peak slots", 1),
        Column::numbers("waiting", "peak", 3),
    ];
    let told = engines.iter().filter(|engine| engine.num_steps > 0);
    let mut notes = Vec::new();
    let row = |engine: &Inside| {
        if engine.num_lost_events > 0 {
            notes.push(format!(
                "{}: {} events were lost, because they were not fetched in time",
                engine.engine, engine.num_lost_events
            ));
        }
        let number = |value: Option<u64>| {
            Cell::or_absent(value.map(|value| value.to_string()), "no step was recorded")
        };
        let step = &engine.decode_step_ms;
        vec![
            Cell::new(engine.engine.as_str()),
            Cell::new(engine.num_steps.to_string()),
            Cell::or_absent(step.p50.map(|ms| Scale::MS.write(ms)), reason(step, "p50")),
            cached(engine),
            Cell::new(engine.num_preemptions.to_string()),
            Cell::or_absent(
                engine
                    .peak_used_blocks
                    .zip(engine.num_blocks)
                    .map(|(used, all)| format!("{used} of {all}")),
                "no step was recorded",
            ),
            number(engine.peak_waste_slots),
            number(engine.peak_waiting),
        ]
    };
    let rows = told.map(row).collect();
    Table { caption: "steps and KV blocks".to_owned(), columns, rows, notes, ..Table::default() }
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
fn cached(engine: &Inside) -> Cell {
    if engine.prompt_tokens == 0 {
        return Cell::absent("no request says how many prompt tokens were cached");
    }
    let share = 100.0 * engine.cached_tokens as f64 / engine.prompt_tokens as f64;
    let detail = if engine.cached_tokens == 0 {
        String::new()
    } else {
        format!("{} %", format_significant(share))
    };
    Cell::detailed(engine.cached_tokens.to_string(), detail)
}

fn memory(engines: &[Inside]) -> Table {
    let columns = vec![
        Column::words("engine"),
        Column::numbers("weights", "", 0),
        Column::numbers("KV pool", "", 0),
        Column::numbers("activations", "", 0),
        Column::numbers("other", "", 0),
        Column::numbers("process", "before", 2),
        Column::numbers("process", "loaded", 1),
        Column::numbers("process", "peak", 0),
    ];
    let row = |engine: &Inside, memory: &MemorySummary| {
        let bytes =
            |value: Option<u64>| Cell::or_absent(value.map(format_bytes), "it was not read");
        let at_most = |bytes: u64| format!("≤ {}", format_bytes(bytes));
        vec![
            Cell::new(engine.engine.as_str()),
            Cell::new(format_bytes(memory.weight_bytes)),
            Cell::new(format_bytes(memory.kv_bytes)),
            Cell::or_absent(memory.activations_at_most_bytes.map(at_most), "it was not read"),
            Cell::or_absent(
                memory
                    .other_bytes
                    .map(format_bytes)
                    .or_else(|| memory.other_at_most_bytes.map(at_most)),
                "the process grew by less than the weights: it reused memory that was freed \
                 before",
            ),
            bytes(memory.rss_before_bytes),
            bytes(memory.rss_after_bytes),
            bytes(memory.rss_peak_bytes),
        ]
    };
    let rows = engines.iter().filter_map(|e| Some(row(e, e.memory.as_ref()?))).collect();
    Table { caption: "memory by part".to_owned(), columns, rows, ..Table::default() }
}

fn gpu_memory(engines: &[Inside]) -> Table {
    let mut columns = vec![Column::words("engine")];
    let parts =
        ["total", "weights", "KV pool", "activations", "graphs", "context", "other", "free"];
    columns.extend(parts.map(|part| Column::numbers(part, "", 0)));
    let row = |engine: &Inside, memory: &GpuMemory| {
        let sign = if memory.other_bytes < 0 { "-" } else { "" };
        let mut cells = vec![Cell::new(engine.engine.as_str())];
        let before = [
            memory.total_bytes,
            memory.weight_bytes,
            memory.kv_bytes,
            memory.activation_bytes,
            memory.graph_bytes,
            memory.context_bytes,
        ];
        cells.extend(before.map(|bytes| Cell::new(format_bytes(bytes))));
        cells.push(Cell::new(format!("{sign}{}", format_bytes(memory.other_bytes.unsigned_abs()))));
        cells.push(Cell::new(format_bytes(memory.free_bytes)));
        cells
    };
    let rows = engines.iter().filter_map(|e| Some(row(e, e.gpu_memory.as_ref()?))).collect();
    Table { caption: "GPU memory by part".to_owned(), columns, rows, ..Table::default() }
}

fn load(engines: &[Inside]) -> Table {
    let mut kinds = vec![
        (LoadPhaseKind::Open, "open"),
        (LoadPhaseKind::Weights, "weights"),
        (LoadPhaseKind::KvPool, "KV pool"),
        (LoadPhaseKind::Graphs, "graphs"),
        (LoadPhaseKind::FirstStep, "first step"),
    ];
    // Only a GPU has graphs.
    let happened = |kind| engines.iter().any(|e| e.load.iter().any(|load| load.phase == kind));
    kinds.retain(|(kind, _)| *kind != LoadPhaseKind::Graphs || happened(*kind));
    let mut columns = vec![Column::words("engine"), Column::numbers("loads", "", 1)];
    columns.extend(kinds.iter().map(|(_, name)| Column::numbers(name, "mean ms", 0)));
    let row = |engine: &Inside| {
        let find = |kind: LoadPhaseKind| engine.load.iter().find(|load| load.phase == kind);
        let loads = find(LoadPhaseKind::Weights).map_or(0, |load| load.n);
        let mut row = vec![Cell::new(engine.engine.as_str()), Cell::new(loads.to_string())];
        row.extend(kinds.iter().map(|(kind, _)| phase(find(*kind))));
        row
    };
    let loaded = engines.iter().filter(|engine| !engine.load.is_empty());
    let rows = loaded.map(row).collect();
    Table { caption: "phases of loading".to_owned(), columns, rows, ..Table::default() }
}

/// A mean, and the bytes that took it.
fn phase(load: Option<&LoadSummary>) -> Cell {
    let Some((load, ms)) = load.and_then(|load| Some((load, load.mean_ms?))) else {
        return Cell::absent("it did not happen in this run");
    };
    Cell::detailed(Scale::MS.write(ms), load.bytes.map_or_else(String::new, format_bytes))
}
