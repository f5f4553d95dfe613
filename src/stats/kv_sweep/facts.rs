//! The points of one curve of a sweep: each one's case and engine put together,
//! and the load that all of them met. Knows no prediction.

use std::collections::BTreeMap;

use super::Point;
use super::fit::Load;
use super::pool::{self, PoolUse};
use crate::engine::spec::KvPoint;
use crate::record::{EngineRecord, Outcome, RunData};
use crate::stats::case::CaseRequests;
use crate::stats::summary::{AbsentCase, CaseSummary};

/// Which curve: an engine under a load, and the settings that its points share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key<'a> {
    pub(super) engine: &'a str,
    pub(super) experiment: &'a str,
    /// 0 for open loops.
    pub(super) concurrency: u32,
    pub(super) settings: BTreeMap<String, String>,
}

/// What is known of one curve.
pub(super) struct Facts<'a> {
    pub(super) run: &'a RunData,
    pub(super) grouped: &'a [CaseRequests<'a>],
    pub(super) shown: &'a [CaseSummary],
    pub(super) absent: &'a [AbsentCase],
    pub(super) key: &'a Key<'a>,
}

/// A point, and what a prediction needs of it.
pub(super) struct Seen {
    pub(super) point: Point,
    pub(super) used: PoolUse,
    pub(super) shares_prefixes: bool,
    /// Sequences that the engine runs at once at most.
    max_num_seqs: Option<f64>,
}

