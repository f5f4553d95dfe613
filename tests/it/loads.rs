//! Loads through the binary, against servers whose behaviour is known.

use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::Runtime;
use yardstick::record::RunData;

use crate::support::scripted::{END, Received, Scripted, Step, answer, chunk, head, json};
use crate::support::yardstick;

/// A server on threads of its own, which answers each request after the pause
/// that `pause` says.
pub struct Served {
    runtime: Runtime,
    server: Scripted,
}

impl Served {
    fn start(pause: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self::start_decoding(Duration::ZERO, pause)
    }

    /// The same with a time between the first token and the second.
    pub fn start_decoding(
        between: Duration,
        pause: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let answered = move |around| tokens(pause(), between, around);
        let script = move |request: &Received| match request.path.as_str() {
            "/v1/models" => json("{\"data\":[{\"id\":\"m\"}]}"),
            "/v1/chat/completions" => answered(["\"delta\":{\"content\":\"", "\"}"]),
            "/v1/completions" => answered(["\"text\":\"", "\""]),
            _ => answer("404 Not Found", "text/plain", "404 page not found"),
        };
        let server = runtime.block_on(Scripted::start(script));
        Self { runtime, server }
    }

    /// Runs a load against it; the summary and the run directory.
    pub fn run(&self, out: &Path, arguments: &[&str]) -> (Value, RunData) {
        let output = self.output(out, arguments);
        let text = stderr(&output);
        assert!(output.status.success(), "{text}");
        (serde_json::from_slice(&output.stdout).unwrap(), RunData::read(out).unwrap())
    }

    /// The same for a run that may fail.
    pub fn output(&self, out: &Path, arguments: &[&str]) -> Output {
        let engine = format!("openai={}", self.server.url);
        yardstick()
            .args(["run", "--engine", &engine, "--seed", "7", "--json", "--out"])
            .arg(out)
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Bodies of all requests, in order of arrival.
    pub fn bodies(&self) -> Vec<Value> {
        let _guard = self.runtime.enter();
        let received = self.server.received();
        received.iter().filter(|r| r.method == "POST").map(Received::json).collect()
    }
}

/// Two tokens, each in a field that `around` encloses.
fn tokens(pause: Duration, between: Duration, around: [&str; 2]) -> Vec<Step> {
    let first = format!("data: {{\"choices\":[{{{}}}]}}\n\n", around.join("one"));
    let last = format!(
        "data: {{\"choices\":[{{{},\"finish_reason\":\"length\"}}],\
         \"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":2}}}}\n\ndata: [DONE]\n\n",
        around.join(" two")
    );
    let send = |text: &str| Step::Send(chunk(text));
    let head = Step::Send(head("text/event-stream"));
    let mut steps =
        vec![Step::Wait(pause), head, send(&first), send(&last), Step::Send(END.to_vec())];
    if !between.is_zero() {
        steps.insert(3, Step::Wait(between));
    }
    steps
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A server that stands still for a second, from 0.8 s after it was first asked.
fn stalling() -> impl Fn() -> Duration + Send + Sync + 'static {
    let began: Mutex<Option<Instant>> = Mutex::new(None);
    move || {
        let began = *began.lock().unwrap().get_or_insert_with(Instant::now);
        let since = began.elapsed();
        let (from, to) = (Duration::from_millis(800), Duration::from_millis(1_800));
        if since >= from { to.saturating_sub(since) } else { Duration::ZERO }
    }
}

/// A server that answers one at a time, each in 50 ms: twenty a second.
fn one_at_a_time() -> impl Fn() -> Duration + Send + Sync + 'static {
    let free: Mutex<Option<Instant>> = Mutex::new(None);
    move || {
        let mut free = free.lock().unwrap();
        let now = Instant::now();
        let done = free.map_or(now, |free| free.max(now)) + Duration::from_millis(50);
        *free = Some(done);
        done - now
    }
}

#[test]
fn stall_that_a_closed_loop_hides_is_what_an_open_loop_shows() {
    let folder = tempfile::tempdir().unwrap();
    let (closed, _) = Served::start(stalling()).run(
        &folder.path().join("closed"),
        &["--experiment", "concurrent-warm", "--concurrency", "1", "--requests", "60"],
    );
    let open = Served::start(stalling());
    let load = ["--rate", "30", "--arrival", "constant", "--duration", "2s"];
    let (open, data) = open.run(&folder.path().join("open"), &load);
    let (closed, open) = (&closed["cases"][0], &open["cases"][0]);
    assert_eq!(closed["n"], 60);
    // Nothing was left out while the server stood still.
    assert_eq!((&open["n"], &open["num_ok"]), (&Value::from(60), &Value::from(60)));
    assert!(data.requests.iter().filter(|r| !r.warmup).all(|r| !r.held));
    // The same stall: one slow request of a loop that waits, many of one that does not.
    let slow = |case: &Value, field: &str| case[field]["p90"].as_f64().unwrap();
    assert!(slow(open, "e2el_from_intended_ms") > 400.0, "{open}");
    assert!(slow(closed, "e2el_ms") < slow(open, "e2el_from_intended_ms") / 2.0, "{closed} {open}");
    assert_eq!(closed["open_loop"], Value::Null);
}

