//! Each kernel on a small shape against sums in f64, or the CPU's own op, before
//! any of them is timed: a wrong kernel has no speed.

use yardstick::infer::cuda::gpu::Gpu;
use yardstick::infer::cuda::{DeviceError, Element};
use yardstick::infer::ops::RopeTable;
use yardstick::infer::{ModelConfig, SamplingParams, sampler};

use super::gpu_bench::{say, submit};
use super::gpu_cases::{self, By, Case, Paged};
use super::gpu_values::{self, Arena, assert_close, read, read_words};

/// bf16 keeps 8 bits.
const ROUNDED: f64 = 4e-3;
/// Results and the weights of V are rounded.
const ATTENDED: f64 = 1.2e-2;
const SUMMED: f64 = 1e-4;

/// Checks all of them; panics where one is wrong.
pub fn run(gpu: &mut Gpu, arena: &mut Arena) -> Result<(), DeviceError> {
    products(gpu, arena)?;
    elementwise(gpu, arena)?;
    let config = ModelConfig {
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 128,
        ..ModelConfig::tiny()
    };
    attention(gpu, arena, &config)?;
    rope(gpu, arena, &config)?;
    draws(gpu, arena)?;
    say("every kernel equals its reference on a small shape");
    Ok(())
}

/// What a case reads, before it runs, and what it writes.
fn run_case(gpu: &mut Gpu, case: &Case) -> Result<(Vec<Vec<f32>>, Vec<f32>), DeviceError> {
    let inputs = case.inputs.iter().map(|view| read(gpu, *view)).collect::<Result<_, _>>()?;
    submit(gpu, &case.variants[0])?;
    Ok((inputs, read(gpu, case.out)?))
}

fn products(gpu: &mut Gpu, arena: &mut Arena) -> Result<(), DeviceError> {
    for (by, rows) in [(By::Gemv, 1), (By::Gemv, 3), (By::Gemv, 4), (By::Blas, 2), (By::Blas, 9)] {
        for (out, add) in [(Element::Bf16, false), (Element::F32, true), (Element::F32, false)] {
            let case = gpu_cases::product(gpu, arena, [rows, 40, 328], (out, add), by)?;
            let before = read(gpu, case.out)?;
            let (inputs, found) = run_case(gpu, &case)?;
            let mut expected = gpu_values::product(&inputs[0], &inputs[1], 328);
            if add {
                expected.iter_mut().zip(before).for_each(|(to, from)| *to += f64::from(from));
            }
            let tolerance = if out == Element::F32 { SUMMED } else { ROUNDED };
            assert_close(&format!("{by:?} of {rows} rows"), &found, &expected, tolerance);
        }
    }
    let (rows, inner, k) = (2, 24, 328);
    let case = gpu_cases::gated(gpu, arena, [rows, inner, k])?;
    let (inputs, found) = run_case(gpu, &case)?;
    let sums = gpu_values::product(&inputs[0], &inputs[1], k);
    let gate = |row: &[f64]| {
        let (gate, up) = row.split_at(inner);
        gate.iter().zip(up).map(|(g, u)| gpu_values::silu_mul(*g, *u)).collect::<Vec<_>>()
    };
    let expected: Vec<f64> = sums.chunks_exact(2 * inner).flat_map(gate).collect();
    assert_close("gated gemv", &found, &expected, ROUNDED);
    Ok(())
}

fn elementwise(gpu: &mut Gpu, arena: &mut Arena) -> Result<(), DeviceError> {
    let (rows, width) = (3, 520);
    let case = gpu_cases::norm(gpu, arena, [rows, width])?;
    let (inputs, found) = run_case(gpu, &case)?;
    let normed = inputs[0].chunks_exact(width).flat_map(|row| gpu_values::norm(row, 1e-5));
    assert_close("norm", &found, &normed.collect::<Vec<_>>(), ROUNDED);

    let case = gpu_cases::silu(gpu, arena, [rows, width])?;
    let (inputs, found) = run_case(gpu, &case)?;
    let gate = |row: &[f32]| {
        let (gate, up) = row.split_at(width);
        let pairs = gate.iter().zip(up);
        pairs.map(|(g, u)| gpu_values::silu_mul((*g).into(), (*u).into())).collect::<Vec<_>>()
    };
    let expected: Vec<f64> = inputs[0].chunks_exact(2 * width).flat_map(gate).collect();
    assert_close("silu", &found, &expected, ROUNDED);

    let vocab = 50;
    let case = gpu_cases::embed(gpu, arena, [rows, vocab, width])?;
    let (inputs, found) = run_case(gpu, &case)?;
    let taken = (0..rows).flat_map(|row| &inputs[0][row * 7919 % vocab * width..][..width]);
    assert_close("embedding", &found, &taken.map(|x| f64::from(*x)).collect::<Vec<_>>(), 0.0);
    Ok(())
}

