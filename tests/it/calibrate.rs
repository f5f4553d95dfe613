//! Yardstick measured by itself, through the binary: what it reports of answers
//! that clients misread, and what a run says of its own error.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use yardstick::record::{JournalEvent, RunData};

use crate::support::served::Served;
use crate::support::yardstick;

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("stdout is no JSON ({error}): {}", String::from_utf8_lossy(&output.stderr))
    })
}

/// Fails where the two are further apart than a busy machine makes them.
#[track_caller]
fn about(value: &Value, expected: f64) {
    let value = value.as_f64().unwrap();
    assert!((value - expected).abs() < expected * 0.5, "{value} for {expected}");
}

#[test]
fn every_scenario_is_reported_as_it_was() {
    // Other parameters than the usual ones, and a machine that may be busy.
    let output = yardstick()
        .args(["calibrate", "--json", "--tolerance", "50", "--streams", "3", "--requests", "3"])
        .args(["--ttft-ms", "30", "--gap-ms", "7", "--tokens", "18", "--tokens-per-chunk", "3"])
        .args(["--stall-at", "6", "--stall-ms", "400"])
        .output()
        .unwrap();
    let readings = json(&output);
    let readings = readings.as_array().unwrap();
    let names: Vec<_> = readings.iter().map(|reading| reading["scenario"].as_str()).collect();
    assert_eq!(names.len(), 8);
    for reading in readings {
        assert_eq!(reading["misreported"], serde_json::json!([]), "{reading}");
        assert_eq!(reading["client_error"]["num_events_lost"], 0);
        assert_eq!(reading["output_tokens"]["truth"], 18.0);
        assert!(reading["client_error"]["cpu_us_per_token_event"].as_f64().unwrap() > 0.0);
    }
    assert!(output.status.success());
    let of = |name: &str| readings.iter().find(|reading| reading["scenario"] == name).unwrap();
    about(&of("early-role")["ttft_ms"]["reported"], 300.0);
    about(&of("steady")["ttft_ms"]["reported"], 30.0);
    // A gap of three tokens, and the pause.
    about(&of("stall")["longest_gap_ms"]["reported"], 421.0);
    assert_eq!(of("reasoning")["reasoning_events"]["reported"], 3.0);
    assert_eq!(of("no-usage")["output_tokens"]["reported"], Value::Null);
    assert_eq!(of("merged")["token_events"]["reported"], 6.0);
}

#[test]
fn run_measures_its_own_client_before_and_after() {
    let folder = tempfile::tempdir().unwrap();
    let truth = folder.path().join("truth.jsonl");
    let served = Served::start(&["--tokens", "8", "--truth", truth.to_str().unwrap()]);
    let out = folder.path().join("run");
    let run = |more: &[&str], out: &Path| {
        let output = yardstick()
            .args(["run", "--engine", &format!("openai={}", served.url), "--json", "--out"])
            .arg(out)
            .args(["--experiment", "concurrent-warm", "--concurrency", "4", "--max-tokens", "8"])
            .args(["--warm-up", "1"])
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        json(&output)
    };
    let summary = run(&[], &out);
    let measured = summary["client_error"]["measured"].as_array().unwrap();
    let parts: Vec<_> = measured.iter().map(|part| part["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["before", "after"]);
    for part in measured {
        assert_eq!((&part["concurrency"], &part["num_failed"]), (&4.into(), &0.into()));
        assert_eq!(part["num_events_lost"], 0);
        // Sixteen tokens an answer; the error of a socket and a wake-up is not nothing.
        assert_eq!(part["num_token_events"], 16 * part["n"].as_u64().unwrap());
        assert!(part["ttft_error_ms"]["p50"].as_f64().unwrap() > 0.0, "{part}");
        assert!(part["send_spread_us"].as_f64().unwrap() > 0.0);
    }
    let data = RunData::read(&out).unwrap();
    assert!(data.calibration.iter().all(|record| record.truth.is_some()));
    let case_started = |event: &JournalEvent| matches!(event, JournalEvent::CaseStarted { .. });
    let calibrated = |event: &JournalEvent| matches!(event, JournalEvent::Calibrated { .. });
    let order: Vec<bool> = data
        .journal
        .iter()
        .filter(|entry| case_started(&entry.event) || calibrated(&entry.event))
        .map(|entry| calibrated(&entry.event))
        .collect();
    assert_eq!(order, [true, false, true]);
    let report = yardstick().arg("report").arg(&out).output().unwrap();
    assert!(String::from_utf8_lossy(&report.stdout).contains("own error TTFT"));

    let without = run(&["--no-calibration"], &folder.path().join("without"));
    let absent = &without["client_error"]["absent"];
    assert_eq!(absent["before"], "--no-calibration was given");
    assert_eq!(without["client_error"]["measured"], serde_json::json!([]));
    served.stop();
    // One alone, four to warm up, four measured; twice.
    let truths = std::fs::read_to_string(&truth).unwrap();
    assert_eq!(truths.lines().count(), 2 * 9);
    assert!(truths.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
}

#[test]
fn what_cannot_be_served_is_an_error_with_its_reason() {
    let served = Served::start(&[]);
    let port = served.url.rsplit(':').next().unwrap().to_owned();
    let output = yardstick().args(["calibrate", "--serve", "--port", &port]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("scripted server") && text.contains("in use"), "{text}");
    let output = yardstick().args(["calibrate", "--scenario", "slow"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("early-role"));
}
