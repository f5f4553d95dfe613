//! The engine loop without threads: requests in, one step at a time, tokens out.

use std::sync::Arc;

use super::batch::Batch;
use super::device::ComputeDevice;
use super::kv::{BlockError, KvSizing};
use super::model::{Llama, Model, WeightMemory};
use super::ops::pool::Pool;
use super::placement::Placement;
use super::runner::{CpuRunner, LoadedRunner, Runner};
use super::sampler::SampleError;
use super::scheduler::{Chunk, Scheduler, SchedulerLimits};
use super::sequence::{Sequence, SequenceId};
pub use super::step::{CoreStats, DrawnToken, PromptScores, StepOutput, StepReport};
use super::telemetry::GpuMemory;
use super::weights::WeightSource;
use super::{ComputeDtype, EngineConfig, InferError, InferRequest, ModelConfig, StopReason};
use crate::clock::{Clock, Timestamp};

/// The engine: scheduler, KV blocks, model and sampler behind `add_request`, `step` and `abort`.
pub struct EngineCore {
    runner: Box<dyn Runner>,
    model_config: ModelConfig,
    scheduler: Scheduler,
    clock: Clock,
    next_id: SequenceId,
    weights_loaded_at: Timestamp,
    pool_allocated_at: Option<Timestamp>,
    /// Makes the next step panic: for the tests of whoever must survive it.
    #[cfg(test)]
    pub(super) panic_in_next_step: bool,
}

impl EngineCore {
    /// Loads the weights and allocates the KV pool.
    ///
    /// # Errors
    /// [`InferError::Config`] for settings that do not fit the model or the
    /// machine, [`InferError::Load`] for weights that cannot be read.
    pub fn new(
        model_config: &ModelConfig,
        weights: &dyn WeightSource,
        config: &EngineConfig,
        clock: Clock,
    ) -> Result<Self, InferError> {
        let placement = Placement::resolve(config, model_config, &weights.stored_dtype())?;
        Self::placed(model_config, weights, config, &placement, clock)
    }

    /// As [`EngineCore::new`], where the placement has been settled before.
    ///
    /// # Errors
    /// As [`EngineCore::new`].
    pub(super) fn placed(
        model_config: &ModelConfig,
        weights: &dyn WeightSource,
        config: &EngineConfig,
        placement: &Placement,
        clock: Clock,
    ) -> Result<Self, InferError> {
        let Placement { device, dtype, sizing } = *placement;
        let loaded = match device {
            ComputeDevice::Cpu => {
                let pool = pool(config)?;
                let load = || Llama::load(model_config, weights, dtype, sizing.max_model_len);
                let model = Box::new(pool.install(load)?);
                let weights_at = clock.now();
                let runner = Box::new(CpuRunner::new(model, model_config, &sizing, pool)?);
                LoadedRunner { runner, weights_at, pool_at: None }
            }
            ComputeDevice::Cuda(number) => {
                cuda_runner(number, model_config, weights, config, placement, &clock)?
            }
        };
        Ok(Self::assemble(loaded, &sizing, model_config, config, clock))
    }

    /// The engine around any model whose shape `model_config` gives: it decides
    /// the KV pool, the width of the logits and the tokens that end a sequence.
    /// Its weights are its own, so that `auto` is f32.
    ///
    /// # Errors
    /// [`InferError::Config`] for settings that do not fit the model or the machine.
    pub fn with_model(
        model: Box<dyn Model>,
        model_config: &ModelConfig,
        config: &EngineConfig,
        clock: Clock,
    ) -> Result<Self, InferError> {
        let dtype = config.dtype.unwrap_or(ComputeDtype::F32);
        let sizing = KvSizing::new(config, dtype, model_config, None)?;
        let weights_at = clock.now();
        let runner = Box::new(CpuRunner::new(model, model_config, &sizing, pool(config)?)?);
        let loaded = LoadedRunner { runner, weights_at, pool_at: None };
        Ok(Self::assemble(loaded, &sizing, model_config, config, clock))
    }

    /// The engine around any runner with a pool of `sizing`.
    #[cfg(test)]
    pub(super) fn with_runner(
        runner: Box<dyn Runner>,
        sizing: &KvSizing,
        model_config: &ModelConfig,
        config: &EngineConfig,
    ) -> Self {
        let clock = Clock::manual();
        let loaded = LoadedRunner { runner, weights_at: clock.now(), pool_at: None };
        Self::assemble(loaded, sizing, model_config, config, clock)
    }

