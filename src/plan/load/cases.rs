//! A load as cases: one, or one for each rate of a sweep.

use std::time::Duration;

use super::{LoadPlan, Pace};
use crate::load::{Arrivals, Extent};
use crate::plan::load_shape::Instants;
use crate::plan::{Lengths, LoadShape};
use crate::record::LoadRecord;

/// A load at one of its rates.
pub(in crate::plan) struct Point {
    /// Name of the experiment.
    pub(in crate::plan) name: String,
    /// When its requests are released.
    pub(in crate::plan) shape: LoadShape,
    rate: Option<f64>,
}

impl Point {
    /// Turns of all conversations. Those of a dataset have turns of their own,
    /// of which no more than asked for are used.
    pub(in crate::plan) fn num_requests(&self, of: &LoadPlan, seed: u64, load: u32) -> u32 {
        match &self.shape {
            LoadShape::Closed { concurrency } => {
                of.extent.requests.unwrap_or(*concurrency).max(*concurrency)
            }
            LoadShape::Open { arrivals, extent, .. } => {
                let arrivals = arrivals.resolve(*extent, seed, load).len();
                let turns = (0..arrivals).map(|number| of.turns_of(seed, load, number));
                u32::try_from(turns.sum::<usize>()).unwrap_or(u32::MAX)
            }
        }
    }

    /// What the manifest says of a load.
    pub(in crate::plan) fn tell(&self, load: &LoadPlan) -> LoadRecord {
        let Extent { requests, duration } = load.extent;
        let seconds = |duration: Duration| duration.as_secs_f64();
        let lengths = |lengths: Option<Lengths>| lengths.map(|lengths| lengths.to_string());
        let (arrival, burstiness, ramp, max_in_flight) = match &load.pace {
            Pace::Closed { .. } => ("closed", None, None, None),
            Pace::Open { process, ramp, max_in_flight, .. } => {
                let (word, burstiness) = process.told();
                (word, burstiness, *ramp, Some(*max_in_flight))
            }
            Pace::Recorded { max_in_flight, .. } => ("trace", None, None, Some(*max_in_flight)),
        };
        LoadRecord {
            name: load.name.clone(),
            arrival: arrival.to_owned(),
            sweep: load.is_sweep(),
            rate_per_s: self.rate,
            ramp_to_per_s: ramp.map(|(to, _)| to),
            ramp_s: ramp.map(|(_, over)| seconds(over)),
            burstiness,
            requests,
            duration_s: duration.map(seconds),
            speed: match load.pace {
                Pace::Recorded { speed, .. } => Some(speed),
                Pace::Closed { .. } | Pace::Open { .. } => None,
            },
            max_in_flight,
            prompt_tokens: lengths(load.content.prompt_tokens),
            output_tokens: lengths(load.content.output_tokens),
            prefix_groups: load.content.prefix.map(|(groups, _)| groups),
            prefix_tokens: load.content.prefix.map(|(_, tokens)| tokens),
            turns: (load.content.turns > 1).then_some(load.content.turns),
            source: load.content.source.as_ref().map(|source| source.format.as_str().to_owned()),
            slos: load.slos.iter().map(ToString::to_string).collect(),
        }
    }
}

/// A load as the cases that it becomes.
pub(in crate::plan) fn points(load: &LoadPlan) -> Vec<Point> {
    let name = load.name.clone();
    match &load.pace {
        Pace::Closed { concurrency } => {
            let shape = LoadShape::Closed { concurrency: *concurrency };
            vec![Point { name, shape, rate: None }]
        }
        Pace::Open { process, rates, ramp, max_in_flight, .. } => rates
            .iter()
            .map(|rate| {
                let arrivals = Arrivals { process: *process, rate: *rate, ramp: *ramp };
                let shape = LoadShape::Open {
                    arrivals: Instants::Drawn(arrivals),
                    extent: load.extent,
                    max_in_flight: *max_in_flight,
                };
                let swept = load.is_sweep();
                let name = if swept { format!("{name}@{rate}") } else { name.clone() };
                Point { name, shape, rate: Some(*rate) }
            })
            .collect(),
        Pace::Recorded { speed, max_in_flight } => {
            let arrivals = Instants::Recorded { at: load.recorded(), speed: *speed };
            let (extent, max_in_flight) = (load.extent, *max_in_flight);
            vec![Point {
                name,
                shape: LoadShape::Open { arrivals, extent, max_in_flight },
                rate: None,
            }]
        }
    }
}
