//! The simulation beside the engine that it stands for: the same steps, to the
//! last token, and durations that are fitted to some loads and foretell others.

#![expect(clippy::unwrap_used, reason = "a test stops where something fails")]

mod page;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use yardstick::clock::{Clock, Timestamp};
use yardstick::infer::scheduler::{SchedulerLimits, StepWork};
use yardstick::infer::weights::{self, OpenModel};
use yardstick::infer::{
    ComputeDevice, EngineConfig, EngineCore, InferRequest, KvBudget, ModelConfig, ModelSource,
};
use yardstick::load::arrival::Extent;
use yardstick::plan::Lengths;
use yardstick::simulation::fit::{Coefficients, MeasuredStep, fit};
use yardstick::simulation::{Content, Load, Outcome, Setup, StepTime, Users, simulate};

const VOCAB: u32 = 96;

fn model() -> OpenModel {
    let config = ModelConfig {
        vocab_size: VOCAB as usize,
        max_position_embeddings: 256,
        ..ModelConfig::tiny()
    };
    let source = ModelSource::Dummy { config: Box::new(config), seed: 5, tokenizer: None };
    weights::open(&source).unwrap()
}

fn config(num_blocks: usize, enable_prefix_caching: bool) -> EngineConfig {
    EngineConfig {
        block_size: 4,
        kv: KvBudget::Blocks(num_blocks),
        max_num_seqs: 12,
        max_num_batched_tokens: 48,
        max_model_len: Some(120),
        enable_prefix_caching,
        device: Some(ComputeDevice::Cpu),
        threads: Some(1),
        ..EngineConfig::default()
    }
}

/// Users without pauses: what is computed then depends on no duration.
fn setup(users: u32, requests: u32, config: &EngineConfig, step_time: Coefficients) -> Setup {
    let KvBudget::Blocks(num_blocks) = config.kv else { panic!("blocks are given") };
    Setup {
        limits: SchedulerLimits {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens,
            max_scored_rows: 256,
            max_model_len: config.max_model_len.unwrap(),
            max_queue: config.max_queue,
            num_blocks,
            block_size: config.block_size,
            enable_prefix_caching: config.enable_prefix_caching,
        },
        step_time: StepTime::Fitted(step_time),
        load: Load::Closed { users, think: Duration::ZERO },
        content: Content::Drawn {
            prompt_tokens: Lengths::Uniform { least: 4, most: 70 },
            output_tokens: Lengths::Uniform { least: 1, most: 40 },
            prefix_tokens: 0,
        },
        extent: Extent { requests: Some(requests), duration: None },
        seed: u64::from(users),
    }
}

/// What the engine did, by its own word.
#[derive(Debug, Default)]
struct Real {
    steps: Vec<MeasuredStep>,
    num_output_tokens: u64,
    num_preemptions: u64,
    peak_waiting: usize,
}

/// Drives the real engine with the users of `setup`, on a clock that only says
/// which step it is: all that matters to users without pauses.
fn drive(setup: &Setup, core: &mut EngineCore) -> Real {
    let mut users = Users::new(&setup.load, &setup.content, setup.extent, setup.seed);
    let mut real = Real::default();
    let (mut who, mut now, mut number) = (BTreeMap::new(), 0, 0);
    loop {
        while let Some(asked) = users.ask(Timestamp::from_nanos(now)) {
            let prompt = prompt(number, asked.request.prompt.tokens as usize);
            let request = InferRequest {
                ignore_eos: true,
                ..InferRequest::new(prompt, asked.request.output_tokens as usize)
            };
            who.insert(core.add_request(request).unwrap(), asked.user);
            number += 1;
        }
        if !core.has_work() {
            break;
        }
        let report = core.step().unwrap();
        now += 1;
        let micros = yardstick::units::micros(report.at.since(report.started_at));
        real.steps.push(MeasuredStep { work: report.work, micros });
        real.peak_waiting = real.peak_waiting.max(core.stats().num_waiting);
        for output in report.outputs {
            real.num_output_tokens += 1;
            if output.result.unwrap().stop.is_some() {
                users.answered(who[&output.id], Timestamp::from_nanos(now));
            }
        }
    }
    real.num_preemptions = core.stats().num_preemptions;
    assert_eq!(core.stats().num_free_blocks, core.stats().num_blocks);
    real
}

