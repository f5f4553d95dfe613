//! What engines in this process told of themselves over a run: steps, cache,
//! loading, memory by part.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::record::{GpuMemory, JournalEvent, LoadPhaseKind, RunData, StepRecord};

use super::case::CaseRequests;
use super::distribution::{distribution, mean};
use super::summary::Distribution;

/// One engine, over all steps of the run, warm-up included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inside {
    /// Engine name.
    pub engine: String,
    /// Steps that were recorded.
    pub num_steps: u64,
    /// Events that were lost, because nobody fetched them in time.
    pub num_lost_events: u64,
    /// Duration of the steps that computed no prompt.
    pub decode_step_ms: Distribution,
    /// Sequences sent back to the queue.
    pub num_preemptions: u64,
    /// KV blocks in the pool.
    pub num_blocks: Option<u64>,
    /// The most blocks that sequences held after a step.
    pub peak_used_blocks: Option<u64>,
    /// The most slots of held blocks that held no token.
    pub peak_waste_slots: Option<u64>,
    /// The most sequences that waited after a step.
    pub peak_waiting: Option<u64>,
    /// Prompt tokens of the measured, completed requests that say how many were cached.
    pub prompt_tokens: u64,
    /// Of those, tokens from the prefix cache.
    pub cached_tokens: u64,
    /// Phases of loading, in their order.
    pub load: Vec<LoadSummary>,
    /// Memory by part; absent where nothing was loaded.
    pub memory: Option<MemorySummary>,
    /// Memory of a GPU by part, of the first load; absent where none was loaded on.
    pub gpu_memory: Option<GpuMemory>,
}

/// One phase of loading over all loads of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadSummary {
    /// Which phase.
    pub phase: LoadPhaseKind,
    /// How often.
    pub n: u64,
    /// Mean duration.
    pub mean_ms: Option<f64>,
    /// Bytes it went through, of the last time.
    pub bytes: Option<u64>,
}

/// Memory by part. `rss` is of the whole process, whoever else lives in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySummary {
    /// Weights as the kernels compute with them.
    pub weight_bytes: u64,
    /// The KV pool.
    pub kv_bytes: u64,
    /// Growth of the process from after the load to its peak while this engine
    /// alone was stepping: activations, and pages of the pool as they are first
    /// written. A bound from above for either.
    pub activations_at_most_bytes: Option<u64>,
    /// Growth of the process over the load, beyond weights and pool: the mapped
    /// file and all else. Absent where it was not read, or was less than the
    /// parts: pages of the pool that were never written are not resident.
    pub other_bytes: Option<u64>,
    /// The same as if no page of the pool were resident: a bound from above.
    pub other_at_most_bytes: Option<u64>,
    /// Resident before the load.
    pub rss_before_bytes: Option<u64>,
    /// Resident after the load.
    pub rss_after_bytes: Option<u64>,
    /// The most that was resident until anything was loaded or made cold again.
    pub rss_peak_bytes: Option<u64>,
}

