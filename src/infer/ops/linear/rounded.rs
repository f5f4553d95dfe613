//! Activations in the form that a matrix takes: pairs of bf16, or bytes with a
//! scale for every 32 of them. Rounded once a layer, for all of its matrices.

use std::cell::Cell;

use half::bf16;

use crate::infer::ops::activation::{Activations, round_to_pairs};
use crate::infer::ops::pool;
use crate::infer::ops::simd::{Isa, dispatch};

/// Elements of activations that one task rounds.
const TASK_ELEMENTS: usize = 1 << 14;

/// Activations that share a scale: a block of GGML's formats.
pub const BLOCK: usize = 32;

/// What a matrix multiplies with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputForm {
    /// f32 as they are.
    F32,
    /// See [`Input::pairs`].
    Pairs,
    /// See [`Input::bytes`].
    Bytes,
}

/// A layer's input, `[rows, width]`. What no matrix of the layer takes is empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Input<'a> {
    /// As the op before left it.
    pub values: &'a [f32],
    /// `[rows, width / 2]`, two bf16 to a word; the last of an odd row is half zero.
    pub pairs: &'a [u32],
    /// `[rows, width / BLOCK]`.
    pub bytes: &'a [ByteBlock],
}

/// What a thread rounds into; kept, so that a step allocates nothing for it.
#[derive(Debug, Default)]
struct Scratch {
    pairs: Vec<u32>,
    bytes: Vec<ByteBlock>,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Hands `x`, `[rows, width]`, to `f` in all of `forms`. Input that is bf16
/// already can be taken as pairs only; see [`super::Linear::input_dtype`].
pub fn with_input<T>(
    isa: Isa,
    x: Activations<'_>,
    width: usize,
    forms: impl IntoIterator<Item = InputForm>,
    f: impl FnOnce(Input<'_>) -> T,
) -> T {
    let (mut wants_pairs, mut wants_bytes) = (false, false);
    for form in forms {
        wants_pairs |= form == InputForm::Pairs;
        wants_bytes |= form == InputForm::Bytes;
    }
    let mut scratch = SCRATCH.take().unwrap_or_default();
    let Scratch { pairs, bytes } = &mut *scratch;
    let input = match x {
        Activations::F32(values) => {
            if wants_pairs {
                to_pairs(isa, values, width, pairs);
            }
            if wants_bytes {
                to_bytes(isa, values, bytes);
            }
            Input {
                values,
                pairs: if wants_pairs { pairs } else { &[] },
                bytes: if wants_bytes { bytes } else { &[] },
            }
        }
        Activations::Bf16(values) => Input { pairs: as_pairs(values, pairs), ..Input::default() },
    };
    let result = f(input);
    SCRATCH.set(Some(scratch));
    result
}

/// `values`, of even rows, two to a word; `copy` holds them if they do not lie on words.
fn as_pairs<'a>(values: &'a [bf16], copy: &'a mut Vec<u32>) -> &'a [u32] {
    if cfg!(target_endian = "little") {
        // SAFETY: two bf16 are the 32 bits of a u32, and any bits are one.
        if let ([], pairs, []) = unsafe { values.align_to::<u32>() } {
            return pairs;
        }
    }
    let pair = |[low, high]: &[bf16; 2]| u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
    copy.clear();
    copy.extend(values.as_chunks::<2>().0.iter().map(pair));
    copy
}

/// Rounds `x`, `[rows, width]`, to bf16, two to a word, into `[rows, words]`;
/// the last word of an odd row is half zero.
fn to_pairs(isa: Isa, x: &[f32], width: usize, pairs: &mut Vec<u32>) {
    let words = width.div_ceil(2);
    pairs.resize(x.len() / width * words, 0);
    let rows_per_task = (TASK_ELEMENTS / width).max(1);
    pool::for_each_chunk(pairs, rows_per_task * words, |task, pairs| {
        let x = &x[task * rows_per_task * width..];
        for (pairs, x) in pairs.chunks_exact_mut(words).zip(x.chunks_exact(width)) {
            round_to_pairs(isa, x, pairs);
        }
    });
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
    fn bf16_make_the_same_pairs_wherever_they_lie() {
        let values: Vec<bf16> = (0..66).map(|i| bf16::from_f32((i as f32).sin())).collect();
        let floats: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
        let isa = Isa::detect();
        for skip in [0, 1] {
            let part = skip..skip + 64;
            let expected = with_input(
                isa,
                Activations::F32(&floats[part.clone()]),
                32,
                [InputForm::Pairs],
                |x| x.pairs.to_vec(),
            );
            with_input(isa, Activations::Bf16(&values[part]), 32, [InputForm::Pairs], |x| {
                assert_eq!(x.pairs, expected);
            });
        }
    }

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
