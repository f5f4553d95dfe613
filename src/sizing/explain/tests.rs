//! What texts say: the study's error, published logs (`logs/`, also seeds of the fuzz
//! target), and texts of nobody.

use proptest::prelude::*;

use super::*;
use crate::catalog::cards;
use crate::hardware::gpu_cards;

fn read(text: &str) -> Result<Reading, String> {
    read_with(text, &Settings::default())
}

fn read_with(text: &str, settings: &Settings) -> Result<Reading, String> {
    let models: Vec<Shape> =
        cards().iter().map(|card| Shape::of_config(&card.name, &card.config)).collect();
    let gpus: Vec<GpuMemory> = gpu_cards().iter().filter_map(GpuMemory::of_card).collect();
    explain(text, &Context { models: &models, model_is_given: false, gpus: &gpus, settings })
}

const STUDY: &str = include_str!("logs/v0_error.txt");

#[test]
fn the_study_s_error_is_read_as_a_set_of_gpus_and_not_as_one() {
    let reading = read(STUDY).unwrap();
    assert_eq!(reading.said, [Said::TooLongV0 { max_model_len: 131_072, kv_tokens: 117_328 }]);
    let pool = reading.pools.iter().find(|pool| pool.model == "llama-3.2-3b-instruct").unwrap();
    assert_eq!(pool.blocks, Count::exact(7333));
    assert_eq!(pool.needed_bytes, Some(14 << 30));
    let found = |model: &str| {
        let of = reading.consistency.iter().find(|found| found.model == model).unwrap();
        let pair = |one: &Combination| format!("{} {}", one.gpu, one.utilization);
        of.combinations.iter().map(pair).collect::<Vec<_>>()
    };
    let of_3b = found("llama-3.2-3b-instruct");
    assert!(of_3b.contains(&"L4 0.9".to_owned()), "{of_3b:?}");
    assert!(of_3b.contains(&"A10G 0.9".to_owned()), "{of_3b:?}");
    for one in ["L4 0.92", "L4 0.95", "A10G 0.92", "RTX-3090 0.9", "RTX-4090 0.9"] {
        assert!(!of_3b.contains(&one.to_owned()), "{of_3b:?}");
    }
    // The 1B would leave ten times what activations take.
    assert!(!found("llama-3.2-1b-instruct").iter().any(|one| one.starts_with("L4 0.9")));
}

#[test]
fn the_ways_out_of_the_study_s_error_have_numbers_and_an_order() {
    let reading = read(STUDY).unwrap();
    let changes: Vec<&str> = reading.advice.iter().map(|one| one.change.as_str()).collect();
    assert_eq!(changes[0], "--max-model-len 117328");
    assert_eq!(changes[1], "--gpu-memory-utilization 0.97");
    assert_eq!(changes[2], "--kv-cache-dtype fp8");
    assert!(reading.advice[2].why.contains("234656 tokens: starts"));
}

#[test]
fn what_is_not_enough_by_itself_is_no_advice() {
    let text = "The model's max seq len (131072) is larger than the maximum number of tokens that \
                can be stored in KV cache (30000)";
    let reading = read(text).unwrap();
    let changes: Vec<&str> = reading.advice.iter().map(|one| one.change.as_str()).collect();
    assert_eq!(changes, ["--max-model-len 30000", "weights in 4 bits, or a larger GPU"]);
}

/// Section by section as vLLM spelled it over two years.
#[test]
fn every_spelling_of_the_v1_error_is_read() {
    let old = include_str!("logs/v1_error.txt");
    let expected = Said::TooLongV1 {
        max_model_len: 118_000,
        needed_gib: 6.30,
        available_gib: 6.11,
        estimated_max_model_len: Some(114_432),
    };
    assert_eq!(read(old).unwrap().said, [expected]);
    // https://github.com/vllm-project/vllm/issues/16118: without an estimate.
    let without = include_str!("logs/v1_error_no_estimate.txt");
    let estimate = |text: &str| match read(text).unwrap().said[..] {
        [Said::TooLongV1 { estimated_max_model_len, .. }] => estimated_max_model_len,
        ref other => panic!("{other:?}"),
    };
    assert_eq!(estimate(without), None);
    // https://github.com/kaito-project/kaito/issues/2132: no bracket, broken lines.
    let new = include_str!("logs/v1_error_no_bracket.txt");
    assert_eq!(estimate(new), Some(810_208));
    // https://github.com/syv-ai/qwen38-27b-rtx3090/issues/39: a link behind it.
    let linked = include_str!("logs/v1_error_link.txt");
    assert_eq!(estimate(linked), Some(15_984));
}

