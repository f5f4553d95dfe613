//! What the KV memory that an engine has holds: how many requests of a length at
//! once, and whether the loads of the run fitted into it. From what the engine
//! says of itself; knows no model and no prediction.

use serde::{Deserialize, Serialize};

use super::case::CaseRequests;
use super::contract::parallel_slots;
use crate::record::{EngineRecord, LoadRecord, RunData};

/// The KV memory of one engine against requests at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KvCapacity {
    /// Engine name.
    pub engine: String,
    /// How its memory is divided; null where it does not say.
    pub pool: Option<KvPool>,
    /// Longest request, prompt and answer, in tokens.
    pub max_model_len: Option<u32>,
    /// Requests that it computes at once at most.
    pub max_num_seqs: Option<u32>,
    /// Requests of the longest length that fit at once.
    pub full_length_fit: Option<u64>,
    /// The closed loads of the run whose tokens were counted.
    pub loads: Vec<LoadFit>,
    /// Why the pool is not known.
    pub reason: Option<String>,
}

/// How KV memory is divided among requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvPool {
    /// Blocks, which a request takes as it grows.
    Blocks {
        /// How many there are.
        num_blocks: u64,
        /// Tokens in each.
        block_size: u64,
    },
    /// A fixed part for each request that is served at once, as long as the longest.
    Slots {
        /// How many there are.
        num_slots: u64,
        /// Tokens in each.
        slot_tokens: u64,
    },
}

/// A load of the run in an engine's KV memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadFit {
    /// Experiment name.
    pub experiment: String,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// Prompt and output tokens of its longest completed request.
    pub request_tokens: u64,
    /// Such requests that fit at once; null where the pool is not known.
    pub fit: Option<u64>,
}

impl KvPool {
    /// Tokens that it holds.
    #[must_use]
    pub const fn tokens(self) -> u64 {
        let (parts, each) = match self {
            Self::Blocks { num_blocks, block_size } => (num_blocks, block_size),
            Self::Slots { num_slots, slot_tokens } => (num_slots, slot_tokens),
        };
        parts.saturating_mul(each)
    }

    /// Tokens of the longest request that it holds; 0 where it holds none.
    #[must_use]
    pub const fn longest(self) -> u64 {
        match self {
            Self::Blocks { .. } => self.tokens(),
            Self::Slots { num_slots: 0, .. } => 0,
            Self::Slots { slot_tokens, .. } => slot_tokens,
        }
    }

    /// Requests of `tokens`, prompt and answer, that it holds at once: whole blocks
    /// to each, as vLLM's "maximum concurrency" counts, but whole requests alone.
    #[must_use]
    pub const fn fit(self, tokens: u64) -> u64 {
        let tokens = if tokens == 0 { 1 } else { tokens };
        match self {
            Self::Blocks { block_size: 0, .. } => 0,
            Self::Blocks { num_blocks, block_size } => num_blocks / tokens.div_ceil(block_size),
            Self::Slots { num_slots, slot_tokens } if tokens <= slot_tokens => num_slots,
            Self::Slots { .. } => 0,
        }
    }
}

impl KvCapacity {
    /// Requests of `tokens` that the pool holds at once, and no more than the engine
    /// computes at once; `None` where the pool is not known.
    #[must_use]
    pub fn fit(&self, tokens: u64) -> Option<u64> {
        let fit = self.pool?.fit(tokens);
        Some(self.max_num_seqs.map_or(fit, |most| fit.min(most.into())))
    }

    /// The load that fits worst; of equals the one that asks for most.
    #[must_use]
    pub fn tightest(&self) -> Option<&LoadFit> {
        let room = |load: &&LoadFit| {
            let fit = load.fit.unwrap_or(0).saturating_mul(1_000);
            let asked = load.request_tokens.saturating_mul(load.concurrency.into());
            (fit / u64::from(load.concurrency.max(1)), u64::MAX - asked)
        };
        self.loads.iter().min_by_key(room)
    }
}

