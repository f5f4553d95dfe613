//! Sweeps over KV settings through the binary, on a model of two small layers.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use yardstick::plan::Plan;
use yardstick::record::{JournalEvent, RunData};

use crate::report::markup;
use crate::support::{write_tiny_config, yardstick};

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_tiny_config(&folder.path().join("tiny"), 1);
        Self(folder)
    }

    fn model(&self) -> PathBuf {
        self.0.path().join("tiny")
    }

    fn out(&self) -> PathBuf {
        self.0.path().join("run")
    }

    /// Eight requests at once of 40 + 24 tokens: three blocks as one enters, four at its end.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = yardstick();
        command.args(["run", "--load-format", "dummy", "--no-calibration", "--seed", "3"]);
        command.args(["--prompt-tokens", "40", "--max-tokens", "24", "--warm-up", "1"]);
        command.args(["--experiment", "concurrent-warm", "--concurrency", "8", "--json"]);
        command.arg("--model").arg(self.model()).arg("--out").arg(self.out());
        command.args(arguments).output().unwrap()
    }

    /// A run that ends well: its summary, and its directory read back.
    fn measure(&self, arguments: &[&str]) -> (Value, RunData) {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        (serde_json::from_slice(&output.stdout).unwrap(), RunData::read(&self.out()).unwrap())
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn report(out: &Path, format: &str) -> String {
    let output = yardstick().arg("report").arg(out).args(["--format", format]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn small_pool_preempts_a_large_one_does_not_and_one_too_small_is_absent() {
    let bench = Bench::new();
    let arguments = ["--engine", "embedded", "--requests", "16", "--sweep-kv"];
    let (summary, data) = bench.measure(&[&arguments[..], &["kv_blocks=2,16,64"]].concat());
    let sweep = &summary["kv_sweep"][0];
    let point = |blocks: &str| {
        let points = sweep["points"].as_array().unwrap();
        points.iter().find(|point| point["settings"]["kv_blocks"] == blocks).unwrap().clone()
    };
    let (none, small, large) = (point("2"), point("16"), point("64"));
    let reason = none["absent"].as_str().unwrap();
    assert!(reason.contains("32 tokens at most") && reason.contains("40 of prompt"), "{reason}");
    assert!(none["output_tokens_per_s"].is_null() && none["case"].is_null());
    assert!(small["num_preemptions"].as_u64().unwrap() > 0, "{small}");
    assert_eq!(large["num_preemptions"], 0, "{large}");
    assert_eq!((&small["fits"], &large["fits"]), (&Value::from(4), &Value::from(16)));
    assert_eq!(
        (&small["peak_kv_use"], &small["kv_tokens"]),
        (&Value::from(1.0), &Value::from(256))
    );
    assert_eq!(large["peak_kv_use"], 0.5, "eight sequences of four blocks");
    let running = |point: &Value| point["mean_running"].as_f64().unwrap();
    assert!(running(&small) < running(&large), "{small} {large}");
    for point in [&small, &large] {
        let number = |field: &str| point[field].as_f64().unwrap();
        assert!(number("mean_kv_use") > 0.0 && number("mean_kv_use") <= number("peak_kv_use"));
        // Of a sequence's blocks less than one holds no token.
        assert!(number("waste_share") > 0.0 && number("waste_share") < 0.5, "{point}");
        assert_eq!(number("prefix_hit_share"), 0.0);
        assert_eq!((point["num_ok"].as_u64(), point["case"].is_u64()), (Some(16), true));
    }
    assert_eq!(sweep["basis"]["point"], "embedded kv_blocks=64");
    assert_eq!(sweep["basis"]["num_requests"], 16);
    assert_eq!(sweep["basis"]["step_times"]["kind"], "fitted", "{sweep}");
    assert_eq!(sweep["basis"]["assumed"], serde_json::json!({}), "it tells everything of itself");
    // The largest pool is where the prediction comes from.
    let (told, seen) = (&large["predicted_tokens_per_s"], &large["output_tokens_per_s"]);
    assert!((told.as_f64().unwrap() / seen.as_f64().unwrap() - 1.0).abs() < 1e-9);
    assert!(small["predicted_tokens_per_s"].as_f64().unwrap() > 0.0, "{sweep}");
    assert!(small["predicted_preemptions"].as_u64().unwrap() > 0, "{sweep}");
    assert_eq!(large["predicted_preemptions"], 0, "{sweep}");
    let predicted = |point: &Value| point["predicted_running"].as_f64().unwrap();
    assert!(predicted(&small) < predicted(&large), "{sweep}");
    for point in [&small, &large] {
        assert!(point["predicted_ttft_ms_p50"].as_f64().unwrap() > 0.0, "{sweep}");
    }
    assert!(sweep["predicted_sufficient"].is_string(), "{sweep}");
    one_at_a_time(&data);
    plan_is_kept(&data);
    every_report_shows_it(&bench.out());
}

/// Weights of a file: its mapped pages count as the process's memory too.
#[test]
fn what_was_unloaded_is_not_in_the_memory_of_the_next_point() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut command = yardstick();
    command.args(["run", "--model", "smollm2-135m-instruct", "--no-calibration", "--seed", "3"]);
    command.args(["--experiment", "concurrent-warm", "--concurrency", "2", "--requests", "2"]);
    command.args(["--prompt-tokens", "40", "--max-tokens", "4", "--warm-up", "1"]);
    command.args(["--engine", "embedded", "--sweep-kv", "kv_blocks=32,48,64", "--json", "--out"]);
    let output = command.arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let data = RunData::read(&out).unwrap();
    let loads = data.journal.iter().filter_map(|entry| match entry.event {
        JournalEvent::Memory { weight_bytes, rss_before_bytes, .. } => {
            rss_before_bytes.map(|before| (before, weight_bytes))
        }
        _ => None,
    });
    let loads: Vec<(u64, u64)> = loads.collect();
    assert_eq!(loads.len(), 3);
    let (first, weights) = loads[0];
    // What threads and readers of the run took meanwhile is no quarter of a model.
    assert!(loads.iter().all(|(before, _)| *before < first + weights / 4), "{loads:?}");
}

/// What was loaded is dropped before another is loaded.
fn one_at_a_time(data: &RunData) {
    let mut resident = None;
    for entry in &data.journal {
        match entry.event {
            JournalEvent::Memory { engine, .. } => {
                assert_eq!(resident.replace(engine), None, "two are resident");
            }
            JournalEvent::EngineStopped { engine, .. } => {
                assert_eq!(resident.take(), Some(engine));
            }
            _ => {}
        }
    }
    assert!(resident.is_some(), "nothing was loaded");
}

/// The plan in the manifest sweeps again.
fn plan_is_kept(data: &RunData) {
    let plan = Plan::from_toml(&data.manifest.plan).unwrap();
    assert_eq!(plan.engines.len(), 1);
    let names: Vec<String> =
        plan.swept().unwrap().engines.into_iter().map(|spec| spec.name).collect();
    let measured: Vec<String> =
        data.manifest.engines.iter().map(|engine| engine.spec.name.clone()).collect();
    assert_eq!(names, measured);
}

fn every_report_shows_it(out: &Path) {
    let page = report(out, "html");
    markup::check(&page);
    for words in ["id=\"kv-sweep\"", "id=\"kv-pool-0\"", "id=\"kv-use-0\"", "curve predicted"] {
        assert!(page.contains(words), "{words}");
    }
    assert!(report(out, "terminal").contains("KV pool ──"));
    assert!(report(out, "markdown").contains("## KV pool"));
    let rows = report(out, "csv");
    for metric in
        ["waste_share", "predicted_tokens_per_s", "num_preemptions", "predicted_preemptions"]
    {
        let found = rows.lines().filter(|row| row.contains(&format!(",{metric},"))).count();
        assert_eq!(found, 2, "{metric}: one a point that was measured");
    }
}

#[test]
fn prefix_cache_is_an_axis_and_so_is_what_the_model_refuses() {
    let bench = Bench::new();
    let (summary, _) = bench.measure(&[
        "--same-prompt",
        "--sweep-kv",
        "max_model_len=256,9999",
        "--sweep-kv",
        "enable_prefix_caching=true,false",
    ]);
    let sweep = &summary["kv_sweep"][0];
    assert_eq!(summary["kv_sweep"].as_array().unwrap().len(), 1, "no size of pool is varied");
    let points = sweep["points"].as_array().unwrap();
    let of = |len: &str, caching: &str| {
        let is = |point: &&Value| {
            let settings = &point["settings"];
            settings["max_model_len"] == len && settings["enable_prefix_caching"] == caching
        };
        points.iter().find(is).unwrap()
    };
    let refused = of("9999", "true")["absent"].as_str().unwrap();
    assert!(
        refused.contains("9999") && refused.contains("max_position_embeddings 512"),
        "{refused}"
    );
    assert!(of("256", "true")["prefix_hit_share"].as_f64().unwrap() > 0.3, "{sweep}");
    assert_eq!(of("256", "false")["prefix_hit_share"], 0.0);
    assert!(sweep["smallest_sufficient"].is_null());
    assert!(sweep["reason"].as_str().unwrap().contains("fewer than two sizes"));
}

#[test]
fn axis_that_cannot_be_varied_is_refused_before_anything_is_measured() {
    let bench = Bench::new();
    for (arguments, what) in [
        (&["--sweep-kv", "kv_blocks=0"][..], "`kv_blocks` is `0`: expected a positive"),
        (&["--sweep-kv", "kv_blocks=many"], "`kv_blocks` is `many`"),
        (&["--sweep-kv", "colour=red"], "`colour` cannot be varied: expected kv_blocks"),
        (&["--sweep-kv", "kv_blocks"], "no SETTING=VALUE"),
        (
            &["--sweep-kv", "kv_blocks=8", "--engine", "embedded?kv_memory=1MiB"],
            "engine embedded sets `kv_memory`",
        ),
        (&["--sweep-kv", "kv_blocks=8", "--engine", "vllm"], "with {kv_blocks} in it"),
        (
            &["--sweep-kv", "kv_blocks=8", "--engine", "vllm", "--start", "vllm=serve {port}"],
            "nothing in the command of engine vllm takes it: put {kv_blocks}",
        ),
        (&["--sweep-kv", "max_model_len=8000,9000"], "no point of the sweep can be measured"),
    ] {
        let output = bench.run(arguments);
        let text = stderr(&output);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{text}");
        assert!(text.contains(what) && !text.contains("panicked"), "{what}: {text}");
        assert!(output.stdout.is_empty() && !bench.out().exists());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn engine_that_is_started_is_told_each_value_and_one_that_does_not_start_is_absent() {
    let bench = Bench::new();
    let start = format!(
        "ours={} serve --port {{port}} --model {} --load-format dummy --threads 1 \
         --kv-blocks {{kv_blocks}} --max-model-len 128",
        env!("CARGO_BIN_EXE_yardstick"),
        bench.model().display()
    );
    let (summary, data) = bench.measure(&[
        "--engine",
        "ours:openai",
        "--start",
        &start,
        "--sweep-kv",
        "kv_blocks=4,32,64",
    ]);
    let points = summary["kv_sweep"][0]["points"].as_array().unwrap();
    assert_eq!(points.len(), 3);
    for point in points {
        if point["settings"]["kv_blocks"] == "4" {
            let reason = point["absent"].as_str().unwrap();
            assert!(reason.contains("max_model_len 128 needs 8 KV blocks"), "{reason}");
            continue;
        }
        assert!(point["output_tokens_per_s"].as_f64().unwrap() > 0.0, "{point}");
        assert!(point["waste_share"].is_null());
        assert!(point["reasons"]["waste_share"].as_str().unwrap().contains("in this process"));
    }
    let started = data.journal.iter().filter_map(|entry| match entry.event {
        JournalEvent::EngineStarted { engine, case: Some(_), .. } => Some(engine),
        _ => None,
    });
    assert_eq!(started.collect::<Vec<_>>(), [1, 2]);
    assert!(bench.out().join("logs/ours-kv_blocks-32.log").is_file());
}
