//! Connections that were answered on and wait for another request, as the clients
//! that engines meet keep them: a new one is accepted while the request is already
//! on its way, and that would count as TTFT. Knows no engine and no request.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::link::Link;
use crate::clock::{Clock, Timestamp};

/// Longest wait: servers close idle connections after 5 s (uvicorn, cpp-httplib), and
/// one that closes as a request comes would fail it.
const LONGEST: Duration = Duration::from_secs(1);
/// Connections that wait at most.
const MOST: usize = 4096;

/// The latest last, each with the instant of its answer.
#[derive(Default)]
pub(super) struct Parked(Mutex<Vec<(Timestamp, Link)>>);

impl Parked {
    /// The latest that is still open.
    pub(super) async fn take(&self, clock: &Clock) -> Option<Link> {
        loop {
            let latest = self.fresh(clock.now()).pop();
            let (_, mut link) = latest?;
            if link.is_quiet().await {
                return Some(link);
            }
        }
    }

    /// Keeps `link`, if another request may be sent on it.
    pub(super) fn keep(&self, link: Link, clock: &Clock) {
        let Some(link) = link.renewed() else { return };
        let now = clock.now();
        let mut fresh = self.fresh(now);
        if fresh.len() < MOST {
            fresh.push((now, link));
        }
    }

    /// Those that may be used again. The others are closed: some servers keep a thread
    /// for each.
    fn fresh(&self, now: Timestamp) -> MutexGuard<'_, Vec<(Timestamp, Link)>> {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = links.partition_point(|(since, _)| now.since(*since) > LONGEST);
        links.drain(..old);
        links
    }
}
