//! The same weights, whatever file they come from.

use candle_core::quantized::GgmlDType;
use safetensors::tensor::Dtype;
use yardstick::infer::weights::{self, StoredDtype, Weight, WeightForm};
use yardstick::infer::{EngineConfig, EngineHost, ModelSource};

use super::forms::{
    dense_weights, tiny_config, tiny_weights, values, write_tiny_folder, write_tiny_gguf,
};

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn safetensors_single_and_sharded_give_back_what_was_written() {
    for (dtype, tolerance) in [(Dtype::F32, 0.0), (Dtype::F16, 1e-4), (Dtype::BF16, 1e-3)] {
        for sharded in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            write_tiny_folder(folder.path(), dtype, sharded);
            let model = weights::open(&ModelSource::Folder(folder.path().to_owned())).unwrap();
            assert_eq!(model.config, tiny_config());
            for ((name, _, expected), (_, _, got)) in
                tiny_weights().iter().zip(dense_weights(&model))
            {
                assert!(largest_difference(expected, &got) <= tolerance, "{dtype:?} {name}");
            }
            assert_eq!(model.weights.stored_dtype().to_string(), format!("{dtype:?}"));
            let bytes = if dtype == Dtype::F32 { 4 } else { 2 };
            assert_eq!(model.weights.stored_bytes(), tiny_config().num_parameters() * bytes);
        }
    }
}

#[test]
fn gguf_gives_back_what_was_written_with_interleaved_rows_undone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    for (dtype, tolerance) in [
        (GgmlDType::F32, 0.0),
        (GgmlDType::F16, 1e-4),
        (GgmlDType::BF16, 1e-3),
        (GgmlDType::Q8_0, 1e-3),
        (GgmlDType::Q5_0, 8e-3),
        (GgmlDType::Q5_1, 8e-3),
        (GgmlDType::Q4_0, 1.2e-2),
        (GgmlDType::Q4_1, 1.2e-2),
    ] {
        write_tiny_gguf(&path, dtype);
        let model = weights::open(&ModelSource::Gguf(path.clone())).unwrap();
        assert_eq!(model.config, tiny_config());
        for ((name, _, expected), (_, _, got)) in tiny_weights().iter().zip(dense_weights(&model)) {
            let difference = largest_difference(expected, &got);
            assert!(difference <= tolerance, "{dtype:?} {name} differs by {difference}");
        }
    }
}

#[test]
fn blocks_that_are_kept_hold_the_same_numbers_as_widened_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write_tiny_gguf(&path, GgmlDType::Q4_1);
    let model = weights::open(&ModelSource::Gguf(path)).unwrap();
    for (name, shape) in model.config.tensors() {
        let kept = model.weights.load(&name, &shape, WeightForm::Stored).unwrap();
        assert_eq!(matches!(kept, Weight::Quantized(_)), shape.len() == 2, "{name}");
        let widened = model.weights.load(&name, &shape, WeightForm::F32).unwrap();
        assert_eq!(values(&kept), values(&widened), "{name}");
    }
    assert_eq!(model.weights.stored_dtype(), StoredDtype::Blocks("Q4_1".to_owned()));
}

#[test]
fn a_tied_output_head_is_the_embedding() {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_folder(folder.path(), Dtype::F32, false);
    let path = folder.path().join("tiny.gguf");
    write_tiny_gguf(&path, GgmlDType::Q8_0);
    for source in [ModelSource::Folder(folder.path().to_owned()), ModelSource::Gguf(path)] {
        let model = weights::open(&source).unwrap();
        assert!(model.config.tie_word_embeddings);
        let shape = [model.config.vocab_size, model.config.hidden_size];
        let head = model.weights.load("lm_head.weight", &shape, WeightForm::F32).unwrap();
        let embedding =
            model.weights.load("model.embed_tokens.weight", &shape, WeightForm::F32).unwrap();
        assert_eq!(values(&head), values(&embedding));
    }
}

#[test]
fn a_tensor_that_no_model_has_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write_tiny_gguf(&path, GgmlDType::F32);
    let model = weights::open(&ModelSource::Gguf(path)).unwrap();
    let error =
        model.weights.load("model.layers.0.mlp.experts.weight", &[1], WeightForm::F32).unwrap_err();
    assert!(error.to_string().contains("mlp.experts"), "{error}");
    let error = model.weights.load("model.norm.weight", &[7], WeightForm::F32).unwrap_err();
    assert!(error.to_string().contains("[32], expected [7]"), "{error}");
}

#[test]
fn the_engine_opens_every_form() {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_folder(folder.path(), Dtype::BF16, true);
    let path = folder.path().join("tiny.gguf");
    write_tiny_gguf(&path, GgmlDType::Q8_0);
    let clock = yardstick::clock::Clock::real;
    let config = EngineConfig::default();
    for source in [ModelSource::Folder(folder.path().to_owned()), ModelSource::Gguf(path)] {
        EngineHost::open(&source, config.clone(), clock()).unwrap().load().unwrap();
    }
}