#[test]
fn bytes_a_token_of_the_v1_error_name_the_model_that_may_be_meant() {
    let reading = read(include_str!("logs/v1_error.txt")).unwrap();
    let pools: Vec<_> =
        reading.pools.iter().map(|pool| (pool.model.as_str(), pool.kv_type)).collect();
    assert_eq!(pools, [("llama-3.2-3b-instruct", KvType::Fp8)]);
    assert!(reading.advice.iter().all(|one| one.change != "--kv-cache-dtype fp8"));
}

/// <https://github.com/vllm-project/vllm/issues/13882>, its lines.
#[test]
fn a_log_with_nothing_left_says_how_much_is_missing() {
    let reading = read(include_str!("logs/v0_no_blocks.txt")).unwrap();
    assert_eq!(reading.said.len(), 5, "{:?}", reading.said);
    assert_eq!(reading.advice[0].change, "--gpu-memory-utilization above 0.84");
}

/// <https://github.com/vllm-project/vllm/issues/10517>, its lines.
#[test]
fn the_one_line_profile_of_0_6_4_is_read() {
    let reading = read(include_str!("logs/v0_profile.txt")).unwrap();
    assert!(
        matches!(reading.said[0], Said::Profiled { kv_gib, .. } if (kv_gib - 2.89).abs() < 1e-9)
    );
    assert!(reading.said.contains(&Said::Blocks { num_blocks: 1478 }));
}

#[test]
fn lines_of_v1_are_read() {
    let reading = read(include_str!("logs/v1_memory.txt")).unwrap();
    assert_eq!(reading.said.len(), 10, "{:#?}", reading.said);
    assert!(reading.advice.iter().any(|one| one.change == "--gpu-memory-utilization 0.69"));
}

/// <https://github.com/ollama/ollama/issues/8903> and 8447, their lines.
#[test]
fn load_lines_of_llama_cpp_and_ollama_are_read() {
    let reading = read(include_str!("logs/llama_cpp.txt")).unwrap();
    assert!(reading.said.contains(&Said::LlamaKv { mib: 2048.0 }), "{:?}", reading.said);
    assert!(
        reading.sentences.iter().any(|s| s == "8192 tokens are 4 slots of 2048, 256 KiB a token")
    );
    assert!(reading.said.contains(&Said::OllamaOffload { layers: 62, layers_on_gpu: 5 }));
    let busy = read(include_str!("logs/ollama_busy.txt")).unwrap();
    assert_eq!(busy.said, [Said::OllamaBusy]);
}

#[test]
fn a_log_that_says_its_gpu_leaves_no_set() {
    let log = include_str!("logs/v0_memory.txt");
    let both = format!("{log}\n{STUDY}");
    let reading = read(&both).unwrap();
    let of = reading.consistency.iter().find(|one| one.model == "llama-3.2-3b-instruct").unwrap();
    assert_eq!(of.combinations.len(), 1);
    assert_eq!(of.combinations[0].gpu, "the GPU of the log");
}

#[test]
fn a_text_of_nobody_is_refused_with_what_would_be_read() {
    for text in ["", "hello", "max seq len (many) is larger", "KV self size = lots MiB"] {
        let refused = read(text).unwrap_err();
        assert!(refused.contains("expected a start-up log"), "{refused}");
    }
}

proptest! {
    /// Logs are hostile: numbers may be anything.
    #[test]
    fn no_number_is_too_odd(digits in prop::collection::vec("-?[0-9]{1,25}(\\.[0-9]{0,3})?", 8)) {
        let [a, b, c, d, e, f, g, h] = &digits[..] else { unreachable!() };
        let text = format!(
            "max seq len ({a}) is larger than the maximum number of tokens that can be stored in \
             KV cache ({b}) # GPU blocks: {c} max seq len ({d}), ({e} GiB KV cache is needed, which \
             is larger than the available KV cache memory ({f} GiB) No available memory for the \
             cache blocks total_gpu_memory ({g}GiB) x gpu_memory_utilization ({h}) = {a}GiB \
             kv_size = {b} KV self size = {c} MiB Free memory on device ({d}/{e} GiB) on startup \
             is less than desired GPU memory utilization ({f}, {g} GiB)"
        );
        prop_assert!(read(&text).is_ok());
    }
}
