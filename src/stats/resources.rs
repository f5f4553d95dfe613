//! What was used while each case was measured: memory, processors, GPUs, and
//! what engines said of themselves. Formulas are in `docs/METRICS.md`; looks
//! and their windows in `window`, memory by part in `memory`.

pub mod memory;
pub mod neighbour;
pub mod series;
mod window;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::{GpuIdentity, JournalEvent, ResourceSource, RunData};

use super::case::CaseRequests;
use super::distribution::{mean, median};
pub use memory::{MemoryPart, MemorySplit};
pub use neighbour::Neighbour;
use window::{Looks, Window};

/// Everything that the probe's lines say, derived.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Looks a second that were asked for.
    pub asked_hz: Option<f64>,
    /// Looks at processes and GPUs.
    pub num_looks: u64,
    /// Looks a second that were made: looks after the first over the time from first to last,
    /// without the one that is taken as the probe is stopped.
    pub achieved_hz: Option<f64>,
    /// Longest time between two looks.
    pub longest_gap_ms: Option<f64>,
    /// Share of one processor that the probe's own threads used.
    pub probe_cpu_share: Option<f64>,
    /// GPUs over the whole run.
    pub gpus: Vec<GpuSummary>,
    /// Memory by part, an engine each.
    pub memory: Vec<MemorySplit>,
    /// Measured cases, in the manifest's order.
    pub cases: Vec<CaseResources>,
    /// What could not be read, and why.
    pub unread: Vec<Unread>,
}

/// One GPU over the whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuSummary {
    /// Index, name, memory and limits.
    #[serde(flatten)]
    pub identity: GpuIdentity,
    /// The most memory that was in use, by whomever.
    pub peak_used_bytes: Option<u64>,
    /// Highest temperature.
    pub peak_temperature_c: Option<u32>,
    /// Highest power draw.
    pub peak_power_w: Option<f64>,
}

/// A quantity over the looks of a case.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// The most.
    pub peak: f64,
    /// The median over the looks.
    pub median: f64,
}

/// What one case used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseResources {
    /// Index in the manifest.
    pub case: u32,
    /// Engine name.
    pub engine: String,
    /// Experiment name.
    pub experiment: String,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// Looks at processes and GPUs in it.
    pub num_looks: u64,
    /// Resident memory of the engine's processes; of this process for an embedded engine.
    pub rss_bytes: Option<Level>,
    /// Processors that they used, on average.
    pub cpu_share: Option<f64>,
    /// Page faults of theirs that had to read.
    pub major_faults: Option<u64>,
    /// Resident memory of this process.
    pub client_rss_bytes: Option<Level>,
    /// How the GPUs that count here were found: `process` or `activity`; null where there are none.
    pub gpus_by: Option<GpusBy>,
    /// GPU memory: of the engine's processes by `process`, else of the whole GPUs.
    pub gpu_bytes: Option<Level>,
    /// Mean over looks and GPUs.
    pub gpu_utilization_percent: Option<f64>,
    /// Mean power of the GPUs together.
    pub power_w: Option<f64>,
    /// Energy of the GPUs together, idle power included.
    pub energy_j: Option<f64>,
    /// That energy over the output tokens of the case.
    pub energy_per_output_token_j: Option<f64>,
    /// Median clock of the multiprocessors.
    pub sm_clock_mhz: Option<f64>,
    /// Highest temperature.
    pub temperature_c: Option<u32>,
    /// Share of the looks in which something held the clocks down, by its name.
    pub throttled: BTreeMap<String, f64>,
    /// Share of the KV cache in use, by the engine's own word.
    pub kv_usage: Option<Level>,
    /// The most requests that it computed at once, by its own word.
    pub peak_running: Option<u64>,
    /// The most requests that waited in it, by its own word.
    pub peak_waiting: Option<u64>,
    /// Sequences that it sent back to its queue.
    pub preemptions: Option<u64>,
    /// Prompt tokens that it looked up in its prefix cache.
    pub prefix_queries: Option<u64>,
    /// Of those, tokens that it found.
    pub prefix_hits: Option<u64>,
    /// Other engines that held memory meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<Neighbour>,
}

/// How it was found which GPUs an engine uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpusBy {
    /// The driver's process table names processes of the engine.
    Process,
    /// It does not, and these computed while the case was measured.
    Activity,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// Engine it is about, if one.
    pub engine: Option<String>,
    /// Where it would come from.
    pub source: ResourceSource,
    /// What it is.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// Derives what was used; `None` for a run without a probe.
