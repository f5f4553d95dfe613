//! What a step has to compute, counted: the numbers that its duration is a
//! function of, whoever computes it.

use super::{Chunk, Scheduler};

/// Tokens, rows and attention of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepWork {
    /// Tokens of prompts, or computed again after a preemption: all but the one
    /// token that a decoding sequence feeds back.
    pub num_prefill_tokens: usize,
    /// Sequences that feed back the one token that they drew last.
    pub num_decodes: usize,
    /// Sequences that draw a token.
    pub num_drawn: usize,
    /// Tokens whose K and V the decoding sequences read, their own included; one
    /// that several of them share counts for each.
    pub num_decode_kv_tokens: usize,
    /// The same for the sequences that compute prompts, each once.
    pub num_prefill_kv_tokens: usize,
    /// Pairs of a prompt token and a token that it attends to, itself included.
    pub num_prefill_pairs: usize,
}

impl StepWork {
    /// Tokens computed.
    #[must_use]
    pub const fn num_tokens(&self) -> usize {
        self.num_prefill_tokens + self.num_decodes
    }
}

impl Scheduler {
    /// The work of a step that was chosen and not yet noted as computed.
    #[must_use]
    pub fn work_of(&self, chunks: &[Chunk]) -> StepWork {
        let mut work = StepWork::default();
        for chunk in chunks {
            let Some(sequence) = self.running.get(chunk.index) else { continue };
            let before = sequence.num_computed_tokens;
            let after = before + chunk.num_tokens;
            work.num_drawn += usize::from(chunk.draws(sequence));
            if sequence.is_decoding() {
                work.num_decodes += 1;
                work.num_decode_kv_tokens += after;
            } else {
                work.num_prefill_tokens += chunk.num_tokens;
                work.num_prefill_kv_tokens += after;
                // The token at position p attends to p + 1 of them.
                work.num_prefill_pairs += chunk.num_tokens * (before + after + 1) / 2;
            }
        }
        work
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::LIMITS;
    use super::*;
    use crate::infer::InferRequest;

    /// Schedules, counts and computes one step in which every complete sequence
    /// draws token 9.
    fn step(scheduler: &mut Scheduler) -> StepWork {
        let chunks = scheduler.schedule().unwrap();
        let work = scheduler.work_of(&chunks);
        for chunk in chunks {
            scheduler.advance(chunk);
            if chunk.is_last {
                scheduler.push_token(chunk.index, 9);
            }
        }
        work
    }

    #[test]
    fn chunks_of_a_prompt_and_decodes_are_counted_apart() {
        let mut scheduler = Scheduler::new(LIMITS);
        scheduler.add(0, &InferRequest::new(vec![1; 20], 4)).unwrap();
        let first = step(&mut scheduler);
        assert_eq!((first.num_prefill_tokens, first.num_decodes, first.num_drawn), (16, 0, 0));
        assert_eq!((first.num_prefill_kv_tokens, first.num_prefill_pairs), (16, 136));
        let rest = step(&mut scheduler);
        assert_eq!((rest.num_prefill_tokens, rest.num_drawn), (4, 1));
        assert_eq!(rest.num_prefill_pairs, 17 + 18 + 19 + 20);
        scheduler.add(1, &InferRequest::new(vec![2; 3], 4)).unwrap();
        let mixed = step(&mut scheduler);
        assert_eq!((mixed.num_prefill_tokens, mixed.num_decodes, mixed.num_drawn), (3, 1, 2));
        assert_eq!((mixed.num_decode_kv_tokens, mixed.num_prefill_kv_tokens), (21, 3));
        assert_eq!(mixed.num_tokens(), 4);
    }
}
