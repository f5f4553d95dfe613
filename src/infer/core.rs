//! The engine loop without threads: requests in, one step at a time, tokens out.

use std::sync::Arc;

use super::batch::Batch;
use super::device::ComputeDevice;
use super::kv::{BlockError, KvSizing};
use super::model::{Llama, Model, WeightMemory};
use super::ops::pool::Pool;
use super::placement::Placement;
use super::runner::{CpuRunner, LoadedRunner, Runner};
use super::sampler::SampleError;
use super::scheduler::{Chunk, Scheduler, SchedulerLimits};
use super::sequence::{Sequence, SequenceId};
pub use super::step::{CoreStats, DrawnToken, PromptScores, StepOutput, StepReport};
use super::telemetry::GpuMemoryParts;
use super::weights::WeightSource;
use super::{ComputeDtype, EngineConfig, InferError, InferRequest, ModelConfig, StopReason};
use crate::clock::{Clock, Timestamp};

/// The engine: scheduler, KV blocks, model and sampler behind `add_request`, `step` and `abort`.
pub struct EngineCore {
    runner: Box<dyn Runner>,
    model_config: ModelConfig,
    scheduler: Scheduler,
    clock: Clock,
    next_id: SequenceId,
    weights_loaded_at: Timestamp,
    pool_allocated_at: Option<Timestamp>,
    /// Makes the next step panic: for the tests of whoever must survive it.
    #[cfg(test)]
    pub(super) panic_in_next_step: bool,
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
        let placement = Placement::resolve(config, model_config, &weights.stored_dtype())?;
        Self::placed(model_config, weights, config, &placement, clock)
    }

    /// As [`EngineCore::new`], where the placement has been settled before.
    ///
    /// # Errors
    /// As [`EngineCore::new`].
    pub(super) fn placed(
        model_config: &ModelConfig,
        weights: &dyn WeightSource,
        config: &EngineConfig,
        placement: &Placement,
        clock: Clock,
    ) -> Result<Self, InferError> {
        let Placement { device, dtype, sizing } = *placement;
        let loaded = match device {
            ComputeDevice::Cpu => {
                let pool = pool(config)?;
                let load = || Llama::load(model_config, weights, dtype, sizing.max_model_len);
                let model = Box::new(pool.install(load)?);
                let weights_at = clock.now();
                let runner = Box::new(CpuRunner::new(model, model_config, &sizing, pool)?);
                LoadedRunner { runner, weights_at, pool_at: None }
            }
            ComputeDevice::Cuda(number) => {
                cuda_runner(number, model_config, weights, config, placement, &clock)?
            }
        };
        Ok(Self::assemble(loaded, &sizing, model_config, config, clock))
    }

    /// The engine around any model whose shape `model_config` gives: it decides
    /// the KV pool, the width of the logits and the tokens that end a sequence.
    /// Its weights are its own, so that `auto` is f32.
    ///
    /// # Errors
    /// [`InferError::Config`] for settings that do not fit the model or the machine.
    pub fn with_model(
        model: Box<dyn Model>,
        model_config: &ModelConfig,
        config: &EngineConfig,
        clock: Clock,
    ) -> Result<Self, InferError> {
        let dtype = config.dtype.unwrap_or(ComputeDtype::F32);
        let sizing = KvSizing::new(config, dtype, model_config, None)?;
        let weights_at = clock.now();
        let runner = Box::new(CpuRunner::new(model, model_config, &sizing, pool(config)?)?);
        let loaded = LoadedRunner { runner, weights_at, pool_at: None };
        Ok(Self::assemble(loaded, &sizing, model_config, config, clock))
    }

    /// The engine around any runner with a pool of `sizing`.
    #[cfg(test)]
    pub(super) fn with_runner(
        runner: Box<dyn Runner>,
        sizing: &KvSizing,
        model_config: &ModelConfig,
        config: &EngineConfig,
    ) -> Self {
        let clock = Clock::manual();
        let loaded = LoadedRunner { runner, weights_at: clock.now(), pool_at: None };
        Self::assemble(loaded, sizing, model_config, config, clock)
    }

    fn assemble(
        loaded: LoadedRunner,
        sizing: &KvSizing,
        model_config: &ModelConfig,
        config: &EngineConfig,
        clock: Clock,
    ) -> Self {
        Self {
            runner: loaded.runner,
            scheduler: Scheduler::new(SchedulerLimits::new(config, sizing)),
            model_config: model_config.clone(),
            clock,
            next_id: 0,
            weights_loaded_at: loaded.weights_at,
            pool_allocated_at: loaded.pool_at,
            #[cfg(test)]
            panic_in_next_step: false,
        }
    }

    /// Queues a request, all of its samples under one id.
    ///
    /// # Errors
    /// [`InferError::Request`] for one that can never be served,
    /// [`InferError::Busy`] when the queue has no room for all of its samples.
    pub fn add_request(&mut self, request: InferRequest) -> Result<SequenceId, InferError> {
        request.check(self.model_config.vocab_size)?;
        let id = self.next_id;
        self.scheduler.add(id, &request)?;
        self.next_id += 1;
        Ok(id)
    }

    /// Takes all samples of a request out and frees their blocks; false if they
    /// have ended already.
    ///
    /// # Errors
    /// [`InferError::Internal`] when the block accounting is broken.
    pub fn abort(&mut self, id: SequenceId) -> Result<bool, InferError> {
        Ok(self.scheduler.remove(id)?)
    }

    /// Takes one sample of a request out; false if it has ended already.
    ///
    /// # Errors
    /// As [`EngineCore::abort`].
    pub fn abort_sample(&mut self, id: SequenceId, sample: usize) -> Result<bool, InferError> {
        Ok(self.scheduler.remove_sample(id, sample)?)
    }

    /// When the weights were in memory and the KV pool was not yet.
    #[must_use]
    pub const fn weights_loaded_at(&self) -> Timestamp {
        self.weights_loaded_at
    }

    /// When the KV pool was in memory and decode steps were not yet recorded,
    /// where they are.
    #[must_use]
    pub const fn pool_allocated_at(&self) -> Option<Timestamp> {
        self.pool_allocated_at
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
            num_cached_blocks: self.scheduler.blocks().num_cached(),
            num_blocks: self.scheduler.blocks().num_blocks(),
            num_waste_slots: self.scheduler.running().iter().map(Sequence::num_waste_slots).sum(),
            prefix_query_tokens: self.scheduler.prefix_query_tokens(),
            prefix_hit_tokens: self.scheduler.prefix_hit_tokens(),
            num_preemptions: self.scheduler.num_preemptions(),
        }
    }

    /// Bytes of the model's weights in memory.
    #[must_use]
    pub fn weight_memory(&self) -> WeightMemory {
        self.runner.weight_memory()
    }

    /// What loading made of a GPU's memory, where one computes.
    #[must_use]
    pub fn gpu_memory(&self) -> Option<GpuMemoryParts> {
        self.runner.gpu_memory()
    }

    /// Schedules, computes, scores and samples once. Sequences that end, or
    /// whose logits are no numbers, leave the engine and free their blocks.
    ///
    /// # Errors
    /// When the whole step failed. No request that had a sample in its batch is
    /// left then, and their blocks are free; those that waited still wait.
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
        debug_assert_eq!(self.scheduler.check_step(&chunks), Ok(()));
        let num_prefill_tokens = self.note_scheduled(&chunks);
        let batch = Batch::new(&self.scheduler, &chunks)?;
        #[cfg(test)]
        assert!(!std::mem::take(&mut self.panic_in_next_step), "a panic in a step, as ordered");
        self.runner.start(&batch, self.scheduler.running(), &chunks)?;
        for chunk in &chunks {
            self.scheduler.advance(*chunk);
        }
        let (scores, outputs) = self.finish_step(&chunks)?;
        for output in &outputs {
            if output.result.as_ref().map_or(true, |drawn| drawn.stop.is_some()) {
                self.scheduler.remove_sample(output.id, output.sample)?;
            }
        }
        for scores in scores.iter().filter(|scores| scores.stop.is_some()) {
            self.scheduler.remove(scores.id)?;
        }
        Ok(StepReport {
            started_at,
            at: self.clock.now(),
            num_tokens: batch.input_ids.len(),
            num_prefill_tokens,
            num_seqs: chunks.len(),
            scores,
            outputs,
        })
    }

    /// Notes who takes part for the first time; the tokens of `chunks` that are
    /// no decodes.
    fn note_scheduled(&mut self, chunks: &[Chunk]) -> usize {
        let now = self.clock.now();
        let mut num_prefill_tokens = 0;
        for chunk in chunks {
            if let Some(sequence) = self.scheduler.running_mut(chunk.index) {
                sequence.first_scheduled_at.get_or_insert(now);
                num_prefill_tokens += if sequence.is_decoding() { 0 } else { chunk.num_tokens };
            }
        }
        num_prefill_tokens
    }

    /// Ends the step: scores of prompts, and drawn tokens appended to their sequences.
    fn finish_step(
        &mut self,
        chunks: &[Chunk],
    ) -> Result<(Vec<PromptScores>, Vec<StepOutput>), InferError> {
        let readouts = self.runner.finish(self.scheduler.running(), chunks)?;
        let mut scores = Vec::new();
        let mut outputs = Vec::with_capacity(chunks.len());
        for (chunk, readout) in chunks.iter().zip(readouts) {
            let Some(sequence) = self.scheduler.running().get(chunk.index) else { continue };
            let readout = match readout {
                Ok(readout) => readout,
                Err(error) => {
                    outputs.push(output(sequence, Err(error.into())));
                    continue;
                }
            };
            scores.extend(readout.scores);
            if let Some(mut drawn) = readout.drawn {
                let eos_ids = &self.model_config.eos_token_ids;
                let eos = !sequence.ignore_eos && eos_ids.contains(&drawn.id);
                drawn.stop = eos.then_some(StopReason::Stop);
                let id = drawn.id;
                let mut output = output(sequence, Ok(drawn));
                let length = self.scheduler.push_token(chunk.index, id);
                if let Ok(drawn) = &mut output.result {
                    drawn.stop = drawn.stop.or(length);
                }
                outputs.push(output);
            }
        }
        Ok((scores, outputs))
    }

    fn drop_running(&mut self) {
        let ids: Vec<_> = self.scheduler.running().iter().map(|sequence| sequence.id).collect();
        for id in ids {
            // A block that cannot be freed is what the error being reported is about.
            let _ = self.scheduler.remove(id);
        }
    }
}