#[must_use]
pub fn summarise(run: &RunData, grouped: &[CaseRequests<'_>]) -> Option<Resources> {
    let started = run.journal.iter().find_map(|entry| match &entry.event {
        JournalEvent::ProbeStarted { interval_ns, gpus } => Some((*interval_ns, gpus)),
        _ => None,
    });
    if started.is_none() && run.resources.is_empty() {
        return None;
    }
    let looks = Looks::new(run);
    let interval_ms = started.map(|(interval_ns, _)| super::latency::ms(interval_ns));
    let identities = started.map_or(&[][..], |(_, gpus)| gpus);
    let measured = grouped.iter().filter(|group| !group.requests.is_empty());
    let cases: Vec<CaseResources> = measured.map(|group| case(run, &looks, group)).collect();
    Some(Resources {
        asked_hz: interval_ms.filter(|ms| *ms > 0.0).map(|ms| 1e3 / ms),
        num_looks: looks.len() as u64,
        achieved_hz: looks.rate_hz(),
        longest_gap_ms: looks.longest_gap_ms(),
        probe_cpu_share: looks.probe_cpu_share(),
        gpus: identities.iter().map(|identity| gpu(identity, &looks)).collect(),
        memory: memory::split(run, &looks, &cases),
        cases,
        unread: unread(run),
    })
}

fn gpu(identity: &GpuIdentity, looks: &Looks<'_>) -> GpuSummary {
    let samples = || looks.gpu_samples(identity.gpu);
    GpuSummary {
        identity: identity.clone(),
        peak_used_bytes: samples().filter_map(|sample| sample.used_bytes).max(),
        peak_temperature_c: samples().filter_map(|sample| sample.temperature_c).max(),
        peak_power_w: samples().filter_map(|s| s.power_mw).max().map(|mw| f64::from(mw) / 1e3),
    }
}

fn case(run: &RunData, looks: &Looks<'_>, group: &CaseRequests<'_>) -> CaseResources {
    let record = group.record;
    let engine = run.manifest.engines.iter().position(|e| e.spec.name == record.engine);
    let window = Window::of_case(run, looks, group.case, engine);
    let gpus = window.gpus();
    let energy_j = window.energy_j(&gpus);
    let tokens: u64 =
        group.requests.iter().filter_map(|request| request.num_output_tokens).map(u64::from).sum();
    CaseResources {
        case: group.case,
        engine: record.engine.clone(),
        experiment: record.experiment.clone(),
        concurrency: record.concurrency,
        num_looks: window.num_looks(),
        rss_bytes: level(window.engine_processes().map(|process| process.rss_bytes as f64)),
        cpu_share: window.cpu_share(),
        major_faults: window.major_faults(),
        client_rss_bytes: level(window.own_process().map(|process| process.rss_bytes as f64)),
        gpus_by: gpus.by,
        gpu_bytes: level(window.gpu_bytes(&gpus).into_iter()),
        gpu_utilization_percent: mean(&window.utilization(&gpus)),
        power_w: window.power_w(&gpus),
        energy_j,
        energy_per_output_token_j: energy_j.filter(|_| tokens > 0).map(|j| j / tokens as f64),
        sm_clock_mhz: median(
            window.samples(&gpus).filter_map(|sample| sample.sm_clock_mhz).map(f64::from),
        ),
        temperature_c: window.samples(&gpus).filter_map(|sample| sample.temperature_c).max(),
        throttled: window.throttled(&gpus),
        kv_usage: level(window.words().filter_map(|word| word.kv_usage)),
        peak_running: window.words().filter_map(|word| word.num_running).max(),
        peak_waiting: window.words().filter_map(|word| word.num_waiting).max(),
        preemptions: window.counted(|word| word.preemptions),
        prefix_queries: window.counted(|word| word.prefix_queries),
        prefix_hits: window.counted(|word| word.prefix_hits),
        neighbours: neighbour::find(run, &window, &gpus),
    }
}

/// Peak and median; `None` of nothing.
fn level(values: impl Iterator<Item = f64>) -> Option<Level> {
    let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    let peak = values.iter().copied().reduce(f64::max)?;
    Some(Level { peak, median: median(values)? })
}

/// Each thing once, though the probe may have told it for several reasons.
fn unread(run: &RunData) -> Vec<Unread> {
    let mut found: Vec<Unread> = Vec::new();
    for entry in &run.journal {
        let JournalEvent::ResourceAbsent { source, engine, what, reason } = &entry.event else {
            continue;
        };
        let engine = engine.and_then(|index| run.manifest.engines.get(index as usize));
        let unread = Unread {
            engine: engine.map(|engine| engine.spec.name.clone()),
            source: *source,
            what: what.clone(),
            reason: reason.clone(),
        };
        if !found.contains(&unread) {
            found.push(unread);
        }
    }
    found
}
