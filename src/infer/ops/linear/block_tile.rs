//! `y[r] = sum over blocks of scales * (codes . bytes)` for a few rows and one
//! panel: integers within a block, which are exact in any order, then one chain
//! of multiply-adds over ascending blocks. A row comes out alike in a tile of
//! any height.

use super::blocks::{Block, BlockFormat};
use super::panel::{Line, PANEL};
use super::rounded::{ByteBlock, signed_bytes};
#[cfg(target_arch = "x86_64")]
use super::tile::by_height;
use crate::infer::ops::simd::{Isa, dispatch, mul_add};

/// Rows of the highest tile.
pub const MAX_HEIGHT: usize = 6;

/// A panel and some rows of activations.
#[derive(Debug, Clone, Copy)]
pub struct BlockTile<'a> {
    pub format: BlockFormat,
    /// `[num_blocks, format.lines()]`.
    pub lines: &'a [Line<u32>],
    /// `[rows, num_blocks]`.
    pub x: &'a [ByteBlock],
    pub num_blocks: usize,
}

/// Rows of a tile: as many as leave their sums in registers.
pub const fn max_height(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Avx512Vnni => MAX_HEIGHT,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx2 => 2,
        Isa::Portable => 2,
    }
}

/// Runs a tile of `sums.len()` rows, at most [`max_height`].
pub fn run(isa: Isa, tile: BlockTile<'_>, sums: &mut [[f32; PANEL]]) {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx512Bf16 | Isa::Avx512Vnni) {
        match tile.format {
            BlockFormat::Q8_0 => by_height!(x86::q8_0, tile, sums; 1 2 3 4 5 6),
            BlockFormat::Q4_0 => by_height!(x86::q4_0, tile, sums; 1 2 3 4 5 6),
            BlockFormat::Q4_1 => by_height!(x86::q4_1, tile, sums; 1 2 3 4 5 6),
        }
        return;
    }
    dispatch!(isa, any(tile: BlockTile<'_>, sums: &mut [[f32; PANEL]]));
}

/// The definition.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "32 products of 8 and 7 bits stay below 2^24")]
fn any<const FUSED: bool>(tile: BlockTile<'_>, sums: &mut [[f32; PANEL]]) {
    sums.fill([0.0; PANEL]);
    let words = tile.format.words();
    for (nth, lines) in tile.lines.chunks_exact(tile.format.lines()).enumerate() {
        let block = Block { format: tile.format, lines };
        let scales: [(f32, f32); PANEL] = std::array::from_fn(|column| block.scale_and_min(column));
        for (row, sums) in sums.iter_mut().enumerate() {
            let activations = &tile.x[row * tile.num_blocks + nth];
            let mut dots = [-tile.format.zero() * activations.sum; PANEL];
            for (group, word) in activations.codes.iter().enumerate() {
                let x = signed_bytes(*word).map(i32::from);
                let shift = if group >= words { 4 } else { 0 };
                let mask = if words == 8 { 0xff } else { 0x0f };
                for (column, dot) in dots.iter_mut().enumerate() {
                    let code = block.word(group % words * PANEL + column) >> shift;
                    for (i, x) in x.iter().enumerate() {
                        *dot += ((code >> (8 * i)) & mask).cast_signed() * x;
                    }
                }
            }
            let total = activations.scale * activations.sum as f32;
            for ((sum, dot), (scale, min)) in sums.iter_mut().zip(dots).zip(scales) {
                *sum = mul_add::<FUSED>(dot as f32 * activations.scale, scale, *sum);
                *sum = mul_add::<FUSED>(min, total, *sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BlockFormat, BlockTile, PANEL};
    use crate::infer::ops::linear::rounded::BLOCK;
    use crate::infer::ops::simd::prefetch;

    /// Cache lines to prefetch ahead: 8 KiB, past where the processor's own
    /// prefetcher stops.
    const AHEAD: usize = 128;

    macro_rules! kernel {
        ($name:ident, $format:expr) => {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            #[expect(clippy::cast_precision_loss, reason = "32 bytes add up to less than 2^24")]
            pub fn $name<const ROWS: usize>(tile: BlockTile<'_>, out: &mut [[f32; PANEL]; ROWS]) {
                const FORMAT: BlockFormat = $format;
                const VECTORS: usize = PANEL / 16;
                const GROUPS: usize = BLOCK / 4;
                let (num_blocks, words) = (tile.num_blocks, FORMAT.words());
                assert!(tile.lines.len() == num_blocks * FORMAT.lines());
                assert!(tile.x.len() >= ROWS * num_blocks);
                let x_block = |row: usize, nth: usize| {
                    // SAFETY: one of `[rows, num_blocks]`, as just asserted: `row` is
                    // below `ROWS` and `nth` below `num_blocks` wherever it is called.
                    unsafe { tile.x.get_unchecked(row * num_blocks + nth) }
                };
                let low = _mm512_set1_epi8(0x0f);
                let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
                for nth in 0..num_blocks {
                    let lines = tile.lines[nth * FORMAT.lines()..].as_ptr();
                    let mut dots = [[_mm512_setzero_si512(); VECTORS]; ROWS];
                    for (row, dots) in dots.iter_mut().enumerate() {
                        let sum = x_block(row, nth).sum;
                        *dots = [_mm512_set1_epi32(-FORMAT.zero() * sum); VECTORS];
                    }
                    for word in 0..words {
                        for v in 0..VECTORS {
                            let line = word * VECTORS + v;
                            prefetch(lines.wrapping_add(AHEAD + line).cast());
                            // SAFETY: one of the block's lines.
                            let packed = unsafe { _mm512_load_si512(lines.add(line).cast()) };
                            let x = |row: usize, group: usize| {
                                _mm512_set1_epi32(x_block(row, nth).codes[group].cast_signed())
                            };
                            if words == GROUPS {
                                for (row, dots) in dots.iter_mut().enumerate() {
                                    dots[v] = _mm512_dpbusd_epi32(dots[v], packed, x(row, word));
                                }
                            } else {
                                let first = _mm512_and_si512(packed, low);
                                let second = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), low);
                                for (row, dots) in dots.iter_mut().enumerate() {
                                    dots[v] = _mm512_dpbusd_epi32(dots[v], first, x(row, word));
                                    let x = x(row, word + words);
                                    dots[v] = _mm512_dpbusd_epi32(dots[v], second, x);
                                }
                            }
                        }
                    }
                    for v in 0..VECTORS {
                        // SAFETY: the line of scales follows the codes, that of
                        // minima the scales; each holds 32 halves.
                        let halves = |line: usize| unsafe {
                            let at = lines.add(words * VECTORS + line).cast::<__m256i>();
                            _mm512_cvtph_ps(_mm256_load_si256(at.add(v)))
                        };
                        let scale = halves(0);
                        for (row, (sums, dots)) in sums.iter_mut().zip(&dots).enumerate() {
                            let block = x_block(row, nth);
                            let x = _mm512_set1_ps(block.scale);
                            let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[v]), x);
                            sums[v] = _mm512_fmadd_ps(dot, scale, sums[v]);
                            if FORMAT.zero() == 0 {
                                let total = _mm512_set1_ps(block.scale * block.sum as f32);
                                sums[v] = _mm512_fmadd_ps(halves(1), total, sums[v]);
                            }
                        }
                    }
                }
                for (sums, out) in sums.iter().zip(out.iter_mut()) {
                    for (v, sum) in sums.iter().enumerate() {
                        // SAFETY: `v * 16` and the 16 floats after it lie in `out`.
                        unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(v * 16), *sum) };
                    }
                }
            }
        };
    }

    kernel!(q8_0, BlockFormat::Q8_0);
    kernel!(q4_0, BlockFormat::Q4_0);
    kernel!(q4_1, BlockFormat::Q4_1);
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::infer::ops::linear::blocks::BlockPanels;
    use crate::infer::ops::linear::rounded::{BLOCK, to_bytes};
    use crate::infer::weights::QuantizedRows;

    const FORMATS: [GgmlDType; 3] = [GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q4_1];

    fn packed(dtype: GgmlDType, out: usize, width: usize) -> (BlockPanels, Vec<Vec<f32>>) {
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
        for (dtype, (rows, out, width)) in
            FORMATS.into_iter().flat_map(|dtype| [(dtype, (1, 32, 32)), (dtype, (13, 70, 96))])
        {
            let (panels, w) = packed(dtype, out, width);
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
        for dtype in FORMATS {
            let (out, width) = (64, 64);
            let (panels, _) = packed(dtype, out, width);
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
        for dtype in FORMATS {
            let (panels, w) = packed(dtype, 70, 64);
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
