//! What came of a simulation, as `--json` tells it and the terminal shows it.
//! Every number in it is simulated.

use serde::{Deserialize, Serialize};

use super::capacity::Capacity;
use super::observed::{Answered, Point};
use super::run::{Outcome, Setup};
use super::step_time::StepTimeSource;
use super::users::{Content, Load};
use crate::plan::Slo;
use crate::plan::slo::SloMetric;
use crate::stats::distribution::distribution;
use crate::stats::goodput::{Goodput, judge};
use crate::stats::summary::Distribution;

/// Growth of the requests in the engine over the second half of the arrivals, as
/// a share of these, from which on the engine did not keep up.
const GROWS: f64 = 0.05;
/// Standard deviations of a Poisson count by which it must have grown too.
const BY_CHANCE: f64 = 3.0;
/// With fewer arrivals in the second half nothing is said about keeping up.
const MIN_ARRIVALS: usize = 20;

/// A simulation: settings, then what came of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Simulated {
    /// Always true: nothing here was measured.
    pub simulated: bool,
    /// Where the durations of steps come from.
    pub step_times: StepTimeSource,
    /// The engine.
    pub engine: EngineFacts,
    /// The load.
    pub load: LoadFacts,
    /// Whether it was broken off; numbers are of what had been simulated then.
    pub interrupted: bool,
    /// Whether it ended with the most requests that a simulation has.
    pub bounded: bool,
    /// What became of the requests.
    pub requests: Requests,
    /// What the engine said to the first request that can never fit; null where all fit.
    pub refusal: Option<String>,
    /// First token minus arrival.
    pub ttft_ms: Distribution,
    /// Time an output token after the first, of answers of two and more.
    pub tpot_ms: Distribution,
    /// Last token minus arrival.
    pub e2el_ms: Distribution,
    /// From the first arrival to the last token.
    pub whole: Throughput,
    /// From the first arrival to the last one: without the drain.
    pub while_loaded: Throughput,
    /// Whether the engine kept up with an open loop; absent for users who wait, and
    /// where too few arrived to tell.
    pub kept_up: Option<bool>,
    /// Why not, or why that is not known.
    pub kept_up_reason: Option<String>,
    /// Objectives; absent where there are none.
    pub goodput: Option<Goodput>,
    /// Steps.
    pub steps: Steps,
    /// The pool and the queue over time.
    pub kv: KvUse,
    /// The same in stretches of equal length.
    pub series: Vec<SeriesPoint>,
    /// The highest rate that is kept up with; absent where it was not looked for.
    pub capacity: Option<Capacity>,
}

/// Bounds of the engine and its pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFacts {
    /// Model card, or file.
    pub model: Option<String>,
    /// Blocks in the pool.
    pub num_blocks: u64,
    /// Where that number comes from.
    pub num_blocks_source: String,
    /// Tokens in a block.
    pub block_size: u64,
    /// Bytes of the pool; absent where no model says how large a token is.
    pub kv_bytes: Option<u64>,
    /// Sequences in a step.
    pub max_num_seqs: u64,
    /// Tokens in a step.
    pub max_num_batched_tokens: u64,
    /// Tokens of a sequence.
    pub max_model_len: u64,
    /// Requests that may wait; null for any number.
    pub max_queue: Option<u64>,
    /// Whether full blocks are found again by their content.
    pub enable_prefix_caching: bool,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadFacts {
    /// `constant`, `poisson`, `gamma`, `given` or `closed`.
    pub arrival: String,
    /// Requests a second.
    pub rate_per_s: Option<f64>,
    /// Shape of gamma gaps.
    pub burstiness: Option<f64>,
    /// Users who wait for their answers.
    pub users: Option<u32>,
    /// Mean of their pauses in seconds.
    pub think_s: Option<f64>,
    /// Distribution of prompt lengths in tokens.
    pub prompt_tokens: String,
    /// Distribution of answer lengths in tokens.
    pub output_tokens: String,
    /// Tokens at the front of every prompt that are the same.
    pub prefix_tokens: u32,
    /// Bound on requests.
    pub requests: Option<u32>,
    /// No request after so many seconds.
    pub duration_s: Option<f64>,
    /// Seed of everything that is drawn.
    pub seed: u64,
}

/// What became of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Answered.
    pub num_answered: u64,
    /// Refused, since they can never fit.
    pub num_too_long: u64,
    /// Refused, since the queue was full.
    pub num_busy: u64,
    /// In the engine when it was broken off.
    pub num_unfinished: u64,
}

/// Tokens and requests over a window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// Its length.
    pub span_s: f64,
    /// Tokens drawn a second; absent where the window has no length.
    pub output_tokens_per_s: Option<f64>,
}

