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
    takes: Duration,
    enough: usize,
}

struct Counted {
    clock: Clock,
    counters: Arc<Mutex<Counters>>,
    takes: Duration,
    /// In flight together, so many are answered at once.
    enough: usize,
}

impl Counted {
    /// Returns when as many as are enough have been in flight.
    async fn together(&self) {
        while self.counters.lock().unwrap().most_in_flight < self.enough {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
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
        let counters = Arc::clone(&self.counters);
        let (clock, takes, enough) = (self.clock.clone(), self.takes, self.enough);
        Ok(Box::new(Counted { clock, counters, takes, enough }))
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
            () = tokio::time::sleep(self.takes) => {}
            () = self.together() => {}
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

/// An engine whose requests take `takes` ms each, and what it counts.
fn counting(clock: &Clock, refuse: bool, takes: u64) -> (Arc<dyn Engine>, Arc<Mutex<Counters>>) {
    counting_to(clock, refuse, takes, usize::MAX)
}

/// The same, which answers all as soon as `enough` are in flight.
fn counting_to(
    clock: &Clock,
    refuse: bool,
    takes: u64,
    enough: usize,
) -> (Arc<dyn Engine>, Arc<Mutex<Counters>>) {
    let counters = Arc::new(Mutex::new(Counters::default()));
    let engine = Counting {
        spec: "openai".parse().unwrap(),
        clock: clock.clone(),
        counters: Arc::clone(&counters),
        refuse,
        takes: Duration::from_millis(takes),
        enough,
    };
    (Arc::new(engine), counters)
}

/// Runs `n` requests, stopping the load after `stop_after`; returns the ended ones.
fn run(
    n: usize,
    concurrency: usize,
    refuse: bool,
    stop_after: usize,
) -> (Vec<Completed>, Counters) {
    run_until(n, concurrency, refuse, stop_after, || Next::Stop)
}

/// The same with another answer after `stop_after` than to stop.
fn run_until(
    n: usize,
    concurrency: usize,
    refuse: bool,
    stop_after: usize,
    end: impl Fn() -> Next,
) -> (Vec<Completed>, Counters) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let clock = Clock::real();
    let (engine, counters) = counting(&clock, refuse, 2);
    let mut ended = Vec::new();
    let requests = (0..n).map(|_| request()).collect();
    let cancel = CancellationToken::new();
    runtime.block_on(drive(&engine, requests, concurrency, &clock, &cancel, &mut |completed| {
        ended.push(completed);
        if ended.len() < stop_after { Next::GoOn } else { end() }
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

#[test]
fn enough_sends_no_more_and_lets_what_is_in_flight_end() {
    let (ended, counters) = run_until(20, 4, false, 1, || Next::Enough);
    assert_eq!((ended.len(), counters.prepared), (4, 4));
    assert!(ended.iter().all(|completed| completed.exchange.outcome.is_ok()));
    let at: Vec<u64> = (0..20).map(|i| i * 40).collect();
    let (ended, _) = arrive(&at, 100, 100, |_| Next::Enough);
    // Those that had arrived in the 100 ms that the first took; a slow machine adds some.
    assert!((1..15).contains(&ended.len()), "{}", ended.len());
    assert!(ended.iter().all(|completed| completed.exchange.outcome.is_ok()));
}

/// Runs an open loop of requests that arrive at `at` ms and take `takes` ms each.
fn arrive(
    at: &[u64],
    takes: u64,
    max_in_flight: usize,
    next: impl FnMut(&Completed) -> Next,
) -> (Vec<Completed>, Counters) {
    arrive_at(at, (takes, usize::MAX), max_in_flight, next)
}

/// The same with requests that are answered as soon as `enough` are in flight.
fn arrive_at(
    at: &[u64],
    (takes, enough): (u64, usize),
    max_in_flight: usize,
    mut next: impl FnMut(&Completed) -> Next,
) -> (Vec<Completed>, Counters) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let clock = Clock::real();
    let (engine, counters) = counting_to(&clock, false, takes, enough);
    let arrivals = at.iter().enumerate().map(|(index, at)| arriving(index, *at)).collect();
    let cancel = CancellationToken::new();
    let load = OpenLoad { engine: &engine, max_in_flight, clock: &clock, cancel: &cancel };
    let mut ended = Vec::new();
    runtime.block_on(load.drive(arrivals, &mut |completed| {
        let next = next(&completed);
        ended.push(completed);
        next
    }));
    drop(engine);
    ended.sort_by_key(|completed| completed.index);
    let counters = std::mem::take(&mut *counters.lock().unwrap());
    (ended, counters)
}

fn arriving(index: usize, at: u64) -> Arriving {
    Arriving { index, at: Duration::from_millis(at), request: request() }
}

fn delay(completed: &Completed) -> Duration {
    completed.exchange.sent_at.unwrap().since(completed.intended_at)
}

/// Nothing is answered before all are sent: a loop that waited for an answer
/// would come to the end of the minute that a request takes otherwise.
#[test]
fn open_loop_sends_at_its_instants_whatever_is_unanswered() {
    let at: Vec<u64> = (0..40).map(|i| i * 5).collect();
    let (ended, counters) = arrive_at(&at, (60_000, 40), 100, |_| Next::GoOn);
    assert_eq!(ended.len(), 40);
    assert_eq!(counters.most_in_flight, 40);
    for pair in ended.windows(2) {
        let gap = pair[1].intended_at.since(pair[0].intended_at);
        assert_eq!(gap, Duration::from_millis(5), "what was sent late moves no later instant");
        assert!(pair[0].exchange.sent_at <= pair[1].exchange.sent_at, "in their order");
    }
    assert!(ended.iter().all(|c| !c.held && c.exchange.sent_at >= Some(c.intended_at)));
}

#[test]
fn no_arrival_is_dropped_at_the_bound_and_those_that_waited_say_so() {
    let (ended, counters) = arrive(&[0, 0, 0, 0, 0, 0, 0, 1_200], 300, 2, |_| Next::GoOn);
    assert_eq!(counters.most_in_flight, 2);
    assert_eq!(ended.len(), 8);
    let held: Vec<bool> = ended.iter().map(|completed| completed.held).collect();
    assert_eq!(held, [false, false, true, true, true, true, true, false], "{held:?}");
    // Intended instants stay those of arrival: the wait is in what a user waits.
    assert_eq!(ended[6].intended_at, ended[0].intended_at);
    assert!(delay(&ended[6]) >= Duration::from_millis(900), "{:?}", delay(&ended[6]));
}

#[test]
fn next_turn_comes_after_the_answer_and_its_pause() {
    let (ended, counters) = arrive(&[0, 1], 5, 10, |completed| match completed.index {
        0 => Next::Then(arriving(10, 30)),
        10 => Next::Then(arriving(11, 0)),
        _ => Next::GoOn,
    });
    let indices: Vec<_> = ended.iter().map(|completed| completed.index).collect();
    assert_eq!(indices, [0, 1, 10, 11]);
    assert_eq!(counters.prepared, 4);
    let pause = ended[2].intended_at.since(ended[0].exchange.done_at);
    assert_eq!(pause, Duration::from_millis(30));
    assert_eq!(ended[3].intended_at, ended[2].exchange.done_at);
    assert!(ended[3].exchange.sent_at >= Some(ended[3].intended_at));
}

#[test]
fn stopping_an_open_loop_sends_no_more_and_ends_what_is_in_flight() {
    let at = [0, 0, 0, 100, 2_000];
    let (ended, counters) = arrive(&at, 150, 10, |_| Next::Stop);
    assert!(ended.len() <= 4, "{}", ended.len());
    assert_eq!(counters.in_flight, 0);
    assert!(ended.iter().any(|completed| completed.exchange.outcome.is_ok()));
}
