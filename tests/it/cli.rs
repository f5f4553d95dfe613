//! Help pages, errors and exit codes of the binary.

use std::io::Read;
use std::process::{Output, Stdio};

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
