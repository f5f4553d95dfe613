//! What a step asks of the device, as an emulated one counts it.

use std::process::Command;

use serde_json::Value;
use yardstick::infer::device::is_emulated;

use super::*;

/// Set in the process whose work is counted.
const CHILD: &str = "YARDSTICK_CUDA_CHILD";

/// What the child runs.
#[derive(Debug, Clone, Copy)]
struct Case {
    num_seqs: usize,
    prompt_len: usize,
    graphs: bool,
}

/// Counters of a process that computes `case`; none where the device counts nothing.
fn count(case: Case) -> Option<Value> {
    if !is_emulated(&device()?) {
        eprintln!("skipped: only an emulated device counts");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let stats = folder.path().join("stats.json");
    let Case { num_seqs, prompt_len, graphs } = case;
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cuda::counters::child", "--ignored", "--nocapture"])
        .env(CHILD, format!("{num_seqs} {prompt_len} {graphs}"))
        .env("CUDA_EMULATOR_STATS", &stats)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap())
}

#[test]
#[ignore = "run by the others, in a process of its own"]
fn child() {
    let case = std::env::var(CHILD).unwrap();
    let [num_seqs, prompt_len, graphs] = case.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{case}");
    };
    let config = EngineConfig {
        cuda_graphs: graphs == "true",
        enable_prefix_caching: false,
        max_num_batched_tokens: 512,
        kv: KvBudget::Blocks(400),
        ..config(CUDA, ComputeDtype::Bf16)
    };
    let mut core = core(&model(), &config);
    let prompt_len: u32 = prompt_len.parse().unwrap();
    for _ in 0..num_seqs.parse().unwrap() {
        core.add_request(request((0..prompt_len).map(|i| i % 97).collect(), 6)).unwrap();
    }
    drain(&mut core);
}

/// The last step, a decode of every sequence.
fn last_step(stats: &Value) -> &Value {
    stats["steps"].as_array().unwrap().last().unwrap()
}

#[test]
fn decode_step_is_one_graph_two_copies_and_one_wait() {
    for num_seqs in [1, 3, 6] {
        let Some(stats) = count(Case { num_seqs, prompt_len: 40, graphs: true }) else { return };
        let step = last_step(&stats);
        let expected = [
            ("graph_launches", 1),
            ("kernel_launches", 0),
            ("htod_copies", 1),
            ("dtoh_copies", 1),
            ("dtoh_bytes", 4 * num_seqs),
            ("stream_syncs", 1),
            ("context_syncs", 0),
            ("event_syncs", 0),
            ("allocations", 0),
            ("frees", 0),
            ("dtod_copies", 0),
            ("memsets", 0),
        ];
        for (name, value) in expected {
            assert_eq!(step[name], value, "{name} with {num_seqs} sequences: {step}");
        }
    }
}

#[test]
fn decode_step_without_graphs_stays_within_its_launches() {
    for num_seqs in [1, 3, 6] {
        let Some(stats) = count(Case { num_seqs, prompt_len: 40, graphs: false }) else { return };
        let step = last_step(&stats);
        let count = |name: &str| step[name].as_u64().unwrap();
        let layers = model().num_hidden_layers as u64;
        let launches = count("kernel_launches") + count("gemm_calls");
        assert!(launches <= 10 * layers + 6, "{launches} with {num_seqs} sequences: {step}");
        assert_eq!((count("allocations"), count("stream_syncs"), count("htod_copies")), (0, 1, 1));
        assert_eq!(count("dtoh_bytes"), 4 * num_seqs as u64);
    }
}

#[test]
fn decode_attention_reads_each_key_and_value_once_a_kv_head() {
    let read = |prompt_len| {
        let stats = count(Case { num_seqs: 1, prompt_len, graphs: false })?;
        let kernel = &stats["kernels"]["decode_attention_64_bf16"];
        Some(kernel["global_bytes_read"].as_u64().unwrap())
    };
    let (Some(short), Some(long)) = (read(208), read(240)) else { return };
    let ModelConfig { num_hidden_layers, num_key_value_heads, head_dim, .. } = model();
    // Five decode steps, each with 32 tokens more; K and V of two bytes.
    let tokens = 5 * 32 * num_hidden_layers;
    let once = (tokens * 2 * num_key_value_heads * head_dim * 2) as u64;
    let read = long - short;
    // Beside K and V a longer context has more block table: 4 bytes a block and warp.
    assert!((once..once + once / 4).contains(&read), "{read} bytes for {once} of K and V");
}

#[test]
fn all_device_memory_is_given_back() {
    let Some(stats) = count(Case { num_seqs: 2, prompt_len: 20, graphs: true }) else { return };
    assert_eq!(stats["live_allocations"], 0);
}
