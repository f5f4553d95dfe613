//! Resources through the binary: `/proc` of a real process, a stand-in for
//! NVML that the program loads as it would the driver's, an engine's pages
//! over real sockets. Linux only, as the probe is.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use yardstick::record::{JournalEvent, ResourceSource, RunData};

use crate::support::scripted::{END, Received, Scripted, Step, answer, chunk, head, json};
use crate::support::{nvml, yardstick};

/// Tokens of every answer, and the pause before each.
const TOKENS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(40);

/// A vLLM that answers slowly and counts on its `/metrics`: at each question
/// 100 more prompt tokens were looked up and 40 found.
pub async fn vllm() -> Scripted {
    let asked = AtomicU64::new(0);
    Scripted::start(move |request| serve(request, &asked)).await
}

/// What that server answers; `asked` counts its `/metrics`.
pub fn serve(request: &Received, asked: &AtomicU64) -> Vec<Step> {
    match request.path.as_str() {
        "/health" => json("{}"),
        "/version" => json("{\"version\":\"0.32.0\"}"),
        "/v1/models" => json(
            "{\"object\":\"list\",\"data\":[{\"id\":\"smollm2-135m-instruct\",\"owned_by\":\"vllm\",\
             \"max_model_len\":2048}]}",
        ),
        "/metrics" => {
            let asked = asked.fetch_add(1, Ordering::AcqRel);
            answer("200 OK", "text/plain", &page(asked))
        }
        "/v1/chat/completions" | "/v1/completions" => tokens(),
        _ => answer("404 Not Found", "text/plain", "no such page"),
    }
}

fn page(asked: u64) -> String {
    format!(
        "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{{engine=\"0\"}} 0.5\n\
         vllm:num_requests_running{{engine=\"0\"}} 2.0\nvllm:num_requests_waiting{{engine=\"0\"}} 3.0\n\
         vllm:num_preemptions_total{{engine=\"0\"}} {asked}.0\n\
         vllm:prefix_cache_queries_total{{engine=\"0\"}} {}.0\n\
         vllm:prefix_cache_hits_total{{engine=\"0\"}} {}.0\n\
         vllm:cache_config_info{{block_size=\"16\",kv_cache_memory_bytes=\"1048576000\",\
         num_gpu_blocks=\"1000\"}} 1.0\n",
        asked * 100,
        asked * 40
    )
}

fn tokens() -> Vec<Step> {
    let mut steps = vec![Step::Send(head("text/event-stream"))];
    for _ in 0..TOKENS {
        let text = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" a\"},\"text\":\" a\",\
                    \"finish_reason\":null}]}\n\n";
        steps.extend([Step::Wait(PAUSE), Step::Send(chunk(text))]);
    }
    let tail = format!(
        "data: {{\"choices\":[{{\"index\":0,\"delta\":{{}},\"text\":\"\",\"finish_reason\":\"length\"}}]}}\n\n\
         data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":20,\"completion_tokens\":{TOKENS},\
         \"total_tokens\":28}}}}\n\ndata: [DONE]\n\n"
    );
    steps.extend([Step::Send(chunk(&tail)), Step::Send(END.to_vec())]);
    steps
}

/// Measures `server` with two requests at once, three waves of them.
async fn measure(server: &Scripted, out: &Path, libraries: Option<&Path>, more: &[&str]) -> Output {
    let mut command = yardstick();
    command
        .args(["run", "--experiment", "concurrent-warm", "--concurrency", "2", "--requests", "6"])
        .args(["--max-tokens", &TOKENS.to_string(), "--engine", &format!("vllm={}", server.url)])
        .args(["--out", out.to_str().unwrap()])
        .args(more)
        .env("FAKE_NVML_PID", std::process::id().to_string())
        .env("FAKE_NVML_LOST_AFTER", "20");
    if let Some(folder) = libraries {
        nvml::preload(&mut command, folder);
    }
    output(command).await
}

