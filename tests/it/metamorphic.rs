//! Paged equals dense, batched equals single: claims that need no oracle. A
//! sequence must come out the same, to the last bit of its log-probabilities,
//! however its work is cut up and whatever runs beside it.

#![expect(clippy::unwrap_used, reason = "a test stops where something fails")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama as stock;
use yardstick::clock::Clock;
use yardstick::infer::batch::BatchLayout;
use yardstick::infer::model::config::RopeScaling;
use yardstick::infer::ops::paged_attention;
use yardstick::infer::weights::{self, OpenModel, WeightForm};
use yardstick::infer::{
    ComputeDtype, EngineConfig, EngineCore, InferRequest, KvBudget, ModelConfig, ModelSource,
    SamplingParams,
};

use crate::models::default_gguf;

const VOCAB: usize = 96;

fn tiny() -> ModelConfig {
    ModelConfig {
        vocab_size: VOCAB,
        hidden_size: 48,
        intermediate_size: 80,
        num_attention_heads: 6,
        max_position_embeddings: 256,
        eos_token_ids: vec![2],
        ..ModelConfig::tiny()
    }
}

fn open(config: ModelConfig) -> OpenModel {
    let source = ModelSource::Dummy { config: Box::new(config), seed: 11, tokenizer: None };
    weights::open(&source).unwrap()
}

fn core(config: &EngineConfig) -> EngineCore {
    let model = open(tiny());
    let config = EngineConfig { dtype: Some(ComputeDtype::F32), ..config.clone() };
    EngineCore::new(&model.config, &*model.weights, &config, Clock::manual()).unwrap()
}

/// Prompts of several lengths; every other one is sampled, the rest is greedy.
fn requests() -> Vec<InferRequest> {
    [1_usize, 37, 5, 64, 18, 90]
        .iter()
        .enumerate()
        .map(|(nth, len)| InferRequest {
            sampling: SamplingParams {
                temperature: if nth % 2 == 0 { 0.0 } else { 0.9 },
                top_p: 0.95,
                top_k: None,
                seed: nth as u64,
            },
            ignore_eos: true,
            logprobs: Some(VOCAB),
            ..InferRequest::new(
                (0..*len).map(|i| ((i * 7 + nth * 13) % VOCAB) as u32).collect(),
                12 + nth,
            )
        })
        .collect()
}

/// A drawn token and the bits of all its position's log-probabilities.
type Drawn = (u32, Vec<(u32, u32)>);

/// What each of `requests` draws when all are submitted at once.
fn run(core: &mut EngineCore, requests: &[InferRequest]) -> Vec<Vec<Drawn>> {
    let ids: Vec<_> = requests.iter().map(|r| core.add_request(r.clone()).unwrap()).collect();
    let mut drawn = BTreeMap::<_, Vec<Drawn>>::new();
    while core.has_work() {
        for output in core.step().unwrap().outputs {
            let token = output.result.unwrap();
            let top = token.logprobs.unwrap().top;
            let bits = top.iter().map(|(id, logprob)| (*id, logprob.to_bits())).collect();
            drawn.entry(output.id).or_default().push((token.id, bits));
        }
    }
    assert_eq!(core.stats().num_free_blocks, core.stats().num_blocks);
    ids.iter().map(|id| drawn.remove(id).unwrap()).collect()
}

fn baseline() -> Vec<Vec<Drawn>> {
    run(&mut core(&EngineConfig::default()), &requests())
}

#[test]
fn a_batch_of_many_equals_as_many_singles() {
    let mut core = core(&EngineConfig::default());
    let singles: Vec<_> =
        requests().iter().map(|r| run(&mut core, std::slice::from_ref(r)).remove(0)).collect();
    assert_eq!(baseline(), singles);
}

#[test]
fn any_block_size_equals_any_other() {
    let expected = baseline();
    for block_size in [1, 5, 64, 256] {
        let config = EngineConfig { block_size, ..EngineConfig::default() };
        assert_eq!(run(&mut core(&config), &requests()), expected, "block_size {block_size}");
    }
}

#[test]
fn a_prompt_in_chunks_equals_the_whole() {
    let expected = baseline();
    for max_num_batched_tokens in [1, 7, 50] {
        let config = EngineConfig { max_num_batched_tokens, ..EngineConfig::default() };
        let drawn = run(&mut core(&config), &requests());
        assert_eq!(drawn, expected, "max_num_batched_tokens {max_num_batched_tokens}");
    }
}

#[test]
fn a_preempted_sequence_equals_an_uninterrupted_one() {
    // Room for the first four prompts, and for not a token more.
    let config =
        EngineConfig { kv: KvBudget::Blocks(15), block_size: 8, ..EngineConfig::default() };
    let mut core = core(&config);
    assert_eq!(run(&mut core, &requests()), baseline());
    assert!(core.stats().num_preemptions > 0, "nothing was preempted");
}

#[test]
fn an_abort_leaves_the_others_as_they_were() {
    let mut core = core(&EngineConfig::default());
    let all = requests();
    let victim = core.add_request(all[3].clone()).unwrap();
    let survivor = core.add_request(all[1].clone()).unwrap();
    let mut tokens = Vec::new();
    let mut steps = 0;
    while core.has_work() {
        if steps == 3 {
            assert!(core.abort(victim).unwrap());
        }
        steps += 1;
        let outputs = core.step().unwrap().outputs;
        let own = outputs.into_iter().filter(|output| output.id == survivor);
        tokens.extend(own.map(|output| output.result.unwrap().id));
    }
    let expected: Vec<_> = baseline()[1].iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens, expected);
    assert_eq!(core.stats().num_free_blocks, core.stats().num_blocks);
}

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
    let out = paged_attention(&q_tensor, &k, &v, &layout).unwrap();
    let out = out.to_vec2::<f32>().unwrap();

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
                assert!((f64::from(*ours) - exact).abs() < 1e-5, "{ours} against {exact}");
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
        paged_attention(&q, &k, &v, &Arc::new(layout))
    };
    assert!(attend(&[0, 2], 8, &[0, 2]).is_ok());
    assert!(attend(&[0, 3], 8, &[0, 2]).is_err(), "more rows than q has");
    assert!(attend(&[0, 2], 1, &[0, 2]).is_err(), "more queries than tokens");
    assert!(attend(&[0, 2], 9, &[0, 2]).is_err(), "more tokens than the blocks hold");
    assert!(attend(&[0, 2], 8, &[0, 3]).is_err(), "a block that does not exist");
}

