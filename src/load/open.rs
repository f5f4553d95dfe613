//! The open loop: every request is sent when it arrives, whatever the engine
//! has not answered yet. Arrivals are never dropped. One that cannot leave on
//! time leaves late, and what it waited for is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::timer::Timer;
use super::{Completed, lost, run};
use crate::clock::{Clock, Timestamp};
use crate::engine::{Engine, GenerateRequest};
use crate::units;

/// How long before its arrival a request is prepared: its connection is then
/// open, so that no handshake lies in a latency.
const LOOK_AHEAD: Duration = Duration::from_millis(250);

/// A request and its arrival.
#[derive(Debug, Clone)]
pub struct Arriving {
    /// Handed back with what happened.
    pub index: usize,
    /// Since the beginning of the load.
    pub at: Duration,
    /// What is sent.
    pub request: GenerateRequest,
}

/// What follows upon a request that has ended.
#[derive(Debug)]
pub enum Next {
    /// Nothing of it.
    GoOn,
    /// No more is sent, and what is in flight is cancelled.
    Stop,
    /// No more is sent; what is in flight goes on to its end.
    Enough,
    /// Another request, so long after this one's end: the next turn of a conversation.
    Then(Arriving),
}

/// What the open loop needs to know of the load.
pub struct OpenLoad<'a> {
    /// Who is asked.
    pub engine: &'a Arc<dyn Engine>,
    /// Connections open at once, those opened ahead included. An arrival that
    /// meets this bound waits here, and is told as held.
    pub max_in_flight: usize,
    /// The run's clock.
    pub clock: &'a Clock,
    /// Ends the load: nothing more is sent, what is in flight ends as cancelled.
    pub cancel: &'a CancellationToken,
}

impl OpenLoad<'_> {
    /// Sends every request of `arrivals` at its instant. `on_completed` sees
    /// each as it ends.
    pub async fn drive(
        &self,
        arrivals: Vec<Arriving>,
        on_completed: &mut dyn FnMut(Completed) -> Next,
    ) {
        // The first arrivals too are prepared before they are due.
        let origin = self.clock.now().plus(LOOK_AHEAD);
        let mut queue = Queue::default();
        for arriving in arrivals {
            queue.add(origin.plus(arriving.at), arriving);
        }
        let mut in_flight: JoinSet<Option<Completed>> = JoinSet::new();
        let mut timer = Timer::new(self.clock);
        let bound = self.max_in_flight.max(1);
        let mut was_full = false;
        while !(in_flight.is_empty() && queue.waiting.is_empty()) {
            let now = self.clock.now();
            queue.release(now);
            while in_flight.len() < bound
                && let Some((at, arriving)) = queue.take_due(now.plus(LOOK_AHEAD))
            {
                let held = was_full && at < now;
                let (release, released) = oneshot::channel();
                in_flight.spawn(self.request(
                    arriving.request,
                    released,
                    Told { index: arriving.index, intended_at: at, held },
                ));
                queue.armed.insert((at, arriving.index), release);
                queue.release(now);
            }
            was_full = in_flight.len() >= bound;
            let wake_at = queue.next_instant(was_full);
            tokio::select! {
                biased;
                () = wait(&mut timer, wake_at) => {}
                Some(joined) = in_flight.join_next() => {
                    let completed = joined.unwrap_or_else(|panic| {
                        Some(lost(self.clock, &panic.to_string()))
                    });
                    let Some(completed) = completed else { continue };
                    let ended_at = completed.exchange.done_at;
                    match on_completed(completed) {
                        Next::GoOn => {}
                        Next::Stop => self.cancel.cancel(),
                        Next::Enough => queue = Queue::default(),
                        Next::Then(arriving) => queue.add(ended_at.plus(arriving.at), arriving),
                    }
                }
            }
            if self.cancel.is_cancelled() {
                // Tasks that wait for their release end when its sender is gone.
                queue = Queue::default();
            }
        }
    }

    /// Prepares a request, waits for its release, follows it to its end.
    /// `None` where the load was stopped before it was sent.
    fn request(
        &self,
        request: GenerateRequest,
        released: oneshot::Receiver<()>,
        told: Told,
    ) -> impl Future<Output = Option<Completed>> + Send + 'static {
        let engine = Arc::clone(self.engine);
        let (clock, cancel) = (self.clock.clone(), self.cancel.clone());
        async move {
            let prepared = tokio::select! {
                biased;
                () = cancel.cancelled() => return None,
                prepared = engine.prepare(&request) => prepared,
            };
            tokio::select! {
                biased;
                released = released => released.ok()?,
                () = cancel.cancelled() => return None,
            }
            let Told { index, intended_at, held } = told;
            Some(Completed { held, ..run(index, prepared, intended_at, clock, cancel).await })
        }
    }
}

/// What a task hands back with what happened.
struct Told {
    index: usize,
    intended_at: Timestamp,
    held: bool,
}

async fn wait(timer: &mut Timer, until: Option<Timestamp>) {
    match until {
        Some(at) => timer.until(at).await,
        None => std::future::pending().await,
    }
}

/// Requests in the order of their instants.
#[derive(Default)]
struct Queue {
    /// Not yet prepared.
    waiting: BTreeMap<(Timestamp, usize), Arriving>,
    /// Prepared, or about to be; released by a message.
    armed: BTreeMap<(Timestamp, usize), oneshot::Sender<()>>,
}

impl Queue {
    fn add(&mut self, at: Timestamp, arriving: Arriving) {
        self.waiting.insert((at, arriving.index), arriving);
    }

    /// Releases whatever is due.
    fn release(&mut self, now: Timestamp) {
        while let Some(entry) = self.armed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            // A task that has ended already needs no release.
            let _ = entry.remove().send(());
        }
    }

    /// The first request that arrives until `until`.
    fn take_due(&mut self, until: Timestamp) -> Option<(Timestamp, Arriving)> {
        let entry = self.waiting.first_entry()?;
        let at = entry.key().0;
        (at <= until).then(|| (at, entry.remove()))
    }

    /// When there is something to do; with `full`, nothing is prepared.
    fn next_instant(&self, full: bool) -> Option<Timestamp> {
        let release = self.armed.first_key_value().map(|((at, _), _)| *at);
        let prepare = self.waiting.first_key_value().filter(|_| !full).map(|((at, _), _)| {
            let ahead = units::nanos(LOOK_AHEAD);
            Timestamp::from_nanos(at.as_nanos().saturating_sub(ahead))
        });
        [release, prepare].into_iter().flatten().min()
    }
}
