//! The engine loop without threads: requests in, one step at a time, tokens out.

use candle_core::{Device, Tensor};

use super::batch::Batch;
use super::host::TokenLogprobs;
use super::kv::{BlockError, KvCache, KvSizing};
use super::model::Llama;
use super::sampler::{self, SampleError};
use super::scheduler::{Chunk, Scheduler, SchedulerLimits};
use super::sequence::{Sequence, SequenceId};
use super::weights::WeightSource;
use super::{EngineConfig, InferError, InferRequest, ModelConfig, StopReason};
use crate::clock::{Clock, Timestamp};

/// The engine: scheduler, KV blocks, model and sampler behind `add_request`, `step` and `abort`.
pub struct EngineCore {
    model: Llama,
    model_config: ModelConfig,
    cache: KvCache,
    scheduler: Scheduler,
    clock: Clock,
    next_id: SequenceId,
    weights_loaded_at: Timestamp,
    /// Makes the next step panic: for the tests of whoever must survive it.
    #[cfg(test)]
    pub(super) panic_in_next_step: bool,
}

/// What one step did.
#[derive(Debug)]
pub struct StepReport {
    /// When it began, before scheduling.
    pub started_at: Timestamp,
    /// When it ended, on the engine's clock.
    pub at: Timestamp,
    /// Tokens computed, prompts included.
    pub num_tokens: usize,
    /// Of those, tokens of prompts, or of what a preempted sequence computes
    /// again: all but the one token that a decoding sequence feeds back.
    pub num_prefill_tokens: usize,
    /// Sequences that took part.
    pub num_seqs: usize,
    /// Prompt positions scored in this step.
    pub scores: Vec<PromptScores>,
    /// One entry for every sequence that drew a token or failed.
    pub outputs: Vec<StepOutput>,
}

/// Teacher-forced log-probabilities of a stretch of one prompt. A request is
/// scored in one or several steps, in order, each position once.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptScores {
    /// Whose prompt.
    pub id: SequenceId,
    /// When the request first took part in a step.
    pub first_scheduled_at: Timestamp,
    /// Position of the first entry: entry `i` scores the prompt's token at
    /// `first_position + i` given all before it.
    pub first_position: usize,
    /// One entry a position; none for a prompt of a single token.
    pub logprobs: Vec<TokenLogprobs>,
    /// Set when scores were all that was asked for (`max_tokens` 0) and these
    /// were the last: the request has left the engine, without a [`StepOutput`].
    pub stop: Option<StopReason>,
}

/// What a step did for one sequence.
#[derive(Debug)]
pub struct StepOutput {
    /// Which request.
    pub id: SequenceId,
    /// Which of its samples, from zero.
    pub sample: usize,
    /// When it first took part in a step.
    pub first_scheduled_at: Timestamp,
    /// Prompt tokens that came from the prefix cache when it was first
    /// admitted. A sample that shares its sibling's blocks took none from there.
    pub num_cached_tokens: usize,
    /// Its token, or why there is none; it has left the engine then.
    pub result: Result<DrawnToken, InferError>,
}

/// A token and what is known about it.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnToken {
    /// The token.
    pub id: u32,
    /// Its probability and the most likely tokens, if asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Set when it was the last: the sequence has left the engine.
    pub stop: Option<StopReason>,
}

/// A snapshot of queue and pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreStats {
    /// Sequences in the batch.
    pub num_running: usize,
    /// Sequences in the queue.
    pub num_waiting: usize,
    /// Blocks that nobody holds, those with cached content included.
    pub num_free_blocks: usize,
    /// Of the free blocks, those whose content a prompt could still use.
    pub num_cached_blocks: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Slots of held blocks that hold no token: internal fragmentation.
    pub num_waste_slots: usize,
    /// Prompt tokens looked up in the prefix cache since the start, each
    /// sequence once.
    pub prefix_query_tokens: u64,
    /// Of those, tokens that were found and not computed.
    pub prefix_hit_tokens: u64,
    /// Sequences sent back to the queue since the start.
    pub num_preemptions: u64,
}

