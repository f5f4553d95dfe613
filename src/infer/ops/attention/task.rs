//! The attention of some query tokens of one sequence over one K/V head: tiles
//! of keys, an online softmax, a weighted sum of values.

use std::cell::RefCell;

use super::kernel::{Element, HALF, ScoreTile, TILE, ValueTile};
use crate::infer::kv::BlockId;
use crate::infer::ops::simd::{Isa, LANES, dispatch, exp, prefetch, sum_lanes};

/// The layer's cache and the shapes of its heads.
pub struct Operands<'a, E> {
    /// From the first row on; rows are `q_stride` apart, heads `head_dim`.
    pub q: &'a [f32],
    pub q_stride: usize,
    /// `[num_blocks, num_kv_heads, head_dim, block_size]`.
    pub k: &'a [E],
    /// `[num_blocks, num_kv_heads, block_size, head_dim]`.
    pub v: &'a [E],
    pub block_size: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
}

/// One K/V head of some query tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    pub block_table: &'a [BlockId],
    /// First row of `q`, its position in the sequence, and how many follow.
    pub row: usize,
    pub position: usize,
    pub num_tokens: usize,
    pub kv_head: usize,
}

/// What a task works on, kept by its thread from one step to the next.
#[derive(Debug, Default)]
struct Scratch {
    /// `[rows][head_dim]`; a row is a query head of a token.
    q: Vec<f32>,
    /// `[rows][TILE]`: scores, then their weights.
    scores: Vec<f32>,
    /// `[rows]`: running maximum and sum of the softmax.
    max: Vec<f32>,
    sum: Vec<f32>,
    /// `[rows]`: by how much a row's sum shrinks when its maximum grows.
    rescale: Vec<f32>,
    /// `[rows][head_dim]`: sums of weighted values.
    values: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Computes a task and hands each row's result, `[head_dim]`, with its token
/// and query head, to `store`.
pub fn run<E: Element + Default>(
    isa: Isa,
    operands: &Operands<'_, E>,
    task: Task<'_>,
    store: impl FnMut(usize, usize, &[f32]),
) {
    SCRATCH.with_borrow_mut(|scratch| run_in(isa, operands, task, scratch, store));
}

fn run_in<E: Element + Default>(
    isa: Isa,
    operands: &Operands<'_, E>,
    task: Task<'_>,
    scratch: &mut Scratch,
    mut store: impl FnMut(usize, usize, &[f32]),
) {
    let head_dim = operands.head_dim;
    let group = operands.num_heads / operands.num_kv_heads;
    let rows = task.num_tokens * group;
    let first_head = task.kv_head * group;
    scratch.begin(rows, head_dim);
    for (row, q) in scratch.q.chunks_exact_mut(head_dim).enumerate() {
        let start =
            (task.row + row / group) * operands.q_stride + (first_head + row % group) * head_dim;
        q.copy_from_slice(&operands.q[start..start + head_dim]);
    }
    let end = task.position + task.num_tokens;
    for tile in (0..end).step_by(TILE) {
        let keys = Keys::of(operands, task, tile, TILE.min(end - tile));
        // Tokens before the tile see none of it.
        let first = tile.saturating_sub(task.position) * group;
        let count = rows - first;
        let Scratch { q, scores, max, sum, rescale, values } = scratch;
        let score_tile = ScoreTile {
            q: q[first * head_dim..].as_ptr(),
            head_dim,
            k: keys.k,
            k_stride: keys.k_stride,
            scores: scores[first * TILE..].as_mut_ptr(),
        };
        // SAFETY: `begin` made room for all rows, `Keys` points into the cache
        // or its own copy, and `isa` was detected.
        unsafe { E::scores(isa, &score_tile, count) };
        let rows = scores[first * TILE..].as_chunks_mut::<TILE>().0.iter_mut();
        let states = max[first..].iter_mut().zip(&mut sum[first..]).zip(&mut rescale[first..]);
        for (i, (scores, ((max, sum), rescale))) in rows.zip(states).enumerate() {
            // Causal: keys after the query's own position are not seen.
            let seen = (task.position + (first + i) / group + 1 - tile).min(keys.len);
            update_row(isa, scores, seen, operands.scale, max, sum, rescale);
        }
        let value_tile = ValueTile {
            weights: scores[first * TILE..].as_ptr(),
            rescale: rescale[first..].as_ptr(),
            v: &keys.v[..keys.len],
            head_dim,
            sums: values[first * head_dim..].as_mut_ptr(),
        };
        // SAFETY: as above.
        unsafe { E::add_values(isa, &value_tile, count) };
    }
    let sums = scratch.values.chunks_exact_mut(head_dim).zip(&scratch.sum);
    for (row, (values, sum)) in sums.enumerate() {
        values.iter_mut().for_each(|value| *value /= sum);
        store(row / group, first_head + row % group, values);
    }
}

impl Scratch {
    fn begin(&mut self, rows: usize, head_dim: usize) {
        let fill = |values: &mut Vec<f32>, len, value| {
            values.clear();
            values.resize(len, value);
        };
        fill(&mut self.q, rows * head_dim, 0.0);
        fill(&mut self.scores, rows * TILE, 0.0);
        fill(&mut self.max, rows, f32::NEG_INFINITY);
        fill(&mut self.sum, rows, 0.0);
        fill(&mut self.rescale, rows, 0.0);
        fill(&mut self.values, rows * head_dim, 0.0);
    }
}

/// Where a tile's keys and values lie.
struct Keys<E> {
    k: [*const E; 2],
    k_stride: usize,
    v: [*const E; TILE],
    /// Keys of the tile that the sequence has.
    len: usize,
    /// Holds the keys where blocks do not have them side by side.
    _copy: Vec<E>,
}

impl<E: Element + Default> Keys<E> {
    /// `len` keys of the sequence from position `tile` on.
    fn of(operands: &Operands<'_, E>, task: Task<'_>, tile: usize, len: usize) -> Self {
        let &Operands { k, v, block_size, num_kv_heads, head_dim, .. } = operands;
        // First element of this head in the position's block, and the position's offset there.
        let place = |position: usize| {
            let block = task.block_table[position / block_size] as usize;
            let start = (block * num_kv_heads + task.kv_head) * block_size * head_dim;
            (start, position % block_size)
        };
        let mut rows = [v.as_ptr(); TILE];
        for (offset, row) in rows.iter_mut().take(len).enumerate() {
            let (start, within) = place(tile + offset);
            let first = start + within * head_dim;
            *row = v[first..first + head_dim].as_ptr();
        }
        if block_size.is_multiple_of(HALF) {
            // The second half may not be there: the first then stands for it, and is masked.
            let half = |position: usize| {
                let (start, within) = place(if position < tile + len { position } else { tile });
                k[start..start + head_dim * block_size][within..].as_ptr()
            };
            let halves = [half(tile), half(tile + HALF)];
            return Self { k: halves, k_stride: block_size, v: rows, len, _copy: Vec::new() };
        }
        let mut copy = vec![E::default(); head_dim * TILE];
        for offset in 0..len {
            let (start, within) = place(tile + offset);
            let elements = k[start + within..].iter().step_by(block_size).take(head_dim);
            for (d, element) in elements.enumerate() {
                copy[d * TILE + offset] = *element;
            }
        }
        let halves = [copy.as_ptr(), copy[HALF..].as_ptr()];
        Self { k: halves, k_stride: TILE, v: rows, len, _copy: copy }
    }
}

/// Takes a row's scores into its softmax and turns them into weights; `rescale`
/// becomes the factor by which everything summed so far shrinks.
fn update_row(
    isa: Isa,
    scores: &mut [f32; TILE],
    seen: usize,
    scale: f32,
    max: &mut f32,
    sum: &mut f32,
    rescale: &mut f32,
) {
    dispatch!(isa, update(
        scores: &mut [f32; TILE],
        seen: usize,
        scale: f32,
        max: &mut f32,
        sum: &mut f32,
        rescale: &mut f32,
    ));
}

#[inline(always)]
fn update<const FUSED: bool>(
    scores: &mut [f32; TILE],
    seen: usize,
    scale: f32,
    max: &mut f32,
    sum: &mut f32,
    rescale: &mut f32,
) {
    for (key, score) in scores.iter_mut().enumerate() {
        *score = if key < seen { *score * scale } else { f32::NEG_INFINITY };
    }
    let (chunks, _) = scores.as_chunks_mut::<LANES>();
    let mut highest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks.iter() {
        for lane in 0..LANES {
            highest[lane] = if chunk[lane] > highest[lane] { chunk[lane] } else { highest[lane] };
        }
    }
    let new_max = highest.iter().fold(*max, |a, b| a.max(*b));
    *rescale = exp::<FUSED>(*max - new_max);
    let mut sums = [0_f32; LANES];
    for chunk in chunks.iter_mut() {
        for lane in 0..LANES {
            chunk[lane] = exp::<FUSED>(chunk[lane] - new_max);
            sums[lane] += chunk[lane];
        }
    }
    *max = new_max;
    *sum = *sum * *rescale + sum_lanes(sums);
}

/// Brings the next tile's K and V nearer: blocks lie anywhere, so that the
/// processor cannot guess where it goes on.
#[expect(dead_code, reason = "measured next")]
fn prefetch_stretch<E>(values: &[E]) {
    for line in 0..size_of_val(values).div_ceil(64) {
        prefetch(values.as_ptr().cast::<u8>().wrapping_add(64 * line));
    }
}
