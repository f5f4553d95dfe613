//! A shape from `config.json` as Hugging Face writes it.

use serde::Deserialize;

use super::{Family, Shape, Sliding, StoredWeights};

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
    vocab_size: Option<u64>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    max_position_embeddings: Option<u64>,
    /// `Some(None)` is a window that is switched off.
    #[serde(default, deserialize_with = "present")]
    sliding_window: Option<Option<u64>>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<u64>,
    sliding_window_pattern: Option<u64>,
    layer_types: Option<Vec<String>>,
    partial_rotary_factor: Option<f64>,
    tie_word_embeddings: Option<bool>,
    torch_dtype: Option<String>,
    dtype: Option<String>,
    quantization_config: Option<QuantizationJson>,
}

#[derive(Deserialize)]
struct QuantizationJson {
    quant_method: Option<String>,
    bits: Option<u64>,
    w_bit: Option<u64>,
    group_size: Option<i64>,
    load_in_4bit: Option<bool>,
    load_in_8bit: Option<bool>,
}

#[expect(clippy::option_option, reason = "a field that is null is not a field that is absent")]
fn present<'de, D: serde::Deserializer<'de>>(field: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::<u64>::deserialize(field).map(Some)
}

impl Shape {
    /// Reads `config.json`; `name` is what the model is called.
    ///
    /// # Errors
    /// A sentence naming the field: JSON that does not parse, an architecture that
    /// is not known, with those that are, or numbers that no model has.
    pub fn from_hf(name: &str, config: &str) -> Result<Self, String> {
        let json: ConfigJson =
            serde_json::from_str(config).map_err(|e| format!("config.json: {e}"))?;
        let family = json.family()?;
        let hidden_size = required("hidden_size", json.hidden_size)?;
        let num_attention_heads = required("num_attention_heads", json.num_attention_heads)?;
        if num_attention_heads == 0 {
            return Err("num_attention_heads is 0, expected 1 to 1024".to_owned());
        }
        let head_dim = match (json.head_dim, family) {
            (Some(dim), _) => dim,
            (None, Family::Gemma | Family::Gemma2 | Family::Gemma3) => 256,
            (None, _) if !hidden_size.is_multiple_of(num_attention_heads) => {
                return Err(format!(
                    "hidden_size {hidden_size} is not divisible into {num_attention_heads} heads"
                ));
            }
            (None, _) => hidden_size / num_attention_heads,
        };
        let num_layers = required("num_hidden_layers", json.num_hidden_layers)?;
        let gemma = matches!(family, Family::Gemma | Family::Gemma2 | Family::Gemma3);
        let shape = Self {
            name: name.to_owned(),
            family,
            vocab_size: required("vocab_size", json.vocab_size)?,
            hidden_size,
            intermediate_size: required("intermediate_size", json.intermediate_size)?,
            num_layers,
            num_attention_heads,
            num_kv_heads: json.num_key_value_heads.unwrap_or(num_attention_heads),
            head_dim,
            rotary_dim: rotary_dim(head_dim, json.partial_rotary_factor)?,
            sliding: json.sliding(family, num_layers),
            max_position_embeddings: required(
                "max_position_embeddings",
                json.max_position_embeddings,
            )?,
            tied: json.tie_word_embeddings.unwrap_or(gemma),
            num_parameters: 0,
            stored: json.stored()?,
        }
        .check()?;
        Ok(Self { num_parameters: family.num_parameters(&shape), ..shape })
    }
}

impl ConfigJson {
    fn family(&self) -> Result<Family, String> {
        match (self.architectures.as_slice(), &self.model_type) {
            ([one], _) => Family::of_hf(one),
            ([], Some(model_type)) => Family::of_hf(model_type),
            ([], None) => Err("config.json names no architecture".to_owned()),
            (many, _) => Err(format!("config.json names {} architectures, expected 1", many.len())),
        }
    }

    /// Which layers have a window, by each family's own rule in transformers.
    fn sliding(&self, family: Family, num_layers: u64) -> Option<Sliding> {
        let default = match family {
            Family::Mistral | Family::Gemma2 | Family::Gemma3 => Some(4096),
            _ => None,
        };
        let window_tokens = self.sliding_window.unwrap_or(default)?;
        let num_layers = if let Some(types) = &self.layer_types {
            types.iter().filter(|kind| *kind == "sliding_attention").count() as u64
        } else {
            match family {
                Family::Mistral | Family::Phi3 => num_layers,
                Family::Qwen2 | Family::Qwen3 if self.use_sliding_window == Some(true) => {
                    num_layers.saturating_sub(self.max_window_layers.unwrap_or(0))
                }
                Family::Gemma2 => num_layers.div_ceil(2),
                // The last of each six sees everything.
                Family::Gemma3 => {
                    num_layers - num_layers / self.sliding_window_pattern.unwrap_or(6).max(1)
                }
                Family::Qwen2 | Family::Qwen3 | Family::Llama | Family::Phi | Family::Gemma => 0,
            }
        };
        (num_layers > 0).then_some(Sliding { window_tokens, num_layers })
    }

