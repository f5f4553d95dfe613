//! vLLM's numbers: those of the study, those of published logs, and what holds
//! for all numbers.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::hardware::find_gpu_card_named;
use crate::sizing::amount::gib;
use crate::sizing::gpu::GpuMemory;
use crate::sizing::settings::{Lengths, Settings};
use crate::sizing::shape::Shape;
use crate::sizing::shape::tests::{llama_3b, llama_8b};

/// The inputs of the study as far as they are known.
fn study() -> Settings {
    Settings {
        gpu_memory_utilization: Some(0.9),
        weights_bytes: gib(6.016),
        activation_bytes: gib(1.287),
        non_torch_bytes: Some(0),
        ..Settings::default()
    }
}

fn answer(gpu: &GpuMemory, settings: &Settings, version: Version) -> EngineAnswer {
    size(&Question { shape: &llama_3b(), gpu, settings }, version).unwrap()
}

fn on(total: f64) -> GpuMemory {
    GpuMemory::given(gib(total).unwrap())
}

#[test]
fn the_study_s_error_comes_out_word_for_word() {
    let answer = answer(&on(22.04), &study(), STUDY);
    assert_eq!(answer.blocks, Some(Count::exact(7333)));
    assert_eq!(answer.tokens, Count::exact(117_328));
    assert_eq!(answer.starts, Verdict::No);
    assert_eq!(format!("{:.2}", answer.concurrency[0].expected), "0.90");
    assert_eq!(
        answer.error.unwrap(),
        "ValueError: The model's max seq len (131072) is larger than the maximum number of tokens \
         that can be stored in KV cache (117328). Try increasing `gpu_memory_utilization` or \
         decreasing `max_model_len` when initializing the engine."
    );
}

#[test]
fn a_mebibyte_more_or_less_moves_the_study_s_pool_by_a_block_at_most() {
    for parts in [1.287 - 1.0 / 1024.0, 1.287 + 1.0 / 1024.0] {
        let settings = Settings { activation_bytes: gib(parts), ..study() };
        let blocks = answer(&on(22.04), &settings, STUDY).blocks.unwrap();
        assert!(blocks.expected.abs_diff(7333) <= 1, "{blocks:?}");
    }
}

#[test]
fn shorter_requests_are_served_28_at_once() {
    let lengths = Some(Lengths { prompt_tokens: 4000, output_tokens: 96 });
    let answer = answer(&on(22.04), &Settings { lengths, ..study() }, STUDY);
    assert_eq!(format!("{:.2}", answer.concurrency[1].expected), "28.64");
}

#[test]
fn every_way_out_has_its_numbers_and_the_cheapest_comes_first() {
    let answer = answer(&on(22.04), &study(), STUDY);
    let changes: Vec<&str> = answer.ways_out.iter().map(|way| way.change.as_str()).collect();
    assert_eq!(
        changes,
        [
            "--max-model-len 117328",
            "--gpu-memory-utilization 0.97",
            "--kv-cache-dtype fp8",
            "weights in 4 bits (AWQ, GPTQ)",
            "a larger GPU: A100-40GB-SXM",
        ]
    );
    assert_eq!(answer.ways_out[2].tokens, Count::exact(234_672));
    assert!(answer.ways_out.iter().all(|way| way.starts.is_expected()), "{:?}", answer.ways_out);
}

#[test]
fn an_l4_by_its_card_says_the_same_within_bounds() {
    let l4 = GpuMemory::of_card(find_gpu_card_named("L4").unwrap()).unwrap();
    let answer = answer(&l4, &Settings::default(), STUDY);
    assert_eq!(answer.starts, Verdict::No);
    let tokens = answer.tokens;
    assert!(tokens.low < 117_328 && 117_328 < tokens.high, "{tokens:?}");
    assert!(tokens.expected.abs_diff(117_328) < 1_000, "{tokens:?}");
}

#[test]
fn v1_says_it_in_bytes_with_the_length_that_fits() {
    let settings = Settings { cuda_graph_bytes: Some(0), kv_type: Some(KvType::Bf16), ..study() };
    let old = answer(&on(22.04), &settings, Version::new(0, 9)).error.unwrap();
    assert!(old.contains("the models's max seq len (131072), (14.00 GiB KV cache is needed"));
    assert!(old.contains("available KV cache memory (12.53 GiB). Based on the available memory, the estimated maximum model length is 117328. Try"), "{old}");
    let new = answer(&on(22.04), &settings, CURRENT).error.unwrap();
    assert!(new.contains("the model's max seq len"), "{new}");
}

#[test]
fn auto_takes_what_fits_and_says_that_its_concurrency_is_no_finding() {
    let settings = Settings { max_model_len: MaxModelLen::Auto, ..study() };
    let fitted = answer(&on(22.04), &settings, Version::new(0, 14));
    assert_eq!((fitted.max_model_len, fitted.starts), (117_328, Verdict::Yes));
    assert!(fitted.notes.iter().any(|note| note.contains("no finding")));
    let l4 = on(22.04);
    let refused = size(&Question { shape: &llama_3b(), gpu: &l4, settings: &settings }, STUDY);
    assert!(refused.unwrap_err().contains("0.8"));
}

