//! `yardstick list`: what can be named on the command line.

use std::io::Write as _;

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};
use serde::Serialize;

use super::{ExitStatus, Global, output};
use crate::catalog::{ModelCard, cards};
use crate::engine::EngineKind;
use crate::hardware::{GpuCard, gpu_cards};
use crate::infer::kv::sizing::KvElement;
use crate::plan::{Case, Experiment};
use crate::units;

/// List experiments, engines, models and GPU cards.
#[derive(Debug, Args)]
pub struct List {
    /// What to list [default: everything]
    #[arg(value_enum, value_name = "WHAT")]
    what: Option<What>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Loads that `run` puts on engines
    Experiments,
    /// Kinds of engine, with the settings each takes
    Engines,
    /// Model cards
    Models,
    /// GPU cards
    Gpus,
}

#[derive(Serialize)]
struct Listing {
    #[serde(skip_serializing_if = "Option::is_none")]
    experiments: Option<Vec<ExperimentRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    engines: Option<Vec<EngineRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<Vec<ModelRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpus: Option<&'static [GpuCard]>,
}

#[derive(Serialize)]
struct ExperimentRow {
    name: &'static str,
    description: &'static str,
}

#[derive(Serialize)]
struct EngineRow {
    kind: &'static str,
    default_url: Option<&'static str>,
    settings: Vec<SettingRow>,
}

#[derive(Serialize)]
struct SettingRow {
    name: &'static str,
    description: &'static str,
}

#[derive(Serialize)]
struct ModelRow {
    name: &'static str,
    description: &'static str,
    num_parameters: u64,
    max_position_embeddings: usize,
    kv_bytes_per_token_bf16: usize,
    gated: bool,
    license: &'static str,
    ollama_tag: Option<&'static str>,
    vllm_id: Option<&'static str>,
}

impl List {
    /// Prints the lists.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn execute(self, global: &Global) -> anyhow::Result<ExitStatus> {
        let listing = self.listing();
        if self.json {
            output::print_json(&listing)?;
        } else {
            output::print(&listing.text(global.width()))?;
        }
        Ok(ExitStatus::Success)
    }

    fn listing(&self) -> Listing {
        let wanted = |what| self.what.is_none_or(|chosen| chosen == what);
        Listing {
            experiments: wanted(What::Experiments).then(experiments),
            engines: wanted(What::Engines).then(engines),
            models: wanted(What::Models).then(|| cards().iter().map(model).collect()),
            gpus: wanted(What::Gpus).then(gpu_cards),
        }
    }
}

fn experiments() -> Vec<ExperimentRow> {
    let row = |experiment: Experiment| ExperimentRow {
        name: experiment.as_str(),
        description: experiment.description(),
    };
    Experiment::ALL.into_iter().map(row).collect()
}

fn engines() -> Vec<EngineRow> {
    let setting =
        |&(name, description): &(&'static str, &'static str)| SettingRow { name, description };
    let row = |kind: EngineKind| EngineRow {
        kind: kind.as_str(),
        default_url: kind.default_url(),
        settings: kind.settings().iter().map(setting).collect(),
    };
    EngineKind::ALL.into_iter().map(row).collect()
}

fn model(card: &'static ModelCard) -> ModelRow {
    ModelRow {
        name: &card.name,
        description: &card.description,
        num_parameters: card.num_parameters,
        max_position_embeddings: card.config.max_position_embeddings,
        kv_bytes_per_token_bf16: card.config.kv_bytes_per_token(KvElement::Bf16.num_bytes()),
        gated: card.gated,
        license: &card.license,
        ollama_tag: card.ollama_tag.as_deref(),
        vllm_id: card.vllm_id.as_deref(),
    }
}

impl Listing {
    fn text(&self, width: usize) -> String {
        let mut sections = Vec::new();
        if let Some(rows) = &self.experiments {
            let rows = rows.iter().map(|row| vec![row.name.to_owned(), row.description.to_owned()]);
            sections.push(table(width, &["experiment", "what"], &[], rows));
        }
        if let Some(rows) = &self.engines {
            sections.extend(rows.iter().map(EngineRow::text));
        }
        if let Some(rows) = &self.models {
            sections.extend(rows.iter().map(ModelRow::text));
        }
        if let Some(cards) = self.gpus {
            let headers =
                ["GPU", "driver\nMiB", "CUDA\nGiB", "GB/s", "bf16\nTFLOP/s", "peaks from"];
            sections.push(table(width, &headers, &[1, 2, 3, 4], cards.iter().map(gpu_cells)));
        }
        sections.join("\n")
    }
}

impl EngineRow {
    /// The kind, where it listens, and a line a setting.
    fn text(&self) -> String {
        let mut text = format!(" {}: {}\n", self.kind, self.default_url.unwrap_or("in process"));
        for SettingRow { name, description } in &self.settings {
            text.push_str(&format!("   {name:<23} {description}\n"));
        }
        text
    }
}

impl ModelRow {
    /// The name, and a line for each of the things one looks for.
    fn text(&self) -> String {
        #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
        let millions = self.num_parameters as f64 / 1e6;
        let gated = if self.gated { ", gated" } else { "" };
        let mut text = format!(" {}: {}\n", self.name, self.description);
        let mut line = |name: &str, value: &str| {
            text.push_str(&format!("   {name:<11} {value}\n"));
        };
        line("parameters", &format!("{} million", units::format_significant(millions)));
        line("context", &format!("{} tokens", self.max_position_embeddings));
        line("licence", &format!("{}{gated}", self.license));
        line("Ollama", self.ollama_tag.unwrap_or("not in its library"));
        line("vLLM", self.vllm_id.unwrap_or("not on the hub"));
        text
    }
}

fn gpu_cells(card: &GpuCard) -> Vec<String> {
    let unknown = || "-".to_owned();
    let range = |[low, high]: [f64; 2]| {
        if low < high { format!("{low:.2}–{high:.2}") } else { format!("{low:.2}") }
    };
    vec![
        card.name.clone(),
        card.memory_mib.map_or_else(unknown, |mib| mib.to_string()),
        card.cuda_gib.map_or_else(unknown, range),
        card.bandwidth_gb_per_s.to_string(),
        card.bf16_tflop_per_s.to_string(),
        card.source.clone(),
    ]
}

/// A table without frames; the columns in `numbers` are aligned to the right.
fn table(
    width: usize,
    headers: &[&str],
    numbers: &[usize],
    rows: impl Iterator<Item = Vec<String>>,
) -> String {
    let mut table = Table::new();
    let rule = LineStyle::none().fill('─').junction('─');
    table.load_style(TableStyle::new().header_separator(rule));
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    table.set_header(headers.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{}\n", table.trim_fmt())
}

/// The cases that a run would measure, a line each.
///
/// # Errors
/// When stdout cannot be written.
pub(super) fn print_cases(cases: &[Case], names: &[String]) -> anyhow::Result<ExitStatus> {
    let mut stdout = std::io::stdout().lock();
    for case in cases {
        let state = case.absent.as_ref().map_or(String::new(), |why| format!("  absent: {why}"));
        writeln!(
            stdout,
            "{:<16} {:<5} {:>4} requests  {}{}{state}",
            case.experiment,
            case.pace(),
            case.num_requests,
            names[case.engine],
            if case.again { "  again" } else { "" },
        )?;
    }
    Ok(ExitStatus::Success)
}
