//! The engine on a thread of its own: submit requests from anywhere, receive
//! tokens over a channel, load and unload the weights.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::command::Command;
use super::device::{ComputeDevice, CudaDevice, cuda_devices};
use super::engine_thread::EngineThread;
pub use super::generation::{Generation, GenerationEvent, RequestTimings, TokenLogprobs};
use super::live::Submission;
use super::placement::Placement;
use super::scheduler::SchedulerLimits;
use super::telemetry::{self, LoadPhase, LoadPhaseKind, ResidentBytes, Telemetry};
use super::weights::{self, OpenModel, StoredDtype};
use super::{
    ComputeDtype, EngineConfig, InferError, InferRequest, ModelConfig, ModelSource, Tokenizer, stop,
};
use crate::clock::Clock;

/// Commands that may stand beside the submissions in the engine's channel.
const CONTROL_COMMANDS: usize = 16;

/// A model that is loaded when it is first needed and runs on its own thread.
/// Cloned handles share it; the thread ends with the last handle.
#[derive(Clone)]
pub struct EngineHost {
    /// The thread ends when the last of these is gone.
    commands: SyncSender<Command>,
    shared: Arc<Shared>,
}

/// What handles and thread both see.
pub(super) struct Shared {
    tokenizer: Tokenizer,
    pub(super) model_config: ModelConfig,
    pub(super) config: EngineConfig,
    pub(super) clock: Clock,
    limits: SchedulerLimits,
    /// Device, precision and pool, settled once: reloads are alike.
    pub(super) placement: Placement,
    /// How long it took to open the model, where this opened it.
    pub(super) opened: Option<LoadPhase>,
    stored_dtype: StoredDtype,
    stored_bytes: u64,
    /// Samples submitted and not ended: what bounds the queue.
    live: AtomicUsize,
    status: Mutex<HostStatus>,
}

impl EngineHost {
    /// Opens the model's config and tokenizer (cheap), checks `config` against
    /// them, and starts the thread. Weights are loaded by [`EngineHost::load`]
    /// or by the first request.
    ///
    /// # Errors
    /// When the files are damaged or the settings do not fit the model.
    pub fn open(
        source: &ModelSource,
        config: EngineConfig,
        clock: Clock,
    ) -> Result<Self, InferError> {
        let started_at = clock.now();
        let model = weights::open(source)?;
        let took = clock.now().since(started_at);
        let opened = LoadPhase { kind: LoadPhaseKind::Open, started_at, took, bytes: None };
        Self::start_opened(model, config, clock, Some(opened))
    }

    /// As [`EngineHost::open`], for a model that is open already.
    ///
    /// # Errors
    /// When the settings do not fit the model, or no thread can be started.
    pub fn start(model: OpenModel, config: EngineConfig, clock: Clock) -> Result<Self, InferError> {
        Self::start_opened(model, config, clock, None)
    }

    fn start_opened(
        model: OpenModel,
        config: EngineConfig,
        clock: Clock,
        opened: Option<LoadPhase>,
    ) -> Result<Self, InferError> {
        let stored_dtype = model.weights.stored_dtype();
        let placement = Placement::resolve(&config, &model.config, &stored_dtype)?;
        let num_blocks = placement.sizing.num_blocks;
        let status =
            HostStatus { num_free_blocks: num_blocks, num_blocks, ..HostStatus::default() };
        let limits = SchedulerLimits::new(&config, &placement.sizing);
        let shared = Arc::new(Shared {
            tokenizer: model.tokenizer,
            model_config: model.config,
            stored_dtype,
            stored_bytes: model.weights.stored_bytes(),
            config,
            clock,
            limits,
            placement,
            opened,
            live: AtomicUsize::new(0),
            status: Mutex::new(status),
        });
        let max_live = limits.max_num_seqs.saturating_add(limits.max_queue);
        let capacity = max_live.saturating_add(CONTROL_COMMANDS);
        let (commands, receiver): (_, Receiver<Command>) = sync_channel(capacity);
        let thread = EngineThread::new(Arc::clone(&shared), model.weights, receiver);
        std::thread::Builder::new()
            .name("yardstick-engine".to_owned())
            .spawn(move || thread.run())
            .map_err(|error| InferError::Internal(format!("no engine thread: {error}")))?;
        Ok(Self { commands, shared })
    }

    /// Loads the weights now, unless they are; blocks until they are.
    ///
    /// # Errors
    /// When a weight file is damaged or memory is short.
    pub fn load(&self) -> Result<(), InferError> {
        let (reply, answer) = sync_channel(1);
        self.commands.send(Command::Load(reply)).map_err(|_| thread_is_gone())?;
        answer.recv().map_err(|_| thread_is_gone())?
    }

