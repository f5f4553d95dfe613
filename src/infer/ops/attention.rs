//! Causal attention that reads K and V where they lie: in the blocks of the
//! cache, through block tables. Softmax is online, in f32.
//!
//! Keys are taken in tiles of 32 positions, counted from the start of the
//! sequence. The tiling depends on positions alone, so neither the block size,
//! nor the chunk in which a prompt is computed, nor the rest of the batch
//! changes a bit of the result. The query heads of a group share each K/V row.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::f32_slice;
use super::simd::{Isa, LANES, dot, exp, mul_add};
use crate::infer::batch::BatchLayout;
use crate::infer::kv::BlockId;

/// Keys in a tile.
const TILE: usize = 32;

/// Query tokens of a prompt in one parallel task.
const TASK_TOKENS: usize = 16;

/// Attention of `q`, `[num_tokens, num_heads, head_dim]`, over the layer's K and
/// V, each `[num_blocks, block_size, num_kv_heads, head_dim]`, scaled by
/// `1 / sqrt(head_dim)`. Query token `i` of a sequence sees all of the
/// sequence's keys up to its own. Gives `[num_tokens, num_heads * head_dim]`.
///
/// # Errors
/// When shapes disagree, or `layout` names rows or blocks that do not exist.
pub fn paged_attention(
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    layout: &Arc<BatchLayout>,
) -> Result<Tensor> {
    q.apply_op3_no_bwd(k_cache, v_cache, &PagedAttention { layout: Arc::clone(layout) })
}

struct PagedAttention {
    layout: Arc<BatchLayout>,
}

/// Shapes and operands, checked.
struct Operands<'a> {
    /// From the first row on; rows are `q_stride` apart, heads `head_dim`.
    q: &'a [f32],
    q_stride: usize,
    k: &'a [f32],
    v: &'a [f32],
    block_size: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    scale: f32,
}

/// Some heads of some query tokens of one sequence.
struct Task<'a> {
    block_table: &'a [BlockId],
    /// First row of `q`, its position in the sequence, and how many follow.
    row: usize,
    position: usize,
    num_tokens: usize,
    kv_heads: std::ops::Range<usize>,
    /// `[num_tokens, heads of these kv heads, head_dim]`.
    out: &'a mut [f32],
}

impl CustomOp3 for PagedAttention {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (num_tokens, num_heads, head_dim) = q_layout.shape().dims3()?;
        let (num_blocks, block_size, num_kv_heads, kv_dim) = k_layout.shape().dims4()?;
        let [q_stride, head_stride, 1] = *q_layout.stride() else {
            bail!("q must have contiguous heads, got {q_layout:?}");
        };
        if v_layout.shape() != k_layout.shape()
            || kv_dim != head_dim
            || head_stride != head_dim
            || num_kv_heads == 0
            || num_heads % num_kv_heads != 0
        {
            bail!("q {q_layout:?} does not fit k {k_layout:?} and v {v_layout:?}");
        }
        check_layout(&self.layout, num_tokens, num_blocks, block_size)?;
        let CpuStorage::F32(q) = q else { bail!("q must be f32") };
        let operands = Operands {
            q: &q[q_layout.start_offset()..],
            q_stride,
            k: f32_slice(k, k_layout, "k")?,
            v: f32_slice(v, v_layout, "v")?,
            block_size,
            num_heads,
            num_kv_heads,
            head_dim,
            #[expect(clippy::cast_precision_loss, reason = "a head is narrow")]
            scale: 1.0 / (head_dim as f32).sqrt(),
        };
        let width = num_heads * head_dim;
        let mut out = vec![0_f32; num_tokens * width];
        let isa = Isa::detect();
        let tasks = tasks(&self.layout, &operands, &mut out);
        if tasks.len() == 1 {
            tasks.into_iter().for_each(|task| run(isa, &operands, task));
        } else {
            tasks.into_par_iter().for_each(|task| run(isa, &operands, task));
        }
        Ok((CpuStorage::F32(out), Shape::from((num_tokens, width))))
    }
}

fn check_layout(
    layout: &BatchLayout,
    num_tokens: usize,
    num_blocks: usize,
    block_size: usize,
) -> Result<()> {
    let BatchLayout { query_start_loc, seq_lens, block_tables } = layout;
    let num_seqs = seq_lens.len();
    if query_start_loc.len() != num_seqs + 1
        || block_tables.len() != num_seqs
        || query_start_loc.first() != Some(&0)
        || query_start_loc.last() != Some(&num_tokens)
        || !query_start_loc.is_sorted()
    {
        bail!("the layout of {num_seqs} sequences does not describe {num_tokens} tokens");
    }
    for (seq, (len, table)) in seq_lens.iter().zip(block_tables).enumerate() {
        if query_start_loc[seq + 1] - query_start_loc[seq] > *len {
            bail!("sequence {seq} has more query tokens than its {len} tokens");
        }
        if table.len() * block_size < *len {
            bail!("{} blocks of {block_size} do not hold {len} tokens", table.len());
        }
        if let Some(block) = table.iter().find(|block| **block as usize >= num_blocks) {
            bail!("block {block} of a pool of {num_blocks}");
        }
    }
    Ok(())
}

