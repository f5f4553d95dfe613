//! Loading a core, and what is to be told of it: phases with bytes, memory by part.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::panic_message;
use super::host::Shared;
use super::telemetry::{EngineEvent, LoadPhase, LoadPhaseKind, MemoryParts, Sink};
use super::weights::WeightSource;
use super::{EngineCore, InferError};
use crate::clock::Timestamp;

/// A core with fresh weights.
pub(super) struct Loaded {
    pub core: EngineCore,
    pub started: Timestamp,
    pub ended: Timestamp,
    pub events: Vec<EngineEvent>,
}

impl Loaded {
    /// Loads; a panic in it is an error, and the thread goes on.
    pub(super) fn load(
        shared: &Shared,
        weights: &dyn WeightSource,
        sink: Option<&Sink>,
    ) -> Result<Self, InferError> {
        let Shared { model_config, config, placement, clock, .. } = shared;
        let resident_before = sink.and_then(Sink::resident_bytes);
        let started = clock.now();
        let load = || EngineCore::placed(model_config, weights, config, placement, clock.clone());
        let core = catch_unwind(AssertUnwindSafe(load))
            .unwrap_or_else(|panic| Err(panicked("loading", panic.as_ref())))?;
        let ended = clock.now();
        let kv_bytes = shared.kv_bytes();
        let (weights_at, pool_at) = (core.weights_loaded_at(), core.pool_allocated_at());
        let phase = |kind, started_at, ended: Timestamp, bytes| {
            let took = ended.since(started_at);
            EngineEvent::Load(LoadPhase { kind, started_at, took, bytes })
        };
        let mut events = vec![
            phase(LoadPhaseKind::Weights, started, weights_at, Some(weights.stored_bytes())),
            phase(LoadPhaseKind::KvPool, weights_at, pool_at.unwrap_or(ended), Some(kv_bytes)),
        ];
        events.extend(pool_at.map(|at| phase(LoadPhaseKind::Graphs, at, ended, None)));
        events.push(match core.gpu_memory() {
            Some(memory) => EngineEvent::GpuMemory { at: ended, memory },
            None => EngineEvent::Memory(MemoryParts {
                at: ended,
                weight_bytes: core.weight_memory().total as u64,
                kv_bytes,
                resident_before,
                resident_after: sink.and_then(Sink::resident_bytes),
            }),
        });
        Ok(Self { core, started, ended, events })
    }
}

/// The failure that a panic is.
pub(super) fn panicked(during: &str, panic: &(dyn std::any::Any + Send)) -> InferError {
    InferError::Internal(format!("{during} panicked: {}", panic_message(panic)))
}
