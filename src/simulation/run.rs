//! The loop of a simulation: who has arrived is queued, a step is booked, the
//! clock moves on by what the step takes.

use std::ops::ControlFlow;

use thiserror::Error;

use super::engine::VirtualEngine;
use super::observed::Observed;
use super::step_time::StepTime;
use super::users::{Content, Load, Users};
use crate::clock::Timestamp;
use crate::infer::InferError;
use crate::infer::kv::BlockError;
use crate::infer::scheduler::SchedulerLimits;
use crate::load::arrival::Extent;

/// Most requests of one simulation: what is kept of each takes memory.
pub const MAX_REQUESTS: u32 = 10_000_000;
/// Steps between two pulses.
const PULSE: u64 = 1 << 10;

/// A simulation before it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// Bounds of the engine and its pool.
    pub limits: SchedulerLimits,
    /// How long steps take.
    pub step_time: StepTime,
    /// When requests are made.
    pub load: Load,
    /// What they hold.
    pub content: Content,
    /// When the load ends; those who are in the engine then are still answered.
    pub extent: Extent,
    /// Seed of everything that is drawn.
    pub seed: u64,
}

/// How far a simulation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    /// The virtual clock.
    pub now: Timestamp,
    /// Requests that were answered.
    pub num_answered: u64,
    /// Requests in the engine.
    pub num_live: u32,
    /// Steps.
    pub num_steps: u64,
    /// Tokens computed in them.
    pub num_scheduled_tokens: u64,
}

/// What came of a simulation.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Everything that was kept.
    pub observed: Observed,
    /// Requests that were refused since they can never fit.
    pub num_too_long: u64,
    /// Requests that were refused since the queue was full.
    pub num_busy: u64,
    /// Sequences sent back to the queue.
    pub num_preemptions: u64,
    /// Prompt tokens that were looked up in the prefix cache.
    pub prefix_query_tokens: u64,
    /// Of those, tokens that were found.
    pub prefix_hit_tokens: u64,
    /// Whether it was broken off.
    pub interrupted: bool,
    /// Whether it ended with [`MAX_REQUESTS`].
    pub bounded: bool,
    /// The first refusal of a request that can never fit.
    pub refusal: Option<String>,
}

