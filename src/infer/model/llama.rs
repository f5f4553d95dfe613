//! The Llama architecture, written once: a forward over a flattened ragged
//! batch, in which chunks of prompts and single decoded tokens are all rows.

use std::sync::Arc;

use candle_core::{Device, Result as CandleResult, Tensor};

use crate::infer::batch::Batch;
use crate::infer::kv::KvCache;
use crate::infer::model::config::{EMBEDDING, OUTPUT_HEAD};
use crate::infer::ops::linear::Matrix;
use crate::infer::ops::{
    Embedding, GatedLinear, Linear, RmsNorm, RopeTable, paged_attention, rope_and_cache,
};
use crate::infer::weights::{Weight, WeightForm, WeightSource};
use crate::infer::{ComputeDtype, InferError, ModelConfig};

/// A model with its weights.
#[derive(Debug)]
pub struct Llama {
    config: ModelConfig,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
    rope: RopeTable,
}

/// One transformer layer.
#[derive(Debug)]
struct Layer {
    input_norm: RmsNorm,
    /// q, k and v side by side.
    qkv: Linear,
    output: Linear,
    post_attention_norm: RmsNorm,
    gate_up: GatedLinear,
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
        let loader = Loader { config, source, dtype };
        let (embedding, lm_head) = loader.ends()?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| loader.layer(layer))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            embedding,
            layers,
            norm: loader.norm("model.norm.weight")?,
            lm_head,
            rope: RopeTable::new(config, max_len),
            config: config.clone(),
        })
    }

    /// Bytes of all weights in memory.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        let own = if self.config.tie_word_embeddings { 0 } else { self.embedding.num_bytes() };
        self.num_bytes_read() + own
    }

    /// Bytes of the matrices that every step reads whole.
    #[must_use]
    pub fn num_bytes_read(&self) -> usize {
        let layer = |layer: &Layer| {
            let linears = [&layer.qkv, &layer.output, &layer.down];
            linears.map(Linear::num_bytes).iter().sum::<usize>() + layer.gate_up.num_bytes()
        };
        self.layers.iter().map(layer).sum::<usize>() + self.lm_head.num_bytes()
    }

    /// Computes all rows of `batch`, writes their K and V to `cache`, and
    /// returns the logits of `batch.logit_rows`: `[logit_rows, vocab]`.
    ///
    /// # Errors
    /// When the batch does not fit the cache or the model.
    pub fn forward(&self, batch: &Batch, cache: &KvCache) -> CandleResult<Option<Tensor>> {
        let x = self.embedding.forward(&batch.input_ids)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let Some(kv) = cache.layer(index) else {
                candle_core::bail!("the cache has no layer {index}");
            };
            self.forward_layer(layer, &x, batch, kv)?;
        }
        if batch.logit_rows.is_empty() {
            return Ok(None);
        }
        let rows = Tensor::new(batch.logit_rows.as_slice(), &Device::Cpu)?;
        let x = x.index_select(&rows, 0)?;
        let x = self.norm.forward(&x, self.lm_head.input_dtype())?;
        Ok(Some(self.lm_head.forward(&x)?))
    }

    /// `x`, `[num_tokens, hidden]`, is the residual stream: both halves of the
    /// layer add to it.
    fn forward_layer(
        &self,
        layer: &Layer,
        x: &Tensor,
        batch: &Batch,
        kv: (&Tensor, &Tensor),
    ) -> CandleResult<()> {
        let config = &self.config;
        let heads = config.num_attention_heads + 2 * config.num_key_value_heads;
        let h = layer.input_norm.forward(x, layer.qkv.input_dtype())?;
        let qkv = layer.qkv.forward(&h)?.reshape(((), heads, config.head_dim))?;
        rope_and_cache(&qkv, kv, &batch.positions, &batch.slot_mapping, &self.rope)?;
        let q = qkv.narrow(1, 0, config.num_attention_heads)?;
        let h = paged_attention(&q, kv.0, kv.1, &batch.layout, layer.output.input_dtype())?;
        layer.output.forward_add(&h, x)?;
        let h = layer.post_attention_norm.forward(x, layer.gate_up.input_dtype())?;
        let h = layer.gate_up.forward(&h, layer.down.input_dtype())?;
        layer.down.forward_add(&h, x)
    }
}

/// Reads weights by their Hugging Face names.
struct Loader<'a> {
    config: &'a ModelConfig,
    source: &'a dyn WeightSource,
    dtype: ComputeDtype,
}

impl<'a> Loader<'a> {
    /// The embedding and the output head, which may be one matrix.
    fn ends(&self) -> Result<(Embedding, Linear), InferError> {
        let ModelConfig { vocab_size, hidden_size, .. } = *self.config;
        let matrix = |name| {
            let weight = self.matrix(name, vocab_size, hidden_size)?;
            Ok::<_, InferError>(Arc::new(Matrix::pack(&[weight], self.dtype)?))
        };
        let table = matrix(EMBEDDING)?;
        let head =
            if self.config.tie_word_embeddings { Arc::clone(&table) } else { matrix(OUTPUT_HEAD)? };
        Ok((Embedding::new(table), Linear::from_matrix(head)))
    }

    fn layer(&self, index: usize) -> Result<Layer, InferError> {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, head_dim, .. } =
            *self.config;
        let q = self.config.num_attention_heads * head_dim;
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let linear = |parts: &[(&str, usize)], columns, bias| {
            let matrix = |(part, rows): &(&str, usize)| {
                self.matrix(&name(&format!("{part}.weight")), *rows, columns)
            };
            let weights = parts.iter().map(matrix).collect::<Result<_, _>>()?;
            Ok::<_, InferError>(Linear::new(weights, bias, self.dtype)?)
        };
        let bias = if self.config.attention_bias {
            let parts = self
                .config
                .qkv_projections()
                .map(|(part, len)| self.vector(&name(&format!("{part}.bias")), len));
            let [q, k, v] = parts;
            Some([q?, k?, v?].concat())
        } else {
            None
        };
        let inner_matrix = |part: &str| {
            let weight = self.matrix(&name(&format!("mlp.{part}_proj.weight")), inner, hidden)?;
            Ok::<_, InferError>(Matrix::pack(&[weight], self.dtype)?)
        };
        Ok(Layer {
            input_norm: self.norm(&name("input_layernorm.weight"))?,
            qkv: linear(&self.config.qkv_projections(), hidden, bias)?,
            output: linear(&[("self_attn.o_proj", hidden)], q, None)?,
            post_attention_norm: self.norm(&name("post_attention_layernorm.weight"))?,
            gate_up: GatedLinear::new(inner_matrix("gate")?, inner_matrix("up")?)?,
            down: linear(&[("mlp.down_proj", hidden)], inner, None)?,
        })
    }

    fn norm(&self, name: &str) -> Result<RmsNorm, InferError> {
        Ok(RmsNorm::new(self.vector(name, self.config.hidden_size)?, self.config.rms_norm_eps))
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Weight<'a>, InferError> {
        let form = match self.dtype {
            ComputeDtype::F32 | ComputeDtype::F16 => WeightForm::F32,
            ComputeDtype::Bf16 => WeightForm::Bf16,
            ComputeDtype::Quantized => WeightForm::Stored,
        };
        self.source.load(name, &[rows, columns], form)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, InferError> {
        Ok(self.source.load(name, &[len], WeightForm::F32)?.to_f32()?.to_vec1()?)
    }
}
