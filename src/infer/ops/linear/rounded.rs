//! Activations in the form that a matrix takes: pairs of bf16, or bytes with a
//! scale for every 32 of them. Rounded once a layer, for all of its columns.

use crate::infer::ops::pool;
use crate::infer::ops::simd::{Isa, dispatch, pair_of};

/// Elements of activations that one task rounds.
const TASK_ELEMENTS: usize = 1 << 14;

/// Activations that share a scale: a block of GGML's formats.
pub const BLOCK: usize = 32;

/// Rounds `x`, `[rows, width]`, to bf16, two to a word, into `[rows, words]`;
/// the last word of an odd row is half zero.
pub fn to_pairs(isa: Isa, x: &[f32], width: usize, pairs: &mut Vec<u32>) {
    let words = width.div_ceil(2);
    pairs.resize(x.len() / width * words, 0);
    let rows_per_task = (TASK_ELEMENTS / width).max(1);
    pool::for_each_chunk(pairs, rows_per_task * words, |task, pairs| {
        let x = &x[task * rows_per_task * width..];
        for (pairs, x) in pairs.chunks_exact_mut(words).zip(x.chunks_exact(width)) {
            round_row(isa, x, pairs);
        }
    });
}

fn round_row(isa: Isa, values: &[f32], words: &mut [u32]) {
    dispatch!(isa, pairs_of_row(values: &[f32], words: &mut [u32]));
}

/// Rounds a row to bf16, two to a word.
#[inline(always)]
pub fn pairs_of_row<const FUSED: bool>(values: &[f32], words: &mut [u32]) {
    let (pairs, rest) = values.as_chunks::<2>();
    for (word, [low, high]) in words.iter_mut().zip(pairs) {
        *word = pair_of(*low, *high);
    }
    if let ([last], Some(word)) = (rest, words.last_mut()) {
        *word = pair_of(*last, 0.0);
    }
}

/// Activations rounded to bytes, as llama.cpp's Q8_1 does: a scale of its own,
/// the largest magnitude over 127, for every [`BLOCK`].
#[derive(Debug, Default)]
pub struct ByteRows {
    /// `[rows, width / 4]`, four bytes to a word, the first lowest.
    pub codes: Vec<u32>,
    /// `[rows, width / BLOCK]`.
    pub blocks: Vec<ByteBlock>,
}

/// What belongs to the bytes of one block.
#[derive(Debug, Clone, Copy, Default)]
pub struct ByteBlock {
    /// What a byte counts.
    pub scale: f32,
    /// The sum of the bytes.
    pub sum: i32,
}

impl ByteRows {
    /// Rounds `x`, `[rows, width]`; [`BLOCK`] divides the width.
    pub fn round(&mut self, isa: Isa, x: &[f32], width: usize) {
        self.codes.resize(x.len() / 4, 0);
        self.blocks.resize(x.len() / BLOCK, ByteBlock::default());
        let rows_per_task = (TASK_ELEMENTS / width).max(1);
        let per_task = rows_per_task * width;
        // Two outputs of one pass: the blocks are cheap, the second pass sums them up.
        let blocks = &mut self.blocks;
        pool::for_each_chunk(blocks, per_task / BLOCK, |task, blocks| {
            scales(isa, &x[task * per_task..][..blocks.len() * BLOCK], blocks);
        });
        let blocks = &self.blocks;
        pool::for_each_chunk(&mut self.codes, per_task / 4, |task, codes| {
            let start = task * per_task;
            let blocks = &blocks[start / BLOCK..][..codes.len() * 4 / BLOCK];
            round_blocks(isa, &x[start..start + codes.len() * 4], blocks, codes);
        });
        for (block, codes) in self.blocks.iter_mut().zip(self.codes.as_chunks::<8>().0) {
            let bytes = codes.iter().flat_map(|word| word.to_le_bytes());
            block.sum = bytes.map(|byte| i32::from(byte.cast_signed())).sum();
        }
    }
}

fn scales(isa: Isa, x: &[f32], blocks: &mut [ByteBlock]) {
    dispatch!(isa, scales_of(x: &[f32], blocks: &mut [ByteBlock]));
}

#[inline(always)]
fn scales_of<const FUSED: bool>(x: &[f32], blocks: &mut [ByteBlock]) {
    for (block, x) in blocks.iter_mut().zip(x.as_chunks::<BLOCK>().0) {
        let mut largest = [0_f32; 16];
        for (lane, largest) in largest.iter_mut().enumerate() {
            let (a, b) = (x[lane].abs(), x[lane + 16].abs());
            *largest = if a > b { a } else { b };
        }
        block.scale = largest.iter().fold(0.0_f32, |a, b| a.max(*b)) / 127.0;
    }
}

fn round_blocks(isa: Isa, x: &[f32], blocks: &[ByteBlock], codes: &mut [u32]) {
    dispatch!(isa, codes_of(x: &[f32], blocks: &[ByteBlock], codes: &mut [u32]));
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "within +-127 by the choice of the scale")]
fn codes_of<const FUSED: bool>(x: &[f32], blocks: &[ByteBlock], codes: &mut [u32]) {
    // Adding and subtracting 1.5 * 2^23 rounds to an integer without a call.
    const ROUND: f32 = 12_582_912.0;
    let blocks = blocks.iter().zip(x.as_chunks::<BLOCK>().0);
    for ((block, x), codes) in blocks.zip(codes.as_chunks_mut::<8>().0) {
        let inverse = if block.scale > 0.0 { 1.0 / block.scale } else { 0.0 };
        let mut bytes = [0_i8; BLOCK];
        for (byte, x) in bytes.iter_mut().zip(x) {
            *byte = ((x * inverse + ROUND) - ROUND) as i32 as i8;
        }
        for (code, bytes) in codes.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *code = u32::from_le_bytes(bytes.map(i8::cast_unsigned));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_times_their_scale_are_the_values_to_half_a_step() {
        let x: Vec<f32> =
            (0..192).map(|i| ((i * 37) as f32 * 0.11).sin() * (i / 32) as f32).collect();
        for isa in Isa::available() {
            let mut rows = ByteRows::default();
            rows.round(isa, &x, 96);
            for (nth, (block, x)) in rows.blocks.iter().zip(x.chunks(BLOCK)).enumerate() {
                let codes = rows.codes[nth * 8..nth * 8 + 8].iter().flat_map(|w| w.to_le_bytes());
                let codes: Vec<i32> = codes.map(|byte| i32::from(byte.cast_signed())).collect();
                assert_eq!(block.sum, codes.iter().sum::<i32>());
                for (code, x) in codes.iter().zip(x) {
                    let error = (*code as f32 * block.scale - x).abs();
                    assert!(error <= block.scale * 0.501, "{isa:?}: {x} became {code}");
                }
            }
        }
    }
}
