//! What the engine tells of itself beside its answers: each step, each phase of
//! loading, memory by part. Bounded: an event that nobody fetched in time is
//! counted and gone, and no step waits for a reader.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::core::{CoreStats, StepReport};
use super::scheduler::StepWork;
use crate::clock::Timestamp;

/// Events that may wait to be fetched. A request of 512 tokens alone makes
/// about as many steps, and whoever watches fetches at least once a request.
const CAPACITY: usize = 1 << 14;

/// Shortest time between two readings of resident memory.
const RESIDENT_INTERVAL: Duration = Duration::from_millis(100);

/// Reads this process's resident memory in bytes, where the system says it.
pub type ResidentBytes = fn() -> Option<u64>;

/// Something the engine did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineEvent {
    /// A step that ended well.
    Step(StepStats),
    /// A phase of loading ended.
    Load(LoadPhase),
    /// Weights and pool are in memory.
    Memory(MemoryParts),
    /// Weights and pool are on a GPU.
    GpuMemory {
        /// When.
        at: Timestamp,
        /// Its parts.
        memory: GpuMemory,
    },
}

/// One step in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepStats {
    /// When it began, before scheduling.
    pub started_at: Timestamp,
    /// Scheduling, forward and sampling.
    pub took: Duration,
    /// Tokens computed.
    pub num_tokens: usize,
    /// Of those, tokens of prompts, or computed again after a preemption.
    pub num_prefill_tokens: usize,
    /// Sequences that took part.
    pub num_seqs: usize,
    /// What was computed, counted.
    pub work: StepWork,
    /// Queue and pool as the step left them.
    pub after: CoreStats,
    /// Sequences sent back to the queue in this step.
    pub num_preemptions: u64,
    /// Resident memory of the whole process after it; absent where the last
    /// reading is less than a tenth of a second old, for reading costs time.
    pub resident_bytes: Option<u64>,
}

impl StepStats {
    /// Of a step that has just ended, without the process's memory.
    pub(super) fn of(report: &StepReport, after: CoreStats, preempted_before: u64) -> Self {
        Self {
            started_at: report.started_at,
            took: report.at.since(report.started_at),
            num_tokens: report.num_tokens,
            num_prefill_tokens: report.num_prefill_tokens,
            num_seqs: report.num_seqs,
            work: report.work,
            after,
            num_preemptions: after.num_preemptions.saturating_sub(preempted_before),
            resident_bytes: None,
        }
    }
}

/// A phase between a cold engine and its first token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadPhase {
    /// Which.
    pub kind: LoadPhaseKind,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// Bytes it went through, where that means something: the weights as
    /// stored, the pool as allocated.
    pub bytes: Option<u64>,
}

/// The phases, in their order; `events.jsonl` calls them by these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadPhaseKind {
    /// Config, tokenizer and headers were read and checked. Once a model, before
    /// anything is measured.
    Open,
    /// Weights were read, and converted to what the kernels compute with.
    Weights,
    /// The KV pool was allocated. The system may give its pages later, as the
    /// first tokens are written.
    KvPool,
    /// On a GPU every kernel was used once, and decode steps were recorded.
    Graphs,
    /// The first step on the fresh weights.
    FirstStep,
}

/// Memory by part, taken as loading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryParts {
    /// When.
    pub at: Timestamp,
    /// Weights as they were handed to the model.
    pub weight_bytes: u64,
    /// The KV pool.
    pub kv_bytes: u64,
    /// Resident memory of the whole process before loading.
    pub resident_before: Option<u64>,
    /// Resident memory of the whole process after loading.
    pub resident_after: Option<u64>,
}

/// A GPU's memory by part, taken as loading ended:
/// `total = weights + kv + activations + graphs + context + other + free`.
/// `events.jsonl` and `summary.json` have these fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuMemory {
    /// All of it, as the driver counts it.
    pub total_bytes: u64,
    /// Matrices, norms and rotary angles.
    pub weight_bytes: u64,
    /// The KV pool.
    pub kv_bytes: u64,
    /// Buffers of a step, and the workspace of its products.
    pub activation_bytes: u64,
    /// What recording decode steps took.
    pub graph_bytes: u64,
    /// Recorded decode steps, one for each size of batch.
    pub num_graphs: u64,
    /// In use when this engine had a context and nothing in it: the context, and
    /// whatever other processes hold.
    pub context_bytes: u64,
    /// What is in use beyond these parts: code of kernels and libraries, and the
    /// rounding of allocations; less than nothing where others gave memory back.
    pub other_bytes: i64,
    /// In use by nobody.
    pub free_bytes: u64,
}

/// The reader's end. Dropping it ends the telling.
#[derive(Debug)]
pub struct Telemetry {
    events: Receiver<EngineEvent>,
    num_dropped: Arc<AtomicU64>,
}

/// The engine's end.
#[derive(Debug)]
pub(super) struct Sink {
    events: SyncSender<EngineEvent>,
    num_dropped: Arc<AtomicU64>,
    resident: ResidentBytes,
    resident_read_at: Cell<Option<Timestamp>>,
}

/// A channel of bounded length.
pub(super) fn channel(resident: ResidentBytes) -> (Sink, Telemetry) {
    let (sender, receiver) = sync_channel(CAPACITY);
    let num_dropped = Arc::new(AtomicU64::new(0));
    let sink = Sink {
        events: sender,
        num_dropped: Arc::clone(&num_dropped),
        resident,
        resident_read_at: Cell::new(None),
    };
    (sink, Telemetry { events: receiver, num_dropped })
}

impl Telemetry {
    /// What happened since the last call, oldest first. Never waits.
    pub fn drain(&self) -> impl Iterator<Item = EngineEvent> + '_ {
        self.events.try_iter()
    }

    /// Events lost since the last call, because they were not fetched in time.
    pub fn take_num_dropped(&self) -> u64 {
        self.num_dropped.swap(0, Ordering::Relaxed)
    }
}

impl Sink {
    /// Hands an event over, or counts it as lost. False once the reader is gone.
    pub(super) fn tell(&self, event: EngineEvent) -> bool {
        match self.events.try_send(event) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.num_dropped.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }

    pub(super) fn resident_bytes(&self) -> Option<u64> {
        (self.resident)()
    }

    /// Resident memory, unless it was read a moment ago.
    pub(super) fn resident_now_and_then(&self, now: Timestamp) -> Option<u64> {
        if self.resident_read_at.get().is_some_and(|at| now.since(at) < RESIDENT_INTERVAL) {
            return None;
        }
        self.resident_read_at.set(Some(now));
        self.resident_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(at: u64) -> EngineEvent {
        EngineEvent::Load(LoadPhase {
            kind: LoadPhaseKind::Open,
            started_at: Timestamp::from_nanos(at),
            took: Duration::ZERO,
            bytes: None,
        })
    }

    #[test]
    fn what_nobody_fetches_is_counted_and_never_waited_for() {
        let (sink, telemetry) = channel(|| None);
        for at in 0..CAPACITY as u64 + 3 {
            assert!(sink.tell(phase(at)));
        }
        assert_eq!(telemetry.drain().count(), CAPACITY);
        assert_eq!((telemetry.take_num_dropped(), telemetry.take_num_dropped()), (3, 0));
        assert!(sink.tell(phase(9)));
        assert_eq!(telemetry.drain().next(), Some(phase(9)));
    }

    #[test]
    fn a_reader_that_is_gone_ends_the_telling() {
        let (sink, telemetry) = channel(|| None);
        drop(telemetry);
        assert!(!sink.tell(phase(1)));
    }
}
