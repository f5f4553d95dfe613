//! The engine on its thread, over a tiny model.

use std::time::Duration;

use super::*;
use crate::infer::StopReason;
use crate::infer::weights::{Weight, WeightForm, WeightSource};

fn tiny() -> ModelSource {
    let config = ModelConfig {
        vocab_size: 64,
        max_position_embeddings: 4096,
        eos_token_ids: vec![2],
        ..ModelConfig::tiny()
    };
    ModelSource::Dummy { config: Box::new(config), seed: 3, tokenizer: None }
}

fn host(config: EngineConfig) -> EngineHost {
    EngineHost::open(&tiny(), config, Clock::real()).unwrap()
}

fn request(max_tokens: usize) -> InferRequest {
    InferRequest { ignore_eos: true, ..InferRequest::new(vec![5, 6, 7], max_tokens) }
}

fn drain(mut generation: Generation) -> Vec<GenerationEvent> {
    std::iter::from_fn(|| generation.blocking_next()).collect()
}

/// Waits until the engine says that `reached` holds.
fn wait_for(host: &EngineHost, reached: impl Fn(HostStatus) -> bool) {
    for _ in 0..5000 {
        if reached(host.status()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("never reached: {:?}", host.status());
}

#[test]
fn a_request_loads_the_model_and_reports_every_token_then_the_end() {
    let host = host(EngineConfig::default());
    assert!(!host.status().loaded);
    let events = drain(host.submit(request(5)).unwrap());
    let (last, tokens) = events.split_last().unwrap();
    assert_eq!(tokens.len(), 5);
    assert!(tokens.iter().all(|event| matches!(event, GenerationEvent::Token { .. })));
    let GenerationEvent::Done { reason, num_prompt_tokens, num_output_tokens, timings, .. } = last
    else {
        panic!("{last:?}")
    };
    assert_eq!((*num_prompt_tokens, *num_output_tokens), (3, 5));
    assert_eq!(*reason, StopReason::Length);
    assert!(timings.load > Duration::ZERO && timings.queue >= timings.load);
    assert!(timings.prefill > Duration::ZERO && timings.decode > Duration::ZERO);
    let status = host.status();
    assert!(status.loaded && status.num_free_blocks == status.num_blocks);
}

#[test]
fn requests_that_arrive_while_it_is_busy_start_together() {
    /// Weights that come when the gate's other end is dropped.
    struct Gated(Box<dyn WeightSource>, Receiver<()>);
    impl WeightSource for Gated {
        fn load(
            &self,
            name: &str,
            shape: &[usize],
            form: WeightForm,
        ) -> Result<Weight<'_>, InferError> {
            let _ = self.1.recv();
            self.0.load(name, shape, form)
        }
        fn stored_dtype(&self) -> StoredDtype {
            self.0.stored_dtype()
        }
        fn stored_bytes(&self) -> u64 {
            self.0.stored_bytes()
        }
    }
    let (gate, closed) = sync_channel(0);
    let model = weights::open(&tiny()).unwrap();
    let model = OpenModel { weights: Box::new(Gated(model.weights, closed)), ..model };
    let host = EngineHost::start(model, EngineConfig::default(), Clock::real()).unwrap();
    let generations: Vec<_> = (0..8).map(|_| host.submit(request(2)).unwrap()).collect();
    drop(gate);
    let firsts: Vec<_> = generations
        .into_iter()
        .map(|generation| match drain(generation).remove(0) {
            GenerationEvent::Token { at, .. } => at,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(firsts.iter().all(|at| *at == firsts[0]), "{firsts:?}");
}

#[test]
fn dropping_a_generation_frees_its_blocks() {
    let host = host(EngineConfig::default());
    let mut generation = host.submit(request(4000)).unwrap();
    assert!(matches!(generation.blocking_next(), Some(GenerationEvent::Token { .. })));
    assert!(host.status().num_free_blocks < host.status().num_blocks);
    drop(generation);
    wait_for(&host, |status| status.num_free_blocks == status.num_blocks);
    assert_eq!(drain(host.submit(request(1)).unwrap()).len(), 2, "and goes on serving");
}

#[test]
fn a_reader_that_sleeps_loses_nothing_and_blocks_nobody() {
    let host = host(EngineConfig::default());
    let asleep = host.submit(request(300)).unwrap();
    assert_eq!(drain(host.submit(request(3)).unwrap()).len(), 4);
    wait_for(&host, |status| status.loaded && status.num_running == 0);
    assert_eq!(drain(asleep).len(), 301);
}

#[test]
fn one_more_than_may_wait_is_refused_as_busy() {
    let config = EngineConfig { max_num_seqs: 1, max_queue: 2, ..EngineConfig::default() };
    let host = host(config);
    let kept: Vec<_> = (0..3).map(|_| host.submit(request(2000)).unwrap()).collect();
    let error = host.submit(request(1)).err().unwrap();
    assert!(matches!(error, InferError::Busy { waiting: 2, limit: 2 }), "{error}");
    drop(kept);
    wait_for(&host, |_| host.shared.live.load(Ordering::Acquire) == 0);
    assert!(host.submit(request(1)).is_ok());
}

#[test]
fn what_can_never_fit_is_refused_before_it_is_queued() {
    let host = host(EngineConfig { max_model_len: Some(4), ..EngineConfig::default() });
    let long = InferRequest { prompt_ids: vec![1; 4], ..request(1) };
    assert!(matches!(host.submit(long), Err(InferError::Request(_))));
    assert_eq!(drain(host.submit(request(usize::MAX)).unwrap()).len(), 2);
    assert!(!matches!(host.submit(request(0)), Ok(_) | Err(InferError::Busy { .. })));
}

#[test]
fn unloading_aborts_what_runs_and_the_next_request_loads_again() {
    let host = host(EngineConfig::default());
    host.load().unwrap();
    let running = host.submit(request(4000)).unwrap();
    host.unload();
    assert!(!host.status().loaded);
    let last = drain(running).pop();
    assert!(matches!(last, Some(GenerationEvent::Done { reason: StopReason::Aborted, .. })));
    let before = drain(host.submit(request(4)).unwrap()).len();
    assert_eq!(before, 5);
    assert!(host.status().loaded);
}

#[test]
fn a_panic_in_a_step_fails_the_live_requests_and_the_engine_recovers() {
    let host = host(EngineConfig::default());
    host.load().unwrap();
    host.commands.send(Command::PanicInNextStep).unwrap();
    let events = drain(host.submit(request(4)).unwrap());
    let [GenerationEvent::Failed(InferError::Internal(message))] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert!(message.contains("a step panicked"), "{message}");
    assert!(!host.status().loaded);
    assert_eq!(drain(host.submit(request(4)).unwrap()).len(), 5);
}

#[test]
fn weights_that_cannot_be_read_fail_whoever_waits_for_them() {
    struct Unreadable;
    impl WeightSource for Unreadable {
        fn load(&self, _: &str, _: &[usize], _: WeightForm) -> Result<Weight<'_>, InferError> {
            Err(InferError::Internal("unreadable, as ordered".to_owned()))
        }
        fn stored_dtype(&self) -> StoredDtype {
            StoredDtype::F32
        }
        fn stored_bytes(&self) -> u64 {
            0
        }
    }
    let model = OpenModel { weights: Box::new(Unreadable), ..weights::open(&tiny()).unwrap() };
    let host = EngineHost::start(model, EngineConfig::default(), Clock::real()).unwrap();
    assert!(host.load().unwrap_err().to_string().contains("unreadable"));
    let events = drain(host.submit(request(4)).unwrap());
    assert!(matches!(events.as_slice(), [GenerationEvent::Failed(_)]), "{events:?}");
}

#[test]
fn the_last_handle_takes_the_thread_and_its_requests_along() {
    let host = host(EngineConfig::default());
    let running = host.submit(request(4000)).unwrap();
    drop(host.clone());
    assert!(host.load().is_ok(), "a clone that goes changes nothing");
    drop(host);
    let last = drain(running).pop();
    assert!(matches!(last, Some(GenerationEvent::Done { reason: StopReason::Aborted, .. })));
}

#[test]
fn settings_are_known_without_loading() {
    let host = host(EngineConfig { max_model_len: Some(100), ..EngineConfig::default() });
    let settings = host.settings();
    assert_eq!(settings["max_model_len"], "100");
    assert_eq!(settings["num_blocks"], (7 * 16).to_string());
    assert_eq!(settings["weights"], "dummy");
    assert_eq!((&*settings["dtype"], &*settings["dtype_from"]), ("bf16", "weights"));
    assert_eq!(host.precision(), "bf16 (dummy)");
    assert!(host.is_dummy() && !host.status().loaded);
    assert_eq!(host.max_model_len(), 100);
}
