//! Paged equals dense, batched equals single: claims that need no oracle. A
//! sequence must come out the same, to the last bit of its log-probabilities,
//! however its work is cut up and whatever runs beside it.

#![expect(clippy::unwrap_used, reason = "a test stops where something fails")]

mod attention;
mod batches;
mod real;
mod stock;

use std::collections::{BTreeMap, VecDeque};

use yardstick::clock::Clock;
use yardstick::infer::host::TokenLogprobs;
use yardstick::infer::weights::{self, OpenModel};
use yardstick::infer::{
    EngineConfig, EngineCore, InferRequest, KvBudget, ModelConfig, ModelSource, SamplingParams,
};

const VOCAB: usize = 96;

fn tiny() -> ModelConfig {
    ModelConfig {
        vocab_size: VOCAB,
        hidden_size: 48,
        intermediate_size: 80,
        num_attention_heads: 6,
        max_position_embeddings: 256,
        eos_token_ids: vec![2],
        ..ModelConfig::tiny()
    }
}

fn open(config: ModelConfig) -> OpenModel {
    let source = ModelSource::Dummy { config: Box::new(config), seed: 11, tokenizer: None };
    weights::open(&source).unwrap()
}

fn core(config: &EngineConfig) -> EngineCore {
    let model = open(tiny());
    EngineCore::new(&model.config, &*model.weights, config, Clock::manual()).unwrap()
}

/// Prompts of several lengths; every other one is sampled, the rest is greedy.
fn requests() -> Vec<InferRequest> {
    [1_usize, 37, 5, 64, 18, 90]
        .iter()
        .enumerate()
        .map(|(nth, len)| InferRequest {
            sampling: SamplingParams {
                temperature: if nth % 2 == 0 { 0.0 } else { 0.9 },
                top_p: 0.95,
                top_k: None,
                seed: nth as u64,
            },
            ignore_eos: true,
            logprobs: Some(VOCAB),
            ..InferRequest::new(
                (0..*len).map(|i| ((i * 7 + nth * 13) % VOCAB) as u32).collect(),
                12 + nth,
            )
        })
        .collect()
}

/// A token and the bits of its position's log-probabilities: its own, then the
/// most likely ones'.
type Position = (u32, Vec<(u32, u32)>);

fn position(token: u32, logprobs: TokenLogprobs) -> Position {
    let own = std::iter::once((token, logprobs.logprob));
    let bits = own.chain(logprobs.top).map(|(id, logprob)| (id, logprob.to_bits()));
    (token, bits.collect())
}

/// What comes of each sample of each of `requests` when all are submitted at
/// once: the scores of its prompt, if it is scored, then what it draws.
fn run(core: &mut EngineCore, requests: &[InferRequest]) -> Vec<Vec<Position>> {
    run_arriving(core, requests.iter().map(|request| (0, request.clone())).collect())
}

/// As [`run`], for requests that arrive before the step whose number is beside
/// them, in ascending order; earlier where the engine would have nothing to do.
fn run_arriving(
    core: &mut EngineCore,
    mut arrivals: VecDeque<(usize, InferRequest)>,
) -> Vec<Vec<Position>> {
    let mut prompts = BTreeMap::new();
    let mut found = BTreeMap::<_, Vec<Position>>::new();
    let mut num_steps = 0;
    while core.has_work() || !arrivals.is_empty() {
        while let Some((step, _)) = arrivals.front()
            && (*step <= num_steps || !core.has_work())
            && let Some((_, request)) = arrivals.pop_front()
        {
            let id = core.add_request(request.clone()).unwrap();
            prompts.insert(id, request.prompt_ids);
        }
        num_steps += 1;
        let report = core.step().unwrap();
        for scores in report.scores {
            let targets = &prompts[&scores.id][scores.first_position..];
            let scored = targets.iter().zip(scores.logprobs);
            let scored = scored.map(|(token, logprobs)| position(*token, logprobs));
            found.entry((scores.id, 0)).or_default().extend(scored);
        }
        for output in report.outputs {
            let drawn = output.result.unwrap();
            let drawn = position(drawn.id, drawn.logprobs.unwrap());
            found.entry((output.id, output.sample)).or_default().push(drawn);
        }
    }
    assert_eq!(core.stats().num_free_blocks, core.stats().num_blocks);
    found.into_values().collect()
}

fn baseline() -> Vec<Vec<Position>> {
    run(&mut core(&EngineConfig::default()), &requests())
}