    fn assemble(
        loaded: LoadedRunner,
        sizing: &KvSizing,
        model_config: &ModelConfig,
        config: &EngineConfig,
        clock: Clock,
    ) -> Self {
        Self {
            runner: loaded.runner,
            scheduler: Scheduler::new(SchedulerLimits::new(config, sizing)),
            model_config: model_config.clone(),
            clock,
            next_id: 0,
            weights_loaded_at: loaded.weights_at,
            pool_allocated_at: loaded.pool_at,
            #[cfg(test)]
            panic_in_next_step: false,
        }
    }

    /// Queues a request, all of its samples under one id.
    ///
    /// # Errors
    /// [`InferError::Request`] for one that can never be served,
    /// [`InferError::Busy`] when the queue has no room for all of its samples.
    pub fn add_request(&mut self, request: InferRequest) -> Result<SequenceId, InferError> {
        request.check(self.model_config.vocab_size)?;
        let id = self.next_id;
        self.scheduler.add(id, &request)?;
        self.next_id += 1;
        Ok(id)
    }

    /// Takes all samples of a request out and frees their blocks; false if they
    /// have ended already.
    ///
    /// # Errors
    /// [`InferError::Internal`] when the block accounting is broken.
    pub fn abort(&mut self, id: SequenceId) -> Result<bool, InferError> {
        Ok(self.scheduler.remove(id)?)
    }

    /// Takes one sample of a request out; false if it has ended already.
    ///
    /// # Errors
    /// As [`EngineCore::abort`].
    pub fn abort_sample(&mut self, id: SequenceId, sample: usize) -> Result<bool, InferError> {
        Ok(self.scheduler.remove_sample(id, sample)?)
    }

    /// When the weights were in memory and the KV pool was not yet.
    #[must_use]
    pub const fn weights_loaded_at(&self) -> Timestamp {
        self.weights_loaded_at
    }

    /// When the KV pool was in memory and decode steps were not yet recorded,
    /// where they are.
    #[must_use]
    pub const fn pool_allocated_at(&self) -> Option<Timestamp> {
        self.pool_allocated_at
    }

    /// Whether a step would do anything.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }

    /// Queue and pool as they are now.
    #[must_use]
    pub fn stats(&self) -> CoreStats {
        CoreStats {
            num_running: self.scheduler.running().len(),
            num_waiting: self.scheduler.waiting().len(),
            num_free_blocks: self.scheduler.blocks().num_free(),
            num_cached_blocks: self.scheduler.blocks().num_cached(),
            num_blocks: self.scheduler.blocks().num_blocks(),
            num_waste_slots: self.scheduler.running().iter().map(Sequence::num_waste_slots).sum(),
            prefix_query_tokens: self.scheduler.prefix_query_tokens(),
            prefix_hit_tokens: self.scheduler.prefix_hit_tokens(),
            num_preemptions: self.scheduler.num_preemptions(),
        }
    }

    /// Bytes of the model's weights in memory.
    #[must_use]
    pub fn weight_memory(&self) -> WeightMemory {
        self.runner.weight_memory()
    }

    /// What loading made of a GPU's memory, where one computes.
    #[must_use]
    pub fn gpu_memory(&self) -> Option<GpuMemory> {
        self.runner.gpu_memory()
    }

    /// Schedules, computes, scores and samples once. Sequences that end, or
    /// whose logits are no numbers, leave the engine and free their blocks.
    ///
    /// # Errors
    /// When the whole step failed. No request that had a sample in its batch is
    /// left then, and their blocks are free; those that waited still wait.
    pub fn step(&mut self) -> Result<StepReport, InferError> {
        let result = self.try_step();
        if result.is_err() {
            self.drop_running();
        }
        debug_assert_eq!(self.scheduler.check_integrity(), Ok(()));
        result
    }