    fn stored(&self) -> Result<StoredWeights, String> {
        let Some(quantization) = &self.quantization_config else {
            let dtype = self.torch_dtype.as_deref().or(self.dtype.as_deref());
            return match dtype {
                None | Some("bfloat16" | "float16") => Ok(StoredWeights::Plain { bytes_each: 2 }),
                Some("float32") => Ok(StoredWeights::Plain { bytes_each: 4 }),
                Some(other) => Err(format!(
                    "torch_dtype `{other}` is not known, expected bfloat16, float16 or float32"
                )),
            };
        };
        let method = quantization.quant_method.clone().unwrap_or_default();
        let group_size = quantization.group_size.and_then(|size| u64::try_from(size).ok());
        let bits = match method.as_str() {
            "awq" | "gptq" => quantization.bits.or(quantization.w_bit),
            "fp8" => Some(8),
            "bitsandbytes" if quantization.load_in_4bit == Some(true) => Some(4),
            "bitsandbytes" if quantization.load_in_8bit == Some(true) => Some(8),
            _ => None,
        };
        match bits {
            Some(bits) if (1..=16).contains(&bits) && group_size != Some(0) => {
                Ok(StoredWeights::Quantized { method, bits, group_size })
            }
            _ => Err(format!(
                "quantization `{method}` is not known, expected awq, gptq, fp8 or bitsandbytes \
                 with its bits"
            )),
        }
    }
}

fn rotary_dim(head_dim: u64, factor: Option<f64>) -> Result<u64, String> {
    match factor {
        None => Ok(head_dim),
        Some(factor) if factor > 0.0 && factor <= 1.0 => Ok((head_dim as f64 * factor) as u64),
        Some(factor) => {
            Err(format!("partial_rotary_factor is {factor}, expected above 0, up to 1"))
        }
    }
}

