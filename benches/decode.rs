//! Decoding on the CPU: the embedded engine as the weights are stored, in fewer
//! cases every other precision that they allow, and candle's stock `llama.rs` on
//! the same weights in f32 in the same run, against what the memory allows.
//!
//! A decode step must read every weight once, whatever the number of
//! sequences, so read bandwidth over weight bytes bounds the steps a second.
//! The bandwidth is measured here, with all threads, before every case and after
//! the last, and the best counts: other work can only lower it, and the memory of
//! a virtual machine has better and worse minutes.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run must say so and stop")]

mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use candle_core::{D, DType, Device, Tensor};
use candle_transformers::models::llama as stock;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::{floor, model};
use yardstick::clock::Clock;
use yardstick::infer::{EngineCore, InferRequest};

const STEPS: usize = 128;
/// Of the stock model, which takes several times as long for each, and longer
/// the longer its sequences: fewer steps flatter it.
const STOCK_STEPS: usize = 32;
/// Sequences and prompt tokens of a case, as the weights are stored.
const CASES: [(usize, usize); 4] = [(1, 64), (4, 64), (10, 64), (1, 1024)];
/// In other precisions, and of the stock model.
const OTHER_CASES: [(usize, usize); 2] = [(1, 64), (10, 64)];

/// Tokens and time of one benchmark, over all of its samples, and the bytes of
/// weights that one of its steps reads.
#[derive(Debug, Default)]
struct Total {
    tokens: usize,
    time: Duration,
    weight_bytes: usize,
}

type Totals = RefCell<BTreeMap<(String, usize, usize), Total>>;

fn decode(c: &mut Criterion) {
    let model = model::open();
    let totals = Totals::default();
    let read_bytes = 2 * model.config.num_parameters() as usize;
    let mut bandwidth = floor::read_bandwidth(read_bytes);
    let mut group = support::group(c, "decode", 4.0);
    let auto = model::auto_dtype(&model);
    for dtype in model::dtypes(&model) {
        let mut core = model::core(&model, dtype, 2048);
        let weight_bytes = core.weight_memory().read_in_a_step;
        let cases = if dtype == auto { &CASES[..] } else { &OTHER_CASES };
        for &(sequences, prompt_len) in cases {
            bandwidth = floor::read_bandwidth(read_bytes).max(bandwidth);
            group.throughput(Throughput::Elements((sequences * STEPS) as u64));
            let name = format!("{dtype}/{sequences}x{prompt_len}");
            group.bench_function(name, |b| {
                b.iter_custom(|iters| {
                    let run = |_| ours(&mut core, sequences, prompt_len);
                    let time = (0..iters).map(run).sum();
                    let case = (dtype.to_string(), sequences, prompt_len);
                    add(&totals, case, iters as usize * STEPS, time, weight_bytes);
                    time
                });
            });
        }
    }
    let (llama, llama_config) = support::stock::open(&model);
    let weight_bytes = 4 * (model.config.num_parameters() as usize);
    for (sequences, prompt_len) in OTHER_CASES {
        group.throughput(Throughput::Elements((sequences * STOCK_STEPS) as u64));
        group.bench_function(format!("candle-llama-f32/{sequences}x{prompt_len}"), |b| {
            b.iter_custom(|iters| {
                let run = |_| theirs(&llama, &llama_config, sequences, prompt_len);
                let time = (0..iters).map(run).sum();
                let case = ("candle-llama-f32".to_owned(), sequences, prompt_len);
                add(&totals, case, iters as usize * STOCK_STEPS, time, weight_bytes);
                time
            });
        });
    }
    group.finish();
    drop(llama);
    bandwidth = floor::read_bandwidth(read_bytes).max(bandwidth);
    summarize(&totals.into_inner(), bandwidth);
}

/// Time of [`STEPS`] steps of `sequences` sequences, prompts not counted.
fn ours(core: &mut EngineCore, sequences: usize, prompt_len: usize) -> Duration {
    for sequence in 0..sequences {
        let request = InferRequest::new(prompt(sequence, prompt_len), STEPS + 1);
        core.add_request(InferRequest { ignore_eos: true, ..request }).unwrap();
    }
    let clock = Clock::real();
    core.step().unwrap();
    let start = clock.now();
    while core.has_work() {
        core.step().unwrap();
    }
    clock.now().since(start)
}

/// The same of [`STOCK_STEPS`] with candle's model, which takes a batch of equal lengths.
fn theirs(
    llama: &stock::Llama,
    config: &stock::Config,
    sequences: usize,
    prompt_len: usize,
) -> Duration {
    let mut cache = stock::Cache::new(true, DType::F32, config, &Device::Cpu).unwrap();
    let ids: Vec<u32> = (0..sequences).flat_map(|nth| prompt(nth, prompt_len)).collect();
    let mut x = Tensor::from_vec(ids, (sequences, prompt_len), &Device::Cpu).unwrap();
    let clock = Clock::real();
    let mut start = clock.now();
    for step in 0..=STOCK_STEPS {
        let position = if step == 0 { 0 } else { prompt_len + step - 1 };
        let logits = llama.forward(&x, position, &mut cache).unwrap();
        x = logits.argmax(D::Minus1).unwrap().reshape((sequences, 1)).unwrap();
        if step == 0 {
            start = clock.now();
        }
    }
    clock.now().since(start)
}

fn prompt(sequence: usize, len: usize) -> Vec<u32> {
    let first = 1000 + 100 * u32::try_from(sequence).unwrap();
    (first..).take(len).collect()
}

fn add(
    totals: &Totals,
    case: (String, usize, usize),
    steps: usize,
    time: Duration,
    weight_bytes: usize,
) {
    let mut totals = totals.borrow_mut();
    let total = totals.entry(case.clone()).or_default();
    total.tokens += case.1 * steps;
    total.time += time;
    total.weight_bytes = weight_bytes;
}

/// Tokens per second of each, and their share of what reading the weights allows.
fn summarize(totals: &BTreeMap<(String, usize, usize), Total>, bandwidth: f64) {
    eprintln!("\nthreads: {}, read bandwidth: {:.1} GB/s", floor::num_threads(), bandwidth / 1e9);
    eprintln!("computed in       sequences  prompt  weights MB    tok/s  floor tok/s  share");
    for ((name, sequences, prompt_len), total) in totals {
        let rate = total.tokens as f64 / total.time.as_secs_f64();
        let floor = *sequences as f64 * bandwidth / total.weight_bytes as f64;
        eprintln!(
            "{name:<17} {sequences:>9}  {prompt_len:>6}  {:>10.1}  {rate:>7.1}  {floor:>11.1}  \
             {:>4.0}%",
            total.weight_bytes as f64 / 1e6,
            100.0 * rate / floor,
        );
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
