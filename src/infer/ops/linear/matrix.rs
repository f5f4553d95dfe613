//! One weight matrix in the form in which it is multiplied.

use std::ops::Range;

use candle_core::{Result, Storage, Tensor, bail};

use super::blocks::BlockPanels;
use super::panel::{PANEL, fill};
use super::panels::{Panels, gather};
use super::rounded::{Input, InputForm};
use crate::infer::ComputeDtype;
use crate::infer::ops::activation::pairs_of_row;
use crate::infer::ops::columns::Columns;
use crate::infer::ops::f32_slice;
use crate::infer::ops::simd::{Isa, halves_of};
use crate::infer::weights::Weight;

/// `[out, in]`, packed.
#[derive(Debug)]
pub struct Matrix {
    form: Form,
    out_features: usize,
    in_features: usize,
}

#[derive(Debug)]
enum Form {
    F32(Panels<f32>),
    /// Pairs of neighbouring inputs; activations are rounded to bf16 too.
    Bf16(Panels<u32>),
    /// Blocks as GGUF has them; activations are rounded to bytes.
    Blocks(BlockPanels),
}

impl Matrix {
    /// Whether both weights can be rows of one packed matrix.
    #[must_use]
    pub fn packs(a: &Weight<'_>, b: &Weight<'_>) -> bool {
        match (a, b) {
            (Weight::Dense(_), Weight::Dense(_)) | (Weight::Bf16(_), Weight::Bf16(_)) => true,
            (Weight::Quantized(a), Weight::Quantized(b)) => a.dtype() == b.dtype(),
            _ => false,
        }
    }

    /// Packs weights of `[out_i, in]`, one below the other. All must be of one
    /// kind: see [`Matrix::packs`].
    ///
    /// # Errors
    /// When there is none, or they are not of one width.
    pub fn pack(parts: &[Weight<'_>], dtype: ComputeDtype) -> Result<Self> {
        let Some(first) = parts.first() else { bail!("no matrix to pack") };
        let in_features = first.matrix_shape()?.1;
        let mut starts = Vec::with_capacity(parts.len());
        let mut out_features = 0;
        for part in parts {
            let (out, width) = part.matrix_shape()?;
            if width != in_features || width == 0 {
                bail!("cannot stack inputs of {width} on inputs of {in_features}");
            }
            starts.push(out_features);
            out_features += out;
        }
        // Which part a row is in, and where.
        let place = |row: usize| {
            let part = starts.partition_point(|start| *start <= row) - 1;
            (part, row - starts[part])
        };
        let form = match first {
            Weight::Quantized(_) => {
                let rows = all(parts, |part| match part {
                    Weight::Quantized(rows) => Some(rows),
                    Weight::Dense(_) | Weight::Bf16(_) => None,
                })?;
                Form::Blocks(BlockPanels::pack(&rows)?)
            }
            Weight::Bf16(_) => {
                let rows = all(parts, |part| match part {
                    Weight::Bf16(rows) => Some(rows),
                    Weight::Dense(_) | Weight::Quantized(_) => None,
                })?;
                Form::Bf16(Panels::pack(out_features, in_features.div_ceil(2), |row, words| {
                    let (part, row) = place(row);
                    rows[part].pairs(row, words);
                }))
            }
            Weight::Dense(_) => {
                let tensors = all(parts, |part| match part {
                    Weight::Dense(tensor) => Some(tensor),
                    Weight::Bf16(_) | Weight::Quantized(_) => None,
                })?;
                let guards: Vec<_> = tensors.iter().map(|t| t.storage_and_layout()).collect();
                let values = guards
                    .iter()
                    .map(|(storage, layout)| match &**storage {
                        Storage::Cpu(storage) => f32_slice(storage, layout, "a weight"),
                        _ => bail!("weights to pack must be in host memory"),
                    })
                    .collect::<Result<Vec<_>>>()?;
                let row_of = |row: usize| {
                    let (part, row) = place(row);
                    &values[part][row * in_features..(row + 1) * in_features]
                };
                if dtype == ComputeDtype::Bf16 {
                    Form::Bf16(Panels::pack(out_features, in_features.div_ceil(2), |row, words| {
                        pairs_of_row::<false>(row_of(row), words);
                    }))
                } else {
                    Form::F32(Panels::pack(out_features, in_features, |row, words| {
                        words.copy_from_slice(row_of(row));
                    }))
                }
            }
        };
        Ok(Self { form, out_features, in_features })
    }

    /// The form in which it takes a layer's input.
    pub(super) const fn input_form(&self) -> InputForm {
        match self.form {
            Form::F32(_) => InputForm::F32,
            Form::Bf16(_) => InputForm::Pairs,
            Form::Blocks(_) => InputForm::Bytes,
        }
    }

    /// Multiplies `rows` of the input with a panel, and hands each row's
    /// results, counted from the first, to `store`.
    pub(super) fn multiply_panel(
        &self,
        isa: Isa,
        input: Input<'_>,
        panel: usize,
        rows: Range<usize>,
        store: &mut dyn FnMut(usize, &[f32; PANEL]),
    ) {
        match &self.form {
            Form::F32(panels) => panels.multiply(isa, input.values, panel, rows, store),
            Form::Bf16(panels) => panels.multiply(isa, input.pairs, panel, rows, store),
            Form::Blocks(panels) => panels.multiply(isa, input.bytes, panel, rows, store),
        }
    }

    /// Fills `y`, or adds to it.
    pub(super) fn matmul(&self, isa: Isa, input: Input<'_>, y: Columns<f32>) {
        fill(y.rows(), self.out_features, self.in_features, |panel, rows, columns| {
            let first = rows.start;
            self.multiply_panel(isa, input, panel, rows, &mut |row, sums| {
                let sums = &sums[..columns.len()];
                // SAFETY: no two tasks share a row and a panel's columns, and `y`
                // is alive and borrowed for as long as a layer runs.
                unsafe { y.write(first + row, columns.start, sums) };
            });
        });
    }

    /// The matrix's rows `ids`, `[ids, in]`, in f32: an embedding.
    ///
    /// # Errors
    /// When there is no such row.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        match &self.form {
            Form::F32(panels) => gather(panels, ids, |word| [word]),
            Form::Bf16(panels) => {
                gather(panels, ids, halves_of)?.narrow(1, 0, self.in_features)?.contiguous()
            }
            Form::Blocks(panels) => panels.rows(ids),
        }
    }

    /// Output width.
    #[must_use]
    pub const fn out_features(&self) -> usize {
        self.out_features
    }

    /// Input width.
    #[must_use]
    pub const fn in_features(&self) -> usize {
        self.in_features
    }

    /// Bytes it takes in memory.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        match &self.form {
            Form::F32(panels) => panels.num_bytes(),
            Form::Bf16(panels) => panels.num_bytes(),
            Form::Blocks(panels) => panels.num_bytes(),
        }
    }
}

/// Every part as `of` sees it.
fn all<'a, 'w, T>(
    parts: &'a [Weight<'w>],
    of: impl Fn(&'a Weight<'w>) -> Option<&'a T>,
) -> Result<Vec<&'a T>> {
    match parts.iter().map(of).collect() {
        Some(all) => Ok(all),
        None => bail!("weights of different kinds do not stack"),
    }
}