impl EngineCore {
    /// Loads the weights and allocates the KV pool.
    ///
    /// # Errors
    /// [`InferError::Config`] for settings that do not fit the model or the
    /// machine, [`InferError::Load`] for weights that cannot be read.
    pub fn new(
        model_config: &ModelConfig,
        weights: &dyn WeightSource,
        config: &EngineConfig,
        clock: Clock,
    ) -> Result<Self, InferError> {
        let sizing = KvSizing::new(config, model_config)?;
        let model = Llama::load(model_config, weights, config.dtype, sizing.max_model_len)?;
        let weights_loaded_at = clock.now();
        Ok(Self {
            model,
            cache: KvCache::new(&sizing, model_config, &Device::Cpu)?,
            scheduler: Scheduler::new(SchedulerLimits::new(config, &sizing)),
            model_config: model_config.clone(),
            clock,
            next_id: 0,
            weights_loaded_at,
            #[cfg(test)]
            panic_in_next_step: false,
        })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`InferError::Request`] for one that can never be served,
    /// [`InferError::Busy`] when the queue is full.
    pub fn add_request(&mut self, request: InferRequest) -> Result<SequenceId, InferError> {
        request.check(self.model_config.vocab_size)?;
        let id = self.next_id;
        self.scheduler.add(id, request)?;
        self.next_id += 1;
        Ok(id)
    }

    /// Takes a sequence out and frees its blocks; false if it has ended already.
    ///
    /// # Errors
    /// [`InferError::Internal`] when the block accounting is broken.
    pub fn abort(&mut self, id: SequenceId) -> Result<bool, InferError> {
        Ok(self.scheduler.remove(id)?.is_some())
    }

    /// Takes one sample of a request out; false if it has ended already.
    ///
    /// # Errors
    /// As [`EngineCore::abort`].
    pub fn abort_sample(&mut self, id: SequenceId, _sample: usize) -> Result<bool, InferError> {
        self.abort(id)
    }

    /// When the weights were in memory and the KV pool was not yet.
    #[must_use]
    pub const fn weights_loaded_at(&self) -> Timestamp {
        self.weights_loaded_at
    }

    /// Whether a step would do anything.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }

    /// Queue and pool as they are now.
    #[must_use]
    pub fn stats(&self) -> CoreStats {
        CoreStats {
            num_running: self.scheduler.running().len(),
            num_waiting: self.scheduler.waiting().len(),
            num_free_blocks: self.scheduler.blocks().num_free(),
            num_cached_blocks: 0,
            num_blocks: self.scheduler.blocks().num_blocks(),
            num_waste_slots: self.scheduler.running().iter().map(Sequence::num_waste_slots).sum(),
            prefix_query_tokens: 0,
            prefix_hit_tokens: 0,
            num_preemptions: self.scheduler.num_preemptions(),
        }
    }

    /// Schedules, computes and samples once. Sequences that end, or whose
    /// logits are no numbers, leave the engine and free their blocks.
    ///
    /// # Errors
    /// When the whole step failed. No sequence of its batch is left then, and
    /// their blocks are free; those that waited still wait.
    pub fn step(&mut self) -> Result<StepReport, InferError> {
        let result = self.try_step();
        if result.is_err() {
            self.drop_running();
        }
        debug_assert_eq!(self.scheduler.check_integrity(), Ok(()));
        result
    }

    fn try_step(&mut self) -> Result<StepReport, InferError> {
        let started_at = self.clock.now();
        let chunks = self.scheduler.schedule()?;
        self.note_first_scheduled(&chunks);
        let batch = Batch::new(&self.scheduler, &chunks)?;
        #[cfg(test)]
        assert!(!std::mem::take(&mut self.panic_in_next_step), "a panic in a step, as ordered");
        // Inside the pool, so that ops fork without waking it from outside.
        let logits = rayon::scope(|_| self.model.forward(&batch, &self.cache))?;
        let num_prefill_tokens = self.num_prefill_tokens(&chunks);
        for chunk in &chunks {
            self.scheduler.advance(*chunk);
        }
        let last = chunks.iter().filter(|chunk| chunk.is_last).copied().collect::<Vec<_>>();
        let outputs = match logits {
            Some(logits) => self.draw(&last, &logits)?,
            None => Vec::new(),
        };
        for output in &outputs {
            if output.result.as_ref().map_or(true, |drawn| drawn.stop.is_some()) {
                self.scheduler.remove(output.id)?;
            }
        }
        Ok(StepReport {
            started_at,
            at: self.clock.now(),
            num_tokens: batch.input_ids.len(),
            num_prefill_tokens,
            num_seqs: chunks.len(),
            scores: Vec::new(),
            outputs,
        })
    }

