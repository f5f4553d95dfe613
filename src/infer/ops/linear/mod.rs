//! Linear layers: dense matrices in panels ([`PackedMatrix`]), or GGUF blocks
//! multiplied as they are.

mod kernel;
mod packed;

pub use packed::PackedMatrix;

use candle_core::quantized::QMatMul;
use candle_core::{D, Module, Result, Tensor, bail};

use crate::infer::weights::Weight;

/// `y = x W^T + b` over `x` of `[num_tokens, in]`. Several matrices that take
/// the same input stand in one layer; their outputs lie side by side.
#[derive(Debug)]
pub struct Linear {
    weight: Form,
    /// `[out]`.
    bias: Option<Tensor>,
}

#[derive(Debug)]
enum Form {
    Packed(PackedMatrix),
    Quantized(Vec<QMatMul>),
}

impl Linear {
    /// The layer of `weights`, each `[out_i, in]`, their outputs concatenated,
    /// with one bias over all of them.
    ///
    /// # Errors
    /// When the matrices do not fit together.
    pub fn new(weights: Vec<Weight>, bias: Option<Tensor>) -> Result<Self> {
        let mut dense = Vec::new();
        let mut quantized = Vec::new();
        for weight in weights {
            match weight {
                Weight::Dense(tensor) => {
                    quantized.push(QMatMul::Tensor(tensor.clone()));
                    dense.push(tensor);
                }
                Weight::Quantized(tensor) => quantized.push(QMatMul::from_arc(tensor)?),
            }
        }
        let weight = if dense.len() == quantized.len() {
            Form::Packed(PackedMatrix::pack(&dense)?)
        } else {
            Form::Quantized(quantized)
        };
        Ok(Self { weight, bias })
    }

    /// The layer of a matrix that is packed already, such as a tied output head.
    #[must_use]
    pub const fn from_packed(matrix: PackedMatrix) -> Self {
        Self { weight: Form::Packed(matrix), bias: None }
    }

    /// `[num_tokens, in]` to `[num_tokens, out]`.
    ///
    /// # Errors
    /// When `x` has another width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Form::Packed(matrix) => matrix.matmul(x)?,
            Form::Quantized(parts) => match parts.as_slice() {
                [] => bail!("a linear layer without a matrix"),
                [one] => one.forward(x)?,
                parts => {
                    let outputs: Vec<_> =
                        parts.iter().map(|part| part.forward(x)).collect::<Result<_>>()?;
                    Tensor::cat(&outputs, D::Minus1)?
                }
            },
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;

    fn random(rows: usize, columns: usize) -> Tensor {
        Tensor::randn(0_f32, 1.0, (rows, columns), &Device::Cpu).unwrap()
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
        difference.max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn a_bias_is_added_to_every_row() {
        let (x, w) = (random(3, 20), random(40, 20));
        let bias = random(1, 40).squeeze(0).unwrap();
        let plain = Linear::new(vec![Weight::Dense(w.clone())], None).unwrap();
        let biased = Linear::new(vec![Weight::Dense(w)], Some(bias.clone())).unwrap();
        let expected = plain.forward(&x).unwrap().broadcast_add(&bias).unwrap();
        assert_eq!(largest_difference(&biased.forward(&x).unwrap(), &expected), 0.0);
    }

    #[test]
    fn quantized_and_dense_parts_stand_side_by_side() {
        let (x, a, b) = (random(3, 64), random(32, 64), random(16, 64));
        let quantized = Arc::new(QTensor::quantize(&a, GgmlDType::Q8_0).unwrap());
        let a = quantized.dequantize(&Device::Cpu).unwrap();
        let parts = vec![Weight::Quantized(quantized), Weight::Dense(b.clone())];
        let y = Linear::new(parts, None).unwrap().forward(&x).unwrap();
        let dense = vec![Weight::Dense(a), Weight::Dense(b)];
        let expected = Linear::new(dense, None).unwrap().forward(&x).unwrap();
        assert_eq!(y.dims(), [3, 48]);
        // Activations lose all but 8 bits on the quantized side, none on the other.
        assert!(largest_difference(&y, &expected) < 0.5);
        let exact = |t: &Tensor| t.narrow(1, 32, 16).unwrap();
        assert!(largest_difference(&exact(&y), &exact(&expected)) < 1e-4);
    }
}
