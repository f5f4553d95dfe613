//! What is expected of every point of a curve: the load of its largest measured
//! pool, simulated on the pool of each.

use std::ops::ControlFlow;

use super::facts::{Facts, Seen};
use super::load::CaseLoad;
use super::room::room;
use super::{Basis, Point};
use crate::infer::scheduler::SchedulerLimits;
use crate::load::arrival::Extent;
use crate::simulation::observed::Point as Stretch;
use crate::simulation::step_time::StepTimeSource;
use crate::simulation::{Content, Outcome, Pulse, Setup, StepTime, simulate};
use crate::stats::distribution::median;

/// Fields of a point that a simulation fills in.
const PREDICTED: [&str; 4] = [
    "predicted_tokens_per_s",
    "predicted_ttft_ms_p50",
    "predicted_running",
    "predicted_preemptions",
];

/// Tokens that may still be computed or looked up in simulations: a run directory
/// may ask for years of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Effort(u64);

impl Effort {
    /// What the sweeps of one run have: seconds at worst, and far more than loads
    /// that somebody waited for take.
    pub(super) const OF_A_RUN: Self = Self(1 << 32);
}

/// What a simulation says of a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Simulated {
    tokens_per_s: f64,
    ttft_ms_p50: Option<f64>,
    running: Option<f64>,
    num_preemptions: u64,
}

/// Fills in what is expected of every point, from the one at `largest`.
///
/// # Errors
/// Why nothing is.
pub(super) fn predict(
    facts: &Facts<'_>,
    seen: &mut [Seen],
    largest: usize,
    effort: &mut Effort,
) -> Result<Basis, String> {
    let from = &seen[largest];
    let name = from.point.engine.clone();
    let measured = from.point.output_tokens_per_s.ok_or("its largest pool was not measured")?;
    let load = facts.load(&name)?;
    let (step_time, step_times) = facts.step_time(&name)?;
    let of = |seen: &Seen, effort: &mut Effort| {
        seen.told.limits(&load).and_then(|limits| simulated(&load, limits, &step_time, effort))
    };
    let best = of(from, effort).map_err(|why| format!("its largest pool: {why}"))?;
    let over_measured = best.tokens_per_s / measured;
    let basis = Basis {
        point: name.clone(),
        num_requests: load.requests.len() as u64,
        step_times,
        simulated_over_measured: over_measured,
        assumed: from.told.assumed(),
    };
    let tells_ttft = !matches!(basis.step_times, StepTimeSource::Equal { .. });
    let num_rounds = facts.num_rounds(&name);
    for (i, seen) in seen.iter_mut().enumerate() {
        let found = if i == largest { Ok(best) } else { of(seen, effort) };
        let point = &mut seen.point;
        if let Some((num_blocks, block_size)) = point.num_blocks.zip(point.block_size)
            && let Some(room) = room(&load, num_blocks, block_size, seen.told.shares_prefixes())
        {
            point.blocks_per_sequence = Some(room.blocks_per_sequence);
            point.fits = Some(room.fits);
        }
        match found {
            Ok(found) => found.fill(point, over_measured, num_rounds, tells_ttft),
            Err(why) => leave_out(point, &why),
        }
    }
    Ok(basis)
}

/// Says why nothing is predicted of a point.
pub(super) fn leave_out(point: &mut Point, why: &str) {
    for field in PREDICTED {
        point.reasons.insert(field.to_owned(), why.to_owned());
    }
}

impl Simulated {
    /// All of its times are stretched alike, so that the throughput of the largest
    /// pool is the measured one.
    fn fill(&self, point: &mut Point, over_measured: f64, num_rounds: u64, tells_ttft: bool) {
        point.predicted_tokens_per_s = Some(self.tokens_per_s / over_measured);
        point.predicted_running = self.running;
        point.predicted_preemptions = Some(self.num_preemptions.saturating_mul(num_rounds));
        if tells_ttft {
            point.predicted_ttft_ms_p50 = self.ttft_ms_p50.map(|ms| ms * over_measured);
        } else {
            let why = "how much longer a step takes with a prompt in it is not known";
            point.reasons.insert("predicted_ttft_ms_p50".to_owned(), why.to_owned());
        }
    }
}

