//! `yardstick size` the way its user meets it, and its promise about the embedded
//! engine: the pool that it predicts is the pool that is allocated.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Output, Stdio};

use serde_json::Value;
use yardstick::catalog::{LocateOptions, find_card, locate};

use crate::support::yardstick;

/// A build for CUDA sizes the GPU's pool, which takes a GPU to allocate.
#[cfg(not(feature = "cuda"))]
mod allocated;

const MODEL: &str = "smollm2-135m-instruct";
const STUDY: &str = "The model's max seq len (131072) is larger than the maximum number of tokens \
                     that can be stored in KV cache (117328).";

fn size(arguments: &[&str]) -> Output {
    yardstick().arg("size").args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = size(&[arguments, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"))
}

fn stderr(arguments: &[&str]) -> String {
    let output = size(arguments);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_config_of_another_family_is_sized_and_the_embedded_engine_says_why_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let config = serde_json::json!({
        "architectures": ["Gemma2ForCausalLM"], "vocab_size": 256_000, "hidden_size": 2304,
        "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
        "sliding_window": 4096, "rms_norm_eps": 1e-6,
    });
    std::fs::write(&path, config.to_string()).unwrap();
    let answer = json(&["--model", path.to_str().unwrap(), "--gpu", "RTX-4090"]);
    assert_eq!(answer["model"]["num_parameters"], 2_614_341_888_u64);
    assert_eq!(answer["model"]["sliding"]["num_layers"], 13);
    assert_eq!(answer["engines"].as_array().unwrap().len(), 3);
    let reason = answer["not_sized"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("Gemma2ForCausalLM"), "{reason}");
    let unknown = config.to_string().replace("Gemma2", "Mamba");
    std::fs::write(&path, unknown).unwrap();
    let refused = stderr(&["--model", path.to_str().unwrap(), "--gpu", "l4"]);
    assert!(refused.contains("`MambaForCausalLM` is not known"), "{refused}");
}

#[test]
fn the_default_model_s_file_is_what_ollama_loads() {
    let options = LocateOptions { dummy: None, offline: true };
    let source = locate(MODEL, &options, &mut |_| {}).unwrap().source;
    let yardstick::infer::ModelSource::Gguf(path) = source else { return };
    let file_bytes = std::fs::metadata(&path).unwrap().len();
    let answer = json(&["--model", path.to_str().unwrap(), "--gpu", "l4", "--engine", "ollama"]);
    let weights = &answer["engines"][0]["parts"][0]["amount"];
    assert_eq!(weights["expected_bytes"].as_u64(), Some(file_bytes));
    let card = find_card(MODEL).unwrap();
    assert_eq!(answer["model"]["num_parameters"].as_u64(), Some(card.num_parameters));
}

#[test]
fn a_log_on_standard_input_is_read() {
    let mut child = yardstick()
        .args(["size", "--explain", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = b"\xff\xfe [loader] noise\n".to_vec();
    log.extend_from_slice(STUDY.as_bytes());
    child.stdin.take().unwrap().write_all(&log).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let page = String::from_utf8(output.stdout).unwrap();
    for part in ["7333 blocks of 16", "L4 at 0.90", "A10G at 0.90", "--max-model-len 117328"] {
        assert!(page.contains(part), "{part} is not in:\n{page}");
    }
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
}

#[test]
fn what_is_known_narrows_the_set_down() {
    let known = ["--weights-gib", "6.016", "--activation-gib", "1.22", "--non-torch-gib", "0.065"];
    let named = ["--explain", STUDY, "--model", "llama-3.2-3b-instruct"];
    let reading = json(&[&named[..], &known[..]].concat());
    let of = |one: &Value| format!("{} {}", one["gpu"].as_str().unwrap(), one["utilization"]);
    let combinations = reading["consistency"][0]["combinations"].as_array().unwrap();
    let found: Vec<String> = combinations.iter().map(of).collect();
    assert_eq!(found, ["L4 0.9"]);
}

#[test]
fn bad_input_is_named_with_what_would_be_accepted() {
    let sized = |more: &[&str]| stderr(&[&["--model", "llama-3.2-3b-instruct"], more].concat());
    for (arguments, parts) in [
        (&["--gpu", "tpu"][..], &["`tpu`", "L4", "--gpu-memory-gib"][..]),
        (&["--gpu", "h100-pcie"], &["H100-PCIe", "--gpu-memory-gib"]),
        (&["--gpu-memory-gib", "0"], &["expected GiB above 0"]),
        (&["--gpu-memory-gib", "-4"], &["expected GiB above 0"]),
        (&["--gpu", "l4", "--gpu-memory-utilization", "1.5"], &["1.5", "up to 1"]),
        (&["--gpu", "l4", "--gpu-memory-utilization", "-1"], &["-1", "above 0"]),
        (&["--gpu", "l4", "--engine", "vllm", "--block-size", "12"], &["12", "16"]),
        (&["--gpu", "l4", "--block-size", "0"], &["block_size is 0", "1 to"]),
        (&["--gpu", "l4", "--max-model-len", "some"], &["some", "auto"]),
        (&["--gpu", "l4", "--max-model-len", "0"], &["max_model_len is 0"]),
        (&["--gpu", "l4", "--kv-cache-dtype", "int3"], &["int3", "q8_0"]),
        (&["--gpu", "l4", "--vllm-version", "new"], &["`new`", "0.7"]),
        (&["--gpu", "l4", "--prompt-tokens", "5"], &["--output-tokens"]),
    ] {
        let said = sized(arguments);
        for part in parts {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
    let unknown = stderr(&["--explain", "all is well"]);
    assert!(unknown.contains("expected a start-up log") && unknown.contains("hint:"), "{unknown}");
}

#[test]
fn format_page_names_every_field_of_the_answer_and_the_reading() {
    let format = include_str!("../../docs/FORMAT.md");
    let mut names = BTreeSet::new();
    let asked = ["--model", "llama-3.2-3b-instruct", "--gpu", "l4"];
    let lengths = ["--prompt-tokens", "1000", "--output-tokens", "200"];
    walk(&json(&[&asked[..], &lengths[..]].concat()), &mut names);
    let mut reading = json(&["--explain", STUDY]);
    reading.as_object_mut().unwrap().remove("said");
    walk(&reading, &mut names);
    assert!(names.len() > 50, "{names:?}");
    let missing: Vec<_> =
        names.iter().filter(|name| !format.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/FORMAT.md does not name {missing:?}");
}

fn walk(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                names.insert(name.clone());
                if name != "settings" {
                    walk(value, names);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| walk(value, names)),
        _ => {}
    }
}
