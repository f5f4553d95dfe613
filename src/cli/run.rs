//! `yardstick run`: from arguments to a run directory, a table and a report.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::arrangement_args::ArrangementArgs;
use super::engines::{self, Contestants, Opening};
use super::kv_args::KvArgs;
use super::label::{default_path, fresh_seed, wall_label};
use super::list;
use super::load_args::LoadArgs;
use super::output;
use super::progress::RunProgress;
use super::{ExitStatus, Failure, Global};
use crate::clock::Clock;
use crate::engine::EngineSpec;
use crate::experiment::{Ended, Session, run_cases};
use crate::hardware;
use crate::lifecycle::{Lifecycles, process::this_program};
use crate::plan::lifecycle::parse_start;
use crate::plan::{Case, Experiment, Plan, PromptPlan, expand};
use crate::probe::{self, Probe};
use crate::record::run_dir::{write_json, write_whole};
use crate::record::{Manifest, RecordWriter, Recorder, RunData, RunDirError, SCHEMA_VERSION};
use crate::report;
use crate::stats::{Summary, summarise};
use crate::workload::source::read_sources;
use crate::workload::{Workload, sha256_hex};

/// Measure engines side by side, into a run directory with a report.
///
/// Without arguments: the embedded engine on the default model, in process and
/// over HTTP, and every engine found running here (Ollama on 11434, vLLM on
/// 8000, llama-server on 8080), each with the four experiments.
#[derive(Debug, Args)]
pub struct Run {
    /// Plan file in TOML; options given here override what it says
    plan: Option<PathBuf>,
    /// Engine to measure, as [NAME:]KIND[=URL][?KEY=VALUE&...]; repeatable
    #[arg(long = "engine", value_name = "SPEC")]
    engines: Vec<EngineSpec>,
    /// Start this engine and stop it at the end; {port} and {model} are filled
    /// in, and it listens at a free port if {port} is there; repeatable
    #[arg(long = "start", value_name = "NAME=COMMAND")]
    starts: Vec<String>,
    /// Experiment to run; repeatable [default: all four]
    #[arg(long = "experiment", value_name = "NAME")]
    experiments: Vec<Experiment>,
    /// Model card name, GGUF file, or folder with config.json and safetensors
    #[arg(long, value_name = "NAME|PATH")]
    model: Option<String>,
    /// Repetitions of every case, interleaved between the engines [default: 1]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Requests in each case [default: 10 in sequence, else one burst]
    #[arg(long, value_name = "N")]
    requests: Option<u32>,
    /// Requests at once, and the last level of batched-warm [default: 10]
    #[arg(long, value_name = "C")]
    concurrency: Option<u32>,
    /// Question to ask, through the chat template
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_tokens")]
    prompt: Option<String>,
    /// Ask with synthetic prompts of exactly this many tokens instead
    #[arg(long, value_name = "N")]
    prompt_tokens: Option<u32>,
    /// Send the same prompt every time, as the original study did
    #[arg(long)]
    same_prompt: bool,
    /// Bound on generated tokens [default: 64]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Sampling temperature, 0 is greedy [default: 0]
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Let answers end at an end-of-sequence token instead of running to --max-tokens
    #[arg(long)]
    stop_at_eos: bool,
    /// Seed of prompts, sampling and dummy weights [default: a fresh one]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Weights of the embedded engine: auto, or dummy for seeded noise of the model's shapes
    #[arg(long, value_name = "FORMAT")]
    load_format: Option<super::LoadFormat>,
    /// Do not look at processes, GPUs and the engines' own metrics while measuring
    #[arg(long, conflicts_with = "probe_hz")]
    no_probe: bool,
    /// Looks at processes and GPUs per second
    #[arg(long, value_name = "N", default_value_t = probe::DEFAULT_HZ,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(probe::MAX_HZ)))]
    probe_hz: u32,
    /// Name of the run [default: comparison]
    #[arg(long)]
    name: Option<String>,
    /// Run directory, which must not exist [default: runs/TIME-NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print summary.json on stdout and nothing else there
    #[arg(long)]
    json: bool,
    /// Do not measure the client's own error before and after the cases (about a second each)
    #[arg(long)]
    no_calibration: bool,
    /// Print the cases that would be measured, and stop
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    arrangement: ArrangementArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    kv: KvArgs,
}

