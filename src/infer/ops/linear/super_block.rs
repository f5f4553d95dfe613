//! One super-block of a panel: written from a file's, and read back a column at
//! a time. Its layout is stated in [`super::block_format`].

use half::f16;

use super::block_format::{BlockFormat, Factors, Plane, with_format};
use super::panel::{LINE, Line, PANEL};
use super::stored_block::{GROUPS, StoredBlock};

/// A super-block of 32 columns.
#[derive(Debug, Clone, Copy)]
pub struct SuperBlock<'a> {
    pub format: BlockFormat,
    /// `[format.lines()]`.
    pub lines: &'a [Line<u32>],
}

impl SuperBlock<'_> {
    /// The column's scale and minimum in a stretch of a block. Both are exact.
    pub fn scale_and_min(&self, block: usize, stretch: usize, column: usize) -> (f32, f32) {
        let scale = self.half(0, column);
        let min = if self.format.has_min() { self.half(1, column) } else { 0.0 };
        let signed = |nth: usize| f32::from(self.factor(block, nth, column).cast_signed());
        match self.format.factors() {
            Factors::None => (scale, min),
            Factors::ScaleAndMin => (scale * signed(0), min * signed(1)),
            Factors::Scales => (scale * signed(stretch), min),
            Factors::Nibbles => {
                let byte = self.factor(block, stretch, column);
                (scale * f32::from(byte & 15), min * f32::from(byte >> 4))
            }
        }
    }

    /// The column's codes of a group in a block, in the bytes of a word.
    #[inline(always)]
    pub fn codes(&self, block: usize, group: usize, column: usize) -> u32 {
        let first = self.format.head_lines() + block * self.format.block_lines();
        let bits = |plane: Plane| {
            let index = plane.word(group) * PANEL + column;
            let word = self.lines[first + index / LINE].0[index % LINE];
            ((word >> plane.shift(group)) & plane.mask()) << plane.first
        };
        let (low, high) = self.format.planes();
        bits(low) | high.map_or(0, bits)
    }

    fn half(&self, line: usize, column: usize) -> f32 {
        let [low, high] = halves_of(self.lines[line].0[column / 2]);
        f16::from_bits(if column.is_multiple_of(2) { low } else { high }).to_f32()
    }

    fn factor(&self, block: usize, nth: usize, column: usize) -> u8 {
        let index = nth * PANEL + column;
        let line = self.format.head_lines() + (block + 1) * self.format.block_lines() - 1;
        self.lines[line].0[index / 4].to_le_bytes()[index % 4]
    }
}

const fn halves_of(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_le_bytes();
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

/// Writes a file's row as one column of a panel, whose bits are zero there.
pub fn write_column(format: BlockFormat, row: &[u8], column: usize, panel: &mut [Line<u32>]) {
    with_format!(format, FORMAT => {
        let stored = StoredBlock::<FORMAT>::all(row);
        for (stored, lines) in stored.zip(panel.chunks_exact_mut(format.lines())) {
            write(&stored, column, lines);
        }
    });
}

fn write<const FORMAT: usize>(
    stored: &StoredBlock<'_, FORMAT>,
    column: usize,
    lines: &mut [Line<u32>],
) {
    let format = const { BlockFormat::ALL[FORMAT] };
    // What lets the compiler see that every index is in bounds.
    assert!(column < PANEL && lines.len() == format.lines());
    let (head, blocks) = lines.split_at_mut(format.head_lines());
    let (scale, min) = stored.scale_and_min();
    for (line, half) in head.iter_mut().zip([scale, min]) {
        line.0[column / 2] |= u32::from(half) << (16 * (column % 2));
    }
    for (block, lines) in blocks.chunks_exact_mut(format.block_lines()).enumerate() {
        let words = in_planes::<FORMAT>(stored.codes(block));
        let (codes, factors) = lines.split_at_mut(format.code_lines());
        for (lines, word) in codes.chunks_exact_mut(PANEL / LINE).zip(words) {
            lines[column / LINE].0[column % LINE] = word;
        }
        if let Some(line) = factors.first_mut() {
            for (nth, factor) in stored.factors(block).into_iter().enumerate() {
                let index = nth * PANEL + column;
                line.0[index / 4] |= u32::from(factor) << (8 * (index % 4));
            }
        }
    }
}

/// The words of a column's codes in a block; those past the format's are zero.
fn in_planes<const FORMAT: usize>(codes: [u32; GROUPS]) -> [u32; GROUPS] {
    let (low, high) = const { BlockFormat::ALL[FORMAT].planes() };
    let mut words = [0; GROUPS];
    let mut add = |plane: Plane| {
        for (group, code) in codes.iter().enumerate() {
            let bits = (code >> plane.first) & plane.mask();
            words[plane.word(group)] |= bits << plane.shift(group);
        }
    };
    add(low);
    if let Some(high) = high {
        add(high);
    }
    words
}
