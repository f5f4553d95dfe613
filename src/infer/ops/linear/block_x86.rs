//! The tile of [`super::block_tile`] in intrinsics: 512 bits wide with dot
//! products of bytes, and 256 bits wide without them.

use super::block_format::{BlockFormat, Factors, Plane};
use super::block_tile::BlockTile;
use super::panel::{Line, PANEL};
use super::stored_block::GROUPS;
use crate::infer::ops::simd::prefetch;

/// Cache lines to prefetch ahead: 8 KiB, past where the processor's own
/// prefetcher stops.
const AHEAD: usize = 128;

/// Fetches what lies [`AHEAD`] of `count` lines.
#[inline(always)]
fn prefetch_lines(lines: *const Line<u32>, count: usize) {
    (0..count).for_each(|line| prefetch(lines.wrapping_add(AHEAD + line).cast()));
}

/// The kernel over a module's vectors.
macro_rules! kernel {
    ($features:literal) => {
        /// What a stretch of a block has for scale and minimum.
        ///
        /// # Safety
        /// `head` and `factors` are lines of a super-block of the format, the
        /// latter its block's last, and `first` is a multiple of the lanes below
        /// [`PANEL`].
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn scale_and_min<const FORMAT: usize>(
            head: *const u16,
            factors: *const i8,
            stretch: usize,
            first: usize,
        ) -> (Floats, Floats) {
            let format = const { BlockFormat::ALL[FORMAT] };
            // SAFETY: a line of the head has a half for each column, one of
            // factors two bytes, and there are as many lines as the format says.
            unsafe {
                let halves =
                    |line: usize| widen_halves(load_halves(head.add(line * PANEL + first).cast()));
                let bytes = |nth: usize| widen(load_bytes(factors.add(nth * PANEL + first).cast()));
                let scale = halves(0);
                let min = if format.has_min() { halves(1) } else { no_floats() };
                match format.factors() {
                    Factors::None => (scale, min),
                    Factors::ScaleAndMin => {
                        (times(scale, floats(bytes(0))), times(min, floats(bytes(1))))
                    }
                    Factors::Scales => (times(scale, floats(bytes(stretch))), min),
                    Factors::Nibbles => {
                        let both = bytes(stretch);
                        let low = and(both, splat(15));
                        let high = and(shift_right(both, splat(4)), splat(15));
                        (times(scale, floats(low)), times(min, floats(high)))
                    }
                }
            }
        }

        /// What the codes' zero has added to a dot product with activations of this
        /// sum, taken away.
        #[target_feature(enable = $features)]
        #[inline]
        fn minus_zeros<const FORMAT: usize>(sum: Integers) -> Integers {
            match const { BlockFormat::ALL[FORMAT].zero() } {
                0 => splat(0),
                zero => subtract(splat(0), shift_left(sum, splat(zero.ilog2().cast_signed()))),
            }
        }

        /// Four codes a lane.
        ///
        /// # Safety
        /// `words` are a block of the format, from the first column of the
        /// vector on, and `group` is below [`GROUPS`].
        #[target_feature(enable = $features)]
        #[inline]
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_possible_wrap,
            reason = "shifts are below 8"
        )]
        unsafe fn codes<const FORMAT: usize>(words: *const u32, group: usize) -> Integers {
            let (low, high) = const { BlockFormat::ALL[FORMAT].planes() };
            let plane = |plane: Plane| {
                // SAFETY: a word of all columns, and the format has this one.
                let word = unsafe { load(words.add(plane.word(group) * PANEL).cast()) };
                let (shift, first) = (plane.shift(group), plane.first);
                let word = if shift >= first {
                    shift_right(word, splat((shift - first) as i32))
                } else {
                    shift_left(word, splat((first - shift) as i32))
                };
                and(word, splat((plane.mask() << first).cast_signed()))
            };
            match high {
                Some(high) => or(plane(low), plane(high)),
                None => plane(low),
            }
        }

        /// Runs a tile of `ROWS` rows and the format of that number. The compiler
        /// unrolls the loops within a block: shifts are constants, and what neither
        /// format nor group needs is not there.
        #[target_feature(enable = $features)]
        pub fn multiply<const FORMAT: usize, const ROWS: usize>(
            tile: BlockTile<'_>,
            out: &mut [[f32; PANEL]; ROWS],
        ) {
            const VECTORS: usize = PANEL / LANES;
            let format = const { BlockFormat::ALL[FORMAT] };
            let stretches = const { BlockFormat::ALL[FORMAT].num_stretches() };
            // One line is fetched with each group of codes, the rest before them:
            // many at once wait for each other.
            let spread = format.block_lines() >= GROUPS;
            let burst = format.block_lines() - if spread { GROUPS } else { 0 };
            let num_blocks = tile.num_blocks;
            assert!(num_blocks.is_multiple_of(format.num_blocks()));
            assert!(tile.lines.len() == num_blocks / format.num_blocks() * format.lines());
            assert!(tile.x.len() >= ROWS * num_blocks);
            let x_block = |row: usize, nth: usize| {
                // SAFETY: one of `[rows, num_blocks]`, as just asserted: `row` is
                // below `ROWS` and `nth` below `num_blocks` wherever it is called.
                unsafe { tile.x.get_unchecked(row * num_blocks + nth) }
            };
            let mut sums = [[no_floats(); VECTORS]; ROWS];
            for (nth, lines) in tile.lines.chunks_exact(format.lines()).enumerate() {
                let head = lines.as_ptr();
                prefetch_lines(head, format.head_lines());
                for block in 0..format.num_blocks() {
                    let lines = &lines[format.head_lines() + block * format.block_lines()..];
                    let lines = lines[..format.block_lines()].as_ptr();
                    let at = nth * format.num_blocks() + block;
                    prefetch_lines(lines, burst);
                    for strip in 0..VECTORS / STRIP {
                        for stretch in 0..stretches {
                            let first = |v: usize| (strip * STRIP + v) * LANES;
                            let mut dots = [[splat(0); STRIP]; ROWS];
                            for (row, dots) in dots.iter_mut().enumerate() {
                                let sum = splat(x_block(row, at).sum(stretch, stretches));
                                *dots = [minus_zeros::<FORMAT>(sum); STRIP];
                            }
                            for nth in 0..GROUPS / stretches {
                                // Neighbours share words.
                                let group = match stretches {
                                    1 => nth / 2 + nth % 2 * (GROUPS / 2),
                                    _ => nth + stretch * (GROUPS / 2),
                                };
                                if strip == 0 && spread {
                                    let line = burst + stretch * (GROUPS / stretches) + nth;
                                    prefetch(lines.wrapping_add(AHEAD + line).cast());
                                }
                                for v in 0..STRIP {
                                    // SAFETY: the block's first lines are its codes.
                                    let codes = unsafe {
                                        codes::<FORMAT>(lines.cast::<u32>().add(first(v)), group)
                                    };
                                    for (row, dots) in dots.iter_mut().enumerate() {
                                        let x = splat(x_block(row, at).codes[group].cast_signed());
                                        dots[v] = add_dot(format.bits(), dots[v], codes, x);
                                    }
                                }
                            }
                            for v in 0..STRIP {
                                // SAFETY: the head's lines, and a block's last one.
                                let (scale, min) = unsafe {
                                    let factors = lines.add(format.block_lines() - 1).cast();
                                    scale_and_min::<FORMAT>(head.cast(), factors, stretch, first(v))
                                };
                                for (row, (sums, dots)) in sums.iter_mut().zip(&dots).enumerate() {
                                    let x = x_block(row, at);
                                    let sum = &mut sums[strip * STRIP + v];
                                    let dot = times(floats(dots[v]), splat_float(x.scale));
                                    *sum = multiply_add(dot, scale, *sum);
                                    if format.has_min() {
                                        let total = floats(splat(x.sum(stretch, stretches)));
                                        let total = times(total, splat_float(x.scale));
                                        *sum = multiply_add(min, total, *sum);
                                    }
                                }
                            }
                        }
                    }
                }
            }
            for (sums, out) in sums.iter().zip(out.iter_mut()) {
                for (v, sum) in sums.iter().enumerate() {
                    // SAFETY: `v * LANES` and the lanes after it lie in `out`.
                    unsafe { store(out.as_mut_ptr().add(v * LANES), *sum) };
                }
            }
        }
    };
}

