//! Help pages, errors and exit codes of the binary.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::yardstick;

/// Help pages and sessions, as people see them. `TRYCMD=overwrite` renews them.
#[test]
fn help_pages_and_sessions_are_as_recorded() {
    trycmd::TestCases::new()
        .register_bin("yardstick", std::path::PathBuf::from(env!("CARGO_BIN_EXE_yardstick")))
        .case("tests/cmd/*.trycmd");
}

fn run(arguments: &[&str]) -> Output {
    yardstick().args(arguments).env_remove("RUST_LOG").output().unwrap()
}

fn stdout_json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn doctor_tells_a_machine_in_json() {
    let output = run(&["doctor", "--json"]);
    assert!(output.status.success());
    let report = stdout_json(&output);
    assert_eq!(report["yardstick_version"], env!("CARGO_PKG_VERSION"));
    assert!(report["machine"]["num_cpus"].as_u64().unwrap() >= 1);
    let gpus = report["machine"]["gpus"].as_array().unwrap();
    assert_eq!(gpus.is_empty(), report["machine"]["gpu_absent"].is_string());
    assert_eq!(report["cuda"]["available"], false);
    assert!(report["cuda"]["reason"].as_str().unwrap().contains("CUDA"));
    assert_eq!(report["model"]["found"].as_bool(), Some(report["model"]["origin"].is_string()));
    for gap in report["gaps"].as_array().unwrap() {
        assert!(!gap["advice"].as_str().unwrap().is_empty(), "{gap}");
    }
}

