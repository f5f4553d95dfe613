//! The two products of attention over one tile of keys: scores of queries and
//! keys, and the weighted sum of values. For every row a chain of multiply-adds
//! in a fixed order, so that a row comes out alike in a tile of any height.
//!
//! Where K and V are bf16 and the processor multiplies pairs of them, queries
//! and weights are rounded to bf16 too, as engines that compute in bf16 do.

use half::bf16;

use crate::infer::ops::simd::{Isa, mul_add};

/// Keys in a tile. Tiles are counted from the start of the sequence.
pub const TILE: usize = 32;

/// Keys whose elements lie side by side in the cache: half a tile.
pub const HALF: usize = TILE / 2;

/// What K and V are stored as.
pub trait Element: Copy + Send + Sync + 'static {
    fn widen(self) -> f32;

    /// Whether queries are multiplied as pairs of bf16.
    fn takes_pairs(isa: Isa) -> bool;

    /// # Safety
    /// As [`scores_any`], and `isa` is one that this processor has.
    unsafe fn scores(isa: Isa, tile: &ScoreTile<Self>, rows: usize);

    /// # Safety
    /// As [`add_values_any`], and `isa` is one that this processor has.
    unsafe fn add_values(isa: Isa, tile: &ValueTile<Self>, rows: usize);
}

/// `scores[row][key] = q[row] . k[key]`.
#[derive(Debug, Clone, Copy)]
pub struct ScoreTile<E> {
    /// `[rows][head_dim]`, contiguous.
    pub q: *const f32,
    /// The same rounded, `[rows][head_dim / 2]`, if [`Element::takes_pairs`].
    pub q_pairs: *const u32,
    pub head_dim: usize,
    /// First element of the first key of each half; a key's elements are
    /// `k_stride` apart, the keys of a half side by side.
    pub k: [*const E; 2],
    pub k_stride: usize,
    /// `[rows][TILE]`.
    pub scores: *mut f32,
}

/// `sums[row] = sums[row] * rescale[row] + sum over keys of weights[row][key] * v[key]`.
#[derive(Debug, Clone, Copy)]
pub struct ValueTile<'a, E> {
    /// `[rows][TILE]`.
    pub weights: *const f32,
    /// `[rows]`.
    pub rescale: *const f32,
    /// A row of `head_dim` for each key that is seen.
    pub v: &'a [*const E],
    pub head_dim: usize,
    /// `[rows][head_dim]`.
    pub sums: *mut f32,
}

impl<E: Copy> ScoreTile<E> {
    /// The same tile without its first rows.
    fn skip_rows(self, first: usize) -> Self {
        Self {
            q: self.q.wrapping_add(first * self.head_dim),
            q_pairs: self.q_pairs.wrapping_add(first * self.head_dim / 2),
            scores: self.scores.wrapping_add(first * TILE),
            ..self
        }
    }
}

impl<E: Copy> ValueTile<'_, E> {
    /// The same tile without its first rows.
    fn skip_rows(self, first: usize) -> Self {
        Self {
            weights: self.weights.wrapping_add(first * TILE),
            rescale: self.rescale.wrapping_add(first),
            sums: self.sums.wrapping_add(first * self.head_dim),
            ..self
        }
    }
}

/// The definition of [`ScoreTile`].
///
/// # Safety
/// All of the tile's pointers reach as far as their shapes say.
unsafe fn scores_any<E: Element, const FUSED: bool>(tile: &ScoreTile<E>, rows: usize) {
    for row in 0..rows {
        let mut sums = [0_f32; TILE];
        for d in 0..tile.head_dim {
            // SAFETY: inside the shapes, as promised.
            let q = unsafe { *tile.q.add(row * tile.head_dim + d) };
            for (key, sum) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                let k = unsafe { *tile.k[key / HALF].add(d * tile.k_stride + key % HALF) };
                *sum = mul_add::<FUSED>(q, k.widen(), *sum);
            }
        }
        // SAFETY: as above.
        unsafe { tile.scores.add(row * TILE).cast::<[f32; TILE]>().write_unaligned(sums) };
    }
}

