//! The model to measure: the default one, or what `YARDSTICK_BENCH_MODEL` names.

use yardstick::catalog::{self, LocateOptions, Located};
use yardstick::clock::Clock;
use yardstick::infer::weights::{self, OpenModel};
use yardstick::infer::{ComputeDevice, ComputeDtype, EngineConfig, EngineCore, ModelConfig};

/// Where the model is.
///
/// `YARDSTICK_BENCH_MODEL` is a card's name, a GGUF file or a folder;
/// `YARDSTICK_BENCH_DUMMY=1` takes seeded noise of a card's shapes instead.
pub fn locate() -> Located {
    let name = std::env::var("YARDSTICK_BENCH_MODEL")
        .unwrap_or_else(|_| "smollm2-135m-instruct".to_owned());
    let dummy = std::env::var_os("YARDSTICK_BENCH_DUMMY").map(|_| 0);
    let options = LocateOptions { dummy, ..LocateOptions::default() };
    let located = catalog::locate(&name, &options, &mut |_| {});
    located.unwrap_or_else(|error| panic!("{name} cannot be found: {error}"))
}

/// Opens it, and says what it is and where it came from.
pub fn open() -> OpenModel {
    let located = locate();
    let model = weights::open(&located.source).unwrap_or_else(|error| panic!("{error}"));
    eprintln!("model: {} from {}", model.weights.stored_dtype(), located.origin);
    model
}

/// An engine on it.
pub fn core(model: &OpenModel, dtype: ComputeDtype, max_model_len: usize) -> EngineCore {
    let config = EngineConfig {
        max_model_len: Some(max_model_len),
        dtype: Some(dtype),
        device: Some(ComputeDevice::Cpu),
        ..EngineConfig::default()
    };
    EngineCore::new(&model.config, &*model.weights, &config, Clock::real())
        .unwrap_or_else(|error| panic!("{error}"))
}

/// What is computed of these weights unless something else is asked for.
pub fn auto_dtype(model: &OpenModel) -> ComputeDtype {
    ComputeDtype::resolve(None, &model.weights.stored_dtype(), ComputeDevice::Cpu)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// What can be computed of these weights: quantized only where they are.
pub fn dtypes(model: &OpenModel) -> Vec<ComputeDtype> {
    let stored = model.weights.stored_dtype();
    [ComputeDtype::F32, ComputeDtype::Bf16, ComputeDtype::Quantized]
        .into_iter()
        .filter(|dtype| ComputeDtype::resolve(Some(*dtype), &stored, ComputeDevice::Cpu).is_ok())
        .collect()
}

/// Multiply-adds of the matrices for one token, without the output head.
pub const fn layer_multiply_adds(config: &ModelConfig) -> usize {
    let kv = config.num_key_value_heads * config.head_dim;
    let q = config.num_attention_heads * config.head_dim;
    let layer = config.hidden_size * (2 * q + 2 * kv + 3 * config.intermediate_size);
    config.num_hidden_layers * layer
}

/// Multiply-adds of attention for a prompt of `len` tokens.
pub const fn attention_multiply_adds(config: &ModelConfig, len: usize) -> usize {
    let heads = config.num_attention_heads * config.head_dim;
    config.num_hidden_layers * heads * len * (len + 1)
}
