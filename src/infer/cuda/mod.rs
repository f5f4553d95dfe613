//! The CUDA runner. What is launched is plain data, made by pure functions that
//! check every argument ([`launch`], [`kernels`]); whoever has a device runs it.
//! So the same launches reach a GPU and, in tests, the kernels compiled for the
//! host.

#[cfg(feature = "cuda")]
pub mod images;
pub mod kernels;
pub mod launch;
#[cfg(test)]
mod simt;

pub use launch::{Element, Launch, LaunchError, View};
