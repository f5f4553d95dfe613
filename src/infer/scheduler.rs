//! Continuous batching: which sequences take part in the next step, and with
//! how many tokens. Owns the sequences and their blocks; knows no tensors.
//!
//! One step mixes decodes and chunks of prompts under one token budget, the
//! running sequences first and in the order of their arrival. When blocks run
//! out, the sequence that arrived last gives all of its own back and waits at
//! the head of the queue, to be computed again.

use std::collections::VecDeque;

use super::kv::{BlockError, BlockManager, KvSizing};
use super::sequence::{InferRequest, Sequence, SequenceId, StopReason};
use super::{EngineConfig, InferError};

/// Bounds on a step, a sequence and the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerLimits {
    /// Sequences in one step.
    pub max_num_seqs: usize,
    /// Tokens in one step.
    pub max_num_batched_tokens: usize,
    /// Tokens of one sequence, prompt and output.
    pub max_model_len: usize,
    /// Requests beyond `max_num_seqs` that may wait.
    pub max_queue: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Tokens in a block.
    pub block_size: usize,
}

impl SchedulerLimits {
    /// The bounds that `config` sets on a pool of `sizing`.
    #[must_use]
    pub const fn new(config: &EngineConfig, sizing: &KvSizing) -> Self {
        Self {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens,
            max_model_len: sizing.max_model_len,
            max_queue: config.max_queue,
            num_blocks: sizing.num_blocks,
            block_size: sizing.block_size,
        }
    }

    /// Length at which `request` ends, `max_tokens` clipped by `max_model_len`.
    ///
    /// # Errors
    /// [`InferError::Request`] if it can never be served, however long it waits.
    pub fn max_len(&self, request: &InferRequest) -> Result<usize, InferError> {
        let prompt = request.prompt_ids.len();
        if prompt >= self.max_model_len {
            return Err(InferError::Request(format!(
                "prompt of {prompt} tokens leaves no room for an output token: max_model_len is \
                 {}, shorten the prompt to {} or raise max_model_len",
                self.max_model_len,
                self.max_model_len.saturating_sub(1),
            )));
        }
        let max_len = prompt.saturating_add(request.max_tokens).min(self.max_model_len);
        // The token drawn last is never fed back, so it takes no slot.
        let needed = (max_len - 1).div_ceil(self.block_size);
        if needed > self.num_blocks {
            return Err(InferError::Request(format!(
                "request of {max_len} tokens needs {needed} KV blocks of {} tokens, the pool has \
                 {}: lower max_tokens or raise kv_blocks",
                self.block_size, self.num_blocks,
            )));
        }
        Ok(max_len)
    }

    /// Refuses one more request when `num_live` run and wait already.
    ///
    /// # Errors
    /// [`InferError::Busy`].
    pub const fn check_queue(&self, num_live: usize) -> Result<(), InferError> {
        let waiting = num_live.saturating_sub(self.max_num_seqs);
        if num_live >= self.max_num_seqs.saturating_add(self.max_queue) {
            return Err(InferError::Busy { waiting, limit: self.max_queue });
        }
        Ok(())
    }
}

/// A running sequence's share of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Index into [`Scheduler::running`].
    pub index: usize,
    /// Tokens from `num_computed_tokens` on.
    pub num_tokens: usize,
    /// Whether these are all that is left, so that a token is drawn.
    pub is_last: bool,
}

/// Waiting and running sequences, and the pool they share.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    blocks: BlockManager,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    num_preemptions: u64,
}

impl Scheduler {
    /// An idle scheduler over a free pool.
    #[must_use]
    pub fn new(limits: SchedulerLimits) -> Self {
        Self {
            blocks: BlockManager::new(limits.num_blocks, limits.block_size),
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
            num_preemptions: 0,
        }
    }

    /// Queues a request under `id`, which must be larger than all before it.
    ///
    /// # Errors
    /// [`InferError::Request`] if it can never fit, [`InferError::Busy`] if the queue is full.
    pub fn add(&mut self, id: SequenceId, request: InferRequest) -> Result<(), InferError> {
        let max_len = self.limits.max_len(&request)?;
        self.limits.check_queue(self.running.len() + self.waiting.len())?;
        self.waiting.push_back(Sequence::new(id, request, max_len, self.limits.block_size));
        Ok(())
    }

