//! The same claims on the real model, in every arithmetic.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use yardstick::clock::Clock;
use yardstick::infer::batch::Batch;
use yardstick::infer::kv::KvCache;
use yardstick::infer::model::{Llama, Model};
use yardstick::infer::weights::{self, OpenModel};
use yardstick::infer::{ComputeDtype, EngineConfig, EngineCore, InferRequest, SamplingParams};

use super::batches::{BLOCK_SIZES, random_batches};
use super::run;
use crate::models::default_gguf;

/// Longest sequence of these tests.
const MAX_LEN: usize = 256;

/// The default model in one arithmetic, loaded once for many engines.
struct Real {
    open: OpenModel,
    dtype: ComputeDtype,
    llama: Arc<Llama>,
}

struct Lent(Arc<Llama>);

impl Model for Lent {
    fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Option<Tensor>> {
        self.0.forward(batch, cache)
    }
}

impl Real {
    fn open(dtype: ComputeDtype) -> Self {
        let open = weights::open(&default_gguf()).unwrap();
        let llama = Arc::new(Llama::load(&open.config, &*open.weights, dtype, MAX_LEN).unwrap());
        Self { open, dtype, llama }
    }

    fn core(&self, config: &EngineConfig) -> EngineCore {
        let llama = Lent(Arc::clone(&self.llama));
        EngineCore::with_model(Box::new(llama), &self.open.config, config, Clock::manual()).unwrap()
    }

    fn base(&self) -> EngineConfig {
        EngineConfig {
            max_model_len: Some(MAX_LEN),
            dtype: Some(self.dtype),
            threads: Some(2),
            ..EngineConfig::default()
        }
    }

    /// `num_tokens` of ordinary words.
    fn words(&self, num_tokens: usize) -> Vec<u32> {
        self.open.tokenizer.exact_prompt(num_tokens, 7, num_tokens as u64).unwrap().0
    }

    /// Prompts of several lengths, greedy and sampled by turns.
    fn requests(&self, prompt_lens: &[usize]) -> Vec<InferRequest> {
        let requests = prompt_lens.iter().zip(0..).map(|(len, nth)| InferRequest {
            sampling: if nth % 2 == 0 { SamplingParams::default() } else { sampled(nth) },
            ..request(self.words(*len), 5)
        });
        requests.collect()
    }
}

fn request(prompt_ids: Vec<u32>, max_tokens: usize) -> InferRequest {
    InferRequest {
        ignore_eos: true,
        logprobs: Some(20),
        ..InferRequest::new(prompt_ids, max_tokens)
    }
}

fn sampled(seed: u64) -> SamplingParams {
    SamplingParams { temperature: 0.9, top_p: 0.95, top_k: Some(50), seed }
}

/// Holds `claim` against the model in each arithmetic.
fn in_every_arithmetic(claim: impl Fn(&Real)) {
    for dtype in [ComputeDtype::F32, ComputeDtype::Bf16, ComputeDtype::Quantized] {
        claim(&Real::open(dtype));
    }
}

#[test]
fn the_real_model_computes_the_same_bits_on_any_block_size() {
    in_every_arithmetic(|real| {
        let requests = real.requests(&[5, 23, 70]);
        let expected = run(&mut real.core(&real.base()), &requests);
        for block_size in BLOCK_SIZES {
            let mut core = real.core(&EngineConfig { block_size, ..real.base() });
            assert!(run(&mut core, &requests) == expected, "{}, {block_size}", real.dtype);
        }
    });
}

#[test]
fn the_real_model_computes_the_same_bits_on_any_number_of_threads() {
    in_every_arithmetic(|real| {
        let requests = real.requests(&[3, 41]);
        let of = |threads| {
            let mut core = real.core(&EngineConfig { threads: Some(threads), ..real.base() });
            run(&mut core, &requests)
        };
        let one = of(1);
        for threads in [2, 3, 5] {
            assert!(of(threads) == one, "{} by {threads} threads", real.dtype);
        }
    });
}