#[test]
fn doctor_tells_people_about_a_model_that_is_not_there() {
    let output = run(&["doctor", "--model", "/no/such/model.gguf"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("/no/such/model.gguf: not on this machine"), "{text}");
    assert!(text.contains("! model /no/such/model.gguf"), "{text}");
}

#[test]
fn lists_hold_the_names_that_other_verbs_take() {
    let listing = stdout_json(&run(&["list", "--json"]));
    let names = |list: &str, key: &str| -> Vec<String> {
        let items = listing[list].as_array().unwrap().iter();
        items.map(|item| item[key].as_str().unwrap().to_owned()).collect()
    };
    let experiments = ["sequential-cold", "concurrent-cold", "concurrent-warm", "batched-warm"];
    assert_eq!(names("experiments", "name"), experiments);
    assert_eq!(names("engines", "kind"), ["embedded", "ollama", "vllm", "openai"]);
    assert!(names("models", "name").contains(&"smollm2-135m-instruct".to_owned()));
    assert!(names("gpus", "name").contains(&"L4".to_owned()));
}

#[test]
fn reader_that_goes_away_is_no_failure() {
    let mut child = yardstick()
        .args(["list", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(child.wait().unwrap().success(), "{stderr}");
    assert_eq!(stderr, "");
}

#[test]
fn colours_come_only_when_asked_for_away_from_a_terminal() {
    let failing = ["generate", "--prompt", "x", "--device", "cuda", "--color"];
    let stderr = |choice: &str| {
        let output = run(&[&failing[..], &[choice]].concat());
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(stderr("auto").starts_with("error: "));
    assert!(stderr("never").starts_with("error: "));
    assert!(stderr("always").starts_with("\u{1b}["));
}

/// A prompt of five tokens whose continuation other engines agree on in f32 (transformers
/// and llama.cpp).
const RAW: [&str; 7] = [
    "generate",
    "--dtype=f32",
    "--raw",
    "--prompt",
    "The capital of France is",
    "--json",
    "--max-tokens",
];

#[test]
fn generate_tells_everything_in_one_object() {
    let output = run(&[&RAW[..], &["8", "--logprobs", "2"]].concat());
    let answer = stdout_json(&output);
    assert_eq!(answer["prompt_ids"], serde_json::json!([504, 3575, 282, 4649, 314]));
    assert_eq!(answer["text"], " Paris.\n\nThe answer is:");
    assert_eq!(answer["finish_reason"], "length");
    let tokens = answer["tokens"].as_array().unwrap();
    let logprobs = answer["logprobs"].as_array().unwrap();
    assert_eq!((tokens.len(), logprobs.len()), (8, 8));
    for (token, row) in tokens.iter().zip(logprobs) {
        // Greedy: the token drawn is the most likely one.
        assert_eq!((&row["id"], &row["top"][0]["id"]), (token, token));
        assert_eq!(row["logprob"], row["top"][0]["logprob"]);
        assert_eq!(row["top"].as_array().unwrap().len(), 2);
    }
    for name in ["load_ms", "queue_ms", "ttft_ms", "prefill_ms", "decode_ms", "decode_tokens_per_s"]
    {
        assert!(answer["timings"][name].as_f64().unwrap() >= 0.0, "{name}");
    }
    // The same prompt as ids, on blocks of KV that the prompt does not fill.
    let ids = ["generate", "--prompt-ids", "504,3575,282,4649,314", "--json", "--max-tokens", "8"];
    let pool = ["--dtype=f32", "--block-size", "4", "--kv-blocks", "16"];
    let again = stdout_json(&run(&[&ids[..], &pool].concat()));
    assert_eq!(again["tokens"], answer["tokens"]);
    assert_eq!(again["max_model_len"], 64);
    assert!(again["logprobs"].is_null());
}

#[test]
fn generate_streams_text_on_stdout_and_timings_on_stderr() {
    let asked = ["generate", "--dtype=f32", "--prompt", "What is the capital of France?"];
    let output = run(&[&asked[..], &["--max-tokens", "20"]].concat());
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "The capital of France is Paris.\n");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("37 prompt tokens, 8 tokens (stop)"), "{stderr}");
    assert!(stderr.contains("TTFT") && stderr.contains("tokens/s"), "{stderr}");
}

#[test]
fn generate_ends_at_a_stop_text() {
    let output = run(&[&RAW[..], &["20", "--stop", "never said", "--stop", "swer"]].concat());
    let answer = stdout_json(&output);
    assert_eq!(answer["text"], " Paris.\n\nThe an");
    assert_eq!(answer["finish_reason"], "stop");
    let output = run(&[&RAW[..], &["20", "--stop", ""]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("stop has a text of 0 bytes"));
}

#[test]
fn generate_draws_samples_beside_each_other() {
    let answer = stdout_json(&run(&[&RAW[..], &["5", "-n", "2"]].concat()));
    let samples = answer["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 2);
    // Greedy: they are alike, and the first stands where a single one would.
    assert_eq!(samples[0]["tokens"], samples[1]["tokens"]);
    assert_eq!(samples[0]["text"], answer["text"]);
    let plain = run(&["generate", "--raw", "--prompt", "The", "-n", "2", "--max-tokens", "3"]);
    let text = String::from_utf8(plain.stdout).unwrap();
    assert!(text.starts_with("[1] ") && text.contains("\n[2] "), "{text}");
}

#[test]
fn generate_scores_a_text() {
    let scored = ["generate", "--raw", "--prompt", "The capital of France is Paris", "--score"];
    let answer = stdout_json(&run(&[&scored[..], &["--json", "--logprobs", "2"]].concat()));
    let tokens = answer["tokens"].as_array().unwrap();
    assert_eq!((tokens.len(), answer["num_scored"].as_u64()), (6, Some(5)));
    assert!(tokens[0]["logprob"].is_null());
    // It is what the model would have said.
    assert_eq!(tokens[5]["top"][0]["id"], tokens[5]["id"]);
    assert_eq!(tokens[5]["top"].as_array().unwrap().len(), 2);
    let total: f64 = tokens.iter().filter_map(|token| token["logprob"].as_f64()).sum();
    assert!((total - answer["total_logprob"].as_f64().unwrap()).abs() < 1e-3);
    let perplexity = answer["perplexity"].as_f64().unwrap();
    assert!((perplexity - (-total / 5.0).exp()).abs() < 1e-3 * perplexity);
    let text = String::from_utf8(run(&scored).stdout).unwrap();
    assert!(text.contains("\" Paris\"") && text.contains("perplexity"), "{text}");
}

#[test]
fn prompt_that_does_not_fit_is_refused_with_numbers() {
    let output = run(&[&RAW[..], &["8", "--max-model-len", "5"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("error: ") && stderr.contains('5'), "{stderr}");
}

#[cfg(unix)]
#[test]
fn interrupted_generation_keeps_what_came() {
    let mut child = yardstick()
        .args(["generate", "--prompt", "Count.", "--ignore-eos", "--max-tokens", "7000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("tokens (cancelled)"), "{stderr}");
    assert!(output.stdout.ends_with(b"\n"));
}

#[cfg(unix)]
#[test]
fn server_serves_its_model_and_ends_when_it_is_told_to() {
    let mut child = yardstick()
        .args(["serve", "--port", "0", "--max-model-len", "256", "--kv-memory", "64MiB"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    let url = loop {
        assert!(stderr.read_line(&mut said).unwrap() > 0, "the server ended: {said}");
        if let Some((_, url)) = said.split_once("listening on http://") {
            break url.trim().to_owned();
        }
    };
    let mut stream = TcpStream::connect(&url).unwrap();
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"id\":\"smollm2-135m-instruct\""), "{answer}");
    assert!(answer.contains("\"max_model_len\":256"), "{answer}");
    interrupt(&child);
    assert!(child.wait().unwrap().success());
}

/// Sends SIGINT, as Ctrl-C does.
#[cfg(unix)]
fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}
