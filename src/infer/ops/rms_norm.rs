//! Root-mean-square norm: `x / sqrt(mean(x^2) + eps) * weight`, row by row.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use super::activation::{Activation, by_dtype};
use super::simd::{Isa, dispatch, dot};
use super::{f32_slice, pool};

/// Elements that one task normalises.
const TASK_ELEMENTS: usize = 1 << 14;

/// The norm's weight, `[hidden]`, and what is added to the mean.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Vec<f32>,
    eps: f32,
}

impl RmsNorm {
    /// The norm with this weight.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon is small, not precise")]
    pub const fn new(weight: Vec<f32>, eps: f64) -> Self {
        Self { weight, eps: eps as f32 }
    }

    /// `[num_tokens, hidden]` to the same shape of `dtype`, f32 or bf16.
    ///
    /// # Errors
    /// When the width is another.
    pub fn forward(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        x.apply_op1_no_bwd(&Forward { norm: self, dtype })
    }

    fn run<T: Activation>(&self, x: &[f32]) -> CpuStorage {
        let width = self.weight.len();
        let mut y = vec![T::default(); x.len()];
        let isa = Isa::detect();
        let rows = (TASK_ELEMENTS / width).max(1);
        pool::for_each_chunk(&mut y, rows * width, |task, y| {
            let x = &x[task * rows * width..][..y.len()];
            normalise(isa, x, &self.weight, self.eps, y);
        });
        T::storage(y)
    }
}

struct Forward<'a> {
    norm: &'a RmsNorm,
    dtype: DType,
}

impl CustomOp1 for Forward<'_> {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = self.norm.weight.len();
        if layout.shape().dims2()?.1 != width {
            bail!("expected x of [_, {width}], got {layout:?}");
        }
        let x = f32_slice(x, layout, "x")?;
        let y = by_dtype!(self.dtype, T => self.norm.run::<T>(x));
        Ok((y, layout.shape().clone()))
    }
}

fn normalise<T: Activation>(isa: Isa, x: &[f32], weight: &[f32], eps: f32, y: &mut [T]) {
    dispatch!(isa, rows<T: Activation>(x: &[f32], weight: &[f32], eps: f32, y: &mut [T]));
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "a row is narrow")]
fn rows<const FUSED: bool, T: Activation>(x: &[f32], weight: &[f32], eps: f32, y: &mut [T]) {
    let width = weight.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let scale = 1.0 / (dot::<FUSED>(x, x) / width as f32 + eps).sqrt();
        for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
            *y = T::round(x * scale * weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use half::bf16;

    use super::*;

    #[test]
    fn agrees_with_candles_norm_on_every_instruction_set() {
        let x = Tensor::randn(0_f32, 3.0, (5, 70), &Device::Cpu).unwrap();
        let weight = Tensor::randn(1_f32, 0.2, 70, &Device::Cpu).unwrap();
        let candles = candle_nn::ops::rms_norm(&x, &weight, 1e-5).unwrap();
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (x, weight) = (flat(&x), flat(&weight));
        for isa in Isa::available() {
            let mut y = vec![0.0; x.len()];
            normalise(isa, &x, &weight, 1e-5, &mut y);
            let mut rounded = vec![bf16::ZERO; x.len()];
            normalise(isa, &x, &weight, 1e-5, &mut rounded);
            assert!(rounded.iter().zip(&y).all(|(rounded, y)| *rounded == bf16::from_f32(*y)));
            for (ours, candles) in y.iter().zip(flat(&candles)) {
                assert!((ours - candles).abs() < 1e-5, "{isa:?}: {ours} and {candles}");
            }
        }
    }
}
