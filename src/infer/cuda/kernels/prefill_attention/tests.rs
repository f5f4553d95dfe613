//! The kernel against the CPU op and sums in f64.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::infer::batch::BatchLayout;
use crate::infer::cuda::simt::{Values, assert_clean, assert_overflows, every_order, survives};
use crate::infer::ops::paged_attention;

/// Rounding of the result (half a unit in the last place of numbers around
/// one), and of the weights that tensor cores multiply with, as large and
/// averaged over keys.
const fn tolerance(element: Element) -> f32 {
    if matches!(element, Element::F16) { 1e-3 } else { 8e-3 }
}

/// Query tokens of a text, and the tokens of it before them, which are cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    text: usize,
    cached: usize,
    queries: usize,
}

impl Chunk {
    const fn num_keys(self) -> usize {
        self.cached + self.queries
    }
}

/// Chunks of query tokens; everything but the layout of memory.
#[derive(Clone)]
struct Case {
    element: Element,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    chunks: Vec<Chunk>,
}

impl Case {
    /// Texts of which so many tokens are cached, and so many are queries.
    fn new(
        element: Element,
        [num_heads, num_kv_heads, head_dim]: [usize; 3],
        chunks: &[(usize, usize)],
    ) -> Self {
        let chunk = |(text, &(cached, queries))| Chunk { text, cached, queries };
        let chunks = chunks.iter().enumerate().map(chunk).collect();
        Self { element, num_heads, num_kv_heads, head_dim, chunks }
    }

    fn noise(&self, len: usize, width: f32, seed: usize) -> Vec<f32> {
        Values::noise(len, width, seed as u64).rounded(self.element).to_f32()
    }

    /// q of a chunk, `[queries, num_heads, head_dim]`. A token's is that of
    /// its text and position, and so are its K and V.
    fn q(&self, chunk: Chunk) -> Vec<f32> {
        let row = self.num_heads * self.head_dim;
        let rows = chunk.cached..chunk.num_keys();
        rows.flat_map(|at| self.noise(row, 2.0, chunk.text * 4096 + at)).collect()
    }

    /// K (0) or V (1) of a chunk, `[keys, num_kv_heads, head_dim]`.
    fn kv(&self, chunk: Chunk, which: usize) -> Vec<f32> {
        let row = self.num_kv_heads * self.head_dim;
        let seed = ((which + 1) << 20) + chunk.text * 4096;
        (0..chunk.num_keys()).flat_map(|at| self.noise(row, 1.5, seed + at)).collect()
    }

    /// Attention of a chunk in f64, `[queries, num_heads, head_dim]`.
    fn expected(&self, chunk: Chunk) -> Vec<f32> {
        let (q, k, v) = (self.q(chunk), self.kv(chunk, 0), self.kv(chunk, 1));
        let (dim, group) = (self.head_dim, self.num_heads / self.num_kv_heads);
        let mut out = Vec::new();
        for (index, q) in q.chunks_exact(dim).enumerate() {
            let (token, head) = (index / self.num_heads, index % self.num_heads);
            let row = |of: usize| (of * self.num_kv_heads + head / group) * dim;
            let keys = 0..=chunk.cached + token;
            let score = |key| {
                let products = k[row(key)..][..dim].iter().zip(q);
                let sum: f64 = products.map(|(k, q)| f64::from(*k) * f64::from(*q)).sum();
                sum / (dim as f64).sqrt()
            };
            let scores: Vec<f64> = keys.map(score).collect();
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let (mut sums, mut total) = (vec![0.0; dim], 0.0);
            for (key, score) in scores.iter().enumerate() {
                let weight = (score - most).exp();
                total += weight;
                let values = sums.iter_mut().zip(&v[row(key)..]);
                values.for_each(|(sum, v)| *sum += weight * f64::from(*v));
            }
            out.extend(sums.iter().map(|sum| (sum / total) as f32));
        }
        out
    }