/// The definition of [`ValueTile`].
///
/// # Safety
/// All of the tile's pointers reach as far as their shapes say.
unsafe fn add_values_any<E: Element, const FUSED: bool>(tile: &ValueTile<'_, E>, rows: usize) {
    for row in 0..rows {
        for d in 0..tile.head_dim {
            // SAFETY: inside the shapes, as promised.
            unsafe {
                let at = tile.sums.add(row * tile.head_dim + d);
                let mut sum = *at * *tile.rescale.add(row);
                for (key, v) in tile.v.iter().enumerate() {
                    let weight = *tile.weights.add(row * TILE + key);
                    sum = mul_add::<FUSED>(weight, (*v.add(d)).widen(), sum);
                }
                *at = sum;
            }
        }
    }
}

macro_rules! by_rows {
    ($kernel:ident, $tile:expr, $rows:expr, $height:literal; $($count:literal)*) => {
        for first in (0..$rows).step_by($height) {
            let tile = &$tile.skip_rows(first);
            match $height.min($rows - first) {
                // SAFETY: as promised by the caller.
                $($count => unsafe { x86::$kernel::<$count>(tile) },)*
                _ => {}
            }
        }
    };
}

macro_rules! by_rows_512 {
    ($kernel:ident, $tile:expr, $rows:expr) => {
        by_rows!($kernel, $tile, $rows, 12_usize; 1 2 3 4 5 6 7 8 9 10 11 12)
    };
}