    /// Chooses the next step and reserves its blocks: running sequences first,
    /// then the head of the queue for as long as tokens, seats and blocks last.
    ///
    /// # Errors
    /// [`BlockError`] when the block accounting is broken.
    pub fn schedule(&mut self) -> Result<Vec<Chunk>, BlockError> {
        let mut chunks = Vec::with_capacity(self.running.len());
        let mut budget = self.limits.max_num_batched_tokens;
        let preempted_before = self.num_preemptions;
        let mut index = 0;
        while index < self.running.len() && budget > 0 {
            if !self.make_room(index, budget)? {
                break;
            }
            let chunk = self.reserve(index, budget)?;
            budget -= chunk.num_tokens;
            chunks.push(chunk);
            index += 1;
        }
        // Whoever was just sent back would take the blocks of those who stayed.
        if self.num_preemptions == preempted_before {
            self.admit(&mut chunks, budget)?;
        }
        Ok(chunks)
    }

    /// Notes that K and V of a chunk are in the cache.
    pub fn advance(&mut self, chunk: Chunk) {
        if let Some(sequence) = self.running.get_mut(chunk.index) {
            sequence.num_computed_tokens += chunk.num_tokens;
        }
    }

    /// Appends a drawn token; says whether the sequence has reached its length.
    /// It keeps its blocks until [`Scheduler::remove`].
    pub fn push_token(&mut self, index: usize, token: u32) -> Option<StopReason> {
        let sequence = self.running.get_mut(index)?;
        sequence.token_ids.push(token);
        (sequence.token_ids.len() >= sequence.max_len).then_some(StopReason::Length)
    }

    /// Takes a sequence out, running or waiting, and frees its blocks. `None`
    /// if there is none of that name.
    ///
    /// # Errors
    /// [`BlockError`] when the block accounting is broken.
    pub fn remove(&mut self, id: SequenceId) -> Result<Option<Sequence>, BlockError> {
        let found = if let Some(at) = self.running.iter().position(|s| s.id == id) {
            Some(self.running.remove(at))
        } else {
            let at = self.waiting.iter().position(|s| s.id == id);
            at.and_then(|at| self.waiting.remove(at))
        };
        match found {
            Some(mut sequence) => {
                self.blocks.free(&mut sequence.block_table)?;
                Ok(Some(sequence))
            }
            None => Ok(None),
        }
    }

    /// Sequences in the batch, oldest first.
    #[must_use]
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// A running sequence, to note facts that do not concern scheduling.
    pub(super) fn running_mut(&mut self, index: usize) -> Option<&mut Sequence> {
        self.running.get_mut(index)
    }