    /// What the kernel makes of each chunk, with blocks in random places and
    /// NaN wherever nothing is to be read.
    fn run(&self, block_size: usize) -> Vec<Values> {
        let Self { element, num_heads, num_kv_heads, head_dim, .. } = *self;
        let width = num_heads * head_dim;
        let q_stride = width + 2 * num_kv_heads * head_dim;
        let blocks: usize =
            self.chunks.iter().map(|chunk| chunk.num_keys().div_ceil(block_size)).sum();
        let mut order: Vec<i32> = (0..blocks as i32 + 2).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(block_size as u64));
        let cache_len = order.len() * num_kv_heads * block_size * head_dim;
        let mut caches = [vec![f32::NAN; cache_len], vec![f32::NAN; cache_len]];
        let (mut tables, mut table_start) = (Vec::new(), Vec::new());
        // A row that is nobody's before each chunk, and one after the last.
        let rows: usize = self.chunks.iter().map(|chunk| chunk.queries + 1).sum::<usize>() + 1;
        let mut q = vec![f32::NAN; rows * q_stride];
        let (mut query_start, mut row) = (Vec::new(), 0);
        for chunk in &self.chunks {
            let table = &order[tables.len()..][..chunk.num_keys().div_ceil(block_size)];
            for (which, cache) in caches.iter_mut().enumerate() {
                for (index, from) in self.kv(*chunk, which).chunks_exact(head_dim).enumerate() {
                    let (token, head) = (index / num_kv_heads, index % num_kv_heads);
                    let block = table[token / block_size] as usize * num_kv_heads + head;
                    let slot = block * block_size + token % block_size;
                    cache[slot * head_dim..][..head_dim].copy_from_slice(from);
                }
            }
            table_start.push(tables.len() as i32);
            tables.extend_from_slice(table);
            row += 1;
            query_start.push(row as i32);
            for from in self.q(*chunk).chunks_exact(width) {
                q[row * q_stride..][..width].copy_from_slice(from);
                row += 1;
            }
        }
        let query_lens: Vec<_> = self.chunks.iter().map(|chunk| chunk.queries).collect();
        let seq_lens: Vec<_> = self.chunks.iter().map(|chunk| chunk.num_keys()).collect();
        let pairs = tiles(&query_lens, &seq_lens, num_heads / num_kv_heads);
        let ints = |of: &[usize]| Values::ints(&of.iter().map(|x| *x as i32).collect::<Vec<_>>());
        let [query_len, seq_len, tiles] = [&query_lens, &seq_lens, pairs.as_flattened()].map(ints);
        let [query_start_of, table_start] = [&query_start, &table_start].map(|of| Values::ints(of));
        let block_tables = Values::ints(&tables);
        let [k, v] = caches.map(|cache| Values::of(&cache, element));
        let q = Values::of(&q, element);
        let [out] = every_order([Values::nan(rows * width, element)], |[out]| {
            let attention = PrefillAttention {
                q: q.view(),
                k_cache: k.view(),
                v_cache: v.view(),
                query_start: query_start_of.view(),
                query_len: query_len.view(),
                seq_len: seq_len.view(),
                table_start: table_start.view(),
                tiles: tiles.view(),
                block_tables: block_tables.view(),
                out,
                num_tiles: pairs.len(),
                num_rows: rows,
                num_heads,
                num_kv_heads,
                head_dim,
                block_size,
            };
            vec![prefill_attention(&attention).unwrap()]
        });
        let out = out.to_f32();
        let nobodys = query_start.iter().map(|start| *start as usize - 1).chain([rows - 1]);
        for row in nobodys {
            let row = &out[row * width..][..width];
            assert!(row.iter().all(|x| x.is_nan()), "a row of nobody was written");
        }
        let of_chunk = |(start, chunk): (&i32, &Chunk)| {
            let out = &out[*start as usize * width..][..chunk.queries * width];
            Values::of(out, element)
        };
        query_start.iter().zip(&self.chunks).map(of_chunk).collect()
    }

    fn check(&self, block_size: usize) {
        for (out, chunk) in self.run(block_size).iter().zip(&self.chunks) {
            out.assert_close(&self.expected(*chunk), tolerance(self.element));
        }
    }
}

#[test]
fn ragged_chunks_equal_the_reference_in_every_type_and_shape() {
    // Groups, tiles and key tiles that end with their last row, before it, and after it.
    use Element::{Bf16, F16};
    Case::new(Bf16, [3, 1, 64], &[(0, 21), (0, 22), (70, 1), (3, 65)]).check(8);
    Case::new(F16, [2, 2, 64], &[(0, 64), (5, 65), (63, 1)]).check(24);
    Case::new(Bf16, [4, 1, 128], &[(130, 17), (0, 3)]).check(16);
    Case::new(F16, [3, 1, 128], &[(43, 22), (64, 21)]).check(24);
    Case::new(Bf16, [7, 1, 64], &[(100, 10), (0, 9)]).check(256);
    Case::new(F16, [16, 2, 64], &[(60, 9), (64, 8)]).check(40);
    Case::new(F16, [6, 2, 16], &[(9, 30), (0, 130)]).check(8);
    Case::new(Bf16, [4, 2, 32], &[(65, 20), (0, 16)]).check(16);
    Case::new(Bf16, [64, 1, 16], &[(2, 3)]).check(16);
}

