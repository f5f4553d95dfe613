//! `yardstick compare`: two runs, or the engines of one, with a verdict and gates.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::output::{self, print, print_json};
use super::{ExitStatus, Failure, Global};
use crate::record::RunData;
use crate::report::compared::{ComparedRuns, RunLabel};
use crate::stats::case::{CaseRequests, group};
use crate::stats::compare::across::{RunSide, compare_runs};
use crate::stats::compare::cells::{Measured, Question, compare_engines, is_named};
use crate::stats::compare::gate::{Gate, Outcome};
use crate::stats::compare::{MARGIN, Metric};
use crate::stats::{Summary, summarise};

/// Say whether engines, or one before and after, are the same, different or neither.
///
/// With two run directories, engines of equal names are compared; RUN#ENGINE picks
/// one of a run, and two single engines are compared whatever their names. With one
/// directory its engines are compared with each other. A round is the unit, so a
/// difference takes 6 rounds within a run and 4 in each of two runs.
///
/// Exit code 1 if a gate is exceeded.
#[derive(Debug, Args)]
pub struct Compare {
    /// Run directory to compare with, as RUN or RUN#ENGINE
    #[arg(value_name = "BASE")]
    base: String,
    /// Run directory to compare, as RUN or RUN#ENGINE [default: the other engines of BASE]
    #[arg(value_name = "CANDIDATE")]
    candidate: Option<String>,
    /// Engine that the others of one run are compared with [default: the first]
    #[arg(long, value_name = "ENGINE", conflicts_with = "candidate")]
    baseline: Option<String>,
    /// Metric to compare, such as ttft_p90 or steady_output_tokens_per_s; repeatable
    /// [default: ttft_p50, tpot_p50, e2el_p50, output_tokens_per_s, and cold_ttft]
    #[arg(long = "metric", value_name = "METRIC")]
    metrics: Vec<Metric>,
    /// Experiment or load to compare; repeatable [default: all]
    #[arg(long = "experiment", value_name = "NAME")]
    experiments: Vec<String>,
    /// How far apart is still the same
    #[arg(long, value_name = "PERCENT", default_value_t = Margin(MARGIN))]
    margin: Margin,
    /// Gate, as 'METRIC [@EXPERIMENT[,C=N]] > +5%' or '< -3%'; repeatable
    #[arg(long = "fail-if", value_name = "GATE")]
    gates: Vec<Gate>,
    /// Fail if a gate is undecided, too
    #[arg(long, requires = "gates")]
    strict: bool,
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Terminal)]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// A share that is written in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Margin(f64);

impl std::fmt::Display for Margin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0 * 100.0)
    }
}

impl std::str::FromStr for Margin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim().strip_suffix('%').unwrap_or(text).trim().parse::<f64>();
        let percent = number.ok().filter(|percent| *percent > 0.0 && *percent <= 100.0);
        let percent = percent
            .ok_or_else(|| format!("`{text}` is no margin: expected a percentage up to 100"))?;
        Ok(Self(percent / 100.0))
    }
}

/// The renderings of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Tables for a terminal
    Terminal,
    /// Tables for a document
    Markdown,
    /// Every number, as docs/FORMAT.md describes
    Json,
}

/// A run directory that was read, and the one engine of it that was asked for.
struct Read {
    label: RunLabel,
    data: RunData,
    summary: Summary,
    engine: Option<String>,
}

impl Compare {
    /// Reads, compares, prints.
    ///
    /// # Errors
    /// When a directory cannot be read, a name is unknown, nothing belongs together, or a
    /// gate is about nothing.
    pub fn execute(self, global: &Global) -> anyhow::Result<ExitStatus> {
        let base = Read::new(&self.base)?;
        let candidate = self.candidate.as_deref().map(Read::new).transpose()?;
        let found = match &candidate {
            Some(candidate) => self.across(&base, candidate)?,
            None => self.within(&base)?,
        };
        if found.compared.comparisons.is_empty() && found.compared.not_compared.is_empty() {
            return Err(Failure::new("no case was measured, so there is nothing to compare").into());
        }
        self.print(global, &found)?;
        Ok(self.judge(&found))
    }

    fn within(&self, run: &Read) -> anyhow::Result<ComparedRuns> {
        let baseline = match (&self.baseline, &run.engine) {
            (Some(name), None) | (None, Some(name)) => Some(run.known_engine(name)?),
            (Some(name), Some(engine)) if name != engine => {
                let what = format!("two baselines: --baseline {name} and #{engine}");
                return Err(Failure::new(what).with_hint("give one of them").into());
            }
            (Some(name), Some(_)) => Some(run.known_engine(name)?),
            (None, None) => None,
        };
        if run.data.manifest.engines.len() < 2 {
            let what = format!("{} has one engine", run.label.run);
            let hint = "give a second run directory to compare it with";
            return Err(Failure::new(what).with_hint(hint).into());
        }
        let grouped = group(&run.data);
        let measured = self.measured(&[(run, &grouped)])?.remove(0);
        let also = self.gate_metrics();
        let compared = compare_engines(&measured, baseline, &self.question(&also));
        self.hold(ComparedRuns::new(run.label.clone(), None, self.margin.0, compared))
    }

