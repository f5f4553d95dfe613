//! Little-endian floats of any alignment widened to f32.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// Elements that one task widens.
const TASK: usize = 1 << 16;
/// Elements converted at a time, so that the vector instructions for f16 are used.
const STEP: usize = 512;

/// `f(task of bytes, task of floats)` over the whole slice, in parallel.
pub(super) fn widen_parallel(
    raw: &[u8],
    element_bytes: usize,
    widen: fn(&[u8], &mut [f32]),
) -> Vec<f32> {
    let mut out = vec![0.0; raw.len() / element_bytes];
    out.par_chunks_mut(TASK)
        .zip(raw.par_chunks(TASK * element_bytes))
        .for_each(|(out, raw)| widen(raw, out));
    out
}

pub(super) fn widen_f32(raw: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(raw.as_chunks::<4>().0) {
        *out = f32::from_le_bytes(*bytes);
    }
}

pub(super) fn widen_bf16(raw: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(raw.as_chunks::<2>().0) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

pub(super) fn widen_f16(raw: &[u8], out: &mut [f32]) {
    let mut halves = [f16::ZERO; STEP];
    for (out, raw) in out.chunks_mut(STEP).zip(raw.chunks(STEP * 2)) {
        let halves = &mut halves[..out.len()];
        for (half, bytes) in halves.iter_mut().zip(raw.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        halves.convert_to_f32_slice(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_gives_the_same_numbers() {
        let values: Vec<f32> = (0..1300_u16).map(|i| f32::from(i) * 0.5 - 100.0).collect();
        let full: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let half: Vec<u8> = values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        assert_eq!(widen_parallel(&full, 4, widen_f32), values);
        assert_eq!(widen_parallel(&half, 2, widen_f16), values);
        let brain: Vec<u8> =
            [1.0_f32, -2.5].iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        assert_eq!(widen_parallel(&brain, 2, widen_bf16), [1.0, -2.5]);
    }
}