fn output(sequence: &Sequence, result: Result<DrawnToken, InferError>) -> StepOutput {
    StepOutput {
        id: sequence.id,
        sample: sequence.sample,
        first_scheduled_at: sequence.first_scheduled_at.unwrap_or_default(),
        num_cached_tokens: sequence.num_cached_tokens.unwrap_or_default(),
        result,
    }
}

fn pool(config: &EngineConfig) -> Result<Arc<Pool>, InferError> {
    let threads = config.num_threads();
    let pool = Pool::new(threads)
        .map_err(|error| InferError::Config(format!("no {threads} threads: {error}")))?;
    Ok(Arc::new(pool))
}

#[cfg(feature = "cuda")]
fn cuda_runner(
    number: usize,
    model_config: &ModelConfig,
    weights: &dyn WeightSource,
    config: &EngineConfig,
    placement: &Placement,
    clock: &Clock,
) -> Result<LoadedRunner, InferError> {
    super::cuda::runner(number, model_config, weights, config, placement, clock)
}

#[cfg(not(feature = "cuda"))]
fn cuda_runner(
    _: usize,
    _: &ModelConfig,
    _: &dyn WeightSource,
    _: &EngineConfig,
    _: &Placement,
    _: &Clock,
) -> Result<LoadedRunner, InferError> {
    Err(InferError::Internal("a CUDA device in a build without CUDA".to_owned()))
}