/// Three prompts through the real model, together, in chunks of 10 tokens and
/// odd blocks, by two threads; then each alone and whole, by one.
fn real_model_agrees_with_itself(dtype: ComputeDtype) {
    let model = weights::open(&default_gguf()).unwrap();
    let one = Some(1);
    let base = EngineConfig {
        max_model_len: Some(64),
        dtype: Some(dtype),
        threads: one,
        ..EngineConfig::default()
    };
    let cut = EngineConfig {
        block_size: 7,
        max_num_batched_tokens: 10,
        threads: Some(2),
        ..base.clone()
    };
    let core =
        |config| EngineCore::new(&model.config, &*model.weights, config, Clock::manual()).unwrap();
    let requests: Vec<_> = [5, 23, 14]
        .map(|len| InferRequest {
            ignore_eos: true,
            logprobs: Some(20),
            ..InferRequest::new((0..len).map(|i| 500 + 37 * i).collect(), 4)
        })
        .into();
    let together = run(&mut core(&cut), &requests);
    let mut whole = core(&base);
    for (request, expected) in requests.iter().zip(together) {
        assert_eq!(run(&mut whole, std::slice::from_ref(request)), [expected]);
    }
}

#[test]
fn the_real_model_in_bf16_computes_the_same_bits_batched_and_alone() {
    real_model_agrees_with_itself(ComputeDtype::Bf16);
}

#[test]
fn the_real_model_computes_the_same_bits_batched_and_alone() {
    real_model_agrees_with_itself(ComputeDtype::F32);
}

#[test]
fn the_real_model_in_its_own_blocks_computes_the_same_bits_batched_and_alone() {
    real_model_agrees_with_itself(ComputeDtype::Quantized);
}

/// Log-probabilities of candle's own Llama over `ids`, from position `from` on.
fn stock_logprobs(model: &OpenModel, ids: &[u32], from: usize) -> Vec<Vec<f32>> {
    let config = &model.config;
    let load = |(name, shape): (String, Vec<usize>)| {
        let weight = model.weights.load(&name, &shape, WeightForm::F32).unwrap();
        (name, weight.to_f32().unwrap())
    };
    let tensors: HashMap<_, _> = config.tensors().into_iter().map(load).collect();
    let stock_config = stock::Config {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        vocab_size: config.vocab_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: config.num_key_value_heads,
        use_flash_attn: false,
        rms_norm_eps: config.rms_norm_eps,
        rope_theta: config.rope_theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: config.rope_scaling.as_ref().map(|scaling| stock::Llama3RopeConfig {
            factor: scaling.factor as f32,
            low_freq_factor: scaling.low_freq_factor as f32,
            high_freq_factor: scaling.high_freq_factor as f32,
            original_max_position_embeddings: scaling.original_max_position_embeddings,
            rope_type: stock::Llama3RopeType::Llama3,
        }),
        max_position_embeddings: config.max_position_embeddings,
        tie_word_embeddings: config.tie_word_embeddings,
    };
    let builder = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let llama = stock::Llama::load(builder, &stock_config).unwrap();
    let mut cache = stock::Cache::new(true, DType::F32, &stock_config, &Device::Cpu).unwrap();
    let mut forward = |ids: &[u32], position| {
        let x = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = llama.forward(&x, position, &mut cache).unwrap().squeeze(0).unwrap();
        candle_nn::ops::log_softmax(&logits, 0).unwrap().to_vec1::<f32>().unwrap()
    };
    let mut all = vec![forward(&ids[..from], 0)];
    all.extend((from..ids.len()).map(|at| forward(&ids[at..=at], at)));
    all
}

#[test]
fn logits_agree_with_candles_own_llama() {
    agrees_with_stock(tiny());
}

#[test]
fn logits_agree_with_candles_own_llama_untied_and_with_scaled_frequencies() {
    let rope_scaling = Some(RopeScaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    });
    agrees_with_stock(ModelConfig { tie_word_embeddings: false, rope_scaling, ..tiny() });
}

fn agrees_with_stock(config: ModelConfig) {
    let model = open(config);
    let config = EngineConfig { dtype: Some(ComputeDtype::F32), ..EngineConfig::default() };
    let mut core =
        EngineCore::new(&model.config, &*model.weights, &config, Clock::manual()).unwrap();
    for request in requests() {
        let drawn = run(&mut core, std::slice::from_ref(&request)).remove(0);
        let mut ids = request.prompt_ids.clone();
        ids.extend(drawn.iter().map(|(token, _)| *token));
        ids.pop();
        let theirs = stock_logprobs(&model, &ids, request.prompt_ids.len());
        assert_eq!(theirs.len(), drawn.len());
        for ((_, ours), theirs) in drawn.iter().zip(theirs) {
            assert_eq!(ours.len(), VOCAB);
            for (id, bits) in ours {
                // Rounding in another order, over two layers in f32.
                let difference = (f32::from_bits(*bits) - theirs[*id as usize]).abs();
                assert!(difference < 1e-4, "token {id} differs by {difference}");
            }
        }
    }
}
