//! What the runner asks of a device. A GPU is one; in tests, the host behind the
//! kernels compiled for it is another.

use thiserror::Error;

use super::{Element, Launch, LaunchError, View};
use crate::infer::InferError;
use crate::units::format_bytes;

/// A matrix product: `out[m, n]` = `x[m, k]` times the transpose of `w[n, k]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Product {
    /// `[m, k]` of f32, f16 or bf16.
    pub x: View,
    /// `[n, k]`, of the type of `x`.
    pub w: View,
    /// `[m, n]`, of the type of `x` or of f32.
    pub out: View,
    /// `m`, `n` and `k`.
    pub shape: [usize; 3],
    /// Adds to `out` instead of replacing it.
    pub add: bool,
}

impl Product {
    /// Checks types, lengths and alignment.
    ///
    /// # Errors
    /// [`LaunchError`] naming what does not fit.
    pub fn check(&self) -> Result<(), LaunchError> {
        let [m, n, k] = self.shape;
        if m * n * k == 0 {
            return Err(LaunchError(format!("a product of {m} by {n} by {k}")));
        }
        self.x.expect("x", self.x.element, m * k)?;
        self.w.expect("w", self.x.element, n * k)?;
        let out = if self.out.element == Element::F32 { Element::F32 } else { self.x.element };
        self.out.expect("out", out, m * n)?;
        Ok(())
    }
}

/// A failure of a device.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// No memory of this size is left.
    #[error("no {0} bytes of device memory are left")]
    OutOfMemory(u64),
    /// A call failed: what was called, and what the driver says.
    #[error("{0}")]
    Failed(String),
    /// Arguments that do not fit a kernel.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

impl From<DeviceError> for InferError {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::OutOfMemory(bytes) => Self::Config(format!(
                "no {} of GPU memory are left: free the GPU, or lower gpu_memory_utilization, \
                 kv_memory or kv_blocks",
                format_bytes(bytes)
            )),
            DeviceError::Failed(_) | DeviceError::Launch(_) => Self::Internal(error.to_string()),
        }
    }
}

impl From<LaunchError> for InferError {
    fn from(error: LaunchError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// One stream of work on one device: everything runs in the order in which it
/// was submitted. Memory lives as long as the device's handle.
pub trait Device: Send {
    /// A recorded stretch of work.
    type Graph: Send;

    /// Memory for `len` elements, uninitialised.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn alloc(&mut self, len: usize, element: Element) -> Result<View, DeviceError>;

    /// Fills the front of `to`; waits until it is done.
    ///
    /// # Errors
    /// When `bytes` do not fit.
    fn upload(&mut self, to: View, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Submits a copy of `words` to the front of `to`, which is `i32`. The words
    /// are read before this returns; one such copy at a time may be under way.
    ///
    /// # Errors
    /// When they do not fit.
    fn stage(&mut self, to: View, words: &[i32]) -> Result<(), DeviceError>;

    /// Submits a kernel.
    ///
    /// # Errors
    /// When the kernel is not there or is refused.
    fn launch(&mut self, launch: &Launch) -> Result<(), DeviceError>;

    /// Submits a product.
    ///
    /// # Errors
    /// When it is refused.
    fn product(&mut self, product: &Product) -> Result<(), DeviceError>;

    /// Submits a copy of `from` to the host, for [`Device::wait`] to give out.
    ///
    /// # Errors
    /// When it is refused.
    fn fetch(&mut self, from: View) -> Result<(), DeviceError>;

    /// Waits for all that was submitted; the bytes of the last [`Device::fetch`].
    ///
    /// # Errors
    /// What failed since the last wait.
    fn wait(&mut self) -> Result<&[u8], DeviceError>;

    /// A copy of `from`, waited for.
    ///
    /// # Errors
    /// As [`Device::wait`].
    fn read(&mut self, from: View) -> Result<Vec<u8>, DeviceError>;

    /// Records what `record` submits instead of running it.
    ///
    /// # Errors
    /// What `record` fails with, or when the device cannot record it.
    fn capture(
        &mut self,
        record: &mut dyn FnMut(&mut Self) -> Result<(), DeviceError>,
    ) -> Result<Self::Graph, DeviceError>;

    /// Submits a recorded stretch of work.
    ///
    /// # Errors
    /// When it is refused.
    fn replay(&mut self, graph: &Self::Graph) -> Result<(), DeviceError>;

    /// Multiprocessors.
    fn num_processors(&self) -> usize;
}