    fn across(&self, base: &Read, candidate: &Read) -> anyhow::Result<ComparedRuns> {
        let grouped = (group(&base.data), group(&candidate.data));
        let measured = self.measured(&[(base, &grouped.0), (candidate, &grouped.1)])?;
        let also = self.gate_metrics();
        let found = compare_runs(
            &base.side(&measured[0])?,
            &candidate.side(&measured[1])?,
            &self.question(&also),
        );
        let found = found.map_err(|what| {
            Failure::new(what).with_hint("name one engine of each run: RUN#ENGINE OTHER#ENGINE")
        })?;
        let labels = (base.label.clone(), Some(candidate.label.clone()));
        let mut runs = ComparedRuns::new(labels.0, labels.1, self.margin.0, found.compared);
        runs.doubts = found.doubts;
        self.hold(runs)
    }

    /// The runs' cells, of the experiments that were asked for.
    fn measured<'a>(
        &self,
        runs: &[(&'a Read, &'a [CaseRequests<'a>])],
    ) -> anyhow::Result<Vec<Measured<'a>>> {
        let mut known: Vec<&str> = Vec::new();
        let mut all = Vec::new();
        for (run, grouped) in runs {
            let mut measured = Measured::new(grouped, &run.summary.cases);
            known.extend(measured.cells.iter().map(|cell| cell.experiment));
            if !self.experiments.is_empty() {
                measured.keep_experiments(&self.experiments);
            }
            all.push(measured);
        }
        known.sort_unstable();
        known.dedup();
        let unknown = self
            .experiments
            .iter()
            .find(|name| !known.iter().any(|known| is_named(known, std::slice::from_ref(*name))));
        if let Some(name) = unknown {
            let what = format!("no case of `{name}` was measured: expected {}", known.join(", "));
            return Err(Failure::new(what).into());
        }
        Ok(all)
    }

    fn gate_metrics(&self) -> Vec<Metric> {
        self.gates.iter().map(Gate::metric).collect()
    }

    fn question<'a>(&'a self, also: &'a [Metric]) -> Question<'a> {
        Question { metrics: &self.metrics, also, margin: self.margin.0 }
    }

    fn hold(&self, mut runs: ComparedRuns) -> anyhow::Result<ComparedRuns> {
        for gate in &self.gates {
            let result = gate.hold(&runs.compared).ok_or_else(|| {
                Failure::new(format!("gate `{gate}` is about nothing that was compared"))
                    .with_hint("a gate that looks at nothing must not pass: check its experiment and concurrency")
            })?;
            runs.gates.push(result);
        }
        Ok(runs)
    }

    fn print(&self, global: &Global, found: &ComparedRuns) -> anyhow::Result<()> {
        let format = if self.json { Format::Json } else { self.format };
        let mut text = String::new();
        match format {
            Format::Terminal => {
                found.render_terminal(global.colour_stdout(), global.width(), &mut text)?;
            }
            Format::Markdown => found.render_markdown(&mut text)?,
            Format::Json => return print_json(found),
        }
        print(&text)
    }

    fn judge(&self, found: &ComparedRuns) -> ExitStatus {
        let mut exit = ExitStatus::Success;
        for result in &found.gates {
            let fails = match result.outcome {
                Outcome::Exceeded => true,
                Outcome::Undecided => self.strict,
                Outcome::Kept => false,
            };
            if fails {
                exit = ExitStatus::Failure;
            }
            if result.outcome != Outcome::Kept {
                let word = if fails { "fails" } else { "passes" };
                output::note(&format!(
                    "gate `{}` is {} and {word}",
                    result.gate,
                    result.outcome.as_str()
                ));
            }
        }
        exit
    }
}

impl Read {
    /// `RUN` or `RUN#ENGINE`; a folder whose name has a # in it is a folder.
    fn new(text: &str) -> anyhow::Result<Self> {
        let (path, engine) = match text.rsplit_once('#') {
            Some((path, engine)) if !Path::new(text).is_dir() => {
                (PathBuf::from(path), Some(engine.to_owned()))
            }
            _ => (PathBuf::from(text), None),
        };
        let data = RunData::read(&path)?;
        let summary = summarise(&data);
        let label = RunLabel {
            run: text.to_owned(),
            name: data.manifest.name.clone(),
            started_at: data.manifest.started_at.clone(),
        };
        Ok(Self { label, data, summary, engine })
    }

    fn side<'a>(&'a self, measured: &'a Measured<'a>) -> anyhow::Result<RunSide<'a>> {
        let engine = self.engine.as_deref().map(|name| self.known_engine(name)).transpose()?;
        Ok(RunSide { data: &self.data, summary: &self.summary, measured, engine })
    }

    fn known_engine<'a>(&self, name: &'a str) -> anyhow::Result<&'a str> {
        let engines = &self.data.manifest.engines;
        if engines.iter().any(|engine| engine.spec.name == name) {
            return Ok(name);
        }
        let known: Vec<_> = engines.iter().map(|engine| engine.spec.name.as_str()).collect();
        let what =
            format!("{} has no engine `{name}`: expected {}", self.label.run, known.join(", "));
        Err(Failure::new(what).into())
    }
}
