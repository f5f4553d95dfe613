//! How a run is arranged, through the binary: warm-up until flat, turns, second
//! arms, requirements and what ends a load early.

use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use yardstick::record::{JournalEvent, RunData};

use crate::loads::Served;
use crate::support::yardstick;

/// A burst of two, measured once, without what these tests do not look at.
const SMALL: [&str; 6] =
    ["--experiment", "concurrent-warm", "--concurrency", "2", "--no-calibration", "--no-probe"];

/// A server whose answer to request number `n` begins after `pause_ms(n)`.
fn serve(pause_ms: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Served {
    let count = AtomicU64::new(0);
    Served::start_decoding(Duration::from_millis(40), move || {
        Duration::from_millis(pause_ms(count.fetch_add(1, Ordering::Relaxed)))
    })
}

fn measure(served: &Served, arguments: &[&str]) -> (Value, RunData) {
    let folder = tempfile::tempdir().unwrap();
    served.run(&folder.path().join("run"), &[&SMALL[..], arguments].concat())
}

fn warm_up(served: &Served, arguments: &[&str]) -> (Value, Value) {
    let (summary, _) = measure(served, arguments);
    (summary["cases"][0]["warm_up"].clone(), summary["warnings"].clone())
}

#[test]
fn engine_that_gets_faster_is_warmed_up_for_longer_than_a_flat_one() {
    let (flat, _) = warm_up(&serve(|_| 50), &[]);
    // 20 ms less from burst to burst, until the tenth.
    let (faster, _) = warm_up(&serve(|n| 50 + 10 * 20_u64.saturating_sub(n)), &[]);
    let bursts = |warm_up: &Value| warm_up["num_bursts"].as_u64().unwrap();
    assert!((4..=8).contains(&bursts(&flat)) && flat["settled"] == true, "{flat}");
    assert!(bursts(&faster) >= 11, "{faster}");
    assert_eq!(flat["num_requests"], 1 + 2 * bursts(&flat));
}

#[test]
fn engine_that_never_becomes_flat_is_warned_of_with_numbers() {
    // Bursts of 20 and of 120 ms in turn.
    let (warm_up, warnings) =
        warm_up(&serve(|n| if n.div_ceil(2) % 2 == 0 { 20 } else { 120 }), &[]);
    assert_eq!((&warm_up["num_bursts"], &warm_up["settled"]), (&16.into(), &false.into()));
    let warning = warnings.as_array().unwrap().iter().find(|w| w["class"] == "not_settled");
    let warning = warning.unwrap_or_else(|| panic!("{warnings}"));
    let message = warning["message"].as_str().unwrap();
    assert!(message.contains("16 bursts") && message.contains("median TTFT"), "{message}");
    assert!(warning["advice"].as_str().unwrap().contains("--warm-up"));
}

#[test]
fn fixed_number_of_bursts_is_what_is_sent_and_nobody_asks_whether_they_were_flat() {
    let (two, warnings) = warm_up(&serve(|n| 30 * n), &["--warm-up", "2"]);
    assert_eq!((&two["num_bursts"], &two["num_requests"]), (&2.into(), &5.into()));
    assert!(two["settled"].is_null(), "{two}");
    assert!(!warnings.to_string().contains("not_settled"));
    let served = serve(|_| 5);
    let (none, _) = warm_up(&served, &["--warm-up", "0"]);
    assert!(none.is_null(), "{none}");
    assert_eq!(served.bodies().len(), 2, "the measured burst alone");
}

#[test]
fn larger_burst_is_warmed_up_for_again_and_a_smaller_one_is_not() {
    let served = serve(|_| 30);
    let folder = tempfile::tempdir().unwrap();
    let levels = ["--experiment", "batched-warm", "--concurrency", "2", "--rounds", "2"];
    let rest = ["--warm-up", "1", "--no-calibration", "--no-probe"];
    let (summary, _) = served.run(&folder.path().join("run"), &[&levels[..], &rest].concat());
    let warmed: Vec<_> = summary["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|case| {
            (case["round"].as_u64(), case["concurrency"].as_u64(), !case["warm_up"].is_null())
        })
        .collect();
    let expected = [(0, 1, true), (0, 2, true), (1, 1, false), (1, 2, false)];
    assert_eq!(warmed, expected.map(|(round, c, warmed)| (Some(round), Some(c), warmed)));
}

