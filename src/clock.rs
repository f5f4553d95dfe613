//! The only reader of time. Everything else is handed a [`Clock`] or a
//! [`Timestamp`], so that planning, scheduling and statistics can be tested on
//! a clock that stands still.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::units;
use serde::{Deserialize, Serialize};

/// Nanoseconds since the origin of the [`Clock`] that made it. Instants of
/// different clocks must not be mixed; one run has one clock.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The instant `nanos` nanoseconds after the clock's origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`, zero if `earlier` is the later one.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The instant `duration` after `self`.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let nanos = units::nanos(duration);
        Self(self.0.saturating_add(nanos))
    }
}

/// A monotonic clock, shared by cloning. `Instant` is `CLOCK_MONOTONIC` on
/// Linux: no step of the wall clock can become a latency.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    Real(Instant),
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's monotonic clock, with its origin at this call.
    #[must_use]
    pub fn real() -> Self {
        Self(Source::Real(Instant::now()))
    }

    /// A clock that moves only by [`Clock::advance`].
    #[must_use]
    pub fn manual() -> Self {
        Self(Source::Manual(Arc::new(AtomicU64::new(0))))
    }

    /// The current instant.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::Real(origin) => Timestamp(units::nanos(origin.elapsed())),
            Source::Manual(nanos) => Timestamp(nanos.load(Ordering::Acquire)),
        }
    }

    /// Words that no other process and no other call has: process id, wall clock, number.
    #[must_use]
    pub fn unique_label() -> String {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let since = Self::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        format!("{}-{}-{call}", std::process::id(), since.as_nanos())
    }

    /// Moves a manual clock forward; a real clock is not moved.
    pub fn advance(&self, duration: Duration) {
        if let Source::Manual(nanos) = &self.0 {
            let step = units::nanos(duration);
            nanos.fetch_add(step, Ordering::AcqRel);
        }
    }

    /// The wall clock, for labels only: never subtract two of these.
    #[must_use]
    pub fn wall() -> SystemTime {
        SystemTime::now()
    }

    /// The instant on the machine's clock at which `timestamp` falls, for
    /// timers; `None` on a manual clock.
    #[must_use]
    pub fn instant(&self, timestamp: Timestamp) -> Option<Instant> {
        match &self.0 {
            Source::Real(origin) => Some(*origin + Duration::from_nanos(timestamp.0)),
            Source::Manual(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_clock_stands_still_until_advanced() {
        let clock = Clock::manual();
        let shared = clock.clone();
        assert_eq!(clock.now(), clock.now());
        shared.advance(Duration::from_millis(3));
        assert_eq!(clock.now().as_nanos(), 3_000_000);
    }

    #[test]
    fn real_clock_never_goes_back_from_whatever_thread_it_is_read() {
        let clock = Clock::real();
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let clock = clock.clone();
                std::thread::spawn(move || (0..2_000).map(|_| clock.now()).collect::<Vec<_>>())
            })
            .collect();
        for reader in readers {
            assert!(reader.join().unwrap().is_sorted());
        }
        // `Instant` is CLOCK_MONOTONIC: setting the wall clock moves none of these.
        let before = clock.now();
        assert!(clock.now() >= before);
    }

    #[test]
    fn since_never_underflows() {
        let early = Timestamp::from_nanos(5);
        let late = Timestamp::from_nanos(7);
        assert_eq!(late.since(early), Duration::from_nanos(2));
        assert_eq!(early.since(late), Duration::ZERO);
    }
}
