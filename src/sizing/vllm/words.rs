//! What vLLM says when it does not start, word for word, by version.

use super::rules::Rules;
use crate::sizing::amount::as_gib;

/// V0: the pool does not hold one sequence of the asked length.
#[must_use]
pub fn v0_too_long(max_model_len: u64, tokens: u64) -> String {
    format!(
        "ValueError: The model's max seq len ({max_model_len}) is larger than the maximum number \
         of tokens that can be stored in KV cache ({tokens}). Try increasing \
         `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine."
    )
}

/// V1: the same, in bytes. `estimated` is the length that would fit.
#[must_use]
pub fn v1_too_long(
    rules: Rules,
    max_model_len: u64,
    needed_bytes: i64,
    available_bytes: i64,
    estimated: u64,
) -> String {
    let whose = if rules.says_models { "models's" } else { "model's" };
    let estimate = if estimated > 0 {
        format!(
            " Based on the available memory, the estimated maximum model length is {estimated}."
        )
    } else {
        String::new()
    };
    format!(
        "ValueError: To serve at least one request with the {whose} max seq len \
         ({max_model_len}), ({:.2} GiB KV cache is needed, which is larger than the available KV \
         cache memory ({:.2} GiB).{estimate} Try increasing `gpu_memory_utilization` or \
         decreasing `max_model_len` when initializing the engine.",
        as_gib(needed_bytes),
        as_gib(available_bytes),
    )
}

/// Nothing is left for a single block.
#[must_use]
pub fn no_blocks() -> String {
    "ValueError: No available memory for the cache blocks. Try increasing \
     `gpu_memory_utilization` when initializing the engine."
        .to_owned()
}

/// V1: the share that was asked for is not free.
#[must_use]
pub fn not_free(free: i64, total: i64, utilization: f64, requested: i64) -> String {
    format!(
        "ValueError: Free memory on device ({:.2}/{:.2} GiB) on startup is less than desired GPU \
         memory utilization ({utilization}, {:.2} GiB). Decrease GPU memory utilization or reduce \
         GPU memory used by other processes.",
        as_gib(free),
        as_gib(total),
        as_gib(requested),
    )
}

/// The weights alone are more than the GPU has.
#[must_use]
pub fn out_of_memory(total: i64) -> String {
    format!(
        "torch.OutOfMemoryError: CUDA out of memory. GPU 0 has a total capacity of {:.2} GiB",
        as_gib(total)
    )
}