impl Run {
    /// Measures and reports.
    ///
    /// # Errors
    /// When the plan is wrong, an engine that was asked for does not answer, or
    /// the run directory cannot be written.
    pub fn execute(self, global: &Global) -> anyhow::Result<ExitStatus> {
        let clock = Clock::real();
        let plan = self.plan()?;
        // Decided before the run, so that two runs against one server do not
        // meet each other's prefix cache, and recorded, so that they can.
        let seed = plan.seed.unwrap_or_else(fresh_seed);
        let mut plan = Plan { seed: Some(seed), ..plan };
        read_sources(&mut plan)?;
        let told = plan.clone();
        let plan = plan.swept()?;
        let cancel = super::interrupt::token()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the driver's runtime")?;
        let path = self.out.clone().unwrap_or_else(|| default_path(&plan.name));
        let (plan, lifecycles) = self.lifecycles(plan, &path, &clock)?;
        let opening = Opening { lifecycles: &lifecycles, starts: !self.list, cancel: &cancel };
        let assembled = runtime.block_on(engines::assemble(&plan, seed, &clock, &opening));
        if cancel.is_cancelled() && !lifecycles.is_empty() {
            return Ok(ExitStatus::Interrupted);
        }
        let contestants = assembled?;
        let cases = expand(&plan, &contestants.subjects());
        if self.list {
            return list::print_cases(&cases, &contestants.names());
        }
        allow_streams(&cases)?;
        let told = match told.kv_sweep {
            // Read again it has the same points.
            Some(_) => told,
            None => Plan { engines: contestants.specs(), ..plan.clone() },
        };
        let manifest = manifest(&told, seed, &contestants, &cases);
        let recorder = Recorder::create(&path, &manifest)?;
        lifecycles.settle(&path).context("cannot move the engines' logs")?;
        let measurement = Measurement {
            plan: &plan,
            seed,
            clock: &clock,
            cancel: &cancel,
            no_calibration: self.no_calibration.then(|| "--no-calibration was given".to_owned()),
            lifecycles: &lifecycles,
            probe_hz: (!self.no_probe).then_some(self.probe_hz),
        };
        let measured = measurement.measure(&runtime, &contestants, &cases, recorder);
        drop(lifecycles);
        // Engines are stopped before anything is computed or printed.
        drop(contestants);
        let derived = finish(&path);
        // A full disk fails both; the first failure is the cause.
        let ended = measured?;
        let (data, summary) = derived?;
        self.print(global, &path, &data, &summary)?;
        Ok(self.arrangement.exit_status(&ended, &data, &summary))
    }

    /// Who starts engines. Their logs need a place before there is a run
    /// directory, whose manifest says what the engines said once they ran.
    fn lifecycles(
        &self,
        mut plan: Plan,
        path: &Path,
        clock: &Clock,
    ) -> anyhow::Result<(Plan, Lifecycles)> {
        if !plan.lifecycles.is_empty() && !self.list && path.exists() {
            return Err(RunDirError::Exists(path.to_owned()).into());
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let staging = path.with_file_name(format!(".{name}.logs"));
        let mut lifecycles = Lifecycles::new(&mut plan, &this_program(), &staging, clock)?;
        if !self.list {
            lifecycles.claim()?;
        }
        Ok((plan, lifecycles))
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        let mut plan = match &self.plan {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read plan {}", path.display()))?;
                Plan::from_toml(&text).with_context(|| path.display().to_string())?
            }
            None => Plan::default(),
        };
        if !self.engines.is_empty() {
            plan.engines.clone_from(&self.engines);
            plan.lifecycles.retain(|name, _| self.engines.iter().any(|spec| spec.name == *name));
        }
        for start in &self.starts {
            let (name, lifecycle) = parse_start(start)?;
            plan.lifecycles.insert(name, lifecycle);
        }
        if !self.experiments.is_empty() {
            plan.experiments.clone_from(&self.experiments);
        }
        if let Some(text) = &self.prompt {
            plan.prompt = PromptPlan::Question(text.clone());
        }
        if let Some(num_tokens) = self.prompt_tokens {
            plan.prompt = PromptPlan::Synthetic { num_tokens };
        }
        plan.requests = self.requests.or(plan.requests);
        plan.seed = self.seed.or(plan.seed);
        plan.same_prompt |= self.same_prompt;
        plan.stop_at_eos |= self.stop_at_eos;
        set(&mut plan.model, self.model.as_ref());
        set(&mut plan.name, self.name.as_ref());
        set(&mut plan.rounds, self.rounds.as_ref());
        set(&mut plan.concurrency, self.concurrency.as_ref());
        set(&mut plan.max_tokens, self.max_tokens.as_ref());
        set(&mut plan.temperature, self.temperature.as_ref());
        if let Some(format) = self.load_format {
            plan.dummy_weights = format == super::LoadFormat::Dummy;
        }
        self.arrangement.apply(&mut plan);
        self.kv.apply(&mut plan)?;
        let asked_for_experiments = !self.experiments.is_empty();
        self.load.apply(&mut plan, self.requests, self.prompt_tokens, asked_for_experiments)?;
        plan.check()?;
        Ok(plan)
    }

