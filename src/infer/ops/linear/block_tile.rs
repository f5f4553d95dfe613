//! `y[r] = sum over blocks of scales * (codes . bytes)` for a few rows and one
//! panel: integers within a stretch that has one scale, which are exact in any
//! order, then one chain of multiply-adds over ascending stretches. A row comes
//! out alike in a tile of any height.

use super::block_format::{BlockFormat, with_format};
#[cfg(target_arch = "x86_64")]
use super::block_x86::{avx2, vnni};
use super::panel::{Line, PANEL};
use super::rounded::{ByteBlock, signed_bytes};
use super::stored_block::GROUPS;
use super::super_block::SuperBlock;
#[cfg(target_arch = "x86_64")]
use super::tile::by_height;
use crate::infer::ops::simd::Isa;

/// Rows of the highest tile.
pub const MAX_HEIGHT: usize = 6;

/// A panel and some rows of activations.
#[derive(Debug, Clone, Copy)]
pub struct BlockTile<'a> {
    pub format: BlockFormat,
    /// `[super-blocks, format.lines()]`.
    pub lines: &'a [Line<u32>],
    /// `[rows, num_blocks]`.
    pub x: &'a [ByteBlock],
    pub num_blocks: usize,
}

/// Rows of a tile: as many as leave their sums in registers, or nearly.
pub const fn max_height(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Avx512Vnni => MAX_HEIGHT,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx2 => 4,
        Isa::Portable => 4,
    }
}

/// Runs a tile of `sums.len()` rows, at most [`max_height`].
pub fn run(isa: Isa, tile: BlockTile<'_>, sums: &mut [[f32; PANEL]]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Avx512Vnni => with_format!(tile.format, FORMAT => {
            by_height!(vnni::multiply::<FORMAT, _>, tile, sums; 1 2 3 4 5 6);
        }),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx2 => with_format!(tile.format, FORMAT => {
            by_height!(avx2::multiply::<FORMAT, _>, tile, sums; 1 2 3 4);
        }),
        Isa::Portable => portable(tile, sums),
    }
}