#[test]
fn random_batches_equal_the_reference() {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    for _ in 0..8 {
        let element = [Element::F16, Element::Bf16][random.random_range(0..2)];
        let kv_heads = random.random_range(1..3);
        let heads = kv_heads * random.random_range(1..9);
        let dim = [16, 32, 64, 128][random.random_range(0..4)];
        let chunk = |random: &mut ChaCha8Rng| {
            let cached = if random.random_bool(0.5) { 0 } else { random.random_range(0..150) };
            (cached, random.random_range(1..30))
        };
        let chunks: Vec<_> = (0..random.random_range(1..4)).map(|_| chunk(&mut random)).collect();
        let block_size = random.random_range(1..33) * 8;
        Case::new(element, [heads, kv_heads, dim], &chunks).check(block_size);
    }
}

#[test]
fn attention_equals_the_cpu_op() {
    let (heads, kv_heads, dim, block_size) = (6, 2, 64, 16);
    let case = Case::new(Element::Bf16, [heads, kv_heads, dim], &[(0, 50), (70, 23)]);
    for (chunk, out) in case.chunks.iter().zip(case.run(block_size)) {
        let blocks = chunk.num_keys().div_ceil(block_size);
        let cache = |which| {
            let mut values = case.kv(*chunk, which);
            values.resize(blocks * block_size * kv_heads * dim, 0.0);
            let shape = (blocks, block_size, kv_heads, dim);
            let tokens = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            let order = if which == 0 { [0, 2, 3, 1] } else { [0, 2, 1, 3] };
            let cache = tokens.permute(order).unwrap().contiguous().unwrap();
            cache.to_dtype(DType::BF16).unwrap()
        };
        let shape = (chunk.queries, heads, dim);
        let q = Tensor::from_vec(case.q(*chunk), shape, &Device::Cpu).unwrap();
        let layout = BatchLayout {
            query_start_loc: vec![0, chunk.queries],
            seq_lens: vec![chunk.num_keys()],
            block_tables: vec![(0..blocks as u32).collect()],
        };
        let twin = paged_attention(&q, &cache(0), &cache(1), &Arc::new(layout), DType::F32);
        let twin: Vec<f32> = twin.unwrap().flatten_all().unwrap().to_vec1().unwrap();
        out.assert_close(&twin, tolerance(Element::Bf16));
    }
}

#[test]
fn a_result_depends_on_its_token_alone() {
    for (element, shape) in [(Element::Bf16, [3, 1, 64]), (Element::F16, [4, 1, 128])] {
        let case = Case::new(element, shape, &[(0, 75), (20, 9)]);
        let together = case.run(16);
        for block_size in [8, 24, 256] {
            for (a, b) in together.iter().zip(case.run(block_size)) {
                assert!(a.bytes() == b.bytes(), "block size {block_size} changes a result");
            }
        }
        // A text in chunks is the text at once, wherever the chunks are cut.
        let cuts = [0, 13, 34, 35, 75];
        let chunks =
            cuts.windows(2).map(|cut| Chunk { text: 0, cached: cut[0], queries: cut[1] - cut[0] });
        let parts = Case { chunks: chunks.collect(), ..case }.run(8);
        let parts: Vec<_> = parts.iter().flat_map(|part| part.bytes().to_vec()).collect();
        assert!(together[0].bytes() == parts, "chunks change a result");
    }
}

#[test]
fn tiles_cover_every_token_once_with_most_keys_first() {
    assert_eq!(tiles(&[43, 1, 21], &[43, 50, 1021], 3), [[2, 0], [1, 0], [0, 42], [0, 21], [0, 0]]);
    assert_eq!(tiles(&[0, 65, 64], &[7, 65, 64], 1), [[1, 64], [1, 0], [2, 0]]);
    assert_eq!(tiles(&[2], &[2], 64), [[0, 1], [0, 0]]);
}