/// Splits the work: a prompt by stretches of tokens, a decode by kv head, so
/// that every task fills one stretch of `out`.
fn tasks<'a>(
    layout: &'a BatchLayout,
    operands: &Operands<'_>,
    mut out: &'a mut [f32],
) -> Vec<Task<'a>> {
    let group_width = operands.num_heads / operands.num_kv_heads * operands.head_dim;
    let mut tasks = Vec::new();
    let mut push = |task: (usize, usize, usize), kv_heads: std::ops::Range<usize>, table| {
        let (row, position, num_tokens) = task;
        let len = num_tokens * kv_heads.len() * group_width;
        let (head, rest) = std::mem::take(&mut out).split_at_mut(len);
        out = rest;
        tasks.push(Task { block_table: table, row, position, num_tokens, kv_heads, out: head });
    };
    for (seq, seq_len) in layout.seq_lens.iter().enumerate() {
        let (first, last) = (layout.query_start_loc[seq], layout.query_start_loc[seq + 1]);
        let table = layout.block_tables[seq].as_slice();
        let first_position = seq_len - (last - first);
        if last - first == 1 {
            for head in 0..operands.num_kv_heads {
                push((first, first_position, 1), head..head + 1, table);
            }
        } else {
            for row in (first..last).step_by(TASK_TOKENS) {
                let count = TASK_TOKENS.min(last - row);
                let position = first_position + row - first;
                push((row, position, count), 0..operands.num_kv_heads, table);
            }
        }
    }
    tasks
}

fn run(isa: Isa, operands: &Operands<'_>, task: Task<'_>) {
    match isa {
        // SAFETY: `Isa::detect` names only what the processor has.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { run_avx512(operands, task) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { run_avx2(operands, task) },
        Isa::Portable => run_any::<false>(operands, task),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn run_avx512(operands: &Operands<'_>, task: Task<'_>) {
    run_any::<true>(operands, task);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2(operands: &Operands<'_>, task: Task<'_>) {
    run_any::<true>(operands, task);
}

/// Running maximum and sum of one query's softmax; the weighted sum of values
/// stands in the task's output and is divided by `sum` at the end.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    sum: f32,
}

#[inline(always)]
fn run_any<const FUSED: bool>(operands: &Operands<'_>, task: Task<'_>) {
    let &Operands { head_dim, block_size, num_kv_heads, .. } = operands;
    let group = operands.num_heads / num_kv_heads;
    let heads = task.kv_heads.len() * group;
    let first_head = task.kv_heads.start * group;
    let mut states = vec![Softmax { max: f32::NEG_INFINITY, sum: 0.0 }; task.num_tokens * heads];
    let end = task.position + task.num_tokens;
    for tile in (0..end).step_by(TILE) {
        let tile_len = TILE.min(end - tile);
        let mut slots = [0_usize; TILE];
        for (offset, slot) in slots.iter_mut().take(tile_len).enumerate() {
            let position = tile + offset;
            let block = task.block_table[position / block_size] as usize;
            *slot = block * block_size + position % block_size;
        }
        for head in 0..heads {
            let kv_head = task.kv_heads.start + head / group;
            let row_of = |slot: usize| (slot * num_kv_heads + kv_head) * head_dim;
            for token in 0..task.num_tokens {
                // Causal: keys after the query's own position are not seen.
                let seen = (task.position + token + 1).saturating_sub(tile).min(tile_len);
                if seen == 0 {
                    continue;
                }
                let at = token * heads + head;
                let q_start =
                    (task.row + token) * operands.q_stride + (first_head + head) * head_dim;
                let q = &operands.q[q_start..q_start + head_dim];
                let mut scores = [f32::NEG_INFINITY; TILE];
                for (score, slot) in scores.iter_mut().zip(&slots[..seen]) {
                    let k = &operands.k[row_of(*slot)..row_of(*slot) + head_dim];
                    *score = dot::<FUSED>(q, k) * operands.scale;
                }
                let out = &mut task.out[at * head_dim..(at + 1) * head_dim];
                let rescale = update::<FUSED>(&mut states[at], &mut scores);
                for value in out.iter_mut() {
                    *value *= rescale;
                }
                for (weight, slot) in scores.iter().zip(&slots[..seen]) {
                    let v = &operands.v[row_of(*slot)..row_of(*slot) + head_dim];
                    for (value, v) in out.iter_mut().zip(v) {
                        *value = mul_add::<FUSED>(*weight, *v, *value);
                    }
                }
            }
        }
    }
    for (out, state) in task.out.chunks_exact_mut(head_dim).zip(&states) {
        for value in out {
            *value /= state.sum;
        }
    }
}

/// Takes a tile's scores into the softmax and turns them into weights; returns
/// the factor by which everything summed so far shrinks. Keys that are not
/// seen have a score of minus infinity.
#[inline(always)]
fn update<const FUSED: bool>(state: &mut Softmax, scores: &mut [f32; TILE]) -> f32 {
    let mut max = [f32::NEG_INFINITY; LANES];
    let (chunks, _) = scores.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            max[lane] = max[lane].max(chunk[lane]);
        }
    }
    let max = max.iter().fold(state.max, |a, b| a.max(*b));
    let rescale = exp::<FUSED>(state.max - max);
    let mut sums = [0_f32; LANES];
    let (chunks, _) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp::<FUSED>(chunk[lane] - max);
            sums[lane] += chunk[lane];
        }
    }
    state.max = max;
    state.sum = state.sum * rescale + super::simd::sum_lanes(sums);
    rescale
}
