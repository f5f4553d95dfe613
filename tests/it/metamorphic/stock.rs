//! Our forward against candle's own Llama over the same weights.

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::llama as stock;
use yardstick::clock::Clock;
use yardstick::infer::model::config::RopeScaling;
use yardstick::infer::weights::OpenModel;
use yardstick::infer::{ComputeDtype, EngineConfig, EngineCore, ModelConfig};

use super::{VOCAB, open, requests, run, tiny};

#[path = "../../../benches/support/stock.rs"]
mod oracle;

/// Log-probabilities of candle's own Llama over `ids`, from position `from` on.
fn stock_logprobs(model: &OpenModel, ids: &[u32], from: usize) -> Vec<Vec<f32>> {
    let (llama, stock_config) = oracle::open(model);
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
