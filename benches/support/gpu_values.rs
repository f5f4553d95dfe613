//! Device memory for the kernels bench: an arena of noise that cases carve their
//! operands from, and references in f64 that results are held against.

use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use yardstick::infer::cuda::device::Device;
use yardstick::infer::cuda::gpu::Gpu;
use yardstick::infer::cuda::{DeviceError, Element, View};

/// Bytes of noise that are made once and copied over and over.
const PATTERN: usize = 16 << 20;

/// Where operands lie.
const ALIGN: usize = 256;

/// One allocation, taken from its front and given back as a whole.
pub struct Arena {
    whole: View,
    used: usize,
    /// bf16 between -1 and 1: two of them are an f32 between -1 and 1, so that
    /// nothing overflows whatever it is read as.
    noise: Vec<u8>,
}

impl Arena {
    /// Of so many bytes.
    pub fn new(gpu: &mut Gpu, bytes: usize) -> Result<Self, DeviceError> {
        let whole = gpu.alloc(bytes / 2, Element::Bf16)?;
        let noise = rounded(&noise(PATTERN.min(bytes) / 2, 1.0, 0));
        let mut arena = Self { whole, used: whole.num_bytes(), noise };
        arena.clear(gpu)?;
        Ok(arena)
    }

    /// Bytes of it.
    pub const fn num_bytes(&self) -> usize {
        self.whole.num_bytes()
    }

    /// Gives everything back, and makes noise of what cases have written.
    pub fn clear(&mut self, gpu: &mut Gpu) -> Result<(), DeviceError> {
        let (used, step) = (self.used.div_ceil(2).min(self.whole.len), self.noise.len() / 2);
        for start in (0..used).step_by(step) {
            let len = step.min(used - start);
            gpu.upload(self.whole.slice(start, len)?, &self.noise[..2 * len])?;
        }
        self.used = 0;
        Ok(())
    }

    /// Room for `len` elements, with whatever is there.
    pub fn take(&mut self, len: usize, element: Element) -> Result<View, DeviceError> {
        let bytes = len * element.num_bytes();
        let start = self.used.next_multiple_of(ALIGN);
        if start + bytes > self.num_bytes() {
            return Err(DeviceError::OutOfMemory(bytes as u64));
        }
        self.used = start + bytes;
        Ok(View { ptr: self.whole.ptr + start as u64, len, element })
    }

    /// `values`, rounded to `element`.
    pub fn put(
        &mut self,
        gpu: &mut Gpu,
        values: &[f32],
        element: Element,
    ) -> Result<View, DeviceError> {
        let view = self.take(values.len(), element)?;
        let bytes = match element {
            Element::Bf16 => rounded(values),
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        gpu.upload(view, &bytes)?;
        Ok(view)
    }

    /// Whole numbers.
    pub fn ints(&mut self, gpu: &mut Gpu, values: &[usize]) -> Result<View, DeviceError> {
        let words: Vec<i32> = values.iter().map(|value| i32::try_from(*value).unwrap()).collect();
        self.words(gpu, &words)
    }

    /// Words.
    pub fn words(&mut self, gpu: &mut Gpu, words: &[i32]) -> Result<View, DeviceError> {
        let view = self.take(words.len(), Element::I32)?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        gpu.upload(view, &bytes)?;
        Ok(view)
    }
}

/// What the device has there, widened.
pub fn read(gpu: &mut Gpu, view: View) -> Result<Vec<f32>, DeviceError> {
    let bytes = gpu.read(view)?;
    let f32s = || bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let bf16s = || bytes.as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes));
    Ok(if view.element == Element::Bf16 {
        bf16s().map(f32::from).collect()
    } else {
        f32s().collect()
    })
}

/// Words that the device has there.
pub fn read_words(gpu: &mut Gpu, view: View) -> Result<Vec<u32>, DeviceError> {
    let bytes = gpu.read(view)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
}

/// Values between `-scale` and `scale` that bf16 can hold.
pub fn noise(len: usize, scale: f32, seed: u64) -> Vec<f32> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut value = || bf16::from_f32(generator.random_range(-scale..scale)).to_f32();
    (0..len).map(|_| value()).collect()
}

fn rounded(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
}

/// Panics unless the device's values are near the reference's, relative to the
/// larger of a value and 1.
pub fn assert_close(name: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "{name}: element {index} is {found}, expected {expected}");
    }
}

/// `x w^T` of `[m, k]` and `[n, k]`.
pub fn product(x: &[f32], w: &[f32], k: usize) -> Vec<f64> {
    let rows = x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| dot(x, w)));
    rows.collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// `silu(gate) * up`.
pub fn silu_mul(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

/// One row of RMS norm with unit weights.
pub fn norm(x: &[f32], eps: f64) -> Vec<f64> {
    let mean = dot(x, x) / x.len() as f64;
    x.iter().map(|x| f64::from(*x) / (mean + eps).sqrt()).collect()
}

/// Attention of one query over keys and values, each given by a row.
pub fn attention<'a>(
    q: &[f32],
    keys: impl Iterator<Item = &'a [f32]>,
    values: impl Iterator<Item = &'a [f32]>,
) -> Vec<f64> {
    let scale = 1.0 / (q.len() as f64).sqrt();
    let weights: Vec<f64> = keys.map(|key| (dot(q, key) * scale).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut out = vec![0.0; q.len()];
    for (weight, value) in weights.iter().zip(values) {
        for (out, value) in out.iter_mut().zip(value) {
            *out += weight / sum * f64::from(*value);
        }
    }
    out
}
