//! Runs that end badly: killed outright, or with no room left to write. What
//! was measured is on disk, and a report can be made of it.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use yardstick::record::{JournalEvent, RunData};

use crate::probe::{self, vllm};
use crate::support::scripted::{Scripted, Step, answer, chunk, head};
use crate::support::{nvml, yardstick};

/// One request after another, more than any test waits for.
fn arguments(url: &str, out: &Path) -> Vec<String> {
    let text = format!(
        "run --experiment sequential-cold --experiment concurrent-warm --concurrency 2 \
         --requests 1000 --max-tokens 8 --warm-up 1 --engine vllm={url} --out {}",
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

/// What can happen to a request, each by the class that it fails with.
fn faults() -> Vec<(&'static str, Vec<Step>)> {
    let stream = |text: &str| vec![Step::Send(head("text/event-stream")), Step::Send(chunk(text))];
    let token =
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" a\"},\"text\":\" a\"}]}\n\n";
    let moved = "HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n";
    vec![
        ("truncated", vec![Step::Reset]),
        ("truncated", stream(token)),
        ("timeout", vec![Step::Hang]),
        ("timeout", [stream(token), vec![Step::Hang]].concat()),
        ("protocol", stream("data: {nonsense\n\n")),
        ("protocol", answer("200 OK", "text/html", "<html>Sign in</html>")),
        ("protocol", vec![Step::Send(moved.into())]),
        ("protocol", vec![Step::Send(b"SSH-2.0-OpenSSH\r\n".to_vec())]),
        ("busy", answer("429 Too Many Requests", "text/plain", "")),
        ("busy", answer("503 Service Unavailable", "text/plain", "loading")),
        ("rejected", answer("500 Internal Server Error", "text/plain", "out of memory")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn run_goes_on_over_every_fault_and_counts_each_by_its_class() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let (asked, generated) = (AtomicU64::new(0), AtomicUsize::new(0));
    let server = Scripted::start(move |request| {
        let honest = probe::serve(request, &asked);
        if !request.path.ends_with("completions") {
            return honest;
        }
        // Every second answer is as it should be, and all of the warm-up's.
        let number = generated.fetch_add(1, Ordering::AcqRel);
        let faults = faults();
        let fault = number.checked_sub(40).filter(|number| number.is_multiple_of(2));
        fault.map_or(honest, |number| faults[number / 2 % faults.len()].1.clone())
    })
    .await;
    let text = format!(
        "run --experiment concurrent-warm --concurrency 4 --requests 90 --max-tokens 8 \
         --engine vllm={}?timeout_s=1 --no-calibration --out {}",
        server.url,
        out.display()
    );
    let mut command = yardstick();
    command.args(text.split_whitespace());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let summary: Value =
        serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!((&summary["complete"], &summary["cases"][0]["n"]), (&true.into(), &90.into()));
    let errors = &summary["cases"][0]["errors"];
    for (class, _) in faults() {
        assert!(errors[class].as_u64().is_some_and(|count| count > 0), "{class} in {errors}");
    }
    assert!(summary["cases"][0]["num_ok"].as_u64().unwrap() >= 45, "{}", summary["cases"][0]);
    let warnings = summary["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|warning| warning["class"] == "failures"), "{warnings:?}");
}

/// The wall clock of the program under test jumps by hours at each look.
const STEPPING_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    static _Atomic unsigned looks;
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, at);
    if (id == CLOCK_REALTIME) at->tv_sec += looks++ % 2 ? -9000 : 9000;
    return result;
}
"#;

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn steps_of_the_wall_clock_are_in_no_latency() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("clock.c"), folder.path().join("clock.so"));
    std::fs::write(&source, STEPPING_CLOCK).unwrap();
    nvml::compile(&source, &library);
    let out = folder.path().join("run");
    let server = vllm().await;
    let text = format!(
        "run --experiment concurrent-warm --concurrency 2 --requests 6 --max-tokens 8 \
         --engine vllm={} --out {}",
        server.url,
        out.display()
    );
    let mut command = yardstick();
    command.args(text.split_whitespace()).env("LD_PRELOAD", &library);
    let begun = Instant::now();
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let took = u64::try_from(begun.elapsed().as_nanos()).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let data = RunData::read(&out).unwrap();
    assert!(data.requests.iter().all(|request| request.outcome.is_ok()));
    for request in &data.requests {
        let sent = request.sent_at_ns.unwrap();
        assert!(sent >= request.intended_at_ns && sent.as_nanos() < took, "{request:?}");
        assert!(request.done_ns < took, "{request:?}");
        assert!(request.events.is_sorted_by_key(|event| event.0), "{request:?}");
    }
    assert!(data.journal.iter().all(|entry| entry.at_ns.as_nanos() < took));
    assert!(data.journal.iter().any(|entry| entry.event == JournalEvent::RunFinished));
}
