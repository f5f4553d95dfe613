//! A sweep over rates as one answer: the highest rate that an engine kept up
//! with (its capacity), and the rate beyond which more load costs more latency
//! than it brings throughput (its knee).

use serde::{Deserialize, Serialize};

use super::distribution::median;
use super::open_loop::LoadSummary;
use super::summary::CaseSummary;

/// With fewer rates there is no bend to be seen.
const MIN_FOR_KNEE: usize = 3;

/// One engine over the rates of one load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// Engine name.
    pub engine: String,
    /// Name of the load.
    pub load: String,
    /// Highest rate asked for that was sustained, objectives included, with
    /// every lower one; absent where none was.
    pub capacity_per_s: Option<f64>,
    /// Lowest rate that was not; absent where all were, so that capacity is at
    /// least what is given.
    pub exceeded_at_per_s: Option<f64>,
    /// What was exceeded there.
    pub reason: Option<String>,
    /// Rate with the most power, which is achieved rate over median E2EL
    /// (Kleinrock 1979); absent below three rates, or where the highest has the most.
    pub knee_per_s: Option<f64>,
    /// The rates in ascending order.
    pub points: Vec<CapacityPoint>,
}

/// An engine at one rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CapacityPoint {
    /// Rate that was asked for.
    pub rate_per_s: f64,
    /// What arrived.
    pub offered_per_s: Option<f64>,
    /// What was completed.
    pub achieved_per_s: Option<f64>,
    /// What met every objective.
    pub goodput_per_s: Option<f64>,
    /// Median TTFT from the intended instant.
    pub ttft_from_intended_ms_p50: Option<f64>,
    /// Median E2EL from the intended instant.
    pub e2el_from_intended_ms_p50: Option<f64>,
    /// Whether the engine kept up and met every objective; absent where unknown.
    pub sustained: Option<bool>,
    /// Why not, or why that is unknown.
    pub reason: Option<String>,
}

/// A sweep of every engine that was swept, in the order of the cases.
#[must_use]
pub fn capacities(cases: &[CaseSummary]) -> Vec<Capacity> {
    let mut sweeps: Vec<(&str, &str, Vec<&CaseSummary>)> = Vec::new();
    for case in cases {
        let Some(open) = case.under_load.open_loop.as_ref().filter(|open| open.sweep) else {
            continue;
        };
        let (engine, load) = (case.engine.as_str(), open.load.as_str());
        match sweeps.iter_mut().find(|known| (known.0, known.1) == (engine, load)) {
            Some((_, _, cases)) => cases.push(case),
            None => sweeps.push((engine, load, vec![case])),
        }
    }
    sweeps.into_iter().map(|(engine, load, cases)| capacity(engine, load, &cases)).collect()
}

fn capacity(engine: &str, load: &str, cases: &[&CaseSummary]) -> Capacity {
    let mut rates: Vec<f64> = cases.iter().filter_map(|case| rate(case)).collect();
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    let points: Vec<CapacityPoint> = rates
        .iter()
        .map(|asked| {
            let rounds = cases.iter().copied().filter(|case| rate(case) == Some(*asked));
            point(*asked, &rounds.collect::<Vec<_>>())
        })
        .collect();
    let exceeded = points.iter().find(|point| point.sustained == Some(false));
    let below = points.iter().take_while(|point| point.sustained != Some(false));
    let sustained = below.filter(|point| point.sustained == Some(true)).last();
    Capacity {
        engine: engine.to_owned(),
        load: load.to_owned(),
        capacity_per_s: sustained.map(|point| point.rate_per_s),
        exceeded_at_per_s: exceeded.map(|point| point.rate_per_s),
        reason: exceeded.and_then(|point| point.reason.clone()),
        knee_per_s: knee(&points),
        points,
    }
}

fn rate(case: &CaseSummary) -> Option<f64> {
    case.under_load.open_loop.as_ref()?.rate_per_s
}

