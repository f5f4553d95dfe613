//! The Llama architecture, written once: a forward over a flattened ragged
//! batch, in which chunks of prompts and single decoded tokens are all rows.

use candle_core::{Device, Result as CandleResult, Tensor};

use crate::infer::batch::Batch;
use crate::infer::kv::KvCache;
use crate::infer::ops::linear::PackedMatrix;
use crate::infer::ops::{
    Embedding, Linear, RopeTable, paged_attention, rms_norm, rope_and_cache, silu_mul,
};
use crate::infer::weights::{Weight, WeightSource};
use crate::infer::{ComputeDtype, InferError, ModelConfig};

/// A model with its weights.
#[derive(Debug)]
pub struct Llama {
    config: ModelConfig,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Tensor,
    lm_head: Linear,
    rope: RopeTable,
}

/// One transformer layer.
#[derive(Debug)]
struct Layer {
    input_norm: Tensor,
    /// q, k and v side by side.
    qkv: Linear,
    output: Linear,
    post_attention_norm: Tensor,
    /// gate and up side by side.
    gate_up: Linear,
    down: Linear,
}

impl Llama {
    /// Reads all weights from `source`, for sequences of at most `max_len` tokens.
    ///
    /// # Errors
    /// [`InferError::Load`] from the source, [`InferError::Internal`] for
    /// weights that do not fit together.
    pub fn load(
        config: &ModelConfig,
        source: &dyn WeightSource,
        dtype: ComputeDtype,
        max_len: usize,
    ) -> Result<Self, InferError> {
        let loader = Loader { config, source, keep_quantized: dtype == ComputeDtype::Quantized };
        let (embedding, lm_head) = loader.ends()?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| loader.layer(layer))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            embedding,
            layers,
            norm: loader.vector("model.norm.weight", config.hidden_size)?,
            lm_head,
            rope: RopeTable::new(config, max_len),
            config: config.clone(),
        })
    }

    /// Computes all rows of `batch`, writes their K and V to `cache`, and
    /// returns the logits of `batch.logit_rows`: `[logit_rows, vocab]`.
    ///
    /// # Errors
    /// When the batch does not fit the cache or the model.
    pub fn forward(&self, batch: &Batch, cache: &KvCache) -> CandleResult<Option<Tensor>> {
        let mut x = self.embedding.forward(&batch.input_ids)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let Some(kv) = cache.layer(index) else {
                candle_core::bail!("the cache has no layer {index}");
            };
            x = self.forward_layer(layer, &x, batch, kv)?;
        }
        if batch.logit_rows.is_empty() {
            return Ok(None);
        }
        let rows = Tensor::new(batch.logit_rows.as_slice(), &Device::Cpu)?;
        let x = x.index_select(&rows, 0)?;
        let x = rms_norm(&x, &self.norm, self.config.rms_norm_eps)?;
        Ok(Some(self.lm_head.forward(&x)?))
    }

    /// `x` is `[num_tokens, hidden]`.
    fn forward_layer(
        &self,
        layer: &Layer,
        x: &Tensor,
        batch: &Batch,
        kv: (&Tensor, &Tensor),
    ) -> CandleResult<Tensor> {
        let config = &self.config;
        let heads = config.num_attention_heads + 2 * config.num_key_value_heads;
        let h = rms_norm(x, &layer.input_norm, config.rms_norm_eps)?;
        let qkv = layer.qkv.forward(&h)?.reshape(((), heads, config.head_dim))?;
        rope_and_cache(&qkv, kv, &batch.positions, &batch.slot_mapping, &self.rope)?;
        let q = qkv.narrow(1, 0, config.num_attention_heads)?;
        let h = paged_attention(&q, kv.0, kv.1, &batch.layout)?;
        let x = (x + layer.output.forward(&h)?)?;
        let h = rms_norm(&x, &layer.post_attention_norm, config.rms_norm_eps)?;
        let h = silu_mul(&layer.gate_up.forward(&h)?)?;
        x + layer.down.forward(&h)?
    }
}

/// Reads weights by their Hugging Face names.
struct Loader<'a> {
    config: &'a ModelConfig,
    source: &'a dyn WeightSource,
    keep_quantized: bool,
}

impl Loader<'_> {
    /// The embedding and the output head, which may be one matrix.
    fn ends(&self) -> Result<(Embedding, Linear), InferError> {
        let name = "model.embed_tokens.weight";
        let shape = [self.config.vocab_size, self.config.hidden_size];
        let table = self.dense(name, &shape)?;
        if !self.config.tie_word_embeddings {
            let head = self.matrix("lm_head.weight", shape[0], shape[1])?;
            return Ok((Embedding::Table(table), Linear::new(vec![head], None)?));
        }
        if self.keep_quantized {
            let head = self.matrix(name, shape[0], shape[1])?;
            if matches!(head, Weight::Quantized(_)) {
                return Ok((Embedding::Table(table), Linear::new(vec![head], None)?));
            }
        }
        let packed = PackedMatrix::pack(&[table])?;
        Ok((Embedding::Tied(packed.clone()), Linear::from_packed(packed)))
    }

    fn layer(&self, index: usize) -> Result<Layer, InferError> {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, head_dim, .. } =
            *self.config;
        let q = self.config.num_attention_heads * head_dim;
        let kv = self.config.num_key_value_heads * head_dim;
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let matrix = |part: &str, rows, columns| {
            self.matrix(&name(&format!("{part}.weight")), rows, columns)
        };
        let norm = |part: &str| self.vector(&name(&format!("{part}.weight")), hidden);
        let bias = if self.config.attention_bias {
            let parts = [("q", q), ("k", kv), ("v", kv)]
                .map(|(part, len)| self.vector(&name(&format!("self_attn.{part}_proj.bias")), len));
            let [q, k, v] = parts;
            Some(Tensor::cat(&[q?, k?, v?], 0)?)
        } else {
            None
        };
        let qkv = vec![
            matrix("self_attn.q_proj", q, hidden)?,
            matrix("self_attn.k_proj", kv, hidden)?,
            matrix("self_attn.v_proj", kv, hidden)?,
        ];
        let gate_up =
            vec![matrix("mlp.gate_proj", inner, hidden)?, matrix("mlp.up_proj", inner, hidden)?];
        Ok(Layer {
            input_norm: norm("input_layernorm")?,
            qkv: Linear::new(qkv, bias)?,
            output: Linear::new(vec![matrix("self_attn.o_proj", hidden, q)?], None)?,
            post_attention_norm: norm("post_attention_layernorm")?,
            gate_up: Linear::new(gate_up, None)?,
            down: Linear::new(vec![matrix("mlp.down_proj", hidden, inner)?], None)?,
        })
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Weight, InferError> {
        self.source.load(name, &[rows, columns], self.keep_quantized)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor, InferError> {
        self.dense(name, &[len])
    }

    fn dense(&self, name: &str, shape: &[usize]) -> Result<Tensor, InferError> {
        match self.source.load(name, shape, false)? {
            Weight::Dense(tensor) => Ok(tensor),
            Weight::Quantized(_) => {
                Err(InferError::Internal(format!("{name} came quantized although f32 was asked")))
            }
        }
    }
}
