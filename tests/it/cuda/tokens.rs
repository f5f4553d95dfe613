//! What a CUDA device draws and scores is what the CPU does.

use yardstick::infer::{InferRequest, SamplingParams};

use super::*;

/// Prompts of one token, of several steps, that begin alike, and sampled ones.
fn requests() -> Vec<InferRequest> {
    let long: Vec<u32> = (0..150).map(|i| (i * i + 7) % 97).collect();
    let sampling = SamplingParams { temperature: 0.9, top_p: 0.9, top_k: Some(40), seed: 3 };
    vec![
        request(vec![5], 12),
        request(long.clone(), 12),
        request([&long[..64], &[90, 91, 92]].concat(), 12),
        InferRequest { n: 3, sampling, ..request((30..57).collect(), 9) },
        InferRequest { logprobs: Some(2), ..request((1..9).collect(), 5) },
    ]
}

fn generate(config: &EngineConfig) -> (BTreeMap<(u64, usize), Vec<u32>>, EngineCore) {
    let mut core = core(&model(), config);
    for request in requests() {
        core.add_request(request).unwrap();
    }
    (drain(&mut core), core)
}

#[test]
fn tokens_in_f32_are_those_of_the_cpu_in_every_mode() {
    if device().is_none() {
        return;
    }
    let base = config(CUDA, ComputeDtype::F32);
    let (expected, _) = generate(&config(ComputeDevice::Cpu, ComputeDtype::F32));
    assert_eq!(expected.len(), 7);
    let (found, core) = generate(&base);
    assert_eq!(found, expected);
    assert!(core.stats().prefix_hit_tokens > 0, "a prompt that begins like another");
    let tight = EngineConfig { kv: KvBudget::Blocks(30), ..base.clone() };
    let (found, core) = generate(&tight);
    assert_eq!(found, expected, "preempted");
    assert!(core.stats().num_preemptions > 0);
    for other in [
        EngineConfig { cuda_graphs: false, ..base.clone() },
        EngineConfig { enable_prefix_caching: false, ..base.clone() },
        EngineConfig { max_num_batched_tokens: 7, ..base.clone() },
        EngineConfig { block_size: 24, ..base.clone() },
        EngineConfig { max_num_seqs: 1, ..base },
    ] {
        assert_eq!(generate(&other).0, expected, "{other:?}");
    }
}

#[test]
fn graphs_change_no_token_in_any_precision() {
    if device().is_none() {
        return;
    }
    for dtype in [ComputeDtype::Bf16, ComputeDtype::F16] {
        let graphs = config(CUDA, dtype);
        let eager = EngineConfig { cuda_graphs: false, ..graphs.clone() };
        assert_eq!(generate(&graphs).0, generate(&eager).0, "{dtype}");
    }
}

/// Log-probabilities of a prompt's tokens.
fn scores(config: &EngineConfig) -> Vec<f32> {
    let prompt: Vec<u32> = (0..200).map(|i| (i * 31 + 11) % 97).collect();
    let mut core = core(&model(), config);
    let request = InferRequest { prompt_logprobs: Some(0), ..request(prompt, 0) };
    core.add_request(request).unwrap();
    let mut scores = Vec::new();
    while core.has_work() {
        for part in core.step().unwrap().scores {
            scores.extend(part.logprobs.iter().map(|logprob| logprob.logprob));
        }
    }
    assert_eq!(scores.len(), 199);
    scores
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn scores_are_as_near_to_f32_as_the_cpus_own_bf16() {
    if device().is_none() {
        return;
    }
    let exact = scores(&config(ComputeDevice::Cpu, ComputeDtype::F32));
    let difference = |device, dtype| largest_difference(&exact, &scores(&config(device, dtype)));
    assert!(difference(CUDA, ComputeDtype::F32) < 1e-4);
    let cpu = difference(ComputeDevice::Cpu, ComputeDtype::Bf16);
    let cuda = difference(CUDA, ComputeDtype::Bf16);
    assert!(cuda > 0.0 && cuda < 2.0 * cpu, "bf16 is off by {cuda} on CUDA, {cpu} on the CPU");
    // Three more bits of fraction.
    let half = difference(CUDA, ComputeDtype::F16);
    assert!(half > 0.0 && half < cpu, "f16 is off by {half}, bf16 on the CPU by {cpu}");
}
