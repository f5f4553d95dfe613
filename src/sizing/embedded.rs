//! The embedded engine's memory: not a model of it but its own functions, so that
//! the pool that is predicted is the pool that is allocated.

use std::collections::BTreeMap;

use super::amount::{Amount, Count, Source};
use super::answer::{Concurrency, EngineAnswer, Part, Verdict, WayOut, request_lengths};
use super::settings::{MaxModelLen, Settings};
use super::vllm::activation;
use crate::infer::kv::KvSizing;
use crate::infer::kv::sizing::KvElement;
use crate::infer::weights::StoredDtype;
use crate::infer::{ComputeDevice, ComputeDtype, EngineConfig, InferError, KvBudget, ModelConfig};
use crate::sizing::gpu::GpuMemory;

/// A model as the embedded engine opens it.
#[derive(Debug, Clone)]
pub struct EmbeddedModel {
    /// Shapes.
    pub config: ModelConfig,
    /// How its weights are stored.
    pub stored: StoredDtype,
    /// Bytes of its weights as stored, where they are at hand.
    pub stored_bytes: Option<u64>,
}

/// What it computes on.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// The processors of this machine.
    Cpu,
    /// A CUDA device with this memory; builds with feature `cuda` only.
    Gpu(&'a GpuMemory),
}

/// Lets what was set override the limits of `config`.
///
/// # Errors
/// A sentence, for a number that is none of this machine's.
pub fn limit(settings: &Settings, config: &mut EngineConfig) -> Result<(), String> {
    let set = |value: Option<u64>, limit: &mut usize| match value {
        Some(value) => usize::try_from(value)
            .map(|value| *limit = value)
            .map_err(|_| format!("{value} is too large")),
        None => Ok(()),
    };
    if let MaxModelLen::Tokens(tokens) = settings.max_model_len {
        set(Some(tokens), config.max_model_len.insert(0))?;
    }
    set(settings.block_size, &mut config.block_size)?;
    set(settings.max_num_seqs, &mut config.max_num_seqs)?;
    set(settings.max_num_batched_tokens, &mut config.max_num_batched_tokens)
}

/// The engine's settings that go with these.
///
/// # Errors
/// A sentence, for what it does not take.
pub fn config(settings: &Settings, target: Target<'_>) -> Result<EngineConfig, String> {
    if let Some(kv) = settings.kv_type {
        return Err(format!(
            "its K and V are stored as what it computes in: --kv-cache-dtype {kv} is for other engines"
        ));
    }
    let default = EngineConfig::default();
    let mut config = EngineConfig {
        kv: settings.kv_cache_memory_bytes.map_or(KvBudget::Auto, KvBudget::Bytes),
        gpu_memory_utilization: settings
            .gpu_memory_utilization
            .unwrap_or(default.gpu_memory_utilization),
        dtype: match settings.dtype_bytes {
            None => None,
            Some(4) => Some(ComputeDtype::F32),
            Some(_) => Some(ComputeDtype::Bf16),
        },
        device: Some(match target {
            Target::Cpu => ComputeDevice::Cpu,
            Target::Gpu(_) => ComputeDevice::Cuda(0),
        }),
        ..default
    };
    limit(settings, &mut config)?;
    Ok(config)
}

/// What the embedded engine makes of `model` under `settings`.
///
/// # Errors
/// A sentence, for settings that it does not take.
pub fn size(
    model: &EmbeddedModel,
    settings: &Settings,
    target: Target<'_>,
) -> Result<EngineAnswer, String> {
    let mut answer = answer(model, settings, target)?;
    answer.ways_out = ways_out(model, settings, target, &answer);
    Ok(answer)
}

