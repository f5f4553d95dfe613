//! A sweep over KV settings: what each point did under the same load, the
//! smallest pool that is enough, and what a simulation expected of each.

mod facts;
mod limits;
mod load;
mod pool;
mod prediction;
mod room;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::spec::KvPoint;
use crate::record::{EngineRecord, RunData};
use crate::simulation::step_time::StepTimeSource;

use super::case::CaseRequests;
use super::summary::{AbsentCase, CaseSummary};
use facts::{Facts, Key, Seen};
use prediction::Effort;

/// A pool keeps up that gives this share of the best throughput.
pub const SUFFICIENT: f64 = 0.95;

/// Settings that size the pool; points that differ in others are not of one curve.
const POOL_SETTINGS: [&str; 2] = ["kv_blocks", "kv_memory"];

/// One engine under one load over the points of a sweep that belong to one curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KvSweep {
    /// Name of the engine that is swept.
    pub engine: String,
    /// Experiment name.
    pub experiment: String,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// Varied settings that all of these points share.
    pub settings: BTreeMap<String, String>,
    /// The smallest pool first; points whose pool is not known last.
    pub points: Vec<Point>,
    /// Engine name of the smallest pool that, with every larger one, gives 95 % of the best
    /// throughput.
    pub smallest_sufficient: Option<String>,
    /// The same by what was predicted.
    pub predicted_sufficient: Option<String>,
    /// Why there is no smallest sufficient pool.
    pub reason: Option<String>,
    /// What was predicted from what; absent where nothing was.
    pub basis: Option<Basis>,
}

/// What a prediction is made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Basis {
    /// Engine name of the point whose requests, steps and throughput are given.
    pub point: String,
    /// Its requests that are simulated: those of one round.
    pub num_requests: u64,
    /// How long a step takes.
    pub step_times: StepTimeSource,
    /// Its simulated throughput over the measured one, by which every simulated
    /// time is stretched.
    pub simulated_over_measured: f64,
    /// Settings that its engine does not tell, with what is taken instead.
    pub assumed: BTreeMap<String, String>,
}

/// One point: an engine with its settings under the load.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Point {
    /// Engine name.
    pub engine: String,
    /// What was varied, at this point.
    pub settings: BTreeMap<String, String>,
    /// Why it was not measured; null if it was.
    pub absent: Option<String>,
    /// Its case in the manifest, the first of its rounds.
    pub case: Option<u32>,
    /// KV blocks in the pool.
    pub num_blocks: Option<u64>,
    /// Tokens in a block.
    pub block_size: Option<u64>,
    /// The pool in tokens.
    pub kv_tokens: Option<u64>,
    /// The pool in bytes.
    pub kv_bytes: Option<u64>,
    /// Memory of the models that the engine says it has loaded.
    pub model_bytes: Option<u64>,
    /// Measured requests.
    pub n: u64,
    /// Requests that completed.
    pub num_ok: u64,
    /// Output tokens over the whole case.
    pub output_tokens_per_s: Option<f64>,
    /// Median TTFT.
    pub ttft_ms_p50: Option<f64>,
    /// Sequences sent back to the queue.
    pub num_preemptions: Option<u64>,
    /// The most of the pool that sequences held, 0 to 1.
    pub peak_kv_use: Option<f64>,
    /// The mean over time.
    pub mean_kv_use: Option<f64>,
    /// Slots of held blocks that held no token, over all slots of held blocks, over time.
    pub waste_share: Option<f64>,
    /// The most such slots.
    pub peak_waste_slots: Option<u64>,
    /// Prompt tokens from the prefix cache over those looked up.
    pub prefix_hit_share: Option<f64>,
    /// Sequences in a step, the mean over time.
    pub mean_running: Option<f64>,
    /// Blocks that a sequence holds at its end.
    pub blocks_per_sequence: Option<f64>,
    /// Sequences that fit at their full length.
    pub fits: Option<u64>,
    /// Predicted: output tokens over the whole case.
    pub predicted_tokens_per_s: Option<f64>,
    /// Predicted: median TTFT.
    pub predicted_ttft_ms_p50: Option<f64>,
    /// Predicted: sequences in a step, the mean over time.
    pub predicted_running: Option<f64>,
    /// Predicted: sequences sent back to the queue, over as many rounds as were
    /// measured.
    pub predicted_preemptions: Option<u64>,
    /// Field to why it is null.
    pub reasons: BTreeMap<String, String>,
}

