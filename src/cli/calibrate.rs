//! `yardstick calibrate`: what yardstick reports beside what a scripted server
//! really did.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::{ExitStatus, Global, interrupt, output};
use crate::clock::Clock;
use crate::engine::scripted::{Scenario, Script, ScriptedServer, Stall};
use crate::experiment::calibration::{Bench, Broken, Trial};
use crate::hardware;
use crate::record::{Manifest, RecordWriter, Recorder, RunData, SCHEMA_VERSION};
use crate::report::misreading;
use crate::stats::misreading::{Reading, read};

/// Truths of a served script that may wait for the file.
const MAX_TRUTHS: usize = 4096;
/// Connections that `--serve` can hold at once.
const MAX_SERVED: u64 = 2_048;
/// Most streams, tokens and requests: beyond it a typo is likelier than a wish.
const MAX_COUNT: u32 = 100_000;

/// Measure yardstick itself against a server whose timing is known.
///
/// A server on loopback answers by a script and notes when it really wrote each
/// token; yardstick's client measures it as it measures any engine. Shown is
/// what was true beside what was reported. Exits with 1 if something was
/// misreported.
#[derive(Debug, Args)]
pub struct Calibrate {
    /// Way of answering, or all: steady, early-role, stall, chunked, reasoning, no-usage, split,
    /// merged
    #[arg(long, value_name = "NAME", default_value = "all", value_parser = scenarios)]
    scenario: Scenarios,
    /// Requests at once
    #[arg(long, value_name = "N", default_value = "10", value_parser = count())]
    streams: u32,
    /// Requests of each scenario, in bursts of --streams [default: three bursts]
    #[arg(long, value_name = "N", value_parser = count())]
    requests: Option<u32>,
    /// First token after this many ms; ten times that in early-role
    #[arg(long, value_name = "MS", default_value = "20", value_parser = millis)]
    ttft_ms: Duration,
    /// From token to token
    #[arg(long, value_name = "MS", default_value = "5", value_parser = millis)]
    gap_ms: Duration,
    /// Tokens of an answer
    #[arg(long, value_name = "N", default_value = "64", value_parser = count())]
    tokens: u32,
    /// Tokens of a chunk [default: 4 in chunked and no-usage, else 1]
    #[arg(long, value_name = "N", value_parser = count())]
    tokens_per_chunk: Option<u32>,
    /// Length of the pause in stall
    #[arg(long, value_name = "MS", default_value = "300", value_parser = millis)]
    stall_ms: Duration,
    /// Token before which the pause in stall lies, from 0 [default: the middle one]
    #[arg(long, value_name = "K")]
    stall_at: Option<u32>,
    /// Error of a median above which it counts as misreported, in percent, and never below 1 ms
    #[arg(long, value_name = "PERCENT", default_value = "5")]
    tolerance: f64,
    /// Keep the raw records in this folder, which must not exist
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Measure nothing: serve one scenario to other clients until Ctrl-C
    #[arg(long, conflicts_with_all = ["streams", "requests", "tolerance", "out", "json"])]
    serve: bool,
    /// Port to serve on, 0 for any that is free
    #[arg(long, value_name = "PORT", default_value = "0", requires = "serve")]
    port: u16,
    /// File for what was really written, a line of JSON for each answer served
    #[arg(long, value_name = "FILE", requires = "serve")]
    truth: Option<PathBuf>,
}

/// The scenarios asked for.
#[derive(Debug, Clone, Copy)]
enum Scenarios {
    All,
    One(Scenario),
}

fn scenarios(text: &str) -> Result<Scenarios, String> {
    if text == "all" { Ok(Scenarios::All) } else { text.parse().map(Scenarios::One) }
}

fn count() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_COUNT))
}

fn millis(text: &str) -> Result<Duration, String> {
    let ms = text.parse::<f64>().ok().filter(|ms| (0.0..=3_600_000.0).contains(ms));
    ms.map(|ms| Duration::from_secs_f64(ms / 1e3))
        .ok_or_else(|| "expected milliseconds, from 0 to an hour".to_owned())
}

