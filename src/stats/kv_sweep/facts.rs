//! The points of one curve of a sweep: each one's case and engine put together,
//! the load that all of them met, and how long steps took. Knows no prediction.

use std::collections::BTreeMap;

use super::Point;
use super::limits::Told;
use super::load::CaseLoad;
use super::pool;
use crate::engine::spec::KvPoint;
use crate::record::{EngineRecord, Outcome, RunData};
use crate::simulation::StepTime;
use crate::simulation::measured::{self, StepsError};
use crate::simulation::step_time::StepTimeSource;
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

/// A point, and what its engine told of itself.
pub(super) struct Seen {
    pub(super) point: Point,
    pub(super) told: Told,
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
        let looked_up = || used.prefix.is_some_and(|(all, _)| all > 0).then_some(true);
        let told = Told {
            kind: record.spec.kind,
            num_blocks: point.num_blocks,
            block_size: point.block_size,
            max_num_seqs: number("max_num_seqs"),
            max_num_batched_tokens: number("max_num_batched_tokens"),
            max_model_len: info
                .and_then(|info| info.max_model_len)
                .map_or_else(|| number("max_model_len"), |len| Some(len.into())),
            max_queue: number("max_queue"),
            // vLLM spells it as Python does.
            enable_prefix_caching: caches
                .map_or_else(looked_up, |value| Some(value.eq_ignore_ascii_case("true"))),
        };
        Seen { point, told }
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

    /// The load of a point: that of the first of its rounds that was measured.
    pub(super) fn load(&self, engine: &str) -> Result<CaseLoad, String> {
        let first = self.measured(engine).next();
        first.map_or_else(|| Err("no request of it completed".to_owned()), CaseLoad::of)
    }

    /// Rounds of a point in which a request completed.
    pub(super) fn num_rounds(&self, engine: &str) -> u64 {
        self.measured(engine).count() as u64
    }

    fn measured(&self, engine: &str) -> impl Iterator<Item = &CaseRequests<'_>> {
        self.groups(engine).filter(|group| group.completed().next().is_some())
    }

    /// How long a step takes, by the steps of a point's engine; where they do not
    /// say it, as long as the gap between two tokens of an answer.
    pub(super) fn step_time(&self, engine: &str) -> Result<(StepTime, StepTimeSource), String> {
        let reason = match measured::step_time(self.run, Some(engine)) {
            Ok(fitted) => return Ok(fitted),
            Err(StepsError::NoSteps(_) | StepsError::UnknownEngine { .. }) => {
                "none was seen".to_owned()
            }
            Err(error) => error.to_string(),
        };
        let step_ms = self.case(engine).and_then(|case| case.tpot_ms.p50);
        let step_ms = step_ms.filter(|ms| ms.is_finite() && *ms > 0.0).ok_or_else(|| {
            format!("how long a step takes is not known ({reason}), and no answer has a TPOT")
        })?;
        Ok((StepTime::equal(step_ms), StepTimeSource::Equal { step_ms, reason }))
    }
}
