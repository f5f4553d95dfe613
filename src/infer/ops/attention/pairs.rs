//! The products of attention by dot products of bf16 pairs (AVX-512 BF16): two
//! neighbouring elements of queries and keys, and two neighbouring keys of
//! weights and values. Twice the multiply-adds of the kernels that widen.
//!
//! No closures here: one that the compiler does not inline has no vectors.

use std::arch::x86_64::*;

use half::bf16;

use super::kernel::{HALF, ScoreTile, TILE, ValueTile};

/// # Safety
/// All of the tile's pointers reach as far as their shapes say, for `ROWS` rows
/// and an even `head_dim`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub unsafe fn scores_pairs<const ROWS: usize>(tile: &ScoreTile<bf16>) {
    let num_pairs = tile.head_dim / 2;
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for pair in 0..num_pairs {
        // SAFETY: each key's elements of the pair, a half at a time, then those
        // of each query: inside the shapes, as promised.
        unsafe {
            let at = 2 * pair * tile.k_stride;
            let k = [
                load_pairs(tile.k[0].add(at), tile.k_stride),
                load_pairs(tile.k[1].add(at), tile.k_stride),
            ];
            for (row, sums) in sums.iter_mut().enumerate() {
                let q = *tile.q_pairs.add(row * num_pairs + pair);
                let q = _mm512_set1_epi32(q.cast_signed());
                for (sum, k) in sums.iter_mut().zip(k) {
                    *sum = dot(*sum, q, k);
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (half, sum) in sums.iter().enumerate() {
            // SAFETY: inside `[rows][TILE]`.
            unsafe { _mm512_storeu_ps(tile.scores.add(row * TILE + half * HALF), *sum) };
        }
    }
}

/// # Safety
/// All of the tile's pointers reach as far as their shapes say, for `ROWS` rows
/// and a `head_dim` that [`TILE`] divides.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub unsafe fn values_pairs<const ROWS: usize>(tile: &ValueTile<'_, bf16>) {
    let mut weights = [[0_u32; TILE / 2]; ROWS];
    for (row, pairs) in weights.iter_mut().enumerate() {
        // SAFETY: inside `[rows][TILE]`; as many bytes as `pairs` has.
        unsafe {
            let at = tile.weights.add(row * TILE);
            let rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(at.add(HALF)), _mm512_loadu_ps(at));
            _mm512_storeu_si512(pairs.as_mut_ptr().cast(), bits_of(rounded));
        }
    }
    for column in (0..tile.head_dim).step_by(TILE) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: inside `[rows]` and `[rows][head_dim]`.
            unsafe {
                let rescale = _mm512_set1_ps(*tile.rescale.add(row));
                let at = tile.sums.add(row * tile.head_dim + column);
                let [low, high] = to_unpacked(_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(HALF)));
                *sums = [_mm512_mul_ps(low, rescale), _mm512_mul_ps(high, rescale)];
            }
        }
        for (pair, v) in tile.v.chunks(2).enumerate() {
            // SAFETY: a row has `head_dim` elements.
            let first = unsafe { _mm512_loadu_si512(v[0].add(column).cast()) };
            // What stands beside the last of an odd number counts for nothing.
            let mut second = _mm512_setzero_si512();
            if let Some(v) = v.get(1) {
                // SAFETY: as above.
                second = unsafe { _mm512_loadu_si512(v.add(column).cast()) };
            }
            let v = [_mm512_unpacklo_epi16(first, second), _mm512_unpackhi_epi16(first, second)];
            for (weights, sums) in weights.iter().zip(&mut sums) {
                let weight = _mm512_set1_epi32(weights[pair].cast_signed());
                for (sum, v) in sums.iter_mut().zip(v) {
                    *sum = dot(*sum, weight, v);
                }
            }
        }
        for (row, [low, high]) in sums.iter().enumerate() {
            let [low, high] = from_unpacked(*low, *high);
            // SAFETY: inside `[rows][head_dim]`.
            unsafe {
                let at = tile.sums.add(row * tile.head_dim + column);
                _mm512_storeu_ps(at, low);
                _mm512_storeu_ps(at.add(HALF), high);
            }
        }
    }
}

/// Unpacking takes fours of eight columns apart: the first fours to the first
/// vector, the second fours to the second.
#[target_feature(enable = "avx512f")]
#[inline]
fn to_unpacked(low: __m512, high: __m512) -> [__m512; 2] {
    [
        _mm512_shuffle_f32x4::<0b10_00_10_00>(low, high),
        _mm512_shuffle_f32x4::<0b11_01_11_01>(low, high),
    ]
}

/// The inverse of [`to_unpacked`].
#[target_feature(enable = "avx512f")]
#[inline]
fn from_unpacked(first: __m512, second: __m512) -> [__m512; 2] {
    let low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    [_mm512_permutex2var_ps(first, low, second), _mm512_permutex2var_ps(first, high, second)]
}

/// Two elements of sixteen keys, side by side.
///
/// # Safety
/// Sixteen values from `at` on, and from `stride` further, can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
unsafe fn load_pairs(at: *const bf16, stride: usize) -> __m512i {
    // SAFETY: as promised by the caller.
    let (low, high) =
        unsafe { (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(stride).cast())) };
    let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high));
    _mm512_or_si512(_mm512_cvtepu16_epi32(low), high)
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn dot(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: both types are 512 bits without invalid values.
    let (a, b) = unsafe {
        (std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
    };
    _mm512_dpbf16_ps(sum, a, b)
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn bits_of(pairs: __m512bh) -> __m512i {
    // SAFETY: as above.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(pairs) }
}
