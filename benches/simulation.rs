//! How fast simulated requests go by, and how far what is foretold is from what
//! the embedded engine then does: step times are fitted to some numbers of users
//! and other numbers are predicted, throughput and the time a request takes.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run must say so and stop")]

mod support;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use yardstick::catalog::find_card;
use yardstick::clock::{Clock, Timestamp};
use yardstick::hardware::find_gpu_card;
use yardstick::infer::scheduler::SchedulerLimits;
use yardstick::infer::{
    ComputeDevice, EngineConfig, EngineCore, InferRequest, KvBudget, ModelConfig,
};
use yardstick::load::arrival::{Arrivals, Extent, Process};
use yardstick::plan::Lengths;
use yardstick::simulation::fit::{Coefficients, MeasuredStep, fit};
use yardstick::simulation::roofline::{Efficiency, Roofline};
use yardstick::simulation::{Content, Load, Outcome, Setup, StepTime, Users, simulate};

/// Requests of one simulation.
const REQUESTS: u32 = 20_000;
/// Blocks of 16 tokens of the engine that is foretold.
const BLOCKS: usize = 1_024;
/// Users whose steps are fitted to, and those who are foretold.
const FITTED: [u32; 4] = [1, 3, 8, 20];
const FORETOLD: [u32; 4] = [2, 5, 12, 16];
/// Answers of each user.
const ANSWERS: u32 = 6;

fn limits(num_blocks: usize, max_num_seqs: usize, enable_prefix_caching: bool) -> SchedulerLimits {
    SchedulerLimits {
        max_num_seqs,
        max_num_batched_tokens: 2_048,
        max_scored_rows: 256,
        max_model_len: 2_048,
        max_queue: usize::MAX / 2,
        num_blocks,
        block_size: 16,
        enable_prefix_caching,
    }
}

fn content(prompt: (u32, u32), output: (u32, u32)) -> Content {
    let uniform = |(least, most)| Lengths::Uniform { least, most };
    Content::Drawn {
        prompt_tokens: uniform(prompt),
        output_tokens: uniform(output),
        prefix_tokens: 0,
    }
}

/// A 3B model on an H100, near what it can do.
fn speed(c: &mut Criterion) {
    let mut group = support::group(c, "simulation", 4.0);
    let card = find_gpu_card("NVIDIA H100 80GB HBM3").unwrap();
    let model = &find_card("llama-3.2-3b-instruct").unwrap().config;
    let roofline = Roofline::new(card, model, 2, 2, Efficiency::default());
    let open = |rate| Load::Open(Arrivals { process: Process::Poisson, rate, ramp: None });
    let waiting = Load::Closed { users: 10_000, think: Duration::ZERO };
    for (name, load, caching, output) in [
        ("open 100/s, answers of 16", open(100.0), true, (8, 24)),
        ("open 100/s, answers of 16, no prefix cache", open(100.0), false, (8, 24)),
        ("10,000 users who wait, answers of 16", waiting, true, (8, 24)),
        ("open 10/s, answers of 256", open(10.0), true, (128, 384)),
    ] {
        let setup = Setup {
            limits: limits(30_000, 256, caching),
            step_time: StepTime::Roofline(roofline.clone()),
            load,
            content: content((64, 192), output),
            extent: Extent { requests: Some(REQUESTS), duration: None },
            seed: 1,
        };
        group.throughput(Throughput::Elements(REQUESTS.into()));
        group.bench_function(name, |b| b.iter(|| black_box(run(&setup))));
    }
    group.finish();
}