/// The answer without its ways out.
fn answer(
    model: &EmbeddedModel,
    settings: &Settings,
    target: Target<'_>,
) -> Result<EngineAnswer, String> {
    let config = config(settings, target)?;
    let device = config.device.unwrap_or(ComputeDevice::Cpu);
    let dtype = ComputeDtype::resolve(config.dtype, &model.stored, device)
        .map_err(|error| error.to_string())?;
    let pools = Pools::new(&config, dtype, model, target)?;
    let bytes_per_token = model.config.kv_bytes_per_token(KvElement::of(dtype).num_bytes()) as u64;
    let block_size = config.block_size as u64;
    let limit = model.config.max_position_embeddings as u64;
    let max_model_len = match settings.max_model_len {
        MaxModelLen::Tokens(tokens) => tokens,
        MaxModelLen::Unset | MaxModelLen::Auto => pools.max_model_len.unwrap_or(limit),
    };
    let tokens = pools.blocks.map(|blocks| blocks * block_size);
    let (total, place) = match target {
        Target::Cpu => (None, "on this machine's processors"),
        Target::Gpu(gpu) => (Some(gpu.cuda_total.clone()), "on the GPU"),
    };
    Ok(EngineAnswer {
        engine: "embedded",
        title: format!("embedded engine, {place}"),
        settings: BTreeMap::from([
            ("block_size", config.block_size.to_string()),
            ("dtype", dtype.to_string()),
            ("max_model_len", max_model_len.to_string()),
            ("max_num_seqs", config.max_num_seqs.to_string()),
            ("max_num_batched_tokens", config.max_num_batched_tokens.to_string()),
        ]),
        budget: total.as_ref().map(|total| total.share(config.gpu_memory_utilization)),
        total,
        parts: parts(model, dtype, target, pools.blocks, bytes_per_token * block_size),
        kv_bytes_per_token: bytes_per_token,
        block_size: Some(block_size),
        blocks: Some(pools.blocks),
        tokens,
        max_model_len,
        longest_request: tokens.map(|tokens| tokens.min(limit)),
        concurrency: request_lengths(settings, max_model_len)
            .into_iter()
            .map(|tokens| Concurrency::of(tokens, pools.blocks, tokens.div_ceil(block_size)))
            .collect(),
        starts: pools.starts,
        error: pools.error,
        ways_out: Vec::new(),
        notes: Vec::new(),
    })
}

/// The pool within the bounds of the GPU's memory; on processors they are one.
struct Pools {
    starts: Verdict,
    error: Option<String>,
    blocks: Count,
    max_model_len: Option<u64>,
}

impl Pools {
    fn new(
        config: &EngineConfig,
        dtype: ComputeDtype,
        model: &EmbeddedModel,
        target: Target<'_>,
    ) -> Result<Self, String> {
        let bounds = shares(config, dtype, model, target)?;
        let [low, expected, high] =
            bounds.map(|share| KvSizing::new(config, dtype, &model.config, share));
        let (starts, error) = match (&low, &expected, &high) {
            (Ok(_), ..) => (Verdict::Yes, None),
            (Err(error), Ok(_), _) => (Verdict::Likely, Some(error.to_string())),
            (_, Err(error), Ok(_)) => (Verdict::Unlikely, Some(error.to_string())),
            (_, Err(error), Err(_)) => (Verdict::No, Some(error.to_string())),
        };
        // A pool that is refused for its length is shown without the length.
        let any_length = EngineConfig { max_model_len: None, ..config.clone() };
        let shown = |sized: Result<KvSizing, InferError>, share| {
            sized.or_else(|_| KvSizing::new(&any_length, dtype, &model.config, share)).ok()
        };
        let pools = [shown(low, bounds[0]), shown(expected, bounds[1]), shown(high, bounds[2])];
        let [low, expected, high] = pools.map(|pool| pool.map_or(0, |pool| pool.num_blocks as u64));
        Ok(Self {
            starts,
            error,
            blocks: Count { low, expected, high },
            max_model_len: pools[1].map(|pool| pool.max_model_len as u64),
        })
    }
}

