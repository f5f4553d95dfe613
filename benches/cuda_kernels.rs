//! Each CUDA kernel alone, in the shapes of Llama 3.2 3B in bf16: first held
//! against sums in f64 on a small shape, then timed by CUDA events within a graph,
//! as the engine launches it, the gap to the next launch included.
//!
//! Weights, K and V are taken from so many copies in turn that no L2 holds them;
//! a row marked `L2` is too small for that, and finds its operands in L2, as it
//! does in the engine where the kernel before has just written them.
//!
//! `cargo bench --features cuda --bench cuda_kernels`
#![expect(clippy::unwrap_used, reason = "a bench that cannot run must say so and stop")]

#[path = "support/gpu_bench.rs"]
mod gpu_bench;
#[path = "support/gpu_cases.rs"]
mod gpu_cases;
#[path = "support/gpu_checks.rs"]
mod gpu_checks;
#[path = "support/gpu_floor.rs"]
#[expect(dead_code, reason = "steps are the engine's")]
mod gpu_floor;
#[path = "support/gpu_tables.rs"]
mod gpu_tables;
#[path = "support/gpu_values.rs"]
mod gpu_values;

use gpu_bench::{Machine, machine, say, time};
use gpu_cases::{By, Case, Paged};
use gpu_floor::{bandwidth_time, compute_time};
use gpu_values::Arena;
use yardstick::infer::cuda::gpu::Gpu;
use yardstick::infer::cuda::{DeviceError, Element};
use yardstick::infer::ops::RopeTable;
use yardstick::infer::{ModelConfig, SamplingParams};

/// Of the operands of the largest case, where the device has as much.
const ARENA: u64 = 12 << 30;
/// On a device that is no device.
const SMOKE_ARENA: u64 = 32 << 20;

const CONTEXTS: [usize; 5] = [128, 512, 2048, 8192, 32_768];
const BATCHES: [usize; 4] = [1, 4, 16, 64];
const BLOCK_SIZES: [usize; 6] = [8, 16, 32, 64, 128, 256];
const ROWS: [usize; 10] = [1, 2, 3, 4, 5, 8, 16, 64, 512, 2048];
const PROMPTS: [usize; 4] = [128, 512, 2048, 8192];

fn main() {
    let Some(machine) = machine() else {
        say("floors of each kernel, Llama 3.2 3B in bf16:\n");
        say(&gpu_tables::floors());
        return;
    };
    let mut gpu = Gpu::open(0).unwrap_or_else(|error| panic!("{error}"));
    let free = gpu.memory().map_or(0, |memory| memory.free);
    let bytes = if machine.smoke { SMOKE_ARENA } else { ARENA.min(free / 4 * 3) };
    let mut arena = Arena::new(&mut gpu, usize::try_from(bytes).unwrap()).unwrap();
    gpu_checks::run(&mut gpu, &mut arena).unwrap_or_else(|error| panic!("{error}"));
    if machine.smoke {
        // Capture, replay and events work, whatever they say of an emulated device.
        let case = gpu_cases::norm(&mut gpu, &mut arena, [1, 64]).unwrap();
        time(&mut gpu, &case.variants[..2]).unwrap();
        return;
    }
    say(&format!(
        "\n{:24} {:22} {:>9} {:>7} {:>3} {:>8} {:>8} {:>6} {:>6} {:>9}",
        "kernel", "shape", "us", "+-", "n", "GB/s", "TFLOP/s", "MBU", "MFU", "floor us"
    ));
    let config = gpu_tables::model();
    let mut bench = Bench { machine, gpu, arena };
    products(&mut bench, config);
    elementwise(&mut bench, config);
    attention(&mut bench, config);
}

struct Bench {
    machine: Machine,
    gpu: Gpu,
    arena: Arena,
}

impl Bench {
    /// Times what `make` gives and prints its line.
    fn line(
        &mut self,
        name: &str,
        shape: &str,
        (bytes, flops): (usize, usize),
        make: impl FnOnce(&mut Gpu, &mut Arena) -> Result<Case, DeviceError>,
    ) {
        let made = make(&mut self.gpu, &mut self.arena);
        let timed = made.and_then(|case| Ok((time(&mut self.gpu, &case.variants)?, case.past_l2)));
        let (times, past_l2) = match timed {
            Ok(timed) => timed,
            Err(DeviceError::OutOfMemory(bytes)) => {
                say(&format!("{name:24} {shape:22} skipped: no room for {bytes} bytes"));
                return;
            }
            Err(error) => panic!("{name} {shape}: {error}"),
        };
        let time = times.median();
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let (mbu, mfu, floor) = match self.machine.card {
            Some(card) => {
                let (read, multiplied) = (bandwidth_time(bytes, card), compute_time(flops, card));
                let floor = format!("{:.2}", read.max(multiplied) * 1e6);
                (percent(read / time), percent(multiplied / time), floor)
            }
            None => ("-".to_owned(), "-".to_owned(), "-".to_owned()),
        };
        say(&format!(
            "{name:24} {shape:22} {:>9.2} {:>5.1} % {:>3} {:>8.1} {:>8.2} {mbu:>6} {mfu:>6} \
             {floor:>9}{}",
            time * 1e6,
            100.0 * times.spread(),
            times.len(),
            bytes as f64 / time / 1e9,
            flops as f64 / time / 1e12,
            if past_l2 { "" } else { "  L2" },
        ));
    }
}

