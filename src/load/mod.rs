//! The driver: issues requests, bounds those in flight, hands back what
//! happened. Does not know engine kinds, prompts or files. A closed loop is
//! [`drive`], an open one [`OpenLoad`].
//!
//! It runs on a current-thread runtime: the opening burst is spawned as a
//! whole and then written socket after socket without a switch of threads,
//! which keeps its spread at the cost of a few system calls.

pub mod arrival;
pub mod open;
mod timer;

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Timestamp};
use crate::engine::{Engine, EngineError, ErrorClass, Exchange, GenerateRequest, Prepared};

pub use arrival::{Arrivals, Extent, Process};
pub use open::{Arriving, Next, OpenLoad};

/// A request that has ended, one way or another.
#[derive(Debug)]
pub struct Completed {
    /// Its index in the list that was given.
    pub index: usize,
    /// When the driver released it, or was to release it.
    pub intended_at: Timestamp,
    /// Whether it was kept back because as many as allowed were in flight.
    pub held: bool,
    /// What happened.
    pub exchange: Exchange,
}

/// Runs `requests` against `engine` with at most `concurrency` in flight: the
/// first `concurrency` are prepared, then released at once; each of the rest
/// is released as one before it ends. `on_completed` sees each as it ends and
/// says whether the load goes on. What follows upon what is in the list already.
///
/// After `cancel` nothing more is sent; what is in flight ends as cancelled.
pub async fn drive(
    engine: &Arc<dyn Engine>,
    requests: Vec<GenerateRequest>,
    concurrency: usize,
    clock: &Clock,
    cancel: &CancellationToken,
    on_completed: &mut dyn FnMut(Completed) -> Next,
) {
    let mut waiting: VecDeque<(usize, GenerateRequest)> =
        requests.into_iter().enumerate().collect();
    let mut in_flight = JoinSet::new();
    let opening: Vec<_> = waiting.drain(..concurrency.max(1).min(waiting.len())).collect();
    let prepared = prepare_all(engine, opening).await;
    if cancel.is_cancelled() {
        return;
    }
    let released_at = clock.now();
    for (index, prepared) in prepared {
        in_flight.spawn(run(index, prepared, released_at, clock.clone(), cancel.clone()));
    }
    while let Some(joined) = in_flight.join_next().await {
        let completed = joined.unwrap_or_else(|panic| lost(clock, &panic.to_string()));
        match on_completed(completed) {
            Next::GoOn | Next::Then(_) => {}
            Next::Stop => cancel.cancel(),
            Next::Enough => waiting.clear(),
        }
        if cancel.is_cancelled() {
            continue;
        }
        if let Some((index, request)) = waiting.pop_front() {
            let (engine, clock, cancel) = (Arc::clone(engine), clock.clone(), cancel.clone());
            in_flight.spawn(async move {
                let prepared = engine.prepare(&request).await;
                let intended_at = clock.now();
                run(index, prepared, intended_at, clock, cancel).await
            });
        }
    }
}

type Preparation = Result<Box<dyn Prepared>, EngineError>;

/// Connections are opened together: one slow handshake does not age the others.
async fn prepare_all(
    engine: &Arc<dyn Engine>,
    requests: Vec<(usize, GenerateRequest)>,
) -> Vec<(usize, Preparation)> {
    let preparations = requests.into_iter().map(|(index, request)| {
        let engine = Arc::clone(engine);
        async move { (index, engine.prepare(&request).await) }
    });
    futures_util::future::join_all(preparations).await
}

async fn run(
    index: usize,
    prepared: Preparation,
    intended_at: Timestamp,
    clock: Clock,
    cancel: CancellationToken,
) -> Completed {
    let exchange = match prepared {
        Ok(prepared) => prepared.run(cancel).await,
        Err(error) => Exchange::failed(clock.now(), error),
    };
    Completed { index, intended_at, held: false, exchange }
}

/// A task that panicked: its request is lost, which is recorded and not hidden.
fn lost(clock: &Clock, reason: &str) -> Completed {
    let error = EngineError::new(ErrorClass::Engine, format!("request task ended early: {reason}"));
    let now = clock.now();
    let exchange = Exchange::failed(now, error);
    Completed { index: usize::MAX, intended_at: now, held: false, exchange }
}

#[cfg(test)]
mod tests;
