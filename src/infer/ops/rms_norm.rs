//! Root-mean-square norm: `x / sqrt(mean(x^2) + eps) * weight`, row by row.

use candle_core::{Result, Tensor};

/// `x` of `[num_tokens, hidden]`, `weight` of `[hidden]`.
///
/// # Errors
/// When the shapes do not fit.
#[expect(clippy::cast_possible_truncation, reason = "an epsilon is small, not precise")]
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    candle_nn::ops::rms_norm(x, weight, eps as f32)
}
