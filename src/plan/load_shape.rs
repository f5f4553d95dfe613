//! When the requests of a case are released.

use std::time::Duration;

use crate::load::{Arrivals, Extent};

/// The rule by which a case's requests are released.
#[derive(Debug, Clone, PartialEq)]
pub enum LoadShape {
    /// A closed loop: the first `concurrency` at once, then one as one ends.
    Closed {
        /// Requests in flight at once.
        concurrency: u32,
    },
    /// An open loop: each as it arrives, whatever has not been answered yet.
    Open {
        /// Where the instants of arrival come from.
        arrivals: Instants,
        /// Where they end.
        extent: Extent,
        /// Requests in flight at most; what arrives beyond waits here and is told as held.
        max_in_flight: u32,
    },
}

/// Where instants of arrival come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Instants {
    /// Drawn at a rate.
    Drawn(Arrivals),
    /// Those of a trace.
    Recorded {
        /// In the trace's own time, in order.
        at: Vec<Duration>,
        /// How many times faster than recorded.
        speed: f64,
    },
}

impl Instants {
    /// Instants since the beginning of the load, in order: a pure function of
    /// the rule, the run's seed and the load's number.
    #[must_use]
    pub fn resolve(&self, extent: Extent, seed: u64, load: u32) -> Vec<Duration> {
        match self {
            Self::Drawn(arrivals) => arrivals.instants(extent, seed, stream(load)),
            Self::Recorded { at, speed } => {
                let first = at.first().copied().unwrap_or_default();
                let most = extent.requests.map_or(usize::MAX, |requests| requests as usize);
                at.iter()
                    .map(|at| {
                        let seconds = (*at - first).as_secs_f64() / speed;
                        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
                    })
                    .take_while(|at| extent.duration.is_none_or(|duration| *at < duration))
                    .take(most)
                    .collect()
            }
        }
    }
}

/// The generator of a load's arrivals. Draws of prompts and lengths have other
/// numbers: none has both the highest bit and the highest index.
fn stream(load: u32) -> u64 {
    (1 << 63) | (u64::from(load) << 32) | u64::from(u32::MAX)
}