/// No two have a block in common: the first four tokens are the number.
fn prompt(number: u32, len: usize) -> Vec<u32> {
    let digits = [number / VOCAB / VOCAB, number / VOCAB, number].map(|digit| digit % VOCAB);
    digits.into_iter().chain(std::iter::repeat(1)).take(len).collect()
}

fn simulated(setup: &Setup) -> Outcome {
    simulate(setup, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn counts_are_exactly_those_of_the_engine() {
    let model = model();
    let one_ms = Coefficients { step_us: 1_000.0, ..Coefficients::default() };
    let mut preempted = 0;
    for (num_blocks, users, caching) in
        [(400, 12, true), (60, 12, true), (60, 12, false), (40, 30, true), (30, 5, false)]
    {
        let config = config(num_blocks, caching);
        let setup = setup(users, 60, &config, one_ms);
        let mut core =
            EngineCore::new(&model.config, &*model.weights, &config, Clock::manual()).unwrap();
        let real = drive(&setup, &mut core);
        let outcome = simulated(&setup);
        let observed = &outcome.observed;
        let sum = |of: fn(&StepWork) -> usize| -> u64 {
            real.steps.iter().map(|step| of(&step.work) as u64).sum()
        };
        assert_eq!(observed.answered.len(), 60);
        assert_eq!(observed.num_steps, real.steps.len() as u64, "{num_blocks} blocks");
        assert_eq!(observed.num_scheduled_tokens, sum(StepWork::num_tokens));
        assert_eq!(observed.num_prefill_tokens, sum(|work| work.num_prefill_tokens));
        assert_eq!(observed.num_output_tokens, real.num_output_tokens);
        assert_eq!(outcome.num_preemptions, real.num_preemptions);
        assert_eq!(outcome.prefix_hit_tokens, core.stats().prefix_hit_tokens);
        preempted += real.num_preemptions;
    }
    assert!(preempted > 20, "pools that hold everybody show nothing: {preempted}");
}

/// Steps one after another, each with its work: not only their sums are the same.
#[test]
fn virtual_clock_is_the_sum_of_what_the_engines_steps_would_take() {
    let model = model();
    let coefficients = Coefficients {
        step_us: 700.0,
        prefill_token_us: 13.0,
        decode_us: 29.0,
        decode_kv_token_us: 0.7,
        prefill_pair_us: 0.3,
    };
    let config = config(45, true);
    let setup = setup(9, 50, &config, coefficients);
    let mut core =
        EngineCore::new(&model.config, &*model.weights, &config, Clock::manual()).unwrap();
    let real = drive(&setup, &mut core);
    let expected: u64 = real.steps.iter().map(|step| setup.step_time.nanos(&step.work)).sum();
    assert_eq!(simulated(&setup).observed.ended_at.as_nanos(), expected);
}

#[test]
fn times_fitted_to_some_loads_foretell_another() {
    let model = model();
    let config = config(200, false);
    let measure = |users, requests| {
        let setup = setup(users, requests, &config, Coefficients::default());
        let mut core =
            EngineCore::new(&model.config, &*model.weights, &config, Clock::real()).unwrap();
        drive(&setup, &mut core)
    };
    measure(2, 10);
    let steps: Vec<MeasuredStep> =
        [1, 3, 12].into_iter().flat_map(|users| measure(users, 40).steps).collect();
    let fitted = fit(&steps).unwrap();
    let real = measure(7, 60);
    let outcome = simulated(&setup(7, 60, &config, fitted.coefficients));
    let measured: f64 = real.steps.iter().map(|step| step.micros).sum();
    let ratio = outcome.observed.step_nanos as f64 / 1e3 / measured;
    eprintln!(
        "7 users, fitted to 1, 3 and 12: predicted/measured {ratio:.3}; {} steps, fit off by {:.1} %",
        real.steps.len(),
        fitted.mean_error * 100.0
    );
    assert_eq!(outcome.observed.num_steps, real.steps.len() as u64);
    // Both sides are of one run: what is asserted is the arithmetic, not the machine.
    assert!((0.2..5.0).contains(&ratio), "predicted over measured: {ratio}");
}
