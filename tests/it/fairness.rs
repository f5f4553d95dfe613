//! Whether engines did the same work, through the binary: servers that answer
//! shorter, cut prompts, have seen them before or fail now and then.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Runtime;
use yardstick::engine::Prompt;
use yardstick::plan::Plan;
use yardstick::workload::Workload;

use crate::support::scripted::{END, Received, Scripted, Step, answer, chunk, head, json};
use crate::support::yardstick;

/// What a server says of a request, and how many tokens it answers with.
#[derive(Clone, Copy)]
struct Reply {
    prompt_tokens: u64,
    cached_tokens: u64,
    num_tokens: u64,
}

/// Tokens of a prompt that was sent as ids; a chat counts as 40.
fn prompt_tokens(request: &Received) -> u64 {
    request.json()["prompt"].as_array().map_or(40, |ids| ids.len() as u64)
}

fn full(request: &Received) -> Reply {
    Reply { prompt_tokens: prompt_tokens(request), cached_tokens: 0, num_tokens: 8 }
}

/// Two servers, one after the other in the report.
struct Pair {
    runtime: Runtime,
    urls: [String; 2],
    _servers: [Scripted; 2],
}

type Answering = dyn Fn(&Received) -> Option<Reply> + Send + Sync;

impl Pair {
    fn start(second: impl Fn(&Received) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let serve = |reply: Box<Answering>| {
            runtime.block_on(Scripted::start(move |request| match request.path.as_str() {
                "/v1/models" => json("{\"data\":[{\"id\":\"m\",\"owned_by\":\"vllm\"}]}"),
                "/v1/chat/completions" | "/v1/completions" => {
                    let chat = request.path.contains("chat");
                    reply(request).map_or_else(
                        || answer("500 Internal Server Error", "text/plain", "out of luck"),
                        |reply| stream(reply, chat),
                    )
                }
                _ => answer("404 Not Found", "text/plain", "404 page not found"),
            }))
        };
        let servers = [serve(Box::new(|request| Some(full(request)))), serve(Box::new(second))];
        let urls = [servers[0].url.clone(), servers[1].url.clone()];
        Self { runtime, urls, _servers: servers }
    }

    /// Runs one experiment over both; the summary and the terminal's report.
    fn run(&self, out: &Path, arguments: &[&str]) -> (Value, String) {
        let _guard = self.runtime.enter();
        let [first, second] = &self.urls;
        let output = yardstick()
            .args(["run", "--seed", "7", "--no-calibration", "--no-probe", "--max-tokens", "8"])
            .args(["--experiment", "concurrent-warm", "--concurrency", "4"])
            .args(["--engine", &format!("a:vllm={first}"), "--engine", &format!("b:vllm={second}")])
            .arg("--out")
            .arg(out)
            .args(arguments)
            .output()
            .unwrap();
        let summary = std::fs::read(out.join("summary.json"));
        let summary = summary.unwrap_or_else(|_| panic!("{output:?}"));
        let text = String::from_utf8(output.stdout).unwrap();
        (serde_json::from_slice(&summary).unwrap(), text)
    }
}

/// Tokens 5 ms apart, each a chunk, then the usage.
fn stream(reply: Reply, chat: bool) -> Vec<Step> {
    let Reply { prompt_tokens, cached_tokens, num_tokens } = reply;
    let choice = |text: &str| {
        if chat {
            format!("\"delta\":{{\"content\":\"{text}\"}}")
        } else {
            format!("\"text\":\"{text}\"")
        }
    };
    let token = format!("data: {{\"choices\":[{{\"index\":0,{}}}]}}\n\n", choice(" word"));
    let mut steps =
        vec![Step::Wait(Duration::from_millis(20)), Step::Send(head("text/event-stream"))];
    for _ in 0..num_tokens {
        steps.push(Step::Send(chunk(&token)));
        steps.push(Step::Wait(Duration::from_millis(5)));
    }
    let finish = if num_tokens < 8 { "stop" } else { "length" };
    let last = format!(
        "data: {{\"choices\":[{{\"index\":0,{},\"finish_reason\":\"{finish}\"}}]}}\n\n\
         data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":{prompt_tokens},\
         \"completion_tokens\":{num_tokens},\
         \"prompt_tokens_details\":{{\"cached_tokens\":{cached_tokens}}}}}}}\n\n\
         data: [DONE]\n\n",
        choice(""),
    );
    steps.push(Step::Send(chunk(&last)));
    steps.push(Step::Send(END.to_vec()));
    steps
}

fn classes(case: &Value) -> Vec<&str> {
    let invalid = case["invalid"].as_array();
    invalid.into_iter().flatten().map(|invalid| invalid["class"].as_str().unwrap()).collect()
}

