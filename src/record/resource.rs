//! One line of `resources.jsonl`: what engines, this process and the GPUs used
//! at an instant. A field that was not read is left out; why is in the journal.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// What one look of the probe saw. A line holds the processes and GPUs of one
/// tick, or an engine's own word, which comes at a slower pace.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceRecord {
    /// When the look began.
    pub at_ns: Timestamp,
    /// Processor time that the probe's own threads have used so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_cpu_ns: Option<u64>,
    /// This process, and the process tree of each engine that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<ProcessSample>,
    /// The GPUs, in the driver's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuSample>,
    /// What an engine said of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub word: Option<EngineWord>,
}

/// A process with all of its descendants.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSample {
    /// Index of the engine in the manifest; absent for yardstick itself, whose
    /// children are not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<u32>,
    /// Process at the root of the tree.
    pub pid: u32,
    /// Processes in the tree.
    pub num_processes: u32,
    /// Resident memory, summed: pages that processes share count in each.
    pub rss_bytes: u64,
    /// Of that, memory that is no file: what the processes made themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anon_bytes: Option<u64>,
    /// Resident memory with shared pages divided among their holders; read
    /// once a second, and no more where reading it is slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pss_bytes: Option<u64>,
    /// Processor time used so far, user and system, ended children included.
    pub cpu_ns: u64,
    /// Page faults so far that had to read.
    pub major_faults: u64,
    /// Bytes read from storage so far, of the processes that live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
}

/// A GPU as NVML reports it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuSample {
    /// Index in the driver's order.
    pub gpu: u32,
    /// Memory in use, by whomever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Share of the last sample period of the driver in which a kernel ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization_percent: Option<u32>,
    /// Share of that period in which memory was read or written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_utilization_percent: Option<u32>,
    /// Power draw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_mw: Option<u32>,
    /// Energy since the driver was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_mj: Option<u64>,
    /// Clock of the multiprocessors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sm_clock_mhz: Option<u32>,
    /// Clock of the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_clock_mhz: Option<u32>,
    /// Temperature of the chip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
    /// What holds the clocks down, in NVML's words; absent where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<Vec<String>>,
    /// Memory by process, at most 64 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<GpuProcess>,
}

/// Memory of one process on one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuProcess {
    /// The process, in the driver's numbering: in a container it may not be ours.
    pub pid: u32,
    /// Index of the engine in whose tree it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<u32>,
    /// Memory in use; absent where the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
}

/// What an engine said of itself when it was asked: `/metrics`, `/slots`, `/api/ps`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineWord {
    /// Index of the engine in the manifest.
    pub engine: u32,
    /// From the question to the whole answer.
    pub took_ns: u64,
    /// Requests that it computes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_running: Option<u64>,
    /// Requests that wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_waiting: Option<u64>,
    /// Requests that it can compute at once, where it has slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_slots: Option<u64>,
    /// Share of its KV cache that is in use, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_usage: Option<f64>,
    /// Its KV cache in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_bytes: Option<u64>,
    /// Its KV cache in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_tokens: Option<u64>,
    /// Its KV cache in blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_blocks: Option<u64>,
    /// Sequences sent back to the queue so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preemptions: Option<u64>,
    /// Prompt tokens that it looked up in its prefix cache so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_queries: Option<u64>,
    /// Of those, tokens that it found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_hits: Option<u64>,
    /// Prompt tokens computed or found so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Tokens generated so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// Memory of the models that it has loaded: weights, KV cache and buffers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_bytes: Option<u64>,
    /// Of that, what lies on GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_gpu_bytes: Option<u64>,
}

/// Where a sample comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResourceSource {
    /// NVML, the driver's library.
    Nvml,
    /// `/proc` of this machine.
    Procfs,
    /// The engine's own word.
    Engine,
}

/// What is known of a GPU before anything is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuIdentity {
    /// Index in the driver's order.
    pub gpu: u32,
    /// Product name.
    pub name: String,
    /// Memory as the driver reports it.
    pub total_bytes: Option<u64>,
    /// Power at which the driver lowers the clocks.
    pub power_limit_mw: Option<u32>,
    /// Highest clock of the multiprocessors.
    pub max_sm_clock_mhz: Option<u32>,
}
