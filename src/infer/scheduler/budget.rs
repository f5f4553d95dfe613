//! What is left of a step's bounds while it is filled.

use super::SchedulerLimits;
use crate::infer::sequence::Sequence;

/// Tokens and scored rows that a step has room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    num_tokens: usize,
    num_scored_rows: usize,
}

impl Budget {
    pub(super) const fn new(limits: &SchedulerLimits) -> Self {
        Self { num_tokens: limits.max_num_batched_tokens, num_scored_rows: limits.max_scored_rows }
    }

    pub(super) const fn is_spent(&self) -> bool {
        self.num_tokens == 0
    }

    /// Tokens that `sequence` can have computed; zero only if the budget is
    /// spent or its next token is to be scored and no row is left.
    pub(super) fn chunk_len(&self, sequence: &Sequence) -> usize {
        let num_tokens = sequence.num_uncomputed_tokens().min(self.num_tokens);
        let rows = sequence.scored_rows(num_tokens);
        if rows.len() <= self.num_scored_rows {
            return num_tokens;
        }
        rows.start + self.num_scored_rows - sequence.num_computed_tokens
    }

    pub(super) fn take(&mut self, num_tokens: usize, num_scored_rows: usize) {
        self.num_tokens = self.num_tokens.saturating_sub(num_tokens);
        self.num_scored_rows = self.num_scored_rows.saturating_sub(num_scored_rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::InferRequest;

    #[test]
    fn rows_to_be_scored_limit_the_chunk_and_others_do_not() {
        let request = InferRequest { prompt_logprobs: Some(0), ..InferRequest::new(vec![1; 9], 1) };
        let mut sequence = Sequence::new(0, 0, &request, 10, 4);
        let budget = |num_tokens, num_scored_rows| Budget { num_tokens, num_scored_rows };
        assert_eq!(budget(20, 3).chunk_len(&sequence), 3);
        assert_eq!(budget(2, 3).chunk_len(&sequence), 2);
        assert_eq!(budget(20, 0).chunk_len(&sequence), 0);
        assert_eq!(budget(20, 8).chunk_len(&sequence), 9, "the last row scores nothing");
        sequence.num_scored_rows = 5;
        assert_eq!(budget(20, 1).chunk_len(&sequence), 6, "scored before it was preempted");
        sequence.num_scored_rows = 8;
        assert_eq!(budget(20, 0).chunk_len(&sequence), 9);
    }
}
