//! The first half of the MLP, `silu(x gate^T) * (x up^T)`: both products of a
//! panel are made one after the other and gated while they are in cache, so that
//! neither is ever written to memory.

use std::cell::RefCell;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use super::matrix::Matrix;
use super::panel::{PANEL, fill};
use super::rounded::with_input;
use super::{check_dtype, input_dtype};
use crate::infer::ops::activation::{Activation, Activations, by_dtype};
use crate::infer::ops::columns::Columns;
use crate::infer::ops::simd::{Isa, dispatch, exp};

thread_local! {
    /// The gates of a task's rows; kept, so that a task need not clear them.
    static GATES: RefCell<Vec<[f32; PANEL]>> = const { RefCell::new(Vec::new()) };
}

/// Two matrices of `[inner, in]`.
#[derive(Debug)]
pub struct GatedLinear {
    gate: Matrix,
    up: Matrix,
}

impl GatedLinear {
    /// The layer of these matrices.
    ///
    /// # Errors
    /// When their shapes differ.
    pub fn new(gate: Matrix, up: Matrix) -> Result<Self> {
        let shape = |matrix: &Matrix| [matrix.out_features(), matrix.in_features()];
        if shape(&gate) != shape(&up) {
            bail!("a gate of {:?} and an up of {:?}", shape(&gate), shape(&up));
        }
        Ok(Self { gate, up })
    }

    /// `x`, `[num_tokens, in]`, to `[num_tokens, inner]` of `dtype`, f32 or bf16.
    ///
    /// # Errors
    /// When `x` has another width.
    pub fn forward(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        x.apply_op1_no_bwd(&Forward { layer: self, dtype })
    }

    /// What its input is best made of: see [`super::Linear::input_dtype`].
    #[must_use]
    pub fn input_dtype(&self) -> DType {
        input_dtype([&self.gate, &self.up], self.gate.in_features())
    }

    /// Bytes of its matrices in memory.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.gate.num_bytes() + self.up.num_bytes()
    }

    fn run<T: Activation>(&self, x: Activations<'_>, num_tokens: usize) -> Result<CpuStorage> {
        check_dtype(x, self.input_dtype())?;
        let Self { gate, up } = self;
        let (inner, width) = (gate.out_features(), gate.in_features());
        let isa = Isa::detect();
        let mut y = vec![T::default(); num_tokens * inner];
        with_input(isa, x, width, [gate.input_form(), up.input_form()], |input| {
            let y = Columns::of(&mut y, inner, false);
            fill(num_tokens, inner, 2 * width, |panel, rows, columns| {
                let first = rows.start;
                GATES.with_borrow_mut(|gates| {
                    gates.resize(gates.len().max(rows.len()), [0.0; PANEL]);
                    gate.multiply_panel(isa, input, panel, rows.clone(), &mut |row, sums| {
                        gates[row] = *sums;
                    });
                    up.multiply_panel(isa, input, panel, rows, &mut |row, sums| {
                        // SAFETY: no two tasks share a row and a panel's columns,
                        // and `y` is alive and borrowed until all are done.
                        let y = unsafe { y.slot(first + row, columns.start, columns.len()) };
                        gate_row(isa, &gates[row], sums, y);
                    });
                });
            });
        });
        Ok(T::storage(y))
    }
}

struct Forward<'a> {
    layer: &'a GatedLinear,
    dtype: DType,
}

impl CustomOp1 for Forward<'_> {
    fn name(&self) -> &'static str {
        "gated-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Self { layer, dtype } = self;
        let (num_tokens, width) = layout.shape().dims2()?;
        if width != layer.gate.in_features() {
            bail!("expected x of [_, {}], got {layout:?}", layer.gate.in_features());
        }
        let x = Activations::of(x, layout, "x")?;
        let y = by_dtype!(dtype, T => layer.run::<T>(x, num_tokens)?);
        Ok((y, Shape::from((num_tokens, layer.gate.out_features()))))
    }
}

fn gate_row<T: Activation>(isa: Isa, gate: &[f32], up: &[f32], y: &mut [T]) {
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx512Bf16 | Isa::Avx512Vnni | Isa::Avx512, Some(gate), Some(up), Some(y)) =
        (isa, gate.first_chunk(), up.first_chunk(), y.first_chunk_mut())
    {
        // SAFETY: `Isa::detect` and `Isa::available` name only what the processor has.
        return unsafe { x86::gate_panel(gate, up, y) };
    }
    dispatch!(isa, gated<T: Activation>(gate: &[f32], up: &[f32], y: &mut [T]));
}

