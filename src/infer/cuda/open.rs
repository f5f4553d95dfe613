//! Opening the runner on a GPU.

use super::Element;
use super::buffers::KvPool;
use super::gpu::{self, Gpu};
use super::memory::{self, DeviceMemory};
use super::runner::DeviceRunner;
use super::weights::Weights;
use crate::clock::Clock;
use crate::infer::placement::Placement;
use crate::infer::runner::LoadedRunner;
use crate::infer::scheduler::SchedulerLimits;
use crate::infer::telemetry::GpuMemory;
use crate::infer::weights::WeightSource;
use crate::infer::{ComputeDtype, EngineConfig, InferError, ModelConfig};

/// Bytes that a pool may take on device `ordinal`; see [`memory::kv_share`].
///
/// # Errors
/// When the device cannot be opened, or nothing is left.
pub fn kv_share(
    ordinal: usize,
    config: &EngineConfig,
    dtype: ComputeDtype,
    model: &ModelConfig,
) -> Result<u64, InferError> {
    memory::kv_share(gpu::memory_of(ordinal)?, config, dtype, model)
}

/// The runner on device `ordinal`, loaded and with its decode steps recorded.
///
/// # Errors
/// [`InferError::Load`] for weights that cannot be read, [`InferError::Config`]
/// where memory is short.
pub fn runner(
    ordinal: usize,
    model: &ModelConfig,
    source: &dyn WeightSource,
    config: &EngineConfig,
    placement: &Placement,
    clock: &Clock,
) -> Result<LoadedRunner, InferError> {
    let Placement { dtype, sizing, .. } = placement;
    let element = Element::of(*dtype)?;
    let mut device = Gpu::open(ordinal)?;
    // cuBLAS's workspace.
    let workspace_bytes = device.allocated_bytes();
    let weights = Weights::load(&mut device, model, source, element, sizing.max_model_len)?;
    let weights_at = clock.now();
    let weight_bytes = device.allocated_bytes() - workspace_bytes;
    let limits = SchedulerLimits::new(config, sizing);
    let pool = |device: &mut Gpu| KvPool::new(device, model, element, sizing);
    let mut runner = DeviceRunner::new(device, model, element, weights, &limits, pool)?;
    let pool_at = Some(clock.now());
    runner.warm_up(1)?;
    let before_graphs = runner.device().memory()?;
    if config.cuda_graphs {
        runner.record_graphs(limits.max_num_seqs);
    }
    let DeviceMemory { free, total } = runner.device().memory()?;
    let allocated = runner.device().allocated_bytes();
    let parts = GpuMemory {
        total_bytes: total,
        weight_bytes,
        kv_bytes: sizing.total_bytes,
        activation_bytes: allocated.saturating_sub(weight_bytes + sizing.total_bytes),
        graph_bytes: before_graphs.free.saturating_sub(free),
        num_graphs: runner.num_graphs() as u64,
        context_bytes: runner.device().context_bytes(),
        other_bytes: 0,
        free_bytes: free,
    };
    runner.note_gpu_memory(memory::with_other(parts));
    Ok(LoadedRunner { runner: Box::new(runner), weights_at, pool_at })
}
