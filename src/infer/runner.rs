//! What executes a step: the model with its weights, and the K and V that the
//! blocks stand for. Knows chunks and sequences, schedules nothing.

use std::sync::Arc;

use candle_core::{CpuStorage, Device, Storage, Tensor};

use super::allocator;
use super::batch::Batch;
use super::kv::{KvCache, KvSizing};
use super::model::{Model, WeightMemory};
use super::ops::pool::Pool;
use super::readout::{self, Readout};
use super::sampler::SampleError;
use super::scheduler::Chunk;
use super::sequence::Sequence;
use super::telemetry::GpuMemory;
use super::{InferError, ModelConfig};
use crate::clock::Timestamp;

/// Executes one step at a time, in two halves: between them the engine keeps its
/// books while a device computes.
pub(super) trait Runner: Send {
    /// Begins a step: computes `batch`, the tokens of `chunks` of `running`, and
    /// writes their K and V.
    ///
    /// # Errors
    /// When the batch does not fit the pool, the model or the device.
    fn start(
        &mut self,
        batch: &Batch,
        running: &[Sequence],
        chunks: &[Chunk],
    ) -> Result<(), InferError>;

    /// Ends the step that was begun: scores and tokens of each chunk, in the
    /// order of `chunks`, which have been advanced since.
    ///
    /// # Errors
    /// When no step was begun, or chunks, sequences and logits do not belong together.
    fn finish(
        &mut self,
        running: &[Sequence],
        chunks: &[Chunk],
    ) -> Result<Vec<Result<Readout, SampleError>>, InferError>;

    /// Bytes of the weights where they are multiplied.
    fn weight_memory(&self) -> WeightMemory;

    /// What loading made of a GPU's memory, where one computes.
    fn gpu_memory(&self) -> Option<GpuMemory> {
        None
    }
}

/// A runner with its weights, and when its parts were there.
pub(super) struct LoadedRunner {
    pub runner: Box<dyn Runner>,
    /// The weights were read, the pool not yet there.
    pub weights_at: Timestamp,
    /// The pool was there, and decode steps not yet recorded; on a device that
    /// records them.
    pub pool_at: Option<Timestamp>,
}

/// A model on this machine's processors, K and V in its memory.
pub(super) struct CpuRunner {
    model: Box<dyn Model>,
    cache: KvCache,
    pool: Arc<Pool>,
    vocab_size: usize,
    /// Of the step that was begun, `[rows, vocab]`.
    logits: Option<Tensor>,
}

impl CpuRunner {
    /// The runner of `model`, with the pool of blocks that `sizing` describes.
    ///
    /// # Errors
    /// [`InferError::Config`] when the machine has no such memory.
    pub(super) fn new(
        model: Box<dyn Model>,
        model_config: &ModelConfig,
        sizing: &KvSizing,
        pool: Arc<Pool>,
    ) -> Result<Self, InferError> {
        let cache = KvCache::new(sizing, model_config, &Device::Cpu)?;
        allocator::keep_freed();
        Ok(Self { model, cache, pool, vocab_size: model_config.vocab_size, logits: None })
    }
}

impl Runner for CpuRunner {
    fn start(&mut self, batch: &Batch, _: &[Sequence], _: &[Chunk]) -> Result<(), InferError> {
        self.logits = self.pool.install(|| self.model.forward(batch, &self.cache))?;
        Ok(())
    }

    fn finish(
        &mut self,
        running: &[Sequence],
        chunks: &[Chunk],
    ) -> Result<Vec<Result<Readout, SampleError>>, InferError> {
        let logits = self.logits.take();
        let storage = logits.as_ref().map(Tensor::storage_and_layout);
        let rows: &[f32] = match &storage {
            None => &[],
            Some((storage, layout)) => match (&**storage, layout.contiguous_offsets()) {
                (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => &values[start..end],
                _ => return Err(InferError::Internal("logits are not in host memory".to_owned())),
            },
        };
        readout::read(&self.pool, running, chunks, rows, self.vocab_size)
    }

    fn weight_memory(&self) -> WeightMemory {
        self.model.memory()
    }
}
