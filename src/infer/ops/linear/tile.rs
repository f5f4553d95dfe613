//! `y[r] = sum_k x[r, k] * panel[k]` for a few rows and one panel of
//! [`PANEL`] columns: the whole arithmetic of a dense linear layer.
//!
//! A panel is made of words, one a column: an f32, or two bf16 of adjacent `k`.
//! Every output is one chain of multiply-adds over ascending words, whatever
//! the number of rows in the tile. That makes a row's result independent of
//! its batch, and all tile heights equal to the last bit.
//!
//! On x86-64 the tile is written with intrinsics, because the compiler does not
//! keep a 12 x 32 accumulator in registers on its own.

use std::cell::RefCell;

use super::panel::PANEL;
use crate::infer::ops::simd::{Isa, halves_of};

/// Words of a column in one pass over a panel that more than one tile reads: a
/// quarter of a MiB, which stays in the second-level cache.
pub const PASS: usize = 2048;

/// One step of [`multiply`].
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a, W> {
    /// First of the rows, at the first word of the pass.
    x: &'a [W],
    /// Distance of two rows of `x`.
    x_stride: usize,
    /// `[words, PANEL]`.
    panel: &'a [W],
    /// Whether `out` holds the sum of the passes before.
    resume: bool,
}

/// What a panel is made of.
pub trait Word: Copy + Send + Sync + 'static {
    /// Runs a tile of `out.len()` rows, at most [`max_height`].
    fn run(isa: Isa, tile: Tile<'_, Self>, out: &mut [[f32; PANEL]]);
}

thread_local! {
    /// The sums of a product; kept, so that a small one need not clear them.
    static SUMS: RefCell<Vec<[f32; PANEL]>> = const { RefCell::new(Vec::new()) };
}

/// Multiplies the rows of `x`, `[rows, width]` words, with `panel`, `[width, PANEL]`,
/// and hands each row's [`PANEL`] results to `store`.
pub fn multiply<W: Word>(
    isa: Isa,
    x: &[W],
    width: usize,
    panel: &[W],
    store: &mut dyn FnMut(usize, &[f32; PANEL]),
) {
    let rows = x.len().checked_div(width).unwrap_or(0);
    let height = max_height(isa);
    // A single tile reads its panel once, so there is nothing to keep in cache.
    let pass = if rows <= height { width } else { PASS };
    let is_whole = width <= pass;
    SUMS.with_borrow_mut(|sums| {
        let needed = if is_whole { height } else { rows };
        sums.resize(sums.len().max(needed), [0.0; PANEL]);
        for start in (0..width).step_by(pass.max(1)) {
            let end = width.min(start + pass);
            let panel = &panel[start * PANEL..end * PANEL];
            for first in (0..rows).step_by(height) {
                let count = height.min(rows - first);
                let x = &x[first * width + start..];
                let tile = Tile { x, x_stride: width, panel, resume: start > 0 };
                let at = if is_whole { 0 } else { first };
                let out = &mut sums[at..at + count];
                W::run(isa, tile, out);
                if end == width {
                    for (row, sums) in out.iter().enumerate() {
                        store(first + row, sums);
                    }
                }
            }
        }
    });
}

/// Rows of a tile: as many as leave their sums in registers.
const fn max_height(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Avx512Vnni | Isa::Avx512 => 12,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => 3,
        Isa::Portable => 4,
    }
}

/// Calls the kernel for as many rows as `$out` has.
macro_rules! by_height {
    ($kernel:path, $tile:expr, $out:expr; $($height:literal)*) => {
        match $out.len() {
            $($height => {
                if let Some(out) = $out.first_chunk_mut::<$height>() {
                    // SAFETY: `Isa::detect` and `Isa::available` name only
                    // what the processor has.
                    #[allow(unused_unsafe, reason = "the portable tile is safe")]
                    unsafe { $kernel($tile, out) }
                }
            })*
            _ => {}
        }
    };
}

pub(super) use by_height;

impl Word for f32 {
    fn run(isa: Isa, tile: Tile<'_, Self>, out: &mut [[f32; PANEL]]) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Avx512Vnni | Isa::Avx512 => {
                by_height!(x86::f32_avx512, tile, out; 1 2 3 4 5 6 7 8 9 10 11 12);
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => by_height!(x86::f32_avx2, tile, out; 1 2 3),
            Isa::Portable => by_height!(portable_f32, tile, out; 1 2 3 4),
        }
    }
}

/// Two bf16, the lower `k` in the lower half.
impl Word for u32 {
    fn run(isa: Isa, tile: Tile<'_, Self>, out: &mut [[f32; PANEL]]) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => {
                by_height!(x86::bf16_dot, tile, out; 1 2 3 4 5 6 7 8 9 10 11 12);
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::Avx512 => {
                by_height!(x86::bf16_avx512, tile, out; 1 2 3 4 5 6 7 8 9 10 11 12);
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => by_height!(x86::bf16_avx2, tile, out; 1 2 3),
            Isa::Portable => by_height!(portable_bf16, tile, out; 1 2 3 4),
        }
    }
}

