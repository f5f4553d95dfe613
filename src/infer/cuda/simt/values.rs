//! Buffers of the tests: host memory that a kernel takes for the device's,
//! exactly as long as its elements, so that the sanitizer sees the first byte
//! past them.

use std::alloc::{Layout, alloc, dealloc};

use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::infer::cuda::{Element, View};

/// Elements of one type, at a multiple of 16 bytes.
pub(in crate::infer::cuda) struct Values {
    ptr: *mut u8,
    len: usize,
    element: Element,
}

impl Values {
    /// Every bit set: NaN of every float type, -1 of `i32`.
    pub fn nan(len: usize, element: Element) -> Self {
        let layout = layout(len, element);
        // SAFETY: the layout has a size; the bytes written are those allocated.
        let ptr = unsafe {
            let ptr = alloc(layout);
            assert!(!ptr.is_null());
            ptr.write_bytes(0xff, layout.size());
            ptr
        };
        Self { ptr, len, element }
    }

    /// These values, rounded to `element`.
    pub fn of(values: &[f32], element: Element) -> Self {
        let mut out = Self::nan(values.len(), element);
        let size = element.num_bytes();
        for (to, value) in out.bytes_mut().chunks_exact_mut(size).zip(values) {
            match element {
                Element::F32 => to.copy_from_slice(&value.to_le_bytes()),
                Element::F16 => to.copy_from_slice(&f16::from_f32(*value).to_le_bytes()),
                Element::Bf16 => to.copy_from_slice(&bf16::from_f32(*value).to_le_bytes()),
                other => panic!("{other:?} is no float"),
            }
        }
        out
    }

    /// These counts, as `i32`.
    pub fn ints(values: &[i32]) -> Self {
        let mut out = Self::nan(values.len(), Element::I32);
        for (to, value) in out.bytes_mut().chunks_exact_mut(4).zip(values) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        out
    }

    /// Uniform noise between `-width` and `width`, f32.
    pub fn noise(len: usize, width: f32, seed: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f32> = (0..len).map(|_| generator.random_range(-width..width)).collect();
        Self::of(&values, Element::F32)
    }

    /// The same values rounded to `element`.
    pub fn rounded(&self, element: Element) -> Self {
        Self::of(&self.to_f32(), element)
    }

    /// As a launch takes it.
    pub fn view(&self) -> View {
        View { ptr: self.ptr.addr() as u64, len: self.len, element: self.element }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated and initialised with this size.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len * self.element.num_bytes()) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: allocated and initialised with this size, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len * self.element.num_bytes()) }
    }

    /// All values, widened.
    pub fn to_f32(&self) -> Vec<f32> {
        let pairs = || self.bytes().as_chunks::<2>().0.iter();
        match self.element {
            Element::F16 => pairs().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
            Element::Bf16 => pairs().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
            Element::F32 => {
                let words = self.bytes().as_chunks::<4>().0;
                words.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            }
            other => panic!("{other:?} is no float"),
        }
    }

    /// All values of an `i32` or `u32` buffer.
    pub fn to_ints(&self) -> Vec<i32> {
        assert_eq!(self.element.num_bytes(), 4);
        self.bytes().as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()
    }

    /// Asserts that each value is within `tolerance` of the expected one, times
    /// its size where that is above 1.
    pub fn assert_close(&self, expected: &[f32], tolerance: f32) {
        let found = self.to_f32();
        assert_eq!(found.len(), expected.len());
        for (at, (a, b)) in found.iter().zip(expected).enumerate() {
            let limit = tolerance * b.abs().max(1.0);
            // Written so that NaN fails.
            assert!((a - b).abs() <= limit, "{:?} {at}: {a}, expected {b}", self.element);
        }
    }
}

impl Clone for Values {
    fn clone(&self) -> Self {
        let mut copy = Self::nan(self.len, self.element);
        copy.bytes_mut().copy_from_slice(self.bytes());
        copy
    }
}

impl Drop for Values {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.ptr, layout(self.len, self.element)) }
    }
}

fn layout(len: usize, element: Element) -> Layout {
    Layout::from_size_align((len * element.num_bytes()).max(1), 16).unwrap()
}
