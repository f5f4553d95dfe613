//! What a report says, in its order, before any format: facts of the run,
//! engines, experiments, sections of tables, what is absent, what to beware of.

use crate::record::{EngineRecord, Machine, RunData};
use crate::stats::Summary;
use crate::stats::summary::CaseSummary;
use crate::stats::warnings::Warning;
use crate::units::format_bytes;

use super::case_table::case_table;
use super::load_table;
use super::matrix::matrices;
use super::prose::list;
use super::section::{Section, sections};
use super::table::{Cell, Column, Table};
use super::verdict::{Verdict, verdicts};

/// A run, ready to be written in some format.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Name of the run.
    pub title: &'a str,
    /// Label and value: when, what, where.
    pub facts: Vec<(&'static str, String)>,
    /// Who was measured.
    pub engines: Table,
    /// Whether they did the same work.
    pub contract: Option<Table>,
    /// In the manifest's order.
    pub experiments: Vec<Experiment<'a>>,
    /// Headings over tables, after the experiments.
    pub sections: Vec<Section>,
    /// Cases that were not measured.
    pub absent: Vec<Absent>,
    /// What to beware of.
    pub warnings: &'a [Warning],
}

/// One experiment over its engines.
#[derive(Debug, Clone)]
pub struct Experiment<'a> {
    /// Name.
    pub name: &'a str,
    /// What it does, for the four that are known.
    pub description: &'static str,
    /// Requests and concurrency, such as `10 requests, C = 10`.
    pub load: String,
    /// Its measured cases.
    pub cases: Vec<&'a CaseSummary>,
    /// The engines side by side.
    pub tables: Vec<Table>,
    /// What can be said at the highest concurrency.
    pub verdicts: Vec<Verdict>,
}

/// Cases of one engine that are absent for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absent {
    /// Engine name.
    pub engine: String,
    /// Which cases.
    pub cases: String,
    /// Why.
    pub reason: String,
}

impl<'a> View<'a> {
    /// Puts a run into reading order.
    #[must_use]
    pub fn new(run: &'a RunData, summary: &'a Summary) -> Self {
        Self {
            title: &summary.name,
            facts: facts(run, summary),
            engines: engines(run),
            contract: super::contract::table(&summary.contract),
            experiments: experiments(run, summary),
            sections: sections(run, summary),
            absent: absent(summary),
            warnings: &summary.warnings,
        }
    }
}

impl Experiment<'_> {
    /// Whether it varies concurrency.
    #[must_use]
    pub fn is_sweep(&self) -> bool {
        self.cases.iter().any(|case| case.concurrency != self.cases[0].concurrency)
    }

    /// Its highest concurrency.
    #[must_use]
    pub fn widest(&self) -> u32 {
        self.cases.iter().map(|case| case.concurrency).max().unwrap_or(0)
    }
}

/// An engine's name with what changes the meaning of its numbers below it.
#[must_use]
pub fn engine_cell(run: &RunData, name: &str) -> Cell {
    let info = run.manifest.engines.iter().find(|engine| engine.spec.name == name);
    let info = info.and_then(|engine| engine.info.as_ref());
    let mut marks: Vec<&str> = Vec::new();
    marks.extend(info.and_then(|info| info.precision.as_deref()));
    if info.is_some_and(|info| info.dummy_weights) {
        marks.push("dummy");
    }
    Cell::detailed(name, marks.join(", "))
}

/// The machine in one line.
#[must_use]
pub fn machine_line(machine: &Machine) -> String {
    let mut parts = vec![machine.os.clone()];
    let cpus = match machine.num_cpus {
        1 => "1 processor".to_owned(),
        many => format!("{many} processors"),
    };
    parts.push(match &machine.cpu {
        Some(cpu) => format!("{cpu}, {cpus}"),
        None => cpus,
    });
    parts.extend(machine.memory_bytes.map(format_bytes));
    if machine.gpus.is_empty() {
        parts.push("no GPU seen".to_owned());
    }
    parts.extend(machine.gpus.iter().cloned());
    parts.join(", ")
}

fn facts(run: &RunData, summary: &Summary) -> Vec<(&'static str, String)> {
    let manifest = &run.manifest;
    let mut facts = vec![
        ("measured", summary.started_at.clone()),
        ("model", summary.model.clone()),
        ("machine", machine_line(&manifest.machine)),
        ("by", format!("yardstick {}, seed {}", manifest.yardstick_version, manifest.seed)),
    ];
    if let Some(line) = summary.client_error.as_ref().map(super::own_error::line) {
        facts.push(("own error", line));
    }
    if !summary.complete {
        facts.push(("state", "incomplete: the run did not reach its end".to_owned()));
    }
    facts
}

/// How an engine is reached, in words.
#[must_use]
pub fn reached(engine: &EngineRecord) -> String {
    let spec = &engine.spec;
    match &spec.url {
        Some(url) => url.to_string(),
        None if spec.is_embedded_over_http() => "this process, over HTTP".to_owned(),
        None => "this process".to_owned(),
    }
}

