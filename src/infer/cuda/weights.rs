//! A model's weights on a device: matrices in the type that is multiplied,
//! those that read the same input merged, norms and rotary angles in f32.

use candle_core::Tensor;
use half::{bf16, f16};
use rayon::prelude::*;

use super::device::Device;
use super::{Element, View};
use crate::infer::model::WeightMemory;
use crate::infer::model::config::{EMBEDDING, OUTPUT_HEAD};
use crate::infer::ops::RopeTable;
use crate::infer::weights::{Weight, WeightForm, WeightSource};
use crate::infer::{InferError, ModelConfig};

/// All weights, by what they do.
#[derive(Debug, Clone)]
pub struct Weights {
    /// `[vocab, hidden]`.
    pub embedding: View,
    /// In their order.
    pub layers: Vec<Layer>,
    /// `[hidden]` of f32.
    pub norm: View,
    /// `[vocab, hidden]`; the embedding where they are tied.
    pub lm_head: View,
    /// `[max_len, 2, head_dim / 2]` of f32: cosines of a position, then sines.
    pub angles: View,
    /// Bytes of the matrices.
    pub memory: WeightMemory,
}

/// Those of one layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// `[hidden]` of f32.
    pub input_norm: View,
    /// `[q + k + v, hidden]`.
    pub qkv: View,
    /// `[q + k + v]` of f32, where the model has it.
    pub qkv_bias: Option<View>,
    /// `[hidden, q]`.
    pub output: View,
    /// `[hidden]` of f32.
    pub post_attention_norm: View,
    /// `[2 * intermediate, hidden]`, gate first.
    pub gate_up: View,
    /// `[hidden, intermediate]`.
    pub down: View,
}

impl Weights {
    /// Reads all weights from `source` and copies them to `device`, matrices as
    /// `element`, for sequences of at most `max_len` tokens.
    ///
    /// # Errors
    /// [`InferError::Load`] from the source; when the device has no room.
    pub fn load<D: Device>(
        device: &mut D,
        config: &ModelConfig,
        source: &dyn WeightSource,
        element: Element,
        max_len: usize,
    ) -> Result<Self, InferError> {
        let mut loader = Loader { device, config, source, element };
        let ModelConfig { vocab_size, hidden_size, .. } = *config;
        let embedding = loader.matrix(&[(EMBEDDING.to_owned(), vocab_size)], hidden_size)?;
        let lm_head = if config.tie_word_embeddings {
            embedding
        } else {
            loader.matrix(&[(OUTPUT_HEAD.to_owned(), vocab_size)], hidden_size)?
        };
        let layers = (0..config.num_hidden_layers)
            .map(|layer| loader.layer(layer))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = loader.vector("model.norm.weight", hidden_size)?;
        let table = RopeTable::new(config, max_len);
        let angles = loader.floats(table.angles())?;
        let bytes = |views: &[View]| -> usize { views.iter().map(|view| view.num_bytes()).sum() };
        let in_layers: usize = layers
            .iter()
            .map(|layer| bytes(&[layer.qkv, layer.output, layer.gate_up, layer.down]))
            .sum();
        let read_in_a_step = in_layers + lm_head.num_bytes();
        let own = if config.tie_word_embeddings { 0 } else { embedding.num_bytes() };
        let memory = WeightMemory { total: read_in_a_step + own, read_in_a_step };
        Ok(Self { embedding, layers, norm, lm_head, angles, memory })
    }

    /// Bytes that weights of this shape take on a device: exact, but for the
    /// rounding of allocations.
    #[must_use]
    pub fn num_bytes(config: &ModelConfig, element: Element, max_len: usize) -> u64 {
        let angles = (max_len * config.head_dim * Element::F32.num_bytes()) as u64;
        let tensors = config.tensors().into_iter().map(|(_, shape)| {
            let size = if shape.len() == 1 { Element::F32 } else { element }.num_bytes();
            (shape.iter().product::<usize>() * size) as u64
        });
        tensors.sum::<u64>() + angles
    }
}

