//! What engines say about their memory, as values: errors and log lines of vLLM
//! V0 and V1, llama.cpp and Ollama. A text that is not known is no statement.

use serde::Serialize;

use super::capture::{all, one_line};

/// One thing that an engine said. GiB and MiB are as printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are the line's numbers, by name and unit")]
pub enum Said {
    /// vLLM V0: the pool does not hold one sequence.
    TooLongV0 { max_model_len: u64, kv_tokens: u64 },
    /// vLLM V1: the same, in bytes.
    TooLongV1 {
        max_model_len: u64,
        needed_gib: f64,
        available_gib: f64,
        estimated_max_model_len: Option<u64>,
    },
    /// vLLM: nothing is left for a block.
    NoBlocks,
    /// vLLM: memory of another process came or went meanwhile.
    ProfilingRace { initial_free_gib: f64, current_free_gib: f64 },
    /// vLLM V1: the asked share is not free.
    NotFree { free_gib: f64, total_gib: f64, utilization: f64, requested_gib: f64 },
    /// CUDA out of memory.
    OutOfMemory { total_gib: f64 },
    /// vLLM V0: its budget.
    Budget { total_gib: f64, utilization: f64, budget_gib: f64 },
    /// vLLM V0: what the budget goes to.
    Parts { weights_gib: f64, non_torch_gib: f64, activation_gib: f64, kv_gib: f64 },
    /// vLLM 0.6: the profiling run's results in one line.
    Profiled {
        total_gib: f64,
        peak_torch_gib: f64,
        non_torch_gib: f64,
        kv_gib: f64,
        utilization: f64,
    },
    /// vLLM: weights as loaded.
    Weights { gib: f64 },
    /// vLLM: blocks of the pool.
    Blocks { num_blocks: u64 },
    /// vLLM: tokens of the pool.
    PoolTokens { tokens: u64 },
    /// vLLM: requests of full length that fit at once.
    Concurrency { request_tokens: u64, times: f64 },
    /// vLLM V1: what is left for K and V.
    Available { gib: f64 },
    /// vLLM V1: `auto` shortened the length.
    AutoFit { from: u64, to: u64, available_gib: f64 },
    /// vLLM V1: a pool given in bytes.
    Reserved { initial_free_gib: f64, kv_gib: f64 },
    /// vLLM V1: what it used.
    Usage { weights_gib: f64, activation_gib: f64, non_torch_gib: f64, cuda_graph_gib: f64 },
    /// vLLM: CUDA graphs, captured or estimated.
    CudaGraphs { gib: f64 },
    /// llama.cpp: K and V.
    LlamaKv { mib: f64 },
    /// llama.cpp: tokens of K and V over all slots.
    LlamaCells { tokens: u64 },
    /// llama.cpp: tokens of a slot, of those that the model was made for.
    LlamaContext { slot_tokens: u64, model_tokens: u64 },
    /// llama.cpp: weights on a GPU.
    LlamaWeights { mib: f64 },
    /// llama.cpp: the compute buffer of a GPU.
    LlamaCompute { mib: f64 },
    /// Ollama: layers that go to the GPU.
    OllamaOffload { layers: u64, layers_on_gpu: u64 },
    /// Ollama: the queue is full.
    OllamaBusy,
}

/// Everything that `text` says, in the order of [`Said`]; repetitions once.
#[must_use]
pub fn read(text: &str) -> Vec<Said> {
    let text = &one_line(text);
    let mut said = Vec::new();
    errors(text, &mut said);
    vllm_v0(text, &mut said);
    vllm_v1(text, &mut said);
    llama(text, &mut said);
    let mut once: Vec<Said> = Vec::new();
    for one in said {
        if !once.contains(&one) {
            once.push(one);
        }
    }
    once
}

fn errors(text: &str, said: &mut Vec<Said>) {
    each(
        text,
        "max seq len ({}) is larger than the maximum number of tokens that can be stored in KV cache ({})",
        said,
        |[length, tokens]| Said::TooLongV0 {
            max_model_len: count(length),
            kv_tokens: count(tokens),
        },
    );
    let estimated = all(text, "the estimated maximum model length is {}");
    let estimated_max_model_len = estimated.first().map(|numbers| count(numbers[0]));
    // With the unbalanced bracket and without it, `models's` and `model's`.
    for bracket in ["(", ""] {
        let pattern = format!(
            "max seq len ({{}}), {bracket}{{}} GiB KV cache is needed, which is larger than the \
             available KV cache memory ({{}} GiB)"
        );
        each(text, &pattern, said, |[length, needed_gib, available_gib]| Said::TooLongV1 {
            max_model_len: count(length),
            needed_gib,
            available_gib,
            estimated_max_model_len,
        });
    }
    if text.contains("No available memory for the cache blocks") {
        said.push(Said::NoBlocks);
    }
    each(
        text,
        "Error in memory profiling. Initial free memory {}{*}current free memory {}",
        said,
        |[initial, current]| {
            // Older versions print bytes.
            let gib = |value: f64| if value > 1e6 { value / f64::from(1 << 30) } else { value };
            Said::ProfilingRace { initial_free_gib: gib(initial), current_free_gib: gib(current) }
        },
    );
    each(
        text,
        "Free memory on device{*}({}/{} GiB) on startup is less than desired GPU memory utilization ({}, {} GiB)",
        said,
        |[free_gib, total_gib, utilization, requested_gib]| Said::NotFree {
            free_gib,
            total_gib,
            utilization,
            requested_gib,
        },
    );
    each(text, "has a total capacity of {} GiB", said, |[total_gib]| Said::OutOfMemory {
        total_gib,
    });
    each(text, "has a total capacty of {} GiB", said, |[total_gib]| Said::OutOfMemory {
        total_gib,
    });
    if text.contains("server busy, please try again") {
        said.push(Said::OllamaBusy);
    }
}