fn attention(gpu: &mut Gpu, arena: &mut Arena, config: &ModelConfig) -> Result<(), DeviceError> {
    let (heads, kv_heads, dim) =
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let width = (heads + 2 * kv_heads) * dim;
    // Of a sequence's token at `position`, whose query is row `row` of `qkv`.
    let expected = |inputs: &[Vec<f32>], paged: &Paged, sequence, row: usize, position| {
        let head = |head: usize| {
            let q = &inputs[0][row * width + head * dim..][..dim];
            let rows = |cache: usize| {
                (0..=position).map(move |token| {
                    let at = paged.at(paged.slot(sequence, token), head * kv_heads / heads, config);
                    &inputs[cache][at..at + dim]
                })
            };
            gpu_values::attention(q, rows(1), rows(2))
        };
        (0..heads).flat_map(head).collect::<Vec<f64>>()
    };
    // One split and several; blocks of several sizes.
    for (batch, context, block_size) in [(2, 37, 8), (1, 256, 24), (2, 300, 16), (1, 530, 256)] {
        let paged = Paged::new(batch, context, block_size);
        let case = gpu_cases::decode(gpu, arena, config, &paged)?;
        let (inputs, found) = run_case(gpu, &case)?;
        let all = (0..batch).flat_map(|i| expected(&inputs, &paged, i, i, context - 1));
        let name = format!("decode attention of {batch} x {context}, block {block_size}");
        assert_close(&name, &found, &all.collect::<Vec<_>>(), ATTENDED);
    }
    for (batch, context, new, block_size) in [(2, 30, 30, 16), (1, 100, 25, 8)] {
        let paged = Paged::new(batch, context, block_size);
        let case = gpu_cases::prefill(gpu, arena, config, &paged, new)?;
        let (inputs, found) = run_case(gpu, &case)?;
        let tokens = (0..batch).flat_map(|sequence| (0..new).map(move |i| (sequence, i)));
        let all = tokens.flat_map(|(sequence, i)| {
            expected(&inputs, &paged, sequence, sequence * new + i, context - new + i)
        });
        let name = format!("prefill attention of {batch} x {new} of {context}");
        assert_close(&name, &found, &all.collect::<Vec<_>>(), ATTENDED);
    }
    Ok(())
}

fn rope(gpu: &mut Gpu, arena: &mut Arena, config: &ModelConfig) -> Result<(), DeviceError> {
    let (q_heads, kv_heads, dim) =
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let table = RopeTable::new(config, 16);
    let paged = Paged::new(2, 10, 8);
    let case = gpu_cases::rope(gpu, arena, config, &paged, table.angles())?;
    let before = read(gpu, case.inputs[0])?;
    submit(gpu, &case.variants[0])?;
    let after = case.inputs.iter().map(|view| read(gpu, *view)).collect::<Result<Vec<_>, _>>()?;
    let half = dim / 2;
    let (cosines, sines) = table.angles()[9 * dim..][..dim].split_at(half);
    let heads = q_heads + 2 * kv_heads;
    for sequence in 0..2 {
        let slot = paged.slot(sequence, 9);
        for head in 0..heads {
            let from = (sequence * heads + head) * dim;
            let x = &before[from..][..dim];
            let rotated = (0..dim).map(|i| {
                let (first, second) = (f64::from(x[i % half]), f64::from(x[i % half + half]));
                let (cos, sin) = (f64::from(cosines[i % half]), f64::from(sines[i % half]));
                if i < half { first * cos - second * sin } else { second * cos + first * sin }
            });
            let same = x.iter().map(|x| f64::from(*x));
            let kept = |cache: usize, kv_head| &after[cache][paged.at(slot, kv_head, config)..];
            let (found, expected): (_, Vec<f64>) = if head < q_heads {
                (&after[0][from..], rotated.collect())
            } else if head < q_heads + kv_heads {
                (kept(1, head - q_heads), rotated.collect())
            } else {
                (kept(2, head - q_heads - kv_heads), same.collect())
            };
            assert_close(&format!("rope of head {head}"), &found[..dim], &expected, ROUNDED);
        }
    }
    Ok(())
}

fn draws(gpu: &mut Gpu, arena: &mut Arena) -> Result<(), DeviceError> {
    let (rows, vocab) = (3, 1000);
    let top_p = SamplingParams { temperature: 1.0, top_p: 0.9, ..SamplingParams::default() };
    for sampling in [SamplingParams::default(), top_p] {
        let case = gpu_cases::draw(gpu, arena, [rows, vocab], &sampling)?;
        let (inputs, _) = run_case(gpu, &case)?;
        let found = read_words(gpu, case.out)?;
        for (row, (logits, found)) in inputs[0].chunks_exact(vocab).zip(found).enumerate() {
            assert_eq!(Ok(found), sampler::sample(logits, &sampling, row), "row {row} drawn");
        }
    }
    Ok(())
}