struct Loader<'a, D> {
    device: &'a mut D,
    config: &'a ModelConfig,
    source: &'a dyn WeightSource,
    element: Element,
}

impl<D: Device> Loader<'_, D> {
    fn layer(&mut self, index: usize) -> Result<Layer, InferError> {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, .. } = *self.config;
        let q = self.config.query_width();
        let projections = self.config.qkv_projections();
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let qkv = projections.map(|(part, rows)| (name(&format!("{part}.weight")), rows));
        let gate_up = ["gate", "up"].map(|part| (name(&format!("mlp.{part}_proj.weight")), inner));
        Ok(Layer {
            input_norm: self.vector(&name("input_layernorm.weight"), hidden)?,
            qkv: self.matrix(&qkv, hidden)?,
            qkv_bias: if self.config.attention_bias {
                let mut bias = Vec::new();
                for (part, len) in projections {
                    bias.extend(self.read_vector(&name(&format!("{part}.bias")), len)?);
                }
                Some(self.floats(&bias)?)
            } else {
                None
            },
            output: self.matrix(&[(name("self_attn.o_proj.weight"), hidden)], q)?,
            post_attention_norm: self.vector(&name("post_attention_layernorm.weight"), hidden)?,
            gate_up: self.matrix(&gate_up, hidden)?,
            down: self.matrix(&[(name("mlp.down_proj.weight"), hidden)], inner)?,
        })
    }

    /// Matrices of `columns` columns, one below the other.
    fn matrix(&mut self, parts: &[(String, usize)], columns: usize) -> Result<View, InferError> {
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        let whole = self.device.alloc(rows * columns, self.element)?;
        let form = if self.element == Element::Bf16 { WeightForm::Bf16 } else { WeightForm::F32 };
        let mut first = 0;
        for (name, rows) in parts {
            let to = whole.slice(first, rows * columns)?;
            match self.source.load(name, &[*rows, columns], form)? {
                Weight::Bf16(rows) => self.device.upload(to, rows.bytes())?,
                weight => self.upload(to, &weight.to_f32()?)?,
            }
            first += rows * columns;
        }
        Ok(whole)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<View, InferError> {
        let values = self.read_vector(name, len)?;
        self.floats(&values)
    }

    fn read_vector(&self, name: &str, len: usize) -> Result<Vec<f32>, InferError> {
        Ok(self.source.load(name, &[len], WeightForm::F32)?.to_f32()?.to_vec1()?)
    }

    fn floats(&mut self, values: &[f32]) -> Result<View, InferError> {
        let to = self.device.alloc(values.len(), Element::F32)?;
        self.device.upload(to, &rounded(values, Element::F32))?;
        Ok(to)
    }

    fn upload(&mut self, to: View, values: &Tensor) -> Result<(), InferError> {
        let values: Vec<f32> = values.flatten_all()?.to_vec1()?;
        Ok(self.device.upload(to, &rounded(&values, self.element))?)
    }
}

/// Little-endian bytes of `values` rounded to `element`, on all processors.
fn rounded(values: &[f32], element: Element) -> Vec<u8> {
    const TASK: usize = 1 << 16;
    let size = element.num_bytes();
    let mut bytes = vec![0; values.len() * size];
    bytes.par_chunks_mut(TASK * size).zip(values.par_chunks(TASK)).for_each(|(bytes, values)| {
        for (to, value) in bytes.chunks_exact_mut(size).zip(values) {
            match element {
                Element::F16 => to.copy_from_slice(&f16::from_f32(*value).to_le_bytes()),
                Element::Bf16 => to.copy_from_slice(&bf16::from_f32(*value).to_le_bytes()),
                _ => to.copy_from_slice(&value.to_le_bytes()),
            }
        }
    });
    bytes
}
