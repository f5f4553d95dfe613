//! The gate of the MLP: `silu(gate) * up`, from one tensor that holds both.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::simd::{Isa, dispatch, exp};
use super::{f32_slice, pool};

/// Elements of the output that one task fills.
const TASK_ELEMENTS: usize = 1 << 12;

/// `gate_up` of `[num_tokens, 2 * width]`, gate first, to `[num_tokens, width]`.
///
/// # Errors
/// When the width is odd or the tensor is no f32 matrix.
pub fn silu_mul(gate_up: &Tensor) -> Result<Tensor> {
    gate_up.apply_op1_no_bwd(&SiluMul)
}

struct SiluMul;

impl CustomOp1 for SiluMul {
    fn name(&self) -> &'static str {
        "silu-mul"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (num_tokens, both) = layout.shape().dims2()?;
        if both % 2 != 0 || both == 0 {
            bail!("gate and up must be equally wide, got {both} columns");
        }
        let width = both / 2;
        let gate_up = f32_slice(storage, layout, "gate_up")?;
        let mut y = vec![0_f32; num_tokens * width];
        let isa = Isa::detect();
        let rows = (TASK_ELEMENTS / width).max(1);
        pool::for_each_chunk(&mut y, rows * width, |task, y| {
            let gate_up = &gate_up[task * rows * both..][..2 * y.len()];
            gate_rows(isa, gate_up, y, width);
        });
        Ok((CpuStorage::F32(y), Shape::from((num_tokens, width))))
    }
}

fn gate_rows(isa: Isa, gate_up: &[f32], y: &mut [f32], width: usize) {
    dispatch!(isa, rows(gate_up: &[f32], y: &mut [f32], width: usize));
}

#[inline(always)]
fn rows<const FUSED: bool>(gate_up: &[f32], y: &mut [f32], width: usize) {
    for (gate_up, y) in gate_up.chunks_exact(2 * width).zip(y.chunks_exact_mut(width)) {
        let (gate, up) = gate_up.split_at(width);
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate / (1.0 + exp::<FUSED>(-gate)) * up;
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn agrees_with_candles_silu() {
        let gate_up = Tensor::randn(0_f32, 4.0, (3, 70), &Device::Cpu).unwrap();
        let parts = gate_up.chunk(2, 1).unwrap();
        let expected = (candle_nn::ops::silu(&parts[0]).unwrap() * &parts[1]).unwrap();
        let difference = (silu_mul(&gate_up).unwrap() - expected).unwrap().abs().unwrap();
        let largest: f32 = difference.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
        assert!(largest < 1e-5, "{largest}");
    }
}
