//! A reading in sentences.

use super::{Context, Facts, PoolRead, Said};
use crate::sizing::amount::as_gib;
use crate::units::format_significant;

/// What was said, and what follows from it whatever the GPU.
pub(super) fn sentences(
    said: &[Said],
    facts: &Facts,
    pools: &[PoolRead],
    context: &Context<'_>,
) -> Vec<String> {
    let mut sentences: Vec<String> = said.iter().map(sentence).collect();
    for pool in pools {
        sentences.push(of_pool(pool, facts));
    }
    if facts.has_pool() && pools.is_empty() {
        let mut text = match facts.tokens {
            Some(tokens) => format!(
                "{tokens} tokens are {} blocks of 16; how many bytes that is depends on the model",
                tokens / 16
            ),
            None => "how many tokens that is depends on the model".to_owned(),
        };
        if let (Some(needed), Some(length)) = (facts.needed_gib, facts.max_model_len) {
            let bytes = needed * (1_u64 << 30) as f64 / length as f64;
            text.push_str(&format!("; it takes about {bytes:.0} bytes a token"));
        }
        if !context.model_is_given {
            text.push_str("; no model card goes with it, name the model with --model");
        }
        sentences.push(text);
    }
    if let Some(sentence) = llama(said) {
        sentences.push(sentence);
    }
    sentences
}

fn of_pool(pool: &PoolRead, facts: &Facts) -> String {
    let mut text = format!(
        "if it is {} with K and V in {}, {} bytes a token: {} blocks of {}, {:.2} GiB",
        pool.model,
        pool.kv_type,
        pool.kv_bytes_per_token,
        pool.blocks.expected,
        pool.block_size,
        as_gib(pool.kv.low_bytes.max(0)),
    );
    if let (Some(needed), Some(length)) = (pool.needed_bytes, facts.max_model_len) {
        let needed = i64::try_from(needed).unwrap_or(i64::MAX);
        let missing = needed - pool.kv.low_bytes;
        text.push_str(&format!("; {length} tokens need {:.2} GiB", as_gib(needed)));
        if missing > 0 {
            text.push_str(&format!(", {:.2} GiB more", as_gib(missing)));
        }
    }
    text
}

fn sentence(said: &Said) -> String {
    of_error(said).or_else(|| of_vllm(said)).unwrap_or_else(|| of_llama(said))
}

fn of_error(said: &Said) -> Option<String> {
    Some(match said {
        Said::TooLongV0 { max_model_len, kv_tokens } => format!(
            "vLLM V0 did not start: one sequence of {max_model_len} tokens (max_model_len) must \
             fit into the KV cache, which holds {kv_tokens}"
        ),
        Said::TooLongV1 { max_model_len, needed_gib, available_gib, estimated_max_model_len } => {
            let estimate = estimated_max_model_len
                .map_or_else(String::new, |length| format!("; {length} tokens would fit"));
            format!(
                "vLLM V1 did not start: one sequence of {max_model_len} tokens needs {needed_gib} \
                 GiB of KV cache, {available_gib} are left{estimate}"
            )
        }
        Said::NoBlocks => "vLLM did not start: weights and activations leave nothing of its share \
                           of the GPU for a single KV block"
            .to_owned(),
        Said::ProfilingRace { initial_free_gib, current_free_gib } => format!(
            "another process gave memory back while vLLM measured its own, {initial_free_gib:.2} \
             GiB free before and {current_free_gib:.2} after: no error of sizing"
        ),
        Said::NotFree { free_gib, total_gib, utilization, requested_gib } => format!(
            "vLLM V1 did not start: {utilization} of {total_gib} GiB are {requested_gib}, and \
             {free_gib} are free: something else is on the GPU"
        ),
        Said::OutOfMemory { total_gib } => {
            format!("CUDA ran out of memory on a GPU of {total_gib} GiB")
        }
        Said::OllamaBusy => {
            "Ollama's queue is full (OLLAMA_MAX_QUEUE, 512 unless set): it answers 503".to_owned()
        }
        _ => return None,
    })
}

