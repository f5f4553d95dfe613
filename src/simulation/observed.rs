//! What is kept of a simulation while it goes on: a latency a request, sums over
//! time, and a bounded series of queue and pool.

use std::collections::VecDeque;
use std::time::Duration;

use super::engine::{Drawn, Occupancy};
use super::users::Asked;
use crate::clock::Timestamp;
use crate::infer::scheduler::StepWork;
use crate::infer::sequence::SequenceId;

/// Points of the series, at most: when it is full, pairs of neighbours become one.
const MAX_POINTS: usize = 256;
/// Length of the first points.
const FIRST_POINT: Duration = Duration::from_millis(10);

/// A request that was answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answered {
    /// First token minus arrival.
    pub ttft_ms: f64,
    /// Last token minus arrival.
    pub e2el_ms: f64,
    /// Between first and last, a token; absent for a single one.
    pub tpot_ms: Option<f64>,
}

/// A stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Point {
    /// Nanoseconds that are in it.
    pub nanos: u64,
    /// Sums over them.
    pub running: f64,
    /// Likewise.
    pub waiting: f64,
    /// Likewise.
    pub used_blocks: f64,
    /// Likewise.
    pub waste_slots: f64,
    /// The most blocks that were held.
    pub peak_used_blocks: usize,
    /// The most sequences that waited.
    pub peak_waiting: usize,
}

/// A request in the engine.
#[derive(Debug, Clone, Copy)]
struct Live {
    at: Timestamp,
    first: Timestamp,
    user: u32,
    is_done: bool,
    num_tokens: u32,
}

/// The book of one simulation.
#[derive(Debug, Default)]
pub struct Observed {
    /// Requests that were answered, in the order in which they ended.
    pub answered: Vec<Answered>,
    /// Steps.
    pub num_steps: u64,
    /// Nanoseconds of them.
    pub step_nanos: u64,
    /// Tokens computed.
    pub num_scheduled_tokens: u64,
    /// Of those, tokens of prompts, or computed again after a preemption.
    pub num_prefill_tokens: u64,
    /// Tokens drawn.
    pub num_output_tokens: u64,
    /// Tokens drawn until the last request arrived.
    pub num_tokens_while_loaded: u64,
    /// The first request.
    pub first_at: Option<Timestamp>,
    /// When the last request met the engine.
    pub loaded_until: Timestamp,
    /// The last step's end.
    pub ended_at: Timestamp,
    /// Requests in the engine as each request arrived, with its instant.
    arrivals: Vec<(Timestamp, u32)>,
    num_live: u32,
    live: VecDeque<Live>,
    /// Id of the first of them.
    base: SequenceId,
    points: Vec<Point>,
    point_nanos: u64,
}

impl Observed {
    /// A request was queued, under the next id.
    pub fn queued(&mut self, asked: &Asked) {
        self.live.push_back(Live {
            at: asked.at,
            first: asked.at,
            user: asked.user,
            is_done: false,
            num_tokens: 0,
        });
        self.arrivals.push((asked.at, self.num_live));
        self.num_live += 1;
    }

    /// A request that was made at `at` met the engine at `now`, queued or refused.
    pub fn asked(&mut self, at: Timestamp, now: Timestamp) {
        self.first_at.get_or_insert(at);
        self.loaded_until = now;
        self.num_tokens_while_loaded = self.num_output_tokens;
    }

    /// A step from `from` to `to`.
    pub fn stepped(&mut self, work: &StepWork, of: &Occupancy, from: Timestamp, to: Timestamp) {
        let nanos = to.as_nanos() - from.as_nanos();
        self.num_steps += 1;
        self.step_nanos += nanos;
        self.num_scheduled_tokens += work.num_tokens() as u64;
        self.num_prefill_tokens += work.num_prefill_tokens as u64;
        self.ended_at = to;
        self.add_to_series(of, from, nanos);
    }

    /// A token of the step that ended at `at`; the user whose answer it completes.
    pub fn drew(&mut self, drawn: &Drawn, at: Timestamp) -> Option<u32> {
        self.num_output_tokens += 1;
        let index = usize::try_from(drawn.id.checked_sub(self.base)?).ok()?;
        let live = self.live.get_mut(index)?;
        live.num_tokens += 1;
        if drawn.is_first {
            live.first = at;
        }
        if !drawn.is_last {
            return None;
        }
        live.is_done = true;
        let (user, live) = (live.user, *live);
        self.answered.push(live.answered(at));
        self.num_live -= 1;
        while self.live.front().is_some_and(|live| live.is_done) {
            self.live.pop_front();
            self.base += 1;
        }
        Some(user)
    }

