//! From what an engine said to what must have been: which pool, which GPUs and
//! utilizations are consistent with it, and what to do. Two unknowns and one number
//! have a set of solutions, which is shown as one; nothing is guessed.

mod advice;
mod capture;
mod consistent;
mod said;
mod words;

use serde::Serialize;

pub use self::advice::Advice;
pub use self::consistent::{Combination, Consistency};
pub use self::said::Said;
use super::amount::{Amount, Count, Source, gib};
use super::gpu::GpuMemory;
use super::settings::{KvType, Settings};
use super::shape::Shape;

/// Longest text that is read.
pub const MAX_TEXT_BYTES: u64 = 4 << 20;

/// Half of the last digit of a printed size.
const ROUNDING_GIB: f64 = 0.005;
/// vLLM's block size where nothing else is said.
const DEFAULT_BLOCK_SIZE: u64 = 16;

/// What is known beside the text.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Models that may be meant.
    pub models: &'a [Shape],
    /// Whether the user named the one that is.
    pub model_is_given: bool,
    /// GPUs that may be meant: the one that the user named, or all cards.
    pub gpus: &'a [GpuMemory],
    /// Settings that the user gave.
    pub settings: &'a Settings,
}

/// What a text says and what follows from it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reading {
    /// 1.
    pub schema_version: u32,
    /// What was recognised.
    pub said: Vec<Said>,
    /// The same in sentences, and what follows from it whatever the GPU.
    pub sentences: Vec<String>,
    /// The pool, for each model that may be meant.
    pub pools: Vec<PoolRead>,
    /// GPUs, utilizations and residuals that go with it, for each model.
    pub consistency: Vec<Consistency>,
    /// What to do, the cheapest first.
    pub advice: Vec<Advice>,
}

/// A pool as it must have been.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolRead {
    /// The model.
    pub model: String,
    /// What K and V are stored as.
    pub kv_type: KvType,
    /// K and V of one token.
    pub kv_bytes_per_token: u64,
    /// Tokens in a block: vLLM's default, unless it was given.
    pub block_size: u64,
    /// Blocks.
    pub blocks: Count,
    /// Tokens.
    pub tokens: Count,
    /// Bytes that were there for it: at least the blocks, less than one more.
    pub kv: Amount,
    /// Bytes that one sequence of the asked length needs, where one was asked for.
    pub needed_bytes: Option<u64>,
}

/// Reads `text`.
///
/// # Errors
/// A sentence with what would be understood, for a text in which nothing is known.
pub fn explain(text: &str, context: &Context<'_>) -> Result<Reading, String> {
    let said = said::read(text);
    if said.is_empty() {
        return Err("nothing in the text is known: expected a start-up log or error of vLLM \
                    (`max seq len`, `No available memory for the cache blocks`, `model weights \
                    take`, `GPU KV cache size`), llama.cpp (`KV self size`) or Ollama (`offload`)"
            .to_owned());
    }
    let facts = Facts::of(&said);
    let pools = pools(&facts, context);
    let mut consistency: Vec<Consistency> =
        pools.iter().filter_map(|pool| consistent::find(&facts, pool, context)).collect();
    consistency.sort_by_key(|found| found.combinations.is_empty());
    let sentences = words::sentences(&said, &facts, &pools, context);
    let advice = advice::all(&said, &facts, &pools, &consistency);
    Ok(Reading { schema_version: 1, said, sentences, pools, consistency, advice })
}

/// The numbers that everything else follows from, wherever they were said.
#[derive(Debug, Clone, Copy, Default)]
struct Facts {
    v1: bool,
    max_model_len: Option<u64>,
    /// Tokens of the pool, exactly.
    tokens: Option<u64>,
    /// The pool as printed.
    kv_gib: Option<f64>,
    /// What a sequence of `max_model_len` needs, as printed.
    needed_gib: Option<f64>,
    total_gib: Option<f64>,
    utilization: Option<f64>,
    weights_gib: Option<f64>,
}

impl Facts {
    fn of(said: &[Said]) -> Self {
        let mut facts = Self::default();
        for one in said {
            facts.add(one);
        }
        facts
    }

