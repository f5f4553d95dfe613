//! The options of `yardstick size`: which GPU, which settings, which known parts.

use clap::{Args, ValueEnum};

use crate::cli::Failure;
use crate::hardware::{self, GpuCard, find_gpu_card_named, gpu_cards};
use crate::infer::EngineConfig;
use crate::plan;
use crate::sizing::amount::gib;
use crate::sizing::embedded;
use crate::sizing::{GpuMemory, KvType, Lengths, MaxModelLen, Settings, Version};

/// Which GPU.
#[derive(Debug, Args)]
#[command(next_help_heading = "GPU")]
pub(super) struct GpuArgs {
    /// GPU card, such as l4 [default: the GPU of this machine]
    #[arg(long, value_name = "NAME", conflicts_with = "gpu_memory_gib")]
    gpu: Option<String>,
    /// Memory as the CUDA runtime tells it (cudaMemGetInfo), less than NVML's
    #[arg(long, value_name = "GIB", value_parser = size, allow_negative_numbers = true)]
    gpu_memory_gib: Option<u64>,
}

impl GpuArgs {
    /// Whether one was named.
    pub(super) const fn is_given(&self) -> bool {
        self.gpu.is_some() || self.gpu_memory_gib.is_some()
    }

    /// The card that was named.
    pub(super) fn card(&self) -> Result<Option<&'static GpuCard>, Failure> {
        let Some(name) = &self.gpu else { return Ok(None) };
        let card = find_gpu_card_named(name).ok_or_else(|| {
            Failure::new(format!("GPU `{name}` is not known, expected one of {}", card_names()))
                .with_hint("--gpu-memory-gib takes the memory of any other")
        })?;
        Ok(Some(card))
    }

    /// The GPU's memory.
    pub(super) fn memory(&self) -> anyhow::Result<GpuMemory> {
        if let Some(bytes) = self.gpu_memory_gib {
            return Ok(GpuMemory::given(bytes));
        }
        if let Some(card) = self.card()? {
            return Ok(GpuMemory::of_card(card).ok_or_else(|| {
                Failure::new(format!("the memory of {} is not known here", card.name))
                    .with_hint("give it with --gpu-memory-gib")
            })?);
        }
        let facts = hardware::gpu::read();
        let Some(gpu) = facts.gpus.first() else {
            let why = facts.absent.as_deref().unwrap_or("none was found");
            return Err(Failure::new(format!(
                "no GPU was named, and this machine has none: {why}"
            ))
            .with_hint(format!("give --gpu ({}) or --gpu-memory-gib", card_names()))
            .into());
        };
        Ok(GpuMemory::of_nvml(&gpu.name, gpu.memory_bytes))
    }
}

fn card_names() -> String {
    gpu_cards().iter().map(|card| card.name.clone()).collect::<Vec<_>>().join(", ")
}

/// What the linear layers compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    /// As the weights are stored
    Auto,
    /// Two bytes
    Bf16,
    /// Two bytes
    F16,
    /// Four bytes
    F32,
}

/// Settings and known parts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub(super) struct SettingsArgs {
    /// Rules of this version of vLLM, such as 0.7 [default: 0.7, the last with V0, and 0.21]
    #[arg(long, value_name = "VERSION")]
    vllm_version: Option<Version>,
    /// Rules of this version of Ollama [default: that of August 2026]
    #[arg(long, value_name = "VERSION")]
    ollama_version: Option<Version>,
    /// Share of the GPU's memory for the engine [default: 0.9, vLLM from 0.20 on 0.92]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(super) gpu_memory_utilization: Option<f64>,
    /// Longest sequence in tokens, or auto for what fits (vLLM); num_ctx of Ollama
    /// [default: the model's; Ollama: by the GPU's memory]
    #[arg(long, value_name = "N", value_parser = max_model_len, allow_negative_numbers = true)]
    max_model_len: Option<MaxModelLen>,
    /// Tokens in a KV block [default: 16]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    block_size: Option<u64>,
    /// What weights and activations are computed in
    #[arg(long, value_enum, value_name = "DTYPE", default_value = "auto")]
    dtype: Dtype,
    /// What K and V are stored as: auto, f32, bf16, f16, fp8 (vLLM), q8_0 or q4_0 (Ollama)
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = kv_type)]
    kv_cache_dtype: KvChoice,
    /// Sequences in one step [default: vLLM 256, on GPUs from 70 GiB on 1024; embedded 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_num_seqs: Option<u64>,
    /// Tokens in one step [default: by version, GPU and length]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_num_batched_tokens: Option<u64>,
    /// Ollama's slots, OLLAMA_NUM_PARALLEL [default: 1, before 0.6 4]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    num_parallel: Option<u64>,
    /// Tokens of a prompt, to ask how many requests fit at once; --simulate also takes
    /// uniform:LEAST-MOST, normal:MEAN,SD and lognormal:MEAN,SD, and without it 512
    #[arg(long, value_name = "LENGTHS", allow_negative_numbers = true)]
    pub(super) prompt_tokens: Option<plan::Lengths>,
    /// Tokens of an answer, in the same words; --simulate without it 128
    #[arg(long, value_name = "LENGTHS", allow_negative_numbers = true)]
    pub(super) output_tokens: Option<plan::Lengths>,
    #[command(flatten)]
    known: KnownArgs,
}