    fn num_prefill_tokens(&self, chunks: &[Chunk]) -> usize {
        let is_prefill = |chunk: &&Chunk| {
            self.scheduler.running().get(chunk.index).is_some_and(|s| !s.is_decoding())
        };
        chunks.iter().filter(is_prefill).map(|chunk| chunk.num_tokens).sum()
    }

    fn note_first_scheduled(&mut self, chunks: &[Chunk]) {
        let now = self.clock.now();
        for chunk in chunks {
            if let Some(sequence) = self.scheduler.running_mut(chunk.index) {
                sequence.first_scheduled_at.get_or_insert(now);
            }
        }
    }

    /// Draws a token for each of `chunks`; row `i` of `logits`, `[rows, vocab]`,
    /// belongs to the i-th.
    fn draw(&mut self, chunks: &[Chunk], logits: &Tensor) -> Result<Vec<StepOutput>, InferError> {
        let (storage, layout) = logits.storage_and_layout();
        let (candle_core::Storage::Cpu(storage), Some((start, end))) =
            (&*storage, layout.contiguous_offsets())
        else {
            return Err(InferError::Internal("logits are not in host memory".to_owned()));
        };
        let logits = &storage.as_slice::<f32>()?[start..end];
        let rows = logits.chunks_exact(self.model_config.vocab_size);
        let mut outputs = Vec::with_capacity(chunks.len());
        for (chunk, row) in chunks.iter().zip(rows) {
            let broken = || InferError::Internal(format!("{chunk:?} has no sequence"));
            let sequence = self.scheduler.running().get(chunk.index).ok_or_else(broken)?;
            let (id, first_scheduled_at) = (sequence.id, sequence.first_scheduled_at);
            let eos = if sequence.ignore_eos { &[] } else { &*self.model_config.eos_token_ids };
            let result = draw_token(sequence, row).map(|(token, logprobs)| {
                let stop = eos.contains(&token).then_some(StopReason::Stop);
                let length = self.scheduler.push_token(chunk.index, token);
                DrawnToken { id: token, logprobs, stop: stop.or(length) }
            });
            outputs.push(StepOutput {
                id,
                sample: 0,
                first_scheduled_at: first_scheduled_at.unwrap_or_default(),
                num_cached_tokens: 0,
                result: result.map_err(|error| InferError::Internal(error.to_string())),
            });
        }
        Ok(outputs)
    }

    fn drop_running(&mut self) {
        let ids: Vec<_> = self.scheduler.running().iter().map(|sequence| sequence.id).collect();
        for id in ids {
            // A block that cannot be freed is what the error being reported is about.
            let _ = self.scheduler.remove(id);
        }
    }
}

/// The next token of `sequence` and what was asked to be known about it.
fn draw_token(
    sequence: &Sequence,
    logits: &[f32],
) -> Result<(u32, Option<TokenLogprobs>), SampleError> {
    let token = sampler::sample(logits, &sequence.sampling, sequence.num_output_tokens())?;
    let logprobs = match sequence.logprobs {
        Some(count) => Some(sampler::logprobs(logits, token, count)?),
        None => None,
    };
    Ok((token, logprobs))
}

impl From<BlockError> for InferError {
    fn from(error: BlockError) -> Self {
        Self::Internal(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::infer::KvBudget;
    use crate::infer::weights::Weight;

    /// Noise of any shape, the same for the same name.
    pub struct Noise;

    impl WeightSource for Noise {
        fn load(&self, name: &str, shape: &[usize], _: bool) -> Result<Weight, InferError> {
            let mut state = name.bytes().fold(17_u32, |a, b| a.wrapping_mul(31) ^ u32::from(b));
            let center = if name.contains("norm") { 1.0 } else { 0.0 };
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    center + ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.4
                })
                .collect();
            Ok(Weight::Dense(Tensor::from_vec(values, shape, &Device::Cpu)?))
        }

        fn stored_dtype(&self) -> String {
            "F32".to_owned()
        }

        fn stored_bytes(&self) -> u64 {
            0
        }
    }

