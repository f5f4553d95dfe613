//! What is read out of a step's logits: scores of prompts, and the next tokens.
//! Sequences are read by all threads at once. Knows no scheduler: whoever called
//! appends what was drawn.

use std::sync::Arc;

use super::host::TokenLogprobs;
use super::ops::pool::{self, Pool};
use super::sampler::{self, SampleError};
use super::scheduler::Chunk;
use super::sequence::Sequence;
use super::step::{DrawnToken, PromptScores};
use super::{InferError, StopReason};

/// Of one chunk.
#[derive(Debug)]
pub(super) struct Readout {
    /// `None` where nothing was scored and nothing ends.
    pub scores: Option<PromptScores>,
    /// `None` where the prompt goes on, or is only scored.
    pub drawn: Option<DrawnToken>,
}

/// Reads `logits`, `[rows, vocab_size]`: of each chunk of `running` its scored
/// rows, then the row that a token is drawn from.
///
/// # Errors
/// When chunks, sequences and rows do not belong together.
pub(super) fn read(
    pool: &Arc<Pool>,
    running: &[Sequence],
    chunks: &[Chunk],
    mut logits: &[f32],
    vocab_size: usize,
) -> Result<Vec<Result<Readout, SampleError>>, InferError> {
    let mut rows = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let broken = || InferError::Internal(format!("{chunk:?} has no sequence or no logits"));
        let sequence = running.get(chunk.index).ok_or_else(broken)?;
        let mut take = |num_rows| logits.split_off(..num_rows * vocab_size).ok_or_else(broken);
        let scored = take(chunk.num_scored_rows)?;
        let drawn_from = take(usize::from(chunk.draws(sequence)))?;
        rows.push(Rows { sequence, chunk: *chunk, scored, drawn_from, drawn: None });
    }
    let mut readouts: Vec<_> = rows.iter().map(|_| None).collect();
    pool.install(|| {
        pool::for_each_chunk(&mut readouts, 1, |index, readout| {
            readout.fill_with(|| Some(rows[index].read(vocab_size)));
        });
    });
    Ok(readouts.into_iter().flatten().collect())
}

/// The logits of one chunk.
pub(super) struct Rows<'a> {
    pub sequence: &'a Sequence,
    pub chunk: Chunk,
    /// `[scored rows, vocab]`.
    pub scored: &'a [f32],
    /// `[vocab]`; empty where nothing is drawn, or is drawn already and nothing
    /// is to be known about it.
    pub drawn_from: &'a [f32],
    /// The token, where the device has drawn it.
    pub drawn: Option<u32>,
}

impl Rows<'_> {
    /// # Errors
    /// [`SampleError`] when a logit is NaN.
    pub fn read(&self, vocab_size: usize) -> Result<Readout, SampleError> {
        let scores = self.score(vocab_size)?;
        let draws = self.drawn.is_some() || !self.drawn_from.is_empty();
        let drawn = if draws { Some(self.draw()?) } else { None };
        Ok(Readout { scores, drawn })
    }

    /// The next token and what was asked to be known about it.
    fn draw(&self) -> Result<DrawnToken, SampleError> {
        let Self { sequence, drawn_from: logits, .. } = self;
        let id = match self.drawn {
            Some(id) => id,
            None => sampler::sample(logits, &sequence.sampling, sequence.num_output_tokens())?,
        };
        let logprobs = match sequence.logprobs {
            Some(count) => Some(sampler::logprobs(logits, id, count)?),
            None => None,
        };
        Ok(DrawnToken { id, logprobs, stop: None })
    }

    /// What the scored rows say about the prompt tokens after them.
    fn score(&self, vocab_size: usize) -> Result<Option<PromptScores>, SampleError> {
        let Self { sequence, chunk, scored, .. } = self;
        let is_end = chunk.is_last && sequence.is_score_only();
        let first_position = sequence.num_scored_rows - chunk.num_scored_rows + 1;
        let Some(count) = sequence.prompt_logprobs.filter(|_| !scored.is_empty() || is_end) else {
            return Ok(None);
        };
        let targets = &sequence.token_ids[first_position..];
        let logprobs = scored
            .chunks_exact(vocab_size)
            .zip(targets)
            .map(|(row, target)| sampler::logprobs(row, *target, count))
            .collect::<Result<Vec<TokenLogprobs>, _>>()?;
        Ok(Some(PromptScores {
            id: sequence.id,
            first_scheduled_at: sequence.first_scheduled_at.unwrap_or_default(),
            first_position,
            logprobs,
            stop: is_end.then_some(StopReason::Length),
        }))
    }
}