impl Calibrate {
    /// Measures, or serves.
    ///
    /// # Errors
    /// When the scripted server cannot be had, or files cannot be written.
    pub fn execute(self, global: &Global) -> anyhow::Result<ExitStatus> {
        if !(self.tolerance.is_finite() && self.tolerance > 0.0) {
            bail!("--tolerance is {}: expected a number above 0", self.tolerance);
        }
        let cancel = interrupt::token()?;
        // Both ends of every stream are in this process.
        let streams = if self.serve { MAX_SERVED } else { u64::from(self.streams) * 2 };
        hardware::allow_streams(streams).map_err(|what| {
            Failure::new(what).with_hint("raise it with `ulimit -Hn` as root, or lower --streams")
        })?;
        if self.serve {
            return self.serve(&cancel);
        }
        let (path, scratch) = match &self.out {
            Some(path) => (path.clone(), None),
            None => {
                let scratch = Scratch::new();
                (scratch.0.clone(), Some(scratch))
            }
        };
        let trials = self.trials();
        self.measure(&path, &trials, &cancel)?;
        let data = RunData::read(&path)?;
        drop(scratch);
        let readings: Vec<Reading> = trials
            .iter()
            .filter(|trial| data.calibration.iter().any(|record| record.part == trial.part))
            .map(|trial| {
                read(&trial.part, &data.calibration, &data.journal, self.tolerance / 100.0)
            })
            .collect();
        if self.json {
            output::print_json(&readings)?;
        } else {
            let mut text = String::new();
            misreading::render(&readings, global.colour_stdout(), global.width(), &mut text)?;
            output::print(&text)?;
        }
        Ok(if cancel.is_cancelled() {
            ExitStatus::Interrupted
        } else if readings.len() == trials.len() && readings.iter().all(Reading::is_true) {
            ExitStatus::Success
        } else {
            ExitStatus::Failure
        })
    }

    fn plain(&self) -> Script {
        Script {
            ttft: self.ttft_ms,
            gap: self.gap_ms,
            num_tokens: self.tokens,
            tokens_per_chunk: self.tokens_per_chunk.unwrap_or(1),
            ..Script::default()
        }
    }

    fn script(&self, scenario: Scenario) -> Script {
        let plain = self.plain();
        if scenario != Scenario::Stall {
            return scenario.script(&plain);
        }
        let at_token = self.stall_at.unwrap_or(self.tokens / 2);
        Script { stall: Some(Stall { at_token, lasts: self.stall_ms }), ..plain }
    }

    fn trials(&self) -> Vec<Trial> {
        let scenarios = match self.scenario {
            Scenarios::All => Scenario::ALL.to_vec(),
            Scenarios::One(scenario) => vec![scenario],
        };
        let num_bursts = self.requests.map_or(3, |requests| requests.div_ceil(self.streams));
        let trial = |scenario: Scenario| Trial {
            part: scenario.to_string(),
            script: self.script(scenario),
            concurrency: self.streams,
            num_bursts,
            in_step: true,
        };
        scenarios.into_iter().map(trial).collect()
    }

    fn measure(
        &self,
        path: &Path,
        trials: &[Trial],
        cancel: &CancellationToken,
    ) -> anyhow::Result<()> {
        let clock = Clock::real();
        let writer = RecordWriter::start(Recorder::create(path, &manifest())?, None);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the driver's runtime")?;
        let cpu_time = hardware::process_cpu_time;
        let bench = Bench { clock: &clock, writer: &writer, cancel, cpu_time };
        let mut ended = Ok(());
        for trial in trials {
            if cancel.is_cancelled() {
                break;
            }
            ended = runtime.block_on(bench.measure(trial)).map_err(|broken| (trial, broken));
            if ended.is_err() {
                break;
            }
        }
        writer.finish()?;
        match ended {
            Err((trial, Broken::Impossible(reason))) if !cancel.is_cancelled() => {
                bail!("scenario {}: {reason}", trial.part)
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn serve(&self, cancel: &CancellationToken) -> anyhow::Result<ExitStatus> {
        let scenario = match self.scenario {
            Scenarios::All => Scenario::Steady,
            Scenarios::One(scenario) => scenario,
        };
        let mut file = match &self.truth {
            Some(path) => Some(
                File::create(path).with_context(|| format!("cannot create {}", path.display()))?,
            ),
            None => None,
        };
        let server =
            ScriptedServer::start(&self.script(scenario), self.port, &Clock::real(), MAX_TRUTHS)
                .context("cannot start the scripted server")?;
        output::print(&format!("{}\n", server.url()))?;
        while !cancel.is_cancelled() {
            let Some(truth) = server.truth(Duration::from_millis(50)) else { continue };
            if let Some(file) = &mut file {
                let record = crate::experiment::calibration::truth_record(&truth);
                let mut line = serde_json::to_vec(&record)?;
                line.push(b'\n');
                file.write_all(&line).context("cannot write the file of --truth")?;
            }
        }
        if server.num_lost() > 0 && file.is_some() {
            output::warn(&format!("{} answers are not in the file", server.num_lost()));
        }
        // To be stopped is how a server ends.
        Ok(ExitStatus::Success)
    }
}

/// A folder that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        Self(super::label::scratch_path("yardstick-calibrate"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left to the system, which cleans this folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn manifest() -> Manifest {
    Manifest {
        schema_version: SCHEMA_VERSION,
        yardstick_version: env!("CARGO_PKG_VERSION").to_owned(),
        name: "calibrate".to_owned(),
        started_at: super::label::wall_label("%Y-%m-%dT%H:%M:%SZ"),
        machine: hardware::machine(),
        model: "scripted".to_owned(),
        seed: 0,
        plan: String::new(),
        plan_sha256: String::new(),
        engines: Vec::new(),
        cases: Vec::new(),
    }
}
