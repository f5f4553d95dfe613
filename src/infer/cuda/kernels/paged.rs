//! What both attention kernels ask of the cache that they read.

use crate::infer::cuda::{LaunchError, View};

/// Checks that `k` and `v` hold the same number of whole blocks, `[num_kv_heads,
/// block_size, head_dim]` each; gives the elements of one.
///
/// # Errors
/// [`LaunchError`] when they do not.
pub(super) fn block_len(
    k: View,
    v: View,
    [num_kv_heads, block_size, head_dim]: [usize; 3],
) -> Result<usize, LaunchError> {
    let block = num_kv_heads * block_size * head_dim;
    if k.len != v.len || !k.len.is_multiple_of(block) {
        return Err(LaunchError(format!(
            "k of {} elements and v of {} are not the same number of blocks of {block}",
            k.len, v.len
        )));
    }
    Ok(block)
}

/// Checks that `value` is a multiple of 8 up to `max`.
///
/// # Errors
/// [`LaunchError`] naming `name`.
pub(super) fn eights(name: &str, value: usize, max: usize) -> Result<(), LaunchError> {
    if value.is_multiple_of(8) && (8..=max).contains(&value) {
        return Ok(());
    }
    Err(LaunchError(format!("{name} must be a multiple of 8 up to {max}, got {value}")))
}