    /// Requests that are in the engine.
    #[must_use]
    pub const fn num_live(&self) -> u32 {
        self.num_live
    }

    /// Requests that had been queued before the last of all, and how many of them
    /// were in the engine at the middle of their arrivals and at their end:
    /// `(arrivals in the second half, live at its beginning, live at its end)`.
    #[must_use]
    pub fn second_half(&self) -> Option<(usize, u32, u32)> {
        let (first, last) = (self.arrivals.first()?, self.arrivals.last()?);
        let middle = u64::midpoint(first.0.as_nanos(), last.0.as_nanos());
        let from = self.arrivals.partition_point(|(at, _)| at.as_nanos() < middle);
        let live = self.arrivals.get(from)?.1;
        Some((self.arrivals.len() - from, live, last.1))
    }

    /// The series: points of equal length from the clock's origin on, and that
    /// length in nanoseconds. Time without a step is in them with nothing held.
    #[must_use]
    pub fn series(&self) -> (&[Point], u64) {
        (&self.points, self.point_nanos)
    }

    fn add_to_series(&mut self, of: &Occupancy, from: Timestamp, nanos: u64) {
        if self.point_nanos == 0 {
            self.point_nanos = u64::try_from(FIRST_POINT.as_nanos()).unwrap_or(1);
        }
        let (mut at, end) = (from.as_nanos(), from.as_nanos() + nanos);
        while (end - 1) / self.point_nanos >= MAX_POINTS as u64 {
            self.halve();
        }
        while at < end {
            let index = usize::try_from(at / self.point_nanos).unwrap_or(MAX_POINTS - 1);
            let until = end.min((index as u64 + 1).saturating_mul(self.point_nanos));
            if self.points.len() <= index {
                self.points.resize(index + 1, Point::default());
            }
            self.points[index].add(of, until - at);
            at = until;
        }
    }

    fn halve(&mut self) {
        self.point_nanos *= 2;
        self.points = self.points.chunks(2).map(Point::merged).collect();
    }
}

impl Live {
    fn answered(&self, at: Timestamp) -> Answered {
        let ms = |from: Timestamp, to: Timestamp| crate::units::millis(to.since(from));
        let gaps = self.num_tokens.saturating_sub(1);
        Answered {
            ttft_ms: ms(self.at, self.first),
            e2el_ms: ms(self.at, at),
            tpot_ms: (gaps > 0).then(|| ms(self.first, at) / f64::from(gaps)),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts times nanoseconds: three digits are shown")]
impl Point {
    fn add(&mut self, of: &Occupancy, nanos: u64) {
        let weight = nanos as f64;
        self.nanos += nanos;
        self.running += of.num_running as f64 * weight;
        self.waiting += of.num_waiting as f64 * weight;
        self.used_blocks += of.num_used_blocks as f64 * weight;
        self.waste_slots += of.num_waste_slots as f64 * weight;
        self.peak_used_blocks = self.peak_used_blocks.max(of.num_used_blocks);
        self.peak_waiting = self.peak_waiting.max(of.num_waiting);
    }

    /// Several stretches as one.
    #[must_use]
    pub fn merged(points: &[Self]) -> Self {
        points.iter().fold(Self::default(), |a, b| Self {
            nanos: a.nanos + b.nanos,
            running: a.running + b.running,
            waiting: a.waiting + b.waiting,
            used_blocks: a.used_blocks + b.used_blocks,
            waste_slots: a.waste_slots + b.waste_slots,
            peak_used_blocks: a.peak_used_blocks.max(b.peak_used_blocks),
            peak_waiting: a.peak_waiting.max(b.peak_waiting),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_is_bounded_and_loses_no_time() {
        let mut observed = Observed::default();
        let of = Occupancy { num_running: 2, num_used_blocks: 7, ..Occupancy::default() };
        let mut now = 3_000_000;
        for step in 0..5_000_u64 {
            let took = 1_000_000 + step * 4_321;
            let (from, to) = (Timestamp::from_nanos(now), Timestamp::from_nanos(now + took));
            observed.stepped(&StepWork::default(), &of, from, to);
            now += took + 500_000;
        }
        let (points, _) = observed.series();
        assert!(points.len() <= MAX_POINTS && points.len() > MAX_POINTS / 2, "{}", points.len());
        let all = Point::merged(points);
        assert_eq!(all.nanos, observed.step_nanos);
        #[expect(clippy::cast_precision_loss, reason = "seconds")]
        let expected = 7.0 * observed.step_nanos as f64;
        assert!((all.used_blocks / expected - 1.0).abs() < 1e-9);
        assert_eq!(all.peak_used_blocks, 7);
    }
}
