//! What an op hands to the layer after it: f32, or bf16 where that layer would
//! round its input to bf16 anyway. Rounding early halves what is written and
//! read, and changes no bit.

use std::ops::AddAssign;

use candle_core::{CpuStorage, DType, Layout, Result, bail};
use half::bf16;

use super::contiguous;
use super::simd::{Isa, bf16_bits, dispatch, pair_of};

/// An element of an op's output.
pub trait Activation: Copy + Default + Send + Sync + AddAssign + 'static {
    /// The nearest to `x`, ties to even.
    fn round(x: f32) -> Self;

    /// As candle holds it.
    fn storage(values: Vec<Self>) -> CpuStorage;
}

impl Activation for f32 {
    #[inline(always)]
    fn round(x: f32) -> Self {
        x
    }

    fn storage(values: Vec<Self>) -> CpuStorage {
        CpuStorage::F32(values)
    }
}

impl Activation for bf16 {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the half that has the bits")]
    fn round(x: f32) -> Self {
        Self::from_bits(bf16_bits(x) as u16)
    }

    fn storage(values: Vec<Self>) -> CpuStorage {
        CpuStorage::BF16(values)
    }
}

/// Evaluates `$body` with `$T` the [`Activation`] of a dtype.
macro_rules! by_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            other => candle_core::bail!("activations are f32 or bf16, not {other:?}"),
        }
    };
}
pub(super) use by_dtype;

/// Rounds a row to bf16, two to a word, the first in the low half; the last word
/// of an odd row is half zero.
pub fn round_to_pairs(isa: Isa, values: &[f32], words: &mut [u32]) {
    dispatch!(isa, pairs_of_row(values: &[f32], words: &mut [u32]));
}

/// The body of [`round_to_pairs`].
#[inline(always)]
pub fn pairs_of_row<const FUSED: bool>(values: &[f32], words: &mut [u32]) {
    let (pairs, rest) = values.as_chunks::<2>();
    for (word, [low, high]) in words.iter_mut().zip(pairs) {
        *word = pair_of(*low, *high);
    }
    if let ([last], Some(word)) = (rest, words.last_mut()) {
        *word = pair_of(*last, 0.0);
    }
}

/// A layer's input, `[num_tokens, width]`.
#[derive(Debug, Clone, Copy)]
pub enum Activations<'a> {
    /// In f32.
    F32(&'a [f32]),
    /// Rounded by the op before.
    Bf16(&'a [bf16]),
}

impl<'a> Activations<'a> {
    /// The elements of a contiguous operand.
    pub fn of(storage: &'a CpuStorage, layout: &Layout, name: &str) -> Result<Self> {
        let range = contiguous(layout, name)?;
        match storage {
            CpuStorage::F32(values) => Ok(Self::F32(&values[range])),
            CpuStorage::BF16(values) => Ok(Self::Bf16(&values[range])),
            _ => bail!("{name} must be f32 or bf16"),
        }
    }

    /// What they are made of.
    pub const fn dtype(self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::Bf16(_) => DType::BF16,
        }
    }
}
