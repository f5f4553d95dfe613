//! `yardstick report`: render a run directory again.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ExitStatus, Global};
use crate::record::RunData;
use crate::record::run_dir::write_whole;
use crate::report;
use crate::stats::summarise;

/// Render a run directory again, from its raw lines.
#[derive(Debug, Args)]
pub struct Report {
    /// Run directory
    run: PathBuf,
    /// What to render
    #[arg(long, value_enum, default_value_t = Format::Terminal)]
    format: Format,
    /// File to write instead of stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The renderings of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Tables for a terminal
    Terminal,
    /// One self-contained page
    Html,
    /// Tables for a document
    Markdown,
    /// One row for each case and metric
    Csv,
    /// summary.json
    Json,
}

impl Report {
    /// Reads, derives, renders.
    ///
    /// # Errors
    /// When the directory is no run directory, damaged, or the output cannot be written.
    pub fn execute(self, global: &Global) -> anyhow::Result<ExitStatus> {
        let data = RunData::read(&self.run)?;
        let summary = summarise(&data);
        let mut text = String::new();
        match self.format {
            Format::Terminal => {
                let colour = self.output.is_none() && global.colour_stdout();
                report::render_terminal(&data, &summary, colour, global.width(), &mut text)?;
            }
            Format::Html => report::render_html(&data, &summary, &mut text)?,
            Format::Markdown => report::render_markdown(&data, &summary, &mut text)?,
            Format::Csv => report::render_csv(&data, &summary, &mut text)?,
            Format::Json => {
                text = serde_json::to_string_pretty(&summary)?;
                text.push('\n');
            }
        }
        match &self.output {
            Some(path) => write_whole(path, text.as_bytes())?,
            None => std::io::stdout().lock().write_all(text.as_bytes())?,
        }
        Ok(ExitStatus::Success)
    }
}
