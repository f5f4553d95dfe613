//! A block-quantized matrix in the order in which its kernel reads it: panels
//! of 32 output columns, in each of which a block of 32 inputs has its codes,
//! then its scales, then its minima. A step streams every byte once, in address
//! order, whatever the number of tokens.

use std::ops::Range;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Result, Tensor, bail};
use half::f16;

use super::block_tile::{self, BlockTile};
use super::panel::{LINE, Line, PANEL, packed};
use super::rounded::{BLOCK, ByteBlock};
use crate::infer::ops::simd::Isa;
use crate::infer::weights::QuantizedRows;

/// The block formats that have kernels: `scale * (code - zero)`, or `scale *
/// code + min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFormat {
    /// Codes of eight bits around 128: the signed ones of the file, shifted.
    Q8_0,
    /// Codes of four bits around 8.
    Q4_0,
    /// Codes of four bits above a minimum.
    Q4_1,
}

impl BlockFormat {
    /// The format of a GGML type, if it has kernels.
    pub const fn of(dtype: GgmlDType) -> Option<Self> {
        match dtype {
            GgmlDType::Q8_0 => Some(Self::Q8_0),
            GgmlDType::Q4_0 => Some(Self::Q4_0),
            GgmlDType::Q4_1 => Some(Self::Q4_1),
            _ => None,
        }
    }

    /// Words of a column's codes in a block.
    pub const fn words(self) -> usize {
        match self {
            Self::Q8_0 => 8,
            Self::Q4_0 | Self::Q4_1 => 4,
        }
    }

    /// Cache lines of a block of a panel: codes, scales, minima.
    pub const fn lines(self) -> usize {
        let words = self.words() * PANEL / LINE;
        match self {
            Self::Q8_0 | Self::Q4_0 => words + 1,
            Self::Q4_1 => words + 2,
        }
    }

    /// The code that stands for zero.
    pub const fn zero(self) -> i32 {
        match self {
            Self::Q8_0 => 128,
            Self::Q4_0 => 8,
            Self::Q4_1 => 0,
        }
    }

    const fn has_min(self) -> bool {
        matches!(self, Self::Q4_1)
    }
}

/// `[out, in]` in panels of blocks.
#[derive(Debug)]
pub struct BlockPanels {
    format: BlockFormat,
    /// `[panels, in / BLOCK, format.lines()]`; columns past `out` are zero.
    lines: Vec<Line<u32>>,
    out: usize,
    /// Blocks in a column.
    blocks: usize,
}

impl BlockPanels {
    /// Packs rows of one format, one matrix below the other.
    ///
    /// # Errors
    /// When there is none, or formats or widths differ.
    pub fn pack(parts: &[&QuantizedRows<'_>]) -> Result<Self> {
        let Some(first) = parts.first() else { bail!("no matrix to pack") };
        let Some(format) = BlockFormat::of(first.dtype()) else {
            bail!("{:?} has no kernel", first.dtype());
        };
        let [_, width] = first.shape();
        if parts.iter().any(|part| part.dtype() != first.dtype() || part.shape()[1] != width) {
            bail!("blocks of different kinds do not stack");
        }
        let rows: Vec<&[u8]> =
            parts.iter().flat_map(|part| (0..part.shape()[0]).map(|row| part.row(row))).collect();
        let blocks = width / BLOCK;
        let per_panel = blocks * format.lines();
        let num_panels = rows.len().div_ceil(PANEL);
        let lines = packed(num_panels * per_panel, per_panel, |panel, lines| {
            let rows = &rows[panel * PANEL..rows.len().min((panel + 1) * PANEL)];
            for (column, row) in rows.iter().enumerate() {
                pack_column(format, row, column, lines);
            }
        });
        Ok(Self { format, lines, out: rows.len(), blocks })
    }

    /// Columns of the matrix.
    pub const fn width(&self) -> usize {
        self.blocks * BLOCK
    }

    /// Bytes it takes.
    pub const fn num_bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// Multiplies `rows` of `x`, `[_, blocks]`, with a panel.
    pub fn multiply(
        &self,
        isa: Isa,
        x: &[ByteBlock],
        panel: usize,
        rows: Range<usize>,
        store: &mut dyn FnMut(usize, &[f32; PANEL]),
    ) {
        let per_panel = self.blocks * self.format.lines();
        let height = block_tile::max_height(isa);
        let lines = &self.lines[panel * per_panel..][..per_panel];
        let mut sums = [[0_f32; PANEL]; block_tile::MAX_HEIGHT];
        for first in (0..rows.len()).step_by(height) {
            let sums = &mut sums[..height.min(rows.len() - first)];
            let x = &x[(rows.start + first) * self.blocks..];
            let tile = BlockTile { format: self.format, lines, x, num_blocks: self.blocks };
            block_tile::run(isa, tile, sums);
            for (nth, sums) in sums.iter().enumerate() {
                store(first + nth, sums);
            }
        }
    }

    /// The matrix's rows `ids`, `[ids, in]`, in f32.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let mut values = Vec::with_capacity(ids.len() * self.width());
        let lines = self.format.lines();
        for id in ids {
            let id = *id as usize;
            if id >= self.out {
                bail!("row {id} of a matrix of {} rows", self.out);
            }
            let panel = &self.lines[id / PANEL * self.blocks * lines..][..self.blocks * lines];
            for block in panel.chunks_exact(lines) {
                let block = Block { format: self.format, lines: block };
                let (scale, min) = block.scale_and_min(id % PANEL);
                let codes = block.codes(id % PANEL);
                values.extend(codes.map(|code| scale * small(code) + min));
            }
        }
        Tensor::from_vec(values, (ids.len(), self.width()), &Device::Cpu)
    }
}