#[test]
fn a_pool_given_in_bytes_is_the_pool() {
    let settings =
        Settings { kv_cache_memory_bytes: Some(7333 * 1_835_008 + 5), ..Settings::default() };
    let given = answer(&on(22.04), &settings, CURRENT);
    assert_eq!(given.blocks, Some(Count::exact(7333)));
    let gpu = on(22.04);
    let question = Question { shape: &llama_3b(), gpu: &gpu, settings: &settings };
    assert!(size(&question, STUDY).unwrap_err().contains("0.10.2"));
}

#[test]
fn what_a_version_does_not_take_is_refused_by_name() {
    let gpu = on(22.04);
    let refused = |settings: Settings| {
        size(&Question { shape: &llama_3b(), gpu: &gpu, settings: &settings }, CURRENT).unwrap_err()
    };
    let odd = Settings { block_size: Some(12), ..Settings::default() };
    assert!(refused(odd).contains("block_size is 12: vLLM takes 1, 8, 16"));
    let ggml = Settings { kv_type: Some(KvType::Q8_0), ..Settings::default() };
    assert!(refused(ggml).contains("q8_0"));
    let long = Settings { max_model_len: MaxModelLen::Tokens(200_000), ..Settings::default() };
    assert!(refused(long).contains("above the model's 131072"));
}

#[test]
fn a_model_larger_than_the_gpu_ends_while_it_loads() {
    let answer = answer(&on(4.0), &Settings::default(), CURRENT);
    assert_eq!((answer.starts, answer.tokens), (Verdict::No, Count::exact(0)));
    assert!(answer.error.unwrap().contains("CUDA out of memory"));
    let gpus = answer.ways_out.iter().filter(|way| way.change.starts_with("a larger GPU"));
    assert_eq!(gpus.count(), 1);
}

/// Issue 10517: 20,000 and 35,000 tokens start, 29,000 do not.
#[test]
fn v0_pool_is_not_monotonic_in_the_length() {
    let shape = llama_8b();
    let gpu = on(23.58);
    let starts = |length: u64| {
        let settings = Settings {
            max_model_len: MaxModelLen::Tokens(length),
            // The log's peaks have no sampler in them.
            max_num_seqs: Some(16),
            non_torch_bytes: gib(0.35),
            ..Settings::default()
        };
        let version = Version { major: 0, minor: 6, patch: 4 };
        size(&Question { shape: &shape, gpu: &gpu, settings: &settings }, version).unwrap().starts
    };
    assert!(starts(20_000).is_expected());
    assert_eq!(starts(29_000), Verdict::No);
    assert!(starts(35_000).is_expected());
}

#[test]
fn published_peaks_are_within_the_estimate() {
    let qwen =
        |vocab_size| Shape { vocab_size, hidden_size: 1536, intermediate_size: 8960, ..llama_3b() };
    let eight = Shape { hidden_size: 4096, intermediate_size: 14336, ..llama_3b() };
    for (shape, tokens, seqs, v1, peak) in [
        (eight.clone(), 8192, 256, false, 1.26),
        (qwen(151_936), 2048, 256, false, 1.39),
        (qwen(152_064), 4096, 256, false, 1.42),
        (eight.clone(), 20_000, 16, false, 2.07),
        (eight, 29_000, 16, false, 2.99),
        (llama_3b(), 2048, 256, true, 0.90),
    ] {
        let batch = activation::ProfiledBatch { tokens, seqs };
        let estimate = activation::peak(&shape, 2, batch, v1);
        let peak = gib(peak).unwrap() as i64;
        assert!(estimate.low_bytes <= peak && peak <= estimate.high_bytes, "{peak} {estimate:?}");
    }
}

#[derive(Deserialize)]
struct Published {
    v0: Vec<V0Log>,
    v1: Vec<V1Log>,
    v1_error: Vec<V1Error>,
}

#[derive(Deserialize)]
struct V0Log {
    source: String,
    layers: u64,
    kv_heads: u64,
    total: f64,
    utilization: f64,
    weights: f64,
    activation: f64,
    non_torch: f64,
    kv: f64,
    blocks: u64,
    max_model_len: u64,
    concurrency: f64,
}

#[derive(Deserialize)]
struct V1Log {
    source: String,
    layers: u64,
    kv_heads: u64,
    fp8: bool,
    available: f64,
    tokens: u64,
    max_model_len: u64,
    concurrency: f64,
}

#[derive(Deserialize)]
struct V1Error {
    source: String,
    layers: u64,
    kv_heads: u64,
    fp8: bool,
    max_model_len: u64,
    needed: f64,
    available: f64,
    estimated: u64,
}

fn published() -> Published {
    toml::from_str(include_str!("published.toml")).unwrap()
}