/// Sums over all steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    /// How many.
    pub num_steps: u64,
    /// Their mean duration; absent where there was none.
    pub mean_ms: Option<f64>,
    /// Tokens computed.
    pub num_scheduled_tokens: u64,
    /// Of those, tokens of prompts, or computed again after a preemption.
    pub num_prefill_tokens: u64,
    /// Tokens drawn.
    pub num_output_tokens: u64,
    /// Sequences sent back to the queue.
    pub num_preemptions: u64,
    /// Prompt tokens that were looked up in the prefix cache.
    pub prefix_query_tokens: u64,
    /// Of those, tokens that were found.
    pub prefix_hit_tokens: u64,
}

/// Queue and pool, as means over the time in which steps were computed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KvUse {
    /// Share of the time from first arrival to last token in which a step was computed.
    pub busy_share: Option<f64>,
    /// Blocks held.
    pub mean_used_blocks: Option<f64>,
    /// The most.
    pub peak_used_blocks: u64,
    /// Of the slots held, those that hold no token.
    pub waste_share: Option<f64>,
    /// Sequences in the batch.
    pub mean_running: Option<f64>,
    /// Sequences in the queue.
    pub mean_waiting: Option<f64>,
    /// The most.
    pub peak_waiting: u64,
}

/// A stretch of the series. Means are over the time in it in which steps were computed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SeriesPoint {
    /// Its beginning, in seconds from the beginning of the load.
    pub at_s: f64,
    /// Blocks held; absent where no step was computed.
    pub mean_used_blocks: Option<f64>,
    /// The most.
    pub peak_used_blocks: u64,
    /// Sequences in the batch; likewise.
    pub mean_running: Option<f64>,
    /// Sequences in the queue; likewise.
    pub mean_waiting: Option<f64>,
}

/// Puts a simulation into numbers.
#[must_use]
pub fn summarise(
    setup: &Setup,
    outcome: &Outcome,
    slos: &[Slo],
    step_times: StepTimeSource,
    engine: EngineFacts,
) -> Simulated {
    let observed = &outcome.observed;
    let empty =
        if outcome.interrupted { "broken off before an answer" } else { "no request was answered" };
    let values = |of: fn(&Answered) -> Option<f64>| {
        observed.answered.iter().filter_map(of).collect::<Vec<_>>()
    };
    let start = observed.first_at.unwrap_or_default();
    let whole_s = observed.ended_at.since(start).as_secs_f64();
    let (kept_up, kept_up_reason) = kept_up(setup, outcome);
    let refused = outcome.num_too_long + outcome.num_busy;
    Simulated {
        simulated: true,
        step_times,
        engine,
        load: load_facts(setup),
        interrupted: outcome.interrupted,
        bounded: outcome.bounded,
        requests: Requests {
            num_answered: observed.answered.len() as u64,
            num_too_long: outcome.num_too_long,
            num_busy: outcome.num_busy,
            num_unfinished: observed.num_live().into(),
        },
        refusal: outcome.refusal.clone(),
        ttft_ms: distribution(values(|one| Some(one.ttft_ms)), empty),
        tpot_ms: distribution(values(|one| one.tpot_ms), "no answer of two tokens or more"),
        e2el_ms: distribution(values(|one| Some(one.e2el_ms)), empty),
        whole: throughput(observed.num_output_tokens, whole_s),
        while_loaded: throughput(
            observed.num_tokens_while_loaded,
            observed.loaded_until.since(start).as_secs_f64(),
        ),
        kept_up,
        kept_up_reason,
        goodput: goodput(slos, &observed.answered, refused, whole_s),
        steps: Steps {
            num_steps: observed.num_steps,
            mean_ms: over(observed.step_nanos, observed.num_steps).map(|nanos| nanos / 1e6),
            num_scheduled_tokens: observed.num_scheduled_tokens,
            num_prefill_tokens: observed.num_prefill_tokens,
            num_output_tokens: observed.num_output_tokens,
            num_preemptions: outcome.num_preemptions,
            prefix_query_tokens: outcome.prefix_query_tokens,
            prefix_hit_tokens: outcome.prefix_hit_tokens,
        },
        kv: kv_use(setup, outcome, whole_s),
        series: series(outcome),
        capacity: None,
    }
}

/// Objectives over all requests. One that was refused meets none.
pub(super) fn goodput(
    slos: &[Slo],
    answered: &[Answered],
    num_refused: u64,
    span_s: f64,
) -> Option<Goodput> {
    let refused = std::iter::repeat_n(None, usize::try_from(num_refused).unwrap_or(usize::MAX));
    let all: Vec<Option<&Answered>> = answered.iter().map(Some).chain(refused).collect();
    let keeps = |slo: &Slo, one: &Option<&Answered>| {
        one.is_some_and(|one| match slo.metric {
            SloMetric::Ttft => one.ttft_ms <= slo.limit_ms,
            SloMetric::E2el => one.e2el_ms <= slo.limit_ms,
            // One without a second token has no TPOT to be slow by.
            SloMetric::Tpot => one.tpot_ms.is_none_or(|tpot| tpot <= slo.limit_ms),
        })
    };
    judge(slos, &all, keeps, span_s)
}

