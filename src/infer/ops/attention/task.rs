//! The attention of some query tokens of one sequence over one K/V head: tiles
//! of keys, an online softmax, a weighted sum of values.

use std::cell::RefCell;
use std::ops::Range;

use super::kernel::{Element, HALF, ScoreTile, TILE, ValueTile};
use super::softmax::{Seen, Softmax, total, update_rows};
use crate::infer::kv::BlockId;
use crate::infer::ops::simd::{Isa, LANES, dispatch, prefetch};

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

impl<E> Operands<'_, E> {
    /// First element of the task's head in the block of `position`, and the
    /// position's offset in the block.
    fn place(&self, task: Task<'_>, position: usize) -> (usize, usize) {
        let block = task.block_table[position / self.block_size] as usize;
        let head = block * self.num_kv_heads + task.kv_head;
        (head * self.block_size * self.head_dim, position % self.block_size)
    }
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
    /// `[rows]`: see [`Softmax`].
    max: Vec<f32>,
    sum: Vec<[f32; LANES]>,
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
        scale_to(isa, q, &operands.q[start..start + head_dim], operands.scale);
    }
    let end = task.position + task.num_tokens;
    for tile in (0..end).step_by(TILE) {
        let keys = Keys::of(operands, task, tile, TILE.min(end - tile));
        prefetch_tile(operands, task, tile + TILE..end.min(tile + 2 * TILE));
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
        let softmax = Softmax {
            scores: scores[first * TILE..].as_chunks_mut::<TILE>().0,
            max: &mut max[first..],
            sum: &mut sum[first..],
            rescale: &mut rescale[first..],
        };
        // Causal: keys after the query's own position are not seen.
        let seen = task.position + first / group + 1 - tile;
        update_rows(isa, softmax, Seen { first: seen, group, len: keys.len });
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
    // What `q` held is used up, and it is as wide as a result.
    for (row, ((values, sum), result)) in sums.zip(scratch.q.chunks_exact_mut(head_dim)).enumerate()
    {
        scale_to(isa, result, values, 1.0 / total(*sum));
        store(row / group, first_head + row % group, result);
    }
}

fn scale_to(isa: Isa, to: &mut [f32], values: &[f32], factor: f32) {
    dispatch!(isa, scaled(to: &mut [f32], values: &[f32], factor: f32));
}

#[inline(always)]
fn scaled<const FUSED: bool>(to: &mut [f32], values: &[f32], factor: f32) {
    for (to, value) in to.iter_mut().zip(values) {
        *to = value * factor;
    }
}

impl Scratch {
    fn begin(&mut self, rows: usize, head_dim: usize) {
        fn fill<T: Clone>(values: &mut Vec<T>, len: usize, value: T) {
            values.clear();
            values.resize(len, value);
        }
        // Overwritten before they are read.
        self.q.resize(rows * head_dim, 0.0);
        self.scores.resize(rows * TILE, 0.0);
        self.rescale.resize(rows, 0.0);
        fill(&mut self.max, rows, f32::NEG_INFINITY);
        fill(&mut self.sum, rows, [0.0; LANES]);
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
        let &Operands { k, v, block_size, head_dim, .. } = operands;
        let place = |position: usize| operands.place(task, position);
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

/// Brings the K and V of `positions` nearer: blocks lie anywhere, so that the
/// processor cannot guess where a sequence goes on.
fn prefetch_tile<E>(operands: &Operands<'_, E>, task: Task<'_>, positions: Range<usize>) {
    const LINE: usize = 64;
    let &Operands { k, v, block_size, head_dim, .. } = operands;
    let mut position = positions.start;
    while position < positions.end {
        let (start, within) = operands.place(task, position);
        let count = (block_size - within).min(positions.end - position);
        let bytes = count * head_dim * size_of::<E>();
        let v_rows = v.as_ptr().wrapping_add(start + within * head_dim).cast::<u8>();
        for line in (0..bytes).step_by(LINE) {
            prefetch(v_rows.wrapping_add(line));
        }
        // Keys of a block lie in `head_dim` stretches, those of one element each.
        let stretch = count * size_of::<E>();
        let step = (block_size * size_of::<E>()).max(LINE.min(stretch));
        let k_elements = k.as_ptr().wrapping_add(start + within).cast::<u8>();
        for at in (0..head_dim * block_size * size_of::<E>()).step_by(step) {
            for line in (0..stretch).step_by(LINE) {
                prefetch(k_elements.wrapping_add(at + line));
            }
        }
        position += count;
    }
}
