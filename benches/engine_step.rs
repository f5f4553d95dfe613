//! What the engine around the model costs: scheduling, building the batch,
//! sampling and bookkeeping of a decode step, over a model that computes
//! nothing. The default model's real decode step, measured in the same run,
//! says how much of it that is.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run must say so and stop")]

mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use candle_core::{Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use yardstick::catalog::{self, LocateOptions};
use yardstick::clock::Clock;
use yardstick::infer::batch::Batch;
use yardstick::infer::kv::KvCache;
use yardstick::infer::model::Model;
use yardstick::infer::sampler;
use yardstick::infer::weights;
use yardstick::infer::{
    EngineConfig, EngineCore, InferRequest, KvBudget, ModelConfig, SamplingParams,
};

const MODEL: &str = "smollm2-135m-instruct";
/// The default model's, so that sampling has as much to read.
const VOCAB: usize = 49_152;
const SEQUENCES: [usize; 3] = [1, 10, 64];
const CONTEXTS: [usize; 2] = [128, 2048];
/// Steps after which the sequences begin anew, so that their context stays
/// near the one that is named.
const STEPS: usize = 64;
const REAL_STEPS: usize = 16;

/// Mean time by sequences and context.
type Means = RefCell<BTreeMap<(usize, usize), Duration>>;

/// A model that has its answer before it is asked.
struct NullModel {
    /// `[most sequences, vocab]`.
    logits: Tensor,
}

impl NullModel {
    fn new() -> Self {
        let most = SEQUENCES[SEQUENCES.len() - 1];
        Self { logits: Tensor::from_vec(noise(most), (most, VOCAB), &Device::Cpu).unwrap() }
    }
}

impl Model for NullModel {
    fn forward(&self, batch: &Batch, _: &KvCache) -> candle_core::Result<Option<Tensor>> {
        match batch.logit_rows.len() {
            0 => Ok(None),
            rows => self.logits.narrow(0, 0, rows).map(Some),
        }
    }
}

/// `[rows, vocab]`, no two values of a row alike for long.
fn noise(rows: usize) -> Vec<f32> {
    (0..rows * VOCAB).map(|i| (i as f32 * 0.618).sin() * 8.0).collect()
}

/// As small as a model can be, but for its vocabulary.
fn null_config() -> ModelConfig {
    ModelConfig {
        vocab_size: VOCAB,
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        max_position_embeddings: 4096,
        eos_token_ids: vec![2],
        ..ModelConfig::tiny()
    }
}

fn engine_config() -> EngineConfig {
    EngineConfig { max_model_len: Some(2304), ..EngineConfig::default() }
}

/// With room for as many sequences of that length as there are.
fn null_engine_config() -> EngineConfig {
    let most = SEQUENCES[SEQUENCES.len() - 1];
    EngineConfig { kv: KvBudget::Blocks(most * 2304 / 16), ..engine_config() }
}

fn engine_step(c: &mut Criterion) {
    let (steps, sampling) = (Means::default(), Means::default());
    let mut group = support::group(c, "engine_step", 2.0);
    let config = null_config();
    let model = Box::new(NullModel::new());
    let mut core =
        EngineCore::with_model(model, &config, &null_engine_config(), Clock::real()).unwrap();
    for sequences in SEQUENCES {
        group.throughput(Throughput::Elements(sequences as u64));
        for context in CONTEXTS {
            group.bench_function(format!("null-model/{sequences}x{context}"), |b| {
                b.iter_custom(|iters| {
                    let time = null_steps(&mut core, sequences, context, iters);
                    steps.borrow_mut().insert((sequences, context), time.div_f64(iters as f64));
                    time
                });
            });
        }
        let logits = noise(sequences);
        group.bench_function(format!("sampling/{sequences}"), |b| {
            b.iter_custom(|iters| {
                let clock = Clock::real();
                let start = clock.now();
                for _ in 0..iters {
                    for row in logits.chunks_exact(VOCAB) {
                        let params = SamplingParams::default();
                        black_box(sampler::sample(black_box(row), &params, 0).unwrap());
                    }
                }
                let time = clock.now().since(start);
                sampling.borrow_mut().insert((sequences, 0), time.div_f64(iters as f64));
                time
            });
        });
    }
    group.finish();
    drop(core);
    let steps = steps.into_inner();
    if !steps.is_empty() {
        summarize(&steps, &sampling.into_inner(), &real_steps(&steps));
    }
}

/// Time of `iters` decode steps of distinct sequences that have `context` tokens each.
fn null_steps(core: &mut EngineCore, sequences: usize, context: usize, iters: u64) -> Duration {
    let clock = Clock::real();
    let mut time = Duration::ZERO;
    let mut left = usize::try_from(iters).unwrap();
    while left > 0 {
        let num_steps = left.min(STEPS);
        let prompts = (0..sequences).map(|nth| {
            let prompt = (0..context).map(|i| ((nth * 769 + i) % VOCAB) as u32).collect();
            InferRequest { ignore_eos: true, ..InferRequest::new(prompt, 4 * STEPS) }
        });
        let ids: Vec<_> = prompts.map(|request| core.add_request(request).unwrap()).collect();
        while core.step().unwrap().num_prefill_tokens > 0 {}
        let start = clock.now();
        for _ in 0..num_steps {
            black_box(core.step().unwrap());
        }
        time += clock.now().since(start);
        assert_eq!(core.stats().num_running, sequences);
        for id in ids {
            core.abort(id).unwrap();
        }
        left -= num_steps;
    }
    time
}

/// The default model's mean decode step in each of the cases that were
/// measured; empty, and said so, where there is no such model.
fn real_steps(cases: &BTreeMap<(usize, usize), Duration>) -> BTreeMap<(usize, usize), Duration> {
    let located = match catalog::locate(MODEL, &LocateOptions::default(), &mut |_| {}) {
        Ok(located) => located,
        Err(error) => {
            eprintln!("no share of a real step: {MODEL} cannot be found: {error}");
            return BTreeMap::new();
        }
    };
    eprintln!("model: {MODEL} from {}", located.origin);
    let model = weights::open(&located.source).unwrap_or_else(|error| panic!("{error}"));
    let mut core =
        EngineCore::new(&model.config, &*model.weights, &engine_config(), Clock::real()).unwrap();
    let real = |(sequences, context): &(usize, usize)| {
        // Samples of one prompt: its blocks are shared, so that they all fit.
        let prompt = (0..*context).map(|i| 1000 + i as u32).collect();
        let request = InferRequest {
            ignore_eos: true,
            n: *sequences,
            ..InferRequest::new(prompt, 8 * REAL_STEPS)
        };
        let id = core.add_request(request).unwrap();
        while core.step().unwrap().num_prefill_tokens > 0 {}
        assert_eq!(core.stats().num_running, *sequences);
        let clock = Clock::real();
        let start = clock.now();
        for _ in 0..REAL_STEPS {
            core.step().unwrap();
        }
        let time = clock.now().since(start);
        core.abort(id).unwrap();
        ((*sequences, *context), time.div_f64(REAL_STEPS as f64))
    };
    cases.keys().map(real).collect()
}

/// Microseconds of a step with a null model, what sampling takes of it, and
/// what either is of a real step.
fn summarize(
    steps: &BTreeMap<(usize, usize), Duration>,
    sampling: &BTreeMap<(usize, usize), Duration>,
    real: &BTreeMap<(usize, usize), Duration>,
) {
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    eprintln!("a decode step around the model, threads: {}", rayon::current_num_threads());
    eprintln!("sequences  context  step us  sampling us  rest us  real step us  step %  rest %");
    for ((sequences, context), step) in steps {
        let step = micros(*step);
        let sampling = sampling.get(&(*sequences, 0)).map_or(f64::NAN, |time| micros(*time));
        let rest = step - sampling;
        eprint!("{sequences:>9}  {context:>7}  {step:>7.1}  {sampling:>11.1}  {rest:>7.1}");
        match real.get(&(*sequences, *context)) {
            Some(real) => {
                // A real step contains the engine around it.
                let real = micros(*real);
                let share = |part: f64| 100.0 * part / real;
                eprintln!("  {real:>12.0}  {:>5.2}%  {:>5.2}%", share(step), share(rest));
            }
            None => eprintln!("  {:>12}  {:>6}  {:>6}", "-", "-", "-"),
        }
    }
}

criterion_group!(benches, engine_step);
criterion_main!(benches);
