//! The embedded engine without its model: the scheduler and the block manager
//! themselves, stepped as [`crate::infer::EngineCore`] steps them, over tokens
//! that nobody computes.

use crate::infer::kv::BlockError;
use crate::infer::scheduler::{Scheduler, SchedulerLimits, StepWork};
use crate::infer::sequence::{Sequence, SequenceId};
use crate::infer::{InferError, InferRequest};

/// What every sequence draws: it is never looked at.
const TOKEN: u32 = 0;

/// The engine.
#[derive(Debug)]
pub struct VirtualEngine {
    scheduler: Scheduler,
    next_id: SequenceId,
}

/// A token that a step drew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// For which request.
    pub id: SequenceId,
    /// Whether it is the request's first.
    pub is_first: bool,
    /// Whether it is its last: the request has left the engine.
    pub is_last: bool,
}

/// Queue and pool while a step is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Occupancy {
    /// Sequences in the batch.
    pub num_running: usize,
    /// Sequences in the queue.
    pub num_waiting: usize,
    /// Blocks that sequences hold.
    pub num_used_blocks: usize,
    /// Slots of them that hold no token once the step is computed.
    pub num_waste_slots: usize,
}

impl VirtualEngine {
    /// An idle engine.
    #[must_use]
    pub fn new(limits: SchedulerLimits) -> Self {
        Self { scheduler: Scheduler::new(limits), next_id: 0 }
    }

    /// Queues a request for `output_tokens` tokens; its answer never ends before.
    ///
    /// # Errors
    /// As [`Scheduler::add`].
    pub fn add(
        &mut self,
        prompt_ids: Vec<u32>,
        output_tokens: usize,
    ) -> Result<SequenceId, InferError> {
        let id = self.next_id;
        self.scheduler.add(id, &InferRequest::new(prompt_ids, output_tokens))?;
        self.next_id += 1;
        Ok(id)
    }

    /// Schedules and books one step; `drawn` is emptied and holds its tokens then.
    ///
    /// # Errors
    /// [`BlockError`] when the block accounting is broken.
    pub fn step(&mut self, drawn: &mut Vec<Drawn>) -> Result<(StepWork, Occupancy), BlockError> {
        drawn.clear();
        let chunks = self.scheduler.schedule()?;
        let work = self.scheduler.work_of(&chunks);
        for chunk in &chunks {
            self.scheduler.advance(*chunk);
        }
        let occupancy = self.occupancy();
        for chunk in &chunks {
            let Some(sequence) = self.scheduler.running().get(chunk.index) else { continue };
            if !chunk.draws(sequence) {
                continue;
            }
            let (id, is_first) = (sequence.id, sequence.num_output_tokens() == 0);
            let is_last = self.scheduler.push_token(chunk.index, TOKEN).is_some();
            drawn.push(Drawn { id, is_first, is_last });
        }
        for drawn in drawn.iter().filter(|drawn| drawn.is_last) {
            self.scheduler.remove_sample(drawn.id, 0)?;
        }
        Ok((work, occupancy))
    }

    /// The scheduler, to ask it.
    #[must_use]
    pub const fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    fn occupancy(&self) -> Occupancy {
        let blocks = self.scheduler.blocks();
        Occupancy {
            num_running: self.scheduler.running().len(),
            num_waiting: self.scheduler.waiting().len(),
            num_used_blocks: blocks.num_blocks() - blocks.num_free(),
            num_waste_slots: self.scheduler.running().iter().map(Sequence::num_waste_slots).sum(),
        }
    }
}
