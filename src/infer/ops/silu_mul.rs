//! The gate of the MLP: `silu(gate) * up`, from one tensor that holds both.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::f32_slice;
use super::simd::{Isa, exp};

/// Elements below which a second thread costs more than it brings.
const PARALLEL_MIN: usize = 1 << 14;

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
        let run = |(y, row): (&mut [f32], &[f32])| gate_row(isa, row, y);
        if y.len() < PARALLEL_MIN {
            y.chunks_exact_mut(width).zip(gate_up.chunks_exact(both)).for_each(run);
        } else {
            y.par_chunks_exact_mut(width).zip(gate_up.par_chunks_exact(both)).for_each(run);
        }
        Ok((CpuStorage::F32(y), Shape::from((num_tokens, width))))
    }
}

fn gate_row(isa: Isa, row: &[f32], y: &mut [f32]) {
    match isa {
        // SAFETY: `Isa::detect` names only what the processor has.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { gate_row_avx512(row, y) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { gate_row_avx2(row, y) },
        Isa::Portable => gate_row_any::<false>(row, y),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn gate_row_avx512(row: &[f32], y: &mut [f32]) {
    gate_row_any::<true>(row, y);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn gate_row_avx2(row: &[f32], y: &mut [f32]) {
    gate_row_any::<true>(row, y);
}

#[inline(always)]
fn gate_row_any<const FUSED: bool>(row: &[f32], y: &mut [f32]) {
    let (gate, up) = row.split_at(y.len());
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = gate / (1.0 + exp::<FUSED>(-gate)) * up;
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
