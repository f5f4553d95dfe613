//! Decoding on the CPU: the embedded engine and candle's stock `llama.rs` on
//! the same f32 weights in the same run, against what the memory allows.
//!
//! A decode step must read every weight once, whatever the number of
//! sequences, so read bandwidth over weight bytes bounds the steps a second.
//! The bandwidth is measured here, with all threads, before and after.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run must say so and stop")]

use std::cell::{LazyCell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama as stock;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;
use yardstick::catalog::{self, LocateOptions};
use yardstick::clock::Clock;
use yardstick::infer::ops::linear::PackedMatrix;
use yardstick::infer::weights::{self, OpenModel, Weight};
use yardstick::infer::{EngineConfig, EngineCore, InferRequest, ModelConfig};

const MODEL: &str = "smollm2-135m-instruct";
const PROMPT_TOKENS: u32 = 64;
const DECODE_STEPS: usize = 32;
const BATCHES: [usize; 3] = [1, 4, 10];

/// Tokens and time of one benchmark, over all of its samples.
type Totals = RefCell<HashMap<String, (usize, Duration)>>;

fn open_model() -> OpenModel {
    let located = catalog::locate(MODEL, &LocateOptions::default(), &mut |_| {});
    let located = located.unwrap_or_else(|error| panic!("{MODEL} cannot be found: {error}"));
    eprintln!("model: {MODEL} from {}", located.origin);
    weights::open(&located.source).unwrap_or_else(|error| panic!("{error}"))
}

fn decode(c: &mut Criterion) {
    let model = open_model();
    let totals = Totals::default();
    let weight_bytes = streamed_bytes(&model.config);
    let before = read_bandwidth(weight_bytes);
    let mut group = c.benchmark_group("decode");
    group.sample_size(10).measurement_time(Duration::from_secs(10));

    let config = EngineConfig { max_model_len: Some(256), ..EngineConfig::default() };
    let mut core = EngineCore::new(&model.config, &*model.weights, &config, Clock::real()).unwrap();
    for batch in BATCHES {
        group.throughput(Throughput::Elements((batch * DECODE_STEPS) as u64));
        group.bench_function(format!("yardstick/{batch}"), |b| {
            b.iter_custom(|iters| {
                let time = (0..iters).map(|_| ours(&mut core, batch)).sum();
                add(&totals, "yardstick", batch, iters, time);
                time
            });
        });
    }
    drop(core);

    let (llama, llama_config) = stock_llama(&model);
    for batch in BATCHES {
        group.throughput(Throughput::Elements((batch * DECODE_STEPS) as u64));
        group.bench_function(format!("candle-llama/{batch}"), |b| {
            b.iter_custom(|iters| {
                let time = (0..iters).map(|_| theirs(&llama, &llama_config, batch)).sum();
                add(&totals, "candle-llama", batch, iters, time);
                time
            });
        });
    }
    group.finish();
    drop(llama);
    // Other work on the machine can only lower it: the larger one is nearer the truth.
    let bandwidth = read_bandwidth(weight_bytes).max(before);
    eprintln!(
        "threads: {}, read bandwidth: {:.1} GB/s, weights read in a step: {:.0} MB",
        rayon::current_num_threads(),
        bandwidth / 1e9,
        weight_bytes as f64 / 1e6,
    );
    summarize(&totals.into_inner(), bandwidth / weight_bytes as f64);
}

/// Time of [`DECODE_STEPS`] steps of `batch` sequences, prompts not counted.
fn ours(core: &mut EngineCore, batch: usize) -> Duration {
    for sequence in 0..batch {
        let request = InferRequest {
            ignore_eos: true,
            ..InferRequest::new(prompt(sequence), DECODE_STEPS + 1)
        };
        core.add_request(request).unwrap();
    }
    let clock = Clock::real();
    core.step().unwrap();
    let start = clock.now();
    while core.has_work() {
        core.step().unwrap();
    }
    clock.now().since(start)
}

/// The same with candle's model, which takes a batch of equal lengths.
fn theirs(llama: &stock::Llama, config: &stock::Config, batch: usize) -> Duration {
    let mut cache = stock::Cache::new(true, DType::F32, config, &Device::Cpu).unwrap();
    let ids: Vec<u32> = (0..batch).flat_map(prompt).collect();
    let mut x = Tensor::from_vec(ids, (batch, PROMPT_TOKENS as usize), &Device::Cpu).unwrap();
    let clock = Clock::real();
    let mut start = clock.now();
    for step in 0..=DECODE_STEPS {
        let position = if step == 0 { 0 } else { PROMPT_TOKENS as usize + step - 1 };
        let logits = llama.forward(&x, position, &mut cache).unwrap();
        x = logits.argmax(D::Minus1).unwrap().reshape((batch, 1)).unwrap();
        if step == 0 {
            start = clock.now();
        }
    }
    clock.now().since(start)
}

fn prompt(sequence: usize) -> Vec<u32> {
    let first = 1000 + 100 * u32::try_from(sequence).unwrap();
    (first..first + PROMPT_TOKENS).collect()
}

fn add(totals: &Totals, name: &str, batch: usize, iters: u64, time: Duration) {
    let mut totals = totals.borrow_mut();
    let (tokens, sum) = totals.entry(format!("{name}/{batch}")).or_default();
    *tokens += iters as usize * batch * DECODE_STEPS;
    *sum += time;
}

/// Tokens per second of each, and their share of what reading the weights allows.
fn summarize(totals: &HashMap<String, (usize, Duration)>, steps_per_s: f64) {
    let rate = |name: &str, batch: usize| {
        totals.get(&format!("{name}/{batch}")).map(|(n, time)| *n as f64 / time.as_secs_f64())
    };
    eprintln!("sequences  yardstick tok/s  candle llama tok/s  ratio  bound tok/s  our share");
    for batch in BATCHES {
        let (Some(ours), Some(theirs)) = (rate("yardstick", batch), rate("candle-llama", batch))
        else {
            continue;
        };
        let bound = steps_per_s * batch as f64;
        eprintln!(
            "{batch:>9}  {ours:>15.1}  {theirs:>18.1}  {:>5.2}  {bound:>11.1}  {:>8.0}%",
            ours / theirs,
            100.0 * ours / bound,
        );
    }
}

/// Bytes of the matrices that every step reads, in f32.
fn streamed_bytes(config: &ModelConfig) -> usize {
    let kv = config.num_key_value_heads * config.head_dim;
    let q = config.num_attention_heads * config.head_dim;
    let layer = config.hidden_size * (2 * q + 2 * kv + 3 * config.intermediate_size);
    4 * (config.num_hidden_layers * layer + config.vocab_size * config.hidden_size)
}

/// Bytes per second that all threads read together, the best of fifty passes.
fn read_bandwidth(bytes: usize) -> f64 {
    let buffer = vec![1_f32; bytes / 4];
    let clock = Clock::real();
    let pass = |_| {
        let start = clock.now();
        let sum: f32 = buffer.par_chunks(1 << 18).map(sum_of).sum();
        std::hint::black_box(sum);
        clock.now().since(start).as_secs_f64()
    };
    let best = (0..50).map(pass).fold(f64::INFINITY, f64::min);
    bytes as f64 / best
}

/// Sums with the next 16 KiB on their way: without, the processor waits at
/// every page, and the bound would be no bound.
fn sum_of(values: &[f32]) -> f32 {
    let mut lanes = [0_f32; 64];
    for chunk in values.as_chunks::<64>().0 {
        #[cfg(target_arch = "x86_64")]
        for line in 0..4 {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let ahead = chunk.as_ptr().wrapping_add(4096 + 16 * line);
            // SAFETY: a prefetch never faults, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
        }
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    lanes.iter().sum()
}

/// Candle's model on the weights as our source gives them.
fn stock_llama(model: &OpenModel) -> (stock::Llama, stock::Config) {
    let config = &model.config;
    let stock_config = stock::Config {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        vocab_size: config.vocab_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: config.num_key_value_heads,
        use_flash_attn: false,
        rms_norm_eps: config.rms_norm_eps,
        rope_theta: config.rope_theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: 256,
        tie_word_embeddings: config.tie_word_embeddings,
    };
    let builder = VarBuilder::from_tensors(dense_weights(model), DType::F32, &Device::Cpu);
    (stock::Llama::load(builder, &stock_config).unwrap(), stock_config)
}

fn dense_weights(model: &OpenModel) -> HashMap<String, Tensor> {
    let load = |(name, shape): (String, Vec<usize>)| match model
        .weights
        .load(&name, &shape, false)
        .unwrap()
    {
        Weight::Dense(tensor) => (name, tensor),
        Weight::Quantized(_) => panic!("{name} is quantized"),
    };
    model.config.tensors().into_iter().map(load).collect()
}

/// One pass over 30 matrices of the MLP's shape, too many for any cache.
fn linear(c: &mut Criterion) {
    const SHAPE: (usize, usize) = (3072, 576);
    let matrices = LazyCell::new(|| {
        let random = |_| Tensor::randn(0_f32, 1.0, SHAPE, &Device::Cpu).unwrap();
        (0..30).map(random).collect::<Vec<_>>()
    });
    let packed = LazyCell::new(|| {
        let pack = |matrix| PackedMatrix::pack(std::slice::from_ref(matrix)).unwrap();
        matrices.iter().map(pack).collect::<Vec<_>>()
    });
    let mut group = c.benchmark_group("linear");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    for rows in [1, 2, 4, 8, 10, 64, 512] {
        let x = Tensor::randn(0_f32, 1.0, (rows, SHAPE.1), &Device::Cpu).unwrap();
        group.throughput(Throughput::Bytes((30 * 4 * SHAPE.0 * SHAPE.1) as u64));
        group.bench_function(format!("yardstick/{rows}"), |b| {
            // In the pool, as in a step.
            let packed: &[PackedMatrix] = &packed;
            b.iter(|| rayon::scope(|_| packed.iter().for_each(|w| drop(w.matmul(&x).unwrap()))));
        });
        group.bench_function(format!("candle-matmul/{rows}"), |b| {
            b.iter(|| matrices.iter().for_each(|w| drop(x.matmul(&w.t().unwrap()).unwrap())));
        });
    }
}

criterion_group!(benches, linear, decode);
criterion_main!(benches);