/// Whether requests in the engine became more and more over the second half of
/// the arrivals of an open loop, and why that is said.
pub(super) fn kept_up(setup: &Setup, outcome: &Outcome) -> (Option<bool>, Option<String>) {
    if matches!(setup.load, Load::Closed { .. }) {
        return (None, Some("users wait for their answers".to_owned()));
    }
    if outcome.num_busy > 0 {
        return (Some(false), Some(format!("{} requests met a full queue", outcome.num_busy)));
    }
    let half = outcome.observed.second_half().filter(|(arrivals, ..)| *arrivals >= MIN_ARRIVALS);
    let Some((arrivals, before, after)) = half else {
        let least = 2 * MIN_ARRIVALS;
        return (None, Some(format!("fewer than {least} requests arrived")));
    };
    let growth = f64::from(after) - f64::from(before);
    #[expect(clippy::cast_precision_loss, reason = "arrivals are far below 2^52")]
    let share = growth / arrivals as f64;
    if share > GROWS && growth > BY_CHANCE * f64::from(before.max(1)).sqrt() {
        let reason = format!(
            "requests in the engine grew from {before} to {after} over the last {arrivals} arrivals"
        );
        return (Some(false), Some(reason));
    }
    (Some(true), None)
}

fn load_facts(setup: &Setup) -> LoadFacts {
    let (arrival, rate_per_s, burstiness, users, think_s) = match setup.load {
        Load::Open(arrivals) => {
            let (name, burstiness) = arrivals.process.told();
            (name, Some(arrivals.rate), burstiness, None, None)
        }
        Load::Given(_) => ("given", None, None, None, None),
        Load::Closed { users, think } => {
            ("closed", None, None, Some(users), Some(think.as_secs_f64()))
        }
    };
    let (prompt_tokens, output_tokens, prefix_tokens) = match &setup.content {
        Content::Drawn { prompt_tokens, output_tokens, prefix_tokens } => {
            (prompt_tokens.to_string(), output_tokens.to_string(), *prefix_tokens)
        }
        Content::Given(_) => ("given".to_owned(), "given".to_owned(), 0),
    };
    LoadFacts {
        arrival: arrival.to_owned(),
        rate_per_s,
        burstiness,
        users,
        think_s,
        prompt_tokens,
        output_tokens,
        prefix_tokens,
        requests: setup.extent.requests,
        duration_s: setup.extent.duration.map(|duration| duration.as_secs_f64()),
        seed: setup.seed,
    }
}

#[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^52")]
fn throughput(num_tokens: u64, span_s: f64) -> Throughput {
    let output_tokens_per_s = (span_s > 0.0).then(|| num_tokens as f64 / span_s);
    Throughput { span_s, output_tokens_per_s }
}

fn kv_use(setup: &Setup, outcome: &Outcome, whole_s: f64) -> KvUse {
    let all = Point::merged(outcome.observed.series().0);
    let mean = mean(&all);
    #[expect(clippy::cast_precision_loss, reason = "a block has far fewer than 2^52 tokens")]
    let slots = all.used_blocks * setup.limits.block_size as f64;
    KvUse {
        busy_share: (whole_s > 0.0)
            .then(|| crate::stats::latency::ms(outcome.observed.step_nanos) / 1e3 / whole_s),
        mean_used_blocks: mean(all.used_blocks),
        peak_used_blocks: all.peak_used_blocks as u64,
        waste_share: (slots > 0.0).then(|| all.waste_slots / slots),
        mean_running: mean(all.running),
        mean_waiting: mean(all.waiting),
        peak_waiting: all.peak_waiting as u64,
    }
}

fn series(outcome: &Outcome) -> Vec<SeriesPoint> {
    let (points, nanos) = outcome.observed.series();
    let point = |(number, point): (u64, &Point)| {
        let mean = mean(point);
        SeriesPoint {
            at_s: crate::stats::latency::ms(number.saturating_mul(nanos)) / 1e3,
            mean_used_blocks: mean(point.used_blocks),
            peak_used_blocks: point.peak_used_blocks as u64,
            mean_running: mean(point.running),
            mean_waiting: mean(point.waiting),
        }
    };
    (0..).zip(points).map(point).collect()
}

/// Divides a point's sums by its time.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn mean(point: &Point) -> impl Fn(f64) -> Option<f64> {
    let nanos = point.nanos as f64;
    move |sum| (nanos > 0.0).then(|| sum / nanos)
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn over(sum: u64, count: u64) -> Option<f64> {
    (count > 0).then(|| sum as f64 / count as f64)
}