/// A simulation that cannot go on.
#[derive(Debug, Error)]
pub enum SimulationError {
    /// The engine's books are wrong.
    #[error(transparent)]
    Blocks(#[from] BlockError),
    /// The scheduler has work and schedules none of it.
    #[error("the scheduler computes nothing at {0:?} while {1} requests wait")]
    Stuck(Timestamp, u32),
}

/// Runs `setup` to its end, or until `pulse` breaks it off.
///
/// # Errors
/// [`SimulationError`], which is a fault of the engine.
pub fn simulate(
    setup: &Setup,
    pulse: &mut dyn FnMut(Pulse) -> ControlFlow<()>,
) -> Result<Outcome, SimulationError> {
    let mut extent = setup.extent;
    extent.requests = Some(extent.requests.unwrap_or(MAX_REQUESTS).min(MAX_REQUESTS));
    let mut users = Users::new(&setup.load, &setup.content, extent, setup.seed);
    let mut engine = VirtualEngine::new(setup.limits);
    let mut outcome = Outcome::default();
    let mut now = Timestamp::default();
    let mut drawn = Vec::new();
    let mut num_asked = 0_u64;
    loop {
        while let Some(asked) = users.ask(now) {
            num_asked += 1;
            outcome.observed.asked(asked.at, now);
            let request = &asked.request;
            match engine.add(request.prompt.ids(), request.output_tokens as usize) {
                Ok(_) => outcome.observed.queued(&asked),
                Err(error) => {
                    outcome.refuse(&error);
                    users.refused(asked.user, asked.at.max(now));
                }
            }
        }
        if !engine.scheduler().has_work() {
            let Some(next) = users.next_at() else { break };
            now = next;
            continue;
        }
        let (work, occupancy) = engine.step(&mut drawn)?;
        if work.num_tokens() == 0 {
            return Err(SimulationError::Stuck(now, outcome.observed.num_live()));
        }
        let from = now;
        now = Timestamp::from_nanos(now.as_nanos().saturating_add(setup.step_time.nanos(&work)));
        outcome.observed.stepped(&work, &occupancy, from, now);
        for drawn in &drawn {
            if let Some(user) = outcome.observed.drew(drawn, now) {
                users.answered(user, now);
            }
        }
        if outcome.observed.num_steps % PULSE == 0 && pulse(outcome.observed.pulse(now)).is_break()
        {
            outcome.interrupted = true;
            break;
        }
    }
    outcome.bounded = setup.extent.requests.is_none_or(|most| most > MAX_REQUESTS)
        && num_asked == u64::from(MAX_REQUESTS);
    // Not after each step, as the engine does whose steps these are: thousands wait.
    debug_assert_eq!(engine.scheduler().check_integrity(), Ok(()));
    outcome.num_preemptions = engine.scheduler().num_preemptions();
    outcome.prefix_query_tokens = engine.scheduler().prefix_query_tokens();
    outcome.prefix_hit_tokens = engine.scheduler().prefix_hit_tokens();
    Ok(outcome)
}

impl Observed {
    fn pulse(&self, now: Timestamp) -> Pulse {
        Pulse {
            now,
            num_answered: self.answered.len() as u64,
            num_live: self.num_live(),
            num_steps: self.num_steps,
            num_scheduled_tokens: self.num_scheduled_tokens,
        }
    }
}

impl Outcome {
    fn refuse(&mut self, error: &InferError) {
        if matches!(error, InferError::Busy { .. }) {
            self.num_busy += 1;
        } else {
            self.num_too_long += 1;
            self.refusal.get_or_insert_with(|| error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::fit::Coefficients;
    use super::super::users::{Prompt, Request};
    use super::*;
    use crate::load::arrival::{Arrivals, Process};
    use crate::plan::Lengths;

    fn setup(num_blocks: usize, load: Load, requests: u32) -> Setup {
        let limits = SchedulerLimits {
            max_num_seqs: 8,
            max_num_batched_tokens: 32,
            max_scored_rows: 8,
            max_model_len: 60,
            max_queue: 20,
            num_blocks,
            block_size: 4,
            enable_prefix_caching: true,
        };
        let coefficients = Coefficients {
            step_us: 900.0,
            prefill_token_us: 30.0,
            decode_us: 20.0,
            decode_kv_token_us: 0.5,
            prefill_pair_us: 0.1,
        };
        Setup {
            limits,
            step_time: StepTime::Fitted(coefficients),
            load,
            content: drawn(
                Lengths::Uniform { least: 1, most: 40 },
                Lengths::Uniform { least: 1, most: 20 },
            ),
            extent: Extent { requests: Some(requests), duration: None },
            seed: 3,
        }
    }

    fn drawn(prompt_tokens: Lengths, output_tokens: Lengths) -> Content {
        Content::Drawn { prompt_tokens, output_tokens, prefix_tokens: 6 }
    }

    fn open(rate: f64) -> Load {
        Load::Open(Arrivals { process: Process::Poisson, rate, ramp: None })
    }

    fn run(setup: &Setup) -> Outcome {
        simulate(setup, &mut |_| ControlFlow::Continue(())).unwrap()
    }

    #[test]
    fn same_seed_gives_the_same_outcome_and_another_does_not() {
        let first = setup(30, open(50.0), 300);
        let told = |outcome: Outcome| format!("{outcome:?}");
        assert_eq!(told(run(&first)), told(run(&first)));
        assert_ne!(told(run(&first)), told(run(&Setup { seed: 4, ..first })));
    }

    /// A sequence alone: every instant can be computed by hand.
    #[test]
    fn latencies_of_one_request_are_those_of_its_steps() {
        let mut one = setup(30, Load::Closed { users: 1, think: Duration::ZERO }, 1);
        one.content = drawn(Lengths::Fixed(40), Lengths::Fixed(3));
        let outcome = run(&one);
        let answered = outcome.observed.answered[0];
        // Chunks of 32 and 8 tokens, then two decodes over 41 and 42 tokens.
        let chunks = [(32.0, 32.0 * 33.0 / 2.0), (8.0, 8.0 * 73.0 / 2.0)];
        let ttft: f64 =
            chunks.iter().map(|(tokens, pairs)| 0.9 + 0.03 * tokens + 1e-4 * pairs).sum();
        let decodes: f64 = [41.0, 42.0].iter().map(|kv| 0.92 + 5e-4 * kv).sum();
        assert!((answered.ttft_ms - ttft).abs() < 1e-5, "{answered:?} {ttft}");
        assert!((answered.e2el_ms - ttft - decodes).abs() < 1e-5);
        assert!((answered.tpot_ms.unwrap() - decodes / 2.0).abs() < 1e-5);
        assert_eq!(outcome.observed.num_steps, 4);
        assert_eq!(outcome.observed.num_scheduled_tokens, 42);
    }

    #[test]
    fn what_can_never_fit_is_refused_and_ends_nothing() {
        let mut long = setup(8, Load::Closed { users: 3, think: Duration::ZERO }, 200);
        long.content =
            drawn(Lengths::Uniform { least: 1, most: 70 }, Lengths::Uniform { least: 1, most: 20 });
        let outcome = run(&long);
        assert!(outcome.num_too_long > 20, "{}", outcome.num_too_long);
        assert!(outcome.refusal.as_ref().unwrap().contains("tokens"));
        assert_eq!(outcome.observed.answered.len() as u64 + outcome.num_too_long, 200);
    }

    /// What `setup` asks for, written down.
    fn written_down(setup: &Setup) -> Content {
        let mut users = Users::new(
            &Load::Given(vec![Duration::ZERO; 200].into()),
            &setup.content,
            setup.extent,
            setup.seed,
        );
        Content::Given(
            std::iter::from_fn(|| Some(users.ask(Timestamp::default())?.request)).collect(),
        )
    }

    #[test]
    fn drawn_requests_that_are_given_again_come_to_the_same() {
        for load in [Load::Closed { users: 9, think: Duration::ZERO }, open(80.0)] {
            let drawn = setup(40, load, 200);
            let given = Setup { content: written_down(&drawn), ..drawn.clone() };
            assert_eq!(format!("{:?}", run(&drawn)), format!("{:?}", run(&given)));
        }
    }

    #[test]
    fn groups_share_their_own_beginning_and_equal_prompts_everything() {
        let hits = |groups: u32, texts: u32| {
            let request = |number| Request {
                prompt: Prompt {
                    tokens: 32,
                    prefix_tokens: 16,
                    group: number % groups,
                    text: number % texts,
                },
                output_tokens: 2,
            };
            let mut one = setup(200, Load::Closed { users: 1, think: Duration::ZERO }, 12);
            one.content = Content::Given((0..12).map(request).collect());
            run(&one).prefix_hit_tokens
        };
        // Each beginning is computed once; of an equal prompt one block is, for its logits.
        assert_eq!(hits(1, 12), 11 * 16);
        assert_eq!(hits(3, 12), 9 * 16);
        assert_eq!(hits(1, 1), 11 * 28);
    }

    #[test]
    fn it_is_broken_off_where_it_is_told_to() {
        let outcome = simulate(&setup(30, open(50.0), 5_000), &mut |_| ControlFlow::Break(()));
        let outcome = outcome.unwrap();
        assert!(outcome.interrupted);
        assert_eq!(outcome.observed.num_steps, PULSE);
        assert!(!outcome.observed.answered.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn every_request_is_answered_or_refused_and_every_token_accounted_for(
            num_blocks in 6_usize..60,
            rate in 1.0_f64..400.0,
            users in 1_u32..30,
            closed: bool,
            seed: u64,
        ) {
            let load = if closed {
                Load::Closed { users, think: Duration::from_millis(u64::from(users % 3) * 40) }
            } else {
                open(rate)
            };
            let setup = Setup { seed, ..setup(num_blocks, load, 120) };
            let outcome = run(&setup);
            let observed = &outcome.observed;
            let num_answered = observed.answered.len() as u64;
            prop_assert_eq!(num_answered + outcome.num_too_long + outcome.num_busy, 120);
            prop_assert_eq!(observed.num_live(), 0);
            for one in &observed.answered {
                prop_assert!(one.ttft_ms > 0.0 && one.ttft_ms <= one.e2el_ms);
                prop_assert!(one.tpot_ms.is_none_or(|tpot| tpot > 0.0));
            }
            // Each answer's tokens are drawn once; each is a decode but the first, and
            // those that end a chunk after a preemption.
            let decodes = observed.num_scheduled_tokens - observed.num_prefill_tokens;
            prop_assert!(decodes + num_answered <= observed.num_output_tokens);
            if outcome.num_preemptions == 0 {
                prop_assert_eq!(decodes + num_answered, observed.num_output_tokens);
            }
            let (points, _) = observed.series();
            for point in points {
                prop_assert!(point.peak_used_blocks <= num_blocks);
            }
            prop_assert!(observed.step_nanos <= observed.ended_at.as_nanos());
        }

        #[test]
        fn a_pool_that_holds_everybody_preempts_nobody(rate in 1.0_f64..400.0, seed: u64) {
            // Eight sequences of at most 60 tokens in blocks of four.
            let setup = Setup { seed, ..setup(8 * 15, open(rate), 100) };
            prop_assert_eq!(run(&setup).num_preemptions, 0);
        }
    }
}