fn required(name: &str, value: Option<u64>) -> Result<u64, String> {
    value.ok_or_else(|| format!("config.json lacks {name}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Architecture, then vocabulary, width, MLP, layers, heads, KV heads, head size.
    fn config(architecture: &str, numbers: [u64; 7], more: serde_json::Value) -> String {
        let [vocab, hidden, ffn, layers, heads, kv_heads, head_dim] = numbers;
        let mut config = json!({
            "architectures": [architecture], "vocab_size": vocab, "hidden_size": hidden,
            "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim,
            "max_position_embeddings": 8192,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config.to_string()
    }

    /// Published models with their published parameter counts (the safetensors
    /// index or the model page of each).
    #[test]
    fn parameters_by_formula_are_the_published_ones() {
        let tied = json!({"tie_word_embeddings": true});
        let none = json!({});
        for (name, architecture, numbers, more, parameters) in [
            (
                "Llama 3.1 8B",
                "LlamaForCausalLM",
                [128_256, 4096, 14336, 32, 32, 8, 128],
                &none,
                8_030_261_248_u64,
            ),
            (
                "Mistral 7B v0.1",
                "MistralForCausalLM",
                [32000, 4096, 14336, 32, 32, 8, 128],
                &none,
                7_241_732_096,
            ),
            (
                "Qwen2.5 7B",
                "Qwen2ForCausalLM",
                [152_064, 3584, 18944, 28, 28, 4, 128],
                &none,
                7_615_616_512,
            ),
            (
                "Qwen3 0.6B",
                "Qwen3ForCausalLM",
                [151_936, 1024, 3072, 28, 16, 8, 128],
                &tied,
                596_049_920,
            ),
            (
                "Qwen3 8B",
                "Qwen3ForCausalLM",
                [151_936, 4096, 12288, 36, 32, 8, 128],
                &none,
                8_190_735_360,
            ),
            ("Phi-2", "PhiForCausalLM", [51200, 2560, 10240, 32, 32, 32, 80], &none, 2_779_683_840),
            (
                "Phi-3 mini",
                "Phi3ForCausalLM",
                [32064, 3072, 8192, 32, 32, 32, 96],
                &none,
                3_821_079_552,
            ),
            (
                "Gemma 2B",
                "GemmaForCausalLM",
                [256_000, 2048, 16384, 18, 8, 1, 256],
                &none,
                2_506_172_416,
            ),
            (
                "Gemma 2 2B",
                "Gemma2ForCausalLM",
                [256_000, 2304, 9216, 26, 8, 4, 256],
                &none,
                2_614_341_888,
            ),
            (
                "Gemma 3 1B",
                "Gemma3ForCausalLM",
                [262_144, 1152, 6912, 26, 4, 1, 256],
                &none,
                999_885_952,
            ),
        ] {
            let shape = Shape::from_hf(name, &config(architecture, numbers, more.clone())).unwrap();
            assert_eq!(shape.num_parameters, parameters, "{name}");
        }
    }

    #[test]
    fn windows_are_where_each_family_has_them() {
        let sliding = |architecture: &str, layers: u64, more| {
            let numbers = [32000, 1024, 4096, layers, 8, 8, 128];
            let shape = Shape::from_hf("x", &config(architecture, numbers, more)).unwrap();
            shape.sliding.map(|sliding| (sliding.window_tokens, sliding.num_layers))
        };
        let none = || json!({});
        assert_eq!(sliding("MistralForCausalLM", 32, none()), Some((4096, 32)));
        assert_eq!(sliding("MistralForCausalLM", 32, json!({"sliding_window": null})), None);
        assert_eq!(sliding("LlamaForCausalLM", 32, json!({"sliding_window": 64})), None);
        let off = json!({"sliding_window": 4096, "use_sliding_window": false});
        assert_eq!(sliding("Qwen2ForCausalLM", 28, off), None);
        assert_eq!(sliding("Gemma2ForCausalLM", 26, none()), Some((4096, 13)));
        let gemma3 = json!({"sliding_window": 512, "sliding_window_pattern": 6});
        assert_eq!(sliding("Gemma3ForCausalLM", 26, gemma3), Some((512, 22)));
        let named = json!({"sliding_window": 512,
            "layer_types": ["sliding_attention", "full_attention"]});
        assert_eq!(sliding("Gemma3ForCausalLM", 2, named), Some((512, 1)));
    }

    /// The largest numbers that are accepted overflow nothing that is made of them.
    #[test]
    fn the_largest_shape_is_sized() {
        use crate::sizing::{GpuMemory, MaxModelLen, Question, Settings, Version, ollama, vllm};
        let numbers = [1 << 22, 1 << 18, 1 << 20, 1 << 10, 1 << 10, 1 << 10, 1 << 12];
        let more = json!({"max_position_embeddings": 1 << 27, "sliding_window": 1 << 27});
        for architecture in ["LlamaForCausalLM", "MistralForCausalLM", "Gemma3ForCausalLM"] {
            let shape = Shape::from_hf("x", &config(architecture, numbers, more.clone())).unwrap();
            let settings = Settings {
                num_parallel: Some(1 << 12),
                max_num_seqs: Some(1 << 16),
                max_num_batched_tokens: Some(1 << 24),
                max_model_len: MaxModelLen::Tokens(1 << 27),
                ..Settings::default()
            };
            let gpu = GpuMemory::given(u64::MAX);
            let question = Question { shape: &shape, gpu: &gpu, settings: &settings };
            for version in [vllm::STUDY, vllm::CURRENT] {
                vllm::size(&question, version).unwrap();
            }
            ollama::size(&question, Version::new(0, 5)).unwrap();
        }
    }

    #[test]
    fn unknown_architectures_are_refused_by_name_with_those_that_are_known() {
        let refused = |config: &str| Shape::from_hf("x", config).unwrap_err();
        let numbers = [32000, 1024, 4096, 2, 8, 8, 128];
        let message = refused(&config("MambaForCausalLM", numbers, json!({})));
        assert!(message.contains("`MambaForCausalLM`") && message.contains("Gemma3ForCausalLM"));
        assert!(refused("{").starts_with("config.json: "));
        assert!(refused("{}").contains("names no architecture"));
        let odd = json!({"num_key_value_heads": 3});
        assert!(refused(&config("LlamaForCausalLM", numbers, odd)).contains("not divisible"));
        let zero = json!({"num_hidden_layers": 0});
        assert!(refused(&config("LlamaForCausalLM", numbers, zero)).contains("num_hidden_layers"));
        let huge = json!({"hidden_size": 1_u64 << 60});
        assert!(refused(&config("LlamaForCausalLM", numbers, huge)).contains("hidden_size"));
        let heads = json!({"num_attention_heads": 0, "head_dim": null});
        assert!(refused(&config("LlamaForCausalLM", numbers, heads)).contains("heads is 0"));
        let quantized = json!({"quantization_config": {"quant_method": "exl2"}});
        assert!(refused(&config("LlamaForCausalLM", numbers, quantized)).contains("`exl2`"));
    }
}
