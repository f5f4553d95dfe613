//! The bounds of a point's engine, as a simulation takes them: what it told of
//! itself, and what is assumed where it told nothing.

use std::collections::BTreeMap;

use super::load::CaseLoad;
use super::room::blocks_of;
use crate::engine::EngineKind;
use crate::infer::EngineConfig;
use crate::infer::scheduler::SchedulerLimits;
use crate::sizing::vllm::rules::MAX_NUM_SEQS;

/// Most blocks, and tokens in one, of a pool that is simulated.
const MAX_BLOCKS: u64 = 1 << 22;
const MAX_BLOCK_SIZE: u64 = 1 << 20;
/// A bound that no load meets.
const UNBOUNDED: usize = usize::MAX / 2;

/// What an engine told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Told {
    pub(super) kind: EngineKind,
    pub(super) num_blocks: Option<u64>,
    pub(super) block_size: Option<u64>,
    pub(super) max_num_seqs: Option<u64>,
    pub(super) max_num_batched_tokens: Option<u64>,
    pub(super) max_model_len: Option<u64>,
    pub(super) max_queue: Option<u64>,
    pub(super) enable_prefix_caching: Option<bool>,
}

impl Told {
    /// Whether prompts that begin alike share the blocks of their beginning.
    pub(super) fn shares_prefixes(&self) -> bool {
        self.enable_prefix_caching.unwrap_or(EngineConfig::default().enable_prefix_caching)
    }

    /// Bounds under which `load` does what it would do under those that were told.
    ///
    /// # Errors
    /// Why there are none.
    pub(super) fn limits(&self, load: &CaseLoad) -> Result<SchedulerLimits, String> {
        let num_blocks = self.num_blocks.ok_or("the engine does not tell its number of blocks")?;
        let block_size = self.block_size.filter(|size| *size > 0);
        let block_size = block_size.ok_or("the engine tells no block size")?;
        // No load takes a block from another where every sequence could have its own.
        let enough = load.lengths().map(|(prompt, output)| blocks_of(prompt + output, block_size));
        let num_blocks = num_blocks.min(enough.sum());
        if num_blocks > MAX_BLOCKS || block_size > MAX_BLOCK_SIZE {
            return Err(format!(
                "a pool of {num_blocks} blocks of {block_size} tokens is larger than those that \
                 are simulated"
            ));
        }
        Ok(SchedulerLimits {
            max_num_seqs: self.max_num_seqs.map_or(self.assumed_seqs(), count),
            max_num_batched_tokens: self.max_num_batched_tokens.map_or(assumed_tokens(), count),
            max_scored_rows: 0,
            max_model_len: self.max_model_len.map_or(UNBOUNDED, count),
            max_queue: self.max_queue.map_or(UNBOUNDED, count),
            num_blocks: count(num_blocks),
            block_size: count(block_size),
            enable_prefix_caching: self.shares_prefixes(),
        })
    }

    /// What was not told, and what is taken instead.
    pub(super) fn assumed(&self) -> BTreeMap<String, String> {
        let unbounded = || "unbounded".to_owned();
        let assumed = [
            ("max_num_seqs", self.max_num_seqs.is_none(), self.assumed_seqs().to_string()),
            (
                "max_num_batched_tokens",
                self.max_num_batched_tokens.is_none(),
                assumed_tokens().to_string(),
            ),
            ("max_model_len", self.max_model_len.is_none(), unbounded()),
            ("max_queue", self.max_queue.is_none(), unbounded()),
            (
                "enable_prefix_caching",
                self.enable_prefix_caching.is_none(),
                self.shares_prefixes().to_string(),
            ),
        ];
        let untold = assumed.into_iter().filter(|(_, untold, _)| *untold);
        untold.map(|(setting, _, value)| (setting.to_owned(), value)).collect()
    }

    fn assumed_seqs(&self) -> usize {
        match self.kind {
            EngineKind::Vllm => count(MAX_NUM_SEQS),
            EngineKind::Embedded | EngineKind::Ollama | EngineKind::Openai => {
                EngineConfig::default().max_num_seqs
            }
        }
    }
}

fn assumed_tokens() -> usize {
    EngineConfig::default().max_num_batched_tokens
}

fn count(told: u64) -> usize {
    usize::try_from(told).unwrap_or(UNBOUNDED).min(UNBOUNDED)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::load::tests::closed;
    use super::*;

    /// An engine that told of its pool, and of nothing else.
    pub(in crate::stats::kv_sweep) fn pool(num_blocks: u64, block_size: u64) -> Told {
        Told {
            kind: EngineKind::Embedded,
            num_blocks: Some(num_blocks),
            block_size: Some(block_size),
            max_num_seqs: None,
            max_num_batched_tokens: None,
            max_model_len: None,
            max_queue: None,
            enable_prefix_caching: None,
        }
    }

    #[test]
    fn what_is_not_told_is_assumed_and_named() {
        let load = closed(4, 8, (40, 24));
        let limits = pool(12, 16).limits(&load).unwrap();
        let default = EngineConfig::default();
        assert_eq!((limits.num_blocks, limits.max_num_seqs), (12, default.max_num_seqs));
        assert_eq!(pool(12, 16).assumed().len(), 5);
        let vllm = Told { kind: EngineKind::Vllm, ..pool(12, 16) };
        assert_eq!(vllm.assumed()["max_num_seqs"], "256");
        let told = Told { max_num_seqs: Some(3), max_model_len: Some(90), ..vllm };
        let limits = told.limits(&load).unwrap();
        assert_eq!((limits.max_num_seqs, limits.max_model_len), (3, 90));
        assert!(!told.assumed().contains_key("max_num_seqs"));
    }

    #[test]
    fn pool_without_end_is_no_larger_than_the_load() {
        let load = closed(4, 8, (40, 24));
        assert_eq!(pool(u64::MAX, 16).limits(&load).unwrap().num_blocks, 8 * 4);
        let refused = |told: Told| told.limits(&load).unwrap_err();
        assert!(refused(pool(9, u64::MAX)).contains("larger than"));
        assert!(refused(pool(9, 0)).contains("no block size"));
        assert!(refused(Told { num_blocks: None, ..pool(9, 9) }).contains("number of blocks"));
    }
}
