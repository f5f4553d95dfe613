//! Root-mean-square norm: `x / sqrt(mean(x^2) + eps) * weight`, row by row.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

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

    /// `[num_tokens, hidden]` to the same shape.
    ///
    /// # Errors
    /// When the width is another.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(&Forward(self))
    }
}

struct Forward<'a>(&'a RmsNorm);

impl CustomOp1 for Forward<'_> {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let RmsNorm { weight, eps } = self.0;
        let width = weight.len();
        if layout.shape().dims2()?.1 != width {
            bail!("expected x of [_, {width}], got {layout:?}");
        }
        let x = f32_slice(x, layout, "x")?;
        let mut y = vec![0_f32; x.len()];
        let isa = Isa::detect();
        let rows = (TASK_ELEMENTS / width).max(1);
        pool::for_each_chunk(&mut y, rows * width, |task, y| {
            let x = &x[task * rows * width..][..y.len()];
            normalise(isa, x, weight, *eps, y);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

fn normalise(isa: Isa, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    dispatch!(isa, rows(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]));
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "a row is narrow")]
fn rows<const FUSED: bool>(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let scale = 1.0 / (dot::<FUSED>(x, x) / width as f32 + eps).sqrt();
        for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

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
            for (ours, candles) in y.iter().zip(flat(&candles)) {
                assert!((ours - candles).abs() < 1e-5, "{isa:?}: {ours} and {candles}");
            }
        }
    }
}
