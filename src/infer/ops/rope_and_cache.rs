//! Rotary position embedding of q and k, and the write of k and v to their
//! slots of the cache, all in place.
//!
//! Halves are rotated against each other as in Hugging Face's `rotate_half`:
//! element `i` with `i + head_dim / 2`. Angles are products of f32 there, and
//! so they are here: parity with the reference counts for more than precision.

use std::f32::consts::PI;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};

use super::activation::Activation;
use super::columns::Columns;
use super::simd::{Isa, dispatch};
use super::{contiguous, f32_slice, f32_slice_mut, pool};
use crate::infer::ModelConfig;
use crate::infer::model::config::RopeScaling;

/// Rows that one task rotates.
const TASK_ROWS: usize = 16;

/// Elements of a head that one task stores.
const TASK_ELEMENTS: usize = 32;

/// Tokens from which a second thread pays.
const PARALLEL_TOKENS: usize = 16;

/// Cosine and sine of every angle up to a length. Cloning shares it.
#[derive(Debug, Clone)]
pub struct RopeTable {
    /// `[max_len][2][half]`: the cosines of a position, then its sines.
    angles: Arc<[f32]>,
    half: usize,
}

impl RopeTable {
    /// The table of `model`'s base and scaling for positions below `max_len`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "the reference computes in f32")]
    pub fn new(model: &ModelConfig, max_len: usize) -> Self {
        let frequencies = frequencies(model);
        let angles = (0..max_len)
            .flat_map(|position| {
                let angle = move |frequency: &f32| position as f32 * frequency;
                let cosines = frequencies.iter().map(move |f| angle(f).cos());
                cosines.chain(frequencies.iter().map(move |f| angle(f).sin()))
            })
            .collect();
        Self { angles, half: model.head_dim / 2 }
    }

    /// `[max_len][2][head_dim / 2]`: the cosines of a position, then its sines.
    #[must_use]
    pub fn angles(&self) -> &[f32] {
        &self.angles
    }

    /// Cosines and sines of a position.
    fn row(&self, position: usize) -> Option<(&[f32], &[f32])> {
        let row = self.angles.get(position * 2 * self.half..(position + 1) * 2 * self.half)?;
        Some(row.split_at(self.half))
    }
}

/// Radians per token of each pair of elements, `[head_dim / 2]`.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "the reference computes in f32"
)]
fn frequencies(model: &ModelConfig) -> Vec<f32> {
    let dim = model.head_dim as f32;
    let base = model.rope_theta as f32;
    (0..model.head_dim / 2)
        .map(|pair| 1.0 / base.powf((2 * pair) as f32 / dim))
        .map(|frequency| match &model.rope_scaling {
            Some(scaling) => scaled(frequency, scaling),
            None => frequency,
        })
        .collect()
}

/// Llama 3: low frequencies are divided by `factor`, high ones stay, those in
/// between are blended (`_compute_llama3_parameters` in transformers).
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "the reference computes in f32"
)]
fn scaled(frequency: f32, scaling: &RopeScaling) -> f32 {
    let (factor, low, high) =
        (scaling.factor as f32, scaling.low_freq_factor as f32, scaling.high_freq_factor as f32);
    let turns = scaling.original_max_position_embeddings as f32 * frequency / (2.0 * PI);
    if turns > high {
        frequency
    } else if turns < low {
        frequency / factor
    } else {
        let smooth = (turns - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// Rotates q and k of `qkv`, `[num_tokens, q heads + 2 * kv heads, head_dim]`,
/// in place, and copies k and v to `slot_mapping`'s slots of the layer's cache: K
/// is `[num_blocks, kv heads, head_dim, block_size]`, V `[num_blocks, kv heads,
/// block_size, head_dim]`, f32 or bf16.
///
/// # Errors
/// When a shape, a position or a slot does not fit; the cache may then hold
/// some of the rows.
pub fn rope_and_cache(
    qkv: &Tensor,
    (k_cache, v_cache): (&Tensor, &Tensor),
    positions: &[usize],
    slot_mapping: &[usize],
    table: &RopeTable,
) -> Result<()> {
    let (num_tokens, heads, head_dim) = qkv.dims3()?;
    let (num_blocks, kv_heads, cache_dim, block_size) = k_cache.dims4()?;
    if positions.len() != num_tokens || slot_mapping.len() != num_tokens {
        bail!(
            "{num_tokens} tokens with {} positions and {} slots",
            positions.len(),
            slot_mapping.len()
        );
    }
    let v_shape = (num_blocks, kv_heads, block_size, head_dim);
    if heads < 2 * kv_heads
        || v_cache.dims4()? != v_shape
        || head_dim != cache_dim
        || head_dim != 2 * table.half
    {
        bail!("qkv {:?} does not fit a cache of {:?}", qkv.shape(), k_cache.shape());
    }
    qkv.inplace_op1(&Rotate { rotated_heads: heads - kv_heads, positions, table })?;
    let first_k = (heads - 2 * kv_heads) * head_dim;
    let first_v = (heads - kv_heads) * head_dim;
    let store = |first_column, order| Store { first_column, slot_mapping, order };
    k_cache.inplace_op2(qkv, &store(first_k, Order::Elements))?;
    v_cache.inplace_op2(qkv, &store(first_v, Order::Tokens))
}

/// Rotates the first heads of every row.
struct Rotate<'a> {
    rotated_heads: usize,
    positions: &'a [usize],
    table: &'a RopeTable,
}

impl InplaceOp1 for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (_, heads, head_dim) = layout.shape().dims3()?;
        if let Some(position) = self.positions.iter().find(|at| self.table.row(**at).is_none()) {
            bail!("position {position} is past the rotary table");
        }
        let qkv = f32_slice_mut(storage, layout, "qkv")?;
        let isa = Isa::detect();
        let width = heads * head_dim;
        pool::for_each_chunk(qkv, TASK_ROWS * width, |task, rows| {
            let positions = &self.positions[task * TASK_ROWS..];
            for (row, position) in rows.chunks_exact_mut(width).zip(positions) {
                let (cos, sin) = self.table.row(*position).unwrap_or_default();
                rotate_heads(isa, &mut row[..self.rotated_heads * head_dim], cos, sin);
            }
        });
        Ok(())
    }
}