    fn try_step(&mut self) -> Result<StepReport, InferError> {
        let started_at = self.clock.now();
        let chunks = self.scheduler.schedule()?;
        debug_assert_eq!(self.scheduler.check_step(&chunks), Ok(()));
        let work = self.scheduler.work_of(&chunks);
        self.note_scheduled(&chunks);
        let batch = Batch::new(&self.scheduler, &chunks)?;
        #[cfg(test)]
        assert!(!std::mem::take(&mut self.panic_in_next_step), "a panic in a step, as ordered");
        self.runner.start(&batch, self.scheduler.running(), &chunks)?;
        for chunk in &chunks {
            self.scheduler.advance(*chunk);
        }
        let (scores, outputs) = self.finish_step(&chunks)?;
        for output in &outputs {
            if output.result.as_ref().map_or(true, |drawn| drawn.stop.is_some()) {
                self.scheduler.remove_sample(output.id, output.sample)?;
            }
        }
        for scores in scores.iter().filter(|scores| scores.stop.is_some()) {
            self.scheduler.remove(scores.id)?;
        }
        Ok(StepReport {
            started_at,
            at: self.clock.now(),
            num_tokens: batch.input_ids.len(),
            num_prefill_tokens: work.num_prefill_tokens,
            num_seqs: chunks.len(),
            work,
            scores,
            outputs,
        })
    }

    /// Notes who takes part for the first time.
    fn note_scheduled(&mut self, chunks: &[Chunk]) {
        let now = self.clock.now();
        for chunk in chunks {
            if let Some(sequence) = self.scheduler.running_mut(chunk.index) {
                sequence.first_scheduled_at.get_or_insert(now);
            }
        }
    }

    /// Ends the step: scores of prompts, and drawn tokens appended to their sequences.
    fn finish_step(
        &mut self,
        chunks: &[Chunk],
    ) -> Result<(Vec<PromptScores>, Vec<StepOutput>), InferError> {
        let readouts = self.runner.finish(self.scheduler.running(), chunks)?;
        let mut scores = Vec::new();
        let mut outputs = Vec::with_capacity(chunks.len());
        for (chunk, readout) in chunks.iter().zip(readouts) {
            let Some(sequence) = self.scheduler.running().get(chunk.index) else { continue };
            let readout = match readout {
                Ok(readout) => readout,
                Err(error) => {
                    outputs.push(output(sequence, Err(error.into())));
                    continue;
                }
            };
            scores.extend(readout.scores);
            if let Some(mut drawn) = readout.drawn {
                let eos_ids = &self.model_config.eos_token_ids;
                let eos = !sequence.ignore_eos && eos_ids.contains(&drawn.id);
                drawn.stop = eos.then_some(StopReason::Stop);
                let id = drawn.id;
                let mut output = output(sequence, Ok(drawn));
                let length = self.scheduler.push_token(chunk.index, id);
                if let Ok(drawn) = &mut output.result {
                    drawn.stop = drawn.stop.or(length);
                }
                outputs.push(output);
            }
        }
        Ok((scores, outputs))
    }

    fn drop_running(&mut self) {
        let ids: Vec<_> = self.scheduler.running().iter().map(|sequence| sequence.id).collect();
        for id in ids {
            // A block that cannot be freed is what the error being reported is about.
            let _ = self.scheduler.remove(id);
        }
    }
}

fn output(sequence: &Sequence, result: Result<DrawnToken, InferError>) -> StepOutput {
    StepOutput {
        id: sequence.id,
        sample: sequence.sample,
        first_scheduled_at: sequence.first_scheduled_at.unwrap_or_default(),
        num_cached_tokens: sequence.num_cached_tokens.unwrap_or_default(),
        result,
    }
}

fn pool(config: &EngineConfig) -> Result<Arc<Pool>, InferError> {
    let threads = config.num_threads();
    let pool = Pool::new(threads)
        .map_err(|error| InferError::Config(format!("no {threads} threads: {error}")))?;
    Ok(Arc::new(pool))
}

#[cfg(feature = "cuda")]
fn cuda_runner(
    number: usize,
    model_config: &ModelConfig,
    weights: &dyn WeightSource,
    config: &EngineConfig,
    placement: &Placement,
    clock: &Clock,
) -> Result<LoadedRunner, InferError> {
    super::cuda::runner(number, model_config, weights, config, placement, clock)
}

#[cfg(not(feature = "cuda"))]
fn cuda_runner(
    _: usize,
    _: &ModelConfig,
    _: &dyn WeightSource,
    _: &EngineConfig,
    _: &Placement,
    _: &Clock,
) -> Result<LoadedRunner, InferError> {
    Err(InferError::Internal("a CUDA device in a build without CUDA".to_owned()))
}

impl From<SampleError> for InferError {
    fn from(error: SampleError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<BlockError> for InferError {
    fn from(error: BlockError) -> Self {
        Self::Internal(error.to_string())
    }
}

#[cfg(test)]
pub(super) mod tests;
