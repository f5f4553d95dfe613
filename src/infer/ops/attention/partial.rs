//! What some rows have made of some of their keys: the state of their softmax
//! and their sums of values. Two of them, of neighbouring keys, join into one.

use super::kernel::TILE;
use super::softmax::total;
use crate::infer::ops::activation::Activation;
use crate::infer::ops::simd::{Isa, LANES, dispatch, exp};

/// Keys after which a row begins a new partial, counted from the start of the
/// sequence. Fixed, so that a row comes out alike whether one thread takes all
/// of its keys or each part has its own.
pub const SPLIT: usize = 256;

const _: () = assert!(SPLIT.is_multiple_of(TILE));

/// Rows in a buffer of floats.
pub struct Partial<'a> {
    /// `[rows]`: the largest score.
    pub max: &'a mut [f32],
    /// `[rows]`: the sum of weights, see [`total`].
    pub sum: &'a mut [[f32; LANES]],
    /// `[rows][head_dim]`: the sum of weighted values.
    pub values: &'a mut [f32],
    head_dim: usize,
}

impl<'a> Partial<'a> {
    /// Floats that rows take.
    pub const fn len(rows: usize, head_dim: usize) -> usize {
        rows * (1 + LANES + head_dim)
    }

    /// Rows in `buffer`, of [`Partial::len`].
    pub fn of(buffer: &'a mut [f32], rows: usize, head_dim: usize) -> Self {
        let (max, rest) = buffer.split_at_mut(rows);
        let (sum, values) = rest.split_at_mut(rows * LANES);
        Self { max, sum: sum.as_chunks_mut().0, values, head_dim }
    }

    /// Rows that have seen no key.
    pub fn reset(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill([0.0; LANES]);
        self.values.fill(0.0);
    }

    /// Takes in what the rows from `first` on made of later keys.
    pub fn join(&mut self, isa: Isa, later: &Partial<'_>, first: usize) {
        join_rows(isa, self, later, first);
    }

    /// Writes a row's attention, `[head_dim]`.
    pub fn finish<T: Activation>(&self, isa: Isa, row: usize, result: &mut [T]) {
        let values = &self.values[row * self.head_dim..(row + 1) * self.head_dim];
        scale_to(isa, result, values, 1.0 / total(self.sum[row]));
    }
}

fn join_rows(isa: Isa, to: &mut Partial<'_>, later: &Partial<'_>, first: usize) {
    dispatch!(isa, joined(to: &mut Partial<'_>, later: &Partial<'_>, first: usize));
}

#[inline(always)]
fn joined<const FUSED: bool>(to: &mut Partial<'_>, later: &Partial<'_>, first: usize) {
    let head_dim = to.head_dim;
    for row in first..to.max.len() {
        // Who has the larger maximum keeps its weights.
        let grows = later.max[row] > to.max[row];
        let (lower, higher) =
            if grows { (to.max[row], later.max[row]) } else { (later.max[row], to.max[row]) };
        let shrink = exp::<FUSED>(lower - higher);
        let (ours, theirs) = if grows { (shrink, 1.0) } else { (1.0, shrink) };
        to.max[row] = higher;
        let add = |to: &mut [f32], values: &[f32]| {
            for (to, value) in to.iter_mut().zip(values) {
                *to = *to * ours + value * theirs;
            }
        };
        let span = row * head_dim..(row + 1) * head_dim;
        add(&mut to.sum[row], &later.sum[row]);
        add(&mut to.values[span.clone()], &later.values[span]);
    }
}

/// `to = values * factor`.
pub fn scale_to<T: Activation>(isa: Isa, to: &mut [T], values: &[f32], factor: f32) {
    dispatch!(isa, scaled<T: Activation>(to: &mut [T], values: &[f32], factor: f32));
}

#[inline(always)]
fn scaled<const FUSED: bool, T: Activation>(to: &mut [T], values: &[f32], factor: f32) {
    for (to, value) in to.iter_mut().zip(values) {
        *to = T::round(value * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: usize = 2;
    const DIM: usize = 3;

    /// A partial of keys with these scores, each of whose values is `score + d`.
    fn partial(buffer: &mut Vec<f32>, scores: &[f32]) {
        buffer.resize(Partial::len(ROWS, DIM), f32::NAN);
        let mut partial = Partial::of(buffer, ROWS, DIM);
        partial.reset();
        for row in 0..ROWS {
            let max = scores.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            partial.max[row] = max;
            for score in scores {
                let weight = (score - max).exp();
                partial.sum[row][0] += weight;
                for d in 0..DIM {
                    partial.values[row * DIM + d] += weight * (score + d as f32);
                }
            }
        }
    }

    #[test]
    fn joined_parts_are_the_attention_over_all_keys() {
        let (early, late) = ([0.5, -3.0, 2.0], [2.5, 90.0, 89.0]);
        for (first, second) in [(early, late), (late, early)] {
            let [mut whole, mut a, mut b] = [const { Vec::new() }; 3];
            partial(&mut whole, &[first, second].concat());
            partial(&mut a, &first);
            partial(&mut b, &second);
            let (whole, mut joined) =
                (Partial::of(&mut whole, ROWS, DIM), Partial::of(&mut a, ROWS, DIM));
            let later = Partial::of(&mut b, ROWS, DIM);
            let isa = Isa::detect();
            // The first row does not see the later keys.
            let [mut before, mut after] = [[0_f32; DIM]; 2];
            joined.finish(isa, 0, &mut before);
            joined.join(isa, &later, 1);
            joined.finish(isa, 0, &mut after);
            assert_eq!(before, after);
            let [mut expected, mut got] = [[0_f32; DIM]; 2];
            whole.finish(isa, 1, &mut expected);
            joined.finish(isa, 1, &mut got);
            for (expected, got) in expected.iter().zip(got) {
                assert!((expected - got).abs() < 1e-4, "{expected} and {got}");
            }
        }
    }
}
