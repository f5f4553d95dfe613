//! The CUDA runner. What is launched is plain data, made by pure functions that
//! check every argument ([`launch`], [`kernels`]); a [`Device`] runs it, a GPU or,
//! in tests, the host behind the same kernels compiled for it.
//!
//! A step: [`inputs`] packs ids, positions, block tables and sampling parameters
//! into one array, which is copied at once; [`forward`] submits launches and
//! products over buffers that were allocated at start, or the graph of such a
//! submission is replayed ([`runner`]); the drawn tokens come back.

pub mod buffers;
pub mod device;
pub mod forward;
#[cfg(feature = "cuda")]
pub mod gpu;
#[cfg(feature = "cuda")]
pub mod images;
pub mod inputs;
pub mod kernels;
pub mod launch;
pub mod memory;
#[cfg(feature = "cuda")]
mod open;
pub mod runner;
#[cfg(test)]
mod simt;
#[cfg(test)]
mod tests;
pub mod weights;

pub use device::{Device, DeviceError};
#[cfg(feature = "cuda")]
pub use gpu::devices;
pub use launch::{Element, Launch, LaunchError, View};
#[cfg(feature = "cuda")]
pub(super) use open::{kv_share, runner};
