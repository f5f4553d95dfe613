//! `yardstick size --simulate`: options into a setup, a simulation into a page.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::pool::{self, Pool};
use super::pulse::Watcher;
use crate::catalog::card::find_card;
use crate::catalog::{LocateOptions, locate};
use crate::cli::load_args::duration;
use crate::cli::{ExitStatus, Failure, Global, output};
use crate::hardware::{GpuCard, gpu_cards};
use crate::infer::scheduler::SchedulerLimits;
use crate::infer::{ModelConfig, weights};
use crate::load::arrival::{Arrivals, Extent, Process};
use crate::plan::{Lengths, Slo};
use crate::record::RunData;
use crate::report;
use crate::simulation::roofline::{Efficiency, Roofline};
use crate::simulation::step_time::StepTimeSource;
use crate::simulation::summary::{EngineFacts, summarise};
use crate::simulation::{Content, Load, Setup, StepTime, capacity, measured, simulate};

/// Bytes of a weight, and of an element of K and V: bf16.
pub(super) const BF16: usize = 2;
/// Most requests a second that are taken for a wish.
const MAX_RATE: f64 = 1e6;
/// Most users.
const MAX_USERS: i64 = 1_000_000;
/// Length of a load that nothing else ends.
const DURATION: Duration = Duration::from_secs(600);

/// The engine that is sized.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine options")]
pub struct EngineArgs {
    /// GPU card that step times are derived from (`yardstick list gpus`)
    #[arg(long, value_name = "NAME", required_unless_present = "steps_from")]
    gpu: Option<String>,
    /// Model card, GGUF file, or folder [default: that of --steps-from]
    #[arg(long, value_name = "NAME|PATH", required_unless_present = "steps_from")]
    model: Option<String>,
    #[command(flatten)]
    pub(super) pool: pool::PoolArgs,
    /// Sequences in one step [default: 64, or that of --steps-from]
    #[arg(long, value_name = "N")]
    max_num_seqs: Option<NonZeroUsize>,
    /// Tokens in one step, prompts included [default: 2048, or that of --steps-from]
    #[arg(long, value_name = "N")]
    max_num_batched_tokens: Option<NonZeroUsize>,
    /// Requests that may wait; one more is refused [default: any number]
    #[arg(long, value_name = "N")]
    max_queue: Option<NonZeroUsize>,
    /// Compute every prompt from its first token
    #[arg(long)]
    no_prefix_caching: bool,
}

/// The load, and what step times are taken from.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Simulation options")]
pub struct SimulationArgs {
    /// Requests a second; with --users, what all users together ask for when every answer is
    /// instant: each then pauses for users/rate seconds on average
    #[arg(long, value_name = "R", value_parser = rate, required_unless_present = "users")]
    rate: Option<f64>,
    /// Users who each wait for their answer before they ask again
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_USERS))]
    users: Option<u32>,
    /// Mean of users' exponential pauses, such as 30s [default: none]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "users")]
    #[arg(conflicts_with = "rate")]
    think: Option<Duration>,
    /// How requests arrive at a rate: poisson, constant or gamma [default: poisson]
    #[arg(long, value_name = "KIND", value_parser = ["poisson", "constant", "gamma"])]
    #[arg(conflicts_with = "users")]
    arrival: Option<String>,
    /// Shape of gamma gaps: 1 is Poisson, less is burstier
    #[arg(long, value_name = "K", value_parser = positive)]
    burstiness: Option<f64>,
    /// Prompt lengths: N, uniform:LEAST-MOST, normal:MEAN,SD or lognormal:MEAN,SD
    #[arg(long, value_name = "LENGTHS", default_value = "512")]
    prompt_tokens: Lengths,
    /// Answer lengths, in the same words
    #[arg(long, value_name = "LENGTHS", default_value = "128")]
    output_tokens: Lengths,
    /// Let all prompts begin with the same tokens, so many
    #[arg(long, value_name = "N", default_value = "0")]
    prefix_tokens: u32,
    /// No request is made after it, such as 30s or 2h [default: 10m, or --requests]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// Requests in all
    #[arg(long, value_name = "N")]
    requests: Option<NonZeroU32>,
    /// Objectives, such as ttft_p90<500ms,tpot<50ms
    #[arg(long, value_name = "SLO,...", value_parser = slos)]
    slo: Option<Objectives>,
    /// Look for the highest rate that is kept up with and meets --slo
    #[arg(long, requires = "rate", conflicts_with = "users")]
    capacity: bool,
    /// Fit step times to the steps that an embedded engine made in this run, instead of a
    /// roofline
    #[arg(long, value_name = "RUN", conflicts_with = "gpu")]
    steps_from: Option<PathBuf>,
    /// Which engine of --steps-from, where it has several
    #[arg(long, value_name = "NAME", requires = "steps_from")]
    steps_engine: Option<String>,
    /// Share of the card's bandwidth that is assumed [default: 0.8]
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "steps_from")]
    bandwidth_efficiency: Option<f64>,
    /// Share of the card's FLOP/s that is assumed [default: 0.5]
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "steps_from")]
    compute_efficiency: Option<f64>,
    /// Time of each step that is neither reading nor multiplying [default: 1ms]
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "steps_from")]
    step_overhead: Option<Duration>,
    /// Seed of arrivals, lengths and pauses
    #[arg(long, value_name = "S", default_value = "0")]
    seed: u64,
}