    /// Noise with one weight that is no number.
    struct Damaged;

    impl WeightSource for Damaged {
        fn load(&self, name: &str, shape: &[usize], keep: bool) -> Result<Weight, InferError> {
            if name == "model.norm.weight" {
                let nan = vec![f32::NAN; shape.iter().product()];
                return Ok(Weight::Dense(Tensor::from_vec(nan, shape, &Device::Cpu)?));
            }
            Noise.load(name, shape, keep)
        }

        fn stored_dtype(&self) -> String {
            Noise.stored_dtype()
        }

        fn stored_bytes(&self) -> u64 {
            0
        }
    }

    fn request(prompt_ids: Vec<u32>, max_tokens: usize) -> InferRequest {
        InferRequest { ignore_eos: true, ..InferRequest::new(prompt_ids, max_tokens) }
    }

    fn core(config: &EngineConfig) -> EngineCore {
        EngineCore::new(&ModelConfig::tiny(), &Noise, config, Clock::manual()).unwrap()
    }

    /// Runs until idle; the tokens of each sequence.
    fn drain(core: &mut EngineCore) -> BTreeMap<SequenceId, Vec<u32>> {
        let mut tokens = BTreeMap::<_, Vec<u32>>::new();
        while core.has_work() {
            for output in core.step().unwrap().outputs {
                tokens.entry(output.id).or_default().push(output.result.unwrap().id);
            }
        }
        tokens
    }

    #[test]
    fn sequences_of_different_lengths_end_at_their_own_length() {
        let mut core = core(&EngineConfig::default());
        for (prompt, max_tokens) in [(5, 3), (40, 7), (1, 1)] {
            core.add_request(request((0..prompt).collect(), max_tokens)).unwrap();
        }
        let tokens = drain(&mut core);
        let lens: Vec<_> = tokens.values().map(Vec::len).collect();
        assert_eq!(lens, [3, 7, 1]);
        assert_eq!(core.stats().num_free_blocks, core.stats().num_blocks);
    }

    #[test]
    fn an_end_of_sequence_token_stops_unless_ignored() {
        let mut core = core(&EngineConfig::default());
        core.add_request(request(vec![1, 2], 8)).unwrap();
        let free = drain(&mut core).remove(&0).unwrap();
        core.model_config.eos_token_ids = vec![free[4]];
        let until = free.iter().position(|token| *token == free[4]).unwrap() + 1;
        let id =
            core.add_request(InferRequest { ignore_eos: false, ..request(vec![1, 2], 8) }).unwrap();
        assert_eq!(drain(&mut core)[&id], free[..until]);
    }

    #[test]
    fn an_abort_between_steps_frees_all_blocks() {
        let mut core = core(&EngineConfig::default());
        let first = core.add_request(request(vec![5; 30], 20)).unwrap();
        let second = core.add_request(request(vec![6; 30], 20)).unwrap();
        core.step().unwrap();
        core.step().unwrap();
        assert!(core.stats().num_free_blocks < core.stats().num_blocks);
        assert!(core.abort(first).unwrap());
        assert!(!core.abort(first).unwrap());
        assert!(core.abort(second).unwrap());
        assert!(!core.has_work());
        assert_eq!(core.stats().num_free_blocks, core.stats().num_blocks);
    }

    #[test]
    fn logits_that_are_no_numbers_fail_their_sequence_and_free_its_blocks() {
        let config = EngineConfig { kv: KvBudget::Blocks(8), ..EngineConfig::default() };
        let mut core =
            EngineCore::new(&ModelConfig::tiny(), &Damaged, &config, Clock::manual()).unwrap();
        core.add_request(request(vec![1, 2], 8)).unwrap();
        let mut outputs = core.step().unwrap().outputs;
        let error = outputs.remove(0).result.unwrap_err().to_string();
        assert!(error.contains("not a number"), "{error}");
        assert!(!core.has_work());
        assert_eq!(core.stats().num_free_blocks, 8);
    }
}
