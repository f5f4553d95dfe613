//! Operands of each kernel in the shapes of a model, over an arena, as variants
//! that do the same over other memory, so that L2 cannot have it.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use yardstick::infer::cuda::device::Product;
use yardstick::infer::cuda::gpu::Gpu;
use yardstick::infer::cuda::kernels::{
    DecodeAttention, PrefillAttention, RopeShape, decode_attention, embedding, gated_gemv, gemv,
    prefill_attention, rms_norm, rope_and_cache, sample, silu_mul,
};
use yardstick::infer::cuda::{DeviceError, Element, View};
use yardstick::infer::{ModelConfig, SamplingParams};

use super::gpu_bench::{Op, Work};
use super::gpu_values::Arena;

/// Bytes that variants touch together at least, where the arena has them: twice
/// the largest L2 that there is (126 MB, B200).
const PAST_L2: usize = 256 << 20;

/// Most variants of a case.
const MAX_VARIANTS: usize = 64;

/// Blocks of decode attention a multiprocessor, as the runner has it.
const BLOCKS_PER_PROCESSOR: usize = 8;

const T: Element = Element::Bf16;
const F32: Element = Element::F32;

/// A kernel over memory that no other variant touches.
pub struct Case {
    /// What does the same over other memory.
    pub variants: Vec<Work>,
    /// What the first variant writes.
    pub out: View,
    /// What the first variant reads, in the order that its maker says.
    pub inputs: Vec<View>,
    /// Whether the variants exceed every L2.
    pub past_l2: bool,
}

/// A variant: its work, what it writes, what it reads.
type Made = Result<(Work, View, Vec<View>), DeviceError>;

/// Variants of what `make` gives, which touches `bytes`.
fn vary(
    arena: &mut Arena,
    bytes: usize,
    mut make: impl FnMut(&mut Arena) -> Made,
) -> Result<Case, DeviceError> {
    let target = PAST_L2.min(arena.num_bytes() / 4);
    let wanted = target.div_ceil(bytes.max(1)).clamp(1, MAX_VARIANTS);
    let (first, out, inputs) = make(arena)?;
    let mut variants = vec![first];
    for _ in 1..wanted {
        variants.push(make(arena)?.0);
    }
    Ok(Case { past_l2: variants.len() * bytes >= PAST_L2, variants, out, inputs })
}

/// Who multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Our kernels.
    Gemv,
    /// cuBLAS.
    Blas,
}

/// A product of `[m, n, k]` into `out`, added to it or not. Inputs: x, w.
pub fn product(
    gpu: &mut Gpu,
    arena: &mut Arena,
    shape: [usize; 3],
    (out, add): (Element, bool),
    by: By,
) -> Result<Case, DeviceError> {
    arena.clear(gpu)?;
    let [m, n, k] = shape;
    vary(arena, (n * k + m * k) * 2 + m * n * out.num_bytes(), |arena| {
        let (x, w) = (arena.take(m * k, T)?, arena.take(n * k, T)?);
        let out = arena.take(m * n, out)?;
        let product = Product { x, w, out, shape, add };
        let op = match by {
            By::Gemv => Op::Launch(gemv(&product)?),
            By::Blas => Op::Product(product),
        };
        Ok((vec![op], out, vec![x, w]))
    })
}

/// Gate, up and their product of `[m, inner, k]`. Inputs: x, w.
pub fn gated(gpu: &mut Gpu, arena: &mut Arena, shape: [usize; 3]) -> Result<Case, DeviceError> {
    arena.clear(gpu)?;
    let [m, inner, k] = shape;
    vary(arena, (2 * inner * k + m * k + m * inner) * 2, |arena| {
        let (x, w) = (arena.take(m * k, T)?, arena.take(2 * inner * k, T)?);
        let out = arena.take(m * inner, T)?;
        Ok((vec![Op::Launch(gated_gemv(x, w, out, shape)?)], out, vec![x, w]))
    })
}

/// Inputs: x.
pub fn norm(
    gpu: &mut Gpu,
    arena: &mut Arena,
    [rows, hidden]: [usize; 2],
) -> Result<Case, DeviceError> {
    arena.clear(gpu)?;
    let weight = arena.put(gpu, &vec![1.0; hidden], F32)?;
    vary(arena, rows * hidden * 6, |arena| {
        let (x, out) = (arena.take(rows * hidden, F32)?, arena.take(rows * hidden, T)?);
        let launch = rms_norm(x, None, weight, out, [rows, hidden], 1e-5)?;
        Ok((vec![Op::Launch(launch)], out, vec![x]))
    })
}

/// Inputs: gate and up.
pub fn silu(
    gpu: &mut Gpu,
    arena: &mut Arena,
    [rows, inner]: [usize; 2],
) -> Result<Case, DeviceError> {
    arena.clear(gpu)?;
    vary(arena, rows * inner * 6, |arena| {
        let (x, out) = (arena.take(rows * 2 * inner, T)?, arena.take(rows * inner, T)?);
        Ok((vec![Op::Launch(silu_mul(x, out, [rows, inner])?)], out, vec![x]))
    })
}

