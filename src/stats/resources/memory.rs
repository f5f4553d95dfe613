//! An engine's memory by part: what was there before, weights, the KV cache as
//! reserved and as used, the peak. Every part names its source, or why it is absent.

use serde::{Deserialize, Serialize};

use super::window::Looks;
use super::{CaseResources, GpusBy};
use crate::engine::EngineKind;
use crate::record::{EngineRecord, JournalEvent, RunData};

/// Memory of one engine by part, over the whole run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySplit {
    /// Engine name.
    pub engine: String,
    /// Whether the parts lie in GPU memory; else in the host's.
    pub on_gpu: bool,
    /// In use before the engine loaded.
    pub baseline: MemoryPart,
    /// The weights.
    pub weights: MemoryPart,
    /// The KV cache as reserved.
    pub kv_reserved: MemoryPart,
    /// The most of it that was in use.
    pub kv_used_peak: MemoryPart,
    /// How much of it was in use on average.
    pub kv_used_mean: MemoryPart,
    /// Weights, KV cache and buffers as one sum, where the engine tells no parts.
    pub told_total: MemoryPart,
    /// The most that was in use.
    pub peak: MemoryPart,
}

/// One part: a number with its source, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPart {
    /// How much.
    pub bytes: Option<u64>,
    /// Who says so, or why nobody does.
    pub source: String,
}

impl MemoryPart {
    fn of(bytes: u64, source: &str) -> Self {
        Self { bytes: Some(bytes), source: source.to_owned() }
    }

    fn absent(reason: &str) -> Self {
        Self { bytes: None, source: reason.to_owned() }
    }

    /// `bytes`, or else the reason.
    fn or(bytes: Option<u64>, source: &str, reason: &str) -> Self {
        bytes.map_or_else(|| Self::absent(reason), |bytes| Self::of(bytes, source))
    }
}

const ENGINE: &str = "the engine's word";
const NVML: &str = "NVML, by process";
const DEVICE: &str = "NVML, whole GPU";
const PROCFS: &str = "/proc";

/// The engines that were measured, in the manifest's order.
pub(super) fn split(run: &RunData, looks: &Looks<'_>, cases: &[CaseResources]) -> Vec<MemorySplit> {
    let engines = (0..).zip(&run.manifest.engines);
    let measured =
        engines.filter(|(_, engine)| cases.iter().any(|case| case.engine == engine.spec.name));
    measured.map(|(index, engine)| of_engine(run, looks, cases, index, engine)).collect()
}

fn of_engine(
    run: &RunData,
    looks: &Looks<'_>,
    cases: &[CaseResources],
    index: u32,
    engine: &EngineRecord,
) -> MemorySplit {
    let told = Told::find(run, index);
    let own = || cases.iter().filter(|case| case.engine == engine.spec.name);
    // A GPU that was busy with something else is no proof of the engine's: an
    // engine in this process is on a GPU if it says so, others if they use one.
    let is_embedded = engine.spec.kind == EngineKind::Embedded;
    let by = own().filter_map(|case| case.gpus_by).max_by_key(|by| *by == GpusBy::Process);
    let on_gpu = if is_embedded { told.on_gpu } else { by.is_some() };
    let peak_of = |level: fn(&CaseResources) -> Option<super::Level>| {
        own().filter_map(level).map(|level| level.peak).reduce(f64::max).map(whole)
    };
    let peak = if on_gpu {
        let source = if by == Some(GpusBy::Process) { NVML } else { DEVICE };
        MemoryPart::or(peak_of(|case| case.gpu_bytes), source, "NVML did not say")
    } else {
        let source = if is_embedded { "/proc, the whole of this process" } else { PROCFS };
        MemoryPart::or(peak_of(|case| case.rss_bytes), source, &no_process(run, index))
    };
    let words = || looks.words_of(index);
    let reserved = told.kv_bytes.or_else(|| words().filter_map(|word| word.kv_bytes).last());
    let usage = if is_embedded {
        told.kv_usage.clone()
    } else {
        words().filter_map(|word| word.kv_usage).collect()
    };
    let used = |share: Option<f64>| {
        let bytes = reserved.zip(share).map(|(bytes, share)| whole(bytes as f64 * share));
        let why = if reserved.is_none() {
            "the engine does not say how much it reserved"
        } else {
            "the engine does not say how much it used"
        };
        MemoryPart::or(bytes, ENGINE, why)
    };
    MemorySplit {
        engine: engine.spec.name.clone(),
        on_gpu,
        baseline: baseline(looks, index, &told, on_gpu, by),
        weights: MemoryPart::or(
            told.weight_bytes.or_else(|| tensors(engine)),
            ENGINE,
            no_weights(engine),
        ),
        kv_reserved: MemoryPart::or(reserved, ENGINE, "the engine does not say"),
        kv_used_peak: used(usage.iter().copied().reduce(f64::max)),
        kv_used_mean: used(crate::stats::distribution::mean(&usage)),
        told_total: MemoryPart::or(
            words().filter_map(|word| word.model_bytes).max().filter(|bytes| *bytes > 0),
            ENGINE,
            "the engine gives no such sum",
        ),
        peak,
    }
}