#[test]
fn second_arms_have_prompts_of_their_own_and_are_in_no_table() {
    let served = serve(|_| 5);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let arms = ["--aa", "--rounds", "2", "--warm-up", "2"];
    let (summary, _) = served.run(&out, &[&SMALL[..], &arms].concat());
    let cases = summary["cases"].as_array().unwrap();
    let arm = |case: &Value| (case["round"].as_u64().unwrap(), case["again"] == true);
    // The second round is the first one backwards.
    let turns: Vec<_> = cases.iter().map(arm).collect();
    assert_eq!(turns, [(0, false), (0, true), (1, true), (1, false)]);
    let mut asked: Vec<String> =
        served.bodies().iter().map(|body| body["messages"].to_string()).collect();
    let sent = asked.len();
    asked.sort();
    asked.dedup();
    assert_eq!((sent, asked.len()), (5 + 8, 13), "no prompt is sent twice, warm-up included");

    let rendered = |format: &str| {
        let output = yardstick().arg("report").arg(&out).args(["--format", format]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let csv = rendered("csv");
    for case in cases {
        let shown = csv.lines().any(|line| line.starts_with(&format!("{},", case["case"])));
        assert_eq!(shown, !arm(case).1, "case {} in CSV", case["case"]);
    }
    let page = rendered("markdown");
    let rows = page.lines().filter(|line| line.starts_with("| openai")).count();
    assert!(rows <= 1 + 2, "the engine and its first arms:\n{page}");
}

#[test]
fn list_shows_second_arms_and_the_order_of_turns() {
    let list = |arguments: &[&str]| {
        let engines = ["--engine", "a:openai=http://127.0.0.1:1", "--engine", "embedded"];
        let fixed = ["run", "--list", "--experiment", "concurrent-warm", "--seed", "3"];
        let output = yardstick().args(fixed).args(&engines[2..]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = list(&["--aa", "--rounds", "2"]);
    let marked: Vec<_> = text.lines().map(|line| line.ends_with("  again")).collect();
    assert_eq!(marked, [false, true, true, false], "{text}");
    let shuffled = ["--engine", "x:embedded", "--engine", "y:embedded", "--order", "shuffled"];
    let rounds = [&shuffled[..], &["--rounds", "8"]].concat();
    let orders = list(&rounds);
    assert_eq!(orders, list(&rounds), "the seed decides");
    let first: Vec<&str> = orders.lines().step_by(3).map(|line| &line[line.len() - 1..]).collect();
    assert!(first.iter().any(|engine| *engine != first[0]), "{orders}");
}

/// A run of so many requests against a server that takes 20 ms to its first token.
fn required(out: &Path, requests: &str, arguments: &[&str]) -> Output {
    let fixed = ["--requests", requests, "--warm-up", "1"];
    serve(|_| 20).output(out, &[&SMALL[..], &fixed, arguments].concat())
}

#[test]
fn requirement_is_met_missed_or_undecided_and_the_exit_code_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut number = 0;
    let mut run = |requests: &str, arguments: &[&str]| {
        number += 1;
        let output = required(&folder.path().join(number.to_string()), requests, arguments);
        let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), summary["gates"][0].clone(), text)
    };
    let (code, gate, _) = run("44", &["--require", "ttft_p90<=5s"]);
    assert_eq!((code, &gate["verdict"]), (Some(0), &"met".into()), "{gate}");
    assert_eq!(
        (&gate["n"], &gate["num_over"], &gate["rule"]),
        (&44.into(), &0.into(), &"binomial".into())
    );
    let (code, gate, text) = run("10", &["--require", "e2el_p90<=1ms@95%"]);
    assert_eq!((code, &gate["verdict"]), (Some(1), &"missed".into()), "{gate}");
    assert!(text.contains("e2el_p90<1ms@95% missed: 10 of 10 over"), "{text}");
    let undecided = ["--require", "ttft_p90<=5s"];
    let (code, gate, text) = run("10", &undecided);
    assert_eq!((code, &gate["verdict"], &gate["more"]), (Some(0), &"undecided".into(), &34.into()));
    assert!(text.contains("undecided: 34 more requests"), "{text}");
    let (code, _, _) = run("10", &[&undecided[..], &["--strict"]].concat());
    assert_eq!(code, Some(1));
}

#[test]
fn requirements_are_in_every_report_and_wrong_ones_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    required(&out, "10", &["--require", "ttft_p90<=5s"]);
    for (format, what) in [
        ("terminal", "ttft_p90<5000ms@99%"),
        ("markdown", "## Requirements"),
        ("html", "id=\"requirements\""),
        ("json", "\"gates\""),
    ] {
        let output = yardstick().arg("report").arg(&out).args(["--format", format]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(text.contains(what) && text.contains("undecided"), "{format}: {text}");
    }
    for (arguments, what) in [
        (&["--require", "ttft<1s"][..], "requirement `ttft<1s`"),
        (&["--require", "peak:ttft_p90<1s"], "is of no case of this plan"),
        (&["--stop-when-decided"], "needs requirements"),
        (&["--aa", "--stop-when-decided", "--require", "ttft_p90<1s"], "exclude each other"),
        (&["--warm-up", "long"], "warm-up `long`"),
        (&["--order", "random"], "order `random`"),
    ] {
        let mut command = yardstick();
        let output = command.args(["run", "--engine", "openai=http://127.0.0.1:1"]).args(arguments);
        let output = output.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            matches!(output.status.code(), Some(1 | 2)) && text.contains(what),
            "{what}: {text}"
        );
    }
}