/// Parts whose size is known, from an engine's log.
#[derive(Debug, Args)]
#[command(next_help_heading = "Known parts")]
struct KnownArgs {
    /// Weights, as vLLM logs `model weights take`
    #[arg(long, value_name = "GIB", value_parser = size, allow_negative_numbers = true)]
    weights_gib: Option<u64>,
    /// Peak of activations, as vLLM logs it
    #[arg(long, value_name = "GIB", value_parser = size_or_none, allow_negative_numbers = true)]
    activation_gib: Option<u64>,
    /// Memory beside the allocator, as vLLM logs it
    #[arg(long, value_name = "GIB", value_parser = size_or_none, allow_negative_numbers = true)]
    non_torch_gib: Option<u64>,
    /// CUDA graphs, as vLLM logs them
    #[arg(long, value_name = "GIB", value_parser = size_or_none, allow_negative_numbers = true)]
    cuda_graph_gib: Option<u64>,
    /// The pool itself: vLLM's option of this name, --kv-memory of the embedded engine
    #[arg(long, value_name = "BYTES", value_parser = crate::units::parse_bytes)]
    kv_cache_memory_bytes: Option<u64>,
}

impl SettingsArgs {
    /// Puts the limits of the embedded engine into `config`.
    pub(super) fn limit(&self, config: &mut EngineConfig) -> Result<(), String> {
        let settings = self.unchecked(None);
        settings.check()?;
        embedded::limit(&settings, config)
    }

    /// The pool in bytes, where it was given.
    pub(super) const fn kv_cache_memory_bytes(&self) -> Option<u64> {
        self.known.kv_cache_memory_bytes
    }

    /// Whose rules for vLLM.
    pub(super) const fn vllm_version(&self) -> Option<Version> {
        self.vllm_version
    }

    /// Whose rules for Ollama.
    pub(super) const fn ollama_version(&self) -> Option<Version> {
        self.ollama_version
    }

    /// The settings, checked.
    pub(super) fn settings(&self) -> Result<Settings, String> {
        let fixed = |option: &str, lengths: Option<plan::Lengths>| match lengths {
            None => Ok(None),
            Some(plan::Lengths::Fixed(tokens)) => Ok(Some(u64::from(tokens))),
            Some(lengths) => Err(format!(
                "{option} {lengths}: a distribution is for --simulate, expected a number of tokens"
            )),
        };
        let prompt_tokens = fixed("--prompt-tokens", self.prompt_tokens)?;
        let output_tokens = fixed("--output-tokens", self.output_tokens)?;
        if prompt_tokens.is_some() != output_tokens.is_some() {
            return Err("--prompt-tokens and --output-tokens go together".to_owned());
        }
        let lengths = prompt_tokens.zip(output_tokens);
        let settings = self.unchecked(lengths);
        settings.check()?;
        Ok(settings)
    }

    fn unchecked(&self, lengths: Option<(u64, u64)>) -> Settings {
        Settings {
            gpu_memory_utilization: self.gpu_memory_utilization,
            max_model_len: self.max_model_len.unwrap_or_default(),
            block_size: self.block_size,
            dtype_bytes: match self.dtype {
                Dtype::Auto => None,
                Dtype::Bf16 | Dtype::F16 => Some(2),
                Dtype::F32 => Some(4),
            },
            kv_type: self.kv_cache_dtype.0,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            num_parallel: self.num_parallel,
            weights_bytes: self.known.weights_gib,
            activation_bytes: self.known.activation_gib,
            non_torch_bytes: self.known.non_torch_gib,
            cuda_graph_bytes: self.known.cuda_graph_gib,
            kv_cache_memory_bytes: self.known.kv_cache_memory_bytes,
            lengths: lengths
                .map(|(prompt_tokens, output_tokens)| Lengths { prompt_tokens, output_tokens }),
        }
    }
}

/// `None` is auto.
#[derive(Debug, Clone, Copy)]
struct KvChoice(Option<KvType>);

fn kv_type(text: &str) -> Result<KvChoice, String> {
    if text == "auto" { Ok(KvChoice(None)) } else { text.parse().map(|kv| KvChoice(Some(kv))) }
}

fn max_model_len(text: &str) -> Result<MaxModelLen, String> {
    match text {
        "auto" | "-1" => Ok(MaxModelLen::Auto),
        other => other
            .parse()
            .map(MaxModelLen::Tokens)
            .map_err(|_| "expected a number of tokens or auto".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    size_or_none(text).ok().filter(|bytes| *bytes > 0).ok_or("expected GiB above 0".to_owned())
}

fn size_or_none(text: &str) -> Result<u64, String> {
    let value: f64 = text.parse().map_err(|_| "expected GiB from 0 up".to_owned())?;
    gib(value).ok_or_else(|| "expected GiB from 0 up".to_owned())
}
