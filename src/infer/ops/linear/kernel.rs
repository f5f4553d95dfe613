//! `y[r] = sum_k x[r, k] * panel[k]` for a few rows and one panel of
//! [`PANEL`] columns: the whole arithmetic of a dense linear layer.
//!
//! Every output is one chain of multiply-adds over ascending `k`, whatever the
//! number of rows in the tile. That makes a row's result independent of its
//! batch, and all tile heights equal to the last bit.
//!
//! On x86-64 the tile is written with intrinsics, because the compiler does not
//! keep a 12 x 32 accumulator in registers on its own.

use crate::infer::ops::simd::Isa;

/// Columns of a panel: two AVX-512 registers, four AVX2 ones.
pub const PANEL: usize = 32;

/// `k` values in one pass over a panel that more than one tile reads: a
/// quarter of a MiB, which stays in the second-level cache.
pub const PASS: usize = 2048;

/// One step of [`multiply`].
#[derive(Debug, Clone, Copy)]
struct Tile<'a> {
    /// First of the rows, at the first `k` of the pass.
    x: &'a [f32],
    /// Distance of two rows of `x`.
    x_stride: usize,
    /// `[k, PANEL]`.
    panel: &'a [f32],
    /// Whether `out` holds the sum of the passes before.
    resume: bool,
}

/// Multiplies the rows of `x`, `[rows, width]`, with `panel`, `[width, PANEL]`,
/// and hands each row's [`PANEL`] results to `store`.
pub fn multiply(
    isa: Isa,
    x: &[f32],
    width: usize,
    panel: &[f32],
    mut store: impl FnMut(usize, &[f32; PANEL]),
) {
    let rows = x.len().checked_div(width).unwrap_or(0);
    let height = max_height(isa);
    // A single tile reads its panel once, so there is nothing to keep in cache.
    let pass = if rows <= height { width } else { PASS };
    let mut sums = vec![[0_f32; PANEL]; if width > pass { rows } else { rows.min(height) }];
    for start in (0..width).step_by(pass.max(1)) {
        let end = width.min(start + pass);
        let panel = &panel[start * PANEL..end * PANEL];
        for first in (0..rows).step_by(height) {
            let count = height.min(rows - first);
            let tile =
                Tile { x: &x[first * width + start..], x_stride: width, panel, resume: start > 0 };
            let at = if width > pass { first } else { 0 };
            let out = &mut sums[at..at + count];
            run(isa, tile, out);
            if end == width {
                for (row, sums) in out.iter().enumerate() {
                    store(first + row, sums);
                }
            }
        }
    }
}

/// Rows of a tile: as many as leave their sums in registers.
const fn max_height(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => 12,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => 3,
        Isa::Portable => 4,
    }
}

/// Runs a tile of `out.len()` rows, at most [`max_height`].
fn run(isa: Isa, tile: Tile<'_>, out: &mut [[f32; PANEL]]) {
    macro_rules! by_height {
        ($kernel:path; $($height:literal)*) => {
            match out.len() {
                $($height => {
                    if let Some(out) = out.first_chunk_mut::<$height>() {
                        // SAFETY: `Isa::detect` and `Isa::available` name only
                        // what the processor has.
                        #[allow(unused_unsafe, reason = "the portable tile is safe")]
                        unsafe { $kernel(tile, out) }
                    }
                })*
                _ => {}
            }
        };
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => by_height!(x86::avx512; 1 2 3 4 5 6 7 8 9 10 11 12),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => by_height!(x86::avx2; 1 2 3),
        Isa::Portable => by_height!(portable; 1 2 3 4),
    }
}

