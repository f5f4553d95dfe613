//! Attention of one decoded token over contexts, block sizes and head groups:
//! K and V read in place through block tables, against what the memory allows.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run must say so and stop")]

mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::floor;
use yardstick::clock::Clock;
use yardstick::infer::batch::BatchLayout;
use yardstick::infer::ops::paged_attention;
use yardstick::infer::ops::pool::Pool;

/// Heads, K/V heads, elements of a head: SmolLM2-135M, Llama 3.2 1B and 3B.
const SHAPES: [(usize, usize, usize); 3] = [(9, 3, 64), (32, 8, 64), (24, 8, 128)];
const CONTEXTS: [usize; 3] = [128, 1024, 8192];
const BLOCK_SIZES: [usize; 3] = [8, 16, 32];
const SEQUENCES: usize = 4;

fn attention(c: &mut Criterion) {
    let bandwidth = floor::read_bandwidth(256 << 20);
    let pool = Arc::new(Pool::new(floor::num_threads()).unwrap());
    let rates = RefCell::new(BTreeMap::new());
    let mut group = support::group(c, "paged_attention", 1.0);
    for shape in SHAPES {
        for context in CONTEXTS {
            for block_size in BLOCK_SIZES {
                let case = Case::new(shape, context, block_size);
                let name = format!("{}x{}x{}/{context}/{block_size}", shape.0, shape.1, shape.2);
                group.throughput(Throughput::Bytes(case.bytes as u64));
                group.bench_function(&name, |b| {
                    b.iter_custom(|iters| {
                        let clock = Clock::real();
                        let start = clock.now();
                        pool.install(|| (0..iters).for_each(|_| case.run()));
                        let time = clock.now().since(start);
                        let rate = case.bytes as f64 * iters as f64 / time.as_secs_f64();
                        let mut rates = rates.borrow_mut();
                        let best: &mut f64 = rates.entry(name.clone()).or_default();
                        *best = best.max(rate);
                        time
                    });
                });
            }
        }
    }
    group.finish();
    eprintln!(
        "\nthreads: {}, read bandwidth: {:.1} GB/s; small caches are read from the processor's own",
        floor::num_threads(),
        bandwidth / 1e9
    );
    eprintln!("heads x kv x dim / context / block size   GB/s  share");
    for (name, rate) in rates.borrow().iter() {
        eprintln!("{name:<40}  {:>5.1}  {:>4.0}%", rate / 1e9, 100.0 * rate / bandwidth);
    }
}

/// One layer's cache in bf16, its blocks dealt in scattered order.
struct Case {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Arc<BatchLayout>,
    /// K and V that a pass reads.
    bytes: usize,
}

impl Case {
    fn new((heads, kv_heads, dim): (usize, usize, usize), context: usize, block: usize) -> Self {
        let per_sequence = context.div_ceil(block);
        let num_blocks = SEQUENCES * per_sequence;
        let mut order: Vec<u32> = (0..u32::try_from(num_blocks).unwrap()).collect();
        order.sort_by_key(|block| block.wrapping_mul(2_654_435_761));
        let random = |shape| Tensor::randn(0_f32, 1.0, shape, &Device::Cpu).unwrap();
        let bf16 = |shape: (usize, usize, usize, usize)| {
            Tensor::randn(0_f32, 1.0, shape, &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap()
        };
        Self {
            q: random((SEQUENCES, heads, dim)),
            k: bf16((num_blocks, kv_heads, dim, block)),
            v: bf16((num_blocks, kv_heads, block, dim)),
            layout: Arc::new(BatchLayout {
                query_start_loc: (0..=SEQUENCES).collect(),
                seq_lens: vec![context; SEQUENCES],
                block_tables: order.chunks(per_sequence).map(<[u32]>::to_vec).collect(),
            }),
            bytes: 2 * 2 * SEQUENCES * context * kv_heads * dim,
        }
    }

    fn run(&self) {
        std::hint::black_box(
            paged_attention(&self.q, &self.k, &self.v, &self.layout, DType::F32).unwrap(),
        );
    }
}

criterion_group!(benches, attention);
criterion_main!(benches);
