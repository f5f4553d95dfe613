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

/// [`BLOCK`] activations of a row rounded to bytes, as llama.cpp's Q8_1 does:
/// with a scale of their own, the largest magnitude over 127.
#[derive(Debug, Clone, Copy, Default)]
pub struct ByteBlock {
    /// What a byte counts.
    pub scale: f32,
    /// The sums of the bytes of its halves.
    pub sums: [i32; 2],
    /// The bytes, four to a word, the first lowest.
    pub codes: [u32; BLOCK / 4],
}

impl ByteBlock {
    /// The sum of the bytes in one of `num_stretches` equal stretches: the whole,
    /// or its halves.
    #[inline(always)]
    pub const fn sum(&self, stretch: usize, num_stretches: usize) -> i32 {
        if num_stretches == 1 { self.sums[0] + self.sums[1] } else { self.sums[stretch] }
    }
}

/// Rounds `x`, `[rows, width]`, to bytes, into `[rows, width / BLOCK]`;
/// [`BLOCK`] divides the width.
pub fn to_bytes(isa: Isa, x: &[f32], blocks: &mut Vec<ByteBlock>) {
    const TASK_BLOCKS: usize = TASK_ELEMENTS / BLOCK;
    blocks.resize(x.len() / BLOCK, ByteBlock::default());
    pool::for_each_chunk(blocks, TASK_BLOCKS, |task, blocks| {
        round_blocks(isa, &x[task * TASK_ELEMENTS..][..blocks.len() * BLOCK], blocks);
    });
}

fn round_blocks(isa: Isa, x: &[f32], blocks: &mut [ByteBlock]) {
    dispatch!(isa, blocks_of(x: &[f32], blocks: &mut [ByteBlock]));
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "within +-127 by the choice of the scale")]
fn blocks_of<const FUSED: bool>(x: &[f32], blocks: &mut [ByteBlock]) {
    // Adding and subtracting 1.5 * 2^23 rounds to an integer without a call.
    const ROUND: f32 = 12_582_912.0;
    for (block, x) in blocks.iter_mut().zip(x.as_chunks::<BLOCK>().0) {
        let mut largest = [0_f32; BLOCK / 2];
        for (lane, largest) in largest.iter_mut().enumerate() {
            let (a, b) = (x[lane].abs(), x[lane + BLOCK / 2].abs());
            *largest = if a > b { a } else { b };
        }
        let scale = largest.iter().fold(0.0_f32, |a, b| a.max(*b)) / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let mut bytes = [0_i8; BLOCK];
        for (byte, x) in bytes.iter_mut().zip(x) {
            *byte = ((x * inverse + ROUND) - ROUND) as i32 as i8;
        }
        let (low, high) = bytes.split_at(BLOCK / 2);
        *block = ByteBlock {
            scale,
            sums: [low, high].map(|half| half.iter().map(|byte| i32::from(*byte)).sum()),
            codes: words_of_bytes(&bytes),
        };
    }
}

#[inline(always)]
fn words_of_bytes(bytes: &[i8; BLOCK]) -> [u32; BLOCK / 4] {
    let mut words = [0; BLOCK / 4];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(bytes.map(i8::cast_unsigned));
    }
    words
}

/// The bytes of a word, the lowest first.
pub const fn signed_bytes(word: u32) -> [i8; 4] {
    let [a, b, c, d] = word.to_le_bytes();
    [a.cast_signed(), b.cast_signed(), c.cast_signed(), d.cast_signed()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_times_their_scale_are_the_values_to_half_a_step() {
        let x: Vec<f32> =
            (0..192).map(|i| ((i * 37) as f32 * 0.11).sin() * (i / 32) as f32).collect();
        for isa in Isa::available() {
            let mut blocks = Vec::new();
            to_bytes(isa, &x, &mut blocks);
            for (block, x) in blocks.iter().zip(x.chunks(BLOCK)) {
                let codes: Vec<i32> = block
                    .codes
                    .iter()
                    .flat_map(|word| signed_bytes(*word))
                    .map(i32::from)
                    .collect();
                let (low, high) = codes.split_at(BLOCK / 2);
                assert_eq!(block.sums, [low, high].map(|half| half.iter().sum::<i32>()));
                for (code, x) in codes.iter().zip(x) {
                    let error = (*code as f32 * block.scale - x).abs();
                    assert!(error <= block.scale * 0.501, "{isa:?}: {x} became {code}");
                }
            }
        }
    }
}