/// What an engine in this process told of its memory.
#[derive(Default)]
struct Told {
    on_gpu: bool,
    weight_bytes: Option<u64>,
    kv_bytes: Option<u64>,
    before_bytes: Option<u64>,
    /// Share of the blocks that sequences held, a value a step.
    kv_usage: Vec<f64>,
}

impl Told {
    fn find(run: &RunData, index: u32) -> Self {
        let mut told = Self::default();
        for entry in &run.journal {
            match &entry.event {
                JournalEvent::GpuMemory { engine, memory } if *engine == index && !told.on_gpu => {
                    told.on_gpu = true;
                    told.weight_bytes = Some(memory.weight_bytes);
                    told.kv_bytes = Some(memory.kv_bytes);
                    told.before_bytes = Some(memory.context_bytes);
                }
                JournalEvent::Memory {
                    engine, weight_bytes, kv_bytes, rss_before_bytes, ..
                } if *engine == index && told.weight_bytes.is_none() => {
                    told.weight_bytes = Some(*weight_bytes);
                    told.kv_bytes = Some(*kv_bytes);
                    told.before_bytes = *rss_before_bytes;
                }
                _ => {}
            }
        }
        let steps = run.steps.iter().filter(|step| step.engine == index);
        let share = |step: &crate::record::StepRecord| {
            let all = step.num_used_blocks.saturating_add(step.num_free_blocks);
            (all > 0).then(|| step.num_used_blocks as f64 / all as f64)
        };
        told.kv_usage = steps.filter_map(share).collect();
        told
    }
}

fn baseline(
    looks: &Looks<'_>,
    index: u32,
    told: &Told,
    on_gpu: bool,
    by: Option<GpusBy>,
) -> MemoryPart {
    if let Some(bytes) = told.before_bytes {
        return MemoryPart::of(bytes, ENGINE);
    }
    if !on_gpu {
        return MemoryPart::absent("its own processes hold nothing before they start");
    }
    if by != Some(GpusBy::Process) {
        return MemoryPart::absent(
            "NVML names no process of the engine, so nothing tells it from others",
        );
    }
    // What others hold on the engine's GPUs: the least over the looks.
    let others = looks.all().iter().filter_map(|look| {
        let on =
            look.gpus.iter().filter(|gpu| gpu.processes.iter().any(|p| p.engine == Some(index)));
        on.map(|gpu| {
            let own = gpu.processes.iter().filter(|process| process.engine == Some(index));
            let own = own.filter_map(|process| process.used_bytes).fold(0, u64::saturating_add);
            Some(gpu.used_bytes?.saturating_sub(own))
        })
        .reduce(|sum, next| Some(sum?.saturating_add(next?)))
        .flatten()
    });
    MemoryPart::or(others.min(), "NVML, whole GPU less the engine's processes", "NVML did not say")
}

/// Bytes of the tensors as llama-server's `/v1/models` gives them.
fn tensors(engine: &EngineRecord) -> Option<u64> {
    engine.info.as_ref()?.settings.get("meta.size")?.parse().ok()
}

fn no_weights(engine: &EngineRecord) -> &'static str {
    match engine.spec.kind {
        EngineKind::Ollama => "Ollama tells weights, KV cache and buffers as one sum",
        EngineKind::Vllm => "vLLM says it in its log only",
        EngineKind::Embedded => "nothing was loaded while the run was on",
        EngineKind::Openai => "the engine does not say",
    }
}

/// Why an engine's processes were not looked at.
fn no_process(run: &RunData, index: u32) -> String {
    let told = run.journal.iter().rev().find_map(|entry| match &entry.event {
        JournalEvent::ResourceAbsent {
            source: crate::record::ResourceSource::Procfs,
            engine,
            reason,
            ..
        } if engine.is_none_or(|engine| engine == index) => Some(reason.clone()),
        _ => None,
    });
    told.unwrap_or_else(|| "no look fell into its cases".to_owned())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "memory is not negative and below 2^52 bytes"
)]
fn whole(bytes: f64) -> u64 {
    bytes.round() as u64
}
