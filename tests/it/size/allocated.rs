//! The pool that is predicted against the pool that an engine allocates.

use yardstick::catalog::{LocateOptions, locate};
use yardstick::clock::Clock;
use yardstick::infer::EngineHost;
use yardstick::infer::telemetry::EngineEvent;
use yardstick::sizing::embedded::{Target, config};
use yardstick::sizing::{MaxModelLen, Settings};

use super::{MODEL, json};

/// The engine that `settings` start, its blocks and the bytes that it says it took.
fn started(settings: &Settings) -> (String, u64) {
    let options = LocateOptions { dummy: None, offline: true };
    let source = locate(MODEL, &options, &mut |_| {}).unwrap().source;
    let config = config(settings, Target::Cpu).unwrap();
    let host = EngineHost::open(&source, config, Clock::real()).unwrap();
    let telemetry = host.observe(|| None).unwrap();
    host.load().unwrap();
    let taken = telemetry.drain().find_map(|event| match event {
        EngineEvent::Memory(parts) => Some(parts.kv_bytes),
        _ => None,
    });
    (host.settings()["num_blocks"].clone(), taken.unwrap())
}

#[test]
fn predicted_pool_is_the_allocated_pool() {
    for (arguments, settings) in [
        (&[][..], Settings::default()),
        (
            &["--max-model-len", "300", "--block-size", "32", "--max-num-seqs", "3"],
            Settings {
                max_model_len: MaxModelLen::Tokens(300),
                block_size: Some(32),
                max_num_seqs: Some(3),
                ..Settings::default()
            },
        ),
        (
            &["--kv-cache-memory-bytes", "33333333", "--dtype", "f32"],
            Settings {
                kv_cache_memory_bytes: Some(33_333_333),
                dtype_bytes: Some(4),
                ..Settings::default()
            },
        ),
    ] {
        let asked = ["--model", MODEL, "--gpu", "l4", "--engine", "embedded"];
        let answer = json(&[&asked[..], arguments].concat());
        let engine = &answer["engines"][0];
        let (blocks, bytes) = started(&settings);
        assert_eq!(engine["blocks"]["expected"].to_string(), blocks, "{arguments:?}");
        assert_eq!(engine["blocks"]["low"], engine["blocks"]["high"]);
        let parts = engine["parts"].as_array().unwrap();
        let pool = parts.iter().find(|part| part["name"] == "KV cache").unwrap();
        assert_eq!(pool["amount"]["expected_bytes"].as_u64(), Some(bytes), "{arguments:?}");
    }
}
