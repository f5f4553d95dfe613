//! Runs compared through the binary, against servers whose timing is known.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::support::served::Served;
use crate::support::yardstick;

/// An answer of 110 ms, and one of 143 ms: 30 % slower in every part.
const BASE: [&str; 6] = ["--ttft-ms", "40", "--gap-ms", "10", "--tokens", "8"];
const SLOWER: [&str; 6] = ["--ttft-ms", "52", "--gap-ms", "13", "--tokens", "8"];

/// Measures engines, given as NAME and URL, over six short rounds.
fn measure(out: &Path, engines: &[(&str, &str)]) {
    let mut command = yardstick();
    command.args(["run", "--experiment", "concurrent-warm", "--concurrency", "2"]);
    command.args(["--rounds", "6", "--max-tokens", "8", "--no-calibration", "--no-probe"]);
    for (name, url) in engines {
        command.args(["--engine", &format!("{name}:openai={url}")]);
    }
    let output = command.arg("--out").arg(out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn compare(runs: &[&Path], arguments: &[&str]) -> Output {
    yardstick().arg("compare").args(runs).args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", stderr(output)))
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder's run, by the name of one of its engines.
fn engine(run: &Path, name: &str) -> PathBuf {
    PathBuf::from(format!("{}#{name}", run.display()))
}

#[test]
fn equal_servers_are_no_different_and_a_slower_one_fails_the_gate() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (base, slower) = (Served::start(&BASE), Served::start(&SLOWER));
    let runs = [path("one"), path("two"), path("slow")];
    for (run, url) in runs.iter().zip([&base.url, &base.url, &slower.url]) {
        measure(run, &[("engine", url)]);
    }
    let [one, two, slow] = runs.each_ref().map(PathBuf::as_path);

    let gate = ["--metric", "e2el_p50", "--margin", "15", "--fail-if", "e2el_p50 > +20%"];
    let output = compare(&[one, two], &[&gate[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let found = json(&output);
    assert_eq!(found["comparisons"][0]["design"], "unpaired");
    assert_ne!(found["comparisons"][0]["verdict"], "different", "{found}");
    assert_ne!(found["gates"][0]["outcome"], "exceeded", "{found}");
    assert_eq!(found["doubts"], Value::Array(Vec::new()));

    let output = compare(&[one, slow], &["--fail-if", "e2el_p50 > +5%", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    let found = json(&output);
    let metric = |name: &str| {
        let all = found["comparisons"].as_array().unwrap().iter();
        all.clone().find(|comparison| comparison["metric"] == name).unwrap().clone()
    };
    for name in ["e2el_p50", "tpot_p50"] {
        let comparison = metric(name);
        assert_eq!(
            (&comparison["verdict"], &comparison["winner"]),
            (&"different".into(), &"base".into())
        );
        let ratio = comparison["ratio"].as_f64().unwrap();
        assert!((1.15..1.5).contains(&ratio), "{comparison}");
    }
    assert_eq!(metric("output_tokens_per_s")["winner"], "base");
    assert_eq!(found["gates"][0]["outcome"], "exceeded");
    assert!(stderr(&output).contains("gate `e2el_p50 > +5%` is exceeded and fails"));

    // What a person sees, and what a gate in the other direction says.
    let output =
        compare(&[one, slow], &["--fail-if", "output_tokens_per_s @concurrent-warm,C=2 > +5%"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    for words in ["6 rounds each", "different", "base better", "resampled", "– kept: "] {
        assert!(text.contains(words), "{words} is not in:\n{text}");
    }
    let text = stdout(&compare(&[one, slow], &["--format", "markdown"]));
    assert!(text.contains("# Comparison") && text.contains("| E2EL p50 (ms) |"), "{text}");
}

#[test]
fn run_against_itself_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let server = Served::start(&BASE);
    measure(&run, &[("engine", &server.url)]);
    let strict = ["--fail-if", "ttft_p50 > +0.1%", "--strict", "--json"];
    let output = compare(&[&run, &run], &strict);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let found = json(&output);
    let comparisons = found["comparisons"].as_array().unwrap();
    assert_eq!(comparisons.len(), 4);
    for comparison in comparisons {
        assert_eq!(comparison["verdict"], "same", "{comparison}");
        assert_eq!(
            (&comparison["ratio"], &comparison["p"]),
            (&Value::from(1.0), &Value::from(1.0))
        );
    }
}

#[test]
fn engines_of_one_run_are_compared_in_every_report() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let (base, slower) = (Served::start(&BASE), Served::start(&SLOWER));
    measure(&run, &[("quick", &base.url), ("slow", &slower.url)]);

    let found = json(&compare(&[&run], &["--metric", "e2el_p50", "--json"]));
    let comparison = &found["comparisons"][0];
    assert_eq!((&comparison["design"], &comparison["winner"]), (&"paired".into(), &"base".into()));
    assert_eq!(comparison["verdict"], "different", "{comparison}");
    let found = json(&compare(&[&run], &["--metric", "e2el_p50", "--baseline", "slow", "--json"]));
    assert_eq!(found["comparisons"][0]["winner"], "candidate");
    let pair = [engine(&run, "quick"), engine(&run, "slow")];
    let output = compare(&[&pair[0], &pair[1]], &["--metric", "e2el_p50", "--json"]);
    assert_eq!(json(&output)["comparisons"][0]["design"], "paired");

    let summary = std::fs::read_to_string(run.join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["comparisons"].as_array().unwrap().len(), 4);
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("id=\"comparison\"") && page.contains("id=\"forest-0\""));
    assert!(!page.contains("one measurement each"));
    let report = |format: &str| {
        stdout(&yardstick().arg("report").arg(&run).args(["--format", format]).output().unwrap())
    };
    let text = report("terminal");
    assert!(text.contains("slow against quick, 6 rounds in the same run"), "{text}");
    assert!(text.contains("quick is better"), "{text}");
    assert!(report("markdown").contains("## Comparison"));
}

#[test]
fn gate_about_nothing_and_unknown_names_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let server = Served::start(&BASE);
    measure(&run, &[("engine", &server.url)]);
    let nobody = engine(&run, "nobody");
    for (runs, arguments, what) in [
        (&[&run, &run][..], &["--fail-if", "ttft_p50 @batched-warm > 5%"][..], "about nothing"),
        (&[&run, &run], &["--experiment", "batched-warm"], "expected concurrent-warm"),
        (&[&run, &nobody], &[], "has no engine `nobody`: expected engine"),
        (&[&run], &[], "has one engine"),
    ] {
        let runs: Vec<&Path> = runs.iter().map(|run| run.as_path()).collect();
        let output = compare(&runs, arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(what), "{what}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}
