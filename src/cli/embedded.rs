//! The embedded engine's options, shared by the verbs that open it.

use std::num::NonZeroUsize;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::progress::DownloadProgress;
use crate::catalog::card::DEFAULT_MODEL;
use crate::catalog::{LocateOptions, Located, locate};
use crate::clock::Clock;
use crate::infer::{ComputeDevice, ComputeDtype, EngineConfig, EngineHost, InferError, KvBudget};
use crate::units;

/// Seed of dummy weights where the verb's own seed means something else.
const DUMMY_SEED: u64 = 0;

/// Where the weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LoadFormat {
    /// The model's own weights
    #[default]
    Auto,
    /// Seeded noise of the model's exact shapes: speeds are real, texts are not
    Dummy,
}

/// What the linear layers compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Dtype {
    /// As the weights are stored: bf16, f32 (f16 too), or GGUF blocks; noise in bf16
    #[default]
    Auto,
    /// Weights widened to f32 as they are loaded: exact, four bytes a weight
    F32,
    /// Weights, activations, K and V rounded to bf16, sums in f32
    Bf16,
    /// The same in IEEE's half precision; on CUDA devices
    F16,
    /// GGUF blocks multiplied as they are, activations rounded to 8 bits
    Quantized,
}

/// Options of the embedded engine.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine options")]
pub struct EmbeddedArgs {
    /// Model card, GGUF file, or folder with config.json, safetensors and tokenizer.json
    #[arg(long, value_name = "NAME|PATH", default_value = DEFAULT_MODEL)]
    model: String,
    /// Weights to load: the model's own, or seeded noise of its shapes
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    load_format: LoadFormat,
    /// Look for the model only on this machine
    #[arg(long)]
    offline: bool,
    /// Where the model runs: auto, cpu, cuda, or cuda:N for another than the first GPU;
    /// auto is cuda where this build has it and a GPU answers, else cpu
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device)]
    device: DeviceChoice,
    /// What the linear layers compute in
    #[arg(long, value_enum, default_value_t)]
    dtype: Dtype,
    /// Longest sequence in tokens [default: the model's, cut to what the KV pool holds]
    #[arg(long, value_name = "N")]
    max_model_len: Option<NonZeroUsize>,
    /// Tokens in a KV block
    #[arg(long, value_name = "N", default_value = "16")]
    block_size: NonZeroUsize,
    /// KV pool in blocks [default on the CPU: a few sequences of the model's length, at most
    /// 1 GiB; on a GPU what gpu-memory-utilization leaves]
    #[arg(long, value_name = "N", conflicts_with = "kv_memory")]
    kv_blocks: Option<NonZeroUsize>,
    /// KV pool in bytes, such as 512MiB
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    kv_memory: Option<u64>,
    /// Share of a GPU's memory that may be in use, others' included, once the KV pool has
    /// taken what is left of it
    #[arg(long, value_name = "SHARE", default_value = "0.9")]
    gpu_memory_utilization: f64,
    /// Submit every operation of a GPU's decode step, instead of replaying the step as a graph
    #[arg(long)]
    no_cuda_graphs: bool,
    /// Sequences in one step
    #[arg(long, value_name = "N", default_value = "64")]
    max_num_seqs: NonZeroUsize,
    /// Tokens in one step, prompts included
    #[arg(long, value_name = "N", default_value = "2048")]
    max_num_batched_tokens: NonZeroUsize,
    /// Compute every prompt from its first token, keeping no K and V of earlier ones
    #[arg(long)]
    no_prefix_caching: bool,
    /// Threads that compute [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// The same tokens whatever else is in the batch; always so on the CPU, where it
    /// cannot be switched off, and refused on a GPU
    #[arg(long)]
    deterministic: bool,
}

/// A model that was found and opened; its weights are not loaded yet.
pub struct Opened {
    /// The engine.
    pub host: EngineHost,
    /// Where the model was found, for people.
    pub origin: String,
}

