//! Which vector instructions this processor has, and the few scalar functions
//! that are written so that the compiler can vectorise them.

/// Instruction sets that kernels come in, best first; each has those after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 with dot products of bf16 pairs, and of bytes.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// AVX-512 with dot products of bytes.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// 512-bit vectors of floats, words and bytes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 256-bit vectors with fused multiply-add, and conversion of f16.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the target was compiled for.
    Portable,
}

impl Isa {
    /// All of them, best first.
    const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Bf16,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Vnni,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        Self::Portable,
    ];

    /// The best one this processor has; std remembers the answer.
    pub fn detect() -> Self {
        Self::ALL.iter().copied().find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    /// All that this processor has: for tests that compare them.
    #[cfg(test)]
    pub fn available() -> Vec<Self> {
        Self::ALL.iter().copied().filter(|isa| isa.is_available()).collect()
    }

    fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        macro_rules! has {
            ($($feature:tt)*) => { $(is_x86_feature_detected!($feature))&&* };
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512Vnni.is_available() && has!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => Self::Avx512.is_available() && has!("avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available() && has!("avx512f" "avx512bw" "avx512dq" "avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => has!("avx2" "fma" "f16c"),
            Self::Portable => true,
        }
    }
}

/// The two bf16 of a word, the low half first.
#[inline(always)]
pub fn halves_of(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

/// Runs `$f::<FUSED>(args)` compiled for `$isa`: the compiler vectorises the
/// body three times over.
macro_rules! dispatch {
    ($isa:expr, $f:ident $(<$T:ident: $bound:path>)? ($($arg:ident: $type:ty),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512 $(<$T: $bound>)? ($($arg: $type),*) {
            $f::<true $(, $T)?>($($arg),*);
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2 $(<$T: $bound>)? ($($arg: $type),*) {
            $f::<true $(, $T)?>($($arg),*);
        }
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::infer::ops::simd::Isa::Avx512Bf16
            | $crate::infer::ops::simd::Isa::Avx512Vnni
            | $crate::infer::ops::simd::Isa::Avx512 => {
                // SAFETY: `Isa::detect` and `Isa::available` name only what the
                // processor has.
                unsafe { avx512($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::infer::ops::simd::Isa::Avx2 => {
                // SAFETY: as above.
                unsafe { avx2($($arg),*) }
            }
            $crate::infer::ops::simd::Isa::Portable => $f::<false $(, $T)?>($($arg),*),
        }
    }};
}
pub(super) use dispatch;

/// Fetches the cache line at `address`. A hint: where nothing is, it does nothing.
#[inline(always)]
pub fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The bf16 nearest to `x`, ties to even, in the low half.
#[inline(always)]
pub fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding could carry a NaN over to infinity or zero.
    if x.is_nan() { (bits >> 16) | 0x40 } else { rounded }
}

/// Two bf16 in a word, `low` in the low half.
#[inline(always)]
pub fn pair_of(low: f32, high: f32) -> u32 {
    bf16_bits(low) | (bf16_bits(high) << 16)
}

/// Lanes of the reductions below. Fixed, so that a sum does not depend on the machine's width.
pub const LANES: usize = 16;

/// `a * b + c`, fused where the instruction exists: the library call that
/// stands in for it elsewhere is some fifty times slower than two roundings.
#[inline(always)]
pub fn mul_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Sum of products in [`LANES`] partial sums, then pairwise.
#[inline(always)]
pub fn dot<const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0_f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] = mul_add::<FUSED>(a[lane], b[lane], lanes[lane]);
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[lane] = mul_add::<FUSED>(*a, *b, lanes[lane]);
    }
    sum_lanes(lanes)
}

