//! The attention of some query tokens of one sequence over one K/V head: tiles
//! of keys, an online softmax, a weighted sum of values.

use std::cell::RefCell;
use std::ops::Range;

use super::kernel::{Element, HALF, ScoreTile, TILE, ValueTile};
use super::partial::{Partial, SPLIT, scale_to};
use super::softmax::{Seen, Softmax, update_rows};
use crate::infer::kv::BlockId;
use crate::infer::ops::activation::{Activation, round_to_pairs};
use crate::infer::ops::simd::{Isa, prefetch};

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
    /// Query heads of a K/V head.
    const fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

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

/// Keys that are copied at once where blocks are narrower than half a tile.
const EIGHT: usize = 8;

/// What a task works on, kept by its thread from one step to the next.
#[derive(Debug, Default)]
struct Scratch {
    rows: Rows,
    /// Two [`Partial`]s: of all keys so far, and of one split.
    total: Vec<f32>,
    split: Vec<f32>,
}

/// The rows of a task, and a tile of theirs.
#[derive(Debug, Default)]
struct Rows {
    /// `[rows][head_dim]`, scaled; a row is a query head of a token.
    q: Vec<f32>,
    /// `[rows][head_dim / 2]`: the same, rounded, if the kernels take pairs.
    q_pairs: Vec<u32>,
    /// `[rows][TILE]`: scores, then their weights.
    scores: Vec<f32>,
    /// `[rows]`: by how much a row's sum shrinks when its maximum grows.
    rescale: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Computes a task and writes each row's result, `[head_dim]`, to the slot that
/// its token and query head have.
pub fn run<'o, E: Element + Default, T: Activation>(
    isa: Isa,
    operands: &Operands<'_, E>,
    task: Task<'_>,
    slot: impl FnMut(usize, usize) -> &'o mut [T],
) {
    SCRATCH.with_borrow_mut(|Scratch { rows, total, split }| {
        rows.load(isa, operands, task);
        let (num_rows, head_dim) = (task.rows(operands), operands.head_dim);
        total.resize(Partial::len(num_rows, head_dim), 0.0);
        split.resize(Partial::len(num_rows, head_dim), 0.0);
        let mut sums = Partial::of(total, num_rows, head_dim);
        let end = task.position + task.num_tokens;
        attend(isa, operands, task, 0..SPLIT.min(end), rows, &mut sums);
        for start in (SPLIT..end).step_by(SPLIT) {
            let mut later = Partial::of(split, num_rows, head_dim);
            let first =
                attend(isa, operands, task, start..end.min(start + SPLIT), rows, &mut later);
            sums.join(isa, &later, first);
        }
        write(isa, operands, task, &sums, slot);
    });
}

/// Computes a task over one [`SPLIT`] of its keys into a buffer for [`join`].
pub fn run_split<E: Element + Default>(
    isa: Isa,
    operands: &Operands<'_, E>,
    task: Task<'_>,
    split: usize,
    buffer: &mut [f32],
) {
    let mut sums = Partial::of(buffer, task.rows(operands), operands.head_dim);
    let end = (task.position + task.num_tokens).min((split + 1) * SPLIT);
    SCRATCH.with_borrow_mut(|Scratch { rows, .. }| {
        rows.load(isa, operands, task);
        attend(isa, operands, task, split * SPLIT..end, rows, &mut sums);
    });
}

/// Writes the results of a task of which each chunk of `buffers` has a split, in order.
pub fn join<'o, E, T: Activation>(
    isa: Isa,
    operands: &Operands<'_, E>,
    task: Task<'_>,
    buffers: &mut [f32],
    slot: impl FnMut(usize, usize) -> &'o mut [T],
) {
    let (rows, head_dim) = (task.rows(operands), operands.head_dim);
    let mut splits = buffers.chunks_exact_mut(Partial::len(rows, head_dim));
    let Some(first) = splits.next() else { return };
    let mut sums = Partial::of(first, rows, head_dim);
    for (split, buffer) in splits.enumerate() {
        let first = task.rows_before((split + 1) * SPLIT, operands);
        sums.join(isa, &Partial::of(buffer, rows, head_dim), first);
    }
    write(isa, operands, task, &sums, slot);
}

