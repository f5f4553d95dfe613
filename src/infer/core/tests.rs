//! The engine loop over tiny models of noise.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::*;
use crate::infer::KvBudget;
use crate::infer::host::TokenLogprobs;
use crate::infer::weights::{StoredDtype, Weight, WeightForm};

/// Noise of any shape, the same for the same name.
pub struct Noise;

impl WeightSource for Noise {
    fn load(&self, name: &str, shape: &[usize], _: WeightForm) -> Result<Weight<'_>, InferError> {
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
    core.add_request(InferRequest { logprobs: Some(4), ..request(prompt.clone(), 15) }).unwrap();
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
    let mut core =
        EngineCore::new(&ModelConfig::tiny(), &Damaged, &EngineConfig::default(), Clock::manual())
            .unwrap();
    core.add_request(InferRequest { prompt_logprobs: Some(1), ..request(vec![4, 5], 0) }).unwrap();
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