fn rotate_heads(isa: Isa, heads: &mut [f32], cos: &[f32], sin: &[f32]) {
    dispatch!(isa, rotated(heads: &mut [f32], cos: &[f32], sin: &[f32]));
}

#[inline(always)]
fn rotated<const FUSED: bool>(heads: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    for head in heads.chunks_exact_mut(2 * half) {
        let (first, second) = head.split_at_mut(half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// Copies one stretch of every row to the row's slot.
struct Store<'a> {
    first_column: usize,
    slot_mapping: &'a [usize],
    order: Order,
}

/// How a block holds the elements of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// `[head_dim, block_size]`: K, of whose tokens a score takes one element each.
    Elements,
    /// `[block_size, head_dim]`: V.
    Tokens,
}

impl InplaceOp2 for Store<'_> {
    fn name(&self) -> &'static str {
        "store-kv"
    }

    /// The cache is `[num_blocks, kv heads, ..]`, see [`Order`]; the rows are
    /// `[num_tokens, heads, head_dim]`.
    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> Result<()> {
        let rows = f32_slice(rows, rows_layout, "qkv")?;
        let range = contiguous(cache_layout, "the cache")?;
        let shapes = (cache_layout.shape().dims4()?, rows_layout.shape().dims3()?);
        match cache {
            CpuStorage::F32(cache) => self.copy(&mut cache[range], rows, shapes),
            CpuStorage::BF16(cache) => self.copy(&mut cache[range], rows, shapes),
            _ => bail!("the cache must be f32 or bf16"),
        }
    }
}

/// The shape of a layer's K or V, and of the rows to be stored.
type Shapes = ((usize, usize, usize, usize), (usize, usize, usize));

