//! Time to first token of a 63-token prompt as a caller of the engine meets it:
//! through the engine's thread and its channel, one request alone and ten at once.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run must say so and stop")]

mod support;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use support::model;
use yardstick::clock::Clock;
use yardstick::infer::{
    EngineConfig, EngineHost, GenerationEvent, InferRequest, ModelSource, SamplingParams,
};

const PROMPT_TOKENS: u32 = 63;

fn ttft(c: &mut Criterion) {
    let opened = model::open();
    let dtypes = model::dtypes(&opened);
    drop(opened);
    let source: ModelSource = model::locate().source;
    let mut group = support::group(c, "ttft", 3.0);
    for dtype in dtypes {
        let config = EngineConfig {
            max_model_len: Some(256),
            dtype: Some(dtype),
            ..EngineConfig::default()
        };
        let host = EngineHost::open(&source, config, Clock::real()).unwrap();
        host.load().unwrap();
        let mut nth = 0;
        for requests in [1, 10] {
            group.bench_function(format!("{dtype}/{requests}-at-once"), |b| {
                b.iter_custom(|iters| {
                    (0..iters)
                        .map(|_| {
                            nth += requests;
                            mean_first_token(&host, nth, requests)
                        })
                        .sum()
                });
            });
        }
    }
    group.finish();
}

/// Mean time from submission to first token of `requests` submitted together.
fn mean_first_token(host: &EngineHost, nth: u32, requests: u32) -> Duration {
    let clock = host.clock();
    let submitted: Vec<_> = (0..requests)
        .map(|request| {
            let first = 1000 + (nth + request) * 191 % 30_000;
            let ids = (first..).take(PROMPT_TOKENS as usize).collect();
            let sampling = SamplingParams::default();
            let request = InferRequest { sampling, ..InferRequest::new(ids, 1) };
            (clock.now(), host.submit(request).unwrap())
        })
        .collect();
    let first_token = |(start, mut generation): (_, yardstick::infer::Generation)| loop {
        match generation.blocking_next() {
            Some(GenerationEvent::Token { at, .. }) => break at.since(start),
            Some(GenerationEvent::Failed(error)) => panic!("{error}"),
            Some(_) => {}
            None => panic!("no token"),
        }
    };
    submitted.into_iter().map(first_token).sum::<Duration>() / requests
}

criterion_group!(benches, ttft);
criterion_main!(benches);