/// The definition. Two roundings a step, where the others have one.
fn portable<const ROWS: usize>(tile: Tile<'_>, out: &mut [[f32; PANEL]; ROWS]) {
    let mut sums = if tile.resume { *out } else { [[0.0; PANEL]; ROWS] };
    let (columns, _) = tile.panel.as_chunks::<PANEL>();
    for (k, column) in columns.iter().enumerate() {
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = tile.x[row * tile.x_stride + k];
            for (sum, w) in sums.iter_mut().zip(column) {
                *sum += x * w;
            }
        }
    }
    *out = sums;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps,
        _mm256_setzero_ps, _mm256_storeu_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps,
        _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{PANEL, Tile};

    /// How many rows of the panel to prefetch ahead: 16 KiB. The processor's own
    /// prefetcher stops at every 4 KiB page, and a tile of many rows leaves no
    /// room in the reorder window to hide the miss: at ten rows the time from
    /// main memory halves, at one row it falls by a fifth.
    const AHEAD: usize = 128;

    /// Fetches a panel row, two cache lines. A hint: past the end it does nothing.
    #[inline(always)]
    fn prefetch(row: *const f32) {
        const LINE: usize = 64 / size_of::<f32>();
        for line in 0..PANEL / LINE {
            let address = row.wrapping_add(line * LINE).cast();
            // SAFETY: a prefetch never faults, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
        }
    }

    macro_rules! tile {
        ($name:ident, $features:literal, $width:literal,
         $zero:ident, $set1:ident, $load:ident, $store:ident, $fmadd:ident) => {
            #[target_feature(enable = $features)]
            pub fn $name<const ROWS: usize>(tile: Tile<'_>, out: &mut [[f32; PANEL]; ROWS]) {
                const VECTORS: usize = PANEL / $width;
                let (columns, _) = tile.panel.as_chunks::<PANEL>();
                let last = (ROWS - 1) * tile.x_stride + columns.len();
                assert!(tile.x.len() >= last, "x has {} values, {last} are read", tile.x.len());
                let mut sums = [[$zero(); VECTORS]; ROWS];
                if tile.resume {
                    for (sums, out) in sums.iter_mut().zip(out.iter()) {
                        for (v, sum) in sums.iter_mut().enumerate() {
                            // SAFETY: `v * width` and the `width` floats after it lie in `out`.
                            *sum = unsafe { $load(out.as_ptr().add(v * $width)) };
                        }
                    }
                }
                let x = tile.x.as_ptr();
                for (k, column) in columns.iter().enumerate() {
                    prefetch(column.as_ptr().wrapping_add(AHEAD * PANEL));
                    let mut w = [$zero(); VECTORS];
                    for (v, w) in w.iter_mut().enumerate() {
                        // SAFETY: `v * width` and the `width` floats after it lie in `column`.
                        *w = unsafe { $load(column.as_ptr().add(v * $width)) };
                    }
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
        avx512,
        "avx512f",
        16,
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps
    );
    tile!(
        avx2,
        "avx2,fma",
        8,
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect()
    }

    fn product(isa: Isa, x: &[f32], width: usize, panel: &[f32]) -> Vec<[f32; PANEL]> {
        let mut y = vec![[f32::NAN; PANEL]; x.len() / width];
        multiply(isa, x, width, panel, |row, sums| y[row] = *sums);
        y
    }

    #[test]
    fn twins_agree_with_a_sum_in_f64() {
        for (rows, width) in [(1, 1), (1, 576), (7, 300), (13, 64), (30, PASS + 100)] {
            let (x, panel) = (noise(rows * width, 1), noise(width * PANEL, 2));
            for isa in Isa::available() {
                for (row, sums) in product(isa, &x, width, &panel).iter().enumerate() {
                    for (column, sum) in sums.iter().enumerate() {
                        let exact: f64 = (0..width)
                            .map(|k| {
                                f64::from(x[row * width + k]) * f64::from(panel[k * PANEL + column])
                            })
                            .sum();
                        let error = (f64::from(*sum) - exact).abs();
                        assert!(error < 1e-4, "{isa:?} {rows}x{width}: {error:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_among_others() {
        let width = PASS + 40;
        let (x, panel) = (noise(29 * width, 3), noise(width * PANEL, 4));
        for isa in Isa::available() {
            let together = product(isa, &x, width, &panel);
            for (row, expected) in together.iter().enumerate() {
                let alone = product(isa, &x[row * width..(row + 1) * width], width, &panel);
                assert_eq!(alone[0], *expected, "{isa:?}, row {row}");
            }
        }
    }
}
