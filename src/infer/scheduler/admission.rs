//! Who enters the batch from the head of the queue, and which blocks of others
//! it brings along.

use super::budget::Budget;
use super::{Chunk, Scheduler};
use crate::infer::kv::{BlockError, SharedBlocks};
use crate::infer::sequence::Sequence;

/// Blocks that a sequence takes from others when it enters.
struct Head {
    shared: SharedBlocks,
    /// Whether the prefix cache was asked for them, rather than a sibling.
    is_lookup: bool,
}

impl Scheduler {
    /// Admits from the head of the queue. A sequence enters only if all of its
    /// tokens fit now, not only its first chunk: one that entered for a chunk
    /// would soon be preempted. Nobody overtakes the head.
    pub(super) fn admit(
        &mut self,
        chunks: &mut Vec<Chunk>,
        budget: &mut Budget,
    ) -> Result<(), BlockError> {
        while !budget.is_spent() && self.running.len() < self.limits.max_num_seqs {
            let Some(sequence) = self.waiting.front() else { break };
            let Some(head) = self.head_of(sequence) else { break };
            if !self.blocks.can_begin(&head.shared, sequence.token_ids.len()) {
                break;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            let num_shared = head.shared.blocks().len() * self.limits.block_size;
            sequence.num_computed_tokens = num_shared;
            if budget.chunk_len(&sequence) == 0 {
                sequence.num_computed_tokens = 0;
                self.waiting.push_front(sequence);
                break;
            }
            self.count_lookup(&mut sequence, &head);
            self.blocks.share(&mut sequence.block_table, &head.shared)?;
            self.running.push(sequence);
            chunks.push(self.reserve(self.running.len() - 1, budget)?);
        }
        Ok(())
    }

    /// What `sequence` can take from others; `None` if it has to wait for a
    /// sibling, whose prompt is its own, to be done with it.
    fn head_of(&self, sequence: &Sequence) -> Option<Head> {
        let max_tokens = sequence.max_shared_tokens();
        let siblings = || self.running.iter().filter(|other| other.id == sequence.id);
        let Some(sibling) = siblings().find(|other| other.is_prompt_computed()) else {
            if siblings().next().is_some() {
                return None;
            }
            let shared = self.blocks.find_cached(&sequence.token_ids, max_tokens);
            return Some(Head { shared, is_lookup: true });
        };
        let num_blocks = max_tokens.min(sequence.num_prompt_tokens) / self.limits.block_size;
        let shared = sibling.block_table.head(num_blocks);
        // One that was preempted may find more: what it had generated.
        let cached = self.blocks.find_cached(&sequence.token_ids, max_tokens);
        let is_longer = cached.blocks().len() > shared.blocks().len();
        Some(Head { shared: if is_longer { cached } else { shared }, is_lookup: false })
    }

    /// Counts what the prefix cache was asked for and gave, once a sequence.
    fn count_lookup(&mut self, sequence: &mut Sequence, head: &Head) {
        if sequence.num_cached_tokens.is_some() {
            return;
        }
        let can_hit = self.blocks.has_prefix_caching() && !sequence.wants_scores();
        let mut num_cached = 0;
        if head.is_lookup && can_hit {
            num_cached = sequence.num_computed_tokens;
            self.prefix_query_tokens += sequence.num_prompt_tokens as u64;
            self.prefix_hit_tokens += num_cached as u64;
        }
        sequence.num_cached_tokens = Some(num_cached);
    }
}
