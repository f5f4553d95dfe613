//! Writes down what engines in this process tell of themselves, as it is fetched
//! from their bounded channels.

use super::Session;
use crate::infer::telemetry::{EngineEvent, LoadPhase, MemoryParts, StepStats, Telemetry};
use crate::record::{JournalEntry, JournalEvent, StepRecord, Stopped};
use crate::units;

/// The engines of a run that tell of themselves.
pub(super) struct Watch(Vec<Option<Telemetry>>);

impl Watch {
    /// Begins to listen to every engine that tells.
    pub(super) fn start(session: &Session<'_>) -> Self {
        let observe = session.engines.iter().map(|engine| {
            engine.as_ref().and_then(|engine| engine.observe(session.resident_bytes))
        });
        Self(observe.collect())
    }

    /// Writes down what one engine has told since the last call. Never waits
    /// for the engine.
    pub(super) fn write(&self, engine: usize, session: &Session<'_>) -> Result<(), Stopped> {
        let Some(telemetry) = self.0.get(engine).and_then(Option::as_ref) else { return Ok(()) };
        let engine = u32::try_from(engine).unwrap_or(u32::MAX);
        for event in telemetry.drain() {
            match event {
                EngineEvent::Step(stats) => session.writer.step(step(engine, &stats))?,
                EngineEvent::Load(phase) => session.writer.journal(load_phase(engine, phase))?,
                EngineEvent::Memory(parts) => session.writer.journal(memory(engine, parts))?,
                EngineEvent::GpuMemory { at, memory } => {
                    let event = JournalEvent::GpuMemory { engine, memory };
                    session.writer.journal(JournalEntry { at_ns: at, event })?;
                }
            }
        }
        match telemetry.take_num_dropped() {
            0 => Ok(()),
            num_events => session.note(JournalEvent::TelemetryLost { engine, num_events }),
        }
    }

    /// As [`Watch::write`], for every engine.
    pub(super) fn write_all(&self, session: &Session<'_>) -> Result<(), Stopped> {
        (0..self.0.len()).try_for_each(|engine| self.write(engine, session))
    }
}

fn step(engine: u32, stats: &StepStats) -> StepRecord {
    let after = &stats.after;
    StepRecord {
        engine,
        at_ns: stats.started_at,
        took_ns: units::nanos(stats.took),
        num_tokens: stats.num_tokens as u64,
        num_prefill_tokens: stats.num_prefill_tokens as u64,
        num_seqs: stats.num_seqs as u64,
        num_decode_kv_tokens: Some(stats.work.num_decode_kv_tokens as u64),
        num_prefill_pairs: Some(stats.work.num_prefill_pairs as u64),
        num_waiting: after.num_waiting as u64,
        num_used_blocks: after.num_blocks.saturating_sub(after.num_free_blocks) as u64,
        num_free_blocks: after.num_free_blocks as u64,
        num_cached_blocks: after.num_cached_blocks as u64,
        num_waste_slots: after.num_waste_slots as u64,
        num_preemptions: stats.num_preemptions,
        rss_bytes: stats.resident_bytes,
    }
}

fn load_phase(engine: u32, phase: LoadPhase) -> JournalEntry {
    let LoadPhase { kind: phase, started_at, took, bytes } = phase;
    let event = JournalEvent::LoadPhase { engine, phase, took_ns: units::nanos(took), bytes };
    JournalEntry { at_ns: started_at, event }
}

fn memory(engine: u32, parts: MemoryParts) -> JournalEntry {
    let event = JournalEvent::Memory {
        engine,
        weight_bytes: parts.weight_bytes,
        kv_bytes: parts.kv_bytes,
        rss_before_bytes: parts.resident_before,
        rss_after_bytes: parts.resident_after,
    };
    JournalEntry { at_ns: parts.at, event }
}
