//! The embedded engine on a CUDA device: a GPU, or an emulated one. Skipped,
//! with a printed reason, where there is neither. What ran on an emulated device
//! says so by its name, and no time is taken.

mod command;
mod counters;
mod tokens;

use std::collections::BTreeMap;

use yardstick::clock::Clock;
use yardstick::infer::device::cuda_devices;
use yardstick::infer::weights;
use yardstick::infer::{
    ComputeDevice, ComputeDtype, EngineConfig, EngineCore, InferRequest, KvBudget, ModelConfig,
    ModelSource,
};

const CUDA: ComputeDevice = ComputeDevice::Cuda(0);

/// The name of the device, or none with the reason printed.
fn device() -> Option<String> {
    match cuda_devices() {
        Ok(devices) => Some(devices[0].name.clone()),
        Err(why) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

/// Two layers whose heads have tensor core kernels.
fn model() -> ModelConfig {
    ModelConfig {
        hidden_size: 64,
        intermediate_size: 96,
        num_attention_heads: 6,
        head_dim: 64,
        max_position_embeddings: 1024,
        tie_word_embeddings: false,
        attention_bias: true,
        ..ModelConfig::tiny()
    }
}

fn config(device: ComputeDevice, dtype: ComputeDtype) -> EngineConfig {
    EngineConfig {
        device: Some(device),
        dtype: Some(dtype),
        kv: KvBudget::Blocks(80),
        block_size: 8,
        max_num_seqs: 6,
        max_num_batched_tokens: 48,
        ..EngineConfig::default()
    }
}

fn core(model: &ModelConfig, config: &EngineConfig) -> EngineCore {
    let source = ModelSource::Dummy { config: Box::new(model.clone()), seed: 5, tokenizer: None };
    let opened = weights::open(&source).unwrap();
    EngineCore::new(&opened.config, &*opened.weights, config, Clock::real()).unwrap()
}

fn request(prompt_ids: Vec<u32>, max_tokens: usize) -> InferRequest {
    InferRequest { ignore_eos: true, ..InferRequest::new(prompt_ids, max_tokens) }
}

/// Runs until idle; the tokens of each sequence, by request and sample.
fn drain(core: &mut EngineCore) -> BTreeMap<(u64, usize), Vec<u32>> {
    let mut tokens = BTreeMap::<_, Vec<u32>>::new();
    while core.has_work() {
        for output in core.step().unwrap().outputs {
            let id = (output.id, output.sample);
            tokens.entry(id).or_default().push(output.result.unwrap().id);
        }
    }
    tokens
}