    fn print(
        &self,
        global: &Global,
        path: &Path,
        data: &RunData,
        summary: &Summary,
    ) -> anyhow::Result<()> {
        let mut stdout = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut stdout, summary)?;
            writeln!(stdout)?;
        } else {
            let mut text = String::new();
            report::render_terminal(
                data,
                summary,
                global.colour_stdout(),
                global.width(),
                &mut text,
            )?;
            write!(stdout, "{text}")?;
        }
        output::note(&format!("report: {}", path.join("report.html").display()));
        Ok(())
    }
}

/// What the measuring phase needs beside engines and cases.
struct Measurement<'a> {
    plan: &'a Plan,
    seed: u64,
    clock: &'a Clock,
    cancel: &'a CancellationToken,
    /// Why the client is not measured; `None` if it is.
    no_calibration: Option<String>,
    lifecycles: &'a Lifecycles,
    /// Looks a second at resources; `None` for none.
    probe_hz: Option<u32>,
}

impl Measurement<'_> {
    fn measure(
        &self,
        runtime: &tokio::runtime::Runtime,
        contestants: &Contestants,
        cases: &[Case],
        recorder: Recorder,
    ) -> anyhow::Result<Ended> {
        let tokenizer = contestants.tokenizer.clone();
        let workload = Workload::new(self.plan, self.seed, tokenizer.clone());
        if !workload.is_token_exact() {
            output::warn(
                "the model's tokenizer is not on this machine: prompts have about the asked-for length",
            );
        }
        let count: Option<crate::record::writer::CountTokens> = tokenizer.map(|tokenizer| {
            let count = move |text: &str| {
                tokenizer.encode(text, false).ok().and_then(|ids| u32::try_from(ids.len()).ok())
            };
            Box::new(count) as _
        });
        let writer = RecordWriter::start(recorder, count);
        let probe = self
            .probe_hz
            .map(|hz| {
                let specs = contestants.specs();
                let led: Vec<bool> =
                    (0..specs.len()).map(|engine| self.lifecycles.starts(engine)).collect();
                Probe::start(hz, &specs, &led, self.clock, &writer.sender())
            })
            .transpose()
            .context("cannot start the probe")?;
        let session = Session {
            engines: contestants.engines(),
            workload: &workload,
            clock: self.clock,
            writer: &writer,
            cancel: self.cancel.clone(),
            cpu_time: hardware::process_cpu_time,
            resident_bytes: hardware::resident_bytes,
            no_calibration: self.no_calibration.clone(),
            lifecycles: self.lifecycles,
            introduction: contestants.introduction.clone(),
            unloadable: contestants.unloadable(),
            warm_up: self.plan.warm_up,
            probe: probe.as_ref().map_or_else(probe::Handle::off, Probe::handle),
        };
        let mut progress = RunProgress::new(cases, contestants.names());
        let ended = runtime.block_on(run_cases(&session, cases, &mut progress));
        progress.clear();
        drop(session);
        // Its lines are with the recorder before that is asked to finish.
        drop(probe);
        writer.finish()?;
        Ok(ended)
    }
}

/// Every stream is an open file, and another where its server is in this process,
/// as the scripted server is that the run measures itself against.
fn allow_streams(cases: &[Case]) -> anyhow::Result<()> {
    let most = cases.iter().map(|case| u64::from(case.concurrency())).max().unwrap_or(0);
    hardware::allow_streams(most * 2).map_err(|what| {
        let hint = "raise it with `ulimit -Hn` as root, or lower --max-in-flight or --concurrency";
        Failure::new(what).with_hint(hint).into()
    })
}

fn set<T: Clone>(field: &mut T, given: Option<&T>) {
    if let Some(value) = given {
        field.clone_from(value);
    }
}

fn manifest(plan: &Plan, seed: u64, contestants: &Contestants, cases: &[Case]) -> Manifest {
    let toml = plan.to_toml();
    let subjects = contestants.subjects();
    Manifest {
        schema_version: SCHEMA_VERSION,
        yardstick_version: env!("CARGO_PKG_VERSION").to_owned(),
        name: plan.name.clone(),
        started_at: wall_label("%Y-%m-%dT%H:%M:%SZ"),
        machine: hardware::machine(),
        model: plan.model.clone(),
        seed,
        plan_sha256: sha256_hex(toml.as_bytes()),
        plan: toml,
        engines: contestants.records(),
        cases: cases.iter().map(|case| case.record(&subjects)).collect(),
    }
}

/// Reads the raw lines back and derives the rest from them, so that
/// `yardstick report` on this directory says the same.
fn finish(path: &Path) -> anyhow::Result<(RunData, Summary)> {
    let data = RunData::read(path)?;
    let summary = summarise(&data);
    write_json(&path.join("summary.json"), &summary)?;
    let mut html = String::new();
    report::render_html(&data, &summary, &mut html)?;
    write_whole(&path.join("report.html"), html.as_bytes())?;
    Ok((data, summary))
}