#[test]
fn load_stops_once_all_is_decided_and_its_case_is_complete() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let asked = ["--require", "ttft_p90<=5s", "--stop-when-decided", "--rounds", "2"];
    let output = required(&out, "400", &asked);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["complete"], true);
    let case = &summary["cases"][0];
    let n = case["n"].as_u64().unwrap();
    assert!((44..100).contains(&n), "{n} requests");
    assert_eq!((&case["num_ok"], &case["errors"]), (&n.into(), &serde_json::json!({})));
    assert!(case["stopped_early"].as_str().unwrap().contains("of 400 not sent"), "{case}");
    let gate = &summary["gates"][0];
    assert_eq!((&gate["verdict"], &gate["rule"]), (&"met".into(), &"sequential".into()), "{gate}");
    // The second round had nothing to add.
    assert_eq!(summary["cases"].as_array().unwrap().len(), 1);
    assert!(
        summary["absent"][0]["reason"].as_str().unwrap().contains("earlier round"),
        "{summary}"
    );
    let data = RunData::read(&out).unwrap();
    let has = |holds: fn(&JournalEvent) -> bool| data.journal.iter().any(|e| holds(&e.event));
    assert!(has(|event| matches!(event, JournalEvent::StoppedEarly { case: 0, .. })));
    assert!(has(|event| matches!(event, JournalEvent::CaseFinished { case: 0, .. })));
    assert!(!has(|event| matches!(event, JournalEvent::CaseFailed { .. })));
}

#[test]
fn open_loop_stops_early_too() {
    let folder = tempfile::tempdir().unwrap();
    let load = ["--rate", "100", "--requests", "300", "--warm-up", "1", "--no-probe"];
    let asked = ["--require", "e2el_p90<=5s", "--stop-when-decided", "--no-calibration"];
    let out = folder.path().join("run");
    let (summary, data) = serve(|_| 5).run(&out, &[&load[..], &asked].concat());
    let n = summary["cases"][0]["n"].as_u64().unwrap();
    assert!((44..200).contains(&n), "{n} requests");
    assert!(data.requests.iter().all(|request| request.outcome.is_ok()));
    assert_eq!(summary["gates"][0]["verdict"], "met");
}