#[test]
fn a_batch_of_many_equals_as_many_singles() {
    let mut core = core(&EngineConfig::default());
    let singles: Vec<_> =
        requests().iter().map(|r| run(&mut core, std::slice::from_ref(r)).remove(0)).collect();
    assert_eq!(baseline(), singles);
}

#[test]
fn any_block_size_equals_any_other() {
    let expected = baseline();
    for block_size in [1, 5, 64, 256] {
        let config = EngineConfig { block_size, ..EngineConfig::default() };
        assert_eq!(run(&mut core(&config), &requests()), expected, "block_size {block_size}");
    }
}

#[test]
fn a_prompt_in_chunks_equals_the_whole() {
    let expected = baseline();
    for max_num_batched_tokens in [1, 7, 50] {
        let config = EngineConfig { max_num_batched_tokens, ..EngineConfig::default() };
        let drawn = run(&mut core(&config), &requests());
        assert_eq!(drawn, expected, "max_num_batched_tokens {max_num_batched_tokens}");
    }
}

#[test]
fn a_preempted_sequence_equals_an_uninterrupted_one() {
    // Room for the first four prompts, and for not a token more.
    let config =
        EngineConfig { kv: KvBudget::Blocks(15), block_size: 8, ..EngineConfig::default() };
    let mut core = core(&config);
    assert_eq!(run(&mut core, &requests()), baseline());
    assert!(core.stats().num_preemptions > 0, "nothing was preempted");
}

#[test]
fn a_scored_prompt_in_a_batch_equals_one_alone() {
    let scored: Vec<_> = requests()
        .into_iter()
        .map(|request| InferRequest { prompt_logprobs: Some(3), ..request })
        .collect();
    let mut core = core(&EngineConfig { max_num_batched_tokens: 19, ..EngineConfig::default() });
    let singles: Vec<_> =
        scored.iter().map(|r| run(&mut core, std::slice::from_ref(r)).remove(0)).collect();
    assert_eq!(run(&mut core, &scored), singles);
    for ((request, with_scores), plain) in scored.iter().zip(singles).zip(baseline()) {
        assert_eq!(with_scores[request.prompt_ids.len() - 1..], plain, "scoring changes nothing");
    }
}

/// The states of a request at which it can be given up.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Queued,
    Prefilling,
    Decoding,
    Preempted,
    Finished,
}

#[test]
fn an_abort_in_any_state_leaves_the_others_as_they_were() {
    use State::{Decoding, Finished, Preempted, Prefilling, Queued};
    let (surviving, given_up) = (&requests()[3], &requests()[1]);
    let expected = &baseline()[3];
    for state in [Queued, Prefilling, Decoding, Preempted, Finished] {
        let base = EngineConfig { block_size: 8, ..EngineConfig::default() };
        let mut core = core(&match state {
            Queued => EngineConfig { max_num_seqs: 1, ..base },
            Prefilling => EngineConfig { max_num_batched_tokens: 70, ..base },
            // Room for both prompts, and for not a token more.
            Preempted => EngineConfig { kv: KvBudget::Blocks(13), ..base },
            Decoding | Finished => base,
        });
        let survivor = core.add_request(surviving.clone()).unwrap();
        let victim = core.add_request(given_up.clone()).unwrap();
        let (mut found, mut num_drawn, mut aborted) = (Vec::new(), 0, false);
        while core.has_work() {
            let stats = core.stats();
            let reached = match state {
                Queued => (stats.num_running, stats.num_waiting) == (1, 1),
                Prefilling => stats.num_running == 2 && num_drawn == 0,
                Decoding => num_drawn == 2,
                Preempted => stats.num_preemptions == 1,
                Finished => num_drawn == given_up.max_tokens,
            };
            if reached && !aborted {
                aborted = true;
                assert_eq!(core.abort(victim).unwrap(), state != Finished, "{state:?}");
            }
            for output in core.step().unwrap().outputs {
                let drawn = output.result.unwrap();
                if output.id == survivor {
                    found.push(position(drawn.id, drawn.logprobs.unwrap()));
                } else {
                    num_drawn += 1;
                }
            }
        }
        assert!(aborted, "never {state:?}");
        assert_eq!(found, *expected, "{state:?}");
        assert!(!core.abort(victim).unwrap() && !core.abort(survivor).unwrap());
        assert_eq!(core.stats().num_free_blocks, core.stats().num_blocks, "{state:?}");
    }
}