/// Pairwise sum.
#[inline(always)]
pub fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// e^x to about one unit in the last place, zero below -87.3: no branches and
/// no tables, so a loop over it vectorises. Range reduction by ln 2 and the
/// degree-5 polynomial of Cephes `expf`.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "rounded and within +-128")]
#[expect(clippy::excessive_precision, reason = "as published")]
pub fn exp<const FUSED: bool>(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_40e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to an integer without a call.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.3);
    let n = mul_add::<FUSED>(clamped, std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = mul_add::<FUSED>(n, -LN2_HIGH, clamped);
    let r = mul_add::<FUSED>(n, -LN2_LOW, r);
    let mut p = 1.987_569_150e-4;
    for c in [1.398_199_950_7e-3, 8.333_451_907_3e-3, 4.166_579_589_4e-2, 1.666_666_545_9e-1, 0.5] {
        p = mul_add::<FUSED>(p, r, c);
    }
    let y = mul_add::<FUSED>(p * r, r, r) + 1.0;
    let scale = f32::from_bits(((n as i32 + 127) as u32) << 23);
    if x < -87.3 { 0.0 } else { y * scale }
}

/// Vectors that the compiler does not make as well of the functions above.
#[cfg(target_arch = "x86_64")]
pub mod x86 {
    use std::arch::x86_64::*;

    /// As [`super::exp`], with gradual underflow.
    #[target_feature(enable = "avx512f")]
    #[inline]
    #[expect(clippy::excessive_precision, reason = "as published")]
    pub fn exp_512(x: __m512) -> __m512 {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        const COEFFICIENTS: [f32; 6] = [
            1.987_569_150e-4,
            1.398_199_950_7e-3,
            8.333_451_907_3e-3,
            4.166_579_589_4e-2,
            1.666_666_545_9e-1,
            0.5,
        ];
        // The smallest f32 is e^-103.3; a NaN, second, stays one.
        let x = _mm512_max_ps(_mm512_set1_ps(-105.0), x);
        let scaled = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
        let n = _mm512_roundscale_ps::<NEAREST>(scaled);
        let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_375), x);
        let r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.121_944_40e-4), r);
        let mut p = _mm512_set1_ps(COEFFICIENTS[0]);
        for c in &COEFFICIENTS[1..] {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
        }
        let y = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, r);
        _mm512_scalef_ps(_mm512_add_ps(y, _mm512_set1_ps(1.0)), n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_library() {
        let mut worst = 0_f64;
        for step in -87_000..88_000 {
            let x = step as f32 * 1e-3;
            for y in [exp::<false>(x), exp::<true>(x)] {
                let exact = f64::from(x).exp();
                worst = worst.max((f64::from(y) - exact).abs() / exact);
            }
        }
        assert!(worst < 2e-7, "relative error {worst:e}");
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(0.0), 1.0);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn vectors_of_exp_agree_with_the_library() {
        use std::arch::x86_64::{_mm512_loadu_ps, _mm512_storeu_ps};

        #[target_feature(enable = "avx512f")]
        fn exp_of(x: &[f32; LANES]) -> [f32; LANES] {
            let mut y = [0.0; LANES];
            // SAFETY: as long as a vector.
            unsafe {
                _mm512_storeu_ps(y.as_mut_ptr(), x86::exp_512(_mm512_loadu_ps(x.as_ptr())));
            }
            y
        }
        if !Isa::available().contains(&Isa::Avx512) {
            return;
        }
        let mut worst = 0_f64;
        for step in -5400..5500 {
            let x: [f32; LANES] = std::array::from_fn(|i| (step * 16 + i as i32) as f32 * 1e-3);
            // SAFETY: the processor has it, as just seen.
            for (x, y) in x.iter().zip(unsafe { exp_of(&x) }) {
                let exact = f64::from(*x).exp();
                worst = worst.max((f64::from(y) - exact).abs() / exact);
            }
        }
        assert!(worst < 2e-7, "relative error {worst:e}");
        let mut ends = [0.0; LANES];
        ends[..3].copy_from_slice(&[f32::NEG_INFINITY, f32::INFINITY, f32::NAN]);
        // SAFETY: as above.
        let [zero, infinity, nan, one, ..] = unsafe { exp_of(&ends) };
        assert_eq!((zero, infinity, one), (0.0, f32::INFINITY, 1.0));
        assert!(nan.is_nan());
    }

    #[test]
    fn dot_takes_any_length() {
        for len in [0, 1, 15, 16, 17, 64, 80] {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let exact: f32 = a.iter().map(|v| v * v).sum();
            assert_eq!(dot::<true>(&a, &a), exact);
        }
    }
}
