//! Everything that a step writes, allocated once: activations, logits, partial
//! attention results, the step's inputs, and K and V.

use super::device::Device;
use super::kernels::decode_attention::num_splits;
use super::kernels::{DecodeAttention, sample};
use super::{DeviceError, Element, View};
use crate::infer::ModelConfig;
use crate::infer::kv::KvSizing;
use crate::infer::scheduler::SchedulerLimits;

/// How many of what a step holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Rows of one step.
    pub rows: usize,
    /// Rows of logits of one step.
    pub logit_rows: usize,
    /// Splits of one decode attention.
    pub splits: usize,
    /// Words of a step's inputs.
    pub words: usize,
}

impl Capacity {
    /// What `limits` allow.
    #[must_use]
    pub fn new(limits: &SchedulerLimits) -> Self {
        // Padding to a bucket never exceeds the largest, which is `max_num_seqs`.
        let rows = limits.max_num_batched_tokens.max(limits.max_num_seqs);
        let sequences = limits.max_num_seqs;
        let logit_rows = sequences + limits.max_scored_rows;
        let pool_tokens = limits.num_blocks * limits.block_size;
        let longest = num_splits(limits.max_model_len);
        // Sequences that share blocks could need more: they take several launches.
        let in_pool = num_splits(pool_tokens) + sequences;
        let splits = (longest * sequences).min(in_pool).max(longest);
        let tables = sequences * limits.max_model_len.div_ceil(limits.block_size);
        // Of a row at most id, position and slot, an item in a group of its own (four
        // sections of up to four words, one of them a word longer), or tiles and a
        // sequence's four words; then alignment.
        let words =
            rows * 24 + logit_rows * (1 + sample::PARAM_WORDS) + tables + 16 * sequences + 256;
        Self { rows, logit_rows, splits, words }
    }
}

/// The buffers of a runner.
#[derive(Debug, Clone)]
pub struct Buffers {
    /// The residual stream, `[rows, hidden]` of f32.
    pub x: View,
    /// What a matrix is about to read: normed rows, or attention's result,
    /// `[rows, max(hidden, q)]`.
    pub h: View,
    /// `[rows, q + k + v]`.
    pub qkv: View,
    /// `[rows, 2 * intermediate]`.
    pub gate_up: View,
    /// `[rows, intermediate]`.
    pub activated: View,
    /// Partial results of decode attention, f32.
    pub partials: View,
    /// Rows for the output head, `[logit_rows, hidden]`.
    pub last: View,
    /// `[logit_rows, vocab]` of f32.
    pub logits: View,
    /// Drawn tokens, `[logit_rows]` of u32.
    pub drawn: View,
    /// The step's inputs, i32.
    pub inputs: View,
}

impl Buffers {
    /// Allocates them.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn new<D: Device>(
        device: &mut D,
        config: &ModelConfig,
        element: Element,
        capacity: &Capacity,
    ) -> Result<Self, DeviceError> {
        let mut lens = lens(config, element, capacity).into_iter();
        let mut next = || {
            let (len, element) = lens.next().unwrap_or((0, Element::F32));
            device.alloc(len, element)
        };
        Ok(Self {
            x: next()?,
            h: next()?,
            qkv: next()?,
            gate_up: next()?,
            activated: next()?,
            partials: next()?,
            last: next()?,
            logits: next()?,
            drawn: next()?,
            inputs: next()?,
        })
    }

    /// Bytes that they take.
    #[must_use]
    pub fn num_bytes(config: &ModelConfig, element: Element, capacity: &Capacity) -> u64 {
        let bytes = |(len, element): (usize, Element)| (len * element.num_bytes()) as u64;
        lens(config, element, capacity).into_iter().map(bytes).sum()
    }
}

/// Elements of each buffer, in the order of the fields.
fn lens(config: &ModelConfig, element: Element, capacity: &Capacity) -> [(usize, Element); 10] {
    let (q, kv) = (config.query_width(), config.key_value_width());
    let Capacity { rows, logit_rows, splits, words, .. } = *capacity;
    let partials =
        DecodeAttention::partials_len(splits, config.num_attention_heads, config.head_dim);
    [
        (rows * config.hidden_size, Element::F32),
        (rows * config.hidden_size.max(q), element),
        (rows * (q + 2 * kv), element),
        (rows * 2 * config.intermediate_size, element),
        (rows * config.intermediate_size, element),
        (partials, Element::F32),
        (logit_rows * config.hidden_size, element),
        (logit_rows * config.vocab_size, Element::F32),
        (logit_rows, Element::U32),
        (words, Element::I32),
    ]
}

/// K and V, `[layers][num_blocks, kv heads, block_size, head_dim]` each.
#[derive(Debug, Clone)]
pub struct KvPool {
    layers: Vec<[View; 2]>,
}

impl KvPool {
    /// Allocates the pool that `sizing` describes. It is not written: no slot is
    /// read before its token has been computed.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn new<D: Device>(
        device: &mut D,
        config: &ModelConfig,
        element: Element,
        sizing: &KvSizing,
    ) -> Result<Self, DeviceError> {
        let layer = sizing.num_blocks * sizing.block_size * config.key_value_width();
        let layers = config.num_hidden_layers;
        let k = device.alloc(layers * layer, element)?;
        let v = device.alloc(layers * layer, element)?;
        let part =
            |index: usize| Ok([k.slice(index * layer, layer)?, v.slice(index * layer, layer)?]);
        Ok(Self { layers: (0..layers).map(part).collect::<Result<_, DeviceError>>()? })
    }

    /// K and V of a layer.
    #[must_use]
    pub fn layer(&self, index: usize) -> [View; 2] {
        self.layers[index]
    }
}