/// Inputs: table. Row `r` takes id `r * 7919 % vocab`.
pub fn embed(
    gpu: &mut Gpu,
    arena: &mut Arena,
    [rows, vocab, hidden]: [usize; 3],
) -> Result<Case, DeviceError> {
    arena.clear(gpu)?;
    let ids: Vec<usize> = (0..rows).map(|row| row * 7919 % vocab).collect();
    let ids = arena.ints(gpu, &ids)?;
    let table = arena.take(vocab * hidden, T)?;
    vary(arena, rows * hidden * 6, |arena| {
        let out = arena.take(rows * hidden, F32)?;
        let launch = embedding(table, ids, out, [rows, vocab, hidden])?;
        Ok((vec![Op::Launch(launch)], out, vec![table]))
    })
}

/// How rows of logits are drawn from. Inputs: logits.
pub fn draw(
    gpu: &mut Gpu,
    arena: &mut Arena,
    [rows, vocab]: [usize; 2],
    sampling: &SamplingParams,
) -> Result<Case, DeviceError> {
    arena.clear(gpu)?;
    let words: Vec<i32> =
        (0..rows).flat_map(|row| sample::Params::new(sampling, row).words()).collect();
    let params = arena.words(gpu, &words)?;
    // As a model's, not as flat as the arena's noise.
    let mut generator = ChaCha8Rng::seed_from_u64(1);
    let mut logit = || (0..4).map(|_| generator.random_range(-4.0_f32..4.0)).sum::<f32>();
    let logits: Vec<f32> = (0..rows * vocab).map(|_| logit()).collect();
    vary(arena, rows * vocab * 4, |arena| {
        let view = arena.put(gpu, &logits, F32)?;
        let out = arena.take(rows, Element::U32)?;
        let launch = sample::sample(view, params, out, [rows, vocab])?;
        Ok((vec![Op::Launch(launch)], out, vec![view]))
    })
}

/// Sequences of one length over a paged cache, their blocks in random order.
#[derive(Debug, Clone)]
pub struct Paged {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub context: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Blocks of all sequences, one table after another.
    pub tables: Vec<usize>,
}

impl Paged {
    /// Of `batch` sequences of `context` tokens.
    pub fn new(batch: usize, context: usize, block_size: usize) -> Self {
        let mut tables: Vec<usize> = (0..batch * context.div_ceil(block_size)).collect();
        tables.shuffle(&mut ChaCha8Rng::seed_from_u64(2));
        Self { batch, context, block_size, tables }
    }

    /// Blocks of one sequence.
    pub const fn table_len(&self) -> usize {
        self.context.div_ceil(self.block_size)
    }

    /// Slot of a token.
    pub fn slot(&self, sequence: usize, token: usize) -> usize {
        let block = self.tables[sequence * self.table_len() + token / self.block_size];
        block * self.block_size + token % self.block_size
    }

    /// Where a slot's element 0 of a head lies in K or V.
    pub fn at(&self, slot: usize, kv_head: usize, config: &ModelConfig) -> usize {
        let (block, offset) = (slot / self.block_size, slot % self.block_size);
        let row = block * config.num_key_value_heads + kv_head;
        (row * self.block_size + offset) * config.head_dim
    }

    /// Elements of K, and of V.
    fn len(&self, config: &ModelConfig) -> usize {
        let slots = self.tables.len() * self.block_size;
        slots * config.num_key_value_heads * config.head_dim
    }

    fn starts(&self) -> Vec<usize> {
        (0..self.batch).map(|sequence| sequence * self.table_len()).collect()
    }
}

/// Elements of a row of q, and of q with k and v.
fn widths(config: &ModelConfig) -> (usize, usize) {
    let q = config.num_attention_heads * config.head_dim;
    (q, q + 2 * config.num_key_value_heads * config.head_dim)
}

