//! One model in its forms: the package's GGUF, a Hugging Face folder made of
//! it, and tiny ones written by the tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer as HfTokenizer};
use yardstick::catalog::{DEFAULT_MODEL, LocateOptions, Places, locate_in};
use yardstick::infer::weights::{self, OpenModel, Weight, WeightForm};
use yardstick::infer::{ModelConfig, ModelSource};

/// Name, shape, values.
pub(crate) type NamedTensor = (String, Vec<usize>, Vec<f32>);

/// The package's GGUF of the default model, whatever else this machine has of it.
pub(crate) fn default_gguf() -> ModelSource {
    static FOUND: OnceLock<ModelSource> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let mut places = Places::from_env();
            places.models = None;
            places.hub.offline = true;
            places.hub.cache = PathBuf::from("no hub cache");
            let options = LocateOptions::default();
            let found = locate_in(&places, DEFAULT_MODEL, &options, &mut |_| {});
            found.unwrap_or_else(|e| panic!("the tests need the default model: {e}")).source
        })
        .clone()
}

/// All weights in f32, by Hugging Face name.
pub(crate) fn dense_weights(model: &OpenModel) -> Vec<NamedTensor> {
    model
        .config
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let values = values(&model.weights.load(&name, &shape, WeightForm::F32).unwrap());
            (name, shape, values)
        })
        .collect()
}

pub(crate) fn values(weight: &Weight<'_>) -> Vec<f32> {
    weight.to_f32().unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Writes the Hugging Face form of a GGUF: weights in f32, and a tokenizer.json
/// built with candle's reader, independently of ours.
pub(crate) fn write_hf_form(source: &ModelSource, folder: &Path) {
    let ModelSource::Gguf(path) = source else { panic!("expected a GGUF, got {source:?}") };
    let model = weights::open(source).unwrap();
    write_safetensors(&folder.join("model.safetensors"), &dense_weights(&model), Dtype::F32);
    write_config(folder, &model.config);
    let content = gguf_file::Content::read(&mut File::open(path).unwrap()).unwrap();
    let metadata = content.metadata;
    let strings = |key: &str| -> Vec<String> {
        let values = metadata[key].to_vec().unwrap().iter();
        values.map(|value| value.to_string().unwrap().clone()).collect()
    };
    let tokens = strings("tokenizer.ggml.tokens");
    let merges = strings("tokenizer.ggml.merges")
        .iter()
        .map(|merge| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap())
        .collect();
    let vocab: Vocab = tokens.iter().cloned().zip(0..).collect();
    let bpe = BPE::builder().vocab_and_merges(vocab, merges);
    let mut tokenizer = HfTokenizer::new(bpe.build().unwrap());
    let steps = vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let control = tokens.iter().take(17).map(|t| AddedToken::from(t, true).normalized(false));
    tokenizer.add_special_tokens(control).unwrap();
    tokenizer.save(folder.join("tokenizer.json"), false).unwrap();
    let template = metadata["tokenizer.chat_template"].to_string().unwrap();
    let config =
        json!({"chat_template": template, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"});
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// config.json as transformers would write it.
pub(crate) fn write_config(folder: &Path, config: &ModelConfig) {
    let json = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "eos_token_id": config.eos_token_ids,
    });
    fs::write(folder.join("config.json"), json.to_string()).unwrap();
}

/// One safetensors file of the given type.
pub(crate) fn write_safetensors(path: &Path, weights: &[NamedTensor], dtype: Dtype) {
    let bytes: Vec<Vec<u8>> = weights
        .iter()
        .map(|(_, _, values)| match dtype {
            Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 => {
                values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect()
            }
            Dtype::BF16 => {
                values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect()
            }
            other => panic!("tests write no {other:?}"),
        })
        .collect();
    let views: Vec<(&str, TensorView<'_>)> = weights
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| {
            (name.as_str(), TensorView::new(dtype, shape.clone(), bytes).unwrap())
        })
        .collect();
    serialize_to_file(views, None, path).unwrap();
}

/// The shape of the tiny models.
pub(crate) fn tiny_config() -> ModelConfig {
    ModelConfig {
        vocab_size: 288,
        intermediate_size: 64,
        eos_token_ids: vec![257],
        ..ModelConfig::tiny()
    }
}

/// Noise that every form of the tiny model holds.
pub(crate) fn tiny_weights() -> Vec<NamedTensor> {
    let source = ModelSource::Dummy { config: Box::new(tiny_config()), seed: 5, tokenizer: None };
    dense_weights(&weights::open(&source).unwrap())
}

/// Texts of a byte-level vocabulary: the 256 bytes, then two control tokens.
pub(crate) fn tiny_tokens() -> Vec<String> {
    let mut bytes: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    bytes.sort_unstable();
    let mut tokens: Vec<String> = bytes.into_iter().map(String::from).collect();
    tokens.extend(["<|begin|>".to_owned(), "<|end|>".to_owned()]);
    tokens.extend(["he", "ll", "hell", "hello"].map(str::to_owned));
    tokens
}

const TINY_MERGES: [&str; 4] = ["h e", "l l", "he ll", "hell o"];

/// A folder with the tiny model, single or in two shards.
pub(crate) fn write_tiny_folder(folder: &Path, dtype: Dtype, sharded: bool) {
    let weights = tiny_weights();
    write_config(folder, &tiny_config());
    write_tiny_tokenizer(folder);
    if !sharded {
        write_safetensors(&folder.join("model.safetensors"), &weights, dtype);
        return;
    }
    let (first, second) = weights.split_at(weights.len() / 2);
    let mut map = serde_json::Map::new();
    for (number, part) in [(1, first), (2, second)] {
        let file = format!("model-{number:05}-of-00002.safetensors");
        write_safetensors(&folder.join(&file), part, dtype);
        map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(file))));
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

pub(crate) fn write_tiny_tokenizer(folder: &Path) {
    let vocab: Vocab = tiny_tokens().into_iter().zip(0..).collect();
    let merges = TINY_MERGES
        .iter()
        .map(|merge| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap())
        .collect();
    let bpe = BPE::builder().vocab_and_merges(vocab, merges).build().unwrap();
    let mut tokenizer = HfTokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let control = ["<|begin|>", "<|end|>"].map(|t| AddedToken::from(t, true).normalized(false));
    tokenizer.add_special_tokens(control).unwrap();
    tokenizer.save(folder.join("tokenizer.json"), false).unwrap();
}

/// The tiny model as llama.cpp's converter would write it: rows of q and k
/// interleaved, matrices in `dtype`, vectors in F32.
pub(crate) fn write_tiny_gguf(path: &Path, dtype: GgmlDType) {
    write_gguf(path, dtype, &tiny_metadata(), &tiny_weights());
}

pub(crate) fn write_gguf(
    path: &Path,
    dtype: GgmlDType,
    metadata: &[(String, Value)],
    weights: &[NamedTensor],
) {
    let config = tiny_config();
    let tensors: Vec<(String, QTensor)> = weights
        .iter()
        .map(|(name, shape, values)| {
            let values = if name.contains(".q_proj.") || name.contains(".k_proj.") {
                interleave(values, shape, config.head_dim)
            } else {
                values.clone()
            };
            let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap();
            let dtype = if shape.len() == 1 { GgmlDType::F32 } else { dtype };
            (gguf_name(name), QTensor::quantize(&tensor, dtype).unwrap())
        })
        .collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let metadata: Vec<(&str, &Value)> =
        metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

/// `[heads, 2, head_dim / 2] -> [heads, head_dim / 2, 2]` over rows.
fn interleave(values: &[f32], shape: &[usize], head_dim: usize) -> Vec<f32> {
    let (rows, cols) = (shape[0], shape[1]);
    let mut out = vec![0.0; values.len()];
    for row in 0..rows {
        let (head, within) = (row / head_dim, row % head_dim);
        let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
        let target = head * head_dim + pair * 2 + half;
        out[target * cols..][..cols].copy_from_slice(&values[row * cols..][..cols]);
    }
    out
}

pub(crate) fn gguf_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".to_owned(),
        "model.norm.weight" => return "output_norm.weight".to_owned(),
        "lm_head.weight" => return "output.weight".to_owned(),
        _ => {}
    }
    name.replace("model.layers.", "blk.")
        .replace("input_layernorm", "attn_norm")
        .replace("post_attention_layernorm", "ffn_norm")
        .replace("self_attn.o_proj", "attn_output")
        .replace("self_attn.q_proj", "attn_q")
        .replace("self_attn.k_proj", "attn_k")
        .replace("self_attn.v_proj", "attn_v")
        .replace("mlp.gate_proj", "ffn_gate")
        .replace("mlp.up_proj", "ffn_up")
        .replace("mlp.down_proj", "ffn_down")
}