macro_rules! by_rows_256 {
    ($kernel:ident, $tile:expr, $rows:expr) => {
        by_rows!($kernel, $tile, $rows, 3_usize; 1 2 3)
    };
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    fn takes_pairs(_: Isa) -> bool {
        false
    }

    unsafe fn scores(isa: Isa, tile: &ScoreTile<Self>, rows: usize) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Avx512Vnni | Isa::Avx512 => {
                by_rows_512!(scores_f32_512, tile, rows);
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => by_rows_256!(scores_f32_256, tile, rows),
            // SAFETY: as promised by the caller.
            Isa::Portable => unsafe { scores_any::<Self, false>(tile, rows) },
        }
    }

    unsafe fn add_values(isa: Isa, tile: &ValueTile<Self>, rows: usize) {
        let whole = tile.head_dim.is_multiple_of(TILE);
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Avx512Vnni | Isa::Avx512 if whole => {
                by_rows_512!(values_f32_512, tile, rows);
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if whole => by_rows_256!(values_f32_256, tile, rows),
            // SAFETY: as promised by the caller.
            _ => unsafe { add_values_any::<Self, false>(tile, rows) },
        }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn takes_pairs(isa: Isa) -> bool {
        #[cfg(target_arch = "x86_64")]
        return isa == Isa::Avx512Bf16;
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    unsafe fn scores(isa: Isa, tile: &ScoreTile<Self>, rows: usize) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => by_rows_512!(scores_pairs, tile, rows),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::Avx512 => by_rows_512!(scores_bf16_512, tile, rows),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => by_rows_256!(scores_bf16_256, tile, rows),
            // SAFETY: as promised by the caller.
            Isa::Portable => unsafe { scores_any::<Self, false>(tile, rows) },
        }
    }

    unsafe fn add_values(isa: Isa, tile: &ValueTile<Self>, rows: usize) {
        let whole = tile.head_dim.is_multiple_of(TILE);
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 if whole => by_rows_512!(values_pairs, tile, rows),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::Avx512 if whole => by_rows_512!(values_bf16_512, tile, rows),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if whole => by_rows_256!(values_bf16_256, tile, rows),
            // SAFETY: as promised by the caller.
            _ => unsafe { add_values_any::<Self, false>(tile, rows) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::{HALF, ScoreTile, TILE, ValueTile};

    pub use super::super::pairs::{scores_pairs, values_pairs};

    macro_rules! kernels {
        ($scores:ident, $values:ident, $features:literal, $element:ty, $width:literal,
         $zero:ident, $loadu:ident, $storeu:ident, $set1:ident, $mul:ident, $fmadd:ident, $load:ident) => {
            /// # Safety
            /// As [`super::scores_any`], for `ROWS` rows.
            #[target_feature(enable = $features)]
            pub unsafe fn $scores<const ROWS: usize>(tile: &ScoreTile<$element>) {
                const VECTORS: usize = TILE / $width;
                let mut sums = [[$zero(); VECTORS]; ROWS];
                for d in 0..tile.head_dim {
                    // SAFETY: each key's element `d`, a half at a time, then that of
                    // each query: inside the shapes, as promised.
                    unsafe {
                        let k: [_; VECTORS] = std::array::from_fn(|v| {
                            let half = tile.k[v * $width / HALF].add(d * tile.k_stride);
                            $load(half.add(v * $width % HALF))
                        });
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let q = $set1(*tile.q.add(row * tile.head_dim + d));
                            for (sum, k) in sums.iter_mut().zip(&k) {
                                *sum = $fmadd(q, *k, *sum);
                            }
                        }
                    }
                }
                for (row, sums) in sums.iter().enumerate() {
                    for (v, sum) in sums.iter().enumerate() {
                        // SAFETY: inside `[rows][TILE]`.
                        unsafe { $storeu(tile.scores.add(row * TILE + v * $width), *sum) };
                    }
                }
            }

            /// # Safety
            /// As [`super::add_values_any`], for `ROWS` rows of a `head_dim` that
            /// [`TILE`] divides.
            #[target_feature(enable = $features)]
            pub unsafe fn $values<const ROWS: usize>(tile: &ValueTile<'_, $element>) {
                const VECTORS: usize = TILE / $width;
                for column in (0..tile.head_dim).step_by(TILE) {
                    let mut sums = [[$zero(); VECTORS]; ROWS];
                    for (row, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: inside `[rows]` and `[rows][head_dim]`.
                        unsafe {
                            let rescale = $set1(*tile.rescale.add(row));
                            let at = tile.sums.add(row * tile.head_dim + column);
                            for (v, sum) in sums.iter_mut().enumerate() {
                                *sum = $mul($loadu(at.add(v * $width)), rescale);
                            }
                        }
                    }
                    for (key, v_row) in tile.v.iter().enumerate() {
                        // SAFETY: a row has `head_dim` elements, a query's weights `TILE`.
                        unsafe {
                            let v: [_; VECTORS] =
                                std::array::from_fn(|v| $load(v_row.add(column + v * $width)));
                            for (row, sums) in sums.iter_mut().enumerate() {
                                let weight = $set1(*tile.weights.add(row * TILE + key));
                                for (sum, v) in sums.iter_mut().zip(&v) {
                                    *sum = $fmadd(weight, *v, *sum);
                                }
                            }
                        }
                    }
                    for (row, sums) in sums.iter().enumerate() {
                        for (v, sum) in sums.iter().enumerate() {
                            // SAFETY: inside `[rows][head_dim]`.
                            unsafe {
                                let at = tile.sums.add(row * tile.head_dim + column);
                                $storeu(at.add(v * $width), *sum);
                            }
                        }
                    }
                }
            }
        };
    }

    macro_rules! kernels_512 {
        ($scores:ident, $values:ident, $element:ty, $load:ident) => {
            kernels!(
                $scores,
                $values,
                "avx512f,avx512bw,avx512dq,avx512vl",
                $element,
                16,
                _mm512_setzero_ps,
                _mm512_loadu_ps,
                _mm512_storeu_ps,
                _mm512_set1_ps,
                _mm512_mul_ps,
                _mm512_fmadd_ps,
                $load
            );
        };
    }

    macro_rules! kernels_256 {
        ($scores:ident, $values:ident, $element:ty, $load:ident) => {
            kernels!(
                $scores,
                $values,
                "avx2,fma",
                $element,
                8,
                _mm256_setzero_ps,
                _mm256_loadu_ps,
                _mm256_storeu_ps,
                _mm256_set1_ps,
                _mm256_mul_ps,
                _mm256_fmadd_ps,
                $load
            );
        };
    }

    kernels_512!(scores_f32_512, values_f32_512, f32, _mm512_loadu_ps);
    kernels_512!(scores_bf16_512, values_bf16_512, bf16, load_bf16_512);
    kernels_256!(scores_f32_256, values_f32_256, f32, _mm256_loadu_ps);
    kernels_256!(scores_bf16_256, values_bf16_256, bf16, load_bf16_256);

    /// # Safety
    /// Sixteen values from `at` on can be read.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    unsafe fn load_bf16_512(at: *const bf16) -> __m512 {
        // SAFETY: as promised by the caller.
        let halves = unsafe { _mm256_loadu_si256(at.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }

    /// # Safety
    /// Eight values from `at` on can be read.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load_bf16_256(at: *const bf16) -> __m256 {
        // SAFETY: as promised by the caller.
        let halves = unsafe { _mm_loadu_si128(at.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::ops::simd::pair_of;

    /// Rows of the largest tile, and some more.
    const ROWS: usize = 15;
    const DIM: usize = 64;
    /// Odd, so that the last key has no other beside it.
    const KEYS: usize = TILE - 1;

    fn noise(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 + seed * 101) as f32 * 0.731).sin()).collect()
    }

    /// Scores of all keys, and sums of the values of [`KEYS`], of every row.
    fn products<E: Element>(isa: Isa, rows: usize, k: &[E], v: &[E]) -> [Vec<f32>; 2] {
        let q = noise(rows * DIM, 1);
        let pairs: Vec<u32> =
            q.as_chunks::<2>().0.iter().map(|[low, high]| pair_of(*low, *high)).collect();
        let mut scores = vec![f32::NAN; rows * TILE];
        let tile = ScoreTile {
            q: q.as_ptr(),
            q_pairs: pairs.as_ptr(),
            head_dim: DIM,
            k: [k.as_ptr(), k[HALF..].as_ptr()],
            k_stride: TILE,
            scores: scores.as_mut_ptr(),
        };
        // SAFETY: all is as long as the shapes say.
        unsafe { E::scores(isa, &tile, rows) };
        let mut weights = noise(rows * TILE, 2);
        weights.iter_mut().skip(KEYS).step_by(TILE).for_each(|unseen| *unseen = 0.0);
        let v_rows: Vec<_> = v.chunks(DIM).take(KEYS).map(<[E]>::as_ptr).collect();
        let (rescale, mut sums) = (noise(rows, 3), noise(rows * DIM, 4));
        let tile = ValueTile {
            weights: weights.as_ptr(),
            rescale: rescale.as_ptr(),
            v: &v_rows,
            head_dim: DIM,
            sums: sums.as_mut_ptr(),
        };
        // SAFETY: as above.
        unsafe { E::add_values(isa, &tile, rows) };
        [scores, sums]
    }

    /// Every twin against the definition, and each row against itself alone.
    fn check<E: Element>(round: fn(f32) -> E, error: f32) {
        let [k, v] = [5, 6].map(|seed| noise(TILE * DIM, seed).into_iter().map(round));
        let (k, v): (Vec<E>, Vec<E>) = (k.collect(), v.collect());
        let expected = products(Isa::Portable, ROWS, &k, &v);
        for isa in Isa::available() {
            let error = if E::takes_pairs(isa) { 2e-2 } else { error };
            let got = products(isa, ROWS, &k, &v);
            for (expected, got) in expected.iter().zip(&got) {
                for (at, (expected, got)) in expected.iter().zip(got).enumerate() {
                    assert!((expected - got).abs() < error, "{isa:?} {at}: {expected} and {got}");
                }
            }
            let alone = products(isa, 1, &k, &v);
            assert_eq!(alone[0], got[0][..TILE], "{isa:?}");
            assert_eq!(alone[1], got[1][..DIM], "{isa:?}");
        }
    }

    #[test]
    fn twins_agree_and_a_row_is_the_same_alone_and_among_others() {
        check::<f32>(|x| x, 1e-5);
        check::<bf16>(bf16::from_f32, 1e-5);
    }
}
