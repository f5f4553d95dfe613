//! The highest rate that a simulated engine keeps up with and at which its
//! objectives are met: bracketed by doubling, then halved between.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::run::{Outcome, Pulse, Setup, SimulationError, simulate};
use super::summary::{goodput, kept_up};
use super::users::Load;
use crate::load::arrival::Arrivals;
use crate::plan::Slo;

/// Doublings, or halvings, before the search gives up.
const MAX_DOUBLINGS: u32 = 20;
/// Ratio of the bounds at which it ends.
const CLOSE: f64 = 1.03;

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// The highest rate tried that was sustained; absent where none was.
    pub rate_per_s: Option<f64>,
    /// The lowest rate tried that was not; absent where all were.
    pub exceeded_at_per_s: Option<f64>,
    /// What was exceeded there.
    pub reason: Option<String>,
    /// Whether the search came to its end.
    pub complete: bool,
    /// The rates, in the order in which they were tried.
    pub tried: Vec<Tried>,
}

/// One rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// Requests a second.
    pub rate_per_s: f64,
    /// Whether it was sustained, objectives included; absent where that is not known.
    pub sustained: Option<bool>,
    /// Why not, or why that is not known.
    pub reason: Option<String>,
}

/// Looks for the capacity of an engine under the arrivals of `setup`, beginning at
/// their rate; `None` where it has none, being of users who wait.
///
/// # Errors
/// As [`simulate`].
pub fn search(
    setup: &Setup,
    slos: &[Slo],
    pulse: &mut dyn FnMut(Pulse) -> ControlFlow<()>,
) -> Result<Option<Capacity>, SimulationError> {
    let Load::Open(arrivals) = setup.load else { return Ok(None) };
    let mut found = Capacity {
        rate_per_s: None,
        exceeded_at_per_s: None,
        reason: None,
        complete: false,
        tried: Vec::new(),
    };
    let mut rate = arrivals.rate;
    for _ in 0..2 * MAX_DOUBLINGS {
        let load = Load::Open(Arrivals { rate, ..arrivals });
        let setup = Setup { load, ..setup.clone() };
        let outcome = simulate(&setup, pulse)?;
        if outcome.interrupted {
            return Ok(Some(found));
        }
        let (sustained, reason) = verdict(&setup, &outcome, slos);
        found.tried.push(Tried { rate_per_s: rate, sustained, reason: reason.clone() });
        match sustained {
            Some(true) => found.rate_per_s = Some(rate),
            Some(false) => (found.exceeded_at_per_s, found.reason) = (Some(rate), reason),
            // A load too short to judge gets no more telling at a lower rate.
            None if found.exceeded_at_per_s.is_none() => {}
            None => return Ok(Some(found)),
        }
        let factor = rate / arrivals.rate;
        let most = f64::from(1 << MAX_DOUBLINGS);
        rate = match (found.rate_per_s, found.exceeded_at_per_s) {
            (Some(low), Some(high)) if high / low <= CLOSE => {
                found.complete = true;
                return Ok(Some(found));
            }
            (Some(low), Some(high)) => (low * high).sqrt(),
            (None, Some(high)) if factor > 1.0 / most => high / 2.0,
            (_, None) if factor < most => rate * 2.0,
            _ => return Ok(Some(found)),
        };
    }
    Ok(Some(found))
}

fn verdict(setup: &Setup, outcome: &Outcome, slos: &[Slo]) -> (Option<bool>, Option<String>) {
    let observed = &outcome.observed;
    let kept_up = kept_up(setup, outcome);
    if kept_up.0 == Some(false) {
        return kept_up;
    }
    let refused = outcome.num_busy + outcome.num_too_long;
    let missed = goodput(slos, &observed.answered, refused, 0.0).map(|goodput| {
        let missed = goodput.objectives.into_iter().filter(|objective| !objective.met);
        let told = |one: crate::stats::goodput::Objective| {
            format!("{} met by {:.1} %", one.slo, one.share * 100.0)
        };
        missed.map(told).collect::<Vec<_>>().join(", ")
    });
    match missed.filter(|missed| !missed.is_empty()) {
        Some(missed) => (Some(false), Some(missed)),
        None => kept_up,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::fit::Coefficients;
    use super::super::step_time::StepTime;
    use super::super::users::Content;
    use super::*;
    use crate::infer::scheduler::SchedulerLimits;
    use crate::load::arrival::{Extent, Process};
    use crate::plan::Lengths;

    /// An engine that takes 10 ms a step whatever is in it, and answers of ten
    /// tokens by at most four at once: 40 requests a second and no more.
    fn setup(rate: f64) -> Setup {
        Setup {
            limits: SchedulerLimits {
                max_num_seqs: 4,
                max_num_batched_tokens: 64,
                max_scored_rows: 1,
                max_model_len: 64,
                max_queue: usize::MAX / 2,
                num_blocks: 64,
                block_size: 4,
                enable_prefix_caching: false,
            },
            step_time: StepTime::Fitted(Coefficients { step_us: 1e4, ..Coefficients::default() }),
            load: Load::Open(Arrivals { process: Process::Poisson, rate, ramp: None }),
            content: Content::Drawn {
                prompt_tokens: Lengths::Fixed(8),
                output_tokens: Lengths::Fixed(10),
                prefix_tokens: 0,
            },
            extent: Extent { requests: None, duration: Some(Duration::from_secs(120)) },
            seed: 1,
        }
    }

    fn found(rate: f64, slos: &str) -> Capacity {
        let slos = if slos.is_empty() { Vec::new() } else { Slo::parse_list(slos).unwrap() };
        let mut go_on = |_: Pulse| ControlFlow::Continue(());
        search(&setup(rate), &slos, &mut go_on).unwrap().unwrap()
    }

    #[test]
    fn capacity_is_that_of_a_queue_that_is_known() {
        for start in [1.0, 33.0, 500.0] {
            let found = found(start, "");
            assert!(found.complete, "{found:?}");
            let rate = found.rate_per_s.unwrap();
            // Where a queue begins to grow for good is seen late within two minutes.
            assert!((36.0..=43.0).contains(&rate), "{found:?}");
        }
    }

    #[test]
    fn objectives_lower_it_and_are_named() {
        let tight = found(8.0, "ttft_p90<60ms");
        assert!(tight.rate_per_s.unwrap() < found(8.0, "").rate_per_s.unwrap());
        assert!(tight.reason.unwrap().contains("ttft_p90<60ms met by"));
        let hopeless = found(8.0, "e2el<50ms");
        assert_eq!(hopeless.rate_per_s, None);
    }

    #[test]
    fn users_who_wait_have_no_capacity() {
        let load = Load::Closed { users: 3, think: Duration::ZERO };
        let setup = Setup { load, ..setup(1.0) };
        let mut go_on = |_: Pulse| ControlFlow::Continue(());
        assert_eq!(search(&setup, &[], &mut go_on).unwrap(), None);
    }
}