impl Task<'_> {
    const fn rows<E>(self, operands: &Operands<'_, E>) -> usize {
        self.num_tokens * operands.group()
    }

    /// Rows of the tokens before a position.
    const fn rows_before<E>(self, position: usize, operands: &Operands<'_, E>) -> usize {
        position.saturating_sub(self.position) * operands.group()
    }
}

/// Makes `sums` of the keys, whose first begins a tile. Gives the first of the
/// rows that see any of them.
fn attend<E: Element + Default>(
    isa: Isa,
    operands: &Operands<'_, E>,
    task: Task<'_>,
    positions: Range<usize>,
    rows: &mut Rows,
    sums: &mut Partial<'_>,
) -> usize {
    let (head_dim, group) = (operands.head_dim, operands.group());
    sums.reset();
    let last = task.position + task.num_tokens;
    for tile in positions.clone().step_by(TILE) {
        let end = positions.end.min(tile + TILE);
        let keys = Keys::of(operands, task, tile, end - tile);
        prefetch_tile(operands, task, end..last.min(end + TILE));
        let first = task.rows_before(tile, operands);
        let count = task.rows(operands) - first;
        let Rows { q, q_pairs, scores, rescale } = &mut *rows;
        let score_tile = ScoreTile {
            q: q[first * head_dim..].as_ptr(),
            q_pairs: q_pairs.as_ptr().wrapping_add(first * head_dim / 2),
            head_dim,
            k: keys.k,
            k_stride: keys.k_stride,
            scores: scores[first * TILE..].as_mut_ptr(),
        };
        // SAFETY: `load` made room for all rows, `Keys` points into the cache
        // or its own copy, and `isa` was detected.
        unsafe { E::scores(isa, &score_tile, count) };
        let softmax = Softmax {
            scores: scores[first * TILE..].as_chunks_mut::<TILE>().0,
            max: &mut sums.max[first..],
            sum: &mut sums.sum[first..],
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
            sums: sums.values[first * head_dim..].as_mut_ptr(),
        };
        // SAFETY: as above.
        unsafe { E::add_values(isa, &value_tile, count) };
    }
    task.rows_before(positions.start, operands)
}

fn write<'o, E, T: Activation>(
    isa: Isa,
    operands: &Operands<'_, E>,
    task: Task<'_>,
    sums: &Partial<'_>,
    mut slot: impl FnMut(usize, usize) -> &'o mut [T],
) {
    let group = operands.group();
    for row in 0..task.rows(operands) {
        sums.finish(isa, row, slot(row / group, task.kv_head * group + row % group));
    }
}

impl Rows {
    /// Copies the task's queries, and makes room for its rows.
    fn load<E: Element>(&mut self, isa: Isa, operands: &Operands<'_, E>, task: Task<'_>) {
        let (rows, head_dim, group) = (task.rows(operands), operands.head_dim, operands.group());
        // All is overwritten before it is read.
        self.q.resize(rows * head_dim, 0.0);
        self.scores.resize(rows * TILE, 0.0);
        self.rescale.resize(rows, 0.0);
        for (row, q) in self.q.chunks_exact_mut(head_dim).enumerate() {
            let head = task.kv_head * group + row % group;
            let start = (task.row + row / group) * operands.q_stride + head * head_dim;
            scale_to(isa, q, &operands.q[start..start + head_dim], operands.scale);
        }
        if E::takes_pairs(isa) {
            self.q_pairs.resize(rows * head_dim / 2, 0);
            round_to_pairs(isa, &self.q, &mut self.q_pairs);
        }
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
        // Blocks of whole eights are the likelier ones, and are copied by the eight.
        let run = if block_size.is_multiple_of(EIGHT) { EIGHT } else { 1 };
        for offset in (0..len).step_by(run) {
            let (start, within) = place(tile + offset);
            let block = k[start..start + head_dim * block_size].chunks_exact(block_size);
            for (to, from) in copy.chunks_exact_mut(TILE).zip(block) {
                let (to, from) = (&mut to[offset..], &from[within..]);
                match (to.first_chunk_mut::<EIGHT>(), from.first_chunk::<EIGHT>()) {
                    (Some(to), Some(from)) if run == EIGHT => *to = *from,
                    _ => to[0] = from[0],
                }
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