fn parts(
    model: &EmbeddedModel,
    dtype: ComputeDtype,
    target: Target<'_>,
    blocks: Count,
    block_bytes: u64,
) -> Vec<Part> {
    let bytes = [blocks.low, blocks.expected, blocks.high].map(|blocks| blocks * block_bytes);
    let pool = Amount::between(bytes, Source::Computed, "the engine's own arithmetic");
    let mut parts = vec![Part::inside("weights", weight_bytes(model, dtype))];
    if let Target::Gpu(_) = target {
        parts.push(Part::inside("CUDA context", activation::context()));
    }
    parts.push(Part::inside("KV cache", pool));
    parts
}

/// What is left for the pool: least, expected and most; `None` on the processors.
fn shares(
    config: &EngineConfig,
    dtype: ComputeDtype,
    model: &EmbeddedModel,
    target: Target<'_>,
) -> Result<[Option<u64>; 3], String> {
    let Target::Gpu(gpu) = target else { return Ok([None; 3]) };
    let context = activation::context();
    let total = &gpu.cuda_total;
    let share = |total: i64, context: i64| {
        let total = u64::try_from(total).unwrap_or(0);
        let free = total.saturating_sub(u64::try_from(context).unwrap_or(0));
        on_gpu(config, dtype, &model.config, [free, total])
            .map(Some)
            .map_err(|error| error.to_string())
    };
    Ok([
        share(total.low_bytes, context.high_bytes)?,
        share(total.expected_bytes, context.expected_bytes)?,
        share(total.high_bytes, context.low_bytes)?,
    ])
}

#[cfg(any(feature = "cuda", test))]
fn on_gpu(
    config: &EngineConfig,
    dtype: ComputeDtype,
    model: &ModelConfig,
    [free, total]: [u64; 2],
) -> Result<u64, InferError> {
    use crate::infer::cuda::memory::{DeviceMemory, kv_share};
    kv_share(DeviceMemory { free, total }, config, dtype, model)
}

#[cfg(not(any(feature = "cuda", test)))]
fn on_gpu(
    _: &EngineConfig,
    _: ComputeDtype,
    _: &ModelConfig,
    _: [u64; 2],
) -> Result<u64, InferError> {
    Err(InferError::Config("this build computes on the processors only".to_owned()))
}

fn weight_bytes(model: &EmbeddedModel, dtype: ComputeDtype) -> Amount {
    let parameters = model.config.num_parameters();
    match (dtype, model.stored_bytes) {
        (ComputeDtype::Quantized, Some(bytes)) => {
            Amount::exact(bytes, Source::Computed, format!("as stored, {}", model.stored))
        }
        _ => {
            let bytes = if dtype == ComputeDtype::F32 { 4 } else { 2 };
            let basis = format!("{parameters} parameters of {bytes} bytes");
            Amount::exact(parameters * bytes, Source::Computed, basis)
        }
    }
}

/// The changes that make it start alone, each answered again.
fn ways_out(
    model: &EmbeddedModel,
    settings: &Settings,
    target: Target<'_>,
    now: &EngineAnswer,
) -> Vec<WayOut> {
    let held = now.tokens.expected;
    let shorter = Settings { max_model_len: MaxModelLen::Tokens(held), ..settings.clone() };
    let block_size = now.block_size.unwrap_or(1);
    let needed = now.max_model_len.div_ceil(block_size) * block_size;
    let pool_bytes = needed.saturating_mul(now.kv_bytes_per_token);
    let larger = Settings { kv_cache_memory_bytes: Some(pool_bytes), ..settings.clone() };
    let then = |settings: &Settings| answer(model, settings, target).ok();
    let shorter = then(&shorter).map(|then| WayOut {
        change: format!("--max-model-len {held}"),
        starts: then.starts,
        tokens: then.tokens,
        cost: "longer ones are refused".to_owned(),
    });
    let larger = then(&larger).map(|then| WayOut {
        change: format!("--kv-memory {pool_bytes}"),
        starts: then.starts.max(has_memory(&then)),
        tokens: then.tokens,
        cost: "as far as there is memory".to_owned(),
    });
    let ways = shorter.into_iter().chain(larger);
    ways.filter(|way| way.starts.is_way_out_of(now.starts)).collect()
}

