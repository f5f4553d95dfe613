//! What was used while engines were measured, as tables: memory and processor,
//! GPU, memory by part with its sources.

use crate::record::ResourceSource;
use crate::stats::resources::{CaseResources, GpusBy, Level, MemoryPart, MemorySplit, Resources};
use crate::units::{format_bytes, format_significant};

use super::table::{Cell, Column, Table};

/// The tables; none of a run without a probe.
#[must_use]
pub fn tables(resources: Option<&Resources>) -> Vec<Table> {
    let Some(resources) = resources else { return Vec::new() };
    let mut tables = vec![used(resources), gpus(resources), word(resources), parts(resources)];
    tables.retain(|table| !table.rows.is_empty());
    if let Some(first) = tables.first_mut() {
        first.notes.extend(notes(resources));
    }
    tables
}

/// One engine over its cases.
struct Engine<'a> {
    name: &'a str,
    cases: Vec<&'a CaseResources>,
}

fn engines(resources: &Resources) -> Vec<Engine<'_>> {
    let mut engines: Vec<Engine<'_>> = Vec::new();
    for case in &resources.cases {
        match engines.iter_mut().find(|engine| engine.name == case.engine) {
            Some(engine) => engine.cases.push(case),
            None => engines.push(Engine { name: &case.engine, cases: vec![case] }),
        }
    }
    engines
}

impl Engine<'_> {
    /// The most of a number over the cases.
    fn most(&self, of: impl Fn(&CaseResources) -> Option<f64>) -> Option<f64> {
        self.cases.iter().filter_map(|case| of(case)).reduce(f64::max)
    }

    /// The sum of a count over the cases; absent where no case has it.
    fn sum(&self, of: impl Fn(&CaseResources) -> Option<u64>) -> Option<u64> {
        self.cases.iter().filter_map(|case| of(case)).reduce(u64::saturating_add)
    }
}

fn used(resources: &Resources) -> Table {
    let columns = vec![
        Column::words("engine"),
        Column::numbers("RSS", "peak", 0),
        Column::numbers("RSS", "median", 1),
        Column::numbers("processors", "most of a case", 0),
        Column::numbers("page faults", "that read", 2),
        Column::numbers("client RSS", "peak", 3),
    ];
    let row = |engine: &Engine<'_>| {
        let reason = unread(resources, engine.name, ResourceSource::Procfs);
        let median = engine.cases.iter().filter_map(|case| case.rss_bytes);
        let median = crate::stats::distribution::median(median.map(|level| level.median));
        vec![
            Cell::new(engine.name),
            bytes(engine.most(|case| peak(case.rss_bytes)), &reason),
            bytes(median, &reason),
            number(engine.most(|case| case.cpu_share), &reason),
            count(engine.sum(|case| case.major_faults), &reason),
            bytes(engine.most(|case| peak(case.client_rss_bytes)), &reason),
        ]
    };
    let rows = engines(resources).iter().map(row).collect();
    Table { caption: "memory and processor".to_owned(), columns, rows, ..Table::default() }
}

fn gpus(resources: &Resources) -> Table {
    let columns = vec![
        Column::words("engine"),
        Column::numbers("GPU memory", "peak", 0),
        Column::numbers("busy", "most of a case %", 0),
        Column::numbers("power", "most of a case W", 1),
        Column::numbers("energy", "J per output token", 0),
        Column::numbers("SM clock", "least median MHz", 2),
        Column::numbers("temperature", "peak °C", 3),
        Column::numbers("held down", "most of a case %", 1),
    ];
    let none = "NVML did not say";
    let mut notes = Vec::new();
    let row = |engine: &Engine<'_>| {
        let by = |wanted| engine.cases.iter().any(|case| case.gpus_by == Some(wanted));
        if !by(GpusBy::Process) && by(GpusBy::Activity) {
            notes.push(format!(
                "{}: the driver's process table does not name it, so the numbers are of every \
                 GPU that computed in its cases, and of whoever else used them",
                engine.name
            ));
        }
        let energy = engine.cases.iter().filter_map(|case| case.energy_per_output_token_j);
        let clock = engine.cases.iter().filter_map(|case| case.sm_clock_mhz).reduce(f64::min);
        let held = engine.most(|case| {
            let limits = case.throttled.iter().filter(|(name, _)| !is_no_limit(name));
            let most = limits.map(|(_, share)| *share).reduce(f64::max);
            most.or_else(|| case.gpus_by.map(|_| 0.0))
        });
        vec![
            Cell::new(engine.name),
            bytes(engine.most(|case| peak(case.gpu_bytes)), none),
            number(engine.most(|case| case.gpu_utilization_percent), none),
            number(engine.most(|case| case.power_w), none),
            number(crate::stats::distribution::median(energy), none),
            number(clock, none),
            number(engine.most(|case| case.temperature_c.map(f64::from)), none),
            number(held.map(|share| share * 100.0), none),
        ]
    };
    let on_gpu = |engine: &Engine<'_>| engine.cases.iter().any(|case| case.gpus_by.is_some());
    let rows = engines(resources).iter().filter(|engine| on_gpu(engine)).map(row).collect();
    Table { caption: "GPU".to_owned(), columns, rows, notes, ..Table::default() }
}

/// Reasons for lower clocks that are no limit that a GPU ran into.
fn is_no_limit(name: &str) -> bool {
    ["gpu_idle", "applications_clocks_setting", "display_clock_setting"].contains(&name)
}

