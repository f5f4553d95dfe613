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
/// averaged over keys. f32 differs by the order of its sums.
const TOLERANCES: [(Element, f32); 3] =
    [(Element::F32, 2e-6), (Element::F16, 1e-3), (Element::Bf16, 8e-3)];

/// Items over sequences; everything but the layout of memory.
#[derive(Clone)]
struct Case {
    element: Element,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    /// Tokens of each sequence.
    seqs: Vec<usize>,
    /// Sequence and number of keys of each item.
    items: Vec<(usize, usize)>,
}

impl Case {
    fn decode(
        element: Element,
        [num_heads, num_kv_heads, head_dim]: [usize; 3],
        lens: &[usize],
    ) -> Self {
        let items = lens.iter().copied().enumerate().collect();
        Self { element, num_heads, num_kv_heads, head_dim, seqs: lens.to_vec(), items }
    }

    /// q of an item, which depends on what it sees and nothing else.
    fn q(&self, (seq, kv_len): (usize, usize)) -> Vec<f32> {
        let noise =
            Values::noise(self.num_heads * self.head_dim, 2.0, (seq * 1000 + kv_len) as u64);
        noise.rounded(self.element).to_f32()
    }

    /// K (0) or V (1) of a sequence, `[tokens, num_kv_heads, head_dim]`.
    fn kv(&self, seq: usize, which: u64) -> Vec<f32> {
        let len = self.seqs[seq] * self.num_kv_heads * self.head_dim;
        let noise = Values::noise(len, 1.5, 1_000_000 + seq as u64 * 2 + which);
        noise.rounded(self.element).to_f32()
    }

    /// Attention of an item in f64, `[num_heads, head_dim]`.
    fn expected(&self, item: (usize, usize)) -> Vec<f32> {
        let (q, k, v) = (self.q(item), self.kv(item.0, 0), self.kv(item.0, 1));
        let (dim, group) = (self.head_dim, self.num_heads / self.num_kv_heads);
        let mut out = Vec::new();
        for (head, q) in q.chunks_exact(dim).enumerate() {
            let row = |of: &[f32], token: usize| {
                let at = (token * self.num_kv_heads + head / group) * dim;
                of[at..at + dim].iter().map(|x| f64::from(*x)).collect::<Vec<_>>()
            };
            let score = |token| {
                let products = row(&k, token).into_iter().zip(q);
                products.map(|(k, q)| k * f64::from(*q)).sum::<f64>() / (dim as f64).sqrt()
            };
            let scores: Vec<f64> = (0..item.1).map(score).collect();
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let (mut sums, mut total) = (vec![0.0; dim], 0.0);
            for (token, score) in scores.iter().enumerate() {
                let weight = (score - most).exp();
                total += weight;
                sums.iter_mut().zip(row(&v, token)).for_each(|(sum, v)| *sum += weight * v);
            }
            out.extend(sums.iter().map(|sum| (sum / total) as f32));
        }
        out
    }