impl Store<'_> {
    fn copy<E: Activation>(
        &self,
        cache: &mut [E],
        rows: &[f32],
        ((num_blocks, kv_heads, inner, outer), (num_tokens, heads, head_dim)): Shapes,
    ) -> Result<()> {
        let block_size = if self.order == Order::Tokens { inner } else { outer };
        let num_slots = num_blocks * block_size;
        if let Some(slot) = self.slot_mapping.iter().find(|slot| **slot >= num_slots) {
            bail!("slot {slot} of a cache of {num_slots}");
        }
        let len = cache.len();
        let cache = Columns::of(cache, len, false);
        let isa = Isa::detect();
        let width = heads * head_dim;
        let store = |head: usize, elements: Range<usize>| {
            let mut row = 0;
            for run in self.slot_mapping.chunk_by(|a, b| a + 1 == *b && b % block_size != 0) {
                let (block, within) = (run[0] / block_size, run[0] % block_size);
                let block = (block * kv_heads + head) * block_size * head_dim;
                let first = row * width + self.first_column + head * head_dim;
                let rows = &rows[first + elements.start..];
                // SAFETY: tasks differ in head or elements, so that none writes
                // where another does, whatever the slots; the cache is
                // borrowed until all are done.
                let slot = |at: usize, len: usize| unsafe { cache.slot(0, block + at, len) };
                let rows = rows.chunks(width).take(run.len());
                match self.order {
                    Order::Tokens => {
                        for (token, row) in rows.enumerate() {
                            let at = (within + token) * head_dim + elements.start;
                            round_row(isa, &row[..elements.len()], slot(at, elements.len()));
                        }
                    }
                    Order::Elements => {
                        let own = slot(elements.start * block_size, elements.len() * block_size);
                        let mut rounded = [E::default(); TASK_ELEMENTS];
                        for (token, row) in rows.enumerate() {
                            round_row(isa, &row[..elements.len()], &mut rounded);
                            let places = own[within + token..].iter_mut().step_by(block_size);
                            places.zip(rounded).for_each(|(place, value)| *place = value);
                        }
                    }
                }
                row += run.len();
            }
        };
        let parts = head_dim.div_ceil(TASK_ELEMENTS);
        let run = |task: usize| {
            let first = task % parts * TASK_ELEMENTS;
            store(task / parts, first..head_dim.min(first + TASK_ELEMENTS));
        };
        if num_tokens < PARALLEL_TOKENS {
            (0..kv_heads * parts).for_each(run);
        } else {
            pool::run(kv_heads * parts, run);
        }
        Ok(())
    }
}

fn round_row<E: Activation>(isa: Isa, values: &[f32], places: &mut [E]) {
    dispatch!(isa, rounded<E: Activation>(values: &[f32], places: &mut [E]));
}

#[inline(always)]
fn rounded<const FUSED: bool, E: Activation>(values: &[f32], places: &mut [E]) {
    places.iter_mut().zip(values).for_each(|(place, value)| *place = E::round(*value));
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn model(head_dim: usize, rope_scaling: Option<RopeScaling>) -> ModelConfig {
        ModelConfig {
            vocab_size: 8,
            hidden_size: 2 * head_dim,
            intermediate_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling,
            max_position_embeddings: 64,
            tie_word_embeddings: true,
            attention_bias: false,
            eos_token_ids: vec![],
            bos_token_id: None,
        }
    }

    #[test]
    fn llama_3_scaling_keeps_the_fast_and_divides_the_slow() {
        let scaling = RopeScaling {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let plain = frequencies(&model(128, None));
        let scaled = frequencies(&model(128, Some(scaling)));
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 32.0);
        assert!(scaled[30] < plain[30] && scaled[30] > plain[30] / 32.0, "blended");
    }

    #[test]
    fn rows_land_rotated_in_their_slots_and_nowhere_else() {
        let table = RopeTable::new(&model(4, None), 64);
        // Two tokens, 2 q heads + k + v of width 4.
        let values: Vec<f32> = (0..32).map(|v| v as f32).collect();
        let qkv = Tensor::from_vec(values.clone(), (2, 4, 4), &Device::Cpu).unwrap();
        let zeros = |shape| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let (k, v) = (zeros((3, 1, 4, 2)), zeros((3, 1, 2, 4)));
        rope_and_cache(&qkv, (&k, &v), &[0, 5], &[4, 1], &table).unwrap();

        let cache = |cache: &Tensor| cache.reshape((6, 4)).unwrap().to_vec2::<f32>().unwrap();
        let k = k.transpose(2, 3).unwrap().contiguous().unwrap();
        let (k, v) = (cache(&k), cache(&v));
        assert_eq!(v[4], values[12..16], "v is not rotated");
        assert_eq!(v[1], values[28..32]);
        assert_eq!(k[4], values[8..12], "position 0 turns by nothing");
        let (cos, sin) = (5_f32.cos(), 5_f32.sin());
        assert_eq!(k[1][0], values[24] * cos - values[26] * sin);
        assert_eq!(k[1][2], values[26] * cos + values[24] * sin);
        for slot in [0, 2, 3, 5] {
            assert_eq!((&k[slot], &v[slot]), (&vec![0.0; 4], &vec![0.0; 4]));
        }
    }

    #[test]
    fn slots_and_positions_out_of_range_are_errors() {
        let table = RopeTable::new(&model(4, None), 64);
        let qkv = Tensor::zeros((1, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let zeros = |shape| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let (k, v) = (zeros((3, 1, 4, 2)), zeros((3, 1, 2, 4)));
        let run = |position, slot| rope_and_cache(&qkv, (&k, &v), &[position], &[slot], &table);
        assert!(run(0, 5).is_ok());
        assert!(run(0, 6).is_err());
        assert!(run(64, 0).is_err());
    }
}
