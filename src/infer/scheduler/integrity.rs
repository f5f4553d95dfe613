//! What must hold of the scheduler after every step, and of every step that it
//! chose. Checked in debug builds and by the tests; the steady path never pays.

use std::collections::HashSet;

use super::{Chunk, Scheduler};
use crate::infer::kv::BlockError;
use crate::infer::sequence::Sequence;

impl Scheduler {
    /// Checks queue, batch and pool against each other: every block is free or
    /// counted as often as tables hold it; tables are as long as their tokens
    /// need; only full blocks are shared; nobody who waits holds a block; the
    /// batch is within its bound and nobody has overtaken.
    ///
    /// # Errors
    /// [`BlockError::Integrity`] names the first thing that is wrong.
    pub fn check_integrity(&self) -> Result<(), BlockError> {
        self.check_tables(&[])
    }

    /// Checks a step that was chosen and not yet computed: as
    /// [`Scheduler::check_integrity`], and it is within its bounds and writes
    /// no slot twice.
    ///
    /// # Errors
    /// [`BlockError::Integrity`] names the first thing that is wrong.
    pub fn check_step(&self, chunks: &[Chunk]) -> Result<(), BlockError> {
        let num_tokens: usize = chunks.iter().map(|chunk| chunk.num_tokens).sum();
        let num_rows: usize = chunks.iter().map(|chunk| chunk.num_scored_rows).sum();
        if num_tokens > self.limits.max_num_batched_tokens || num_rows > self.limits.max_scored_rows
        {
            return broken(format!("a step has {num_tokens} tokens and {num_rows} scored rows"));
        }
        if !chunks.is_sorted_by(|a, b| a.index < b.index) {
            return broken(format!("a sequence is twice in a step or out of turn: {chunks:?}"));
        }
        let mut slots = HashSet::with_capacity(num_tokens);
        for chunk in chunks {
            let Some(sequence) = self.running.get(chunk.index).filter(|_| chunk.num_tokens > 0)
            else {
                return broken(format!("{chunk:?} is empty or has no sequence"));
            };
            let start = sequence.num_computed_tokens;
            let written = sequence.block_table.slot_mapping(start..start + chunk.num_tokens);
            if let Some(slot) = written.into_iter().flatten().find(|slot| !slots.insert(*slot)) {
                return broken(format!("slot {slot} is written twice in a step"));
            }
        }
        if slots.len() != num_tokens {
            return broken(format!("{num_tokens} tokens of a step have {} slots", slots.len()));
        }
        self.check_tables(chunks)
    }

    fn check_tables(&self, chunks: &[Chunk]) -> Result<(), BlockError> {
        let limits = &self.limits;
        if self.running.len() > limits.max_num_seqs {
            let len = self.running.len();
            return broken(format!("{len} sequences run, at most {} may", limits.max_num_seqs));
        }
        let live = || self.running.iter().chain(&self.waiting);
        if !live().is_sorted_by_key(|sequence| (sequence.id, sequence.sample)) {
            return broken("a sequence has overtaken an older one".to_owned());
        }
        if let Some(sequence) = self.waiting.iter().find(|s| !s.block_table.blocks().is_empty()) {
            return broken(format!("{} waits and holds blocks", name(sequence)));
        }
        for (index, sequence) in self.running.iter().enumerate() {
            let chunk = chunks.iter().find(|chunk| chunk.index == index);
            let end = sequence.num_computed_tokens + chunk.map_or(0, |chunk| chunk.num_tokens);
            let blocks = sequence.block_table.blocks();
            if blocks.len() != end.div_ceil(limits.block_size) {
                let len = blocks.len();
                return broken(format!("{} has {len} blocks for {end} tokens", name(sequence)));
            }
            // Whatever is written from here on lies in these.
            let writable = &blocks[sequence.num_computed_tokens / limits.block_size..];
            if let Some(block) = writable.iter().find(|b| self.blocks.ref_count(**b) != 1) {
                return broken(format!("{} writes to block {block}, not its own", name(sequence)));
            }
        }
        self.blocks.check_integrity(live().map(|sequence| &sequence.block_table))
    }
}

fn name(sequence: &Sequence) -> String {
    format!("sample {} of request {}", sequence.sample, sequence.id)
}

fn broken(message: String) -> Result<(), BlockError> {
    Err(BlockError::Integrity(message))
}