#[test]
fn requests_that_wait_here_are_recorded_and_their_wait_is_in_the_latency_from_the_intended_instant()
{
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(one_at_a_time());
    let (summary, data) = served.run(
        &folder.path().join("run"),
        &["--rate", "100", "--arrival", "constant", "--requests", "40", "--max-in-flight", "2"],
    );
    let case = &summary["cases"][0];
    assert_eq!((&case["n"], &case["num_ok"]), (&Value::from(40), &Value::from(40)));
    let held = data.requests.iter().filter(|request| request.held).count() as u64;
    assert!(held >= 30, "{held}");
    assert_eq!(case["open_loop"]["num_held"], held);
    assert_eq!(case["open_loop"]["sustained"], false);
    let p50 = |field: &str| case[field]["p50"].as_f64().unwrap();
    // From the send everything looks well.
    assert!(p50("e2el_ms") < 300.0, "{case}");
    assert!(p50("e2el_from_intended_ms") > 500.0 && p50("client_delay_ms") > 400.0, "{case}");
}

#[test]
fn sweep_finds_the_rate_that_a_server_keeps_up_with() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let served = Served::start(one_at_a_time());
    let (summary, _) = served.run(
        &out,
        &[
            &["--sweep-rates", "5,10,60", "--arrival", "constant"][..],
            &["--requests", "30", "--slo", "ttft_p90<2s"],
        ]
        .concat(),
    );
    let sweep = &summary["capacity"][0];
    assert_eq!(sweep["capacity_per_s"], 10.0, "{sweep}");
    assert_eq!(sweep["exceeded_at_per_s"], 60.0, "{sweep}");
    assert_eq!(summary["cases"][0]["experiment"], "constant-sweep@5");
    assert!(summary["cases"][0]["goodput"]["met"].as_bool().unwrap());
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("id=\"capacity\"") && page.contains("Achieved over rate"));
    let output = yardstick().arg("report").arg(&out).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("sustains 10 a second, not 60"), "{text}");
}

#[test]
fn conversation_resends_its_history_after_each_answer() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(|| Duration::from_millis(20));
    let (summary, data) = served.run(
        &folder.path().join("run"),
        &["--rate", "20", "--requests", "3", "--turns", "3", "--prompt-lengths", "9"],
    );
    assert_eq!(summary["cases"][0]["n"], 9);
    let measured: Vec<_> = data.requests.iter().filter(|request| !request.warmup).collect();
    let mut turns: Vec<_> = measured.iter().map(|r| (r.index, r.turn.unwrap())).collect();
    turns.sort_unstable();
    assert_eq!(turns, (0..9).map(|i| (i, i % 3)).collect::<Vec<_>>());
    for request in &measured {
        let Some(before) = measured.iter().find(|r| r.index + 1 == request.index) else { continue };
        let ended = before.sent_at_ns.unwrap().as_nanos() + before.done_ns;
        if request.turn > Some(0) {
            assert!(request.intended_at_ns.as_nanos() >= ended);
        }
    }
    let last = served
        .bodies()
        .into_iter()
        .find(|body| body["messages"].as_array().is_some_and(|messages| messages.len() == 5));
    let messages = last.unwrap()["messages"].clone();
    assert_eq!(messages[1], serde_json::json!({"role": "assistant", "content": "one two"}));
    assert_ne!(messages[0]["content"], messages[2]["content"]);
}

