//! Linear layers: dense matrices in panels of f32 or bf16, or GGUF blocks
//! multiplied as they are.

mod block_format;
mod block_tile;
#[cfg(target_arch = "x86_64")]
mod block_x86;
mod blocks;
mod gated;
mod matrix;
mod panel;
mod panels;
mod rounded;
mod stored_block;
mod super_block;
mod tile;

pub use gated::GatedLinear;
pub use matrix::Matrix;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, InplaceOp2, Layout, Result, Shape, Tensor, bail};

use self::rounded::{InputForm, with_input};
use super::activation::Activations;
use super::columns::Columns;
use super::f32_slice_mut;
use super::simd::Isa;
use crate::infer::ComputeDtype;
use crate::infer::weights::Weight;

/// `y = x W^T + b` over `x` of `[num_tokens, in]`. Several matrices that take
/// the same input stand in one layer; their outputs lie side by side.
#[derive(Debug)]
pub struct Linear {
    /// Each with the first of its columns in the output.
    parts: Vec<(usize, Arc<Matrix>)>,
    in_features: usize,
    out_features: usize,
    /// `[out]`.
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// The layer of `weights`, each `[out_i, in]`, their outputs concatenated,
    /// with one bias over all of them. Neighbours of one form become one matrix.
    ///
    /// # Errors
    /// When the matrices do not fit together.
    pub fn new(
        weights: Vec<Weight<'_>>,
        bias: Option<Vec<f32>>,
        dtype: ComputeDtype,
    ) -> Result<Self> {
        let matrices = weights
            .chunk_by(Matrix::packs)
            .map(|group| Matrix::pack(group, dtype).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        Self::of(matrices, bias)
    }

    /// The layer of a matrix that is shared, such as a tied output head.
    #[must_use]
    pub fn from_matrix(matrix: Arc<Matrix>) -> Self {
        Self {
            in_features: matrix.in_features(),
            out_features: matrix.out_features(),
            parts: vec![(0, matrix)],
            bias: None,
        }
    }

    fn of(matrices: Vec<Arc<Matrix>>, bias: Option<Vec<f32>>) -> Result<Self> {
        let Some(first) = matrices.first() else { bail!("a linear layer without a matrix") };
        let in_features = first.in_features();
        let mut out_features = 0;
        let mut parts = Vec::with_capacity(matrices.len());
        for matrix in matrices {
            if matrix.in_features() != in_features {
                bail!("inputs of {in_features} and of {} in one layer", matrix.in_features());
            }
            let column = out_features;
            out_features += matrix.out_features();
            parts.push((column, matrix));
        }
        if bias.as_ref().is_some_and(|bias| bias.len() != out_features) {
            bail!("a bias that does not fit {out_features} outputs");
        }
        Ok(Self { parts, in_features, out_features, bias })
    }

    /// `[num_tokens, in]` to `[num_tokens, out]`.
    ///
    /// # Errors
    /// When `x` has another width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(&Forward(self))
    }

    /// Adds the layer's output to `sum`, `[num_tokens, out]`, in place.
    ///
    /// # Errors
    /// When `x` or `sum` has another width.
    pub fn forward_add(&self, x: &Tensor, sum: &Tensor) -> Result<()> {
        sum.inplace_op2(x, &Forward(self))
    }

    /// Bytes of its matrices in memory.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.parts.iter().map(|(_, matrix)| matrix.num_bytes()).sum()
    }

    /// What its input is best made of: bf16 if all of its matrices would round
    /// it to that, else f32.
    #[must_use]
    pub fn input_dtype(&self) -> DType {
        input_dtype(self.parts.iter().map(|(_, matrix)| &**matrix), self.in_features)
    }

    fn check(&self, layout: &Layout) -> Result<usize> {
        let (num_tokens, width) = layout.shape().dims2()?;
        if width != self.in_features {
            bail!("expected x of [_, {}], got {layout:?}", self.in_features);
        }
        Ok(num_tokens)
    }

    fn run(&self, x: Activations<'_>, y: &mut [f32], add: bool) -> Result<()> {
        check_dtype(x, self.input_dtype())?;
        let columns = Columns::of(y, self.out_features, add);
        let isa = Isa::detect();
        let forms = self.parts.iter().map(|(_, matrix)| matrix.input_form());
        with_input(isa, x, self.in_features, forms, |input| {
            for (first, matrix) in &self.parts {
                matrix.matmul(isa, input, columns.starting_at(*first));
            }
        });
        if let Some(bias) = &self.bias {
            for row in y.chunks_exact_mut(self.out_features) {
                row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
        }
        Ok(())
    }
}