fn vllm_v0(text: &str, said: &mut Vec<Said>) {
    each(
        text,
        "total_gpu_memory ({}GiB) x gpu_memory_utilization ({}) = {}GiB",
        said,
        |[total_gib, utilization, budget_gib]| Said::Budget { total_gib, utilization, budget_gib },
    );
    each(
        text,
        "model weights take {}GiB; non_torch_memory takes {}GiB; PyTorch activation peak memory takes {}GiB; the rest of the memory reserved for KV Cache is {}GiB",
        said,
        |[weights_gib, non_torch_gib, activation_gib, kv_gib]| Said::Parts {
            weights_gib,
            non_torch_gib,
            activation_gib,
            kv_gib,
        },
    );
    each(
        text,
        "total_gpu_memory={}GiB{*}peak_torch_memory={}GiB{*}non_torch_memory={}GiB kv_cache_size={}GiB gpu_memory_utilization={}",
        said,
        |[total_gib, peak_torch_gib, non_torch_gib, kv_gib, utilization]| Said::Profiled {
            total_gib,
            peak_torch_gib,
            non_torch_gib,
            kv_gib,
            utilization,
        },
    );
    for pattern in ["# CUDA blocks: {}", "# cuda blocks: {}", "# GPU blocks: {}"] {
        each(text, pattern, said, |[blocks]| Said::Blocks { num_blocks: count(blocks) });
    }
    for pattern in
        ["oading model weights took {} GB", "odel loading took {} GiB", "odel loading took {} GB"]
    {
        each(text, pattern, said, |[gib]| Said::Weights { gib });
    }
    each(text, "Maximum concurrency for {} tokens per request: {}x", said, |[tokens, times]| {
        Said::Concurrency { request_tokens: count(tokens), times }
    });
}

fn vllm_v1(text: &str, said: &mut Vec<Said>) {
    each(text, "GPU KV cache size: {} tokens", said, |[tokens]| Said::PoolTokens {
        tokens: count(tokens),
    });
    each(text, "Available KV cache memory: {} GiB", said, |[gib]| Said::Available { gib });
    each(
        text,
        "Auto-fit max_model_len: reduced from {} to {} to fit in available GPU memory ({} GiB",
        said,
        |[from, to, available_gib]| Said::AutoFit {
            from: count(from),
            to: count(to),
            available_gib,
        },
    );
    each(
        text,
        "Initial free memory {} GiB, reserved {} GiB memory for KV Cache",
        said,
        |[initial_free_gib, kv_gib]| Said::Reserved { initial_free_gib, kv_gib },
    );
    each(
        text,
        "Actual usage is {} GiB for weight, {} GiB for peak activation, {} GiB for non-torch memory, and {} GiB for CUDAGraph memory",
        said,
        |[weights_gib, activation_gib, non_torch_gib, cuda_graph_gib]| Said::Usage {
            weights_gib,
            activation_gib,
            non_torch_gib,
            cuda_graph_gib,
        },
    );
    for pattern in
        ["Estimated CUDA graph memory: {} GiB", "Graph capturing finished in {*}, took {} GiB"]
    {
        each(text, pattern, said, |[gib]| Said::CudaGraphs { gib });
    }
}

fn llama(text: &str, said: &mut Vec<Said>) {
    each(text, "KV self size = {} MiB", said, |[mib]| Said::LlamaKv { mib });
    each(text, "kv_size = {}", said, |[tokens]| Said::LlamaCells { tokens: count(tokens) });
    each(text, "n_ctx_per_seq ({}) < n_ctx_train ({})", said, |[slot, model]| Said::LlamaContext {
        slot_tokens: count(slot),
        model_tokens: count(model),
    });
    for device in ["CUDA0", "CUDA1", "CUDA2", "CUDA3"] {
        let pattern = format!("{device} model buffer size = {{}} MiB");
        each(text, &pattern, said, |[mib]| Said::LlamaWeights { mib });
        let pattern = format!("{device} compute buffer size = {{}} MiB");
        each(text, &pattern, said, |[mib]| Said::LlamaCompute { mib });
    }
    // Newer logs have no sum: each device's, where there is no sum.
    if !said.iter().any(|one| matches!(one, Said::LlamaKv { .. })) {
        each(text, "KV buffer size = {} MiB", said, |[mib]| Said::LlamaKv { mib });
    }
    each(text, "layers.model={} layers.offload={}", said, |[layers, on_gpu]| Said::OllamaOffload {
        layers: count(layers),
        layers_on_gpu: count(on_gpu),
    });
}

/// Adds what `make` makes of every place where `pattern` is.
fn each<const N: usize>(
    text: &str,
    pattern: &str,
    said: &mut Vec<Said>,
    make: impl Fn([f64; N]) -> Said,
) {
    let numbers = all(text, pattern).into_iter();
    said.extend(numbers.filter_map(|numbers| <[f64; N]>::try_from(numbers).ok()).map(make));
}

fn count(number: f64) -> u64 {
    number as u64
}
