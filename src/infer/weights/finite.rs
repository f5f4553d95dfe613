//! Numbers that are no numbers, found in stored bytes before anything computes
//! with them: one NaN among the weights makes every answer nonsense, and names
//! no culprit. Knows no file.

use rayon::prelude::*;

/// Entries that one task looks through.
const TASK: usize = 1 << 16;

/// The bits of a float's exponent, all of which a NaN and an infinity set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exponent {
    /// Of IEEE single precision.
    F32,
    /// Of IEEE half precision.
    F16,
    /// Of the upper half of a single.
    Bf16,
}

/// Index of the first of `raw`'s floats that is a NaN or an infinity. They are
/// little-endian and stand one after the other.
pub(super) fn first_not_finite(raw: &[u8], float: Exponent) -> Option<usize> {
    match float {
        Exponent::F32 => {
            first_in(raw, |bytes: &[u8; 4]| u32::from_le_bytes(*bytes) & 0x7f80_0000 == 0x7f80_0000)
        }
        Exponent::F16 => {
            first_in(raw, |bytes: &[u8; 2]| u16::from_le_bytes(*bytes) & 0x7c00 == 0x7c00)
        }
        Exponent::Bf16 => {
            first_in(raw, |bytes: &[u8; 2]| u16::from_le_bytes(*bytes) & 0x7f80 == 0x7f80)
        }
    }
}

/// Index of the first block of `stride` bytes in which a half-precision scale,
/// at one of `offsets`, is a NaN or an infinity.
pub(super) fn first_block_not_finite(
    raw: &[u8],
    stride: usize,
    offsets: &[usize],
) -> Option<usize> {
    raw.par_chunks(TASK * stride).enumerate().find_map_first(|(task, raw)| {
        let bad = |block: &[u8]| offsets.iter().any(|offset| block[offset + 1] & 0x7c == 0x7c);
        raw.chunks_exact(stride).position(bad).map(|block| task * TASK + block)
    })
}

fn first_in<const N: usize>(
    raw: &[u8],
    special: impl Fn(&[u8; N]) -> bool + Sync,
) -> Option<usize> {
    raw.par_chunks(TASK * N).enumerate().find_map_first(|(task, raw)| {
        let floats = raw.as_chunks::<N>().0;
        // Without an early end the pass is vectorised: almost always there is nothing to find.
        let any = floats.iter().fold(false, |any, float| any | special(float));
        any.then(|| floats.iter().position(&special)).flatten().map(|at| task * TASK + at)
    })
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn the_first_float_that_is_no_number_is_found_in_every_width() {
        let len = 3 * TASK + 5;
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.5_f32; len];
            values[7] = f32::from(f16::MAX);
            let bytes = |values: &[f32], float| -> Vec<u8> {
                let write = |x: &f32| match float {
                    Exponent::F32 => x.to_le_bytes().to_vec(),
                    Exponent::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
                    Exponent::Bf16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
                };
                values.iter().flat_map(write).collect()
            };
            for float in [Exponent::F32, Exponent::F16, Exponent::Bf16] {
                let mut values = values.clone();
                assert_eq!(first_not_finite(&bytes(&values, float), float), None);
                values[len - 1] = special;
                assert_eq!(first_not_finite(&bytes(&values, float), float), Some(len - 1));
                values[TASK + 3] = special;
                assert_eq!(first_not_finite(&bytes(&values, float), float), Some(TASK + 3));
            }
        }
    }

    #[test]
    fn the_first_block_whose_scale_is_no_number_is_found() {
        let mut raw = vec![0xff_u8; 20 * (TASK + 9)];
        for block in raw.chunks_exact_mut(20) {
            block[..4].copy_from_slice(&[0x66, 0x2e, 0x66, 0xae]);
        }
        assert_eq!(first_block_not_finite(&raw, 20, &[0, 2]), None);
        raw[20 * (TASK + 4) + 3] = 0xfe;
        assert_eq!(first_block_not_finite(&raw, 20, &[0, 2]), Some(TASK + 4));
        assert_eq!(first_block_not_finite(&raw, 20, &[0]), None);
    }
}