/// Attention of one token of each sequence, and the merge. Inputs: qkv, k, v.
pub fn decode(
    gpu: &mut Gpu,
    arena: &mut Arena,
    config: &ModelConfig,
    paged: &Paged,
) -> Result<Case, DeviceError> {
    use yardstick::infer::cuda::device::Device;
    arena.clear(gpu)?;
    let ModelConfig { num_attention_heads, num_key_value_heads, head_dim, .. } = *config;
    let (q, qkv) = widths(config);
    let batch = paged.batch;
    let splits = decode_attention::num_splits(paged.context);
    let row = arena.ints(gpu, &(0..batch).collect::<Vec<_>>())?;
    let kv_len = arena.ints(gpu, &vec![paged.context; batch])?;
    let table_start = arena.ints(gpu, &paged.starts())?;
    let split_start: Vec<usize> = (0..=batch).map(|item| item * splits).collect();
    let split_start = arena.ints(gpu, &split_start)?;
    let block_tables = arena.ints(gpu, &paged.tables)?;
    let units = batch * splits;
    let partials = DecodeAttention::partials_len(units, num_attention_heads, head_dim);
    let partials = arena.take(partials, F32)?;
    let blocks = (gpu.num_processors() * BLOCKS_PER_PROCESSOR).div_ceil(num_key_value_heads);
    let len = paged.len(config);
    vary(arena, 4 * len, |arena| {
        let view = arena.take(batch * qkv, T)?;
        let (k, v) = (arena.take(len, T)?, arena.take(len, T)?);
        let out = arena.take(batch * q, T)?;
        let attention = DecodeAttention {
            q: view,
            q_stride: qkv,
            k,
            v,
            row,
            kv_len,
            table_start,
            split_start,
            block_tables,
            partials,
            out,
            num_items: batch,
            rows: batch,
            num_heads: num_attention_heads,
            num_kv_heads: num_key_value_heads,
            head_dim,
            block_size: paged.block_size,
        };
        let work =
            vec![Op::Launch(attention.attend(units, blocks)?), Op::Launch(attention.merge()?)];
        Ok((work, out, vec![view, k, v]))
    })
}

/// Attention of the last `new` tokens of each sequence. Inputs: qkv, k, v.
pub fn prefill(
    gpu: &mut Gpu,
    arena: &mut Arena,
    config: &ModelConfig,
    paged: &Paged,
    new: usize,
) -> Result<Case, DeviceError> {
    arena.clear(gpu)?;
    let ModelConfig { num_attention_heads, num_key_value_heads, head_dim, .. } = *config;
    let (q, qkv) = widths(config);
    let (batch, rows) = (paged.batch, paged.batch * new);
    let (new_lens, seq_lens) = (vec![new; batch], vec![paged.context; batch]);
    let group = num_attention_heads / num_key_value_heads;
    let tiles = prefill_attention::tiles(&new_lens, &seq_lens, group);
    let num_tiles = tiles.len();
    let tiles = arena.ints(gpu, &tiles.into_iter().flatten().collect::<Vec<_>>())?;
    let starts: Vec<usize> = (0..batch).map(|sequence| sequence * new).collect();
    let query_start = arena.ints(gpu, &starts)?;
    let query_len = arena.ints(gpu, &new_lens)?;
    let seq_len = arena.ints(gpu, &seq_lens)?;
    let table_start = arena.ints(gpu, &paged.starts())?;
    let block_tables = arena.ints(gpu, &paged.tables)?;
    let len = paged.len(config);
    vary(arena, 4 * len + 2 * rows * (qkv + q), |arena| {
        let view = arena.take(rows * qkv, T)?;
        let (k_cache, v_cache) = (arena.take(len, T)?, arena.take(len, T)?);
        let out = arena.take(rows * q, T)?;
        let launch = prefill_attention::prefill_attention(&PrefillAttention {
            q: view,
            k_cache,
            v_cache,
            query_start,
            query_len,
            seq_len,
            table_start,
            tiles,
            block_tables,
            out,
            num_tiles,
            num_rows: rows,
            num_heads: num_attention_heads,
            num_kv_heads: num_key_value_heads,
            head_dim,
            block_size: paged.block_size,
        })?;
        Ok((vec![Op::Launch(launch)], out, vec![view, k_cache, v_cache]))
    })
}

/// Rotation and KV write of one token of each sequence, its last; `angles` are
/// those of a table. Inputs: qkv, k, v, of which qkv is written, too.
pub fn rope(
    gpu: &mut Gpu,
    arena: &mut Arena,
    config: &ModelConfig,
    paged: &Paged,
    angles: &[f32],
) -> Result<Case, DeviceError> {
    arena.clear(gpu)?;
    let (q, qkv) = widths(config);
    let shape = RopeShape {
        rows: paged.batch,
        q_heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        block_size: paged.block_size,
    };
    let last = paged.context - 1;
    let angles = arena.put(gpu, angles, F32)?;
    let positions = arena.ints(gpu, &vec![last; paged.batch])?;
    let slots: Vec<usize> = (0..paged.batch).map(|sequence| paged.slot(sequence, last)).collect();
    let slots = arena.ints(gpu, &slots)?;
    let len = paged.len(config);
    // Of a cache only what is written is touched: one does for all variants.
    let (k, v) = (arena.take(len, T)?, arena.take(len, T)?);
    vary(arena, paged.batch * 2 * (2 * qkv), |arena| {
        let view = arena.take(paged.batch * qkv, T)?;
        let launch = rope_and_cache(view, [k, v], angles, None, [positions, slots], shape)?;
        let rotated = view.slice(0, q)?;
        Ok((vec![Op::Launch(launch)], rotated, vec![view, k, v]))
    })
}
