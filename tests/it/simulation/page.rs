//! `yardstick size --simulate` as its user meets it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::yardstick;

fn simulate(arguments: &[&str]) -> Output {
    yardstick()
        .args(["size", "--simulate"])
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = simulate(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

const L4: [&str; 6] = ["--gpu", "l4", "--model", "llama-3.2-3b-instruct", "--seed", "7"];
const LOAD: [&str; 8] = [
    "--rate",
    "4",
    "--duration",
    "3m",
    "--prompt-tokens",
    "lognormal:512,300",
    "--output-tokens",
    "128",
];

#[test]
fn page_says_what_was_assumed_and_that_nothing_was_measured() {
    let slo = ["--slo", "ttft_p90<1s,tpot<60ms"];
    let output = simulate(&[&L4[..], &LOAD[..], &slo].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}

#[test]
fn json_is_labelled_and_the_same_for_a_seed() {
    let once = json(&[&L4[..], &LOAD[..]].concat());
    assert_eq!(once, json(&[&L4[..], &LOAD[..]].concat()));
    assert_eq!(once["simulated"], true);
    assert_eq!(once["step_times"]["kind"], "roofline");
    assert_eq!(once["step_times"]["gpu"], "L4");
    assert_eq!(once["kept_up"], true);
    let n = once["requests"]["num_answered"].as_u64().unwrap();
    assert!((600..850).contains(&n), "{n}");
    assert_eq!(once["ttft_ms"]["n"].as_u64(), Some(n));
}

/// Every field of the object, whatever was asked for, is in FORMAT.md.
#[test]
fn format_names_every_field() {
    let format = include_str!("../../../docs/FORMAT.md");
    let fields = ["--slo", "ttft<9s", "--capacity", "--requests", "60", "--duration", "20s"];
    let open = json(&[&L4[..], &["--rate", "3"], &fields].concat());
    let mut names = std::collections::BTreeSet::new();
    collect(&open, &mut names);
    let missing: Vec<_> =
        names.iter().filter(|name| !format.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/FORMAT.md does not name {missing:?}");
}

fn collect(value: &Value, names: &mut std::collections::BTreeSet<String>) {
    match value {
        // Keys of `reasons` are fields that are named already.
        Value::Object(fields) => {
            for (name, value) in fields {
                names.insert(name.clone());
                collect(value, names);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, names)),
        _ => {}
    }
}

#[test]
fn thousands_of_users_offer_the_rate_together() {
    let load = ["--users", "10000", "--rate", "4", "--duration", "10m", "--prompt-tokens", "256"];
    let many = json(&[&L4[..], &load, &["--output-tokens", "64"]].concat());
    let n = many["requests"]["num_answered"].as_u64().unwrap();
    // 2400 are expected, with a standard deviation of 49.
    assert!((2_150..2_650).contains(&n), "{n}");
    assert_eq!(many["load"]["think_s"], 2_500.0);
    assert_eq!(many["kept_up"], Value::Null);
}

#[test]
fn smaller_pools_preempt_and_larger_ones_do_not() {
    let with = |blocks: &str| {
        let rest = ["--users", "40", "--requests", "400", "--kv-blocks", blocks];
        json(&[&L4[..], &rest, &["--max-model-len", "1024"]].concat())
    };
    let (small, large) = (with("700"), with("20000"));
    assert!(small["steps"]["num_preemptions"].as_u64().unwrap() > 0);
    assert_eq!(large["steps"]["num_preemptions"], 0);
    assert!(small["kv"]["peak_used_blocks"].as_u64().unwrap() <= 700);
    assert_eq!(small["requests"]["num_answered"], large["requests"]["num_answered"]);
}

#[cfg(unix)]
#[test]
fn interrupt_prints_what_was_simulated_until_then() {
    let mut child = yardstick()
        .args(["size", "--simulate", "--json", "--rate", "5", "--duration", "9000h"])
        .args(L4)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first word of its progress says that the handler is in place.
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("simulated ") && line.contains("answered"), "{line}");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let simulated: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(simulated["interrupted"], true);
    assert!(simulated["requests"]["num_answered"].as_u64().unwrap() > 0);
}

#[test]
fn what_cannot_be_is_named_with_what_can() {
    let cases: [(&[&str], &[&str]); 10] = [
        (&["--gpu", "l5", "--model", "llama-3.2-3b-instruct", "--rate", "1"], &["`l5`", "L4"]),
        (&["--gpu", "l4", "--model", "llama-9", "--rate", "1"], &["llama-9"]),
        (&["--gpu", "l4", "--model", "llama-3.2-3b-instruct", "--rate", "0"], &["`0` is no rate"]),
        (&["--gpu", "l4", "--model", "llama-3.2-3b-instruct"], &["--rate"]),
        (&["--model", "llama-3.2-3b-instruct", "--rate", "1"], &["--gpu"]),
        (
            &["--gpu", "l4", "--model", "llama-3.2-3b-instruct", "--rate", "1", "--kv-blocks", "9"],
            &["no request can be served", "144"],
        ),
        (
            &[&L4[..], &["--rate", "1", "--gpu-memory-utilization", "0.3"]].concat(),
            &["L4 leaves no KV pool", "5.98 GiB", "hint:"],
        ),
        (
            &[&L4[..], &["--rate", "1", "--gpu-memory-utilization", "1.5"]].concat(),
            &["gpu_memory_utilization is 1.5", "up to 1"],
        ),
        (&["--steps-from", "/no/such/run", "--rate", "1"], &["/no/such/run", "no run directory"]),
        (
            &[&L4[..], &["--rate", "1", "--arrival", "gamma"]].concat(),
            &["needs --burstiness", "hint:"],
        ),
    ];
    for (arguments, parts) in cases {
        let output = simulate(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        for part in parts {
            assert!(stderr.contains(part), "{arguments:?}: {part} is not in: {stderr}");
        }
    }
}