#[test]
fn the_real_model_computes_the_same_bits_in_chunks() {
    in_every_arithmetic(|real| {
        let requests = real.requests(&[37, 6]);
        let expected = run(&mut real.core(&real.base()), &requests);
        for max_num_batched_tokens in [3, 16, 33] {
            let mut core = real.core(&EngineConfig { max_num_batched_tokens, ..real.base() });
            let same = run(&mut core, &requests) == expected;
            assert!(same, "{}, {max_num_batched_tokens} a step", real.dtype);
        }
    });
}

#[test]
fn the_real_model_computes_the_same_bits_in_random_batches_and_alone() {
    in_every_arithmetic(|real| {
        let mut requests = real.requests(&[1, 16, 17, 33, 52]);
        let begins_alike = [&requests[4].prompt_ids[..36], &real.words(4)].concat();
        requests.push(request(begins_alike, 6));
        let scored = request(real.words(21), 2);
        requests.push(InferRequest { prompt_logprobs: Some(20), ..scored });
        let base = EngineConfig { max_model_len: None, ..real.base() };
        let met = random_batches(|config| real.core(config), &base, &requests, 5, 3);
        assert!(met.num_preemptions > 0 && met.num_hit_tokens > 0, "{}: {met:?}", real.dtype);
    });
}

#[test]
fn the_real_model_answers_a_cached_prompt_as_a_new_one() {
    in_every_arithmetic(|real| {
        let config = EngineConfig { block_size: 8, ..real.base() };
        let mut cached = real.core(&config);
        let mut uncached = real.core(&EngineConfig { enable_prefix_caching: false, ..config });
        let prompt = real.words(44);
        let first = InferRequest { sampling: sampled(5), ..request(prompt.clone(), 7) };
        let answer = run(&mut uncached, std::slice::from_ref(&first)).remove(0);
        let answer: Vec<u32> = answer.into_iter().map(|(token, _)| token).collect();
        let next_turn = request([&prompt[..], &answer, &real.words(9)].concat(), 5);
        let turned_off = request([&prompt[..20], &real.words(15)].concat(), 5);
        // A sequence's last token is never computed, so 50 of 51 are in blocks.
        for (request, num_hits) in
            [(&first, 0), (&first, 40), (&next_turn, 48), (&next_turn, 56), (&turned_off, 16)]
        {
            let before = cached.stats().prefix_hit_tokens;
            let hit = run(&mut cached, std::slice::from_ref(request));
            let num_found = cached.stats().prefix_hit_tokens - before;
            assert_eq!(num_found, num_hits, "{}", real.dtype);
            let miss = run(&mut uncached, std::slice::from_ref(request));
            assert!(hit == miss, "{}: {num_hits} cached tokens make a difference", real.dtype);
        }
        assert_eq!(uncached.stats().prefix_hit_tokens, 0);
        // All of them at once, in one batch over shared blocks.
        let all = [first, next_turn, turned_off];
        let before = cached.stats().prefix_hit_tokens;
        assert!(run(&mut cached, &all) == run(&mut uncached, &all), "{}", real.dtype);
        assert_eq!(cached.stats().prefix_hit_tokens - before, 40 + 56 + 32);
    });
}

#[test]
fn samples_of_the_real_model_are_what_as_many_requests_with_their_seeds_are() {
    in_every_arithmetic(|real| {
        for temperature in [0.0, 1.2] {
            let sampling = SamplingParams { temperature, ..sampled(40) };
            let single = InferRequest { sampling, ..request(real.words(21), 6) };
            let together = InferRequest { n: 4, ..single.clone() };
            let together = run(&mut real.core(&real.base()), &[together]);
            let uncached = EngineConfig { enable_prefix_caching: false, ..real.base() };
            let mut alone = real.core(&uncached);
            for (seed, sample) in (40..44).zip(&together) {
                let sampling = SamplingParams { seed, ..sampling };
                let request = InferRequest { sampling, ..single.clone() };
                let expected = run(&mut alone, &[request]).remove(0);
                assert!(*sample == expected, "{}, {temperature}, {seed}", real.dtype);
            }
            let alike = together.iter().all(|sample| *sample == together[0]);
            assert_eq!(alike, temperature <= 0.0, "{}", real.dtype);
        }
    });
}