fn run(setup: &Setup) -> Outcome {
    simulate(setup, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// What an engine did with the users of a setup.
struct Real {
    steps: Vec<MeasuredStep>,
    seconds: f64,
    num_output_tokens: u64,
    mean_e2el_ms: f64,
}

fn accuracy(_: &mut Criterion) {
    let model = support::model::open();
    let config = EngineConfig {
        kv: KvBudget::Blocks(BLOCKS),
        max_model_len: Some(2_048),
        device: Some(ComputeDevice::Cpu),
        enable_prefix_caching: false,
        ..EngineConfig::default()
    };
    let mut core = EngineCore::new(&model.config, &*model.weights, &config, Clock::real()).unwrap();
    let setup = |users: u32, step_time| Setup {
        limits: limits(BLOCKS, config.max_num_seqs, config.enable_prefix_caching),
        step_time: StepTime::Fitted(step_time),
        load: Load::Closed { users, think: Duration::ZERO },
        content: content((16, 240), (8, 72)),
        extent: Extent { requests: Some(users * ANSWERS), duration: None },
        seed: users.into(),
    };
    let mut measure =
        |users| drive(&setup(users, Coefficients::default()), &model.config, &mut core);
    // The first steps pay for pages that no later one pays for.
    measure(4);
    let steps: Vec<_> = FITTED.iter().flat_map(|users| measure(*users).steps).collect();
    let fitted = fit(&steps).unwrap_or_else(|error| panic!("{error}"));
    eprintln!(
        "\nforetold by steps of {FITTED:?} users, which the line misses by {:.1} %:",
        100.0 * fitted.mean_error
    );
    eprintln!("{:?}", fitted.coefficients);
    eprintln!("users  steps  tokens/s  foretold    off  E2EL ms  foretold    off");
    for users in FORETOLD {
        let real = measure(users);
        let outcome = run(&setup(users, fitted.coefficients));
        let observed = &outcome.observed;
        assert_eq!(observed.num_steps, real.steps.len() as u64);
        let measured = real.num_output_tokens as f64 / real.seconds;
        let seconds = observed.ended_at.since(Timestamp::default()).as_secs_f64();
        let foretold = observed.num_output_tokens as f64 / seconds;
        let e2el = observed.answered.iter().map(|one| one.e2el_ms).sum::<f64>()
            / observed.answered.len() as f64;
        let off = |foretold: f64, measured: f64| 100.0 * (foretold / measured - 1.0);
        eprintln!(
            "{users:>5}  {:>5}  {measured:>8.1}  {foretold:>8.1}  {:>4.1}%  {:>7.0}  {e2el:>8.0}  {:>4.1}%",
            real.steps.len(),
            off(foretold, measured),
            real.mean_e2el_ms,
            off(e2el, real.mean_e2el_ms),
        );
    }
}

/// Drives the engine with the users of `setup`, on its own clock.
fn drive(setup: &Setup, model: &ModelConfig, core: &mut EngineCore) -> Real {
    let clock = Clock::real();
    let mut users = Users::new(&setup.load, &setup.content, setup.extent, setup.seed);
    let mut who = BTreeMap::new();
    let mut real =
        Real { steps: Vec::new(), seconds: 0.0, num_output_tokens: 0, mean_e2el_ms: 0.0 };
    let mut number = 0;
    loop {
        let now = clock.now();
        while let Some(asked) = users.ask(now) {
            number += 1;
            let prompt = (0..asked.request.prompt.tokens).map(|i| {
                // Distinct from the first block on.
                (i * 31 + number * 7 + 100) % u32::try_from(model.vocab_size).unwrap()
            });
            let request = InferRequest {
                ignore_eos: true,
                ..InferRequest::new(prompt.collect(), asked.request.output_tokens as usize)
            };
            who.insert(core.add_request(request).unwrap(), (asked.user, asked.at));
        }
        if !core.has_work() {
            break;
        }
        let begun = clock.now();
        let report = core.step().unwrap();
        let ended = clock.now();
        let micros = yardstick::units::micros(ended.since(begun));
        real.steps.push(MeasuredStep { work: report.work, micros });
        for output in report.outputs {
            real.num_output_tokens += 1;
            if output.result.unwrap().stop.is_some() {
                let (user, at) = who[&output.id];
                real.mean_e2el_ms += yardstick::units::millis(ended.since(at));
                users.answered(user, ended);
            }
        }
    }
    real.seconds = clock.now().since(Timestamp::default()).as_secs_f64();
    real.mean_e2el_ms /= f64::from(number);
    real
}

criterion_group!(benches, speed, accuracy);
criterion_main!(benches);
