//! One step's work, flattened: all scheduled tokens of all sequences in a row,
//! and the tables by which attention finds its way.

use std::sync::Arc;

use super::InferError;
use super::kv::BlockId;
use super::scheduler::{Chunk, Scheduler};

/// A ragged batch of `num_tokens` tokens of `num_seqs` sequences.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[num_tokens]`.
    pub input_ids: Vec<u32>,
    /// Position of each token in its sequence, `[num_tokens]`.
    pub positions: Arc<[usize]>,
    /// Slot that each token's K and V go to, `[num_tokens]`.
    pub slot_mapping: Arc<[usize]>,
    /// Where sequences begin and what they attend to.
    pub layout: Arc<BatchLayout>,
    /// Rows whose logits are wanted, in order: of every sequence those that
    /// score its prompt, then its last if it draws a token.
    pub logit_rows: Vec<u32>,
}

/// Which rows of a batch belong to which sequence, and where its K and V are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchLayout {
    /// First row of each sequence, then `num_tokens`: `[num_seqs + 1]`.
    pub query_start_loc: Vec<usize>,
    /// Tokens of each sequence in the cache, this step's included: `[num_seqs]`.
    pub seq_lens: Vec<usize>,
    /// Blocks of each sequence: `[num_seqs][blocks]`.
    pub block_tables: Vec<Vec<BlockId>>,
}

impl Batch {
    /// The batch of the chunks that `scheduler` just chose.
    ///
    /// # Errors
    /// [`InferError::Internal`] if a chunk does not fit its sequence.
    pub fn new(scheduler: &Scheduler, chunks: &[Chunk]) -> Result<Self, InferError> {
        let num_tokens = chunks.iter().map(|chunk| chunk.num_tokens).sum();
        let mut input_ids = Vec::with_capacity(num_tokens);
        let mut positions = Vec::with_capacity(num_tokens);
        let mut slot_mapping = Vec::with_capacity(num_tokens);
        let mut query_start_loc = Vec::with_capacity(chunks.len() + 1);
        query_start_loc.push(0);
        let mut seq_lens = Vec::with_capacity(chunks.len());
        let mut block_tables = Vec::with_capacity(chunks.len());
        let mut logit_rows = Vec::new();
        for chunk in chunks {
            let broken = || InferError::Internal(format!("{chunk:?} does not fit its sequence"));
            let sequence = scheduler.running().get(chunk.index).ok_or_else(broken)?;
            let start = sequence.num_computed_tokens;
            let end = start + chunk.num_tokens;
            let first_row = input_ids.len();
            input_ids.extend(sequence.token_ids.get(start..end).ok_or_else(broken)?);
            positions.extend(start..end);
            let slots = sequence.block_table.slot_mapping(start..end).ok_or_else(broken)?;
            slot_mapping.extend(slots);
            query_start_loc.push(input_ids.len());
            seq_lens.push(end);
            block_tables.push(sequence.block_table.blocks().to_vec());
            let row_of = |position: usize| u32::try_from(first_row + position - start);
            for position in sequence.scored_rows(chunk.num_tokens) {
                logit_rows.push(row_of(position).map_err(|_| broken())?);
            }
            if chunk.draws(sequence) {
                logit_rows.push(row_of(end - 1).map_err(|_| broken())?);
            }
        }
        Ok(Self {
            input_ids,
            positions: positions.into(),
            slot_mapping: slot_mapping.into(),
            layout: Arc::new(BatchLayout { query_start_loc, seq_lens, block_tables }),
            logit_rows,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::InferRequest;
    use crate::infer::scheduler::SchedulerLimits;

    const LIMITS: SchedulerLimits = SchedulerLimits {
        max_num_seqs: 4,
        max_num_batched_tokens: 5,
        max_scored_rows: 4,
        max_model_len: 32,
        max_queue: 4,
        num_blocks: 8,
        block_size: 2,
        enable_prefix_caching: false,
    };

    #[test]
    fn chunks_become_rows_with_their_slots() {
        let mut scheduler = Scheduler::new(LIMITS);
        for (id, prompt_ids) in [(0, vec![10, 11, 12]), (1, vec![20, 21, 22])] {
            let request = InferRequest::new(prompt_ids, 2);
            scheduler.add(id, &request).unwrap();
        }
        let chunks = scheduler.schedule().unwrap();
        let batch = Batch::new(&scheduler, &chunks).unwrap();
        assert_eq!(batch.input_ids, [10, 11, 12, 20, 21]);
        assert_eq!(*batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!(batch.layout.query_start_loc, [0, 3, 5]);
        assert_eq!(batch.layout.seq_lens, [3, 2]);
        assert_eq!(batch.logit_rows, [2], "the second prompt is not complete");
        let blocks = &batch.layout.block_tables;
        let first = |block: usize| blocks[block][0] as usize * 2;
        assert_eq!(batch.slot_mapping[0], first(0));
        assert_eq!(batch.slot_mapping[4], first(1) + 1);
    }

    #[test]
    fn a_scored_prompt_wants_the_logits_of_every_row_and_once_those_of_the_last() {
        let mut scheduler = Scheduler::new(LIMITS);
        let scored = InferRequest { prompt_logprobs: Some(0), ..InferRequest::new(vec![1; 6], 2) };
        scheduler.add(0, &InferRequest::new(vec![7], 2)).unwrap();
        scheduler.add(1, &scored).unwrap();
        let mut rows = Vec::new();
        for _ in 0..3 {
            let chunks = scheduler.schedule().unwrap();
            rows.push(Batch::new(&scheduler, &chunks).unwrap().logit_rows);
            for chunk in chunks {
                scheduler.advance(chunk);
                if chunk.is_last {
                    scheduler.push_token(chunk.index, 9);
                }
            }
        }
        assert_eq!(rows, [vec![0, 1, 2, 3, 4], vec![0, 1, 2], vec![0, 1]]);
    }
}
