//! The online softmax of attention: takes a tile of scores at a time, turns them
//! into weights, and says by how much the sums so far shrink (Milakov and
//! Gimelshein, "Online normalizer calculation for softmax", 2018).

use super::kernel::TILE;
use crate::infer::ops::simd::{Isa, LANES, dispatch, exp, sum_lanes};

/// The state of some rows, and their scores of one tile.
pub struct Softmax<'a> {
    /// Scaled scores, which become weights relative to `max`.
    pub scores: &'a mut [[f32; TILE]],
    /// The largest score so far.
    pub max: &'a mut [f32],
    /// The weights so far, in partial sums: see [`total`].
    pub sum: &'a mut [[f32; LANES]],
    /// Becomes the factor by which everything a row has summed before shrinks.
    pub rescale: &'a mut [f32],
}

/// How many keys of a tile each row sees: the first token's heads `first` of
/// them, every token after it one more, none more than `len`.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub first: usize,
    /// Query heads of a token.
    pub group: usize,
    pub len: usize,
}

impl Seen {
    const fn by(self, row: usize) -> usize {
        let seen = self.first + row / self.group;
        if seen < self.len { seen } else { self.len }
    }
}

/// Takes a tile's scores into the softmax.
pub fn update_rows(isa: Isa, softmax: Softmax<'_>, seen: Seen) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Avx512Vnni | Isa::Avx512 => {
            // SAFETY: `Isa::detect` and `Isa::available` name only what the
            // processor has.
            unsafe { x86::update(softmax, seen) }
        }
        _ => dispatch!(isa, update(softmax: Softmax<'_>, seen: Seen)),
    }
}

/// A row's sum of weights.
pub fn total(sum: [f32; LANES]) -> f32 {
    sum_lanes(sum)
}

/// The definition.
#[inline(always)]
fn update<const FUSED: bool>(softmax: Softmax<'_>, seen: Seen) {
    let Softmax { scores, max, sum, rescale } = softmax;
    let states = max.iter_mut().zip(sum).zip(rescale);
    for (row, (scores, ((max, sum), rescale))) in scores.iter_mut().zip(states).enumerate() {
        scores[seen.by(row)..].fill(f32::NEG_INFINITY);
        let mut highest = [0_f32; LANES];
        for (lane, highest) in highest.iter_mut().enumerate() {
            *highest = larger(scores[lane], scores[lane + LANES]);
        }
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                highest[lane] = larger(highest[lane], highest[lane + width]);
            }
            width /= 2;
        }
        let new_max = larger(*max, highest[0]);
        // e^0 is one, and most tiles bring no new maximum.
        *rescale = if *max == new_max { 1.0 } else { exp::<FUSED>(*max - new_max) };
        *max = new_max;
        sum.iter_mut().for_each(|sum| *sum *= *rescale);
        for chunk in scores.as_chunks_mut::<LANES>().0 {
            for lane in 0..LANES {
                chunk[lane] = exp::<FUSED>(chunk[lane] - new_max);
                sum[lane] += chunk[lane];
            }
        }
    }
}

/// The maximum as one instruction; a NaN comes to light in the sum.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// By hand, because the compiler makes the maximum of a row out of single floats.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Seen, Softmax, TILE};
    use crate::infer::ops::simd::x86::exp_512 as exp;

    const _: () = assert!(TILE == 2 * LANES);

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn update(softmax: Softmax<'_>, seen: Seen) {
        let Softmax { scores, max, sum, rescale } = softmax;
        let states = max.iter_mut().zip(sum).zip(rescale);
        let unseen = _mm512_set1_ps(f32::NEG_INFINITY);
        for (row, (scores, ((max, sum), rescale))) in scores.iter_mut().zip(states).enumerate() {
            let (halves, _) = scores.as_chunks_mut::<LANES>();
            let [low, high] = halves else { continue };
            let seen = seen.by(row);
            let mask = |keys: usize| ((1_u32 << keys.min(LANES)) - 1) as __mmask16;
            let a = _mm512_mask_mov_ps(unseen, mask(seen), load(low));
            let b = _mm512_mask_mov_ps(unseen, mask(seen.saturating_sub(LANES)), load(high));
            let highest = _mm512_reduce_max_ps(_mm512_max_ps(a, b));
            let mut sums = load(sum);
            *rescale = 1.0;
            if highest > *max {
                let shrink = exp(_mm512_set1_ps(*max - highest));
                sums = _mm512_mul_ps(sums, shrink);
                *rescale = _mm512_cvtss_f32(shrink);
                *max = highest;
            }
            let max = _mm512_set1_ps(*max);
            let (a, b) = (exp(_mm512_sub_ps(a, max)), exp(_mm512_sub_ps(b, max)));
            store(low, a);
            store(high, b);
            store(sum, _mm512_add_ps(_mm512_add_ps(sums, a), b));
        }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn load(from: &[f32; LANES]) -> __m512 {
        // SAFETY: as long as a vector.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn store(to: &mut [f32; LANES], values: __m512) {
        // SAFETY: as long as a vector.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), values) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of some rows over some tiles, of a wide range.
    fn score(row: usize, key: usize) -> f32 {
        ((row * 131 + key * 37) as f32 * 0.731).sin() * (1 + row * 12) as f32
    }

    #[test]
    fn weights_of_all_tiles_are_the_softmax_on_every_instruction_set() {
        const ROWS: usize = 9;
        const GROUP: usize = 3;
        // The last token sees all 70 keys, the first two less.
        let (tiles, len) = (3, 70);
        for isa in Isa::available() {
            let mut max = [f32::NEG_INFINITY; ROWS];
            let mut sum = [[0.0; LANES]; ROWS];
            let mut rescale = [f32::NAN; ROWS];
            // Each row's sum of weight times key, a stand-in for the values.
            let mut keys = [0_f64; ROWS];
            for tile in 0..tiles {
                let mut scores: Vec<[f32; TILE]> = (0..ROWS)
                    .map(|row| std::array::from_fn(|key| score(row, tile * TILE + key)))
                    .collect();
                let softmax = Softmax {
                    scores: &mut scores,
                    max: &mut max,
                    sum: &mut sum,
                    rescale: &mut rescale,
                };
                let first = len - 2 - tile * TILE;
                update_rows(isa, softmax, Seen { first, group: GROUP, len: TILE });
                for (row, scores) in scores.iter().enumerate() {
                    keys[row] *= f64::from(rescale[row]);
                    for (key, weight) in scores.iter().enumerate() {
                        keys[row] += f64::from(*weight) * (tile * TILE + key) as f64;
                    }
                }
            }
            for row in 0..ROWS {
                let seen = len - 2 + row / GROUP;
                let exact = |key| f64::from(score(row, key)).exp();
                let expected = (0..seen).map(|key| exact(key) * key as f64).sum::<f64>()
                    / (0..seen).map(exact).sum::<f64>();
                let got = keys[row] / f64::from(total(sum[row]));
                assert!((got - expected).abs() < 1e-3, "{isa:?} {row}: {got} and {expected}");
            }
        }
    }

    #[test]
    fn a_nan_is_not_hidden() {
        for isa in Isa::available() {
            let mut scores = [[1.0; TILE]];
            scores[0][5] = f32::NAN;
            let (mut max, mut sum) = ([f32::NEG_INFINITY], [[0.0; LANES]]);
            let softmax =
                Softmax { scores: &mut scores, max: &mut max, sum: &mut sum, rescale: &mut [0.0] };
            update_rows(isa, softmax, Seen { first: TILE, group: 1, len: TILE });
            assert!(total(sum[0]).is_nan(), "{isa:?}");
        }
    }
}
