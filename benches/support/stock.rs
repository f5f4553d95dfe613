//! candle's own Llama on the weights as our source gives them: the baseline of
//! the benches and, by this file, the oracle of the tests.

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Config, Llama, Llama3RopeConfig, Llama3RopeType};
use yardstick::infer::weights::{OpenModel, WeightForm};

/// The model in f32, and what its cache is made by.
pub fn open(model: &OpenModel) -> (Llama, Config) {
    let config = &model.config;
    let stock_config = Config {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        vocab_size: config.vocab_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: config.num_key_value_heads,
        use_flash_attn: false,
        rms_norm_eps: config.rms_norm_eps,
        rope_theta: config.rope_theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: config.rope_scaling.as_ref().map(|scaling| Llama3RopeConfig {
            factor: scaling.factor as f32,
            low_freq_factor: scaling.low_freq_factor as f32,
            high_freq_factor: scaling.high_freq_factor as f32,
            original_max_position_embeddings: scaling.original_max_position_embeddings,
            rope_type: Llama3RopeType::Llama3,
        }),
        max_position_embeddings: config.max_position_embeddings,
        tie_word_embeddings: config.tie_word_embeddings,
    };
    let load = |(name, shape): (String, Vec<usize>)| {
        let weight = model.weights.load(&name, &shape, WeightForm::F32).unwrap();
        (name, weight.to_f32().unwrap())
    };
    let tensors = config.tensors().into_iter().map(load).collect();
    let builder = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    (Llama::load(builder, &stock_config).unwrap(), stock_config)
}