/// The sweeps of a run in the manifest's order; `shown` are its cases, rounds put together.
#[must_use]
pub fn sweeps(
    run: &RunData,
    grouped: &[CaseRequests<'_>],
    shown: &[CaseSummary],
    absent: &[AbsentCase],
) -> Vec<KvSweep> {
    let engines: Vec<(u32, &EngineRecord, &KvPoint)> = (0..)
        .zip(&run.manifest.engines)
        .filter_map(|(index, record)| Some((index, record, record.spec.kv_point.as_ref()?)))
        .collect();
    let mut keys: Vec<Key<'_>> = Vec::new();
    for (_, _, point) in &engines {
        for group in grouped {
            let (experiment, concurrency, ..) = group.load_key();
            let key = Key {
                engine: &point.of,
                experiment,
                concurrency,
                settings: curve(point, &engines),
            };
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
    }
    keys.sort_by_key(|key| grouped.iter().position(|g| g.load_key().0 == key.experiment));
    let mut effort = Effort::OF_A_RUN;
    let sweep = |key: Key<'_>| {
        let facts = Facts { run, grouped, shown, absent, key: &key };
        let members = engines.iter().filter(|(_, _, point)| {
            point.of == key.engine && curve(point, &engines) == key.settings
        });
        let seen: Vec<Seen> =
            members.map(|(index, record, point)| facts.point(*index, record, point)).collect();
        assemble(&facts, seen, &mut effort)
    };
    keys.into_iter().map(sweep).collect()
}

/// The settings of a point that tell its curve from others: all but the size of
/// the pool where that is varied, none where it is not.
fn curve(point: &KvPoint, engines: &[(u32, &EngineRecord, &KvPoint)]) -> BTreeMap<String, String> {
    let sizes = |point: &KvPoint| POOL_SETTINGS.iter().any(|key| point.settings.contains_key(*key));
    if !engines.iter().any(|(_, _, other)| other.of == point.of && sizes(other)) {
        return BTreeMap::new();
    }
    let other = |(key, _): &(&String, &String)| !POOL_SETTINGS.contains(&key.as_str());
    point.settings.iter().filter(other).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn assemble(facts: &Facts<'_>, mut seen: Vec<Seen>, effort: &mut Effort) -> KvSweep {
    seen.sort_by_key(|seen| seen.point.kv_tokens.unwrap_or(u64::MAX));
    let measured =
        |seen: &&Seen| seen.point.output_tokens_per_s.is_some() && seen.point.kv_tokens.is_some();
    let largest = seen.iter().filter(measured).map(|seen| seen.point.kv_tokens).max().flatten();
    // Of equally large ones the first.
    let largest = seen.iter().position(|seen| measured(&seen) && seen.point.kv_tokens == largest);
    let basis = largest
        .ok_or_else(|| "no point has both a throughput and a known pool".to_owned())
        .and_then(|largest| prediction::predict(facts, &mut seen, largest, effort));
    if let Err(why) = &basis {
        seen.iter_mut().for_each(|seen| prediction::leave_out(&mut seen.point, why));
    }
    let points: Vec<Point> = seen.into_iter().map(|seen| seen.point).collect();
    let sizes = points.iter().filter(|point| point.output_tokens_per_s.is_some());
    let mut sizes: Vec<u64> = sizes.filter_map(|point| point.kv_tokens).collect();
    sizes.dedup();
    let reason = (sizes.len() < 2).then(|| {
        "fewer than two sizes of pool were measured, so none is the smallest that is enough"
            .to_owned()
    });
    let enough = |of: fn(&Point) -> Option<f64>| {
        if reason.is_some() { None } else { sufficient(&points, of) }
    };
    let smallest_sufficient = enough(|point| point.output_tokens_per_s);
    let predicted_sufficient = enough(|point| point.predicted_tokens_per_s);
    let Key { engine, experiment, settings, .. } = facts.key.clone();
    let concurrency = facts.grouped.iter().find(|group| group.record.experiment == experiment);
    KvSweep {
        engine: engine.to_owned(),
        experiment: experiment.to_owned(),
        concurrency: concurrency
            .map_or(0, |group| group.record.concurrency.max(facts.key.concurrency)),
        settings,
        points,
        smallest_sufficient,
        predicted_sufficient,
        reason,
        basis: basis.ok(),
    }
}

/// The smallest pool that, with every larger one, gives [`SUFFICIENT`] of the best.
fn sufficient(points: &[Point], of: fn(&Point) -> Option<f64>) -> Option<String> {
    let known = || points.iter().filter(|point| point.kv_tokens.is_some());
    let best = known().filter_map(of).reduce(f64::max)?;
    let enough = |point: &&Point| of(point).is_some_and(|rate| rate >= SUFFICIENT * best);
    let known: Vec<&Point> = known().collect();
    let from_largest = known.iter().rev().copied();
    from_largest.take_while(enough).last().map(|point| point.engine.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(kv_tokens: u64, rate: f64) -> Point {
        Point {
            engine: kv_tokens.to_string(),
            kv_tokens: Some(kv_tokens),
            output_tokens_per_s: Some(rate),
            ..Point::default()
        }
    }

    fn enough(rates: &[f64]) -> Option<String> {
        let points: Vec<Point> =
            (1..).zip(rates).map(|(tokens, rate)| point(tokens, *rate)).collect();
        sufficient(&points, |point| point.output_tokens_per_s)
    }

    #[test]
    fn smallest_pool_that_is_enough_has_none_above_it_that_is_not() {
        assert_eq!(enough(&[40.0, 80.0, 96.0, 100.0, 99.0]).as_deref(), Some("3"));
        // A lucky small one is no answer while a larger one falls short.
        assert_eq!(enough(&[97.0, 80.0, 96.0, 100.0]).as_deref(), Some("3"));
        assert_eq!(enough(&[95.0, 100.0]).as_deref(), Some("1"));
        assert_eq!(enough(&[100.0, 90.0]), None);
        assert_eq!(enough(&[]), None);
    }
}
