//! What a user sees of a CUDA device.

use serde_json::Value;
use yardstick::infer::device::is_emulated;

use super::*;
use crate::support::yardstick;

fn json(args: &[&str]) -> Value {
    let output = yardstick().args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn doctor_names_the_device() {
    let Some(name) = device() else { return };
    let report = json(&["doctor", "--json"]);
    assert_eq!(report["cuda"]["available"], true);
    assert!(report["cuda"]["devices"][0].as_str().unwrap().contains(&name));
}

#[test]
fn a_real_model_answers_as_it_does_on_the_cpu() {
    let Some(name) = device() else { return };
    let answer = |device| {
        json(&[
            "generate",
            "--prompt",
            "The capital of France is",
            "--max-tokens",
            "4",
            "--json",
            "--dtype",
            "f32",
            "--max-model-len",
            "128",
            "--max-num-seqs",
            "1",
            "--kv-blocks",
            "16",
            "--device",
            device,
        ])
    };
    let (cpu, cuda) = (answer("cpu"), answer("cuda"));
    assert_eq!(cuda["tokens"], cpu["tokens"]);
    assert_eq!((cuda["gpu"].as_str(), &cpu["gpu"]), (Some(&*name), &Value::Null));
    let has_times = !cuda["timings"]["ttft_ms"].is_null();
    assert_eq!(has_times, !is_emulated(&name), "an emulated device has no times");
}

#[test]
fn a_device_that_is_not_there_is_refused_by_number() {
    if device().is_none() {
        return;
    }
    let args = ["generate", "--prompt", "x", "--device", "cuda:99"];
    let output = yardstick().args(args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("no device 99"), "{error}");
}