/// Small, and ends where its buffers end: the last block is full, and
/// nothing follows its table.
#[test]
fn few_tokens_stay_inside_the_buffers() {
    Case::new(Element::Bf16, [3, 1, 64], &[(50, 22)]).check(8);
    Case::new(Element::F16, [2, 1, 16], &[(0, 3), (0, 8)]).check(8);
    Case::new(Element::F16, [1, 1, 128], &[(62, 2)]).check(64);
}

#[test]
fn accesses_stay_inside_the_buffers() {
    let test = "infer::cuda::kernels::prefill_attention::tests::few_tokens_stay_inside_the_buffers";
    assert_clean(test);
}

#[test]
#[ignore = "run under the sanitizer, by the next test"]
fn planted_read_past_the_table() {
    let test = few_tokens_stay_inside_the_buffers;
    let survives = survives("prefill_attention.cu", "8 >= num_keys", 0, "8 > num_keys", test);
    assert!(survives, "a wrong result, not a caught access");
}

#[test]
fn a_read_past_the_table_is_caught() {
    assert_overflows("infer::cuda::kernels::prefill_attention::tests::planted_read_past_the_table");
}

#[test]
fn faults_are_noticed() {
    let test = || Case::new(Element::Bf16, [3, 1, 64], &[(107, 22), (0, 3)]).check(8);
    let noticed = |from, nth, to| {
        assert!(!survives("prefill_attention.cu", from, nth, to, test), "{from} {nth}");
    };
    for wait in 0..2 {
        noticed("__syncthreads();", wait, "");
        noticed("wait_for_copies();", wait, "");
    }
    // A value past the end has weight 0, but may be NaN.
    noticed("first_key + key + i * kStep < num_keys", 0, "true");
    noticed("> seen) scores", 0, ">= seen) scores");
    noticed("first_key + kKeys - 1 > first_seen", 0, "first_key + kKeys > num_keys");
}

#[test]
fn views_that_do_not_fit_are_refused_by_name() {
    let view = |len, element| View { ptr: 0, len, element };
    let [values, ints] = [Element::Bf16, Element::I32].map(|of| view(1 << 16, of));
    let short = |len| view(len, Element::I32);
    let fits = PrefillAttention {
        q: values,
        k_cache: values,
        v_cache: values,
        query_start: short(4),
        query_len: ints,
        seq_len: ints,
        table_start: ints,
        tiles: ints,
        block_tables: ints,
        out: values,
        num_tiles: 7,
        num_rows: 100,
        num_heads: 6,
        num_kv_heads: 2,
        head_dim: 64,
        block_size: 16,
    };
    let launch = prefill_attention(&fits).unwrap();
    assert_eq!((launch.function, launch.grid), ("prefill_attention_64_bf16", [7, 2, 1]));
    let value = |len| view(len, Element::Bf16);
    for (change, message) in [
        (PrefillAttention { q: value(63_999), ..fits }, "q must hold 64000"),
        (PrefillAttention { out: value(38_399), ..fits }, "out must hold 38400"),
        (PrefillAttention { v_cache: value(2048), ..fits }, "not the same number"),
        (PrefillAttention { k_cache: view(1 << 16, Element::F16), ..fits }, "must be Bf16"),
        (PrefillAttention { k_cache: value(1 << 35), v_cache: value(1 << 35), ..fits }, "large"),
        (PrefillAttention { query_len: short(3), ..fits }, "query_len must hold 4"),
        (PrefillAttention { seq_len: short(3), ..fits }, "seq_len must hold 4"),
        (PrefillAttention { table_start: short(3), ..fits }, "table_start must hold 4"),
        (PrefillAttention { tiles: short(13), ..fits }, "tiles must hold 14"),
        (PrefillAttention { num_tiles: 0, ..fits }, "grid"),
        (PrefillAttention { out: view(1 << 16, Element::F32), ..fits }, "not there for F32"),
        (PrefillAttention { num_kv_heads: 4, ..fits }, "evenly"),
        (PrefillAttention { num_kv_heads: 0, ..fits }, "evenly"),
        (PrefillAttention { num_heads: 130, ..fits }, "1 to 64 each"),
        (PrefillAttention { block_size: 12, ..fits }, "block_size must be a multiple of 8"),
        (PrefillAttention { head_dim: 96, ..fits }, "head_dim must be 16, 32, 64 or 128"),
    ] {
        let refusal = prefill_attention(&change).unwrap_err().0;
        assert!(refusal.contains(message), "{refusal}, expected {message}");
    }
}