    /// What the kernels make of each item, with blocks in random places and
    /// NaN wherever nothing is to be read. Padding gives nothing.
    fn run(&self, block_size: usize, max_blocks: usize) -> Vec<Values> {
        let Self { element, num_heads, num_kv_heads, head_dim, .. } = *self;
        let width = num_heads * head_dim;
        let q_stride = width + 2 * num_kv_heads * head_dim;
        let blocks: usize = self.seqs.iter().map(|len| len.div_ceil(block_size)).sum();
        let mut order: Vec<i32> = (0..blocks as i32 + 2).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(block_size as u64));
        let cache_len = order.len() * num_kv_heads * block_size * head_dim;
        let mut caches = [vec![f32::NAN; cache_len], vec![f32::NAN; cache_len]];
        let (mut tables, mut starts) = (Vec::new(), Vec::new());
        for (seq, len) in self.seqs.iter().enumerate() {
            let table = &order[tables.len()..][..len.div_ceil(block_size)];
            for (which, cache) in caches.iter_mut().enumerate() {
                let values = self.kv(seq, which as u64);
                for (index, row) in values.chunks_exact(head_dim).enumerate() {
                    let (token, head) = (index / num_kv_heads, index % num_kv_heads);
                    let block = table[token / block_size] as usize * num_kv_heads + head;
                    let slot = block * block_size + token % block_size;
                    cache[slot * head_dim..][..head_dim].copy_from_slice(row);
                }
            }
            starts.push(tables.len() as i32);
            tables.extend_from_slice(table);
        }
        // Rows in reverse order, one after them that is nobody's.
        let rows = self.items.len() + 1;
        let mut q = vec![f32::NAN; rows * q_stride];
        let (mut row, mut table_start, mut split_start) = (Vec::new(), Vec::new(), vec![0]);
        for (index, item) in self.items.iter().enumerate() {
            let at = self.items.len() - 1 - index;
            q[at * q_stride..][..width].copy_from_slice(&self.q(*item));
            let padding = item.1 == 0;
            row.push(if padding { i32::MIN } else { at as i32 });
            table_start.push(if padding { i32::MIN } else { starts[item.0] });
            split_start.push(split_start[index] + num_splits(item.1) as i32);
        }
        let lens: Vec<i32> = self.items.iter().map(|item| item.1 as i32).collect();
        let max_units = split_start[lens.len()] as usize + 3;
        let [k, v] = caches.map(|cache| Values::of(&cache, element));
        let q = Values::of(&q, element);
        let [row, kv_len] = [Values::ints(&row), Values::ints(&lens)];
        let [table_start, split_start] = [Values::ints(&table_start), Values::ints(&split_start)];
        let block_tables = Values::ints(&tables);
        let partials = DecodeAttention::partials_len(max_units, num_heads, head_dim);
        let buffers = [Values::nan(partials, Element::F32), Values::nan(rows * width, element)];
        let [_, out] = every_order(buffers, |[partials, out]| {
            let attention = DecodeAttention {
                q: q.view(),
                q_stride,
                k: k.view(),
                v: v.view(),
                row: row.view(),
                kv_len: kv_len.view(),
                table_start: table_start.view(),
                split_start: split_start.view(),
                block_tables: block_tables.view(),
                partials,
                out,
                num_items: lens.len(),
                rows,
                num_heads,
                num_kv_heads,
                head_dim,
                block_size,
            };
            vec![attention.attend(max_units, max_blocks).unwrap(), attention.merge().unwrap()]
        });
        let out = out.to_f32();
        let of_row = |row: usize| &out[row * width..][..width];
        assert!(of_row(rows - 1).iter().all(|x| x.is_nan()), "a row of nobody was written");
        let items = self.items.iter().enumerate().filter_map(|(index, item)| {
            let out = of_row(self.items.len() - 1 - index);
            assert!(item.1 > 0 || out.iter().all(|x| x.is_nan()), "padding was written");
            (item.1 > 0).then(|| Values::of(out, element))
        });
        items.collect()
    }

    fn check(&self, block_size: usize, max_blocks: usize) {
        let tolerance = TOLERANCES.iter().find(|of| of.0 == self.element).unwrap().1;
        let items = self.items.iter().filter(|item| item.1 > 0);
        for (out, item) in self.run(block_size, max_blocks).iter().zip(items) {
            out.assert_close(&self.expected(*item), tolerance);
        }
    }
}

fn assert_same(a: &[Values], b: &[Values], what: &str) {
    assert_eq!(a.len(), b.len());
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(a.bytes() == b.bytes(), "{what} changes item {index}");
    }
}

#[test]
fn ragged_items_equal_the_reference_in_every_type_and_shape() {
    // Groups from 1 to more than a block takes; sizes on tensor cores and others.
    for (element, _) in TOLERANCES {
        Case::decode(element, [6, 2, 64], &[255, 0, 1, 257, 600, 0, 17]).check(24, 4);
        Case::decode(element, [4, 1, 128], &[256, 33]).check(256, 9);
        Case::decode(element, [8, 8, 16], &[3, 40, 0]).check(8, 1);
        Case::decode(element, [8, 1, 64], &[300, 0]).check(16, 1);
        Case::decode(element, [20, 2, 8], &[0, 300]).check(8, 2);
        Case::decode(element, [9, 1, 128], &[40]).check(40, 1);
        Case::decode(element, [2, 1, 256], &[20, 260]).check(40, 9);
        Case::decode(element, [3, 1, 96], &[64]).check(16, 9);
    }
}

