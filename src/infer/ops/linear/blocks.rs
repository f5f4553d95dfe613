//! A block-quantized matrix in the order in which its kernel reads it: panels
//! of 32 output columns, in each of which the super-blocks of the inputs follow
//! one another. A step streams every byte once, in address order, whatever the
//! number of tokens.

use std::ops::Range;

use candle_core::{Device, Result, Tensor, bail};

use super::block_format::BlockFormat;
use super::block_tile::{self, BlockTile};
use super::panel::{Line, PANEL, packed};
use super::rounded::{BLOCK, ByteBlock};
use super::stored_block::GROUPS;
use super::super_block::{SuperBlock, write_column};
use crate::infer::ops::simd::Isa;
use crate::infer::weights::QuantizedRows;

/// `[out, in]` in panels of blocks.
#[derive(Debug)]
pub struct BlockPanels {
    format: BlockFormat,
    /// `[panels, super-blocks, format.lines()]`; columns past `out` are zero.
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
            bail!("{:?} has no blocks", first.dtype());
        };
        let [_, width] = first.shape();
        if parts.iter().any(|part| part.dtype() != first.dtype() || part.shape()[1] != width) {
            bail!("blocks of different kinds do not stack");
        }
        let rows: Vec<&[u8]> =
            parts.iter().flat_map(|part| (0..part.shape()[0]).map(|row| part.row(row))).collect();
        let blocks = width / BLOCK;
        let per_panel = blocks / format.num_blocks() * format.lines();
        let num_panels = rows.len().div_ceil(PANEL);
        let lines = packed(num_panels * per_panel, per_panel, |panel, lines| {
            let rows = &rows[panel * PANEL..rows.len().min((panel + 1) * PANEL)];
            for (column, row) in rows.iter().enumerate() {
                write_column(format, row, column, lines);
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
        let per_panel = self.lines_per_panel();
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
        for id in ids {
            let id = *id as usize;
            if id >= self.out {
                bail!("row {id} of a matrix of {} rows", self.out);
            }
            let panel = &self.lines[id / PANEL * self.lines_per_panel()..];
            let panel = &panel[..self.lines_per_panel()];
            for lines in panel.chunks_exact(self.format.lines()) {
                push_column(SuperBlock { format: self.format, lines }, id % PANEL, &mut values);
            }
        }
        Tensor::from_vec(values, (ids.len(), self.width()), &Device::Cpu)
    }

    const fn lines_per_panel(&self) -> usize {
        self.blocks / self.format.num_blocks() * self.format.lines()
    }
}

/// Appends what a column's codes stand for.
#[expect(clippy::cast_precision_loss, reason = "a code has eight bits")]
fn push_column(super_block: SuperBlock<'_>, column: usize, values: &mut Vec<f32>) {
    let format = super_block.format;
    for block in 0..format.num_blocks() {
        for group in 0..GROUPS {
            let stretch = group * format.num_stretches() / GROUPS;
            let (scale, min) = super_block.scale_and_min(block, stretch, column);
            let codes = super_block.codes(block, group, column).to_le_bytes();
            let zero = format.zero();
            values.extend(codes.map(|code| scale * (i32::from(code) - zero) as f32 + min));
        }
    }
}