fn of<'a>(cases: &'a Value, engine: &str) -> &'a Value {
    cases.as_array().unwrap().iter().find(|case| case["engine"] == engine).unwrap()
}

#[test]
fn answers_that_end_early_are_compared_over_the_common_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let pair = Pair::start(|request| Some(Reply { num_tokens: 5, ..full(request) }));
    let (summary, text) = pair.run(&folder.path().join("run"), &[]);
    for engine in ["a", "b"] {
        assert!(classes(of(&summary["cases"], engine)).is_empty(), "{summary}");
        let window = of(&summary["common_window"], engine);
        assert_eq!((&window["n"], &window["mean_output_tokens"]), (&4.into(), &5.0.into()));
        let (cut, whole) = (&window["e2el_ms"]["p50"], of(&summary["cases"], engine));
        assert!(cut.as_f64() < whole["e2el_ms"]["p50"].as_f64(), "{window}");
    }
    assert!(text.contains("output of the common beginnings"), "{text}");
    assert!(text.contains("not the same for every engine: output tokens"), "{text}");
}

#[test]
fn answers_of_a_few_tokens_are_shown_and_not_compared() {
    let folder = tempfile::tempdir().unwrap();
    let pair = Pair::start(|request| Some(Reply { num_tokens: 1, ..full(request) }));
    let (summary, text) = pair.run(&folder.path().join("run"), &[]);
    assert_eq!(classes(of(&summary["cases"], "b")), ["short_outputs"]);
    assert!(classes(of(&summary["cases"], "a")).is_empty());
    assert!(text.contains("✗ b") && text.contains("not compared"), "{text}");
    assert!(!text.contains("→ TTFT"), "one engine is left, and nothing to rank:\n{text}");
}

#[test]
fn prompt_that_an_engine_cuts_is_no_measurement_of_it() {
    let folder = tempfile::tempdir().unwrap();
    // As Ollama cuts: to half of its context and two.
    let pair = Pair::start(|request| Some(Reply { prompt_tokens: 34, ..full(request) }));
    let (summary, text) = pair.run(&folder.path().join("run"), &["--prompt-tokens", "64"]);
    let cut = of(&summary["cases"], "b");
    assert_eq!(classes(cut), ["context_truncated"]);
    let reason = cut["invalid"][0]["reason"].as_str().unwrap();
    assert_eq!(reason, "4 of 4 prompts were cut, one of 64 tokens to 34");
    assert!(classes(of(&summary["cases"], "a")).is_empty(), "{text}");
    let warned = summary["warnings"].as_array().unwrap();
    assert!(warned.iter().any(|w| w["class"] == "invalid_cases" && w["engine"] == "b"), "{text}");
}

#[test]
fn prompts_that_a_cache_has_seen_are_no_measurement_of_ttft() {
    let folder = tempfile::tempdir().unwrap();
    let pair = Pair::start(|request| Some(Reply { cached_tokens: 48, ..full(request) }));
    let (summary, _) = pair.run(&folder.path().join("run"), &["--prompt-tokens", "64"]);
    assert_eq!(classes(of(&summary["cases"], "b")), ["prefix_cache_hit"]);
    assert_eq!(of(&summary["contract"], "b")["cached_share"], 0.75);
}

#[test]
fn round_with_failures_is_never_averaged_in() {
    let folder = tempfile::tempdir().unwrap();
    // The third request of the second round, by the seed that the run is given.
    let workload = Workload::new(&Plan::default(), 7, None);
    let Prompt::Chat(unlucky) = workload.request(1, 2).unwrap().prompt else {
        panic!("a question")
    };
    let pair = Pair::start(move |request| {
        let asked =
            request.json()["messages"].as_array().unwrap().last().unwrap()["content"].clone();
        (asked != unlucky).then(|| full(request))
    });
    let arguments = ["--rounds", "3", "--requests", "4"];
    let (summary, text) = pair.run(&folder.path().join("run"), &arguments);
    let rounds: Vec<&Value> =
        summary["cases"].as_array().unwrap().iter().filter(|case| case["engine"] == "b").collect();
    let invalid: Vec<_> = rounds.iter().map(|case| classes(case)).collect();
    assert_eq!(invalid, [vec![], vec!["failures"], vec![]], "{text}");
    let together = of(&summary["over_rounds"], "b");
    assert_eq!((&together["num_rounds"], &together["num_ok"]), (&2.into(), &8.into()), "{text}");
    assert_eq!(of(&summary["over_rounds"], "a")["num_ok"], 12);
    assert!(text.contains("4 requests, C = 4, 3 rounds"), "{text}");
}
