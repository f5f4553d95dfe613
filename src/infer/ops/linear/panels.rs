//! A dense matrix in the order in which the kernel reads it: panels of 32
//! output columns, each `[words, 32]`. A step then streams every weight once, in
//! address order, whatever the number of tokens.

use std::ops::Range;

use candle_core::{Device, Result, Tensor, bail};

use super::panel::{LINE, Line, PANEL, packed};
use super::tile::{Word, multiply};
use crate::infer::ops::pool;
use crate::infer::ops::simd::Isa;

/// Rows that one task gathers.
const GATHER_ROWS: usize = 16;

/// `[out, in]` in panels of words.
#[derive(Debug)]
pub struct Panels<W> {
    /// `[panels, width, PANEL]`; columns past `out` are zero.
    lines: Vec<Line<W>>,
    out: usize,
    width: usize,
}

impl<W: Word + Default> Panels<W> {
    /// Panels of `out` rows of `width` words; `row(i, words)` writes the i-th.
    pub fn pack(out: usize, width: usize, row: impl Fn(usize, &mut [W]) + Sync) -> Self {
        let num_panels = out.div_ceil(PANEL);
        let per_panel = width * PANEL / LINE;
        let lines = packed(num_panels * per_panel, per_panel, |panel, lines| {
            let first = panel * PANEL;
            let mut rows = vec![W::default(); width * PANEL];
            for (i, words) in rows.chunks_exact_mut(width).take(out - first).enumerate() {
                row(first + i, words);
            }
            interleave(&rows, width, words_of_mut(lines));
        });
        Self { lines, out, width }
    }

    /// Bytes it takes.
    pub const fn num_bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// Multiplies `rows` of `x`, `[_, width]`, with a panel.
    pub fn multiply(
        &self,
        isa: Isa,
        x: &[W],
        panel: usize,
        rows: Range<usize>,
        store: &mut dyn FnMut(usize, &[f32; PANEL]),
    ) {
        let width = self.width;
        let x = &x[rows.start * width..rows.end * width];
        let panel = &words_of(&self.lines)[panel * width * PANEL..][..width * PANEL];
        multiply(isa, x, width, panel, store);
    }

    /// Row `id` of the matrix, `[width]` words.
    fn row(&self, id: usize) -> impl Iterator<Item = W> + '_ {
        let panel = &words_of(&self.lines)[id / PANEL * self.width * PANEL..];
        panel.iter().skip(id % PANEL).step_by(PANEL).take(self.width).copied()
    }
}

/// The matrix's rows `ids`, `[ids, in]`, as `values` makes floats of words.
pub fn gather<W: Word + Default, const N: usize>(
    panels: &Panels<W>,
    ids: &[u32],
    values: impl Fn(W) -> [f32; N] + Sync,
) -> Result<Tensor> {
    let words = panels.width;
    if let Some(id) = ids.iter().find(|id| **id as usize >= panels.out) {
        bail!("row {id} of a matrix of {} rows", panels.out);
    }
    let mut rows = vec![0_f32; ids.len() * words * N];
    pool::for_each_chunk(&mut rows, GATHER_ROWS * words * N, |task, rows| {
        let ids = &ids[task * GATHER_ROWS..];
        for (row, id) in rows.chunks_exact_mut(words * N).zip(ids) {
            let (floats, _) = row.as_chunks_mut::<N>();
            for (floats, word) in floats.iter_mut().zip(panels.row(*id as usize)) {
                *floats = values(word);
            }
        }
    });
    Tensor::from_vec(rows, (ids.len(), words * N), &Device::Cpu)
}

/// Writes `rows`, `[PANEL, width]`, as the columns of `panel`.
fn interleave<W: Copy>(rows: &[W], width: usize, panel: &mut [W]) {
    // A few words at a time, so that the lines of both sides stay in cache.
    const STRIP: usize = 16;
    for (strip, lines) in panel.chunks_mut(STRIP * PANEL).enumerate() {
        for (column, row) in rows.chunks_exact(width).enumerate() {
            let words = row[strip * STRIP..].iter();
            for (line, word) in lines.chunks_exact_mut(PANEL).zip(words) {
                line[column] = *word;
            }
        }
    }
}

fn words_of<W>(lines: &[Line<W>]) -> &[W] {
    // SAFETY: a line is its words and nothing else.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LINE) }
}

fn words_of_mut<W>(lines: &mut [Line<W>]) -> &mut [W] {
    // SAFETY: as above; the borrow is unique.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LINE) }
}
