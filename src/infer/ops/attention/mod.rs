//! Causal attention that reads K and V where they lie: in the blocks of the
//! cache, through block tables. Softmax is online, in f32.
//!
//! Keys are taken in tiles of 32 positions, counted from the start of the
//! sequence. The tiling depends on positions alone, so neither the block size,
//! nor the chunk in which a prompt is computed, nor the rest of the batch
//! changes a bit of the result. The query heads of a group share each K/V row.

mod kernel;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod partial;
mod softmax;
mod task;

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use self::kernel::Element;
use self::partial::{Partial, SPLIT};
use self::task::{Operands, Task};
use super::activation::{Activation, by_dtype};
use super::columns::Columns;
use super::simd::Isa;
use super::{contiguous, pool};
use crate::infer::batch::BatchLayout;

thread_local! {
    /// What splits make of their keys; kept, so that a step allocates nothing for it.
    static SPLITS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Query tokens of a prompt in one parallel task.
const TASK_TOKENS: usize = 16;

/// Attention of `q`, `[num_tokens, num_heads, head_dim]`, over the layer's K,
/// `[num_blocks, num_kv_heads, head_dim, block_size]`, and V, `[num_blocks,
/// num_kv_heads, block_size, head_dim]`, scaled by `1 / sqrt(head_dim)`. Query
/// token `i` of a sequence sees all of the sequence's keys up to its own. Gives
/// `[num_tokens, num_heads * head_dim]` of `dtype`, f32 or bf16.
///
/// # Errors
/// When shapes disagree, or `layout` names rows or blocks that do not exist.
pub fn paged_attention(
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    layout: &Arc<BatchLayout>,
    dtype: DType,
) -> Result<Tensor> {
    q.apply_op3_no_bwd(k_cache, v_cache, &PagedAttention { layout: Arc::clone(layout), dtype })
}

struct PagedAttention {
    layout: Arc<BatchLayout>,
    dtype: DType,
}

impl CustomOp3 for PagedAttention {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        match (k, v) {
            (CpuStorage::F32(k), CpuStorage::F32(v)) => {
                by_dtype!(self.dtype, T => self.run::<_, T>(q, q_layout, (k, k_layout), (v, v_layout)))
            }
            (CpuStorage::BF16(k), CpuStorage::BF16(v)) => {
                by_dtype!(self.dtype, T => self.run::<_, T>(q, q_layout, (k, k_layout), (v, v_layout)))
            }
            _ => bail!("k and v must both be f32, or both bf16"),
        }
    }
}

impl PagedAttention {
    fn run<E: Element + Default, T: Activation>(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        (k, k_layout): (&[E], &Layout),
        (v, v_layout): (&[E], &Layout),
    ) -> Result<(CpuStorage, Shape)> {
        let (num_tokens, num_heads, head_dim) = q_layout.shape().dims3()?;
        let (num_blocks, num_kv_heads, kv_dim, block_size) = k_layout.shape().dims4()?;
        let [q_stride, head_stride, 1] = *q_layout.stride() else {
            bail!("q must have contiguous heads, got {q_layout:?}");
        };
        if v_layout.shape().dims4()? != (num_blocks, num_kv_heads, block_size, head_dim)
            || kv_dim != head_dim
            || head_stride != head_dim
            || num_kv_heads == 0
            || num_heads % num_kv_heads != 0
        {
            bail!("q {q_layout:?} does not fit k {k_layout:?} and v {v_layout:?}");
        }
        check_layout(&self.layout, num_tokens, num_blocks, block_size)?;
        let CpuStorage::F32(q) = q else { bail!("q must be f32") };
        let operands = Operands {
            q: &q[q_layout.start_offset()..],
            q_stride,
            k: &k[contiguous(k_layout, "k")?],
            v: &v[contiguous(v_layout, "v")?],
            block_size,
            num_heads,
            num_kv_heads,
            head_dim,
            #[expect(clippy::cast_precision_loss, reason = "a head is narrow")]
            scale: 1.0 / (head_dim as f32).sqrt(),
        };
        let width = num_heads * head_dim;
        let mut out = vec![T::default(); num_tokens * width];
        let columns = Columns::of(&mut out, width, false);
        let slot = |task: Task<'_>, token: usize, head: usize| {
            // SAFETY: a task's rows and heads are its own, and `out` is alive and
            // not borrowed otherwise until all tasks are done.
            unsafe { columns.slot(task.row + token, head * head_dim, head_dim) }
        };
        let isa = Isa::detect();
        let stretches = stretches(&self.layout);
        let split_len = Partial::len(num_heads / num_kv_heads, head_dim);
        SPLITS.with_borrow_mut(|buffer| {
            let splits = stretches.iter().filter_map(|stretch| stretch.split);
            let rows = splits.map(|split| split.before + split.count).max().unwrap_or(0);
            buffer.resize(rows * num_kv_heads * split_len, 0.0);
            let splits = Columns::of(buffer, split_len, false);
            let (num_tasks, threads) = (stretches.len() * num_kv_heads, pool::threads());
            pool::run(num_tasks, |index| {
                let index = pool::last_first(index, num_tasks, threads);
                let stretch = &stretches[index / num_kv_heads];
                let task = Task { kv_head: index % num_kv_heads, ..stretch.task };
                let Some(split) = stretch.split else {
                    return task::run(isa, &operands, task, |token, head| slot(task, token, head));
                };
                let row = split.row(task.kv_head, num_kv_heads);
                // SAFETY: a split's row is its own; the buffer is as alive as `out`.
                let sums = unsafe { splits.slot(row, 0, split_len) };
                task::run_split(isa, &operands, task, split.index, sums);
            });
            for stretch in &stretches {
                let Some(split @ Split { index: 0, count, .. }) = stretch.split else { continue };
                for kv_head in 0..num_kv_heads {
                    let task = Task { kv_head, ..stretch.task };
                    let first = split.row(kv_head, num_kv_heads) * split_len;
                    let splits = &mut buffer[first..first + count * split_len];
                    task::join(isa, &operands, task, splits, |token, head| slot(task, token, head));
                }
            }
        });
        Ok((T::storage(out), Shape::from((num_tokens, width))))
    }
}

