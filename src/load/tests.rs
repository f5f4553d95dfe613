//! The driver against an engine that only counts.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;

use super::*;
use crate::engine::{EngineInfo, EngineSpec, Prompt, Sampling};

#[derive(Default)]
struct Counters {
    in_flight: usize,
    most_in_flight: usize,
    prepared: usize,
    prepared_at_first_send: Option<usize>,
}

struct Counting {
    spec: EngineSpec,
    clock: Clock,
    counters: Arc<Mutex<Counters>>,
    refuse: bool,
}

struct Counted {
    clock: Clock,
    counters: Arc<Mutex<Counters>>,
}

#[async_trait]
impl Engine for Counting {
    fn spec(&self) -> &EngineSpec {
        &self.spec
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        Err(EngineError::new(ErrorClass::Engine, "not asked"))
    }

    async fn prepare(&self, _: &GenerateRequest) -> Result<Box<dyn Prepared>, EngineError> {
        if self.refuse {
            return Err(EngineError::new(ErrorClass::Unreachable, "connection refused"));
        }
        self.counters.lock().unwrap().prepared += 1;
        Ok(Box::new(Counted { clock: self.clock.clone(), counters: Arc::clone(&self.counters) }))
    }

    async fn make_cold(&self) -> Result<Duration, EngineError> {
        Ok(Duration::ZERO)
    }
}

#[async_trait]
impl Prepared for Counted {
    async fn run(self: Box<Self>, cancel: CancellationToken) -> Exchange {
        {
            let mut counters = self.counters.lock().unwrap();
            counters.in_flight += 1;
            counters.most_in_flight = counters.most_in_flight.max(counters.in_flight);
            let prepared = counters.prepared;
            counters.prepared_at_first_send.get_or_insert(prepared);
        }
        let mut exchange = Exchange::begun(self.clock.now());
        exchange.sent_at = Some(self.clock.now());
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(2)) => {}
            () = cancel.cancelled() => {
                exchange.outcome = Err(EngineError::new(ErrorClass::Cancelled, "cancelled"));
            }
        }
        self.counters.lock().unwrap().in_flight -= 1;
        exchange.done_at = self.clock.now();
        exchange
    }
}

fn request() -> GenerateRequest {
    GenerateRequest {
        prompt: Prompt::Raw("x".to_owned()),
        max_tokens: 1,
        sampling: Sampling::default(),
        ignore_eos: false,
    }
}

/// Runs `n` requests, stopping the load after `stop_after`; returns the ended ones.
fn run(
    n: usize,
    concurrency: usize,
    refuse: bool,
    stop_after: usize,
) -> (Vec<Completed>, Counters) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let clock = Clock::real();
    let counters = Arc::new(Mutex::new(Counters::default()));
    let engine: Arc<dyn Engine> = Arc::new(Counting {
        spec: "openai".parse().unwrap(),
        clock: clock.clone(),
        counters: Arc::clone(&counters),
        refuse,
    });
    let mut ended = Vec::new();
    let requests = (0..n).map(|_| request()).collect();
    let cancel = CancellationToken::new();
    runtime.block_on(drive(&engine, requests, concurrency, &clock, &cancel, &mut |completed| {
        ended.push(completed);
        ended.len() < stop_after
    }));
    drop(engine);
    let counters = std::mem::take(&mut *counters.lock().unwrap());
    (ended, counters)
}

#[test]
fn closed_loop_never_exceeds_its_concurrency_and_ends_every_request() {
    let (ended, counters) = run(20, 4, false, usize::MAX);
    assert_eq!(counters.most_in_flight, 4);
    let mut indices: Vec<_> = ended.iter().map(|completed| completed.index).collect();
    indices.sort_unstable();
    assert_eq!(indices, (0..20).collect::<Vec<_>>());
}

#[test]
fn burst_is_prepared_as_a_whole_before_anything_is_sent() {
    let (ended, counters) = run(10, 10, false, usize::MAX);
    assert_eq!(counters.prepared_at_first_send, Some(10));
    let first = ended[0].intended_at;
    assert!(ended.iter().all(|completed| completed.intended_at == first));
}

#[test]
fn refused_connection_is_a_failed_request_not_the_end() {
    let (ended, _) = run(6, 2, true, usize::MAX);
    assert_eq!(ended.len(), 6);
    assert!(
        ended
            .iter()
            .all(|c| c.exchange.outcome.as_ref().unwrap_err().class == ErrorClass::Unreachable)
    );
}

#[test]
fn stopping_hands_back_what_is_in_flight_and_sends_no_more() {
    let (ended, counters) = run(20, 4, false, 1);
    assert_eq!(ended.len(), 4, "one ended, three were in flight");
    assert_eq!(counters.prepared, 4);
    assert_eq!(counters.in_flight, 0);
}
