//! Tiny models of every family against transformers, through every kind of
//! file: made by tests/fixtures/make_breadth.py, which says how.

use candle_core::quantized::GgmlDType;
use serde::Deserialize;
use yardstick::clock::Clock;
use yardstick::infer::{
    ComputeDtype, EngineConfig, EngineHost, GenerationEvent, InferError, InferRequest, ModelConfig,
    ModelSource, StopReason,
};

use super::Answer;
use super::noise::{write_folder, write_gguf};

const FIXTURE: &str = include_str!("../../fixtures/breadth.json");
/// Natural-log probabilities of two f32 implementations over two layers.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Fixture {
    families: Vec<Family>,
    quantized: Vec<Quantized>,
}

#[derive(Deserialize)]
struct Family {
    name: String,
    /// config.json, as transformers wrote it.
    config: serde_json::Value,
    cases: Vec<Answer>,
}

#[derive(Deserialize)]
struct Quantized {
    dtype: String,
    cases: Vec<Answer>,
}

fn fixture() -> Fixture {
    serde_json::from_str(FIXTURE).unwrap()
}

impl Family {
    fn model_config(&self) -> ModelConfig {
        ModelConfig::from_hf(&self.config.to_string(), None).unwrap()
    }
}

fn host(source: &ModelSource, dtype: Option<ComputeDtype>) -> EngineHost {
    let config = EngineConfig { dtype, ..EngineConfig::default() };
    EngineHost::open(source, config, Clock::real()).unwrap()
}

/// All cases in one batch.
fn check(name: &str, source: &ModelSource, cases: &[Answer]) {
    let host = host(source, Some(ComputeDtype::F32));
    let generations: Vec<_> =
        cases.iter().map(|case| host.submit(case.request()).unwrap()).collect();
    for (case, generation) in cases.iter().zip(generations) {
        let name = format!("{name}, prompt of {}", case.prompt_ids.len());
        case.check(&name, generation, TOLERANCE);
    }
}

#[test]
fn every_family_answers_like_transformers_from_one_file_and_from_shards() {
    for family in fixture().families {
        for shards in [1, 3] {
            let folder = tempfile::tempdir().unwrap();
            let json = family.config.to_string();
            write_folder(folder.path(), &json, &family.model_config(), shards);
            let source = ModelSource::Folder(folder.path().to_owned());
            check(&format!("{} in {shards}", family.name), &source, &family.cases);
        }
    }
}

#[test]
fn every_family_answers_like_transformers_from_gguf() {
    for family in fixture().families {
        // GGUF keeps Llama 3's scaling as divisors of the published 8192 positions,
        // and no sliding window for this architecture.
        if ["llama_3_1", "mistral_windowed"].contains(&family.name.as_str()) {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let architecture = if family.name == "qwen2" { "qwen2" } else { "llama" };
        write_gguf(&path, architecture, &family.model_config(), GgmlDType::F32);
        check(&family.name, &ModelSource::Gguf(path), &family.cases);
    }
}

fn ggml(name: &str) -> GgmlDType {
    match name {
        "F32" => GgmlDType::F32,
        "F16" => GgmlDType::F16,
        "BF16" => GgmlDType::BF16,
        "Q4_0" => GgmlDType::Q4_0,
        "Q4_1" => GgmlDType::Q4_1,
        "Q5_0" => GgmlDType::Q5_0,
        "Q5_1" => GgmlDType::Q5_1,
        "Q8_0" => GgmlDType::Q8_0,
        "Q2_K" => GgmlDType::Q2K,
        "Q3_K" => GgmlDType::Q3K,
        "Q4_K" => GgmlDType::Q4K,
        "Q5_K" => GgmlDType::Q5K,
        "Q6_K" => GgmlDType::Q6K,
        other => panic!("the fixture has a model in {other}"),
    }
}

/// The model whose rows are whole blocks of every type.
pub(crate) fn block_model() -> ModelConfig {
    ModelConfig {
        vocab_size: 288,
        hidden_size: 256,
        intermediate_size: 512,
        head_dim: 64,
        max_position_embeddings: 256,
        eos_token_ids: vec![257],
        ..ModelConfig::tiny()
    }
}

#[test]
fn every_type_of_block_is_widened_to_what_the_reference_computes_with() {
    for model in fixture().quantized {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        write_gguf(&path, "llama", &block_model(), ggml(&model.dtype));
        check(&model.dtype, &ModelSource::Gguf(path), &model.cases);
    }
}

/// Activations rounded to 8 bits move a log-probability of these models, whose
/// logits spread over several units, by no more than this.
const ROUNDED: f32 = 0.35;

#[test]
fn weights_computed_as_they_are_stored_stay_close_to_the_reference() {
    for model in fixture().quantized {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        write_gguf(&path, "llama", &block_model(), ggml(&model.dtype));
        let host = host(&ModelSource::Gguf(path), None);
        let dtype = match model.dtype.as_str() {
            "F32" | "F16" => "f32",
            "BF16" => "bf16",
            _ => "quantized",
        };
        assert_eq!(host.settings()["dtype"], dtype, "{}", model.dtype);
        for case in &model.cases {
            // Past the first token a near tie may turn another way.
            let request = InferRequest { max_tokens: 1, logprobs: Some(100), ..case.request() };
            let mut generation = host.submit(request).unwrap();
            let Some(GenerationEvent::Token { logprobs: Some(ours), .. }) =
                generation.blocking_next()
            else {
                panic!("{}: no token", model.dtype)
            };
            for (id, expected) in &case.top_logprobs[0] {
                let got = ours.top.iter().find(|(token, _)| token == id);
                let got = got.unwrap_or_else(|| panic!("{}: token {id} fell far", model.dtype)).1;
                assert!(
                    (got - expected).abs() < ROUNDED,
                    "{}: token {id} at {got}, expected {expected}",
                    model.dtype
                );
            }
        }
    }
}

#[test]
fn a_sequence_ends_where_the_sliding_window_would_begin_to_slide() {
    let families = fixture().families;
    let family = families.iter().find(|family| family.name == "mistral_windowed").unwrap();
    let config = family.model_config();
    assert_eq!(config.max_position_embeddings, 48);
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &family.config.to_string(), &config, 1);
    let source = ModelSource::Folder(folder.path().to_owned());
    let case = family.cases.last().unwrap();
    assert_eq!(case.prompt_ids.len() + case.tokens.len(), 48);
    let host = host(&source, Some(ComputeDtype::F32));
    let request = InferRequest { max_tokens: 100, ..case.request() };
    let mut generation = host.submit(request).unwrap();
    let mut tokens = Vec::new();
    while let Some(event) = generation.blocking_next() {
        match event {
            GenerationEvent::Token { id, .. } => tokens.push(id),
            GenerationEvent::Done { reason, .. } => assert_eq!(reason, StopReason::Length),
            GenerationEvent::PromptLogprobs { .. } => panic!("no scores were asked for"),
            GenerationEvent::Failed(error) => panic!("{error}"),
        }
    }
    assert_eq!(tokens, case.tokens);

    let longer = EngineConfig { max_model_len: Some(49), ..EngineConfig::default() };
    let Err(InferError::Config(reason)) = EngineHost::open(&source, longer, Clock::real()) else {
        panic!("a length past the window was accepted");
    };
    assert!(reason.contains("max_model_len 49"), "{reason}");
}
