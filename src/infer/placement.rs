//! Where a model runs, in what it is computed, and how large its KV pool is:
//! all that must be settled before a weight is read.

use super::device::ComputeDevice;
use super::kv::KvSizing;
use super::weights::StoredDtype;
use super::{ComputeDtype, EngineConfig, InferError, ModelConfig};

/// A device, a precision and a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// What computes.
    pub device: ComputeDevice,
    /// What the linear layers compute in.
    pub dtype: ComputeDtype,
    /// The KV pool and the limits that follow from it.
    pub sizing: KvSizing,
}

impl Placement {
    /// What `config` comes to for a model of this shape whose weights are stored
    /// as `stored`.
    ///
    /// # Errors
    /// [`InferError::Config`] for settings that do not fit the model, the device
    /// or each other.
    pub fn resolve(
        config: &EngineConfig,
        model: &ModelConfig,
        stored: &StoredDtype,
    ) -> Result<Self, InferError> {
        let device = ComputeDevice::resolve(config.device)?;
        let dtype = ComputeDtype::resolve(config.dtype, stored, device)?;
        let share = match device {
            ComputeDevice::Cpu => None,
            ComputeDevice::Cuda(number) => Some(device_share(number, config, dtype, model)?),
        };
        let sizing = KvSizing::new(config, dtype, model, share)?;
        Ok(Self { device, dtype, sizing })
    }
}

#[cfg(feature = "cuda")]
fn device_share(
    number: usize,
    config: &EngineConfig,
    dtype: ComputeDtype,
    model: &ModelConfig,
) -> Result<u64, InferError> {
    super::cuda::kv_share(number, config, dtype, model)
}

#[cfg(not(feature = "cuda"))]
fn device_share(
    _: usize,
    _: &EngineConfig,
    _: ComputeDtype,
    _: &ModelConfig,
) -> Result<u64, InferError> {
    Err(InferError::Internal("a CUDA device in a build without CUDA".to_owned()))
}