fn check_layout(
    layout: &BatchLayout,
    num_tokens: usize,
    num_blocks: usize,
    block_size: usize,
) -> Result<()> {
    let BatchLayout { query_start_loc, seq_lens, block_tables } = layout;
    let num_seqs = seq_lens.len();
    if query_start_loc.len() != num_seqs + 1
        || block_tables.len() != num_seqs
        || query_start_loc.first() != Some(&0)
        || query_start_loc.last() != Some(&num_tokens)
        || !query_start_loc.is_sorted()
    {
        bail!("the layout of {num_seqs} sequences does not describe {num_tokens} tokens");
    }
    for (seq, (len, table)) in seq_lens.iter().zip(block_tables).enumerate() {
        if query_start_loc[seq + 1] - query_start_loc[seq] > *len {
            bail!("sequence {seq} has more query tokens than its {len} tokens");
        }
        if table.len() * block_size < *len {
            bail!("{} blocks of {block_size} do not hold {len} tokens", table.len());
        }
        if let Some(block) = table.iter().find(|block| **block as usize >= num_blocks) {
            bail!("block {block} of a pool of {num_blocks}");
        }
    }
    Ok(())
}

/// What one task does, for every K/V head.
struct Stretch<'a> {
    task: Task<'a>,
    /// Which of the keys, if others take the rest.
    split: Option<Split>,
}

/// One of the splits of a stretch's keys.
#[derive(Debug, Clone, Copy)]
struct Split {
    index: usize,
    /// Splits of this stretch, and of those before it.
    count: usize,
    before: usize,
}

impl Split {
    /// Its row among what all splits of all heads make; those of a head are neighbours.
    const fn row(self, kv_head: usize, num_kv_heads: usize) -> usize {
        self.before * num_kv_heads + kv_head * self.count + self.index
    }
}

/// Shares out the query tokens: a prompt in stretches of tokens, a decode by
/// itself, and one that has many keys in splits of these, since few K/V heads
/// would leave threads without work.
fn stretches(layout: &BatchLayout) -> Vec<Stretch<'_>> {
    let mut stretches = Vec::with_capacity(layout.seq_lens.len());
    let mut before = 0;
    for (seq, seq_len) in layout.seq_lens.iter().enumerate() {
        let (first, last) = (layout.query_start_loc[seq], layout.query_start_loc[seq + 1]);
        let first_position = seq_len - (last - first);
        let task = |row: usize| Task {
            block_table: &layout.block_tables[seq],
            row,
            position: first_position + row - first,
            num_tokens: TASK_TOKENS.min(last - row),
            kv_head: 0,
        };
        if last - first == 1 && *seq_len > SPLIT {
            let count = seq_len.div_ceil(SPLIT);
            let split = |index| Some(Split { index, count, before });
            stretches.extend((0..count).map(|i| Stretch { task: task(first), split: split(i) }));
            before += count;
        } else {
            let rows = (first..last).step_by(TASK_TOKENS);
            stretches.extend(rows.map(|row| Stretch { task: task(row), split: None }));
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::infer::kv::BlockId;

    #[test]
    fn a_token_with_many_keys_attends_alike_in_a_prompt_and_alone() {
        const LEN: usize = 2 * SPLIT + 70;
        let (heads, kv_heads, dim, block) = (6, 2, 32, 16);
        let blocks = LEN.div_ceil(block);
        let random = |shape: &[usize]| Tensor::randn(0_f32, 1.0, shape, &Device::Cpu).unwrap();
        let q = random(&[LEN, heads, dim]);
        for dtype in [DType::F32, DType::BF16] {
            let k = random(&[blocks, kv_heads, dim, block]).to_dtype(dtype).unwrap();
            let v = random(&[blocks, kv_heads, block, dim]).to_dtype(dtype).unwrap();
            let attention = |first: usize, last: usize| {
                let layout = BatchLayout {
                    query_start_loc: vec![0, last - first],
                    seq_lens: vec![last],
                    block_tables: vec![(0..blocks as BlockId).collect()],
                };
                let q = q.narrow(0, first, last - first).unwrap();
                let rows = paged_attention(&q, &k, &v, &Arc::new(layout), DType::F32).unwrap();
                rows.to_vec2::<f32>().unwrap()
            };
            let prompt = attention(0, LEN);
            for token in [0, SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT, LEN - 1] {
                assert_eq!(attention(token, token + 1)[0], prompt[token], "{dtype:?} {token}");
            }
        }
    }
}
