//! The embedded engine through its handle, as a program that links it meets it:
//! stop texts, samples, scores, cancelling, and what it tells of itself.

use std::time::{Duration, Instant};

use yardstick::clock::Clock;
use yardstick::infer::host::HostStatus;
use yardstick::infer::telemetry::{EngineEvent, LoadPhaseKind, StepStats};
use yardstick::infer::{
    EngineConfig, EngineHost, Generation, GenerationEvent, InferError, InferRequest, KvBudget,
    ModelConfig, ModelSource, SamplingParams, StopReason,
};

/// Longer than any test may take.
const LIMIT: Duration = Duration::from_secs(60);

fn host(config: EngineConfig) -> EngineHost {
    let model = ModelConfig {
        vocab_size: 200,
        intermediate_size: 64,
        max_position_embeddings: 4096,
        eos_token_ids: vec![2],
        ..ModelConfig::tiny()
    };
    let source = ModelSource::Dummy { config: Box::new(model), seed: 11, tokenizer: None };
    EngineHost::open(&source, config, Clock::real()).unwrap()
}

fn small_blocks() -> EngineConfig {
    EngineConfig { block_size: 4, kv: KvBudget::Blocks(1024), ..EngineConfig::default() }
}

fn request(max_tokens: usize) -> InferRequest {
    InferRequest { ignore_eos: true, ..InferRequest::new(vec![5, 6, 7, 8, 9], max_tokens) }
}

/// What came of a request.
#[derive(Debug, Default)]
struct Answer {
    /// By sample: tokens, text, why it ended.
    samples: Vec<(Vec<u32>, String, Option<StopReason>)>,
    num_output_tokens: usize,
    num_cached_tokens: usize,
    reason: Option<StopReason>,
    failure: Option<InferError>,
}

fn collect(mut generation: Generation) -> Answer {
    let mut answer = Answer::default();
    while let Some(event) = generation.blocking_next() {
        match event {
            GenerationEvent::Token { sample, id, text, stop, .. } => {
                let num_samples = answer.samples.len().max(sample + 1);
                answer.samples.resize_with(num_samples, Default::default);
                let (tokens, shown, ended) = &mut answer.samples[sample];
                assert_eq!(*ended, None, "a sample that has ended draws no more");
                tokens.push(id);
                shown.push_str(&text);
                *ended = stop;
            }
            GenerationEvent::PromptLogprobs { .. } => {}
            GenerationEvent::Done { reason, num_output_tokens, num_cached_tokens, .. } => {
                answer.reason = Some(reason);
                answer.num_output_tokens = num_output_tokens;
                answer.num_cached_tokens = num_cached_tokens;
            }
            GenerationEvent::Failed(error) => answer.failure = Some(error),
        }
    }
    answer
}

fn answer(host: &EngineHost, request: InferRequest) -> Answer {
    collect(host.submit(request).unwrap())
}