    /// Aborts what runs, frees weights and KV pool; blocks until they are gone.
    pub fn unload(&self) {
        let (reply, answer) = sync_channel(1);
        if self.commands.send(Command::Unload(reply)).is_ok() {
            // No answer means the thread is gone, and the weights with it.
            let _ = answer.recv();
        }
    }

    /// Queues a request. Never blocks: a full queue is an error.
    /// Dropping the [`Generation`] aborts the request and frees its blocks.
    ///
    /// # Errors
    /// [`InferError::Request`] for one that can never fit, [`InferError::Busy`] when full.
    pub fn submit(&self, request: InferRequest) -> Result<Generation, InferError> {
        let shared = &self.shared;
        request.check(shared.model_config.vocab_size)?;
        stop::check(&request.stop)?;
        let max_len = shared.limits.max_len(&request)?;
        let num_tokens = max_len.saturating_sub(request.prompt_ids.len());
        let num_samples = request.n;
        shared.enter(num_samples)?;
        // Room for every event there can be: the engine never waits for a reader.
        let capacity = num_tokens.saturating_mul(num_samples).saturating_add(3);
        let (events, receiver) = mpsc::channel(capacity);
        let submitted_at = shared.clock.now();
        let submission = Submission { request, events, submitted_at };
        match self.commands.try_send(Command::Submit(Box::new(submission))) {
            Ok(()) => Ok(Generation { events: receiver }),
            Err(error) => {
                shared.leave(num_samples);
                Err(match error {
                    std::sync::mpsc::TrySendError::Full(_) => InferError::Busy {
                        waiting: shared.limits.max_queue,
                        limit: shared.limits.max_queue,
                    },
                    std::sync::mpsc::TrySendError::Disconnected(_) => thread_is_gone(),
                })
            }
        }
    }

    /// Teacher-forced scoring: the log-probability of every token of `ids` after
    /// the first given all before it, beside the `top` most likely ones. Entry
    /// `i` belongs to `ids[i + 1]`. Blocks this thread until it is done.
    ///
    /// # Errors
    /// As [`EngineHost::submit`], or when the engine fails or is unloaded meanwhile.
    pub fn score(&self, ids: &[u32], top: usize) -> Result<Vec<TokenLogprobs>, InferError> {
        let mut generation = self.submit(InferRequest {
            prompt_logprobs: Some(top),
            ..InferRequest::new(ids.to_vec(), 0)
        })?;
        loop {
            match generation.blocking_next() {
                Some(GenerationEvent::PromptLogprobs { logprobs, .. }) => return Ok(logprobs),
                Some(GenerationEvent::Token { .. }) => {}
                Some(GenerationEvent::Failed(error)) => return Err(error),
                Some(GenerationEvent::Done { .. }) | None => {
                    let message = "the engine gave the request up before it was scored";
                    return Err(InferError::Internal(message.to_owned()));
                }
            }
        }
    }

    /// Has the engine tell of its steps and of its loading from now on, in
    /// place of whoever was told before. `resident` reads the process's memory.
    ///
    /// # Errors
    /// [`InferError::Internal`] if the engine's thread has ended.
    pub fn observe(&self, resident: ResidentBytes) -> Result<Telemetry, InferError> {
        let (sink, telemetry) = telemetry::channel(resident);
        self.commands.send(Command::Observe(sink)).map_err(|_| thread_is_gone())?;
        Ok(telemetry)
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.shared.tokenizer
    }

    /// The model's architecture.
    #[must_use]
    pub fn model_config(&self) -> &ModelConfig {
        &self.shared.model_config
    }

