//! The forward of a Llama-architecture model as launches and products: the same
//! operations in the same order as `model::llama`, over buffers that are there.

use super::buffers::{Buffers, KvPool};
use super::device::{Device, Product};
use super::inputs::{Inputs, Items, Prefill};
use super::kernels::{
    DecodeAttention, PrefillAttention, RopeShape, embedding, gated_gemv, gemv, prefill_attention,
    rms_norm, rope_and_cache, sample, silu_mul,
};
use super::weights::{Layer, Weights};
use super::{DeviceError, View};
use crate::infer::ModelConfig;

/// Blocks of one decode attention, in multiprocessors: enough to hide their latency.
const BLOCKS_PER_PROCESSOR: usize = 8;

/// A model on a device.
#[derive(Debug)]
pub struct Forward {
    /// Shapes.
    pub config: ModelConfig,
    /// Weights.
    pub weights: Weights,
    /// What a step writes.
    pub buffers: Buffers,
    /// K and V.
    pub kv: KvPool,
    /// Tokens in a KV block.
    pub block_size: usize,
}

impl Forward {
    /// Submits all work of a step whose inputs are on the device: logits, and
    /// drawn tokens, of its logit rows.
    ///
    /// # Errors
    /// When an operation is refused.
    pub fn submit<D: Device>(&self, device: &mut D, inputs: &Inputs) -> Result<(), DeviceError> {
        let ModelConfig { hidden_size: hidden, vocab_size, .. } = self.config;
        let buffer = self.buffers.inputs;
        let Buffers { x, last, logits, drawn, .. } = self.buffers;
        let ids = inputs.ids.view(buffer)?;
        let shape = [inputs.num_rows, vocab_size, hidden];
        device.launch(&embedding(self.weights.embedding, ids, x, shape)?)?;
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.layer(device, layer, self.kv.layer(index), inputs)?;
        }
        let rows = inputs.num_logit_rows;
        if rows == 0 {
            return Ok(());
        }
        let index = inputs.logit_rows.view(buffer)?;
        let eps = self.eps();
        device.launch(&rms_norm(x, Some(index), self.weights.norm, last, [rows, hidden], eps)?)?;
        self.multiply(
            device,
            last,
            self.weights.lm_head,
            logits,
            [rows, vocab_size, hidden],
            false,
        )?;
        let params = inputs.params.view(buffer)?;
        device.launch(&sample(logits, params, drawn, [rows, vocab_size])?)
    }

    fn layer<D: Device>(
        &self,
        device: &mut D,
        layer: &Layer,
        kv: [View; 2],
        inputs: &Inputs,
    ) -> Result<(), DeviceError> {
        let config = &self.config;
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, .. } = *config;
        let (q_width, kv_width) = (config.query_width(), config.key_value_width());
        let qkv_width = q_width + 2 * kv_width;
        let rows = inputs.num_rows;
        let Buffers { x, h, qkv, gate_up, activated, inputs: buffer, .. } = self.buffers;
        let eps = self.eps();
        device.launch(&rms_norm(x, None, layer.input_norm, h, [rows, hidden], eps)?)?;
        self.multiply(device, h, layer.qkv, qkv, [rows, qkv_width, hidden], false)?;
        let shape = RopeShape {
            rows,
            q_heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            block_size: self.block_size,
        };
        let places = [inputs.positions.view(buffer)?, inputs.slots.view(buffer)?];
        let (angles, bias) = (self.weights.angles, layer.qkv_bias);
        device.launch(&rope_and_cache(qkv, kv, angles, bias, places, shape)?)?;
        for items in &inputs.items {
            self.decode_attention(device, kv, items, inputs)?;
        }
        if let Some(prefill) = &inputs.prefill {
            self.prefill_attention(device, kv, prefill, inputs)?;
        }
        self.multiply(device, h, layer.output, x, [rows, hidden, q_width], true)?;
        device.launch(&rms_norm(x, None, layer.post_attention_norm, h, [rows, hidden], eps)?)?;
        if rows <= gemv::MAX_ROWS {
            device.launch(&gated_gemv(h, layer.gate_up, activated, [rows, inner, hidden])?)?;
        } else {
            self.multiply(device, h, layer.gate_up, gate_up, [rows, 2 * inner, hidden], false)?;
            device.launch(&silu_mul(gate_up, activated, [rows, inner])?)?;
        }
        self.multiply(device, activated, layer.down, x, [rows, hidden, inner], true)
    }

    fn multiply<D: Device>(
        &self,
        device: &mut D,
        x: View,
        w: View,
        out: View,
        shape: [usize; 3],
        add: bool,
    ) -> Result<(), DeviceError> {
        let product = Product { x, w, out, shape, add };
        if shape[0] <= gemv::MAX_ROWS {
            return device.launch(&gemv(&product)?);
        }
        device.product(&product)
    }

    fn decode_attention<D: Device>(
        &self,
        device: &mut D,
        [k, v]: [View; 2],
        items: &Items,
        inputs: &Inputs,
    ) -> Result<(), DeviceError> {
        let buffer = self.buffers.inputs;
        let ModelConfig { num_attention_heads, num_key_value_heads, head_dim, .. } = self.config;
        let attention = DecodeAttention {
            q: self.buffers.qkv,
            q_stride: (num_attention_heads + 2 * num_key_value_heads) * head_dim,
            k,
            v,
            row: items.row.view(buffer)?,
            kv_len: items.kv_len.view(buffer)?,
            table_start: items.table_start.view(buffer)?,
            split_start: items.split_start.view(buffer)?,
            block_tables: inputs.block_tables.view(buffer)?,
            partials: self.buffers.partials,
            out: self.buffers.h,
            num_items: items.num_items,
            rows: inputs.num_rows,
            num_heads: num_attention_heads,
            num_kv_heads: num_key_value_heads,
            head_dim,
            block_size: self.block_size,
        };
        let blocks = (device.num_processors() * BLOCKS_PER_PROCESSOR).div_ceil(num_key_value_heads);
        device.launch(&attention.attend(items.max_splits, blocks)?)?;
        device.launch(&attention.merge()?)
    }

    fn prefill_attention<D: Device>(
        &self,
        device: &mut D,
        [k_cache, v_cache]: [View; 2],
        prefill: &Prefill,
        inputs: &Inputs,
    ) -> Result<(), DeviceError> {
        let buffer = self.buffers.inputs;
        device.launch(&prefill_attention(&PrefillAttention {
            q: self.buffers.qkv,
            k_cache,
            v_cache,
            query_start: prefill.query_start.view(buffer)?,
            query_len: prefill.query_len.view(buffer)?,
            seq_len: prefill.seq_len.view(buffer)?,
            table_start: prefill.table_start.view(buffer)?,
            tiles: prefill.tiles.view(buffer)?,
            block_tables: inputs.block_tables.view(buffer)?,
            out: self.buffers.h,
            num_tiles: prefill.num_tiles,
            num_rows: inputs.num_rows,
            num_heads: self.config.num_attention_heads,
            num_kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
            block_size: self.block_size,
        })?)
    }

    #[expect(clippy::cast_possible_truncation, reason = "an epsilon is small, not precise")]
    const fn eps(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }
}