#[test]
fn random_batches_equal_the_reference() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    for _ in 0..8 {
        let (element, _) = TOLERANCES[random.random_range(0..3)];
        let kv_heads = random.random_range(1..3);
        let heads = kv_heads * random.random_range(1..6);
        let dim = [8, 24, 64, 64, 128][random.random_range(0..5)];
        let items = random.random_range(1..40);
        let lens: Vec<_> = (0..items)
            .map(|_| if random.random_bool(0.1) { 300 } else { random.random_range(0..40) })
            .collect();
        let block_size = random.random_range(1..33) * 8;
        let case = Case::decode(element, [heads, kv_heads, dim], &lens);
        case.check(block_size, random.random_range(1..8));
    }
}

#[test]
fn attention_equals_the_cpu_op() {
    let (heads, kv_heads, dim, block_size) = (6, 2, 64, 16);
    for (element, dtype, tolerance) in
        [(Element::F32, DType::F32, 2e-6), (Element::Bf16, DType::BF16, 8e-3)]
    {
        let case = Case::decode(element, [heads, kv_heads, dim], &[1, 300, 40]);
        for (item, out) in case.items.iter().zip(case.run(block_size, 2)) {
            let blocks = item.1.div_ceil(block_size);
            let cache = |which| {
                let mut values = case.kv(item.0, which);
                values.resize(blocks * block_size * kv_heads * dim, 0.0);
                let shape = (blocks, block_size, kv_heads, dim);
                let tokens = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
                let order = if which == 0 { [0, 2, 3, 1] } else { [0, 2, 1, 3] };
                tokens.permute(order).unwrap().contiguous().unwrap().to_dtype(dtype).unwrap()
            };
            let q = Tensor::from_vec(case.q(*item), (1, heads, dim), &Device::Cpu).unwrap();
            let layout = BatchLayout {
                query_start_loc: vec![0, 1],
                seq_lens: vec![item.1],
                block_tables: vec![(0..blocks as u32).collect()],
            };
            let twin = paged_attention(&q, &cache(0), &cache(1), &Arc::new(layout), DType::F32);
            let twin: Vec<f32> = twin.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            out.assert_close(&twin, tolerance);
        }
    }
}

#[test]
fn a_result_depends_on_its_item_alone() {
    for (element, shape) in [
        (Element::F32, [3, 1, 32]),
        (Element::Bf16, [4, 2, 64]),
        (Element::F16, [3, 1, 128]),
        (Element::Bf16, [2, 1, 24]),
    ] {
        let case = Case::decode(element, shape, &[520, 0, 5, 256, 257]);
        let one_block = case.run(16, 1);
        assert_same(&one_block, &case.run(16, 100), "the number of blocks");
        for block_size in [8, 24, 256] {
            assert_same(&one_block, &case.run(block_size, 3), "the block size");
        }
        let items = case.items.iter().filter(|item| item.1 > 0);
        for (item, out) in items.zip(one_block) {
            let alone = Case { items: vec![*item], ..case.clone() };
            assert_same(&alone.run(16, 7), &[out], "the batch");
        }
    }
}

#[test]
fn tokens_of_a_prompt_share_their_table() {
    for (element, _) in TOLERANCES {
        let lens = [1, 2, 15, 16, 17, 255, 256, 257, 300];
        let mut case = Case::decode(element, [6, 2, 64], &[300, 20]);
        case.items = lens.iter().map(|len| (0, *len)).chain([(1, 20), (1, 19)]).collect();
        case.check(24, 4);
    }
}