/// 512 bits, with dot products of bytes.
pub mod vnni {
    use std::arch::x86_64::{
        __m512 as Floats, __m512i as Integers, _mm_load_si128 as load_bytes,
        _mm256_load_si256 as load_halves, _mm512_and_si512 as and, _mm512_cvtepi8_epi32 as widen,
        _mm512_cvtepi32_ps as floats, _mm512_cvtph_ps as widen_halves, _mm512_dpbusd_epi32,
        _mm512_fmadd_ps as multiply_add, _mm512_load_si512 as load, _mm512_mul_ps as times,
        _mm512_or_si512 as or, _mm512_set1_epi32 as splat, _mm512_set1_ps as splat_float,
        _mm512_setzero_ps as no_floats, _mm512_sllv_epi32 as shift_left,
        _mm512_srlv_epi32 as shift_right, _mm512_storeu_ps as store, _mm512_sub_epi32 as subtract,
    };

    use super::*;

    const LANES: usize = 16;
    const STRIP: usize = 2;

    kernel!("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");

    /// Adds the dot product of four codes of `_bits` and four activations to each lane.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    fn add_dot(_bits: usize, sum: Integers, codes: Integers, x: Integers) -> Integers {
        _mm512_dpbusd_epi32(sum, codes, x)
    }
}

/// 256 bits, without.
pub mod avx2 {
    use std::arch::x86_64::{
        __m256 as Floats, __m256i as Integers, _mm_load_si128 as load_halves,
        _mm_loadl_epi64 as load_bytes, _mm256_add_epi32, _mm256_and_si256 as and,
        _mm256_cvtepi8_epi32 as widen, _mm256_cvtepi32_ps as floats,
        _mm256_cvtph_ps as widen_halves, _mm256_fmadd_ps as multiply_add,
        _mm256_load_si256 as load, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps as times,
        _mm256_or_si256 as or, _mm256_set1_epi16, _mm256_set1_epi32 as splat,
        _mm256_set1_ps as splat_float, _mm256_setzero_ps as no_floats, _mm256_slli_epi16,
        _mm256_sllv_epi32 as shift_left, _mm256_srai_epi16, _mm256_srli_epi16,
        _mm256_srlv_epi32 as shift_right, _mm256_storeu_ps as store, _mm256_sub_epi32 as subtract,
    };

    use super::*;

    const LANES: usize = 8;
    const STRIP: usize = 1;

    kernel!("avx2,fma,f16c");

    /// Adds the dot product of four codes of `bits` and four activations to each lane.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn add_dot(bits: usize, sum: Integers, codes: Integers, x: Integers) -> Integers {
        if bits < 8 {
            let pairs = _mm256_maddubs_epi16(codes, x);
            return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
        // Two products of eight and seven bits do not fit in 16.
        let even = and(codes, _mm256_set1_epi16(0xff));
        let even = _mm256_madd_epi16(even, _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)));
        let odd = _mm256_srli_epi16::<8>(codes);
        let odd = _mm256_madd_epi16(odd, _mm256_srai_epi16::<8>(x));
        _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
    }
}
