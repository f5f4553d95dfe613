//! Page-locked host memory: what a device copies from and to without waiting.

use cudarc::driver::result;

use super::driver;
use crate::infer::cuda::device::DeviceError;

/// A growing block of it. Growing loses what it holds.
pub(super) struct Pinned {
    ptr: *mut u8,
    len: usize,
}

impl Pinned {
    pub(super) const fn empty() -> Self {
        Self { ptr: std::ptr::null_mut(), len: 0 }
    }

    /// Makes room for `len` bytes. No copy may be under way.
    pub(super) fn reserve(&mut self, len: usize) -> Result<(), DeviceError> {
        if len <= self.len {
            return Ok(());
        }
        let len = len.next_power_of_two();
        // Not write-combined: the host reads it, too.
        // SAFETY: freed with this object, once.
        let ptr =
            unsafe { result::malloc_host(len, 0) }.map_err(|e| driver("cuMemHostAlloc", e))?;
        *self = Self { ptr: ptr.cast(), len };
        Ok(())
    }

    pub(super) const fn as_ptr(&self) -> *const u8 {
        // A slice of no bytes needs an address, too.
        if self.ptr.is_null() { std::ptr::dangling() } else { self.ptr }
    }

    pub(super) const fn as_mut_ptr(&mut self) -> *mut u8 {
        if self.ptr.is_null() { std::ptr::dangling_mut() } else { self.ptr }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if !self.ptr.is_null() {
            // SAFETY: allocated by `reserve`, freed once. A failure leaves nothing to do.
            let _ = unsafe { result::free_host(self.ptr.cast()) };
        }
    }
}
