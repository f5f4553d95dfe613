//! What engines say of themselves, from their own pages to one shape. Pure: is
//! handed the texts. Names of vLLM: those of 0.32 (captured) and the older
//! ones that they replaced; of llama-server: `tools/server/README.md`; of
//! Ollama: `docs/api.md`.

use serde::Deserialize;
use serde_json::Value;

use super::prometheus::{Sample, samples};
use crate::record::EngineWord;

/// Newest name first: where a version has both, only the first is taken.
const KV_USAGE: [&str; 3] =
    ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "llamacpp:kv_cache_usage_ratio"];
const RUNNING: [&str; 2] = ["vllm:num_requests_running", "llamacpp:requests_processing"];
const WAITING: [&str; 2] = ["vllm:num_requests_waiting", "llamacpp:requests_deferred"];
const PREEMPTIONS: [&str; 2] = ["vllm:num_preemptions_total", "vllm:num_preemptions"];
const PREFIX_QUERIES: [&str; 4] = [
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_queries",
    "vllm:gpu_prefix_cache_queries_total",
    "vllm:gpu_prefix_cache_queries",
];
const PREFIX_HITS: [&str; 4] = [
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_hits",
    "vllm:gpu_prefix_cache_hits_total",
    "vllm:gpu_prefix_cache_hits",
];
const PROMPT_TOKENS: [&str; 2] = ["vllm:prompt_tokens_total", "llamacpp:prompt_tokens_total"];
const OUTPUT_TOKENS: [&str; 2] =
    ["vllm:generation_tokens_total", "llamacpp:tokens_predicted_total"];
const CACHE_CONFIG: &str = "vllm:cache_config_info";

/// Reads a `/metrics` page of vLLM or llama-server; `None` if it is of neither.
pub(super) fn from_metrics(text: &str) -> Option<EngineWord> {
    let known = |sample: &Sample<'_>| {
        sample.name.starts_with("vllm:") || sample.name.starts_with("llamacpp:")
    };
    let found: Vec<Sample<'_>> = samples(text).filter(known).collect();
    if found.is_empty() {
        return None;
    }
    let count = |names: &[&str]| {
        // An engine of several replicas has a sample for each.
        let counts = newest(&found, names).map(Sample::count);
        counts.reduce(|sum, count| Some(sum?.saturating_add(count?))).flatten()
    };
    let config = || found.iter().filter(|sample| sample.name == CACHE_CONFIG);
    let number = |sample: &Sample<'_>, key: &str| sample.label(key)?.parse::<u64>().ok();
    let add = |of: &dyn Fn(&Sample<'_>) -> Option<u64>| {
        config().map(of).reduce(|sum, next| sum?.checked_add(next?)).flatten()
    };
    Some(EngineWord {
        num_running: count(&RUNNING),
        num_waiting: count(&WAITING),
        kv_usage: mean_share(newest(&found, &KV_USAGE)),
        kv_bytes: add(&|sample| number(sample, "kv_cache_memory_bytes")),
        kv_tokens: add(&|sample| {
            number(sample, "kv_cache_size_tokens").or_else(|| {
                number(sample, "num_gpu_blocks")?.checked_mul(number(sample, "block_size")?)
            })
        }),
        kv_blocks: add(&|sample| number(sample, "num_gpu_blocks")),
        preemptions: count(&PREEMPTIONS),
        prefix_queries: count(&PREFIX_QUERIES),
        prefix_hits: count(&PREFIX_HITS),
        prompt_tokens: count(&PROMPT_TOKENS),
        output_tokens: count(&OUTPUT_TOKENS),
        ..EngineWord::default()
    })
}

/// The samples of the first name that has any.
fn newest<'a, 't>(
    found: &'a [Sample<'t>],
    names: &[&str],
) -> impl Iterator<Item = &'a Sample<'t>> + use<'a, 't> {
    let name = names.iter().find_map(|name| {
        found.iter().find(|sample| sample.name == *name).map(|sample| sample.name)
    });
    found.iter().filter(move |sample| Some(sample.name) == name)
}

/// The mean of shares; absent if one is no share.
fn mean_share<'a, 't: 'a>(shares: impl Iterator<Item = &'a Sample<'t>>) -> Option<f64> {
    let (mut sum, mut n) = (0.0, 0.0);
    for share in shares {
        if !(0.0..=1.0).contains(&share.value) {
            return None;
        }
        sum += share.value;
        n += 1.0;
    }
    (n > 0.0).then(|| sum / n)
}

/// One slot of llama-server's `/slots`.
#[derive(Deserialize)]
struct Slot {
    is_processing: Option<bool>,
    /// Before `is_processing`: 0 idle, 1 processing.
    state: Option<u64>,
}

/// Adds what llama-server's `/slots` says; `false` if the text is none.
pub(super) fn add_slots(word: &mut EngineWord, text: &str) -> bool {
    let Ok(slots) = serde_json::from_str::<Vec<Slot>>(text) else { return false };
    let busy = |slot: &&Slot| slot.is_processing.unwrap_or(slot.state == Some(1));
    word.num_slots = Some(slots.len() as u64);
    let num_busy = slots.iter().filter(busy).count() as u64;
    word.num_running = word.num_running.or(Some(num_busy));
    true
}