/// Whether there is memory for a pool that was given in bytes: never for sure, since
/// activations are not known, nor what a machine has left.
fn has_memory(answer: &EngineAnswer) -> Verdict {
    let Some(total) = &answer.total else { return Verdict::Likely };
    let left = answer.parts.iter().fold(total.clone(), |left, part| left.minus(&part.amount));
    Verdict::of_rest(&left).max(Verdict::Likely)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::find_card;
    use crate::hardware::find_gpu_card_named;

    fn llama() -> EmbeddedModel {
        let config = find_card("llama-3.2-3b-instruct").unwrap().config.clone();
        EmbeddedModel { config, stored: StoredDtype::Bf16, stored_bytes: None }
    }

    #[test]
    fn on_a_gpu_the_pool_is_what_the_engine_would_take() {
        let l4 = GpuMemory::of_card(find_gpu_card_named("L4").unwrap()).unwrap();
        let answer = size(&llama(), &Settings::default(), Target::Gpu(&l4)).unwrap();
        assert_eq!(answer.starts, Verdict::Yes);
        let blocks = answer.blocks.unwrap();
        assert!(blocks.low < blocks.expected && blocks.expected < blocks.high, "{blocks:?}");
        let pool = &answer.parts.last().unwrap().amount;
        assert!(pool.high_bytes < answer.budget.unwrap().high_bytes);
    }

    #[test]
    fn a_length_that_does_not_fit_is_refused_in_the_engine_s_own_words() {
        let settings = Settings {
            max_model_len: MaxModelLen::Tokens(8192),
            kv_cache_memory_bytes: Some(1 << 20),
            ..Settings::default()
        };
        let refused = size(&llama(), &settings, Target::Cpu);
        // A megabyte holds no block of this model.
        assert_eq!(refused.unwrap().tokens, Count::exact(0));
        let settings = Settings { kv_cache_memory_bytes: Some(64 << 20), ..settings };
        let answer = size(&llama(), &settings, Target::Cpu).unwrap();
        assert_eq!((answer.starts, answer.tokens), (Verdict::No, Count::exact(36 * 16)));
        assert!(answer.error.unwrap().contains("lower max_model_len to 576"));
        assert_eq!(answer.ways_out[0].change, "--max-model-len 576");
    }

    #[test]
    fn every_way_out_starts_it_alone() {
        let mut found = 0;
        for pool in [1_u64 << 20, 64 << 20, 1 << 30] {
            for length in [2, 700, 8192, 131_072] {
                let settings = Settings {
                    max_model_len: MaxModelLen::Tokens(length),
                    kv_cache_memory_bytes: Some(pool),
                    ..Settings::default()
                };
                for way in size(&llama(), &settings, Target::Cpu).unwrap().ways_out {
                    let (option, value) = way.change.split_once(' ').unwrap();
                    let value = value.parse().unwrap();
                    let changed = match option {
                        "--max-model-len" => {
                            let max_model_len = MaxModelLen::Tokens(value);
                            Settings { max_model_len, ..settings.clone() }
                        }
                        _ => Settings { kv_cache_memory_bytes: Some(value), ..settings.clone() },
                    };
                    let then = size(&llama(), &changed, Target::Cpu).unwrap();
                    assert_eq!((then.starts, then.tokens), (Verdict::Yes, way.tokens), "{way:?}");
                    found += 1;
                }
            }
        }
        assert!(found > 10, "{found}");
    }

    #[test]
    fn what_it_does_not_take_is_refused_by_name() {
        let fp8 = Settings { kv_type: Some(crate::sizing::KvType::Fp8), ..Settings::default() };
        assert!(size(&llama(), &fp8, Target::Cpu).unwrap_err().contains("fp8"));
    }
}