    fn add(&mut self, one: &Said) {
        match *one {
            Said::TooLongV0 { max_model_len, kv_tokens } => {
                self.max_model_len = Some(max_model_len);
                self.tokens = Some(kv_tokens);
            }
            Said::TooLongV1 { max_model_len, needed_gib, available_gib, .. } => {
                self.v1 = true;
                self.max_model_len = Some(max_model_len);
                self.needed_gib = Some(needed_gib);
                self.kv_gib = Some(available_gib);
            }
            Said::Blocks { num_blocks } => {
                self.tokens = self.tokens.or(num_blocks.checked_mul(DEFAULT_BLOCK_SIZE));
            }
            Said::PoolTokens { tokens } => {
                self.v1 = true;
                self.tokens = Some(tokens);
            }
            Said::Available { gib } => {
                self.v1 = true;
                self.kv_gib = Some(gib);
            }
            Said::Parts { weights_gib, kv_gib, .. } => {
                self.weights_gib = Some(weights_gib);
                self.kv_gib = Some(kv_gib);
            }
            Said::Profiled { total_gib, kv_gib, utilization, .. } => {
                self.kv_gib = Some(kv_gib);
                (self.total_gib, self.utilization) = (Some(total_gib), Some(utilization));
            }
            Said::Budget { total_gib, utilization, .. }
            | Said::NotFree { total_gib, utilization, .. } => {
                (self.total_gib, self.utilization) = (Some(total_gib), Some(utilization));
            }
            Said::OutOfMemory { total_gib } => self.total_gib = Some(total_gib),
            Said::Weights { gib } => self.weights_gib = self.weights_gib.or(Some(gib)),
            Said::Concurrency { request_tokens, .. } => {
                self.max_model_len = self.max_model_len.or(Some(request_tokens));
            }
            Said::AutoFit { to, available_gib, .. } => {
                self.v1 = true;
                self.max_model_len = Some(to);
                self.kv_gib = Some(available_gib);
            }
            Said::Reserved { kv_gib, .. } => {
                self.v1 = true;
                self.kv_gib = Some(kv_gib);
            }
            Said::Usage { weights_gib, .. } => {
                self.v1 = true;
                self.weights_gib = Some(weights_gib);
            }
            Said::NoBlocks
            | Said::ProfilingRace { .. }
            | Said::CudaGraphs { .. }
            | Said::LlamaKv { .. }
            | Said::LlamaCells { .. }
            | Said::LlamaContext { .. }
            | Said::LlamaWeights { .. }
            | Said::LlamaCompute { .. }
            | Said::OllamaOffload { .. }
            | Said::OllamaBusy => {}
        }
    }

    /// Whether vLLM said something about its pool.
    const fn has_pool(&self) -> bool {
        self.tokens.is_some() || self.kv_gib.is_some()
    }
}

/// The pool of each model that may be meant.
fn pools(facts: &Facts, context: &Context<'_>) -> Vec<PoolRead> {
    if !facts.has_pool() {
        return Vec::new();
    }
    let block_size = context.settings.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
    let mut pools = Vec::new();
    for shape in context.models {
        for kv_type in kv_types(facts, shape, context) {
            let kv_bytes_per_token = shape.kv_bytes_per_token(kv_type);
            pools.push(pool(facts, shape, kv_type, kv_bytes_per_token, block_size));
        }
    }
    pools
}

/// What K and V of `shape` may be stored as, given what was said; nothing where it
/// cannot be the model that is meant.
fn kv_types(facts: &Facts, shape: &Shape, context: &Context<'_>) -> Vec<KvType> {
    let types = match context.settings.kv_type {
        Some(kv) => vec![kv],
        None => vec![KvType::Bf16, KvType::Fp8],
    };
    // Needed bytes over tokens say how many a token takes.
    if let (Some(needed), Some(length)) = (facts.needed_gib, facts.max_model_len) {
        let near = |kv: &KvType| {
            let whole = length.div_ceil(DEFAULT_BLOCK_SIZE).saturating_mul(DEFAULT_BLOCK_SIZE);
            let bytes = whole.saturating_mul(shape.kv_bytes_per_token(*kv)) as f64;
            (bytes / (1_u64 << 30) as f64 - needed).abs() <= ROUNDING_GIB + 1e-9
        };
        return types.into_iter().filter(near).collect();
    }
    let is_it =
        context.model_is_given || facts.max_model_len == Some(shape.max_position_embeddings);
    if is_it { types.into_iter().take(1).collect() } else { Vec::new() }
}

fn pool(
    facts: &Facts,
    shape: &Shape,
    kv_type: KvType,
    kv_bytes_per_token: u64,
    block_size: u64,
) -> PoolRead {
    let block_bytes = kv_bytes_per_token * block_size;
    let printed = facts.kv_gib.map(|value| {
        let of = |value: f64| gib(value.max(0.0)).unwrap_or(0);
        [of(value - ROUNDING_GIB), of(value), of(value + ROUNDING_GIB)]
    });
    let (blocks, bytes) = match (facts.tokens, printed) {
        (Some(tokens), _) => {
            let blocks = tokens / block_size;
            let least = blocks.saturating_mul(block_bytes);
            (
                Count::exact(blocks),
                [0, block_bytes / 2, block_bytes.saturating_sub(1)]
                    .map(|more| least.saturating_add(more)),
            )
        }
        (None, Some(bytes)) => {
            let [low, expected, high] = bytes.map(|bytes| bytes / block_bytes.max(1));
            (Count { low, expected, high }, bytes)
        }
        (None, None) => (Count::exact(0), [0; 3]),
    };
    let needed = |length: u64| length.div_ceil(block_size).saturating_mul(block_bytes);
    PoolRead {
        model: shape.name.clone(),
        kv_type,
        kv_bytes_per_token,
        block_size,
        blocks,
        tokens: blocks.map(|blocks| blocks * block_size),
        kv: Amount::between(bytes, Source::Computed, "whole blocks of what there was"),
        needed_bytes: facts.max_model_len.map(needed),
    }
}

#[cfg(test)]
mod tests;
