//! Our forward against candle's own Llama over the same weights.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama as stock;
use yardstick::clock::Clock;
use yardstick::infer::model::config::RopeScaling;
use yardstick::infer::weights::{OpenModel, WeightForm};
use yardstick::infer::{ComputeDtype, EngineConfig, EngineCore, ModelConfig};

use super::{VOCAB, open, requests, run, tiny};

/// Log-probabilities of candle's own Llama over `ids`, from position `from` on.
fn stock_logprobs(model: &OpenModel, ids: &[u32], from: usize) -> Vec<Vec<f32>> {
    let config = &model.config;
    let load = |(name, shape): (String, Vec<usize>)| {
        let weight = model.weights.load(&name, &shape, WeightForm::F32).unwrap();
        (name, weight.to_f32().unwrap())
    };
    let tensors: HashMap<_, _> = config.tensors().into_iter().map(load).collect();
    let stock_config = stock::Config {
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
        rope_scaling: config.rope_scaling.as_ref().map(|scaling| stock::Llama3RopeConfig {
            factor: scaling.factor as f32,
            low_freq_factor: scaling.low_freq_factor as f32,
            high_freq_factor: scaling.high_freq_factor as f32,
            original_max_position_embeddings: scaling.original_max_position_embeddings,
            rope_type: stock::Llama3RopeType::Llama3,
        }),
        max_position_embeddings: config.max_position_embeddings,
        tie_word_embeddings: config.tie_word_embeddings,
    };
    let builder = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let llama = stock::Llama::load(builder, &stock_config).unwrap();
    let mut cache = stock::Cache::new(true, DType::F32, &stock_config, &Device::Cpu).unwrap();
    let mut forward = |ids: &[u32], position| {
        let x = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = llama.forward(&x, position, &mut cache).unwrap().squeeze(0).unwrap();
        candle_nn::ops::log_softmax(&logits, 0).unwrap().to_vec1::<f32>().unwrap()
    };
    let mut all = vec![forward(&ids[..from], 0)];
    all.extend((from..ids.len()).map(|at| forward(&ids[at..=at], at)));
    all
}

#[test]
fn logits_agree_with_candles_own_llama() {
    agrees_with_stock(tiny());
}

#[test]
fn logits_agree_with_candles_own_llama_untied_and_with_scaled_frequencies() {
    let rope_scaling = Some(RopeScaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    });
    agrees_with_stock(ModelConfig { tie_word_embeddings: false, rope_scaling, ..tiny() });
}

fn agrees_with_stock(config: ModelConfig) {
    let model = open(config);
    let config = EngineConfig { dtype: Some(ComputeDtype::F32), ..EngineConfig::default() };
    let mut core =
        EngineCore::new(&model.config, &*model.weights, &config, Clock::manual()).unwrap();
    for request in requests() {
        let drawn = run(&mut core, std::slice::from_ref(&request)).remove(0);
        let mut ids = request.prompt_ids.clone();
        ids.extend(drawn.iter().map(|(token, _)| *token));
        ids.pop();
        let theirs = stock_logprobs(&model, &ids, request.prompt_ids.len());
        assert_eq!(theirs.len(), drawn.len());
        for ((_, ours), theirs) in drawn.iter().zip(theirs) {
            assert_eq!(ours.len(), 1 + VOCAB);
            for (id, bits) in ours {
                // Rounding in another order, over two layers in f32.
                let difference = (f32::from_bits(*bits) - theirs[*id as usize]).abs();
                assert!(difference < 1e-4, "token {id} differs by {difference}");
            }
        }
    }
}