fn engines(run: &RunData) -> Table {
    let columns = vec![
        Column::words("engine"),
        Column::words("kind"),
        Column::optional("version", 2),
        Column::words("precision"),
        Column::optional("model", 1),
        Column::numbers("context", "tokens", 3),
        Column::optional("reached at", 4),
    ];
    let mut notes = Vec::new();
    let rows = run.manifest.engines.iter().map(|engine| {
        let info = engine.info.as_ref();
        if let Some(error) = &engine.error {
            notes.push(format!("{}: {error}", engine.spec.name));
        }
        let told = |text: Option<String>| Cell::or_absent(text, "the engine does not say");
        let dummy = if info.is_some_and(|info| info.dummy_weights) { "dummy weights" } else { "" };
        let mut precision = told(info.and_then(|info| info.precision.clone()));
        precision.detail = dummy.to_owned();
        vec![
            Cell::new(engine.spec.name.as_str()),
            Cell::new(engine.spec.kind.as_str()),
            told(info.and_then(|info| info.version.clone())),
            precision,
            told(info.map(|info| info.model.clone())),
            told(info.and_then(|info| info.max_model_len).map(|len| len.to_string())),
            Cell::new(reached(engine)),
        ]
    });
    let rows = rows.collect();
    Table { caption: "engines".to_owned(), columns, rows, notes, continues: false }
}

/// What an experiment of the original study does.
#[must_use]
pub fn describe(experiment: &str) -> &'static str {
    match experiment {
        "sequential-cold" => "one request after another, the first against a cold engine",
        "concurrent-cold" => "all requests at once against a cold engine",
        "concurrent-warm" => "all requests at once against a warm engine",
        "batched-warm" => "more and more requests at once against a warm engine",
        _ => "",
    }
}

fn experiments<'a>(run: &'a RunData, summary: &'a Summary) -> Vec<Experiment<'a>> {
    let mut experiments: Vec<Experiment<'a>> = Vec::new();
    for case in summary.shown() {
        match experiments.iter_mut().find(|known| known.name == case.experiment) {
            Some(known) => known.cases.push(case),
            None => experiments.push(Experiment {
                name: &case.experiment,
                description: describe(&case.experiment),
                load: String::new(),
                cases: vec![case],
                tables: Vec::new(),
                verdicts: Vec::new(),
            }),
        }
    }
    for experiment in &mut experiments {
        experiment.load = match load_table::pace(run, &experiment.cases) {
            Some(pace) => {
                experiment.description = load_table::DESCRIPTION;
                pace
            }
            None => load(experiment),
        };
        experiment.tables = if experiment.is_sweep() {
            matrices(run, &experiment.cases)
        } else {
            vec![case_table(run, &experiment.cases)]
        };
        experiment.tables.extend(load_table::load_table(run, &experiment.cases));
        if let Some(last) = experiment.tables.last_mut() {
            last.notes.extend(super::conduct::notes(&experiment.cases));
        }
        let widest = experiment.widest();
        let widest: Vec<_> =
            experiment.cases.iter().copied().filter(|case| case.concurrency == widest).collect();
        experiment.verdicts = verdicts(&widest, &summary.comparisons, &summary.common_window);
        if experiment.is_sweep() {
            let at = format!(" at C = {}", experiment.widest());
            for verdict in &mut experiment.verdicts {
                verdict.metric.push_str(&at);
            }
        }
    }
    experiments
}

fn load(experiment: &Experiment<'_>) -> String {
    let span = |of: fn(&CaseSummary) -> u64| {
        let least = experiment.cases.iter().map(|case| of(case)).min().unwrap_or(0);
        let most = experiment.cases.iter().map(|case| of(case)).max().unwrap_or(0);
        if least == most { most.to_string() } else { format!("{least}–{most}") }
    };
    let n = span(|case| case.n / u64::from(case.num_rounds.unwrap_or(1).max(1)));
    let noun = if n == "1" { "request" } else { "requests" };
    let each = if experiment.is_sweep() { " each" } else { "" };
    let rounds = experiment.cases.iter().filter_map(|case| case.num_rounds).max();
    let rounds = rounds.map_or_else(String::new, |rounds| format!(", {rounds} rounds"));
    format!("{n} {noun}{each}, C = {}{rounds}", span(|case| case.concurrency.into()))
}

fn absent(summary: &Summary) -> Vec<Absent> {
    let mut found: Vec<(Absent, Vec<String>)> = Vec::new();
    for case in &summary.absent {
        let known = found
            .iter_mut()
            .find(|(absent, _)| absent.engine == case.engine && absent.reason == case.reason);
        match known {
            Some((_, names)) if names.contains(&case.experiment) => {}
            Some((_, names)) => names.push(case.experiment.clone()),
            None => found.push((
                Absent {
                    engine: case.engine.clone(),
                    cases: String::new(),
                    reason: case.reason.clone(),
                },
                vec![case.experiment.clone()],
            )),
        }
    }
    found.into_iter().map(|(absent, names)| Absent { cases: list(&names), ..absent }).collect()
}
