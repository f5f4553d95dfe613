//! Prompts of 32, 512 and 2048 tokens through the embedded engine as the weights
//! are stored, and the shorter ones in every other precision that they allow,
//! against the multiply-adds that the machine makes, measured in the same run.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run must say so and stop")]

mod support;

use std::cell::RefCell;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::{floor, model};
use yardstick::clock::Clock;
use yardstick::infer::{ComputeDtype, EngineCore, InferRequest};

const LENS: [usize; 3] = [32, 512, 2048];
/// In other precisions than the weights are stored in.
const OTHER_LENS: [usize; 2] = [32, 512];

fn prefill(c: &mut Criterion) {
    let model = model::open();
    let (f32_peak, bf16_peak) = floor::peaks();
    let rows = RefCell::new(Vec::new());
    let mut group = support::group(c, "prefill", 3.0);
    let auto = model::auto_dtype(&model);
    for dtype in model::dtypes(&model) {
        let mut core = model::core(&model, dtype, 2049);
        let mut first = 0;
        let lens = if dtype == auto { &LENS[..] } else { &OTHER_LENS };
        for &len in lens {
            group.throughput(Throughput::Elements(len as u64));
            group.bench_function(format!("{dtype}/{len}"), |b| {
                b.iter_custom(|iters| {
                    let run = |_| {
                        // Never the same prompt twice: the prefix cache would answer.
                        first += 1;
                        prompt(&mut core, first, len)
                    };
                    let time: Duration = (0..iters).map(run).sum();
                    rows.borrow_mut().push((dtype, len, iters, time));
                    time
                });
            });
        }
    }
    group.finish();

    let linear = model::layer_multiply_adds(&model.config);
    let head = model.config.vocab_size * model.config.hidden_size;
    eprintln!("\nthreads: {}", floor::num_threads());
    for peak in [Some(f32_peak), bf16_peak].into_iter().flatten() {
        eprintln!("peak: {:.0} G {}/s", peak.multiply_adds_per_s / 1e9, peak.what);
    }
    eprintln!("computed in  prompt    tok/s  floor tok/s  share");
    for dtype in model::dtypes(&model) {
        // Attention is computed in f32; bytes have no peak of their own here.
        let peak = match dtype {
            ComputeDtype::F32 => Some(f32_peak),
            ComputeDtype::Bf16 | ComputeDtype::F16 => bf16_peak,
            ComputeDtype::Quantized => None,
        };
        for len in LENS {
            let of = |row: &&(ComputeDtype, usize, u64, Duration)| row.0 == dtype && row.1 == len;
            let (iters, time) = rows
                .borrow()
                .iter()
                .filter(of)
                .fold((0, Duration::ZERO), |(iters, time), row| (iters + row.2, time + row.3));
            if iters == 0 {
                continue;
            }
            let rate = iters as f64 * len as f64 / time.as_secs_f64();
            let Some(peak) = peak else {
                eprintln!("{:<11}  {len:>6}  {rate:>7.0}            -      -", dtype.to_string());
                continue;
            };
            let attention = model::attention_multiply_adds(&model.config, len) as f64;
            let seconds = (len * linear + head) as f64 / peak.multiply_adds_per_s
                + attention / f32_peak.multiply_adds_per_s;
            let floor = len as f64 / seconds;
            let share = 100.0 * rate / floor;
            eprintln!(
                "{:<11}  {len:>6}  {rate:>7.0}  {floor:>11.0}  {share:>4.0}%",
                dtype.to_string()
            );
        }
    }
}

/// Time from an idle engine to the first token.
fn prompt(core: &mut EngineCore, first: u32, len: usize) -> Duration {
    let ids = (0..u32::try_from(len).unwrap()).map(|i| 1000 + (first * 131 + i * 7) % 40_000);
    core.add_request(InferRequest::new(ids.collect(), 1)).unwrap();
    let clock = Clock::real();
    let start = clock.now();
    while core.has_work() {
        core.step().unwrap();
    }
    clock.now().since(start)
}

criterion_group!(benches, prefill);
criterion_main!(benches);