/// What `--slo` names.
#[derive(Debug, Clone)]
struct Objectives(Vec<Slo>);

/// Everything that a simulation is told from.
struct Prepared {
    setup: Setup,
    step_times: StepTimeSource,
    engine: EngineFacts,
}

/// Simulates what the options say, and prints what came of it.
///
/// # Errors
/// When an option is out of range, a file cannot be read, or nothing can be served.
pub(super) fn execute(
    engine: &EngineArgs,
    args: &SimulationArgs,
    json: bool,
    global: &Global,
) -> anyhow::Result<ExitStatus> {
    let prepared = prepare(engine, args)?;
    let slos = args.slo.as_ref().map_or(&[][..], |Objectives(slos)| slos);
    let mut watcher = Watcher::new(prepared.setup.extent)?;
    let mut outcome = simulate(&prepared.setup, &mut |pulse| watcher.look(&pulse))?;
    if outcome.observed.answered.is_empty()
        && let Some(refusal) = outcome.refusal.take()
    {
        watcher.clear();
        return Err(Failure::new(format!("no request can be served: {refusal}")).into());
    }
    let mut simulated =
        summarise(&prepared.setup, &outcome, slos, prepared.step_times, prepared.engine);
    if args.capacity && !outcome.interrupted {
        let mut look = |pulse| watcher.look(&pulse);
        simulated.capacity = capacity::search(&prepared.setup, slos, &mut look)?;
    }
    watcher.clear();
    if json {
        output::print_json(&simulated)?;
    } else {
        let sheet = report::simulation::sheet(&simulated);
        let mut text = String::new();
        report::terminal::render_sheet(&sheet, global.colour_stdout(), global.width(), &mut text)
            .context("cannot render the page")?;
        output::print(&text)?;
    }
    Ok(if watcher.is_interrupted() { ExitStatus::Interrupted } else { ExitStatus::Success })
}

fn prepare(engine: &EngineArgs, args: &SimulationArgs) -> anyhow::Result<Prepared> {
    let run = args.steps_from.as_deref().map(RunData::read).transpose()?;
    let name = engine.model.as_ref().or(run.as_ref().map(|run| &run.manifest.model));
    let name = name.context("neither --model nor a run names a model")?.clone();
    let model = shape(&name)?;
    let (step_time, step_times) = match &run {
        Some(run) => measured::step_time(run, args.steps_engine.as_deref())?,
        None => {
            let roofline = Roofline::new(engine.card()?, &model, BF16, BF16, args.efficiency());
            let source = roofline.source();
            (StepTime::Roofline(roofline), source)
        }
    };
    let (mut config, measured_blocks) = match (&run, &step_times) {
        (Some(run), StepTimeSource::Fitted { engine, .. }) => pool::of_run(run, engine)?,
        _ => (crate::infer::EngineConfig::default(), None),
    };
    config.max_num_seqs = engine.max_num_seqs.map_or(config.max_num_seqs, NonZeroUsize::get);
    if let Some(tokens) = engine.max_num_batched_tokens {
        config.max_num_batched_tokens = tokens.get();
    }
    config.enable_prefix_caching &= !engine.no_prefix_caching;
    let card = engine.gpu.as_ref().map(|_| engine.card()).transpose()?;
    let Pool { sizing, source } =
        engine.pool.resolve(&mut config, &model, card, measured_blocks)?;
    let limits = SchedulerLimits {
        max_queue: engine.max_queue.map_or(usize::MAX / 2, NonZeroUsize::get),
        ..SchedulerLimits::new(&config, &sizing)
    };
    let facts = EngineFacts {
        model: Some(name),
        num_blocks: limits.num_blocks as u64,
        num_blocks_source: source,
        block_size: limits.block_size as u64,
        // A run's K and V may be of another element than is assumed here.
        kv_bytes: run.is_none().then_some(sizing.total_bytes),
        max_num_seqs: limits.max_num_seqs as u64,
        max_num_batched_tokens: limits.max_num_batched_tokens as u64,
        max_model_len: limits.max_model_len as u64,
        max_queue: engine.max_queue.map(|queue| queue.get() as u64),
        enable_prefix_caching: limits.enable_prefix_caching,
    };
    Ok(Prepared { setup: args.setup(limits, step_time)?, step_times, engine: facts })
}