/// Simulates `load` under `limits`.
fn simulated(
    load: &CaseLoad,
    limits: SchedulerLimits,
    step_time: &StepTime,
    effort: &mut Effort,
) -> Result<Simulated, String> {
    let setup = Setup {
        limits,
        step_time: step_time.clone(),
        load: load.arrivals.clone(),
        content: Content::Given(load.requests.clone()),
        extent: Extent::default(),
        seed: 0,
    };
    // A step looks the head of the queue up, which may be as long as the longest.
    let longest = load.longest();
    let spent = |steps: u64, tokens: u64| tokens.saturating_add(steps.saturating_mul(longest));
    let too_long = || "to simulate its load takes too long".to_owned();
    if effort.0 == 0 {
        return Err(too_long());
    }
    let mut pulse = |pulse: Pulse| {
        if spent(pulse.num_steps, pulse.num_scheduled_tokens) > effort.0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let outcome = simulate(&setup, &mut pulse).map_err(|error| error.to_string())?;
    let observed = &outcome.observed;
    effort.0 = effort.0.saturating_sub(spent(observed.num_steps, observed.num_scheduled_tokens));
    if outcome.interrupted {
        return Err(too_long());
    }
    told(&outcome)
}

fn told(outcome: &Outcome) -> Result<Simulated, String> {
    let observed = &outcome.observed;
    if observed.answered.is_empty() {
        let refusal = outcome.refusal.as_deref().unwrap_or("its queue has no room");
        return Err(format!("no request of the load is served: {refusal}"));
    }
    let span = observed.ended_at.since(observed.first_at.unwrap_or_default()).as_secs_f64();
    let over_time = Stretch::merged(observed.series().0);
    let nanos = over_time.nanos as f64;
    Ok(Simulated {
        // A step takes a nanosecond at least.
        tokens_per_s: observed.num_output_tokens as f64 / span.max(1e-9),
        ttft_ms_p50: median(observed.answered.iter().map(|one| one.ttft_ms)),
        running: (nanos > 0.0).then(|| over_time.running / nanos),
        num_preemptions: outcome.num_preemptions,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::limits::Told;
    use super::super::limits::tests::pool;
    use super::super::load::tests::closed;
    use super::*;
    use crate::simulation::fit::Coefficients;
    use crate::simulation::{Load, Prompt, Request};

    /// 8 ms a step, 1 ms a sequence, a quarter a prompt token.
    fn step_time() -> StepTime {
        StepTime::Fitted(Coefficients {
            step_us: 8e3,
            decode_us: 1e3,
            prefill_token_us: 250.0,
            ..Coefficients::default()
        })
    }

    fn of(load: &CaseLoad, told: Told) -> Result<Simulated, String> {
        simulated(load, told.limits(load)?, &step_time(), &mut Effort(1 << 24))
    }

    #[test]
    fn pool_too_small_for_everybody_preempts_and_is_slower_than_one_that_is_not() {
        let load = closed(8, 32, (40, 24));
        let (small, large) = (of(&load, pool(16, 16)).unwrap(), of(&load, pool(32, 16)).unwrap());
        assert!(small.num_preemptions > 0, "{small:?}");
        assert_eq!(large.num_preemptions, 0);
        assert!(small.tokens_per_s < large.tokens_per_s);
        assert!(small.ttft_ms_p50 > large.ttft_ms_p50);
        assert!(small.running < large.running);
        assert_eq!(of(&load, pool(4_000, 16)), Ok(large), "nothing is gained above");
    }

    /// Four answers of eleven tokens at once: a step for the prompts, ten for the rest.
    #[test]
    fn throughput_is_that_of_its_steps() {
        let load = closed(4, 4, (20, 11));
        let found = of(&load, pool(90, 16)).unwrap();
        let ms = (8.0 + 80.0 * 0.25) + 10.0 * (8.0 + 4.0);
        assert!((found.tokens_per_s - 44e3 / ms).abs() < 1e-6, "{found:?}");
        assert!((found.ttft_ms_p50.unwrap() - 28.0).abs() < 1e-9);
    }

    #[test]
    fn open_loop_that_is_kept_up_with_waits_for_nobody() {
        let instants =
            |every_ms| (0..40).map(|i: u64| Duration::from_millis(i * every_ms)).collect();
        let at = |every_ms| CaseLoad {
            arrivals: Load::Given(instants(every_ms)),
            ..closed(1, 40, (40, 24))
        };
        let (slow, fast) = (at(400), at(20));
        let of = |load: &CaseLoad, blocks| of(load, pool(blocks, 16)).unwrap();
        assert_eq!(of(&slow, 8), of(&slow, 400));
        assert!(of(&fast, 8).ttft_ms_p50 > of(&fast, 400).ttft_ms_p50);
    }

    #[test]
    fn cached_beginnings_are_computed_once() {
        let load = closed(4, 16, (64, 4));
        let request = |request: &Request| {
            let prompt = Prompt { prefix_tokens: 48, ..request.prompt };
            Request { prompt, ..*request }
        };
        let shared = CaseLoad {
            requests: load.requests.iter().map(request).collect(),
            prefixes: (1, 48),
            ..load
        };
        let with = |caches| Told { enable_prefix_caching: Some(caches), ..pool(90, 16) };
        let (cached, computed) = (of(&shared, with(true)), of(&shared, with(false)));
        assert!(cached.unwrap().tokens_per_s > computed.unwrap().tokens_per_s);
    }

    #[test]
    fn what_is_never_served_or_never_ends_is_said() {
        let load = closed(2, 3, (40, 24));
        let error = of(&load, pool(2, 16)).unwrap_err();
        assert!(error.contains("no request") && error.contains("needs 4 KV blocks"), "{error}");
        let error = of(&load, Told { max_num_seqs: Some(0), ..pool(9, 16) }).unwrap_err();
        assert!(error.contains("computes nothing"), "{error}");
        let long = closed(2, 4, (4, 4_000));
        let limits = pool(4_000, 16).limits(&long).unwrap();
        let mut effort = Effort(1_000_000);
        let error = simulated(&long, limits, &step_time(), &mut effort).unwrap_err();
        assert!(error.contains("too long"), "{error}");
        assert_eq!(effort, Effort(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn counts_are_bounded_whatever_was_told(
            users in 1_u32..20, requests in 1_u32..40, prompt in 1_u32..90, output in 1_u32..60,
            told: [Option<u64>; 5], num_blocks in 1_u64..120, block_size in 1_u64..40, caches: bool,
        ) {
            let load = closed(users, requests, (prompt, output));
            let told = Told {
                max_num_seqs: told[0],
                max_num_batched_tokens: told[1],
                max_model_len: told[2],
                max_queue: told[3],
                num_blocks: told[4].or(Some(num_blocks)),
                enable_prefix_caching: Some(caches),
                ..pool(1, block_size)
            };
            if let Ok(found) = of(&load, told) {
                let limits = told.limits(&load).unwrap();
                let running = found.running.unwrap();
                prop_assert!(running > 0.0 && running <= f64::from(users.min(requests)) + 1e-9);
                prop_assert!(found.tokens_per_s > 0.0 && found.tokens_per_s.is_finite());
                // One token of each sequence in a step of 8 ms at least.
                prop_assert!(found.tokens_per_s <= f64::from(users) * 125.0);
                let each = u64::from(prompt + output).div_ceil(block_size);
                if limits.num_blocks as u64 >= u64::from(users) * each {
                    prop_assert_eq!(found.num_preemptions, 0);
                }
            }
        }

        #[test]
        fn larger_pools_are_never_expected_to_be_much_slower(
            prompt in 1_u32..200, output in 1_u32..100, users in 1_u32..16, blocks in 20_u64..200,
        ) {
            let load = closed(users, users * 3, (prompt, output));
            if let (Ok(less), Ok(more)) = (of(&load, pool(blocks, 16)), of(&load, pool(blocks + 40, 16))) {
                // With more blocks more run at once, so that some are computed again.
                prop_assert!(more.tokens_per_s >= 0.7 * less.tokens_per_s, "{less:?} {more:?}");
            }
        }
    }
}
