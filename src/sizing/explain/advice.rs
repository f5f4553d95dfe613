//! What to do about what an engine said, with numbers, the cheapest first.

use serde::Serialize;

use super::{Consistency, Facts, PoolRead, Said};
use crate::sizing::amount::as_gib;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// What to set or to change.
    pub change: String,
    /// What comes of it.
    pub why: String,
}

fn advice(change: impl Into<String>, why: impl Into<String>) -> Advice {
    Advice { change: change.into(), why: why.into() }
}

/// Everything that helps.
pub(super) fn all(
    said: &[Said],
    facts: &Facts,
    pools: &[PoolRead],
    consistency: &[Consistency],
) -> Vec<Advice> {
    let mut all: Vec<Advice> =
        said.iter().flat_map(|one| about(one, facts, pools, consistency)).collect();
    let mut once = Vec::new();
    all.retain(|one| {
        let new = !once.contains(&one.change);
        once.push(one.change.clone());
        new
    });
    all
}

fn about(
    said: &Said,
    facts: &Facts,
    pools: &[PoolRead],
    consistency: &[Consistency],
) -> Vec<Advice> {
    match said {
        Said::TooLongV0 { max_model_len, kv_tokens } => too_long(
            *max_model_len,
            Some(*kv_tokens),
            kv_tokens.saturating_mul(2),
            pools,
            consistency,
        ),
        Said::TooLongV1 { max_model_len, needed_gib, available_gib, estimated_max_model_len } => {
            let held = *max_model_len as f64 * available_gib / needed_gib.max(f64::MIN_POSITIVE);
            let fits = estimated_max_model_len.or(Some(held as u64 / 16 * 16));
            too_long(*max_model_len, fits, (2.0 * held) as u64, pools, consistency)
        }
        Said::NoBlocks => no_blocks(facts),
        Said::ProfilingRace { .. } => vec![advice(
            "start it again while nothing else starts or ends on the GPU",
            "what vLLM measured was another process's",
        )],
        Said::NotFree { free_gib, total_gib, .. } => {
            let share = (free_gib / total_gib * 100.0).floor() / 100.0;
            vec![
                advice("end what else is on the GPU", "`nvidia-smi` lists it"),
                advice(
                    format!("--gpu-memory-utilization {share:.2}"),
                    "at most what is free; the KV cache is smaller then",
                ),
            ]
        }
        Said::OutOfMemory { .. } => vec![
            advice(
                "--gpu-memory-utilization lower, or --enforce-eager",
                "while serving or capturing graphs: these are beside the budget",
            ),
            advice(
                "weights in 4 bits, or a larger GPU",
                "while loading: `yardstick size --model ... --gpu ...` says what fits",
            ),
        ],
        Said::AutoFit { to, .. } => vec![advice(
            format!("--max-model-len {to}"),
            "the length that was fitted, so that it does not change from start to start",
        )],
        Said::LlamaContext { slot_tokens, model_tokens } if slot_tokens < model_tokens => {
            vec![advice(
                "OLLAMA_CONTEXT_LENGTH, num_ctx, or -c of llama-server",
                format!("longer prompts are cut to {slot_tokens} tokens without an error"),
            )]
        }
        Said::OllamaOffload { layers, layers_on_gpu } if layers_on_gpu < layers => vec![
            advice("a smaller num_ctx or fewer slots (OLLAMA_NUM_PARALLEL)", "K and V take less"),
            advice("OLLAMA_KV_CACHE_TYPE=q8_0 with OLLAMA_FLASH_ATTENTION=1", "K and V in half"),
        ],
        Said::OllamaBusy => vec![
            advice("OLLAMA_NUM_PARALLEL higher", "requests wait for a slot, not in the batch"),
            advice("OLLAMA_MAX_QUEUE higher", "more of them may wait"),
        ],
        _ => Vec::new(),
    }
}

fn too_long(
    max_model_len: u64,
    fits: Option<u64>,
    in_fp8: u64,
    pools: &[PoolRead],
    consistency: &[Consistency],
) -> Vec<Advice> {
    let mut all = Vec::new();
    if let Some(fits) = fits.filter(|fits| *fits > 0) {
        all.push(advice(format!("--max-model-len {fits}"), "what the KV cache holds as it is"));
    }
    all.extend(larger_share(pools, consistency));
    let is_fp8 = pools.iter().any(|pool| pool.kv_type == crate::sizing::KvType::Fp8);
    if !is_fp8 && in_fp8 >= max_model_len {
        all.push(advice(
            "--kv-cache-dtype fp8",
            format!("about {in_fp8} tokens: starts; K and V lose precision"),
        ));
    }
    let model = consistency.first().map_or("...", |found| found.model.as_str());
    all.push(advice(
        "weights in 4 bits, or a larger GPU",
        format!("`yardstick size --model {model} --gpu ...` gives the numbers"),
    ));
    all
}

/// The share that each GPU in question would need, in hundredths; of those at the
/// utilization that is likeliest, which come first. Nothing where none has it free.
fn larger_share(pools: &[PoolRead], consistency: &[Consistency]) -> Option<Advice> {
    let likeliest = consistency.iter().find_map(|found| found.combinations.first())?.utilization;
    let mut shares = Vec::new();
    for found in consistency {
        let pool = pools.iter().find(|pool| pool.model == found.model)?;
        let needed = i64::try_from(pool.needed_bytes?).unwrap_or(i64::MAX);
        let missing = (needed - pool.kv.low_bytes).max(0) as f64;
        for one in found.combinations.iter().filter(|one| one.utilization.eq(&likeliest)) {
            let total = one.cuda_total.low_bytes.max(1) as f64;
            let share = ((one.utilization + missing / total) * 100.0).ceil() / 100.0;
            shares.push((one.gpu.as_str(), share));
        }
    }
    let free = |share: f64| share <= 0.98;
    let most = shares.iter().map(|(_, share)| *share).filter(|share| free(*share));
    let most = most.max_by(f64::total_cmp)?;
    let each: Vec<String> = shares
        .iter()
        .map(|(gpu, share)| {
            let free = if free(*share) { "" } else { ", which is not free" };
            format!("{share:.2} on {gpu}{free}")
        })
        .collect();
    let why = format!("instead of {likeliest:.2}: {}", each.join("; "));
    Some(advice(format!("--gpu-memory-utilization {most:.2}"), why))
}

fn no_blocks(facts: &Facts) -> Vec<Advice> {
    let mut all = Vec::new();
    if let (Some(total), Some(share), Some(kv)) = (facts.total_gib, facts.utilization, facts.kv_gib)
    {
        let least = share - kv.min(0.0) / total;
        let why = format!(
            "{:.2} GiB are missing of {total} GiB; more than this is left for K and V",
            -kv.min(0.0)
        );
        if least < 0.98 {
            let share = (least * 100.0).floor() / 100.0 + 0.01;
            all.push(advice(format!("--gpu-memory-utilization above {share:.2}"), why));
        } else {
            all.push(advice("a larger GPU, or smaller weights", why));
        }
    } else {
        all.push(advice(
            "--gpu-memory-utilization higher",
            "weights and activations are more than the share; their sizes are in the log above \
             the error",
        ));
    }
    all.push(advice(
        "--max-num-seqs 64, --max-num-batched-tokens 2048",
        "the peak of activations is smaller",
    ));
    if let Some(weights) = facts.weights_gib {
        let gib = as_gib((weights * 0.3 * (1_u64 << 30) as f64) as i64);
        all.push(advice("weights in 4 bits", format!("about {gib:.1} GiB instead of {weights}")));
    }
    all
}