/// The engines that told of themselves, in the manifest's order.
#[must_use]
pub fn summarise(run: &RunData, grouped: &[CaseRequests<'_>]) -> Vec<Inside> {
    let engine = |(index, record): (u32, &crate::record::EngineRecord)| {
        let steps: Vec<_> = run.steps.iter().filter(|step| step.engine == index).collect();
        let load = load(run, index);
        let memory = memory(run, index, &steps);
        let gpu_memory = gpu_memory(run, index);
        if steps.is_empty() && load.is_empty() && memory.is_none() && gpu_memory.is_none() {
            return None;
        }
        let of_engine = grouped.iter().filter(|group| group.record.engine == record.spec.name);
        let counts: Vec<_> = of_engine
            .flat_map(CaseRequests::completed)
            .filter_map(|request| Some((request.num_prompt_tokens?, request.num_cached_tokens?)))
            .collect();
        let peak = |of: fn(&StepRecord) -> u64| steps.iter().map(|step| of(step)).max();
        let decodes = steps.iter().filter(|step| step.num_prefill_tokens == 0);
        Some(Inside {
            engine: record.spec.name.clone(),
            num_steps: steps.len() as u64,
            num_lost_events: lost(run, index),
            decode_step_ms: distribution(
                decodes.map(|step| super::latency::ms(step.took_ns)).collect(),
                "no step without a prompt was recorded",
            ),
            num_preemptions: sum(steps.iter().map(|step| step.num_preemptions)),
            num_blocks: peak(|step| step.num_used_blocks.saturating_add(step.num_free_blocks)),
            peak_used_blocks: peak(|step| step.num_used_blocks),
            peak_waste_slots: peak(|step| step.num_waste_slots),
            peak_waiting: peak(|step| step.num_waiting),
            prompt_tokens: counts.iter().map(|(prompt, _)| u64::from(*prompt)).sum(),
            cached_tokens: counts.iter().map(|(_, cached)| u64::from(*cached)).sum(),
            load,
            memory,
            gpu_memory,
        })
    };
    (0..).zip(&run.manifest.engines).filter_map(engine).collect()
}

/// A sum that damaged files cannot overflow.
fn sum(values: impl Iterator<Item = u64>) -> u64 {
    values.fold(0, u64::saturating_add)
}

fn lost(run: &RunData, index: u32) -> u64 {
    let lost = run.journal.iter().filter_map(|entry| match entry.event {
        JournalEvent::TelemetryLost { engine, num_events } if engine == index => Some(num_events),
        _ => None,
    });
    sum(lost)
}

fn load(run: &RunData, index: u32) -> Vec<LoadSummary> {
    let kinds = [
        LoadPhaseKind::Open,
        LoadPhaseKind::Weights,
        LoadPhaseKind::KvPool,
        LoadPhaseKind::Graphs,
        LoadPhaseKind::FirstStep,
    ];
    let summary = |kind: LoadPhaseKind| {
        let found: Vec<_> = run
            .journal
            .iter()
            .filter_map(|entry| match entry.event {
                JournalEvent::LoadPhase { engine, phase, took_ns, bytes }
                    if engine == index && phase == kind =>
                {
                    Some((super::latency::ms(took_ns), bytes))
                }
                _ => None,
            })
            .collect();
        let (_, bytes) = found.last()?;
        let times: Vec<_> = found.iter().map(|(ms, _)| *ms).collect();
        Some(LoadSummary {
            phase: kind,
            n: times.len() as u64,
            mean_ms: mean(&times),
            bytes: *bytes,
        })
    };
    kinds.into_iter().filter_map(summary).collect()
}

/// Of the first load, as the other memory is.
fn gpu_memory(run: &RunData, index: u32) -> Option<GpuMemory> {
    run.journal.iter().find_map(|entry| match entry.event {
        JournalEvent::GpuMemory { engine, memory } if engine == index => Some(memory),
        _ => None,
    })
}

/// Of the first load: later ones reuse what earlier ones freed.
fn memory(run: &RunData, index: u32, steps: &[&StepRecord]) -> Option<MemorySummary> {
    let disturbs = |event: &JournalEvent| {
        matches!(event, JournalEvent::Memory { .. } | JournalEvent::MadeCold { .. })
    };
    let mut loads = run.journal.iter().filter_map(|entry| match entry.event {
        JournalEvent::Memory {
            engine,
            weight_bytes,
            kv_bytes,
            rss_before_bytes,
            rss_after_bytes,
        } if engine == index => {
            let at = entry.at_ns;
            let later =
                run.journal.iter().filter(|other| other.at_ns > at && disturbs(&other.event));
            let until = later.map(|other| other.at_ns).min();
            let rss_peak_bytes = peak_rss(steps, at, until).max(rss_after_bytes);
            let growth = |from: Option<u64>, to: Option<u64>| to?.checked_sub(from?);
            let loading = growth(rss_before_bytes, rss_after_bytes);
            Some(MemorySummary {
                weight_bytes,
                kv_bytes,
                activations_at_most_bytes: growth(rss_after_bytes, rss_peak_bytes),
                other_bytes: loading
                    .and_then(|grown| grown.checked_sub(weight_bytes.saturating_add(kv_bytes))),
                other_at_most_bytes: loading.and_then(|grown| grown.checked_sub(weight_bytes)),
                rss_before_bytes,
                rss_after_bytes,
                rss_peak_bytes,
            })
        }
        _ => None,
    });
    loads.next()
}

fn peak_rss(steps: &[&StepRecord], from: Timestamp, until: Option<Timestamp>) -> Option<u64> {
    let within =
        |step: &&&StepRecord| step.at_ns >= from && until.is_none_or(|until| step.at_ns < until);
    steps.iter().filter(within).filter_map(|step| step.rss_bytes).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::JournalEntry;

    fn at(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    fn step(nanos: u64, rss: u64) -> StepRecord {
        StepRecord {
            engine: 0,
            at_ns: at(nanos),
            took_ns: 2_000_000,
            num_tokens: 1,
            num_prefill_tokens: 0,
            num_seqs: 1,
            num_decode_kv_tokens: None,
            num_prefill_pairs: None,
            num_waiting: 0,
            num_used_blocks: nanos,
            num_free_blocks: 100 - nanos,
            num_cached_blocks: 0,
            num_waste_slots: 3,
            num_preemptions: 1,
            rss_bytes: Some(rss),
        }
    }

    /// A run whose loads add `grown` bytes each to the process.
    fn run(grown: u64, steps: Vec<StepRecord>) -> RunData {
        let memory = |nanos, before| JournalEntry {
            at_ns: at(nanos),
            event: JournalEvent::Memory {
                engine: 0,
                weight_bytes: 100,
                kv_bytes: 50,
                rss_before_bytes: Some(before),
                rss_after_bytes: Some(before + grown),
            },
        };
        let journal = vec![memory(10, 1000), memory(30, 5000)];
        RunData {
            journal,
            steps,
            ..crate::stats::case::tests::run(&["ours:embedded", "theirs:vllm"], Vec::new())
        }
    }

    #[test]
    fn memory_is_that_of_the_first_load_until_anything_else_is_loaded() {
        let inside = summarise(&run(160, vec![step(20, 1190), step(40, 9000)]), &[]);
        let [ours] = inside.as_slice() else { panic!("{inside:?}") };
        assert_eq!((ours.num_steps, ours.num_preemptions), (2, 2));
        assert_eq!((ours.peak_used_blocks, ours.num_blocks), (Some(40), Some(100)));
        let memory = ours.memory.as_ref().unwrap();
        assert_eq!(
            (memory.rss_peak_bytes, memory.activations_at_most_bytes),
            (Some(1190), Some(30))
        );
        assert_eq!((memory.other_bytes, memory.other_at_most_bytes), (Some(10), Some(60)));
    }

    #[test]
    fn growth_below_the_parts_is_a_bound_and_no_negative_number() {
        let inside = summarise(&run(110, vec![step(20, 1120)]), &[]);
        let memory = inside[0].memory.as_ref().unwrap();
        assert_eq!((memory.other_bytes, memory.other_at_most_bytes), (None, Some(10)));
        assert_eq!(memory.activations_at_most_bytes, Some(10));
    }
}