/// See [`Linear::input_dtype`].
fn input_dtype<'a>(matrices: impl IntoIterator<Item = &'a Matrix>, in_features: usize) -> DType {
    let pairs = |matrix: &Matrix| matrix.input_form() == InputForm::Pairs;
    let all = matrices.into_iter().all(pairs) && in_features.is_multiple_of(2);
    if all { DType::BF16 } else { DType::F32 }
}

/// f32 can be rounded to whatever is needed, bf16 can not become f32 again.
fn check_dtype(x: Activations<'_>, best: DType) -> Result<()> {
    match (x.dtype(), best) {
        (DType::F32, _) | (DType::BF16, DType::BF16) => Ok(()),
        (other, _) => bail!("this layer takes f32, got {other:?}"),
    }
}

struct Forward<'a>(&'a Linear);

impl CustomOp1 for Forward<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let num_tokens = self.0.check(layout)?;
        let mut y = vec![0_f32; num_tokens * self.0.out_features];
        self.0.run(Activations::of(x, layout, "x")?, &mut y, false)?;
        Ok((CpuStorage::F32(y), Shape::from((num_tokens, self.0.out_features))))
    }
}

impl InplaceOp2 for Forward<'_> {
    fn name(&self) -> &'static str {
        "linear-add"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        sum_layout: &Layout,
        x: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let num_tokens = self.0.check(layout)?;
        if sum_layout.shape().dims2()? != (num_tokens, self.0.out_features) {
            bail!("expected a sum of [{num_tokens}, {}], got {sum_layout:?}", self.0.out_features);
        }
        let sum = f32_slice_mut(sum, sum_layout, "the sum")?;
        self.0.run(Activations::of(x, layout, "x")?, sum, true)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;
    use crate::infer::weights::QuantizedRows;

    fn random(rows: usize, columns: usize) -> Tensor {
        Tensor::randn(0_f32, 1.0, (rows, columns), &Device::Cpu).unwrap()
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
        difference.max(0).unwrap().to_scalar().unwrap()
    }

    fn dense(parts: &[&Tensor], dtype: ComputeDtype) -> Linear {
        let weights = parts.iter().map(|part| Weight::Dense((*part).clone())).collect();
        Linear::new(weights, None, dtype).unwrap()
    }

    fn rounded(x: &Tensor) -> Tensor {
        use candle_core::DType;
        x.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap()
    }

    #[test]
    fn product_agrees_with_candles_matmul() {
        for (rows, width, out) in [(1, 64, 32), (3, 576, 100), (200, 40, 65)] {
            let (x, w) = (random(rows, width), random(out, width));
            let candles = |x: &Tensor, w: &Tensor| x.matmul(&w.t().unwrap()).unwrap();
            let ours = dense(&[&w], ComputeDtype::F32).forward(&x).unwrap();
            assert!(largest_difference(&ours, &candles(&x, &w)) < 1e-3, "{rows}x{width}x{out}");
            let ours = dense(&[&w], ComputeDtype::Bf16).forward(&x).unwrap();
            let candles = candles(&rounded(&x), &rounded(&w));
            assert!(largest_difference(&ours, &candles) < 1e-3, "bf16 {rows}x{width}x{out}");
        }
    }

    #[test]
    fn odd_widths_round_up_to_whole_pairs() {
        let (x, w) = (random(2, 41), random(33, 41));
        let ours = dense(&[&w], ComputeDtype::Bf16).forward(&x).unwrap();
        let candles = rounded(&x).matmul(&rounded(&w).t().unwrap()).unwrap();
        assert!(largest_difference(&ours, &candles) < 1e-4);
    }

    #[test]
    fn stacked_parts_give_outputs_side_by_side() {
        let (x, a, b) = (random(2, 24), random(20, 24), random(50, 24));
        for dtype in [ComputeDtype::F32, ComputeDtype::Bf16] {
            let both = dense(&[&a, &b], dtype).forward(&x).unwrap();
            let alone = |w: &Tensor| dense(&[w], dtype).forward(&x).unwrap();
            let apart = Tensor::cat(&[alone(&a), alone(&b)], 1).unwrap();
            assert_eq!(largest_difference(&both, &apart), 0.0);
        }
    }

    #[test]
    fn rows_come_back_as_they_were_packed() {
        let w = random(70, 48);
        let ids = Tensor::new(&[69_u32, 0, 33], &Device::Cpu).unwrap();
        for (dtype, w) in [(ComputeDtype::F32, w.clone()), (ComputeDtype::Bf16, rounded(&w))] {
            let packed = Matrix::pack(&[Weight::Dense(w.clone())], dtype).unwrap();
            let rows = packed.rows(&[69, 0, 33]).unwrap();
            assert_eq!(largest_difference(&rows, &w.index_select(&ids, 0).unwrap()), 0.0);
            assert!(packed.rows(&[70]).is_err());
        }
    }

    #[test]
    fn what_is_added_to_a_sum_is_what_forward_gives() {
        let (x, w, sum) = (random(3, 64), random(40, 64), random(3, 40));
        let layer = dense(&[&w], ComputeDtype::F32);
        let expected = (&sum + layer.forward(&x).unwrap()).unwrap();
        layer.forward_add(&x, &sum).unwrap();
        assert_eq!(largest_difference(&sum, &expected), 0.0);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let layer = dense(&[&random(8, 16)], ComputeDtype::F32);
        assert!(layer.forward(&random(1, 15)).is_err());
        assert!(layer.forward_add(&random(2, 16), &random(1, 8)).is_err());
        let parts = vec![Weight::Dense(random(8, 16)), Weight::Dense(random(8, 17))];
        assert!(Linear::new(parts, None, ComputeDtype::F32).is_err());
        assert!(Linear::new(vec![], None, ComputeDtype::F32).is_err());
        let bias = Some(vec![0.0; 9]);
        assert!(Linear::new(vec![Weight::Dense(random(8, 16))], bias, ComputeDtype::F32).is_err());
    }

    #[test]
    fn a_bias_is_added_to_every_row() {
        let (x, w) = (random(3, 20), random(40, 20));
        let bias = random(1, 40).squeeze(0).unwrap();
        let plain = dense(&[&w], ComputeDtype::F32);
        let values = Some(bias.to_vec1().unwrap());
        let biased = Linear::new(vec![Weight::Dense(w)], values, ComputeDtype::F32).unwrap();
        let expected = plain.forward(&x).unwrap().broadcast_add(&bias).unwrap();
        assert_eq!(largest_difference(&biased.forward(&x).unwrap(), &expected), 0.0);
    }

    #[test]
    fn blocks_multiply_like_their_values_but_for_the_rounding_of_activations() {
        for dtype in block_format::DTYPES {
            let (rows, width, out) = (7, 512, 40);
            let x = random(rows, width);
            let quantized = QTensor::quantize(&random(out, width), dtype).unwrap();
            let w = quantized.dequantize(&Device::Cpu).unwrap();
            let stored = QuantizedRows::new(dtype, quantized.data().unwrap(), [out, width]);
            let parts = vec![Weight::Quantized(stored.unwrap())];
            let layer = Linear::new(parts, None, ComputeDtype::Quantized).unwrap();
            let difference =
                (layer.forward(&x).unwrap() - x.matmul(&w.t().unwrap()).unwrap()).unwrap();
            let difference = difference.to_vec2::<f32>().unwrap();
            let (x, w) = (x.to_vec2::<f32>().unwrap(), w.to_vec2::<f32>().unwrap());
            for (x, difference) in x.iter().zip(difference) {
                for (w, difference) in w.iter().zip(difference) {
                    // Half a step of the scale that 32 activations share, each.
                    let bound: f32 = x
                        .chunks(32)
                        .zip(w.chunks(32))
                        .map(|(x, w)| {
                            let largest = x.iter().fold(0_f32, |a, b| a.max(b.abs()));
                            largest / 127.0 * 0.501 * w.iter().map(|w| w.abs()).sum::<f32>()
                        })
                        .sum();
                    assert!(difference.abs() < bound, "{dtype:?}: {difference}, at most {bound}");
                }
            }
        }
    }

    #[test]
    fn quantized_and_dense_parts_stand_side_by_side() {
        let (x, a, b) = (random(3, 64), random(32, 64), random(16, 64));
        let quantized = QTensor::quantize(&a, GgmlDType::Q8_0).unwrap();
        let a = quantized.dequantize(&Device::Cpu).unwrap();
        let bytes = quantized.data().unwrap();
        let rows = QuantizedRows::new(GgmlDType::Q8_0, bytes, [32, 64]).unwrap();
        let parts = vec![Weight::Quantized(rows), Weight::Dense(b.clone())];
        let y = Linear::new(parts, None, ComputeDtype::Quantized).unwrap().forward(&x).unwrap();
        let expected = dense(&[&a, &b], ComputeDtype::F32).forward(&x).unwrap();
        assert_eq!(y.dims(), [3, 48]);
        // Activations lose all but 8 bits on the quantized side, none on the other.
        assert!(largest_difference(&y, &expected) < 0.5);
        let exact = |t: &Tensor| t.narrow(1, 32, 16).unwrap();
        assert!(largest_difference(&exact(&y), &exact(&expected)) < 1e-4);
    }
}