impl From<SampleError> for InferError {
    fn from(error: SampleError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<BlockError> for InferError {
    fn from(error: BlockError) -> Self {
        Self::Internal(error.to_string())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::infer::KvBudget;
    use crate::infer::host::TokenLogprobs;
    use crate::infer::weights::{StoredDtype, Weight, WeightForm};

    /// Noise of any shape, the same for the same name.
    pub struct Noise;

    impl WeightSource for Noise {
        fn load(
            &self,
            name: &str,
            shape: &[usize],
            _: WeightForm,
        ) -> Result<Weight<'_>, InferError> {
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

        fn stored_dtype(&self) -> StoredDtype {
            StoredDtype::F32
        }

        fn stored_bytes(&self) -> u64 {
            0
        }
    }

    /// Noise with one weight that is no number.
    pub struct Damaged;

    impl WeightSource for Damaged {
        fn load(
            &self,
            name: &str,
            shape: &[usize],
            form: WeightForm,
        ) -> Result<Weight<'_>, InferError> {
            if name == "model.norm.weight" {
                let nan = vec![f32::NAN; shape.iter().product()];
                return Ok(Weight::Dense(Tensor::from_vec(nan, shape, &Device::Cpu)?));
            }
            Noise.load(name, shape, form)
        }

        fn stored_dtype(&self) -> StoredDtype {
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

    /// Runs until idle; the drawn tokens of each sample of each request.
    fn drain_samples(core: &mut EngineCore) -> BTreeMap<(SequenceId, usize), Vec<DrawnToken>> {
        let mut drawn = BTreeMap::<_, Vec<DrawnToken>>::new();
        while core.has_work() {
            for output in core.step().unwrap().outputs {
                drawn.entry((output.id, output.sample)).or_default().push(output.result.unwrap());
            }
        }
        assert_eq!(core.stats().num_free_blocks, core.stats().num_blocks);
        drawn
    }

    /// Runs until idle; the scores of each request, joined.
    fn drain_scores(core: &mut EngineCore) -> BTreeMap<SequenceId, Vec<TokenLogprobs>> {
        let mut scores = BTreeMap::<_, Vec<_>>::new();
        while core.has_work() {
            for found in core.step().unwrap().scores {
                let joined = scores.entry(found.id).or_default();
                assert_eq!(found.first_position, joined.len() + 1);
                joined.extend(found.logprobs);
            }
        }
        assert_eq!(core.stats().num_free_blocks, core.stats().num_blocks);
        scores
    }

    fn small_blocks() -> EngineConfig {
        EngineConfig { block_size: 4, ..EngineConfig::default() }
    }

    #[test]
    fn a_cache_hit_draws_what_a_miss_draws() {
        let request = InferRequest { logprobs: Some(5), ..request((0..30).collect(), 12) };
        let uncached = EngineConfig { enable_prefix_caching: false, ..small_blocks() };
        let (mut cached, mut uncached) = (core(&small_blocks()), core(&uncached));
        for hits in [0, 28, 28] {
            let id = cached.add_request(request.clone()).unwrap();
            let first = cached.step().unwrap();
            assert_eq!(first.outputs[0].num_cached_tokens, hits);
            assert_eq!((first.num_tokens, first.num_prefill_tokens), (30 - hits, 30 - hits));
            let mut drawn = vec![first.outputs.into_iter().next().unwrap().result.unwrap()];
            drawn.extend(drain_samples(&mut cached).remove(&(id, 0)).unwrap());
            let id = uncached.add_request(request.clone()).unwrap();
            assert_eq!(drawn, drain_samples(&mut uncached).remove(&(id, 0)).unwrap());
        }
        let stats = cached.stats();
        assert_eq!((stats.prefix_query_tokens, stats.prefix_hit_tokens), (90, 56));
        assert!(stats.num_cached_blocks > 0);
        assert_eq!(uncached.stats().num_cached_blocks, 0);
    }

    #[test]
    fn greedy_samples_are_all_equal() {
        for enable_prefix_caching in [false, true] {
            let mut core = core(&EngineConfig { enable_prefix_caching, ..small_blocks() });
            core.add_request(InferRequest { n: 5, ..request((0..10).collect(), 9) }).unwrap();
            let drawn = drain_samples(&mut core);
            assert_eq!(drawn.len(), 5);
            assert!(drawn.values().all(|tokens| tokens.len() == 9 && *tokens == drawn[&(0, 0)]));
        }
    }

    #[test]
    fn samples_are_what_as_many_requests_with_their_seeds_are() {
        let sampling =
            super::super::SamplingParams { temperature: 1.5, seed: 40, ..Default::default() };
        let single = InferRequest { sampling, logprobs: Some(3), ..request((0..10).collect(), 9) };
        // Room for the prompt and little more: some are preempted.
        let config = EngineConfig { kv: KvBudget::Blocks(7), ..small_blocks() };
        let mut together = core(&config);
        together.add_request(InferRequest { n: 4, ..single.clone() }).unwrap();
        let together_drawn = drain_samples(&mut together);
        assert!(together.stats().num_preemptions > 0, "nothing was preempted");
        let mut alone = core(&small_blocks());
        for seed in 0..4 {
            let mut request = single.clone();
            request.sampling.seed += seed;
            let id = alone.add_request(request).unwrap();
            let expected = &drain_samples(&mut alone)[&(id, 0)];
            assert_eq!(together_drawn[&(0, usize::try_from(seed).unwrap())], *expected);
        }
        assert_ne!(together_drawn[&(0, 0)], together_drawn[&(0, 1)]);
    }

    #[test]
    fn scores_of_a_text_are_the_logprobs_with_which_it_was_drawn() {
        let mut core = core(&small_blocks());
        let prompt: Vec<u32> = (20..31).collect();
        core.add_request(InferRequest { logprobs: Some(4), ..request(prompt.clone(), 15) })
            .unwrap();
        let drawn = drain_samples(&mut core).remove(&(0, 0)).unwrap();
        let text: Vec<u32> = prompt.iter().copied().chain(drawn.iter().map(|d| d.id)).collect();
        let scored = InferRequest { prompt_logprobs: Some(4), ..request(text, 0) };
        let id = core.add_request(scored).unwrap();
        let scores = drain_scores(&mut core).remove(&id).unwrap();
        assert_eq!(scores.len(), 25);
        let logprobs: Vec<_> = drawn.into_iter().map(|drawn| drawn.logprobs.unwrap()).collect();
        assert_eq!(scores[10..], logprobs);
    }

    #[test]
    fn scores_are_the_same_in_chunks_beside_others_and_after_preemption() {
        let scored = |max_tokens| InferRequest {
            prompt_logprobs: Some(2),
            ..request((0..40).map(|i| i * 7 % 97).collect(), max_tokens)
        };
        let mut whole = core(&small_blocks());
        whole.add_request(scored(0)).unwrap();
        let report = whole.step().unwrap();
        assert!(report.outputs.is_empty() && !whole.has_work());
        let [expected] = report.scores.as_slice() else { panic!("{:?}", report.scores) };
        assert_eq!((expected.first_position, expected.logprobs.len()), (1, 39));
        assert_eq!(expected.stop, Some(StopReason::Length));
        // The prompts of ten and forty tokens fit, and nothing beyond them.
        let tight = EngineConfig {
            kv: KvBudget::Blocks(13),
            max_num_batched_tokens: 8,
            max_model_len: Some(52),
            ..small_blocks()
        };
        let mut tight = core(&tight);
        tight.add_request(request((50..60).collect(), 20)).unwrap();
        let id = tight.add_request(scored(3)).unwrap();
        assert_eq!(drain_scores(&mut tight)[&id], expected.logprobs);
        assert!(tight.stats().num_preemptions > 0, "nothing was preempted");
    }

    #[test]
    fn a_single_token_has_no_score_and_ends_all_the_same() {
        let mut core = core(&EngineConfig::default());
        core.add_request(InferRequest { prompt_logprobs: Some(1), ..request(vec![4], 0) }).unwrap();
        let report = core.step().unwrap();
        assert_eq!(report.scores.len(), 1);
        assert!(report.scores[0].logprobs.is_empty() && report.scores[0].stop.is_some());
        assert!(!core.has_work());
    }

    #[test]
    fn scoring_with_damaged_weights_fails_the_request_alone() {
        let mut core = EngineCore::new(
            &ModelConfig::tiny(),
            &Damaged,
            &EngineConfig::default(),
            Clock::manual(),
        )
        .unwrap();
        core.add_request(InferRequest { prompt_logprobs: Some(1), ..request(vec![4, 5], 0) })
            .unwrap();
        let report = core.step().unwrap();
        assert!(report.scores.is_empty() && report.outputs[0].result.is_err());
        assert!(!core.has_work());
    }

    #[test]
    fn waste_is_what_the_last_blocks_do_not_hold() {
        let mut core = core(&small_blocks());
        core.add_request(request(vec![1; 5], 9)).unwrap();
        core.add_request(request(vec![2; 8], 9)).unwrap();
        let report = core.step().unwrap();
        assert_eq!((report.num_tokens, report.num_prefill_tokens, report.num_seqs), (13, 13, 2));
        assert_eq!(core.stats().num_waste_slots, 3);
        let report = core.step().unwrap();
        assert_eq!((report.num_tokens, report.num_prefill_tokens), (2, 0));
        assert_eq!(core.stats().num_waste_slots, 2 + 3);
    }
}
