//! Attention over blocks against attention as the paper writes it.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use yardstick::infer::batch::BatchLayout;
use yardstick::infer::ops::paged_attention;

/// Attention as the paper writes it, in f64: `q` is one token's heads,
/// `keys` and `values` are `[len][kv_heads * head_dim]`.
fn dense(q: &[f32], keys: &[&[f32]], values: &[&[f32]], kv_heads: usize, dim: usize) -> Vec<f64> {
    let heads = q.len() / dim;
    let mut out = Vec::new();
    for head in 0..heads {
        let kv = head / (heads / kv_heads) * dim;
        let score = |key: &&[f32]| {
            let products = (0..dim).map(|i| f64::from(q[head * dim + i]) * f64::from(key[kv + i]));
            (products.sum::<f64>() / (dim as f64).sqrt()).exp()
        };
        let weights: Vec<f64> = keys.iter().map(score).collect();
        let total: f64 = weights.iter().sum();
        out.extend((0..dim).map(|i| {
            let weighted = weights.iter().zip(values).map(|(w, v)| w * f64::from(v[kv + i]));
            weighted.sum::<f64>() / total
        }));
    }
    out
}

#[test]
fn paged_attention_equals_dense_attention() {
    const HEADS: (usize, usize) = (6, 2);
    // (tokens in this step, tokens in all): a whole prompt, decodes, a late chunk.
    const SEQUENCES: [(usize, usize); 5] = [(20, 20), (1, 1), (1, 75), (33, 100), (1, 32)];
    for (dim, dtype) in
        [8, 20, 64].into_iter().flat_map(|dim| [(dim, DType::F32), (dim, DType::BF16)])
    {
        let outputs = [1, 5, 16, 32, 48].map(|block_size| {
            let (layout, out) = attend(&SEQUENCES, HEADS, dim, block_size, dtype);
            assert_eq!(layout.seq_lens.len(), SEQUENCES.len());
            out
        });
        for other in &outputs[1..] {
            assert!(outputs[0] == *other, "head_dim {dim}, {dtype:?}: a block size matters");
        }
    }
}

/// Attends over noise in scattered blocks, checks every row against [`dense`],
/// and returns the bits.
fn attend(
    sequences: &[(usize, usize)],
    (heads, kv_heads): (usize, usize),
    dim: usize,
    block_size: usize,
    dtype: DType,
) -> (Arc<BatchLayout>, Vec<u32>) {
    let width = kv_heads * dim;
    let noise = |salt: usize, i: usize| ((i * 31 + salt * 17) as f32 * 0.37).sin() * 2.0;
    // K and V as the cache holds them: what is rounded is rounded on both sides.
    let round = |salt: usize, x: f32| match dtype {
        DType::BF16 if salt < 2 => half::bf16::from_f32(x).to_f32(),
        _ => x,
    };
    let row = |salt: usize, seq: usize, at: usize, width: usize| -> Vec<f32> {
        (0..width).map(|i| round(salt, noise(salt, (seq * 1000 + at) * 100 + i))).collect()
    };
    let num_blocks: usize = sequences.iter().map(|(_, len)| len.div_ceil(block_size)).sum();
    let mut caches = [0.0, 0.0].map(|fill| vec![fill; num_blocks * block_size * width]);
    let mut layout =
        BatchLayout { query_start_loc: vec![0], seq_lens: vec![], block_tables: vec![] };
    let mut q = Vec::new();
    // Blocks are dealt from the back, in turns of two sequences' lengths.
    let mut free: Vec<u32> = (0..num_blocks as u32).collect();
    free.sort_by_key(|block| (block * 7919) % 101);
    for (seq, (queries, len)) in sequences.iter().enumerate() {
        let table = free.split_off(free.len() - len.div_ceil(block_size));
        for at in 0..*len {
            let slot = table[at / block_size] as usize * block_size + at % block_size;
            for (salt, cache) in caches.iter_mut().enumerate() {
                cache[slot * width..(slot + 1) * width].copy_from_slice(&row(salt, seq, at, width));
            }
        }
        for at in len - queries..*len {
            q.extend(row(2, seq, at, heads * dim));
        }
        layout.query_start_loc.push(q.len() / (heads * dim));
        layout.seq_lens.push(*len);
        layout.block_tables.push(table);
    }
    let layout = Arc::new(layout);
    let tensor =
        |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    let shape = [num_blocks, block_size, kv_heads, dim];
    let [k, v] = caches.map(|cache| tensor(&cache, &shape).to_dtype(dtype).unwrap());
    let (k, v) = (k.permute((0, 2, 3, 1)), v.permute((0, 2, 1, 3)));
    let (k, v) = (k.unwrap().contiguous().unwrap(), v.unwrap().contiguous().unwrap());
    let q_tensor = tensor(&q, &[q.len() / (heads * dim), heads, dim]);
    let out = paged_attention(&q_tensor, &k, &v, &layout, DType::F32).unwrap();
    let out = out.to_vec2::<f32>().unwrap();

    // Beside K and V in bf16, queries and weights may be rounded to it too.
    let error = if dtype == DType::BF16 { 2e-2 } else { 1e-5 };
    for (seq, (queries, len)) in sequences.iter().enumerate() {
        let rows = |salt| (0..*len).map(|at| row(salt, seq, at, width)).collect::<Vec<_>>();
        let (keys, values) = (rows(0), rows(1));
        for nth in 0..*queries {
            let seen = len - queries + nth + 1;
            let refs = |rows: &'_ [Vec<f32>]| -> Vec<Vec<f32>> { rows[..seen].to_vec() };
            let (keys, values) = (refs(&keys), refs(&values));
            let keys: Vec<&[f32]> = keys.iter().map(Vec::as_slice).collect();
            let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
            let at = layout.query_start_loc[seq] + nth;
            let q = &q[at * heads * dim..(at + 1) * heads * dim];
            let expected = dense(q, &keys, &values, kv_heads, dim);
            for (ours, exact) in out[at].iter().zip(expected) {
                assert!((f64::from(*ours) - exact).abs() < error, "{ours} against {exact}");
            }
        }
    }
    (layout, out.concat().iter().map(|value| value.to_bits()).collect())
}

#[test]
fn attention_refuses_a_layout_that_does_not_fit() {
    let q = Tensor::zeros((2, 4, 8), DType::F32, &Device::Cpu).unwrap();
    let zeros = |shape| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let (k, v) = (zeros((3, 2, 8, 4)), zeros((3, 2, 4, 8)));
    let attend = |query_start_loc: &[usize], seq_len: usize, blocks: &[u32]| {
        let layout = BatchLayout {
            query_start_loc: query_start_loc.to_vec(),
            seq_lens: vec![seq_len],
            block_tables: vec![blocks.to_vec()],
        };
        paged_attention(&q, &k, &v, &Arc::new(layout), DType::F32)
    };
    assert!(attend(&[0, 2], 8, &[0, 2]).is_ok());
    assert!(attend(&[0, 3], 8, &[0, 2]).is_err(), "more rows than q has");
    assert!(attend(&[0, 2], 1, &[0, 2]).is_err(), "more queries than tokens");
    assert!(attend(&[0, 2], 9, &[0, 2]).is_err(), "more tokens than the blocks hold");
    assert!(attend(&[0, 2], 8, &[0, 3]).is_err(), "a block that does not exist");
}