impl Facts<'_> {
    fn groups(&self, engine: &str) -> impl Iterator<Item = &CaseRequests<'_>> {
        self.grouped.iter().filter(move |group| {
            let (experiment, concurrency, _, again) = group.load_key();
            group.record.engine == engine
                && (experiment, concurrency) == (self.key.experiment, self.key.concurrency)
                && !again
        })
    }

    fn case(&self, engine: &str) -> Option<&CaseSummary> {
        let groups: Vec<u32> = self.groups(engine).map(|group| group.case).collect();
        self.shown.iter().find(|case| groups.contains(&case.case))
    }

    /// A point, measured or not.
    pub(super) fn point(&self, index: u32, record: &EngineRecord, varied: &KvPoint) -> Seen {
        let name = &record.spec.name;
        let info = record.info.as_ref();
        let setting = |key: &str| {
            let told = info.and_then(|info| info.settings.get(key));
            told.or_else(|| varied.settings.get(key)).map(String::as_str)
        };
        let number = |key: &str| setting(key).and_then(|value| value.parse::<u64>().ok());
        let cases: Vec<u32> = self.groups(name).map(|group| group.case).collect();
        let told_size = number("block_size");
        let used = pool::seen(self.run, index, &cases, told_size);
        let num_blocks = number("num_blocks").or(used.num_blocks).or_else(|| number("kv_blocks"));
        let block_size = told_size
            .or_else(|| used.kv_tokens.zip(used.num_blocks).and_then(|(t, b)| t.checked_div(b)));
        let mut reasons = used.reasons.clone();
        let prefix = self.prefix(name).or(used.prefix).filter(|(looked_up, _)| *looked_up > 0);
        if prefix.is_none() {
            let why = "neither answers nor the engine say how many prompt tokens were cached";
            reasons.insert("prefix_hit_share".to_owned(), why.to_owned());
        }
        let case = self.case(name);
        let failed = self.failure(name, record, case);
        if case.is_some_and(|case| case.output_tokens_per_s.is_none()) && failed.is_none() {
            let why = "no output tokens were counted over the case".to_owned();
            reasons.insert("output_tokens_per_s".to_owned(), why);
        }
        let point = Point {
            engine: name.clone(),
            settings: varied.settings.clone(),
            case: case.map(|case| case.case),
            num_blocks,
            block_size,
            kv_tokens: num_blocks
                .zip(block_size)
                .map(|(n, size)| n.saturating_mul(size))
                .or(used.kv_tokens),
            kv_bytes: number("kv_bytes").or(used.kv_bytes),
            model_bytes: used.model_bytes,
            n: case.map_or(0, |case| case.n),
            num_ok: case.map_or(0, |case| case.num_ok),
            output_tokens_per_s: case.and_then(|case| case.output_tokens_per_s),
            ttft_ms_p50: case.and_then(|case| case.ttft_ms.p50),
            num_preemptions: used.num_preemptions,
            peak_kv_use: used.peak_use,
            mean_kv_use: used.mean_use,
            waste_share: used.waste_share,
            peak_waste_slots: used.peak_waste_slots,
            prefix_hit_share: prefix.map(|(all, found)| found as f64 / all as f64),
            mean_running: used.mean_running,
            // What was not measured has one reason for all of its numbers.
            reasons: if failed.is_some() { BTreeMap::new() } else { reasons },
            absent: failed,
            ..Point::default()
        };
        let caches = setting("enable_prefix_caching");
        let looked_up = used.prefix.is_some_and(|(all, _)| all > 0);
        Seen {
            point,
            shares_prefixes: caches.map_or(looked_up, |value| value == "true"),
            max_num_seqs: number("max_num_seqs").map(|most| most as f64),
            used,
        }
    }

    /// Why a point has no throughput at all.
    fn failure(
        &self,
        name: &str,
        record: &EngineRecord,
        case: Option<&CaseSummary>,
    ) -> Option<String> {
        if let Some(case) = case {
            let requests = self.groups(name).flat_map(|group| &group.requests);
            let mut failures = requests.filter_map(|request| match &request.outcome {
                Outcome::Error { message, .. } => Some(message.clone()),
                Outcome::Ok => None,
            });
            let none = || "no request was sent".to_owned();
            return (case.num_ok == 0).then(|| failures.next().unwrap_or_else(none));
        }
        let absent = self
            .absent
            .iter()
            .find(|absent| absent.engine == name && absent.experiment == self.key.experiment);
        let reason = absent.map(|absent| absent.reason.clone()).or_else(|| record.error.clone());
        Some(reason.unwrap_or_else(|| "it was not measured".to_owned()))
    }

    /// Prompt tokens of the completed requests that say how many were cached, and those.
    fn prefix(&self, engine: &str) -> Option<(u64, u64)> {
        let told = self.groups(engine).flat_map(CaseRequests::completed);
        let told = told.filter_map(|r| Some((r.num_prompt_tokens?, r.num_cached_tokens?)));
        told.map(|(prompt, cached)| (u64::from(prompt), u64::from(cached)))
            .reduce(|(prompt, cached), (more, found)| (prompt + more, cached + found))
    }

    /// The load as the completed requests of a point had it.
    pub(super) fn load(&self, seen: &Seen) -> Result<Load, String> {
        let name = &seen.point.engine;
        let lengths = self.groups(name).flat_map(CaseRequests::completed);
        let lengths = lengths.filter_map(|request| {
            Some((request.num_prompt_tokens?.into(), request.num_output_tokens?.into()))
        });
        let lengths: Vec<(u64, u64)> = lengths.collect();
        if lengths.is_empty() {
            return Err("nobody counted the tokens of its requests".to_owned());
        }
        let record = self.groups(name).next().map(|group| group.record);
        let load = record.and_then(|record| record.load.as_ref());
        let prefixes = load.and_then(|load| Some((load.prefix_groups?, load.prefix_tokens?)));
        let closed = load.is_none_or(|load| !load.is_open());
        let demand = if closed {
            f64::from(self.key.concurrency)
        } else {
            let unknown = "the engine does not say how many requests it ran at once";
            seen.point.mean_running.ok_or_else(|| unknown.to_owned())?
        };
        Ok(Load {
            lengths,
            prefixes: prefixes.map_or((0, 0), |(groups, tokens)| (groups.into(), tokens.into())),
            demand: seen.max_num_seqs.map_or(demand, |most| demand.min(most)),
        })
    }
}