/// Small, and ends where its buffers end: the last block is full, and
/// nothing follows its table.
#[test]
fn few_items_stay_inside_the_buffers() {
    for (element, dim) in [(Element::F32, 8), (Element::Bf16, 64), (Element::F16, 24)] {
        Case::decode(element, [3, 1, dim], &[24, 3, 0, 264]).check(8, 2);
    }
}

#[test]
fn accesses_stay_inside_the_buffers() {
    let test = "infer::cuda::kernels::decode_attention::tests::few_items_stay_inside_the_buffers";
    assert_clean(test);
}

#[test]
#[ignore = "run under the sanitizer, by the next test"]
fn planted_read_past_the_table() {
    let test = few_items_stay_inside_the_buffers;
    let survives =
        survives("decode_attention.cu", "lane * 8 < u.len", 0, "lane * 8 <= u.len", test);
    assert!(survives, "a wrong result, not a caught access");
}

#[test]
fn a_read_past_the_table_is_caught() {
    assert_overflows("infer::cuda::kernels::decode_attention::tests::planted_read_past_the_table");
}

#[test]
fn faults_are_noticed() {
    let test = || Case::decode(Element::Bf16, [3, 1, 64], &[300, 600, 20, 9]).check(8, 1);
    let noticed = |from, nth, to| {
        assert!(!survives("decode_attention.cu", from, nth, to, test), "{from} {nth}");
    };
    for barrier in 0..3 {
        noticed("__syncthreads();", barrier, "");
    }
    // A value past the end has weight 0, but may be NaN.
    noticed("t * 2 + odd < left", 0, "true");
    noticed(">= u.len) scores[i]", 0, "> u.len) scores[i]");
}

#[test]
fn views_that_do_not_fit_are_refused_by_name() {
    let view = |len, element| View { ptr: 0, len, element };
    let [values, ints] = [Element::Bf16, Element::I32].map(|of| view(1 << 16, of));
    let fits = DecodeAttention {
        q: values,
        q_stride: 640,
        k: values,
        v: values,
        row: ints,
        kv_len: ints,
        table_start: ints,
        split_start: ints,
        block_tables: ints,
        partials: view(1 << 16, Element::F32),
        out: values,
        num_items: 5,
        rows: 5,
        num_heads: 6,
        num_kv_heads: 2,
        head_dim: 64,
        block_size: 16,
    };
    assert!(fits.merge().is_ok());
    let launch = fits.attend(7, 100).unwrap();
    assert_eq!((launch.function, launch.grid), ("decode_attention_64_bf16", [7, 2, 1]));
    assert_eq!(
        fits.attend(700, 100).unwrap_err().0,
        "partials must hold 285600 elements, has 65536"
    );
    let short = |len| view(len, Element::I32);
    for (change, message) in [
        (DecodeAttention { row: short(4), ..fits }, "row must hold 5"),
        (DecodeAttention { kv_len: short(4), ..fits }, "kv_len must hold 5"),
        (DecodeAttention { table_start: short(4), ..fits }, "table_start must hold 5"),
        (DecodeAttention { split_start: short(5), ..fits }, "split_start must hold 6"),
        (DecodeAttention { v: view(2048, Element::Bf16), ..fits }, "not the same number"),
        (DecodeAttention { k: view(1 << 16, Element::F16), ..fits }, "k must be Bf16"),
        (DecodeAttention { q: view(2943, Element::Bf16), ..fits }, "q must hold 2944"),
        (DecodeAttention { out: view(1919, Element::Bf16), ..fits }, "out must hold 1920"),
        (DecodeAttention { q_stride: 376, ..fits }, "less than 6 heads"),
        (DecodeAttention { num_kv_heads: 4, ..fits }, "evenly"),
        (DecodeAttention { block_size: 12, ..fits }, "block_size must be a multiple of 8"),
        (DecodeAttention { head_dim: 264, ..fits }, "head_dim must be a multiple of 8"),
    ] {
        let refusal = change.attend(7, 100).unwrap_err().0;
        assert!(refusal.contains(message), "{refusal}, expected {message}");
    }
}