/// Waits until the engine says that `reached` holds.
#[track_caller]
fn wait_for(host: &EngineHost, reached: impl Fn(HostStatus) -> bool) {
    let begun = Instant::now();
    while !reached(host.status()) {
        assert!(begun.elapsed() < LIMIT, "never reached: {:?}", host.status());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[track_caller]
fn comes_to_rest(host: &EngineHost) {
    wait_for(host, |status| {
        status.num_running + status.num_waiting == 0 && status.num_free_blocks == status.num_blocks
    });
}

#[test]
fn stop_text_across_tokens_ends_the_sample_and_frees_its_blocks() {
    let host = host(small_blocks());
    let whole = answer(&host, request(40));
    let (tokens, text, _) = &whole.samples[0];
    // From inside one token's text to inside a later one's.
    let start = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let stop: String = text[start..].chars().take(9).collect();
    let at = text.find(&stop).unwrap();
    let stopped = answer(&host, InferRequest { stop: vec![stop], ..request(4000) });
    let (drawn, shown, ended) = &stopped.samples[0];
    assert_eq!(shown, &text[..at]);
    assert_eq!((*ended, stopped.reason), (Some(StopReason::Stop), Some(StopReason::Stop)));
    assert_eq!(drawn, &tokens[..drawn.len()]);
    assert_eq!(stopped.num_output_tokens, drawn.len());
    // The end is told once the blocks are free.
    assert_eq!(host.status().num_free_blocks, host.status().num_blocks);
}

#[test]
fn stop_text_longer_than_the_output_loses_no_text() {
    let host = host(small_blocks());
    let plain = answer(&host, request(6));
    let text = plain.samples[0].1.clone();
    let long = format!("{text}{}", "z".repeat(200));
    let held = answer(&host, InferRequest { stop: vec![long], ..request(6) });
    assert_eq!(held.samples[0].1, text);
    assert_eq!(held.reason, Some(StopReason::Length));
}

#[test]
fn stop_text_ends_one_sample_and_leaves_the_others() {
    let host = host(small_blocks());
    let sampling = SamplingParams { temperature: 1.0, seed: 3, ..SamplingParams::default() };
    let sampled = InferRequest { n: 4, sampling, ..request(30) };
    let whole = answer(&host, sampled.clone());
    assert_eq!(whole.num_output_tokens, 120);
    let text = &whole.samples[1].1;
    let stop = text[text.len() / 2..].split_whitespace().nth(1).unwrap().to_owned();
    let stopped = answer(&host, InferRequest { stop: vec![stop.clone()], ..sampled });
    for (before, after) in whole.samples.iter().zip(&stopped.samples) {
        let expected = before.1.split(&stop).next().unwrap();
        assert_eq!(after.1, expected);
        let cut = expected.len() < before.1.len();
        assert_eq!(after.2, Some(if cut { StopReason::Stop } else { StopReason::Length }));
    }
    assert_eq!(stopped.samples[1].2, Some(StopReason::Stop));
    comes_to_rest(&host);
}

#[test]
fn stop_texts_out_of_bounds_are_refused() {
    let host = host(small_blocks());
    for stop in [vec![String::new()], vec!["x".repeat(257)], vec!["x".to_owned(); 17]] {
        let refused = host.submit(InferRequest { stop, ..request(1) });
        assert!(matches!(refused, Err(InferError::Request(_))));
    }
    assert!(matches!(host.submit(request(0)), Err(InferError::Request(_))));
    let empty = InferRequest { prompt_ids: Vec::new(), ..request(1) };
    assert!(matches!(host.submit(empty), Err(InferError::Request(_))));
}

#[test]
fn scores_of_an_answer_are_those_with_which_it_was_drawn() {
    let host = host(small_blocks());
    let mut generation = host.submit(InferRequest { logprobs: Some(3), ..request(12) }).unwrap();
    let (mut ids, mut drawn) = (request(1).prompt_ids, Vec::new());
    while let Some(event) = generation.blocking_next() {
        if let GenerationEvent::Token { id, logprobs, .. } = event {
            ids.push(id);
            drawn.extend(logprobs);
        }
    }
    let scores = host.score(&ids, 3).unwrap();
    assert_eq!(scores.len(), ids.len() - 1);
    assert_eq!(scores[4..], drawn);
    assert!(host.score(&[7], 1).unwrap().is_empty(), "one token has nothing before it");
    assert!(host.score(&[], 1).is_err());
    assert!(host.score(&[200], 1).is_err());
    comes_to_rest(&host);
}

/// The states of a request at which it can be given up.
#[derive(Debug, Clone, Copy)]
enum State {
    Queued,
    Prefilling,
    Decoding,
    Preempted,
    AtItsLastToken,
    Finished,
}

/// A request of `n` samples in `state`, and the one that keeps it there.
fn bring_to(state: State, n: usize, host: &EngineHost) -> (Generation, Option<Generation>) {
    let long = InferRequest { n, ..request(1500) };
    // A hundred steps until its first token.
    let prompt_ids: Vec<u32> = (0..1600).map(|i| i % 190).collect();
    let long_prompt = InferRequest { prompt_ids, n, ..request(20) };
    match state {
        State::Queued => {
            let other = host.submit(long.clone()).unwrap();
            let generation = host.submit(long).unwrap();
            wait_for(host, |status| status.num_running > 0 && status.num_waiting > 0);
            (generation, Some(other))
        }
        State::Prefilling => {
            let generation = host.submit(long_prompt).unwrap();
            wait_for(host, |status| status.num_running > 0);
            (generation, None)
        }
        State::Decoding => {
            let mut generation = host.submit(long).unwrap();
            assert!(generation.blocking_next().is_some());
            (generation, None)
        }
        State::Preempted => {
            let telemetry = host.observe(|| None).unwrap();
            let other = host.submit(request(2000)).unwrap();
            let generation = host.submit(InferRequest { max_tokens: 400, ..long_prompt }).unwrap();
            let begun = Instant::now();
            let preempted = |event| match event {
                EngineEvent::Step(step) => step.after.num_preemptions > 0,
                _ => false,
            };
            while !telemetry.drain().any(preempted) {
                assert!(begun.elapsed() < LIMIT, "nothing is preempted");
                std::thread::sleep(Duration::from_millis(1));
            }
            (generation, Some(other))
        }
        State::AtItsLastToken | State::Finished => {
            let mut generation = host.submit(InferRequest { n, ..request(3) }).unwrap();
            for _ in 0..3 * n {
                assert!(generation.blocking_next().is_some());
            }
            while matches!(state, State::Finished) && generation.blocking_next().is_some() {}
            (generation, None)
        }
    }
}

#[test]
fn request_cancelled_in_any_state_frees_its_blocks() {
    use State::{AtItsLastToken, Decoding, Finished, Preempted, Prefilling, Queued};
    for n in [1, 3] {
        for state in [Queued, Prefilling, Decoding, Preempted, AtItsLastToken, Finished] {
            // Room for the long prompt and four hundred tokens; for anything, where all fit.
            let (max_num_seqs, num_blocks) =
                if matches!(state, Preempted) { (1 + n, 512) } else { (n, 2048) };
            let config = EngineConfig {
                max_num_seqs,
                max_num_batched_tokens: 16,
                kv: KvBudget::Blocks(num_blocks),
                ..small_blocks()
            };
            let host = host(config);
            host.load().unwrap();
            let (cancelled, other) = bring_to(state, n, &host);
            drop(cancelled);
            if other.is_some() {
                // It goes while the other one lives.
                wait_for(&host, |status| status.num_waiting == 0);
            }
            drop(other);
            comes_to_rest(&host);
            let next = answer(&host, request(2));
            assert_eq!(next.num_output_tokens, 2, "{state:?} with n = {n}: it goes on serving");
        }
    }
}

#[test]
fn cached_prompt_tokens_are_told_and_change_nothing() {
    for (enable_prefix_caching, cached) in [(true, 4), (false, 0)] {
        let host = host(EngineConfig { enable_prefix_caching, ..small_blocks() });
        let (first, again) = (answer(&host, request(9)), answer(&host, request(9)));
        assert_eq!(first.samples, again.samples);
        assert_eq!((first.num_cached_tokens, again.num_cached_tokens), (0, cached));
        assert_eq!(host.settings()["enable_prefix_caching"], enable_prefix_caching.to_string());
    }
}

#[test]
fn engine_tells_its_loading_and_every_step() {
    let host = host(small_blocks());
    let telemetry = host.observe(|| Some(1 << 20)).unwrap();
    assert_eq!(answer(&host, request(10)).num_output_tokens, 10);
    let events: Vec<EngineEvent> = telemetry.drain().collect();
    let phases: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            EngineEvent::Load(phase) => Some(phase.kind),
            _ => None,
        })
        .collect();
    let kinds = [
        LoadPhaseKind::Open,
        LoadPhaseKind::Weights,
        LoadPhaseKind::KvPool,
        LoadPhaseKind::FirstStep,
    ];
    assert_eq!(phases, kinds);
    let memory = events.iter().find_map(|event| match event {
        EngineEvent::Memory(parts) => Some(*parts),
        _ => None,
    });
    let memory = memory.unwrap();
    // 1024 blocks of 4 tokens, K and V, 2 layers, 2 heads of 8; f32 or half as wide.
    let wide = 1024 * 4 * 2 * 2 * 2 * 8 * 4;
    assert!(memory.kv_bytes == wide || memory.kv_bytes == wide / 2, "{memory:?}");
    assert!(memory.weight_bytes > 0 && memory.resident_before == Some(1 << 20));
    let steps: Vec<StepStats> = events
        .iter()
        .filter_map(|event| match event {
            EngineEvent::Step(step) => Some(*step),
            _ => None,
        })
        .collect();
    assert_eq!(steps.len(), 10, "one for the prompt and its first token, nine decodes");
    assert_eq!((steps[0].num_tokens, steps[0].num_prefill_tokens), (5, 5));
    assert!(
        steps[1..].iter().all(|s| (s.num_tokens, s.num_prefill_tokens, s.num_seqs) == (1, 0, 1))
    );
    assert!(steps[0].after.num_free_blocks < steps[0].after.num_blocks);
    assert!(
        steps.windows(2).all(|pair| pair[0].started_at.plus(pair[0].took) <= pair[1].started_at)
    );
    assert_eq!(steps[0].resident_bytes, Some(1 << 20));
    assert_eq!(telemetry.take_num_dropped(), 0);
    // Nobody listens any more: the engine does not mind.
    drop(telemetry);
    assert_eq!(answer(&host, request(2)).num_output_tokens, 2);
}
