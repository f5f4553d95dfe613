//! Rows of a stored matrix, widened to f32 or copied as they are, in the order
//! that Hugging Face has them.
//!
//! llama.cpp's converter interleaves the two halves of each head in the rows
//! of q and k, `[heads, 2, head_dim / 2] -> [heads, head_dim / 2, 2]`, because
//! its rotary embedding for Llama turns neighbours. A block never spans rows,
//! so that undoing it moves whole rows, quantized or not.

use std::borrow::Cow;

use candle_core::CpuStorage;
use rayon::prelude::*;

use super::tensor_type::TensorType;
use crate::infer::weights::dense::{widen_bf16, widen_f16, widen_f32};
use crate::infer::weights::weight::Aligned;

/// Rows that one task widens.
const ROWS_PER_TASK: usize = 32;
/// Which stored row a row of the result is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// As stored.
    Stored,
    /// Rotary halves interleaved in heads of this many rows.
    Interleaved {
        /// Rows of a head.
        head_dim: usize,
    },
}

impl RowOrder {
    const fn stored_row(self, row: usize) -> usize {
        match self {
            Self::Stored => row,
            Self::Interleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * pair + half
            }
        }
    }
}

/// All rows in f32, `[rows, cols]` flat. `raw` holds whole rows of `cols` elements.
pub(super) fn widen(
    raw: &[u8],
    dtype: TensorType,
    cols: usize,
    order: RowOrder,
) -> Result<Vec<f32>, String> {
    let Some((block, block_bytes)) = dtype.block() else {
        return Err(format!("stored as {dtype}, which is not supported"));
    };
    let row_bytes = cols / block * block_bytes;
    if row_bytes == 0 || !raw.len().is_multiple_of(row_bytes) {
        return Err(format!("{} bytes are no whole rows of {row_bytes}", raw.len()));
    }
    let mut out = vec![0.0_f32; raw.len() / row_bytes * cols];
    out.par_chunks_mut(cols * ROWS_PER_TASK).enumerate().try_for_each(|(task, out)| {
        let first = task * ROWS_PER_TASK;
        if order == RowOrder::Stored {
            let start = first * row_bytes;
            return widen_rows(&raw[start..start + out.len() / cols * row_bytes], dtype, out);
        }
        out.chunks_exact_mut(cols).enumerate().try_for_each(|(i, out)| {
            let start = order.stored_row(first + i) * row_bytes;
            widen_rows(&raw[start..start + row_bytes], dtype, out)
        })
    })?;
    Ok(out)
}

fn widen_rows(raw: &[u8], dtype: TensorType, out: &mut [f32]) -> Result<(), String> {
    match dtype {
        TensorType::F32 => widen_f32(raw, out),
        TensorType::F16 => widen_f16(raw, out),
        TensorType::Bf16 => widen_bf16(raw, out),
        quantized => {
            let Some(ggml) = quantized.ggml() else {
                return Err(format!("stored as {dtype}, which is not supported"));
            };
            let aligned = Aligned::of(raw);
            let storage = ggml
                .from_data(Cow::Borrowed(aligned.bytes()))
                .dequantize(out.len())
                .map_err(|e| e.to_string())?;
            match storage {
                CpuStorage::F32(values) if values.len() == out.len() => {
                    out.copy_from_slice(&values)
                }
                _ => return Err("candle dequantized to something else than f32".to_owned()),
            }
        }
    }
    Ok(())
}

/// The bytes as they are, rows in Hugging Face order.
pub(super) fn in_order(raw: &[u8], rows: usize, order: RowOrder) -> Cow<'_, [u8]> {
    match order {
        RowOrder::Stored => Cow::Borrowed(raw),
        RowOrder::Interleaved { .. } => {
            let row_bytes = raw.len() / rows;
            let mut ordered = Vec::with_capacity(raw.len());
            for row in 0..rows {
                let start = order.stored_row(row) * row_bytes;
                ordered.extend_from_slice(&raw[start..start + row_bytes]);
            }
            Cow::Owned(ordered)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undoing_the_interleaving_gives_halves_back() {
        // Two heads of four rows; llama.cpp stores each as 0 2 1 3 -> 0, 2, 1, 3.
        let stored: Vec<u8> = [0.0_f32, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let rows =
            widen(&stored, TensorType::F32, 1, RowOrder::Interleaved { head_dim: 4 }).unwrap();
        assert_eq!(rows, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }

    #[test]
    fn every_block_type_reads_as_in_gguf_py() {
        // Made by tests/fixtures/make_blocks.py.
        let fixture: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/fixtures/blocks.json")).unwrap();
        let codes = [2, 3, 6, 7, 8, 10, 11, 12, 13, 14];
        let types: Vec<TensorType> = codes.into_iter().map(TensorType::from_code).collect();
        let blocks = fixture["blocks"].as_array().unwrap();
        assert_eq!(blocks.len(), types.len());
        for block in blocks {
            let name = block["type"].as_str().unwrap();
            let dtype = *types.iter().find(|dtype| dtype.to_string() == name).unwrap();
            let hex = block["hex"].as_str().unwrap();
            let raw: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect();
            let expected: Vec<f32> = serde_json::from_value(block["values"].clone()).unwrap();
            let got = widen(&raw, dtype, expected.len(), RowOrder::Stored).unwrap();
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1e-2), "{name}");
            }
        }
    }

    #[test]
    fn unaligned_blocks_are_read_as_well() {
        let block = [0_u8, 0x3c, 0, 0, 0x21, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        for shift in 0..2 {
            let mut bytes = vec![0; shift];
            bytes.extend_from_slice(&block);
            let row = widen(&bytes[shift..], TensorType::Q4_1, 32, RowOrder::Stored).unwrap();
            assert_eq!(row[..2], [1.0, 1.0]);
            assert!((row[16] - 2.0).abs() < 1e-6);
        }
    }
}
