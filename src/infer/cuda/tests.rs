//! The whole runner over kernels compiled for the host: the engine on it draws
//! the tokens of the engine on the CPU.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::Element;
use super::buffers::KvPool;
use super::runner::DeviceRunner;
use super::simt::{Host, Submitted};
use super::weights::Weights;
use crate::clock::Clock;
use crate::infer::core::tests::{Damaged, Noise};
use crate::infer::kv::KvSizing;
use crate::infer::scheduler::SchedulerLimits;
use crate::infer::weights::WeightSource;
use crate::infer::{
    ComputeDevice, ComputeDtype, EngineConfig, EngineCore, InferRequest, KvBudget, ModelConfig,
    SamplingParams,
};

/// Two layers whose heads the kernels take.
fn model() -> ModelConfig {
    ModelConfig {
        hidden_size: 64,
        intermediate_size: 96,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 16,
        ..ModelConfig::tiny()
    }
}

fn config(dtype: ComputeDtype) -> EngineConfig {
    EngineConfig {
        device: Some(ComputeDevice::Cpu),
        dtype: Some(dtype),
        kv: KvBudget::Blocks(24),
        block_size: 8,
        max_num_seqs: 6,
        max_num_batched_tokens: 32,
        ..EngineConfig::default()
    }
}

/// The engine over a host device, and what the device is asked to do.
fn on_host(config: &EngineConfig) -> (EngineCore, Arc<Mutex<Submitted>>) {
    on_host_with(config, &Noise)
}

fn on_host_with(
    config: &EngineConfig,
    source: &dyn WeightSource,
) -> (EngineCore, Arc<Mutex<Submitted>>) {
    let model = model();
    let dtype = config.dtype.unwrap();
    let element = Element::of(dtype).unwrap();
    let sizing = KvSizing::new(config, dtype, &model, None).unwrap();
    let mut device = Host::default();
    let submitted = device.submitted();
    let weights =
        Weights::load(&mut device, &model, source, element, sizing.max_model_len).unwrap();
    let limits = SchedulerLimits::new(config, &sizing);
    let pool = |device: &mut Host| KvPool::new(device, &model, element, &sizing);
    let mut runner = DeviceRunner::new(device, &model, element, weights, &limits, pool).unwrap();
    if config.cuda_graphs {
        runner.record_graphs(limits.max_num_seqs);
        assert_eq!(runner.num_graphs(), 4, "1, 2, 4 and 6 sequences");
    }
    (EngineCore::with_runner(Box::new(runner), &sizing, &model, config), submitted)
}

fn on_cpu(config: &EngineConfig) -> EngineCore {
    EngineCore::new(&model(), &Noise, config, Clock::manual()).unwrap()
}

/// Prompts of different lengths, two of which begin alike, one sampled thrice.
fn generate(core: &mut EngineCore) -> BTreeMap<(u64, usize), Vec<u32>> {
    let prompts: [Vec<u32>; 4] =
        [vec![5], (0..40).collect(), (0..24).chain([90, 91, 92]).collect(), (30..37).collect()];
    for prompt in prompts {
        let request = InferRequest { ignore_eos: true, ..InferRequest::new(prompt, 6) };
        core.add_request(request).unwrap();
    }
    let sampling = SamplingParams { temperature: 1.0, top_p: 0.9, top_k: Some(30), seed: 4 };
    let sampled = InferRequest { ignore_eos: true, n: 3, ..InferRequest::new(vec![8, 9], 4) };
    core.add_request(InferRequest { sampling, ..sampled }).unwrap();
    let mut tokens = BTreeMap::<_, Vec<u32>>::new();
    while core.has_work() {
        for output in core.step().unwrap().outputs {
            let sample = (output.id, output.sample);
            tokens.entry(sample).or_default().push(output.result.unwrap().id);
        }
    }
    tokens
}

#[test]
fn tokens_are_those_of_the_cpu() {
    let config = config(ComputeDtype::F32);
    let expected = generate(&mut on_cpu(&config));
    assert_eq!(expected.len(), 7);
    let (mut core, _) = on_host(&config);
    assert_eq!(generate(&mut core), expected);
    assert!(core.stats().prefix_hit_tokens > 0);
    let no_graphs = EngineConfig { cuda_graphs: false, ..config.clone() };
    assert_eq!(generate(&mut on_host(&no_graphs).0), expected);
    let (mut core, _) = on_host(&EngineConfig { kv: KvBudget::Blocks(9), ..config });
    assert_eq!(generate(&mut core), expected);
    assert!(core.stats().num_preemptions > 0);
}

/// Log-probabilities of a prompt, in several chunks.
fn scores(mut core: EngineCore) -> Vec<f32> {
    let prompt = (0..70).map(|i| (i * 31 + 11) % 97).collect();
    let request = InferRequest { prompt_logprobs: Some(0), ..InferRequest::new(prompt, 0) };
    core.add_request(request).unwrap();
    let mut scores = Vec::new();
    while core.has_work() {
        for part in core.step().unwrap().scores {
            scores.extend(part.logprobs.iter().map(|logprob| logprob.logprob));
        }
    }
    scores
}

#[test]
fn scores_in_two_bytes_are_near_those_in_f32() {
    let exact = scores(on_cpu(&config(ComputeDtype::F32)));
    assert_eq!(exact.len(), 69);
    let difference = |core| {
        let pairs = exact.iter().zip(scores(core));
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let cpu = difference(on_cpu(&config(ComputeDtype::Bf16)));
    let device = difference(on_host(&config(ComputeDtype::Bf16)).0);
    assert!(device > 0.0 && device < 2.0 * cpu, "off by {device}, the CPU's own bf16 by {cpu}");
}

#[test]
fn decode_step_is_one_graph_one_copy_each_way_and_one_wait() {
    let config = config(ComputeDtype::F32);
    let (mut core, submitted) = on_host(&config);
    for prompt in [vec![1, 2, 3], vec![4], vec![5, 6]] {
        core.add_request(InferRequest { ignore_eos: true, ..InferRequest::new(prompt, 9) })
            .unwrap();
    }
    core.step().unwrap();
    let before = *submitted.lock().unwrap();
    core.step().unwrap();
    let after = *submitted.lock().unwrap();
    let expected = Submitted {
        graphs: before.graphs + 1,
        copies_in: before.copies_in + 1,
        fetched_bytes: before.fetched_bytes + 4 * 3,
        waits: before.waits + 1,
        ..before
    };
    assert_eq!(after, expected);
}

#[test]
fn logits_that_are_no_numbers_fail_their_request_alone() {
    let (mut core, _) = on_host_with(&config(ComputeDtype::F32), &Damaged);
    core.add_request(InferRequest::new(vec![4, 5], 3)).unwrap();
    let report = core.step().unwrap();
    let error = report.outputs[0].result.as_ref().unwrap_err().to_string();
    assert!(error.contains("not a number"), "{error}");
    assert!(!core.has_work());
}