fn products(bench: &mut Bench, config: &ModelConfig) {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let q = config.num_attention_heads * config.head_dim;
    let qkv = q + 2 * config.num_key_value_heads * config.head_dim;
    let (t, f32) = (Element::Bf16, Element::F32);
    let matrices = [
        ("qkv", qkv, hidden, (t, false)),
        ("o", hidden, q, (f32, true)),
        ("gate_up", 2 * inner, hidden, (t, false)),
        ("down", hidden, inner, (f32, true)),
        ("head", config.vocab_size, hidden, (f32, false)),
    ];
    for (name, n, k, out) in matrices {
        for m in ROWS {
            // Added to: read, too.
            let moved = out.0.num_bytes() * if out.1 { 2 } else { 1 };
            let work = (2 * (n * k + m * k) + m * n * moved, 2 * m * n * k);
            let shape = format!("{m} x {n} x {k}");
            if m <= gpu_floor::GEMV_ROWS {
                bench.line(&format!("{name} gemv"), &shape, work, |gpu, arena| {
                    gpu_cases::product(gpu, arena, [m, n, k], out, By::Gemv)
                });
            }
            bench.line(&format!("{name} cuBLAS"), &shape, work, |gpu, arena| {
                gpu_cases::product(gpu, arena, [m, n, k], out, By::Blas)
            });
        }
    }
    for m in 1..=gpu_floor::GEMV_ROWS {
        let work = (2 * (2 * inner * hidden + m * (hidden + inner)), 2 * m * 2 * inner * hidden);
        let shape = format!("{m} x {} x {hidden}", 2 * inner);
        bench.line("gate_up + silu gemv", &shape, work, |gpu, arena| {
            gpu_cases::gated(gpu, arena, [m, inner, hidden])
        });
    }
}

fn elementwise(bench: &mut Bench, config: &ModelConfig) {
    let (hidden, inner, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let qkv = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim;
    for rows in [1, 8, 64, 2048] {
        let shape = format!("{rows} x {hidden}");
        bench.line("norm", &shape, (rows * hidden * 6 + hidden * 4, 0), |gpu, arena| {
            gpu_cases::norm(gpu, arena, [rows, hidden])
        });
        bench.line("embedding", &shape, (rows * hidden * 6, 0), |gpu, arena| {
            gpu_cases::embed(gpu, arena, [rows, vocab, hidden])
        });
        let shape = format!("{rows} x {inner}");
        bench.line("silu", &shape, (rows * inner * 6, 0), |gpu, arena| {
            gpu_cases::silu(gpu, arena, [rows, inner])
        });
    }
    let angles = RopeTable::new(config, 16);
    for rows in [1, 8, 64, 2048] {
        for block_size in [8, 16, 256] {
            let paged = Paged::new(rows, 16, block_size);
            // q, k and v are read; q, K and V written.
            let bytes = rows * (2 * qkv * 2 + config.head_dim * 4);
            let shape = format!("{rows} rows, block {block_size}");
            bench.line("rope + KV write", &shape, (bytes, 0), |gpu, arena| {
                gpu_cases::rope(gpu, arena, config, &paged, angles.angles())
            });
        }
    }
    let draws = [
        ("sampling greedy", SamplingParams::default()),
        ("sampling, no cut", SamplingParams { temperature: 1.0, ..SamplingParams::default() }),
        (
            "sampling top-p 0.9",
            SamplingParams { temperature: 1.0, top_p: 0.9, ..SamplingParams::default() },
        ),
    ];
    for (name, sampling) in draws {
        for rows in [1, 8, 64] {
            let shape = format!("{rows} x {vocab}");
            bench.line(name, &shape, (rows * vocab * 4, 0), |gpu, arena| {
                gpu_cases::draw(gpu, arena, [rows, vocab], &sampling)
            });
        }
    }
}

fn attention(bench: &mut Bench, config: &ModelConfig) {
    let (heads, dim) = (config.num_attention_heads, config.head_dim);
    let token = 2 * config.num_key_value_heads * dim * 2;
    let decode = |bench: &mut Bench, batch: usize, context: usize, block_size: usize| {
        let keys = batch * context;
        let work = (keys * token + batch * 4 * heads * dim, 4 * heads * dim * keys);
        let shape = format!("{batch} x {context}, block {block_size}");
        let paged = Paged::new(batch, context, block_size);
        bench.line("decode attention", &shape, work, |gpu, arena| {
            gpu_cases::decode(gpu, arena, config, &paged)
        });
    };
    for context in CONTEXTS {
        for batch in BATCHES {
            decode(bench, batch, context, 16);
        }
    }
    for block_size in BLOCK_SIZES {
        decode(bench, 8, 2048, block_size);
    }
    let past = PROMPTS.map(|len| (0, len));
    for (past, len) in past.into_iter().chain([(8192, 512)]) {
        let pairs = len * past + len * (len + 1) / 2;
        let bytes = (past + len) * token + len * 4 * heads * dim;
        let shape = format!("{len} after {past}");
        let paged = Paged::new(1, past + len, 16);
        bench.line("prefill attention", &shape, (bytes, 4 * heads * dim * pairs), |gpu, arena| {
            gpu_cases::prefill(gpu, arena, config, &paged, len)
        });
    }
}