/// One block of a panel.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    pub format: BlockFormat,
    pub lines: &'a [Line<u32>],
}

impl Block<'_> {
    /// A word of the block, codes first.
    pub fn word(&self, index: usize) -> u32 {
        self.lines[index / LINE].0[index % LINE]
    }

    /// The column's scale and minimum.
    pub fn scale_and_min(&self, column: usize) -> (f32, f32) {
        let first = self.format.words() * PANEL;
        let half = |index: usize| {
            let [low_0, low_1, high_0, high_1] = self.word(first + index / 2).to_le_bytes();
            let bytes = if index.is_multiple_of(2) { [low_0, low_1] } else { [high_0, high_1] };
            f16::from_le_bytes(bytes).to_f32()
        };
        let min = if self.format.has_min() { half(PANEL + column) } else { 0.0 };
        (half(column), min)
    }

    /// The column's codes, less the one that stands for zero.
    pub fn codes(&self, column: usize) -> impl Iterator<Item = i32> + '_ {
        let words = self.format.words();
        let zero = self.format.zero();
        (0..BLOCK).map(move |k| {
            let (group, shift) = (k / 4 % words, if k / 4 >= words { 4 } else { 0 });
            let byte = self.word(group * PANEL + column).to_le_bytes()[k % 4];
            let code = if words == 8 { byte } else { (byte >> shift) & 15 };
            i32::from(code) - zero
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a code has eight bits")]
const fn small(code: i32) -> f32 {
    code as f32
}

/// Writes the blocks of a GGUF row as one column of a panel. In four bits, the
/// file's byte `j` holds elements `j` and `j + 16`, and so do ours.
fn pack_column(format: BlockFormat, row: &[u8], column: usize, lines: &mut [Line<u32>]) {
    let (header, shift) = match format {
        BlockFormat::Q8_0 => (2, 0x8080_8080),
        BlockFormat::Q4_0 => (2, 0),
        BlockFormat::Q4_1 => (4, 0),
    };
    let block_bytes = header + 4 * format.words();
    let mut set = |block: usize, index: usize, value: u32| {
        lines[block * format.lines() + index / LINE].0[index % LINE] = value;
    };
    let mut halves = vec![0_u32; row.len() / block_bytes];
    for (block, bytes) in row.chunks_exact(block_bytes).enumerate() {
        let (head, codes) = bytes.split_at(header);
        for (group, code) in codes.as_chunks::<4>().0.iter().enumerate() {
            set(block, group * PANEL + column, u32::from_le_bytes(*code) ^ shift);
        }
        halves[block] = head.iter().rev().fold(0, |word, byte| (word << 8) | u32::from(*byte));
    }
    // Scales of two columns share a word: the neighbour's half is kept.
    let first = format.words() * PANEL;
    for (block, word) in halves.iter().enumerate() {
        let lines = &mut lines[block * format.lines()..];
        let mut put = |index: usize, half: u32| {
            let at = first + index / 2;
            lines[at / LINE].0[at % LINE] |= (half & 0xffff) << (16 * (index % 2));
        };
        put(column, *word);
        if format.has_min() {
            put(PANEL + column, word >> 16);
        }
    }
}