/// The rounds of one rate: medians of their numbers, the worst of their verdicts.
fn point(rate: f64, rounds: &[&CaseSummary]) -> CapacityPoint {
    let open = |of: fn(&super::open_loop::OpenLoop) -> Option<f64>| {
        median(rounds.iter().filter_map(|case| of(case.under_load.open_loop.as_ref()?)))
    };
    let latency =
        |of: fn(&CaseSummary) -> Option<f64>| median(rounds.iter().filter_map(|case| of(case)));
    let verdicts: Vec<_> = rounds.iter().map(|case| verdict(&case.under_load)).collect();
    let worst = verdicts.iter().find(|(kept, _)| *kept == Some(false));
    let unknown = || verdicts.iter().find(|(kept, _)| kept.is_none());
    let (sustained, reason) = worst.or_else(unknown).cloned().unwrap_or((Some(true), None));
    CapacityPoint {
        rate_per_s: rate,
        offered_per_s: open(|open| open.offered_per_s),
        achieved_per_s: open(|open| open.achieved_per_s),
        goodput_per_s: latency(|case| case.under_load.goodput_per_s),
        ttft_from_intended_ms_p50: latency(|case| {
            case.under_load.ttft_from_intended_ms.as_ref()?.p50
        }),
        e2el_from_intended_ms_p50: latency(|case| {
            case.under_load.e2el_from_intended_ms.as_ref()?.p50
        }),
        sustained,
        reason,
    }
}

/// Whether the engine kept up and met every objective under a load, and why not;
/// `None` where that cannot be told.
#[must_use]
pub fn verdict(under_load: &LoadSummary) -> (Option<bool>, Option<String>) {
    let Some(open) = &under_load.open_loop else { return (None, None) };
    if open.sustained == Some(false) {
        return (Some(false), open.reason.clone());
    }
    if let Some(goodput) = under_load.goodput.as_ref().filter(|goodput| !goodput.met) {
        let missed = goodput.objectives.iter().filter(|objective| !objective.met);
        let missed: Vec<_> =
            missed.map(|one| format!("{} met by {:.0} %", one.slo, one.share * 100.0)).collect();
        return (Some(false), Some(missed.join(", ")));
    }
    (open.sustained, open.reason.clone())
}

/// The point of most power, if the sweep goes beyond it.
fn knee(points: &[CapacityPoint]) -> Option<f64> {
    if points.len() < MIN_FOR_KNEE {
        return None;
    }
    let power = |point: &CapacityPoint| {
        let latency = point.e2el_from_intended_ms_p50.filter(|ms| *ms > 0.0)?;
        Some((point.achieved_per_s? / latency, point.rate_per_s))
    };
    let most = points.iter().filter_map(power).max_by(|a, b| a.0.total_cmp(&b.0))?;
    let last = points.last()?.rate_per_s;
    (most.1 < last).then_some(most.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::stats::case;
    use crate::stats::case::tests::{group, record, request};
    use crate::stats::open_loop::tests::load;

    /// A case at a rate against an engine of 8 answers a second, one at a time.
    fn at(rate: u64, slos: &[&str]) -> CaseSummary {
        let (mut free, mut requests) = (0, Vec::new());
        for i in 0..60_u64 {
            let arrives = i * 1_000 / rate;
            free = free.max(arrives) + 125;
            let mut one = request(u32::try_from(i).unwrap(), arrives, &[free - arrives - 1]);
            one.intended_at_ns = Timestamp::from_nanos(arrives * 1_000_000);
            requests.push(one);
        }
        let mut record = record("e", &format!("sweep@{rate}"), 60);
        let mut load = load(slos);
        load.rate_per_s = Some(f64::from(u32::try_from(rate).unwrap()));
        record.load = Some(load);
        case::summarise(&group(&record, &requests), &[])
    }

    #[test]
    fn capacity_is_the_last_rate_below_the_first_that_was_too_much() {
        let cases: Vec<_> = [1, 2, 4, 8, 16, 32].map(|rate| at(rate, &[])).into();
        let found = capacities(&cases);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].capacity_per_s, found[0].exceeded_at_per_s), (Some(8.0), Some(16.0)));
        assert!(found[0].reason.as_deref().is_some_and(|why| why.contains("of what arrived")));
        // Up to 8 a second latency is 125 ms: the most power is there.
        assert_eq!(found[0].knee_per_s, Some(8.0));
        assert_eq!(found[0].points.len(), 6);
    }

    #[test]
    fn objectives_can_end_it_before_the_queue_does() {
        let cases: Vec<_> = [4, 8].map(|rate| at(rate, &["ttft<100ms"])).into();
        let found = capacities(&cases);
        assert_eq!((found[0].capacity_per_s, found[0].exceeded_at_per_s), (None, Some(4.0)));
        assert_eq!(found[0].reason.as_deref(), Some("ttft<100ms met by 0 %"));
    }

    #[test]
    fn sweep_that_exceeds_nothing_gives_a_lower_bound() {
        let cases: Vec<_> = [1, 2, 4].map(|rate| at(rate, &[])).into();
        let found = capacities(&cases);
        assert_eq!((found[0].capacity_per_s, found[0].exceeded_at_per_s), (Some(4.0), None));
        assert_eq!(found[0].knee_per_s, None, "power still rises");
    }
}