/// The definition for f32. Two roundings a step, where the others have one.
fn portable_f32<const ROWS: usize>(tile: Tile<'_, f32>, out: &mut [[f32; PANEL]; ROWS]) {
    portable(tile, out, |sum, x, w| sum + x * w);
}

/// The definition for bf16: products are exact in f32, the lower one is added first.
fn portable_bf16<const ROWS: usize>(tile: Tile<'_, u32>, out: &mut [[f32; PANEL]; ROWS]) {
    let add = |sum: f32, x, w| {
        let ([x_low, x_high], [w_low, w_high]) = (halves_of(x), halves_of(w));
        (sum + x_low * w_low) + x_high * w_high
    };
    portable(tile, out, add);
}

#[inline(always)]
fn portable<const ROWS: usize, W: Copy>(
    tile: Tile<'_, W>,
    out: &mut [[f32; PANEL]; ROWS],
    add: impl Fn(f32, W, W) -> f32,
) {
    let mut sums = if tile.resume { *out } else { [[0.0; PANEL]; ROWS] };
    let (columns, _) = tile.panel.as_chunks::<PANEL>();
    for (k, column) in columns.iter().enumerate() {
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = tile.x[row * tile.x_stride + k];
            for (sum, w) in sums.iter_mut().zip(column) {
                *sum = add(*sum, x, *w);
            }
        }
    }
    *out = sums;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{PANEL, Tile};
    use crate::infer::ops::simd::prefetch;

    /// How many rows of the panel to prefetch ahead: 16 KiB. The processor's own
    /// prefetcher stops at every 4 KiB page, and a tile of many rows leaves no
    /// room in the reorder window to hide the miss: at ten rows the time from
    /// main memory halves, at one row it falls by a fifth.
    const AHEAD: usize = 128;

    macro_rules! tile {
        ($name:ident, $features:literal, $word:ty, $width:literal,
         $zero:ident, $load_sum:ident, $store:ident, $set1:ident, $load:ident, $fmadd:ident) => {
            #[target_feature(enable = $features)]
            pub fn $name<const ROWS: usize>(tile: Tile<'_, $word>, out: &mut [[f32; PANEL]; ROWS]) {
                const VECTORS: usize = PANEL / $width;
                let (columns, _) = tile.panel.as_chunks::<PANEL>();
                let last = (ROWS - 1) * tile.x_stride + columns.len();
                assert!(tile.x.len() >= last, "x has {} words, {last} are read", tile.x.len());
                let mut sums = [[$zero(); VECTORS]; ROWS];
                if tile.resume {
                    for (sums, out) in sums.iter_mut().zip(out.iter()) {
                        for (v, sum) in sums.iter_mut().enumerate() {
                            // SAFETY: `v * width` and the `width` floats after it lie in `out`.
                            *sum = unsafe { $load_sum(out.as_ptr().add(v * $width)) };
                        }
                    }
                }
                let x = tile.x.as_ptr();
                for (k, column) in columns.iter().enumerate() {
                    prefetch(column.as_ptr().wrapping_add(AHEAD * PANEL).cast());
                    prefetch(column.as_ptr().wrapping_add(AHEAD * PANEL + PANEL / 2).cast());
                    let w: [_; VECTORS] = std::array::from_fn(|v| {
                        // SAFETY: `v * width` and the `width` words after it lie in `column`.
                        unsafe { $load(column.as_ptr().add(v * $width)) }
                    });
                    for (row, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: below `last`, asserted above.
                        let x = $set1(unsafe { *x.add(row * tile.x_stride + k) });
                        for (sum, w) in sums.iter_mut().zip(&w) {
                            *sum = $fmadd(x, *w, *sum);
                        }
                    }
                }
                for (sums, out) in sums.iter().zip(out.iter_mut()) {
                    for (v, sum) in sums.iter().enumerate() {
                        // SAFETY: `v * width` and the `width` floats after it lie in `out`.
                        unsafe { $store(out.as_mut_ptr().add(v * $width), *sum) };
                    }
                }
            }
        };
    }

    tile!(
        f32_avx512,
        "avx512f",
        f32,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_fmadd_ps
    );
    tile!(
        f32_avx2,
        "avx2,fma",
        f32,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_fmadd_ps
    );
    tile!(
        bf16_dot,
        "avx512f,avx512bf16",
        u32,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        set1_512,
        load_512,
        dot_512
    );
    tile!(
        bf16_avx512,
        "avx512f",
        u32,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        set1_512,
        load_512,
        widen_512
    );
    tile!(
        bf16_avx2,
        "avx2,fma",
        u32,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        set1_256,
        load_256,
        widen_256
    );

    /// A pair in every lane, pairs from memory, and the multiply-add of pairs
    /// where no instruction has it: the lower product is added first.
    macro_rules! pairs {
        ($features:literal, $integer:ty, $float:ty, $set1:ident, $load:ident, $widen:ident,
         $set1_epi32:ident, $loadu:ident, $slli:ident, $and:ident, $cast:ident, $fmadd:ident) => {
            #[target_feature(enable = $features)]
            #[inline]
            fn $set1(pair: u32) -> $integer {
                $set1_epi32(pair.cast_signed())
            }

            /// # Safety
            /// A vector from `at` on can be read.
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn $load(at: *const u32) -> $integer {
                // SAFETY: as promised by the caller.
                unsafe { $loadu(at.cast()) }
            }

            #[target_feature(enable = $features)]
            #[inline]
            fn $widen(x: $integer, w: $integer, sum: $float) -> $float {
                let mask = $set1_epi32(0xffff_0000_u32.cast_signed());
                let low = |v| $cast($slli::<16>(v));
                let high = |v| $cast($and(v, mask));
                $fmadd(high(x), high(w), $fmadd(low(x), low(w), sum))
            }
        };
    }

    pairs!(
        "avx512f",
        __m512i,
        __m512,
        set1_512,
        load_512,
        widen_512,
        _mm512_set1_epi32,
        _mm512_loadu_si512,
        _mm512_slli_epi32,
        _mm512_and_si512,
        _mm512_castsi512_ps,
        _mm512_fmadd_ps
    );
    pairs!(
        "avx2,fma",
        __m256i,
        __m256,
        set1_256,
        load_256,
        widen_256,
        _mm256_set1_epi32,
        _mm256_loadu_si256,
        _mm256_slli_epi32,
        _mm256_and_si256,
        _mm256_castsi256_ps,
        _mm256_fmadd_ps
    );

    #[target_feature(enable = "avx512f,avx512bf16")]
    #[inline]
    fn dot_512(x: __m512i, w: __m512i, sum: __m512) -> __m512 {
        // SAFETY: both types are 512 bits without invalid values.
        let (x, w) = unsafe {
            (
                std::mem::transmute::<__m512i, __m512bh>(x),
                std::mem::transmute::<__m512i, __m512bh>(w),
            )
        };
        _mm512_dpbf16_ps(sum, w, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::ops::simd::pair_of;

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect()
    }

    fn pairs(len: usize, seed: u32) -> Vec<u32> {
        let values = noise(2 * len, seed);
        values.as_chunks::<2>().0.iter().map(|[low, high]| pair_of(*low, *high)).collect()
    }

    fn product<W: Word>(isa: Isa, x: &[W], width: usize, panel: &[W]) -> Vec<[f32; PANEL]> {
        let mut y = vec![[f32::NAN; PANEL]; x.len() / width];
        multiply(isa, x, width, panel, &mut |row, sums| y[row] = *sums);
        y
    }

    /// Every twin against a sum in f64 of what `times` makes of two words.
    fn check<W: Word>(make: fn(usize, u32) -> Vec<W>, times: fn(W, W) -> f64) {
        for (rows, width) in [(1, 1), (1, 576), (7, 300), (13, 64), (30, PASS + 100)] {
            let (x, panel) = (make(rows * width, 1), make(width * PANEL, 2));
            for isa in Isa::available() {
                for (row, sums) in product(isa, &x, width, &panel).iter().enumerate() {
                    for (column, sum) in sums.iter().enumerate() {
                        let exact: f64 = (0..width)
                            .map(|k| times(x[row * width + k], panel[k * PANEL + column]))
                            .sum();
                        let error = (f64::from(*sum) - exact).abs();
                        assert!(error < 2e-4, "{isa:?} {rows}x{width}: {error:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn twins_agree_with_a_sum_in_f64() {
        check::<f32>(noise, |x, w| f64::from(x) * f64::from(w));
        check::<u32>(pairs, |x, w| {
            let value = |pair: u32| f64::from(f32::from_bits(pair));
            value(x << 16) * value(w << 16) + value(x & 0xffff_0000) * value(w & 0xffff_0000)
        });
    }

    fn check_alone<W: Word>(make: fn(usize, u32) -> Vec<W>) {
        let width = PASS + 40;
        let (x, panel) = (make(29 * width, 3), make(width * PANEL, 4));
        for isa in Isa::available() {
            let together = product(isa, &x, width, &panel);
            for (row, expected) in together.iter().enumerate() {
                let alone = product(isa, &x[row * width..(row + 1) * width], width, &panel);
                assert_eq!(alone[0], *expected, "{isa:?}, row {row}");
            }
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_among_others() {
        check_alone::<f32>(noise);
        check_alone::<u32>(pairs);
    }
}
