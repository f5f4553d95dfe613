//! Runs that end badly: killed outright, or with no room left to write. What
//! was measured is on disk, and a report can be made of it.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use yardstick::record::RunData;

use crate::probe::vllm;
use crate::support::yardstick;

/// One request after another, more than any test waits for.
fn arguments(url: &str, out: &Path) -> Vec<String> {
    let text = format!(
        "run --experiment sequential-cold --experiment concurrent-warm --concurrency 2 \
         --requests 1000 --max-tokens 8 --engine vllm={url} --out {}",
        out.display()
    );
    text.split_whitespace().map(str::to_owned).collect()
}

fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

/// The report of a run that did not end, which must say so and have numbers.
fn report_of(out: &Path) -> Value {
    let report = yardstick().args(["report", out.to_str().unwrap(), "--format", "json"]).output();
    let report = report.unwrap();
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    let summary: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(summary["complete"], false);
    let html = yardstick().args(["report", out.to_str().unwrap(), "--format", "html"]).output();
    assert!(String::from_utf8(html.unwrap().stdout).unwrap().contains("incomplete"));
    summary
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_in_the_middle_loses_nothing_that_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let server = vllm().await;
    let mut child = yardstick()
        .args(arguments(&server.url, &out))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..1200 {
        if lines(&out.join("requests.jsonl")) >= 6 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // SIGKILL: nothing of the program runs any more.
    child.kill().unwrap();
    child.wait().unwrap();
    let data = RunData::read(&out).unwrap();
    let measured = data.requests.iter().filter(|request| !request.warmup).count() as u64;
    assert!(measured >= 3, "{measured}");
    assert!(!data.resources.is_empty());
    let summary = report_of(&out);
    assert_eq!(summary["cases"][0]["n"], measured, "every line that was written counts");
    assert!(
        !summary["resources"]["cases"][0]["rss_bytes"].is_null() || cfg!(not(target_os = "linux"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn run_that_finds_no_room_ends_with_its_reason_and_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let server = vllm().await;
    // Files of at most 16 KiB: the system refuses the write that would pass it, as on a full disk.
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; ulimit -f 32; exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_yardstick"))
        .args(arguments(&server.url, &out))
        // Its file would be the first to be full, before anything was measured.
        .arg("--no-calibration");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: cannot write") && text.contains(".jsonl"), "{text}");
    assert!(text.contains("hint: free some space; what was measured before is in"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    assert!(report_of(&out)["cases"][0]["num_ok"].as_u64().unwrap() >= 1);
}