#[inline(always)]
fn gated<const FUSED: bool, T: Activation>(gate: &[f32], up: &[f32], y: &mut [T]) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = T::round(gate / (1.0 + exp::<FUSED>(-gate)) * up);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Activation, PANEL};
    use crate::infer::ops::simd::x86::exp_512;

    const WIDTH: usize = 16;

    /// A whole panel of a row, whose gates are there as vectors already.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn gate_panel<T: Activation>(gate: &[f32; PANEL], up: &[f32; PANEL], y: &mut [T; PANEL]) {
        let one = _mm512_set1_ps(1.0);
        let mut gated = [0_f32; PANEL];
        for at in (0..PANEL).step_by(WIDTH) {
            // SAFETY: a vector's floats lie in the panel.
            unsafe {
                let gate = _mm512_loadu_ps(gate.as_ptr().add(at));
                let up = _mm512_loadu_ps(up.as_ptr().add(at));
                let e = exp_512(_mm512_sub_ps(_mm512_setzero_ps(), gate));
                let silu = _mm512_div_ps(gate, _mm512_add_ps(one, e));
                _mm512_storeu_ps(gated.as_mut_ptr().add(at), _mm512_mul_ps(silu, up));
            }
        }
        y.iter_mut().zip(gated).for_each(|(y, gated)| *y = T::round(gated));
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;
    use crate::infer::ComputeDtype;
    use crate::infer::weights::{QuantizedRows, Weight};

    fn random(rows: usize, columns: usize) -> Tensor {
        Tensor::randn(0_f32, 1.0, (rows, columns), &Device::Cpu).unwrap()
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        let difference = (a.to_dtype(DType::F32).unwrap() - b).unwrap().abs().unwrap();
        difference.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    /// What candle makes of it.
    fn reference(x: &Tensor, gate: &Tensor, up: &Tensor) -> Tensor {
        let product = |w: &Tensor| x.matmul(&w.t().unwrap()).unwrap();
        (candle_nn::ops::silu(&product(gate)).unwrap() * product(up)).unwrap()
    }

    #[test]
    fn agrees_with_two_products_and_candles_silu() {
        // 70 columns: the last panel is not full. 200 rows: more than a task's.
        for rows in [1, 5, 200] {
            let (x, gate, up) = (random(rows, 24), random(70, 24), random(70, 24));
            let matrix =
                |w: &Tensor| Matrix::pack(&[Weight::Dense(w.clone())], ComputeDtype::F32).unwrap();
            let layer = GatedLinear::new(matrix(&gate), matrix(&up)).unwrap();
            let expected = reference(&x, &gate, &up);
            let y = layer.forward(&x, DType::F32).unwrap();
            assert!(largest_difference(&y, &expected) < 1e-3);
            let rounded = layer.forward(&x, DType::BF16).unwrap();
            assert_eq!(rounded.dtype(), DType::BF16);
            assert_eq!(
                largest_difference(
                    &rounded,
                    &y.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap()
                ),
                0.0
            );
        }
    }

    #[test]
    fn takes_bf16_only_where_both_matrices_do() {
        let (gate, up) = (random(32, 64), random(32, 64));
        let matrix = |w: &Tensor, dtype| Matrix::pack(&[Weight::Dense(w.clone())], dtype).unwrap();
        let bf16 =
            GatedLinear::new(matrix(&gate, ComputeDtype::Bf16), matrix(&up, ComputeDtype::Bf16));
        let mixed =
            GatedLinear::new(matrix(&gate, ComputeDtype::Bf16), matrix(&up, ComputeDtype::F32));
        let (bf16, mixed) = (bf16.unwrap(), mixed.unwrap());
        assert_eq!((bf16.input_dtype(), mixed.input_dtype()), (DType::BF16, DType::F32));
        let x = random(3, 64);
        let early = x.to_dtype(DType::BF16).unwrap();
        let late = bf16.forward(&x, DType::F32).unwrap();
        assert_eq!(largest_difference(&bf16.forward(&early, DType::F32).unwrap(), &late), 0.0);
        assert!(mixed.forward(&early, DType::F32).is_err());
        assert!(mixed.forward(&x, DType::F32).is_ok());
    }

    #[test]
    fn blocks_beside_floats_are_gated_too() {
        let (x, gate, up) = (random(3, 256), random(32, 256), random(32, 256));
        let quantized = QTensor::quantize(&gate, GgmlDType::Q6K).unwrap();
        let bytes = quantized.data().unwrap();
        let rows = QuantizedRows::new(GgmlDType::Q6K, bytes, [32, 256]).unwrap();
        let gate = quantized.dequantize(&Device::Cpu).unwrap();
        let layer = GatedLinear::new(
            Matrix::pack(&[Weight::Quantized(rows)], ComputeDtype::Quantized).unwrap(),
            Matrix::pack(&[Weight::Dense(up.clone())], ComputeDtype::F32).unwrap(),
        )
        .unwrap();
        let y = layer.forward(&x, DType::F32).unwrap();
        let expected = reference(&x, &gate, &up);
        let scale: f32 =
            expected.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
        assert!(largest_difference(&y, &expected) < 0.03 * scale);
    }

    #[test]
    fn matrices_of_two_shapes_are_refused() {
        let matrix =
            |rows| Matrix::pack(&[Weight::Dense(random(rows, 8))], ComputeDtype::F32).unwrap();
        assert!(GatedLinear::new(matrix(4), matrix(5)).is_err());
    }
}