    /// Sequences in the queue, next one first.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &Sequence> {
        self.waiting.iter()
    }

    /// The pool.
    #[must_use]
    pub const fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// The bounds in force.
    #[must_use]
    pub const fn limits(&self) -> &SchedulerLimits {
        &self.limits
    }

    /// Sequences sent back to the queue since the start.
    #[must_use]
    pub const fn num_preemptions(&self) -> u64 {
        self.num_preemptions
    }

    /// Whether a step would do anything.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !(self.running.is_empty() && self.waiting.is_empty())
    }

    /// Checks the pool against the tables of all live sequences.
    ///
    /// # Errors
    /// [`BlockError::Integrity`].
    pub fn check_integrity(&self) -> Result<(), BlockError> {
        let live = self.running.iter().chain(&self.waiting);
        self.blocks.check_integrity(live.map(|sequence| &sequence.block_table))
    }

    /// Preempts from the back until the sequence at `index` can have its
    /// tokens; false if it had to go itself.
    fn make_room(&mut self, index: usize, budget: usize) -> Result<bool, BlockError> {
        while let Some(sequence) = self.running.get(index) {
            let num_tokens = sequence.num_uncomputed_tokens().min(budget);
            let len = sequence.num_computed_tokens + num_tokens;
            if self.blocks.can_append(&sequence.block_table, len) {
                return Ok(true);
            }
            self.preempt_last()?;
        }
        Ok(false)
    }

    fn preempt_last(&mut self) -> Result<(), BlockError> {
        if let Some(mut sequence) = self.running.pop() {
            self.blocks.free(&mut sequence.block_table)?;
            sequence.num_computed_tokens = 0;
            self.waiting.push_front(sequence);
            self.num_preemptions += 1;
        }
        Ok(())
    }

    fn reserve(&mut self, index: usize, budget: usize) -> Result<Chunk, BlockError> {
        let sequence = &mut self.running[index];
        let uncomputed = sequence.num_uncomputed_tokens();
        let num_tokens = uncomputed.min(budget);
        let len = sequence.num_computed_tokens + num_tokens;
        self.blocks.append(&mut sequence.block_table, len)?;
        Ok(Chunk { index, num_tokens, is_last: num_tokens == uncomputed })
    }

    /// Admits from the head of the queue. A sequence enters only if all of its
    /// tokens fit now, not only its first chunk: one that entered for a chunk
    /// would soon be preempted.
    fn admit(&mut self, chunks: &mut Vec<Chunk>, mut budget: usize) -> Result<(), BlockError> {
        while budget > 0 && self.running.len() < self.limits.max_num_seqs {
            let fits = |sequence: &Sequence| {
                self.blocks.can_append(&sequence.block_table, sequence.token_ids.len())
            };
            if !self.waiting.front().is_some_and(fits) {
                break;
            }
            let Some(sequence) = self.waiting.pop_front() else { break };
            self.running.push(sequence);
            let chunk = self.reserve(self.running.len() - 1, budget)?;
            budget -= chunk.num_tokens;
            chunks.push(chunk);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: SchedulerLimits = SchedulerLimits {
        max_num_seqs: 4,
        max_num_batched_tokens: 16,
        max_model_len: 40,
        max_queue: 6,
        num_blocks: 10,
        block_size: 4,
    };

    fn request(prompt: usize, max_tokens: usize) -> InferRequest {
        InferRequest::new(vec![1; prompt], max_tokens)
    }

    /// Runs one step in which every complete sequence draws a token; ids of those that ended.
    fn step(scheduler: &mut Scheduler) -> Vec<SequenceId> {
        let chunks = scheduler.schedule().unwrap();
        check_step(scheduler, &chunks);
        let mut ended = Vec::new();
        for chunk in chunks {
            scheduler.advance(chunk);
            if chunk.is_last && scheduler.push_token(chunk.index, 9).is_some() {
                ended.push(scheduler.running()[chunk.index].id);
            }
        }
        for id in &ended {
            assert!(scheduler.remove(*id).unwrap().is_some());
        }
        scheduler.check_integrity().unwrap();
        ended
    }

    /// Invariants 1 to 4 of a scheduled step.
    fn check_step(scheduler: &Scheduler, chunks: &[Chunk]) {
        let limits = scheduler.limits();
        scheduler.check_integrity().unwrap();
        let total: usize = chunks.iter().map(|chunk| chunk.num_tokens).sum();
        assert!(total <= limits.max_num_batched_tokens);
        assert!(scheduler.running().len() <= limits.max_num_seqs);
        assert!(!chunks.is_empty() || !scheduler.has_work(), "work, but an empty step");

        let mut slots = BTreeSet::new();
        for chunk in chunks {
            let sequence = &scheduler.running()[chunk.index];
            let end = sequence.num_computed_tokens + chunk.num_tokens;
            assert!(chunk.num_tokens > 0);
            assert_eq!(sequence.block_table.blocks().len(), end.div_ceil(limits.block_size));
            let slot_mapping = sequence.block_table.slot_mapping(sequence.num_computed_tokens..end);
            for slot in slot_mapping.unwrap() {
                assert!(slots.insert(slot), "slot {slot} is written twice");
            }
        }
        for sequence in scheduler.running() {
            for block in sequence.block_table.blocks() {
                assert_eq!(scheduler.blocks().ref_count(*block), 1);
            }
        }
        assert!(scheduler.waiting().all(|sequence| sequence.block_table.blocks().is_empty()));
        let live = scheduler.running().iter().chain(scheduler.waiting());
        assert!(live.is_sorted_by_key(|sequence| sequence.id), "not first come, first served");
    }

    #[test]
    fn a_step_mixes_decodes_with_the_chunk_of_a_prompt() {
        let mut scheduler = Scheduler::new(LIMITS);
        scheduler.add(0, request(3, 9)).unwrap();
        step(&mut scheduler);
        scheduler.add(1, request(20, 2)).unwrap();
        let chunks = scheduler.schedule().unwrap();
        assert_eq!(
            chunks,
            [
                Chunk { index: 0, num_tokens: 1, is_last: true },
                Chunk { index: 1, num_tokens: 15, is_last: false },
            ]
        );
    }

    #[test]
    fn the_last_one_in_is_preempted_first_and_keeps_no_blocks() {
        let limits = SchedulerLimits { num_blocks: 4, ..LIMITS };
        let mut scheduler = Scheduler::new(limits);
        scheduler.add(0, request(7, 9)).unwrap();
        scheduler.add(1, request(8, 8)).unwrap();
        step(&mut scheduler);
        assert_eq!(scheduler.running().len(), 2);
        step(&mut scheduler);
        step(&mut scheduler);
        assert_eq!(scheduler.num_preemptions(), 1);
        let waiting = scheduler.waiting().next().unwrap();
        assert_eq!((waiting.id, waiting.num_computed_tokens), (1, 0));
        assert!(waiting.block_table.blocks().is_empty());
        assert!(waiting.token_ids.len() > 8, "what it generated is kept");
    }

    #[test]
    fn what_can_never_fit_is_refused_with_numbers() {
        let mut scheduler = Scheduler::new(LIMITS);
        let message = scheduler.add(0, request(40, 1)).unwrap_err().to_string();
        assert!(message.contains("40 tokens") && message.contains("39"), "{message}");
        let mut small = Scheduler::new(SchedulerLimits { num_blocks: 2, ..LIMITS });
        let message = small.add(0, request(8, 2)).unwrap_err().to_string();
        assert!(message.contains("3 KV blocks") && message.contains("has 2"), "{message}");
        assert!(small.add(0, request(8, 1)).is_ok());
        assert!(scheduler.add(1, request(39, usize::MAX)).is_ok());
        assert!(step(&mut scheduler).is_empty());
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut scheduler = Scheduler::new(LIMITS);
        for id in 0..10 {
            scheduler.add(id, request(1, 1)).unwrap();
        }
        let error = scheduler.add(10, request(1, 1)).unwrap_err();
        assert!(matches!(error, InferError::Busy { waiting: 6, limit: 6 }));
    }

    #[test]
    fn an_aborted_sequence_frees_its_blocks_wherever_it_is() {
        let mut scheduler = Scheduler::new(SchedulerLimits { max_num_seqs: 1, ..LIMITS });
        scheduler.add(0, request(20, 9)).unwrap();
        scheduler.add(1, request(5, 9)).unwrap();
        step(&mut scheduler);
        assert!(scheduler.remove(0).unwrap().is_some());
        assert!(scheduler.remove(1).unwrap().is_some());
        assert!(scheduler.remove(1).unwrap().is_none());
        assert_eq!(scheduler.blocks().num_free(), LIMITS.num_blocks);
        assert!(!scheduler.has_work());
    }

    #[derive(Debug, Clone)]
    enum Action {
        Add { prompt: usize, max_tokens: usize },
        Step,
        Abort(usize),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            3 => (1_usize..48, 1_usize..24)
                .prop_map(|(prompt, max_tokens)| Action::Add { prompt, max_tokens }),
            5 => Just(Action::Step),
            1 => (0_usize..12).prop_map(Action::Abort),
        ]
    }

    fn limits() -> impl Strategy<Value = SchedulerLimits> {
        (1_usize..6, 1_usize..24, 2_usize..48, 1_usize..8, 1_usize..14, 1_usize..9).prop_map(
            |(max_num_seqs, budget, max_model_len, max_queue, num_blocks, block_size)| {
                SchedulerLimits {
                    max_num_seqs,
                    max_num_batched_tokens: budget,
                    max_model_len,
                    max_queue,
                    num_blocks,
                    block_size,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn any_history_keeps_the_invariants_and_drains(
            limits in limits(),
            actions in proptest::collection::vec(action(), 1..80),
        ) {
            let mut scheduler = Scheduler::new(limits);
            let mut next_id = 0;
            for action in actions {
                match action {
                    Action::Add { prompt, max_tokens } => {
                        let live = scheduler.running().len() + scheduler.waiting().len();
                        let result = scheduler.add(next_id, request(prompt, max_tokens));
                        next_id += 1;
                        let slots = limits.num_blocks * limits.block_size;
                        let len = (prompt + max_tokens).min(limits.max_model_len);
                        match result {
                            Ok(()) => {
                                prop_assert!(prompt < limits.max_model_len && len - 1 <= slots);
                            }
                            Err(InferError::Request(_)) => {
                                prop_assert!(prompt >= limits.max_model_len || len - 1 > slots);
                            }
                            Err(InferError::Busy { .. }) => {
                                prop_assert_eq!(live, limits.max_num_seqs + limits.max_queue);
                            }
                            Err(other) => prop_assert!(false, "{}", other),
                        }
                    }
                    Action::Step => {
                        step(&mut scheduler);
                    }
                    Action::Abort(nth) => {
                        let live = scheduler.running().iter().chain(scheduler.waiting());
                        let id = live.map(|sequence| sequence.id).nth(nth);
                        if let Some(id) = id {
                            prop_assert!(scheduler.remove(id).unwrap().is_some());
                            scheduler.check_integrity().unwrap();
                        }
                    }
                }
            }
            // The oldest sequence moves by a token at least in every step, so
            // all tokens of all live sequences, recomputed once per eviction by
            // an older one, bound the number of steps.
            let live = scheduler.running().len() + scheduler.waiting().len();
            let mut steps_left = (live + 1) * 2 * limits.max_model_len;
            while scheduler.has_work() {
                prop_assert!(steps_left > 0, "does not drain");
                steps_left -= 1;
                step(&mut scheduler);
            }
            prop_assert_eq!(scheduler.blocks().num_free(), limits.num_blocks);
        }
    }
}
