//! Whole runs through the binary, on the real default model.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use yardstick::record::{JournalEvent, RunData};

use crate::support::{browser, yardstick};

/// The default engines at a size that a test can wait for.
const SMALL: [&str; 12] = [
    "run",
    "--engine",
    "embedded",
    "--engine",
    "embedded?transport=http",
    "--concurrency",
    "2",
    "--requests",
    "3",
    "--max-tokens",
    "6",
    "--json",
];

fn run(arguments: &[&str]) -> Output {
    yardstick().args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("stdout is no JSON ({error}): {}", stderr(output)))
}

/// Fails unless the command ended with 1 or 2, said `what`, and gave a hint where one is due.
#[track_caller]
fn refused(arguments: &[&str], what: &str) {
    let output = run(arguments);
    let text = stderr(&output);
    let code = output.status.code();
    assert!(matches!(code, Some(1 | 2)), "exit {code:?}: {text}");
    assert!(text.contains(what), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    assert!(output.stdout.is_empty(), "stdout is for data");
}

/// Steps, phases of loading and memory of both engines are in the directory.
fn engines_told_of_themselves(data: &RunData) {
    for engine in 0..2 {
        let steps: Vec<_> = data.steps.iter().filter(|step| step.engine == engine).collect();
        // Three answers of six tokens one after another alone take eighteen.
        assert!(steps.len() >= 18, "{}", steps.len());
        assert!(steps.iter().all(|step| step.took_ns > 0 && step.num_tokens > 0));
        assert!(steps.iter().any(|step| step.num_used_blocks > 0));
        assert!(steps.iter().any(|step| step.num_decode_kv_tokens > Some(0)));
        assert!(steps.iter().any(|step| step.num_prefill_pairs > Some(0)));
    }
    let count = |holds: fn(&JournalEvent) -> bool| {
        data.journal.iter().filter(|entry| holds(&entry.event)).count()
    };
    let load = |event: &JournalEvent| matches!(event, JournalEvent::LoadPhase { .. });
    // Two cold cases an engine, three phases each, and opening once.
    assert_eq!(count(load), 2 * (2 * 3 + 1));
    assert_eq!(count(|event| matches!(event, JournalEvent::Memory { .. })), 4);
    assert_eq!(count(|event| matches!(event, JournalEvent::TelemetryLost { .. })), 0);
}

#[test]
fn comparison_of_the_embedded_engine_with_itself_over_http_is_complete() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let output = run(&[&SMALL[..], &["--out", out.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let summary = json(&output);
    assert_eq!(summary["complete"], true);
    let cases = summary["cases"].as_array().unwrap();
    // sequential-cold, concurrent-cold, concurrent-warm and two levels of batched-warm, twice each.
    assert_eq!(cases.len(), 10);
    for case in cases {
        assert_eq!(case["errors"], serde_json::json!({}));
        assert_eq!(case["n"], 3);
        for metric in ["ttft_ms", "tpot_ms", "itl_ms", "e2el_ms", "decode_tokens_per_s"] {
            assert!(case[metric]["p50"].as_f64().unwrap() > 0.0, "{metric} of {case}");
            assert!(case[metric]["p99"].is_null(), "three requests have no p99");
            assert!(case[metric]["reasons"]["p99"].as_str().unwrap().contains("n too small"));
        }
        assert_eq!(case["mean_output_tokens"], 6.0);
        assert!(case["output_tokens_per_s"].as_f64().unwrap() > 0.0);
    }
    assert!(!summary["http_cost"].as_array().unwrap().is_empty());
    directory_is_whole(&out, &output);
}

/// A simulation takes step times, pool and model from the run.
fn step_times_are_in_it(data: &RunData, out: &Path) {
    let name = data.manifest.engines[1].spec.name.as_str();
    let load =
        ["--users", "3", "--requests", "6", "--prompt-tokens", "24", "--output-tokens", "12"];
    let simulate = ["size", "--simulate", "--json", "--steps-from", out.to_str().unwrap()];
    let output = run(&[&simulate[..], &load, &["--steps-engine", name]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let simulated = json(&output);
    assert_eq!(simulated["step_times"]["kind"], "fitted");
    assert_eq!(simulated["step_times"]["engine"], name);
    assert_eq!(simulated["engine"]["model"], data.manifest.model.as_str());
    let step = data.steps.iter().find(|step| step.engine == 1).unwrap();
    let blocks = step.num_used_blocks + step.num_free_blocks;
    assert_eq!(simulated["engine"]["num_blocks"].as_u64(), Some(blocks));
    assert_eq!(simulated["steps"]["num_output_tokens"], 72);
    refused(&[&simulate[..], &load].concat(), "has steps of");
}

/// The files are there, the raw lines add up, and rendering again changes nothing.
fn directory_is_whole(out: &Path, output: &Output) {
    let data = RunData::read(out).unwrap();
    let measured = data.requests.iter().filter(|record| !record.warmup).count();
    assert_eq!(measured, 30);
    let cold = data.requests.iter().filter(|record| record.cold).count();
    assert_eq!(cold, 2 * (1 + 2), "the opening burst of each cold case, and only it");
    engines_told_of_themselves(&data);
    step_times_are_in_it(&data, out);
    let on_disk: Value =
        serde_json::from_slice(&fs::read(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!(on_disk, json(output));
    let first = fs::read(out.join("report.html")).unwrap();
    let again = run(&["report", out.to_str().unwrap(), "--format", "html"]);
    assert!(again.stdout == first, "a report is a pure function of its run directory");
    if let Some(browser) = browser::find_or_skip() {
        let dom = browser::dump(&browser, &out.join("report.html"), 1200);
        let page = String::from_utf8(first).unwrap();
        assert_eq!(dom.matches("role=\"img\"").count(), page.matches("role=\"img\"").count());
        // The page's script made switches of the two engines in the legend: its policy let it run.
        assert_eq!(dom.matches("aria-pressed=\"false\"").count(), 2);
    }
}

#[test]
fn engines_in_process_and_over_http_give_the_same_greedy_text() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let experiment = ["--experiment", "concurrent-warm", "--prompt-tokens", "24", "--seed", "5"];
    let output = run(&[&SMALL[..], &experiment, &["--out", out.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let data = RunData::read(&out).unwrap();
    let texts = |case: u32| {
        let of_case = data.requests.iter().filter(|r| r.case == case && !r.warmup);
        let mut texts: Vec<_> = of_case
            .map(|r| (r.index, r.prompt_sha256.clone(), r.num_prompt_tokens, r.text.clone()))
            .collect();
        texts.sort();
        texts
    };
    assert_eq!(texts(0), texts(1));
    assert!(texts(0).iter().all(|(_, _, num_prompt_tokens, _)| *num_prompt_tokens == Some(24)));
}

#[cfg(unix)]
#[test]
fn interrupt_keeps_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut child = yardstick()
        .args(["run", "--engine", "embedded", "--experiment", "sequential-cold"])
        .args(["--requests", "1000", "--max-tokens", "4", "--out", out.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let requests = out.join("requests.jsonl");
    let lines = || fs::read_to_string(&requests).map_or(0, |text| text.lines().count());
    for _ in 0..1200 {
        if lines() >= 3 {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(lines() >= 3, "nothing was measured in a minute");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let summary: Value =
        serde_json::from_slice(&fs::read(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["complete"], false);
    assert!(summary["cases"][0]["num_ok"].as_u64().unwrap() >= 3);
    let absent = &summary["client_error"]["absent"]["before"];
    assert_eq!(absent, "no engine of this run is measured over HTTP");
    assert!(out.join("report.html").is_file());
}

#[test]
fn unreachable_engine_is_one_line_with_a_remedy() {
    let output = run(&["run", "--engine", "ollama=http://127.0.0.1:1"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    assert!(lines[0].starts_with("error: ") && lines[0].contains("http://127.0.0.1:1"), "{text}");
    assert!(lines[0].contains("unreachable"), "{text}");
    assert!(lines[1].starts_with("hint: "), "{text}");
    assert_eq!(lines.len(), 2, "{text}");
}

#[test]
fn wrong_plans_are_refused_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |text: &str| {
        let path = folder.path().join("plan.toml");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    refused(&["run", &plan("concurency = 3")], "concurency");
    refused(&["run", &plan("experiments = ['hot']")], "unknown experiment `hot`");
    refused(&["run", &plan("[[engine]]\nkind = 'sglang'")], "sglang");
    refused(&["run", "--experiment", "hot"], "sequential-cold");
    refused(&["run", "--engine", "sglang"], "unknown engine kind `sglang`");
    refused(&["run", "--engine", "embedded?max_model_len=99999"], "99999");
    refused(&["run", "--engine", "embedded", "--concurrency", "0"], "concurrency");
    refused(&["run", "no-such-plan.toml"], "no-such-plan.toml");
}

#[test]
fn prompt_that_cannot_fit_is_refused_with_its_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let output = run(&[
        &SMALL[..],
        &["--experiment", "concurrent-warm", "--engine", "small:embedded?max_model_len=64"],
        &["--prompt-tokens", "100", "--out", out.to_str().unwrap()],
    ]
    .concat());
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("100") && text.contains("64"), "{text}");
}

#[test]
fn existing_run_directory_is_never_written_into() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    refused(&["run", "--engine", "embedded", "--out", out], "exists already");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn listing_a_run_measures_nothing() {
    let output = run(&["run", "--engine", "embedded", "--list"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 13);
    assert!(text.starts_with("sequential-cold"));
}