/// What llama.cpp's converter says about the tiny model.
pub(crate) fn tiny_metadata() -> Vec<(String, Value)> {
    let config = tiny_config();
    let size = |n: usize| Value::U32(u32::try_from(n).unwrap());
    let texts = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    let tokens = tiny_tokens();
    let kinds = tokens
        .iter()
        .map(|token| Value::I32(if token.starts_with("<|") { 3 } else { 1 }))
        .collect();
    let merges = TINY_MERGES.map(str::to_owned).to_vec();
    [
        ("general.architecture", Value::String("llama".to_owned())),
        ("llama.block_count", size(config.num_hidden_layers)),
        ("llama.context_length", size(config.max_position_embeddings)),
        ("llama.embedding_length", size(config.hidden_size)),
        ("llama.feed_forward_length", size(config.intermediate_size)),
        ("llama.attention.head_count", size(config.num_attention_heads)),
        ("llama.attention.head_count_kv", size(config.num_key_value_heads)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String("gpt-2".to_owned())),
        ("tokenizer.ggml.tokens", texts(tokens)),
        ("tokenizer.ggml.token_type", Value::Array(kinds)),
        ("tokenizer.ggml.merges", texts(merges)),
        ("tokenizer.ggml.bos_token_id", Value::U32(256)),
        ("tokenizer.ggml.eos_token_id", Value::U32(257)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}