#[test]
fn trace_is_replayed_at_its_instants_with_its_shared_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.jsonl");
    let line = |at: u32, blocks: &str| {
        format!(
            "{{\"timestamp\": {at}, \"input_length\": 600, \"output_length\": 2, \
             \"hash_ids\": {blocks}}}\n"
        )
    };
    std::fs::write(
        &trace,
        [line(500, "[1, 2]"), line(1_500, "[1, 3]"), line(900, "[4, 5]")].concat(),
    )
    .unwrap();
    let served = Served::start(|| Duration::ZERO);
    let out = folder.path().join("run");
    let (_, data) = served.run(&out, &["--trace", trace.to_str().unwrap(), "--speed", "2"]);
    let mut measured: Vec<_> = data.requests.iter().filter(|r| !r.warmup).collect();
    measured.sort_by_key(|request| request.index);
    let since = |i: usize| measured[i].intended_at_ns.since(measured[0].intended_at_ns);
    assert_eq!((since(1), since(2)), (Duration::from_millis(200), Duration::from_millis(500)));
    assert!(measured.iter().all(|r| r.requested_prompt_tokens == Some(600) && r.max_tokens == 2));
    let prompts: Vec<String> = served
        .bodies()
        .iter()
        .filter_map(|body| body["prompt"].as_str().map(str::to_owned))
        .collect();
    let [first, other, last] = &prompts[..] else { panic!("{} prompts", prompts.len()) };
    let words = |prompt: &str| prompt.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(first)[..512], words(last)[..512]);
    assert_ne!(words(first)[512..], words(last)[512..]);
    assert_ne!(words(first)[..8], words(other)[..8]);

    // Our own record of it is a trace too.
    let again = folder.path().join("again");
    let (_, data) = served.run(&again, &["--trace", out.to_str().unwrap(), "--speed", "4"]);
    let mut again: Vec<_> = data.requests.iter().filter(|r| !r.warmup).collect();
    again.sort_by_key(|request| request.index);
    let gap = again[2].intended_at_ns.since(again[0].intended_at_ns);
    assert_eq!((again.len(), gap), (3, Duration::from_millis(125)));
    assert!(again.iter().all(|request| request.requested_prompt_tokens == Some(600)));
}

#[test]
fn dataset_gives_questions_and_shared_prefixes_are_shared() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = folder.path().join("sharegpt.json");
    std::fs::write(
        &dataset,
        r#"[{"conversations": [{"from": "human", "value": "why is it so"},
            {"from": "gpt", "value": "because"}]}]"#,
    )
    .unwrap();
    let served = Served::start(|| Duration::ZERO);
    let load = ["--rate", "50", "--requests", "4", "--dataset", dataset.to_str().unwrap()];
    served.run(&folder.path().join("dataset"), &load);
    let asked = served.bodies();
    let asked = asked.iter().filter(|b| b["messages"][0]["content"] == "why is it so");
    assert_eq!(asked.count(), 4);

    let served = Served::start(|| Duration::ZERO);
    let lengths =
        ["--prefix-tokens", "40", "--prefix-groups", "2", "--prompt-lengths", "uniform:5-9"];
    let load = [&["--rate", "50", "--requests", "4"][..], &lengths].concat();
    let (_, data) = served.run(&folder.path().join("prefix"), &load);
    let bodies = served.bodies();
    let prompts: Vec<&str> = bodies.iter().filter_map(|body| body["prompt"].as_str()).collect();
    let prefixes: std::collections::BTreeSet<Vec<&str>> =
        prompts.iter().map(|prompt| prompt.split(' ').take(40).collect()).collect();
    assert_eq!((prompts.len(), prefixes.len()), (4, 2));
    let asked = data.requests.iter().filter_map(|request| request.requested_prompt_tokens);
    assert!(asked.clone().count() == 4 && asked.clone().all(|n| (45..=49).contains(&n)));
}

#[test]
fn thousand_streams_are_driven_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let served = Arc::new(Served::start(|| Duration::from_secs(3)));
    let (summary, _) = served.run(
        &folder.path().join("run"),
        &["--rate", "1000", "--arrival", "constant", "--requests", "1000", "--warm-up", "1"],
    );
    let case = &summary["cases"][0];
    assert_eq!(case["num_ok"], 1_000, "{case}");
    assert_eq!(case["open_loop"]["peak_in_flight"], 1_000, "{case}");
}

#[test]
fn wrong_loads_are_refused_by_name_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.jsonl");
    std::fs::write(&bad, "{\"timestamp\": 1, \"input_length\": 3}\n").unwrap();
    let bad = bad.to_str().unwrap();
    for (arguments, what) in [
        (&["--rate", "0"][..], "`rate` is 0: expected 0.001 to 100000"),
        (&["--burstiness", "2"], "`burstiness` means nothing"),
        (&["--rate", "1", "--duration", "5"], "`5` is no time"),
        (&["--sweep-rates", "1,x"], "`x` is no rate"),
        (&["--rate", "1", "--slo", "ttft<9"], "objective `ttft<9` is not understood"),
        (&["--slo", "ttft<9ms"], "objectives need a load"),
        (&["--trace", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (&["--trace", bad], "bad.jsonl line 1: missing field `output_length`"),
    ] {
        let mut command = yardstick();
        let output = command.args(["run", "--engine", "openai=http://127.0.0.1:1"]).args(arguments);
        let output = output.output().unwrap();
        let text = stderr(&output);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{text}");
        assert!(text.contains(what), "{what}: {text}");
    }
}