/// One entry an engine, in the manifest's order. Points of a sweep over KV settings
/// are left out: their pools are what that sweep is about.
#[must_use]
pub fn capacities(run: &RunData, groups: &[CaseRequests<'_>]) -> Vec<KvCapacity> {
    (0..)
        .zip(&run.manifest.engines)
        .filter(|(_, engine)| engine.spec.kv_point.is_none() && engine.info.is_some())
        .map(|(index, engine)| capacity(run, index, engine, groups))
        .collect()
}

fn capacity(
    run: &RunData,
    index: u32,
    engine: &EngineRecord,
    groups: &[CaseRequests<'_>],
) -> KvCapacity {
    let max_model_len = engine.info.as_ref().and_then(|info| info.max_model_len);
    let pool = pool(run, index, engine, max_model_len);
    let mut capacity = KvCapacity {
        engine: engine.spec.name.clone(),
        max_model_len,
        max_num_seqs: parallel_slots(engine),
        full_length_fit: None,
        loads: Vec::new(),
        reason: pool.is_none().then(|| {
            "the engine says neither its KV blocks nor how many requests share its context"
                .to_owned()
        }),
        pool,
    };
    capacity.full_length_fit = max_model_len.and_then(|len| capacity.fit(len.into()));
    let own = groups.iter().filter(|group| group.record.engine == engine.spec.name);
    for group in own.filter(|group| group.record.round == 0 && !group.record.again) {
        let is_open = group.record.load.as_ref().is_some_and(LoadRecord::is_open);
        let tokens = group.completed().filter_map(|request| {
            Some(u64::from(request.num_prompt_tokens?) + u64::from(request.num_output_tokens?))
        });
        if let (false, Some(request_tokens)) = (is_open, tokens.max()) {
            let experiment = group.record.experiment.clone();
            let concurrency = group.record.concurrency;
            let fit = capacity.fit(request_tokens);
            capacity.loads.push(LoadFit { experiment, concurrency, request_tokens, fit });
        }
    }
    capacity
}

/// What the engine says of its pool: as a setting, else while it was watched.
fn pool(
    run: &RunData,
    index: u32,
    engine: &EngineRecord,
    max_model_len: Option<u32>,
) -> Option<KvPool> {
    let settings = &engine.info.as_ref()?.settings;
    let number = |name: &str| settings.get(name)?.parse::<u64>().ok().filter(|value| *value > 0);
    let words = || {
        let words = run.resources.iter().filter_map(|look| look.word.as_ref());
        words.filter(move |word| word.engine == index)
    };
    let num_blocks = number("num_blocks").or_else(|| number("num_gpu_blocks"));
    let num_blocks = num_blocks.or_else(|| words().filter_map(|word| word.kv_blocks).max());
    if let Some((num_blocks, block_size)) = num_blocks.zip(number("block_size")) {
        return Some(KvPool::Blocks { num_blocks, block_size });
    }
    let num_slots = number("total_slots")
        .or_else(|| words().filter_map(|word| word.num_slots).max())
        .filter(|slots| *slots > 0)?;
    Some(KvPool::Slots { num_slots, slot_tokens: max_model_len?.into() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::stats::case::group;
    use crate::stats::case::tests::{record, request, run};

    fn told(settings: &[(&str, &str)], max_model_len: u32) -> RunData {
        let yes = serde_json::json!({ "available": "yes" });
        let info = serde_json::json!({
            "version": null, "model": "", "precision": null, "max_model_len": max_model_len,
            "dummy_weights": false,
            "settings": settings.iter().copied().collect::<BTreeMap<_, _>>(),
            "capabilities": {
                "token_id_prompts": yes, "ignore_eos": yes, "cold": yes, "server_timings": yes,
            },
        });
        let mut run = run(&["v:vllm"], vec![record("v", "concurrent-warm", 8)]);
        run.manifest.engines[0].info = serde_json::from_value(info).unwrap();
        run.requests = vec![request(0, 0, &[20]), request(1, 0, &[20])];
        for (request, tokens) in run.requests.iter_mut().zip([300, 100]) {
            (request.num_prompt_tokens, request.num_output_tokens) = (Some(tokens), Some(20));
        }
        run
    }

    fn only(run: &RunData) -> KvCapacity {
        let [capacity] = <[_; 1]>::try_from(capacities(run, &group(run))).unwrap();
        capacity
    }

    #[test]
    fn pool_of_the_study_holds_no_request_of_full_length_and_28_of_4096() {
        let capacity = only(&told(&[("num_gpu_blocks", "7333"), ("block_size", "16")], 131_072));
        assert_eq!(capacity.pool.unwrap().tokens(), 117_328);
        assert_eq!(capacity.full_length_fit, Some(0));
        assert_eq!((capacity.fit(117_328), capacity.fit(117_329)), (Some(1), Some(0)));
        assert_eq!(capacity.fit(4_096), Some(28));
    }

    #[test]
    fn load_is_held_against_its_longest_request() {
        let capacity = only(&told(
            &[("num_blocks", "100"), ("block_size", "16"), ("max_num_seqs", "64")],
            512,
        ));
        let load = LoadFit {
            experiment: "concurrent-warm".to_owned(),
            concurrency: 8,
            request_tokens: 320,
            fit: Some(5),
        };
        assert_eq!(capacity.loads, std::slice::from_ref(&load));
        assert_eq!(capacity.tightest(), Some(&load));
    }

    #[test]
    fn slots_hold_one_request_each_of_any_length_up_to_theirs() {
        let capacity = only(&told(&[("total_slots", "4")], 2_048));
        assert_eq!(capacity.pool, Some(KvPool::Slots { num_slots: 4, slot_tokens: 2_048 }));
        assert_eq!(capacity.full_length_fit, Some(4));
        assert_eq!((capacity.fit(1), capacity.fit(2_049)), (Some(4), Some(0)));
    }

    #[test]
    fn engine_that_says_nothing_has_a_reason() {
        for settings in [&[][..], &[("block_size", "16")], &[("num_blocks", "a lot")]] {
            let capacity = only(&told(settings, 2_048));
            assert_eq!((capacity.pool, capacity.full_length_fit), (None, None));
            assert!(capacity.reason.is_some() && capacity.loads[0].fit.is_none());
        }
    }

    proptest! {
        #[test]
        fn longer_requests_never_fit_more_often_and_never_beyond_the_pool(
            num_blocks: u64, block_size: u64, tokens in 1..u64::MAX, more: u64,
        ) {
            let pool = KvPool::Blocks { num_blocks, block_size };
            prop_assert!(pool.fit(tokens.saturating_add(more)) <= pool.fit(tokens));
            prop_assert!(pool.fit(tokens).saturating_mul(tokens) <= pool.tokens());
        }
    }
}