/// `/api/ps` of Ollama.
#[derive(Deserialize)]
struct Loaded {
    models: Vec<LoadedModel>,
}

#[derive(Deserialize)]
struct LoadedModel {
    size: Option<Value>,
    size_vram: Option<Value>,
}

/// Reads Ollama's `/api/ps`; `None` if the text is none.
pub(super) fn from_ollama_ps(text: &str) -> Option<EngineWord> {
    let loaded: Loaded = serde_json::from_str(text).ok()?;
    let sum = |of: fn(&LoadedModel) -> &Option<Value>| {
        let sizes = loaded.models.iter().map(|model| of(model).as_ref().and_then(Value::as_u64));
        // A zero is left out of Ollama's JSON; of no model the sum is 0.
        sizes.fold(0_u64, |sum, size| sum.saturating_add(size.unwrap_or(0)))
    };
    Some(EngineWord {
        model_bytes: Some(sum(|model| &model.size)),
        model_gpu_bytes: Some(sum(|model| &model.size_vram)),
        ..EngineWord::default()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lines of a vLLM 0.32.0 page as they came.
    const VLLM: &str = include_str!("../../tests/it/support/wire/vllm_metrics.txt");

    #[test]
    fn page_of_vllm_is_read() {
        let word = from_metrics(VLLM).unwrap();
        assert_eq!((word.num_running, word.num_waiting), (Some(0), Some(0)));
        assert_eq!(word.kv_usage, Some(0.0));
        assert_eq!((word.kv_bytes, word.kv_tokens), (Some(1 << 30), Some(46_592)));
        assert_eq!(word.kv_blocks, Some(364));
        assert_eq!((word.prefix_queries, word.prefix_hits), (Some(47), Some(0)));
        assert_eq!(word.preemptions, Some(0));
        assert!(word.prompt_tokens.is_some() && word.output_tokens.is_some());
    }

    #[test]
    fn older_names_are_read_and_not_added_to_newer_ones() {
        let old = "vllm:gpu_cache_usage_perc{m=\"x\"} 0.25\nvllm:gpu_prefix_cache_hits_total 8\n\
                   vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"100\"} 1.0\n";
        let word = from_metrics(old).unwrap();
        assert_eq!((word.kv_usage, word.prefix_hits), (Some(0.25), Some(8)));
        assert_eq!((word.kv_tokens, word.kv_bytes), (Some(1600), None));
        assert_eq!(word.kv_blocks, Some(100));
        let both = format!("{old}vllm:kv_cache_usage_perc 0.5\nvllm:prefix_cache_hits_total 8\n");
        let word = from_metrics(&both).unwrap();
        assert_eq!((word.kv_usage, word.prefix_hits), (Some(0.5), Some(8)));
    }

    #[test]
    fn replicas_are_added_and_their_shares_averaged() {
        let text = "vllm:num_requests_running{engine=\"0\"} 3\nvllm:num_requests_running{engine=\"1\"} 4\n\
                    vllm:kv_cache_usage_perc{engine=\"0\"} 0.2\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.4\n";
        let word = from_metrics(text).unwrap();
        assert_eq!(word.num_running, Some(7));
        assert!((word.kv_usage.unwrap() - 0.3).abs() < 1e-9);
    }

    #[test]
    fn page_of_llama_server_is_read_with_its_slots() {
        let text = "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 2\n\
                    llamacpp:requests_deferred 5\nllamacpp:tokens_predicted_total 640\n";
        let mut word = from_metrics(text).unwrap();
        assert_eq!((word.num_running, word.num_waiting), (Some(2), Some(5)));
        assert_eq!(word.output_tokens, Some(640));
        assert!(add_slots(&mut word, r#"[{"id":0,"is_processing":true},{"id":1,"state":0}]"#));
        assert_eq!((word.num_slots, word.num_running), (Some(2), Some(2)));
        let mut alone = EngineWord::default();
        assert!(add_slots(&mut alone, r#"[{"state":1},{"is_processing":false}]"#));
        assert_eq!(alone.num_running, Some(1));
        assert!(!add_slots(&mut alone, "<html>"));
    }

    #[test]
    fn loaded_models_of_ollama_are_added_up() {
        let text = r#"{"models":[{"name":"a","size":195024648,"size_vram":99971235},{"size":1}]}"#;
        let word = from_ollama_ps(text).unwrap();
        assert_eq!((word.model_bytes, word.model_gpu_bytes), (Some(195_024_649), Some(99_971_235)));
        assert_eq!(from_ollama_ps("{\"models\":[]}").unwrap().model_bytes, Some(0));
        assert_eq!(from_ollama_ps("{\"error\":\"no\"}"), None);
    }

    #[test]
    fn pages_of_others_say_nothing_and_impossible_values_are_none() {
        assert_eq!(from_metrics("# TYPE go_threads gauge\ngo_threads 7\n"), None);
        let word = from_metrics("vllm:kv_cache_usage_perc 7\nvllm:num_requests_running -1\n");
        assert_eq!(word, Some(EngineWord::default()));
    }

    proptest! {
        #[test]
        fn no_page_brings_the_readers_down(text in "\\PC{0,120}") {
            let _ = from_metrics(&format!("vllm:cache_config_info{{{text}}} 1\n{text}"));
            let _ = (from_ollama_ps(&text), add_slots(&mut EngineWord::default(), &text));
        }
    }
}
