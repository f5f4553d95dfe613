//! Attention of single query tokens over the paged cache; see
//! [`crate::infer::ops::paged_attention`]. Long contexts are split, and what
//! the splits make is merged by a second launch.

use std::f32::consts::LOG2_E;

use super::paged::{block_len, eights};
use crate::infer::cuda::launch::by_element;
use crate::infer::cuda::{Element, Launch, LaunchError, View};

/// Keys of one split. Fixed, so that a result does not depend on the batch.
pub const SPLIT: usize = 256;

/// Query heads of one block.
const HEADS: usize = 8;

const MERGE_THREADS: usize = 256;

/// Splits of an item that sees `kv_len` keys.
#[must_use]
pub const fn num_splits(kv_len: usize) -> usize {
    kv_len.div_ceil(SPLIT)
}

/// Query tokens, each an *item*, and what they attend to. A *unit* is one
/// split of one item. T is f32, f16 or bf16.
#[derive(Debug, Clone, Copy)]
pub struct DecodeAttention {
    /// T, rows of `q_stride` elements that start with `[num_heads, head_dim]`.
    pub q: View,
    /// Elements from a row of `q` to the next, a multiple of 8.
    pub q_stride: usize,
    /// T, `[num_blocks, num_kv_heads, block_size, head_dim]`.
    pub k: View,
    /// As `k`.
    pub v: View,
    /// i32, `[num_items]`: row of `q` and of `out`.
    pub row: View,
    /// i32, `[num_items]`: keys that the item sees. 0: the item is padding, and
    /// nothing else of it is read.
    pub kv_len: View,
    /// i32, `[num_items]`: where the item's block table starts in `block_tables`.
    pub table_start: View,
    /// i32, `[num_items + 1]`: running number of splits, from 0; see [`num_splits`].
    pub split_start: View,
    /// i32, tables one after another. Items may share one.
    pub block_tables: View,
    /// f32, at least [`Self::partials_len`].
    pub partials: View,
    /// T, `[rows, num_heads * head_dim]`.
    pub out: View,
    /// Items, those of padding too.
    pub num_items: usize,
    /// Rows of `q` and of `out`.
    pub rows: usize,
    /// Query heads, a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Heads of K and V.
    pub num_kv_heads: usize,
    /// Elements of a head, a multiple of 8 up to 256. 64 and 128 are fast.
    pub head_dim: usize,
    /// Tokens of a block, a multiple of 8 up to 256.
    pub block_size: usize,
}

impl DecodeAttention {
    /// Elements of `partials` for so many units.
    #[must_use]
    pub const fn partials_len(num_units: usize, num_heads: usize, head_dim: usize) -> usize {
        num_units * num_heads * (head_dim + 4)
    }

    /// Attention of every item. Those of one split are done with it; the others
    /// need [`Self::merge`]. `max_units` is at least the number of units that
    /// `split_start` ends with, in every replay where the launch is captured.
    /// `max_blocks` bounds the blocks of a K/V head, which share the units
    /// evenly: some times as many as the device holds at once.
    ///
    /// # Errors
    /// [`LaunchError`] when a view does not fit, or a size is not supported.
    pub fn attend(&self, max_units: usize, max_blocks: usize) -> Result<Launch, LaunchError> {
        let Self { num_heads, num_kv_heads, head_dim, block_size, .. } = *self;
        self.check()?;
        let element = self.out.element;
        let (function, warps) = match head_dim {
            64 if element != Element::F32 => (by_element!("decode_attention_64", element)?, 8),
            128 if element != Element::F32 => (by_element!("decode_attention_128", element)?, 8),
            _ => (by_element!("decode_attention", element)?, 4),
        };
        let group = num_heads / num_kv_heads;
        let block = block_len(self.k, self.v, [num_kv_heads, block_size, head_dim])?;
        if i32::try_from(self.k.len / head_dim).is_err() {
            return Err(LaunchError(format!("k has {} rows, beyond i32", self.k.len / head_dim)));
        }
        let q_len = self.rows.saturating_sub(1) * self.q_stride + num_heads * head_dim;
        let partials = Self::partials_len(max_units, num_heads, head_dim);
        let shared =
            warps * (group.min(HEADS) * (head_dim + 8)).max(head_dim * 4) * size_of::<f32>();
        #[expect(clippy::cast_precision_loss, reason = "a head is narrow")]
        let scale = LOG2_E / (head_dim as f32).sqrt();
        let grid = [max_units.min(max_blocks), num_kv_heads * group.div_ceil(HEADS), 1];
        let launch = Launch::new("decode_attention", function, grid, [warps * 32, 1, 1])?
            .shared(u32::try_from(shared).unwrap_or(u32::MAX))
            .arg(self.q.expect("q", element, q_len)?)
            .arg(self.k.expect("k", element, block)?)
            .arg(self.v.expect("v", element, block)?)
            .arg(self.row.expect("row", Element::I32, self.num_items)?)
            .arg(self.kv_len.expect("kv_len", Element::I32, self.num_items)?)
            .arg(self.table_start.expect("table_start", Element::I32, self.num_items)?)
            .arg(self.split_start.expect("split_start", Element::I32, self.num_items + 1)?)
            .arg(self.block_tables.expect("block_tables", Element::I32, 0)?)
            .arg(self.partials.expect("partials", Element::F32, partials)?)
            .arg(self.out_ptr()?);
        [self.q_stride, self.num_items, num_heads, num_kv_heads, head_dim, block_size]
            .into_iter()
            .try_fold(launch, Launch::int)
            .map(|launch| launch.float(scale))
    }

    /// Joins the splits of the items that have several; leaves all others.
    ///
    /// # Errors
    /// [`LaunchError`] when a view does not fit, or a size is not supported.
    pub fn merge(&self) -> Result<Launch, LaunchError> {
        self.check()?;
        let function = by_element!("decode_attention_merge", self.out.element)?;
        let grid = [self.num_items, self.num_heads, 1];
        Launch::new("decode_attention", function, grid, [MERGE_THREADS, 1, 1])?
            .arg(self.partials.expect("partials", Element::F32, 0)?)
            .arg(self.row.expect("row", Element::I32, self.num_items)?)
            .arg(self.split_start.expect("split_start", Element::I32, self.num_items + 1)?)
            .arg(self.out_ptr()?)
            .int(self.num_heads)?
            .int(self.head_dim)
    }

    fn out_ptr(&self) -> Result<u64, LaunchError> {
        let len = self.rows * self.num_heads * self.head_dim;
        self.out.expect("out", self.out.element, len)
    }

    fn check(&self) -> Result<(), LaunchError> {
        let Self { q_stride, num_heads, num_kv_heads, head_dim, block_size, .. } = *self;
        eights("head_dim", head_dim, 256)?;
        eights("block_size", block_size, 256)?;
        eights("q_stride", q_stride, i32::MAX as usize)?;
        if num_kv_heads == 0 || num_heads == 0 || !num_heads.is_multiple_of(num_kv_heads) {
            return Err(LaunchError(format!(
                "{num_heads} query heads do not share {num_kv_heads} heads of k evenly"
            )));
        }
        if q_stride < num_heads * head_dim {
            return Err(LaunchError(format!(
                "q_stride {q_stride} is less than {num_heads} heads of {head_dim}"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
