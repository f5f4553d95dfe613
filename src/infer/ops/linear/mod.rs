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
