//! `yardstick size --simulate`: options into a setup, a simulation into a page.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::args::SettingsArgs;
use super::model::ModelAtHand;
use super::pool::{self, Pool, PoolArgs};
use super::pulse::Watcher;
use crate::cli::load_args::duration;
use crate::cli::{ExitStatus, Failure, Global, output};
use crate::hardware::GpuCard;
use crate::infer::scheduler::SchedulerLimits;
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
/// Lengths, unless they are given.
const PROMPT_TOKENS: Lengths = Lengths::Fixed(512);
const OUTPUT_TOKENS: Lengths = Lengths::Fixed(128);
/// Length of a load that nothing else ends.
const DURATION: Duration = Duration::from_secs(600);

/// What a simulation shares with the rest of `size`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared<'a> {
    /// Model card, GGUF file or folder; else that of `--steps-from`.
    pub model: Option<&'a str>,
    /// The card that step times are derived from.
    pub card: Option<&'static GpuCard>,
    /// Limits and pool.
    pub settings: &'a SettingsArgs,
}

/// The load, and what step times are taken from.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Simulation")]
#[group(id = "simulation", multiple = true, requires = "simulate")]
pub struct SimulationArgs {
    /// Requests a second; with --users, what all users together ask for when every answer is
    /// instant: each then pauses for users/rate seconds on average
    #[arg(long, value_name = "R", value_parser = rate)]
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
    #[command(flatten)]
    pool: PoolArgs,
    /// Requests that may wait; one more is refused [default: any number]
    #[arg(long, value_name = "N")]
    max_queue: Option<NonZeroUsize>,
    /// Compute every prompt from its first token
    #[arg(long)]
    no_prefix_caching: bool,
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
    shared: &Shared<'_>,
    args: &SimulationArgs,
    json: bool,
    global: &Global,
) -> anyhow::Result<ExitStatus> {
    let prepared = prepare(shared, args)?;
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

fn prepare(shared: &Shared<'_>, args: &SimulationArgs) -> anyhow::Result<Prepared> {
    let run = args.steps_from.as_deref().map(RunData::read).transpose()?;
    let name = shared.model.or(run.as_ref().map(|run| run.manifest.model.as_str()));
    let name = name.ok_or_else(|| {
        Failure::new("neither --model nor a run names a model")
            .with_hint("give --model, or --steps-from a run")
    })?;
    let name = name.to_owned();
    let model = ModelAtHand::read(&name)?.embedded.map_err(Failure::new)?.config;
    let (step_time, step_times) = match &run {
        Some(run) => measured::step_time(run, args.steps_engine.as_deref())?,
        None => {
            let roofline = Roofline::new(shared.card()?, &model, BF16, BF16, args.efficiency());
            let source = roofline.source();
            (StepTime::Roofline(roofline), source)
        }
    };
    let (mut config, measured_blocks) = match (&run, &step_times) {
        (Some(run), StepTimeSource::Fitted { engine, .. }) => pool::of_run(run, engine)?,
        _ => (crate::infer::EngineConfig::default(), None),
    };
    let settings = shared.settings;
    settings.limit(&mut config).map_err(Failure::new)?;
    config.enable_prefix_caching &= !args.no_prefix_caching;
    let Pool { sizing, source } =
        pool::resolve(&args.pool, settings, &mut config, &model, shared.card, measured_blocks)?;
    let limits = SchedulerLimits {
        max_queue: args.max_queue.map_or(usize::MAX / 2, NonZeroUsize::get),
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
        max_queue: args.max_queue.map(|queue| queue.get() as u64),
        enable_prefix_caching: limits.enable_prefix_caching,
    };
    Ok(Prepared { setup: args.setup(settings, limits, step_time)?, step_times, engine: facts })
}

impl Shared<'_> {
    fn card(&self) -> Result<&'static GpuCard, Failure> {
        self.card.ok_or_else(|| {
            Failure::new("a simulation needs to know how long a step takes").with_hint(
                "name a card with --gpu, or a run of the embedded engine with --steps-from",
            )
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

    fn setup(
        &self,
        settings: &SettingsArgs,
        limits: SchedulerLimits,
        step_time: StepTime,
    ) -> Result<Setup, Failure> {
        let requests = self.requests.map(NonZeroU32::get);
        let duration = self.duration.or(requests.is_none().then_some(DURATION));
        Ok(Setup {
            limits,
            step_time,
            load: self.load()?,
            content: Content::Drawn {
                prompt_tokens: settings.prompt_tokens.unwrap_or(PROMPT_TOKENS),
                output_tokens: settings.output_tokens.unwrap_or(OUTPUT_TOKENS),
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
            (None, None) => {
                return Err(Failure::new("a simulation needs a load")
                    .with_hint("give --rate, --users or both"));
            }
            (rate, Some(users)) => {
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

fn share(text: &str) -> Result<f64, String> {
    let share = positive(text).ok().filter(|share| *share <= 1.0);
    share.ok_or_else(|| format!("`{text}` is no share: expected a number above 0 and up to 1"))
}