/// The definition. Two roundings a multiply-add, where the others have one.
#[expect(clippy::cast_precision_loss, reason = "32 products of 8 and 7 bits stay below 2^24")]
fn portable(tile: BlockTile<'_>, sums: &mut [[f32; PANEL]]) {
    sums.fill([0.0; PANEL]);
    let (format, num_blocks) = (tile.format, tile.format.num_blocks());
    let groups = GROUPS / format.num_stretches();
    for (nth, lines) in tile.lines.chunks_exact(format.lines()).enumerate() {
        let super_block = SuperBlock { format, lines };
        for (block, stretch) in
            (0..num_blocks).flat_map(|block| (0..format.num_stretches()).map(move |s| (block, s)))
        {
            let factors: [(f32, f32); PANEL] =
                std::array::from_fn(|column| super_block.scale_and_min(block, stretch, column));
            let codes: [[u32; PANEL]; GROUPS] = std::array::from_fn(|group| {
                let group = group.min(groups - 1) + stretch * groups;
                std::array::from_fn(|column| super_block.codes(block, group, column))
            });
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = &tile.x[row * tile.num_blocks + nth * num_blocks + block];
                let sum = x.sum(stretch, format.num_stretches());
                let mut dots = [-format.zero() * sum; PANEL];
                for (codes, word) in codes.iter().zip(&x.codes[stretch * groups..][..groups]) {
                    let x = signed_bytes(*word).map(i32::from);
                    for (dot, codes) in dots.iter_mut().zip(codes) {
                        for (i, x) in x.iter().enumerate() {
                            *dot += ((codes >> (8 * i)) & 0xff).cast_signed() * x;
                        }
                    }
                }
                let total = x.scale * sum as f32;
                for ((sum, dot), (scale, min)) in sums.iter_mut().zip(dots).zip(factors) {
                    *sum += dot as f32 * x.scale * scale;
                    *sum += min * total;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::infer::ops::linear::block_format::DTYPES;
    use crate::infer::ops::linear::blocks::BlockPanels;
    use crate::infer::ops::linear::rounded::{BLOCK, to_bytes};
    use crate::infer::weights::QuantizedRows;

    /// A matrix of as many super-blocks a row, and its values.
    fn packed(dtype: GgmlDType, out: usize, blocks: usize) -> (BlockPanels, Vec<Vec<f32>>) {
        let width = blocks * dtype.block_size();
        let w = Tensor::randn(0_f32, 1.0, (out, width), &Device::Cpu).unwrap();
        let tensor = QTensor::quantize(&w, dtype).unwrap();
        let rows = QuantizedRows::new(dtype, tensor.data().unwrap(), [out, width]).unwrap();
        let exact = tensor.dequantize(&Device::Cpu).unwrap().to_vec2().unwrap();
        (BlockPanels::pack(&[&rows]).unwrap(), exact)
    }

    fn activations(isa: Isa, rows: usize, width: usize) -> Vec<ByteBlock> {
        let x: Vec<f32> = (0..rows * width).map(|i| (i as f32 * 0.731).sin()).collect();
        let mut blocks = Vec::new();
        to_bytes(isa, &x, &mut blocks);
        blocks
    }

    fn product(isa: Isa, panels: &BlockPanels, x: &[ByteBlock], out: usize) -> Vec<f32> {
        let rows = x.len() / (panels.width() / BLOCK);
        let mut y = vec![f32::NAN; rows * out];
        for (panel, first) in (0..out).step_by(PANEL).enumerate() {
            panels.multiply(isa, x, panel, 0..rows, &mut |row, sums| {
                let y = &mut y[row * out + first..(row + 1) * out];
                y.iter_mut().zip(sums).for_each(|(y, sum)| *y = *sum);
            });
        }
        y
    }

    #[test]
    fn twins_agree_with_a_sum_in_f64_over_the_same_bytes() {
        for (dtype, (rows, out, blocks)) in
            DTYPES.into_iter().flat_map(|dtype| [(dtype, (1, 32, 1)), (dtype, (13, 70, 3))])
        {
            let (panels, w) = packed(dtype, out, blocks);
            let width = panels.width();
            for isa in Isa::available() {
                let x = activations(isa, rows, width);
                let value = |row: usize, k: usize| {
                    let block = &x[(row * width + k) / BLOCK];
                    let byte = signed_bytes(block.codes[k % BLOCK / 4])[k % 4];
                    f64::from(byte) * f64::from(block.scale)
                };
                for (at, got) in product(isa, &panels, &x, out).iter().enumerate() {
                    let (row, column) = (at / out, at % out);
                    let exact: f64 =
                        (0..width).map(|k| value(row, k) * f64::from(w[column][k])).sum();
                    let error = (f64::from(*got) - exact).abs();
                    assert!(error < 1e-4, "{isa:?} {dtype:?} {rows}x{width}: {error:e}");
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_among_others() {
        for dtype in DTYPES {
            let out = 64;
            let (panels, _) = packed(dtype, out, 2);
            let width = panels.width();
            for isa in Isa::available() {
                let x = activations(isa, 17, width);
                let together = product(isa, &panels, &x, out);
                for row in 0..17 {
                    let alone = &x[row * width / BLOCK..(row + 1) * width / BLOCK];
                    let alone = product(isa, &panels, alone, out);
                    assert_eq!(alone, together[row * out..(row + 1) * out], "{isa:?} {dtype:?}");
                }
            }
        }
    }

    #[test]
    fn rows_come_back_dequantized() {
        for dtype in DTYPES {
            let (panels, w) = packed(dtype, 70, 2);
            let rows = panels.rows(&[69, 0, 33]).unwrap().to_vec2::<f32>().unwrap();
            for (row, id) in rows.iter().zip([69, 0, 33]) {
                for (a, b) in row.iter().zip(&w[id]) {
                    assert!((a - b).abs() < 1e-6, "{dtype:?}: {a} and {b}");
                }
            }
            assert!(panels.rows(&[70]).is_err());
        }
    }
}