impl EmbeddedArgs {
    /// The model as the user named it.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The name by which a server offers the model: a card's name, or the last
    /// part of a path, which tells nobody where the file lies.
    #[must_use]
    pub fn served_name(&self) -> String {
        let file = std::path::Path::new(&self.model).file_name();
        file.map_or_else(|| self.model.clone(), |name| name.to_string_lossy().into_owned())
    }

    /// Finds the model, downloading it where it must, and opens it.
    ///
    /// # Errors
    /// When the device is not there, the model cannot be found, its files
    /// are damaged, or the settings do not fit it.
    pub fn open(&self, clock: &Clock) -> anyhow::Result<Opened> {
        let DeviceChoice(device) = self.device;
        // Before anything is downloaded for it.
        let device = ComputeDevice::resolve(device).map_err(unavailable)?;
        if self.deterministic && device != ComputeDevice::Cpu {
            return Err(Failure::new(
                "--deterministic holds on the CPU only: cuBLAS may add a row up in another order \
                 in another batch",
            )
            .with_hint("choose --device cpu, or leave --deterministic out")
            .into());
        }
        let mut progress = DownloadProgress::new();
        let dummy = (self.load_format == LoadFormat::Dummy).then_some(DUMMY_SEED);
        let options = LocateOptions { dummy, offline: self.offline };
        let Located { source, origin, .. } =
            locate(&self.model, &options, &mut |report| progress.show(report))?;
        let host = EngineHost::open(&source, self.config(), clock.clone())?;
        Ok(Opened { host, origin })
    }

    fn config(&self) -> EngineConfig {
        EngineConfig {
            max_model_len: self.max_model_len.map(NonZeroUsize::get),
            block_size: self.block_size.get(),
            kv: match (self.kv_blocks, self.kv_memory) {
                (Some(blocks), _) => KvBudget::Blocks(blocks.get()),
                (None, Some(bytes)) => KvBudget::Bytes(bytes),
                (None, None) => KvBudget::Auto,
            },
            max_num_seqs: self.max_num_seqs.get(),
            max_num_batched_tokens: self.max_num_batched_tokens.get(),
            enable_prefix_caching: !self.no_prefix_caching,
            device: self.device.0,
            gpu_memory_utilization: self.gpu_memory_utilization,
            cuda_graphs: !self.no_cuda_graphs,
            threads: self.threads.map(NonZeroUsize::get),
            dtype: match self.dtype {
                Dtype::Auto => None,
                Dtype::F32 => Some(ComputeDtype::F32),
                Dtype::Bf16 => Some(ComputeDtype::Bf16),
                Dtype::F16 => Some(ComputeDtype::F16),
                Dtype::Quantized => Some(ComputeDtype::Quantized),
            },
            ..EngineConfig::default()
        }
    }
}

/// Loads the weights off this thread; `false` if the user did not wait for it.
///
/// # Errors
/// When a weight file is damaged or memory is short.
pub async fn load(host: &EngineHost, cancel: &CancellationToken) -> anyhow::Result<bool> {
    let host = host.clone();
    let loading = tokio::task::spawn_blocking(move || host.load());
    tokio::select! {
        () = cancel.cancelled() => Ok(false),
        loaded = loading => {
            loaded.context("loading the weights was cut short")??;
            Ok(true)
        }
    }
}

/// What `--device` names; `None` is for the engine to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DeviceChoice(Option<ComputeDevice>);

fn device(text: &str) -> Result<DeviceChoice, String> {
    match text {
        "auto" => Ok(DeviceChoice(None)),
        other => other.parse().map(|device| DeviceChoice(Some(device))),
    }
}

fn unavailable(error: InferError) -> Failure {
    Failure::new(error.to_string()).with_hint(
        "leave --device out to run on what there is; engines that use the GPU can be measured over \
         HTTP with `yardstick run --engine vllm` or `--engine ollama`",
    )
}