/// Runs a command while the servers of this runtime go on.
async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn summary(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn run_tells_what_its_engine_used_and_goes_on_without_a_lost_gpu() {
    let folder = tempfile::tempdir().unwrap();
    nvml::build(folder.path());
    let server = vllm().await;
    let out = folder.path().join("run");
    let output = measure(&server, &out, Some(folder.path()), &["--probe-hz", "50"]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let data = RunData::read(&out).unwrap();
    looked_at_both_gpus(&data);
    absences_are_told_once(&data);
    let summary = summary(&out);
    let resources = &summary["resources"];
    assert_eq!(resources["asked_hz"], 50.0);
    assert!(resources["achieved_hz"].as_f64().unwrap() > 5.0, "{resources}");
    assert!(resources["probe_cpu_share"].as_f64().unwrap() > 0.0);
    let names: Vec<_> = resources["gpus"].as_array().unwrap().iter().map(|g| &g["name"]).collect();
    assert_eq!(names, ["Imaginary A", "Imaginary B"]);
    case_is_derived(&resources["cases"][0]);
    parts_name_their_sources(&resources["memory"][0]);
    let warned = |class: &str| {
        let warnings = summary["warnings"].as_array().unwrap();
        let found = warnings.iter().find(|warning| warning["class"] == class);
        found.unwrap_or_else(|| panic!("no {class} in {warnings:?}"))["message"].to_string()
    };
    assert!(warned("throttled").contains("sw_power_cap in 100 % of the looks"));
    assert!(warned("prefix_cache_hit").contains("by its own metrics"));
    let text = String::from_utf8(output.stdout).unwrap();
    for words in ["memory and processor", "GPU 1 could not be read", "50.0 asked for"] {
        assert!(text.contains(words), "{words} is not in:\n{text}");
    }
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for lane in ["GPU memory, up to 10", "GPU busy, up to", "processors, up to", "memory (RSS)"] {
        assert!(page.contains(lane), "{lane}");
    }
}

fn looked_at_both_gpus(data: &RunData) {
    let looks: Vec<_> = data.resources.iter().filter(|record| record.word.is_none()).collect();
    let num_gpus: Vec<_> = looks.iter().map(|look| look.gpus.len()).collect();
    assert_eq!((num_gpus.first(), num_gpus.last()), (Some(&2), Some(&1)), "{num_gpus:?}");
    let first = |gpu: usize| &looks[0].gpus[gpu];
    assert!(first(0).energy_mj.is_some() && first(1).energy_mj.is_none());
    assert_eq!(first(0).throttle.as_deref(), Some(&["sw_power_cap".to_owned()][..]));
    let used: std::collections::BTreeSet<_> =
        looks.iter().filter_map(|look| look.gpus[0].used_bytes).collect();
    assert!(used.len() > 4, "the numbers changed: {used:?}");
    // The listener on the engine's port is this process, and the process table names it.
    let seen = looks.last().unwrap();
    let engine = seen.processes.iter().find(|process| process.engine == Some(0)).unwrap();
    assert_eq!(engine.pid, std::process::id());
    assert_eq!(seen.gpus[0].processes[0].engine, Some(0));
    let own = seen.processes.iter().find(|process| process.engine.is_none()).unwrap();
    assert!(own.pid != engine.pid && own.rss_bytes > 1 << 20);
}

fn absences_are_told_once(data: &RunData) {
    let told: Vec<_> = data
        .journal
        .iter()
        .filter_map(|entry| match &entry.event {
            JournalEvent::ResourceAbsent { source: ResourceSource::Nvml, what, reason, .. } => {
                Some((what.as_str(), reason.as_str()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], ("energy of GPU 1", "the GPU does not support it"));
    assert!(told[1].0 == "GPU 1" && told[1].1.contains("lost"), "{told:?}");
}

fn case_is_derived(case: &Value) {
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{case}"));
    assert_eq!(case["gpus_by"], "process");
    let mib = f64::from(1 << 20);
    let peak = number(&case["gpu_bytes"]["peak"]) / mib;
    assert!((1000.0..=1015.0).contains(&peak), "{peak}");
    assert!((40.0..60.0).contains(&number(&case["gpu_utilization_percent"])));
    assert!((200.0..210.0).contains(&number(&case["power_w"])));
    let joules = number(&case["energy_j"]);
    // 10 J between two looks, of which some fell into the case.
    assert!(joules > 20.0, "{joules}");
    let per_token = number(&case["energy_per_output_token_j"]);
    assert!((per_token - joules / f64::from(6 * TOKENS)).abs() < 1e-6);
    assert_eq!(case["kv_usage"]["peak"], 0.5);
    assert_eq!((&case["peak_running"], &case["peak_waiting"]), (&2.into(), &3.into()));
    let queries = case["prefix_queries"].as_u64().unwrap();
    assert!(queries >= 100 && queries.is_multiple_of(100));
    assert_eq!(case["prefix_hits"].as_u64().unwrap(), queries / 100 * 40);
    assert!(number(&case["rss_bytes"]["peak"]) > mib);
}

fn parts_name_their_sources(split: &Value) {
    assert_eq!(split["on_gpu"], true);
    assert_eq!(split["kv_reserved"]["bytes"], 1_048_576_000);
    assert_eq!(split["kv_used_peak"]["bytes"], 524_288_000);
    assert_eq!(split["weights"]["source"], "vLLM says it in its log only");
    assert!(split["weights"]["bytes"].is_null());
    // 1500 MiB in use on the GPU, 1000 of them by the engine.
    assert_eq!(split["baseline"]["bytes"], 500 << 20);
    assert_eq!(split["peak"]["source"], "NVML, by process");
}

#[cfg(target_os = "linux")]
#[test]
fn doctor_shows_the_gpus_that_nvml_lists() {
    let folder = tempfile::tempdir().unwrap();
    nvml::build(folder.path());
    let mut command = yardstick();
    command.arg("doctor");
    nvml::preload(&mut command, folder.path());
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    for words in ["Imaginary A (24.0 GiB)", "Imaginary B (24.0 GiB)", "570.86.15"] {
        assert!(text.contains(words), "{words} is not in:\n{text}");
    }
    // One that is lost does not hide the other.
    command.env("FAKE_NVML_LOST_AFTER", "0");
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(text.contains("Imaginary A") && text.contains("GPU 1 does not answer"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_without_a_probe_has_no_resources_and_says_nothing_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let server = vllm().await;
    let out = folder.path().join("run");
    let output = measure(&server, &out, None, &["--no-probe"]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!out.join("resources.jsonl").exists());
    assert!(summary(&out)["resources"].is_null());
    assert!(!String::from_utf8(output.stdout).unwrap().contains("what was used"));
    let asked = server.received().iter().filter(|request| request.path == "/metrics").count();
    assert_eq!(asked, 1, "only its identity was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_that_hides_its_metrics_is_measured_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let asked = AtomicU64::new(0);
    let server = Scripted::start(move |request| match request.path.as_str() {
        // The first is for its identity.
        "/metrics" if asked.load(Ordering::Acquire) > 0 => vec![Step::Hang],
        _ => serve(request, &asked),
    })
    .await;
    let out = folder.path().join("run");
    let output = measure(&server, &out, None, &[]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let summary = summary(&out);
    assert_eq!(summary["cases"][0]["num_ok"], 6);
    assert!(summary["resources"]["cases"][0]["kv_usage"].is_null());
    let unread = summary["resources"]["unread"].to_string();
    assert!(unread.contains("it did not say within 1s"), "{unread}");
}