fn shape(layers: u64, kv_heads: u64) -> Shape {
    Shape {
        num_layers: layers,
        num_kv_heads: kv_heads,
        max_position_embeddings: 1 << 20,
        ..llama_3b()
    }
}

/// Half of the last printed digit.
const HALF: f64 = 0.005;

/// Blocks of a size that was printed with two digits: the least and the most.
fn blocks_of(gib_printed: f64, block_bytes: u64) -> (u64, u64) {
    let of = |gib_value: f64| gib(gib_value.max(0.0)).unwrap() / block_bytes;
    (of(gib_printed - HALF), of(gib_printed + HALF))
}

#[test]
fn published_v0_logs_follow_from_their_own_memory_lines() {
    let logs = published().v0;
    assert!(logs.len() >= 6);
    for log in logs {
        let shape = shape(log.layers, log.kv_heads);
        let pool = |error: f64| {
            let gpu = on(log.total + error);
            let part = |size: f64| gib((size - error).max(0.0));
            let settings = Settings {
                gpu_memory_utilization: Some(log.utilization),
                max_model_len: MaxModelLen::Tokens(log.max_model_len),
                weights_bytes: part(log.weights),
                activation_bytes: part(log.activation),
                non_torch_bytes: part(log.non_torch),
                ..Settings::default()
            };
            size(&Question { shape: &shape, gpu: &gpu, settings: &settings }, STUDY).unwrap()
        };
        let (least, most) = (pool(-HALF).tokens.low / 16, pool(HALF).tokens.high / 16);
        assert!(least <= log.blocks && log.blocks <= most, "{}: {least} {most}", log.source);
        // By the line that has the pool itself, to within one block.
        let block_bytes = 16 * shape.kv_bytes_per_token(KvType::Bf16);
        let (least, most) = blocks_of(log.kv, block_bytes);
        assert!(least <= log.blocks + 1 && log.blocks <= most + 1, "{}", log.source);
        let concurrency = (log.blocks * 16) as f64 / log.max_model_len as f64;
        assert!((concurrency - log.concurrency).abs() <= HALF + 1e-9, "{}", log.source);
    }
}

#[test]
fn published_v1_logs_follow_from_their_own_memory_lines() {
    let logs = published().v1;
    assert!(!logs.is_empty());
    for log in logs {
        let shape = shape(log.layers, log.kv_heads);
        let kv = if log.fp8 { KvType::Fp8 } else { KvType::Bf16 };
        let pages = Pages::new(&shape, kv, 16, 2048, true);
        let (least, most) = blocks_of(log.available, pages.block_bytes);
        assert!(least <= log.tokens / 16 && log.tokens / 16 <= most, "{}", log.source);
        let concurrency = (log.tokens / 16) as f64 / pages.of_request(log.max_model_len) as f64;
        assert!((concurrency - log.concurrency).abs() <= HALF + 1e-9, "{}", log.source);
    }
    for error in published().v1_error {
        let shape = shape(error.layers, error.kv_heads);
        let kv = if error.fp8 { KvType::Fp8 } else { KvType::Bf16 };
        let pages = Pages::new(&shape, kv, 16, 2048, true);
        let needed = pages.of_request(error.max_model_len) * pages.block_bytes;
        assert!((as_gib(needed as i64) - error.needed).abs() <= HALF, "{}", error.source);
        let (least, most) = blocks_of(error.available, pages.block_bytes);
        let longest = |blocks| pages.longest(blocks, error.max_model_len);
        assert!(longest(least) <= error.estimated && error.estimated <= longest(most));
    }
}

proptest! {
    #[test]
    fn pool_stays_in_the_budget_and_more_memory_never_holds_less(
        total in 1.0..200.0_f64,
        more in 0.0..50.0_f64,
        utilization in 0.05..1.0_f64,
        length in 1_u64..131_072,
        v1 in any::<bool>(),
    ) {
        let settings = Settings {
            gpu_memory_utilization: Some(utilization),
            max_model_len: MaxModelLen::Tokens(length),
            // Defaults depend on the size of the GPU.
            max_num_seqs: Some(256),
            max_num_batched_tokens: Some(2048),
            ..Settings::default()
        };
        let shape = llama_3b();
        let rules = Rules::of(if v1 { CURRENT } else { STUDY });
        let pool = |total: f64| {
            let gpu = on(total);
            Pool::new(&Question { shape: &shape, gpu: &gpu, settings: &settings }, rules).unwrap()
        };
        let (small, large) = (pool(total), pool(total + more));
        prop_assert!(small.blocks.low <= small.blocks.expected);
        prop_assert!(small.blocks.expected <= small.blocks.high);
        prop_assert!(small.blocks.expected <= large.blocks.expected);
        prop_assert!(small.blocks.low <= large.blocks.low);
        let taken = small.blocks.high * small.pages.block_bytes;
        prop_assert!(taken as i64 <= small.budget.high_bytes);
    }
}