    /// The settings in force, numbers resolved: `max_model_len`, `block_size`,
    /// `num_blocks`, `kv_bytes`, `max_num_seqs`, `max_num_batched_tokens`,
    /// `max_queue`, `enable_prefix_caching`, `device`, `dtype` (computed in), `dtype_from` (`weights`, or
    /// `setting` if it was asked for), `weights` (as stored, `dummy` for noise), `weight_bytes` (as
    /// stored) and `threads`; on a GPU also `gpu` (its name), `gpu_memory_utilization` and `cuda_graphs`. All are known without loading.
    #[must_use]
    pub fn settings(&self) -> BTreeMap<String, String> {
        let Shared { placement, config, stored_dtype, stored_bytes, .. } = &*self.shared;
        let Placement { device, dtype, sizing } = placement;
        let dtype_from = if config.dtype.is_some() { "setting" } else { "weights" };
        let numbers = [
            ("max_model_len", sizing.max_model_len as u64),
            ("block_size", sizing.block_size as u64),
            ("num_blocks", sizing.num_blocks as u64),
            ("kv_bytes", sizing.total_bytes),
            ("max_num_seqs", config.max_num_seqs as u64),
            ("max_num_batched_tokens", config.max_num_batched_tokens as u64),
            ("max_queue", config.max_queue as u64),
            ("weight_bytes", *stored_bytes),
            ("threads", config.num_threads() as u64),
        ];
        let words = [
            ("device", device.to_string()),
            ("dtype", dtype.to_string()),
            ("dtype_from", dtype_from.to_owned()),
            ("weights", stored_dtype.to_string()),
            ("enable_prefix_caching", config.enable_prefix_caching.to_string()),
        ];
        numbers
            .into_iter()
            .map(|(name, value)| (name, value.to_string()))
            .chain(words)
            .chain(self.gpu_settings())
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// What is set where a GPU computes.
    fn gpu_settings(&self) -> Vec<(&'static str, String)> {
        let Some(gpu) = self.gpu() else { return Vec::new() };
        let config = &self.shared.config;
        vec![
            ("gpu", gpu.name),
            ("gpu_memory_utilization", config.gpu_memory_utilization.to_string()),
            ("cuda_graphs", config.cuda_graphs.to_string()),
        ]
    }

    /// The GPU that computes, where one does.
    #[must_use]
    pub fn gpu(&self) -> Option<CudaDevice> {
        let ComputeDevice::Cuda(number) = self.shared.placement.device else { return None };
        cuda_devices().ok()?.into_iter().nth(number)
    }

    /// Longest sequence it accepts, in tokens.
    #[must_use]
    pub fn max_model_len(&self) -> usize {
        self.shared.placement.sizing.max_model_len
    }

    /// Name of the precision the weights are computed in, such as `bf16`,
    /// `f32 (from Q4_1)`, or `Q4_1` as llama.cpp and Ollama call their own.
    #[must_use]
    pub fn precision(&self) -> String {
        let Shared { placement, stored_dtype: stored, .. } = &*self.shared;
        let dtype = placement.dtype;
        match (dtype, stored) {
            (_, StoredDtype::Noise) => format!("{dtype} (dummy)"),
            (ComputeDtype::F32, StoredDtype::F32)
            | (ComputeDtype::Bf16, StoredDtype::Bf16)
            | (ComputeDtype::F16, StoredDtype::F16) => dtype.to_string(),
            (ComputeDtype::F32 | ComputeDtype::Bf16 | ComputeDtype::F16, _) => {
                format!("{dtype} (from {stored})")
            }
            (ComputeDtype::Quantized, _) => stored.to_string(),
        }
    }

    /// Whether the weights are seeded noise.
    #[must_use]
    pub fn is_dummy(&self) -> bool {
        self.shared.stored_dtype == StoredDtype::Noise
    }

    /// What it is doing now.
    #[must_use]
    pub fn status(&self) -> HostStatus {
        *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clock of its timestamps.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }
}

impl Shared {
    /// Takes `num_samples` seats, unless the queue is full.
    fn enter(&self, num_samples: usize) -> Result<(), InferError> {
        let check = |live: usize| self.limits.check_queue_for(live, num_samples);
        let more = |live| check(live).is_ok().then_some(live + num_samples);
        match self.live.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(()),
            Err(live) => check(live),
        }
    }

    /// Gives `num_samples` seats back.
    pub(super) fn leave(&self, num_samples: usize) {
        self.live.fetch_sub(num_samples, Ordering::AcqRel);
    }

    pub(super) const fn kv_bytes(&self) -> u64 {
        self.placement.sizing.total_bytes
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub(super) fn set_status(&self, status: HostStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// The status of an engine without weights: the pool is as free as it will be.
    pub(super) fn unloaded_status(&self) -> HostStatus {
        let num_blocks = self.placement.sizing.num_blocks;
        HostStatus { num_free_blocks: num_blocks, num_blocks, ..HostStatus::default() }
    }
}

fn thread_is_gone() -> InferError {
    InferError::Internal("the engine thread has ended".to_owned())
}

/// A snapshot of the engine's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostStatus {
    /// Weights are in memory.
    pub loaded: bool,
    /// Sequences in the running batch.
    pub num_running: usize,
    /// Sequences waiting.
    pub num_waiting: usize,
    /// KV blocks free.
    pub num_free_blocks: usize,
    /// KV blocks in the pool.
    pub num_blocks: usize,
}

#[cfg(test)]
mod tests;