fn of_vllm(said: &Said) -> Option<String> {
    Some(match said {
        Said::Budget { total_gib, utilization, budget_gib } => {
            format!("vLLM may use {utilization} of {total_gib} GiB, {budget_gib}")
        }
        Said::Parts { weights_gib, non_torch_gib, activation_gib, kv_gib } => format!(
            "weights take {weights_gib} GiB, activations {activation_gib}, non-torch \
             {non_torch_gib}; {kv_gib} are left for the KV cache"
        ),
        Said::Profiled { total_gib, peak_torch_gib, non_torch_gib, kv_gib, utilization } => {
            format!(
                "vLLM may use {utilization} of {total_gib} GiB; weights and activations peak at \
                 {peak_torch_gib}, non-torch {non_torch_gib}; {kv_gib} are left for the KV cache"
            )
        }
        Said::Weights { gib } => format!("weights took {gib} GiB as they were loaded"),
        Said::Blocks { num_blocks } => format!("the pool has {num_blocks} blocks"),
        Said::PoolTokens { tokens } => format!("the pool holds {tokens} tokens"),
        Said::Concurrency { request_tokens, times } => {
            format!("{times} requests of {request_tokens} tokens fit at once")
        }
        Said::Available { gib } => format!("{gib} GiB are left for the KV cache"),
        Said::AutoFit { from, to, available_gib } => format!(
            "max_model_len was shortened from {from} to {to} to fit into {available_gib} GiB; a \
             concurrency of 1.00x is then no finding"
        ),
        Said::Reserved { initial_free_gib, kv_gib } => format!(
            "the KV cache was given {kv_gib} GiB of {initial_free_gib} free ones, whatever \
             gpu_memory_utilization says"
        ),
        Said::Usage { weights_gib, activation_gib, non_torch_gib, cuda_graph_gib } => format!(
            "in the end weights took {weights_gib} GiB, activations {activation_gib}, non-torch \
             {non_torch_gib}, CUDA graphs {cuda_graph_gib}; the --kv-cache-memory that the log \
             suggests counts graphs twice in some versions (vLLM #57936)"
        ),
        Said::CudaGraphs { gib } => format!("CUDA graphs take {gib} GiB"),
        _ => return None,
    })
}

fn of_llama(said: &Said) -> String {
    match said {
        Said::LlamaKv { mib } => format!("llama.cpp keeps {mib} MiB of K and V"),
        Said::LlamaCells { tokens } => {
            format!("its K and V hold {tokens} tokens, all slots together")
        }
        Said::LlamaContext { slot_tokens, model_tokens } => format!(
            "a slot takes {slot_tokens} tokens, of {model_tokens} that the model was made for"
        ),
        Said::LlamaWeights { mib } => format!("{mib} MiB of weights are on the GPU"),
        Said::LlamaCompute { mib } => format!("its compute buffer takes {mib} MiB"),
        Said::OllamaOffload { layers, layers_on_gpu } => {
            format!("Ollama puts {layers_on_gpu} of {layers} layers on the GPU")
        }
        _ => String::new(),
    }
}

/// Slots and bytes a token, which llama.cpp does not say itself.
fn llama(said: &[Said]) -> Option<String> {
    let cells = said.iter().find_map(|one| match one {
        Said::LlamaCells { tokens } => Some(*tokens).filter(|tokens| *tokens > 0),
        _ => None,
    })?;
    let slot = said.iter().find_map(|one| match one {
        Said::LlamaContext { slot_tokens, .. } => Some(*slot_tokens).filter(|tokens| *tokens > 0),
        _ => None,
    });
    let mib = said.iter().find_map(|one| match one {
        Said::LlamaKv { mib } => Some(*mib),
        _ => None,
    });
    let mut parts = Vec::new();
    if let Some(slot) = slot.filter(|slot| cells.is_multiple_of(*slot)) {
        parts.push(format!("{cells} tokens are {} slots of {slot}", cells / slot));
    }
    if let Some(mib) = mib {
        let kib = mib * 1024.0 / cells as f64;
        parts.push(format!("{} KiB a token", format_significant(kib)));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}