fn word(resources: &Resources) -> Table {
    let columns = vec![
        Column::words("engine"),
        Column::numbers("KV used", "peak %", 0),
        Column::numbers("running", "peak", 0),
        Column::numbers("waiting", "peak", 0),
        Column::numbers("preempted", "", 0),
        Column::numbers("looked up", "prompt tok", 1),
        Column::numbers("from cache", "prompt tok", 0),
    ];
    let spoke = |engine: &Engine<'_>| {
        engine.cases.iter().any(|case| {
            case.kv_usage.is_some()
                || case.peak_running.is_some()
                || case.peak_waiting.is_some()
                || case.prefix_queries.is_some()
        })
    };
    let row = |engine: &Engine<'_>| {
        let reason = unread(resources, engine.name, ResourceSource::Engine);
        #[expect(clippy::cast_precision_loss, reason = "requests are far below 2^52")]
        let most = |of: fn(&CaseResources) -> Option<u64>| {
            number(engine.most(|case| of(case).map(|n| n as f64)), &reason)
        };
        vec![
            Cell::new(engine.name),
            number(engine.most(|case| peak(case.kv_usage)).map(|share| share * 100.0), &reason),
            most(|case| case.peak_running),
            most(|case| case.peak_waiting),
            count(engine.sum(|case| case.preemptions), &reason),
            count(engine.sum(|case| case.prefix_queries), &reason),
            count(engine.sum(|case| case.prefix_hits), &reason),
        ]
    };
    let rows = engines(resources).iter().filter(|engine| spoke(engine)).map(row).collect();
    Table { caption: "the engines' own word".to_owned(), columns, rows, ..Table::default() }
}

/// The parts of an engine's memory, in order, each with its name.
fn parts_of(split: &MemorySplit) -> [(&'static str, &MemoryPart); 7] {
    [
        ("baseline", &split.baseline),
        ("weights", &split.weights),
        ("KV reserved", &split.kv_reserved),
        ("KV used at most", &split.kv_used_peak),
        ("KV used on average", &split.kv_used_mean),
        ("told as one", &split.told_total),
        ("peak", &split.peak),
    ]
}

fn parts(resources: &Resources) -> Table {
    let mut columns = vec![Column::words("engine"), Column::words("memory")];
    columns.extend([
        Column::numbers("baseline", "", 1),
        Column::numbers("weights", "", 0),
        Column::numbers("KV", "reserved", 0),
        Column::numbers("KV used", "peak", 0),
        Column::numbers("KV used", "mean", 2),
        Column::numbers("told as one", "", 3),
        Column::numbers("peak", "", 0),
    ]);
    let mut notes = Vec::new();
    let row = |split: &MemorySplit| {
        let mut cells = vec![
            Cell::new(split.engine.as_str()),
            Cell::new(if split.on_gpu { "GPU" } else { "host" }),
        ];
        let mut sources: Vec<(&str, Vec<&str>)> = Vec::new();
        for (name, part) in parts_of(split) {
            cells.push(match part.bytes {
                Some(bytes) => {
                    match sources.iter_mut().find(|(source, _)| *source == part.source) {
                        Some((_, names)) => names.push(name),
                        None => sources.push((&part.source, vec![name])),
                    }
                    Cell::new(format_bytes(bytes))
                }
                None => Cell::absent(part.source.as_str()),
            });
        }
        if !sources.is_empty() {
            let write =
                |(source, names): &(&str, Vec<&str>)| format!("{} from {source}", names.join(", "));
            let told: Vec<String> = sources.iter().map(write).collect();
            notes.push(format!("{}: {}", split.engine, told.join("; ")));
        }
        cells
    };
    let rows = resources.memory.iter().map(row).collect();
    let mut table = Table {
        caption: "memory by part, and who says so".to_owned(),
        columns,
        rows,
        notes,
        ..Table::default()
    };
    table.drop_empty_columns();
    table
}

fn notes(resources: &Resources) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(achieved) = resources.achieved_hz {
        let asked = resources
            .asked_hz
            .map_or_else(String::new, |hz| format!(" of {} asked for", format_significant(hz)));
        let gap = resources.longest_gap_ms.map_or_else(String::new, |ms| {
            format!(", at most {} ms apart", format_significant(ms))
        });
        let cost = resources.probe_cpu_share.map_or_else(String::new, |share| {
            format!("; looking took {} % of a processor", format_significant(share * 100.0))
        });
        notes.push(format!(
            "{} looks, {} a second{asked}{gap}{cost}",
            resources.num_looks,
            format_significant(achieved)
        ));
    }
    for unread in &resources.unread {
        let about = unread.engine.as_deref().map_or_else(String::new, |name| format!("{name}: "));
        notes.push(format!("{about}{} could not be read: {}", unread.what, unread.reason));
    }
    notes
}

/// Why an engine's numbers from a source are absent.
fn unread(resources: &Resources, engine: &str, source: ResourceSource) -> String {
    let of = |named: bool| {
        resources.unread.iter().rfind(|unread| {
            unread.source == source
                && if named {
                    unread.engine.as_deref() == Some(engine)
                } else {
                    unread.engine.is_none()
                }
        })
    };
    of(true).or_else(|| of(false)).map_or_else(
        || match source {
            ResourceSource::Engine => "the engine does not say".to_owned(),
            ResourceSource::Procfs | ResourceSource::Nvml => {
                "no look fell into its cases".to_owned()
            }
        },
        |unread| unread.reason.clone(),
    )
}

fn peak(level: Option<Level>) -> Option<f64> {
    level.map(|level| level.peak)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "memory is not negative and below 2^52 bytes"
)]
fn bytes(value: Option<f64>, reason: &str) -> Cell {
    Cell::or_absent(value.map(|bytes| format_bytes(bytes as u64)), reason)
}

fn number(value: Option<f64>, reason: &str) -> Cell {
    Cell::or_absent(value.map(format_significant), reason)
}

fn count(value: Option<u64>, reason: &str) -> Cell {
    Cell::or_absent(value.map(|count| count.to_string()), reason)
}