/// A model's shape, by its card or from its files.
fn shape(name: &str) -> anyhow::Result<ModelConfig> {
    if let Some(card) = find_card(name) {
        return Ok(card.config.clone());
    }
    let options = LocateOptions { dummy: None, offline: true };
    let located = locate(name, &options, &mut |_| {})?;
    Ok(weights::read_config(&located.source)?)
}

impl EngineArgs {
    fn card(&self) -> Result<&'static GpuCard, Failure> {
        let name = self.gpu.as_deref().unwrap_or_default();
        let found = gpu_cards().iter().find(|card| card.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let names: Vec<_> = gpu_cards().iter().map(|card| card.name.as_str()).collect();
            Failure::new(format!("there is no GPU card `{name}`"))
                .with_hint(format!("cards are {}", names.join(", ")))
        })
    }
}

impl SimulationArgs {
    fn efficiency(&self) -> Efficiency {
        let default = Efficiency::default();
        Efficiency {
            bandwidth: self.bandwidth_efficiency.unwrap_or(default.bandwidth),
            compute: self.compute_efficiency.unwrap_or(default.compute),
            overhead_s: self.step_overhead.map_or(default.overhead_s, |time| time.as_secs_f64()),
        }
    }

    fn setup(&self, limits: SchedulerLimits, step_time: StepTime) -> Result<Setup, Failure> {
        let requests = self.requests.map(NonZeroU32::get);
        let duration = self.duration.or(requests.is_none().then_some(DURATION));
        Ok(Setup {
            limits,
            step_time,
            load: self.load()?,
            content: Content {
                prompt_tokens: self.prompt_tokens,
                output_tokens: self.output_tokens,
                prefix_tokens: self.prefix_tokens,
            },
            extent: Extent { requests, duration },
            seed: self.seed,
        })
    }

    fn load(&self) -> Result<Load, Failure> {
        let process = match (self.arrival.as_deref(), self.burstiness) {
            (Some("gamma"), Some(burstiness)) => Process::Gamma { burstiness },
            (Some("gamma"), None) => {
                return Err(Failure::new("--arrival gamma needs --burstiness")
                    .with_hint("1 is Poisson, less is burstier"));
            }
            (_, Some(_)) => {
                return Err(Failure::new("--burstiness is the shape of --arrival gamma"));
            }
            (Some("constant"), None) => Process::Constant,
            (_, None) => Process::Poisson,
        };
        Ok(match (self.rate, self.users) {
            (Some(rate), None) => Load::Open(Arrivals { process, rate, ramp: None }),
            (rate, users) => {
                let users = users.unwrap_or(1);
                let pause = rate.map_or(0.0, |rate| f64::from(users) / rate);
                let think = Duration::try_from_secs_f64(pause).unwrap_or(Duration::MAX);
                Load::Closed { users, think: self.think.unwrap_or(think) }
            }
        })
    }
}

fn slos(text: &str) -> Result<Objectives, String> {
    Slo::parse_list(text).map(Objectives)
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| format!("`{text}` is no number above 0"))
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = positive(text).ok().filter(|rate| *rate <= MAX_RATE);
    rate.ok_or_else(|| {
        format!("`{text}` is no rate: expected a number above 0 and up to {MAX_RATE}")
    })
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    let share = positive(text).ok().filter(|share| *share <= 1.0);
    share.ok_or_else(|| format!("`{text}` is no share: expected a number above 0 and up to 1"))
}
