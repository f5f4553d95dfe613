//! Causal attention of many query tokens a sequence over the paged cache; see
//! [`crate::infer::ops::paged_attention`]. A block of the grid takes a *tile*, a
//! run of tokens of one sequence, for one K/V head.

use std::cmp::Reverse;
use std::f32::consts::LOG2_E;

use super::paged::{block_len, eights};
use crate::infer::cuda::launch::by_element;
use crate::infer::cuda::{Element, Launch, LaunchError, View};

/// Pairs of a token and a query head that a tile holds at most.
const ROWS: usize = 64;

const THREADS: usize = 128;

/// Sequences with several query tokens, and what they attend to. T is f16 or bf16.
#[derive(Debug, Clone, Copy)]
pub struct PrefillAttention {
    /// T, `[num_rows, (num_heads + 2 * num_kv_heads) * head_dim]`, the query heads first.
    pub q: View,
    /// T, `[num_blocks, num_kv_heads, block_size, head_dim]`.
    pub k_cache: View,
    /// As `k_cache`.
    pub v_cache: View,
    /// i32, `[num_sequences]`: the sequence's first row of `q` and `out`.
    pub query_start: View,
    /// i32, `[num_sequences]`: its rows.
    pub query_len: View,
    /// i32, `[num_sequences]`: its keys, those of its rows counted, which come last.
    pub seq_len: View,
    /// i32, `[num_sequences]`: where its block table starts in `block_tables`.
    pub table_start: View,
    /// i32, `[num_tiles, 2]`: what [`tiles`] gives.
    pub tiles: View,
    /// i32, tables one after another.
    pub block_tables: View,
    /// T, `[num_rows, num_heads * head_dim]`. Rows of no sequence are left.
    pub out: View,
    /// Tiles of all sequences.
    pub num_tiles: usize,
    /// Rows of `q` and of `out`.
    pub num_rows: usize,
    /// Query heads: a multiple of `num_kv_heads`, at most 64 for each of them.
    pub num_heads: usize,
    /// Heads of K and V.
    pub num_kv_heads: usize,
    /// Elements of a head: 16, 32, 64 or 128. The last two are fast.
    pub head_dim: usize,
    /// Tokens of a block, a multiple of 8 up to 256.
    pub block_size: usize,
}

/// Tiles of sequences of these query tokens and keys, where `group` query heads
/// share a K/V head: of each its sequence, and the first of its tokens from the
/// sequence's first. Those with most keys come first, as the last to start are
/// waited for.
#[must_use]
pub fn tiles(query_lens: &[usize], seq_lens: &[usize], group: usize) -> Vec<[usize; 2]> {
    let tokens = ROWS.checked_div(group).unwrap_or(ROWS).max(1);
    let of_sequence =
        |(index, len): (usize, &usize)| (0..*len).step_by(tokens).map(move |first| [index, first]);
    let mut tiles: Vec<_> = query_lens.iter().enumerate().flat_map(of_sequence).collect();
    tiles.sort_by_key(|&[index, first]| {
        Reverse(seq_lens[index] + (first + tokens).min(query_lens[index]) - query_lens[index])
    });
    tiles
}

/// Whether there is a kernel for heads of this size and type.
#[must_use]
pub fn supports(head_dim: usize, element: Element) -> bool {
    function(head_dim, element).is_ok()
}

/// Attention of every tile.
///
/// # Errors
/// [`LaunchError`] when a view does not fit, or a size or type is not supported.
pub fn prefill_attention(attention: &PrefillAttention) -> Result<Launch, LaunchError> {
    let PrefillAttention { num_tiles, num_rows, num_heads, num_kv_heads, .. } = *attention;
    let PrefillAttention { head_dim, block_size, k_cache, v_cache, .. } = *attention;
    let element = attention.out.element;
    let function = function(head_dim, element)?;
    eights("block_size", block_size, 256)?;
    let group = num_heads.checked_div(num_kv_heads).unwrap_or(0);
    if !(1..=ROWS).contains(&group) || group * num_kv_heads != num_heads {
        return Err(LaunchError(format!(
            "{num_heads} query heads do not share {num_kv_heads} heads of k evenly, 1 to {ROWS} each"
        )));
    }
    let block = block_len(k_cache, v_cache, [num_kv_heads, block_size, head_dim])?;
    // The kernel counts 16 bytes at a time.
    if i32::try_from(k_cache.num_bytes() / 16).is_err() {
        return Err(LaunchError(format!("k of {} bytes is too large", k_cache.num_bytes())));
    }
    let q_stride = (num_heads + 2 * num_kv_heads) * head_dim;
    let num_sequences = attention.query_start.len;
    let of_sequences = |view: View, name| view.expect(name, Element::I32, num_sequences);
    #[expect(clippy::cast_precision_loss, reason = "a head is narrow")]
    let scale = LOG2_E / (head_dim as f32).sqrt();
    let inverse = (1_u64 << 31).div_ceil(block_size as u64 / 8);
    let grid = [num_tiles, num_kv_heads, 1];
    let launch = Launch::new("prefill_attention", function, grid, [THREADS, 1, 1])?
        .arg(attention.q.expect("q", element, num_rows * q_stride)?)
        .arg(k_cache.expect("k_cache", element, block)?)
        .arg(v_cache.expect("v_cache", element, block)?)
        .arg(attention.out.expect("out", element, num_rows * num_heads * head_dim)?)
        .arg(attention.tiles.expect("tiles", Element::I32, num_tiles * 2)?)
        .arg(of_sequences(attention.query_start, "query_start")?)
        .arg(of_sequences(attention.query_len, "query_len")?)
        .arg(of_sequences(attention.seq_len, "seq_len")?)
        .arg(of_sequences(attention.table_start, "table_start")?)
        .arg(attention.block_tables.expect("block_tables", Element::I32, 1)?);
    let launch = [group, q_stride, block_size].into_iter().try_fold(launch, Launch::int)?;
    Ok(launch.arg(inverse).float(scale))
}

fn function(head_dim: usize, element: Element) -> Result<&'static str, LaunchError> {
    if element == Element::F32 {
        return Err(LaunchError("prefill_attention is not there for F32".to_owned()));
    }
    match head_dim {
        16 => by_element!("prefill_attention_16", element),
        32 => by_element!("prefill_attention_32", element),
        64 => by_element!("prefill_attention_64", element),
        128 => by_element!("prefill_attention_128", element),
        _ => Err(LaunchError(format!("head_dim must be 16, 32, 64 or 128, got {head_dim}"))),
    }
}

#[cfg(test)]
mod tests;
