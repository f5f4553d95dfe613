//! Fused operations over candle tensors, each with the CPU body that defines
//! it. Activations are flat: `[num_tokens, width]`, contiguous, f32 or,
//! between an op and a layer that multiplies in bf16, bf16.
//!
//! What a row comes out as never depends on the rows beside it: every op
//! accumulates a row in one fixed order, so a sequence computes the same bits
//! alone, in any batch, in chunks or whole.

mod activation;
pub mod attention;
mod columns;
pub mod embedding;
pub mod linear;
pub mod pool;
pub mod rms_norm;
pub mod rope_and_cache;
mod simd;

pub use attention::paged_attention;
pub use embedding::Embedding;
pub use linear::{GatedLinear, Linear};
pub use rms_norm::RmsNorm;
pub use rope_and_cache::{RopeTable, rope_and_cache};

use std::ops::Range;

use candle_core::{CpuStorage, Layout, Result, bail};

/// Where the elements of a contiguous operand lie in its storage.
fn contiguous(layout: &Layout, name: &str) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("{name} must be contiguous, got {layout:?}"),
    }
}

/// The elements of a contiguous f32 operand.
fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout, name: &str) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else {
        bail!("{name} must be f32, got {:?}", storage_dtype(storage));
    };
    Ok(&values[contiguous(layout, name)?])
}

/// The elements of a contiguous f32 operand that is written in place.
fn f32_slice_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
    name: &str,
) -> Result<&'a mut [f32]> {
    let dtype = storage_dtype(storage);
    let CpuStorage::F32(values) = storage else {
        bail!("{name} must be f32, got {dtype:?}");
    };
    Ok(&mut values[contiguous(layout, name)?])
}

fn storage_dtype(storage: &CpuStorage) -> candle_core::DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}
