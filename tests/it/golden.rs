//! The embedded engine against transformers, on the real model: the fixture is
//! made by tests/fixtures/make_golden.py and says how. `breadth` does the same
//! for a tiny model of every family.

pub(crate) mod breadth;
pub(crate) mod noise;

use serde::Deserialize;
use yardstick::clock::Clock;
use yardstick::infer::{
    ChatMessage, ComputeDtype, EngineConfig, EngineHost, Generation, GenerationEvent, InferRequest,
    ModelSource, StopReason, weights,
};

use crate::models::{default_gguf, write_hf_form};

const FIXTURE: &str = include_str!("../fixtures/golden.json");
/// Natural-log probabilities of two f32 implementations.
const TOLERANCE: f32 = 1e-3;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
    scored: Scored,
    tokenizer: Vec<Piece>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Option<Vec<Message>>,
    prompt: String,
    text: String,
    #[serde(flatten)]
    answer: Answer,
    /// Of bf16 arithmetic at the same positions, after the same tokens.
    bf16_top_logprobs: Vec<Vec<(u32, f32)>>,
}

/// A text, and what transformers gives each of its tokens after the first.
#[derive(Deserialize)]
struct Scored {
    ids: Vec<u32>,
    f32: Scores,
    bf16: Scores,
}

#[derive(Deserialize)]
struct Scores {
    logprobs: Vec<f32>,
    best_ids: Vec<u32>,
    best_logprobs: Vec<f32>,
}

/// A prompt, and what transformers made of it.
#[derive(Deserialize)]
struct Answer {
    prompt_ids: Vec<u32>,
    tokens: Vec<u32>,
    /// Best first, at each position of `tokens`.
    top_logprobs: Vec<Vec<(u32, f32)>>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

#[derive(Deserialize)]
struct Piece {
    text: String,
    ids: Vec<u32>,
}

fn fixture() -> Fixture {
    serde_json::from_str(FIXTURE).unwrap()
}

fn host(source: &ModelSource) -> EngineHost {
    host_in(source, ComputeDtype::F32)
}

fn host_in(source: &ModelSource, dtype: ComputeDtype) -> EngineHost {
    let config = EngineConfig { dtype: Some(dtype), ..EngineConfig::default() };
    EngineHost::open(source, config, Clock::real()).unwrap()
}

/// Largest and mean difference.
fn differences(ours: impl Iterator<Item = f32>, theirs: &[f32]) -> (f32, f32) {
    let all: Vec<f32> = ours.zip(theirs).map(|(a, b)| (a - b).abs()).collect();
    assert_eq!(all.len(), theirs.len());
    (all.iter().copied().fold(0.0, f32::max), all.iter().sum::<f32>() / all.len() as f32)
}

impl Answer {
    fn request(&self) -> InferRequest {
        InferRequest {
            ignore_eos: true,
            logprobs: Some(self.top_logprobs[0].len()),
            ..InferRequest::new(self.prompt_ids.clone(), self.tokens.len())
        }
    }

    /// Takes all events, holds them against what transformers said, and returns the text.
    fn check(&self, name: &str, mut generation: Generation, tolerance: f32) -> String {
        let (mut tokens, mut text) = (Vec::new(), String::new());
        while let Some(event) = generation.blocking_next() {
            match event {
                GenerationEvent::Token { id, text: piece, logprobs, .. } => {
                    let at = tokens.len();
                    tokens.push(id);
                    text.push_str(&piece);
                    assert_eq!(tokens, self.tokens[..=at], "{name} departs at position {at}");
                    let ours = logprobs.expect("logprobs were asked for");
                    let theirs = &self.top_logprobs[at];
                    assert_eq!(ours.top.len(), theirs.len());
                    for (rank, ((id, got), (best, expected))) in
                        ours.top.iter().zip(theirs).enumerate()
                    {
                        assert!(
                            (got - expected).abs() < tolerance,
                            "{name}, position {at}, rank {rank}: token {id} at {got}, expected \
                             {best} at {expected}"
                        );
                    }
                    assert!((ours.logprob - theirs[0].1).abs() < tolerance);
                }
                GenerationEvent::Done { reason, num_prompt_tokens, num_output_tokens, .. } => {
                    assert_eq!(reason, StopReason::Length);
                    assert_eq!(num_prompt_tokens, self.prompt_ids.len());
                    assert_eq!(num_output_tokens, self.tokens.len());
                }
                GenerationEvent::PromptLogprobs { .. } => {
                    panic!("{name}: no scores were asked for")
                }
                GenerationEvent::Failed(error) => panic!("{name}: {error}"),
            }
        }
        assert_eq!(tokens, self.tokens, "{name}");
        text
    }
}

fn check(case: &Case, generation: Generation) {
    let text = case.answer.check(&case.name, generation, TOLERANCE);
    assert!(case.text.starts_with(&text), "{}: {text:?}", case.name);
}

#[test]
fn gguf_answers_token_for_token_like_transformers() {
    let host = host(&default_gguf());
    for case in fixture().cases {
        check(&case, host.submit(case.answer.request()).unwrap());
    }
}

#[test]
fn a_given_text_scores_as_in_transformers() {
    let scored = fixture().scored;
    let ours = host(&default_gguf()).score(&scored.ids, 1).unwrap();
    let (largest, _) = differences(ours.iter().map(|at| at.logprob), &scored.f32.logprobs);
    assert!(largest < TOLERANCE, "a token's differs by {largest}");
    let best = differences(ours.iter().map(|at| at.top[0].1), &scored.f32.best_logprobs);
    assert!(best.0 < TOLERANCE, "the likeliest token's differs by {}", best.0);
    assert!(ours.iter().zip(&scored.f32.best_ids).all(|(ours, id)| ours.top[0].0 == *id));
}

/// Two implementations of bf16 round in different places: transformers keeps
/// the residual stream in bf16, ours in f32. Neither may be further from f32
/// than the other by much.
#[test]
fn bf16_is_as_near_to_f32_as_it_is_in_transformers() {
    let Fixture { cases, scored, .. } = fixture();
    let host = host_in(&default_gguf(), ComputeDtype::Bf16);
    let ours = host.score(&scored.ids, 1).unwrap();
    let ours = differences(ours.iter().map(|at| at.logprob), &scored.f32.logprobs);
    let theirs = differences(scored.bf16.logprobs.iter().copied(), &scored.f32.logprobs);
    assert!(ours.0 <= 1.5 * theirs.0, "{} at most, {} in transformers", ours.0, theirs.0);
    assert!(ours.1 <= 1.2 * theirs.1, "{} on average, {} in transformers", ours.1, theirs.1);
    for case in &cases {
        let ids = [&case.answer.prompt_ids[..], &case.answer.tokens].concat();
        let first = case.answer.prompt_ids.len() - 1;
        let ours = host.score(&ids, 1).unwrap();
        let ours = ours[first..].iter().map(|at| at.top[0].1);
        let best: Vec<f32> = case.bf16_top_logprobs.iter().map(|top| top[0].1).collect();
        let (largest, _) = differences(ours, &best);
        assert!(largest < 0.25, "{}: the likeliest token's differs by {largest}", case.name);
    }
}

#[test]
fn a_hugging_face_folder_answers_the_same_with_all_prompts_in_one_batch() {
    let folder = tempfile::tempdir().unwrap();
    write_hf_form(&default_gguf(), folder.path());
    let host = host(&ModelSource::Folder(folder.path().to_owned()));
    let cases = fixture().cases;
    let generations: Vec<_> =
        cases.iter().map(|case| host.submit(case.answer.request()).unwrap()).collect();
    for (case, generation) in cases.iter().zip(generations) {
        check(case, generation);
    }
}

#[test]
fn prompts_are_tokenized_and_templated_as_in_transformers() {
    let folder = tempfile::tempdir().unwrap();
    write_hf_form(&default_gguf(), folder.path());
    for source in [default_gguf(), ModelSource::Folder(folder.path().to_owned())] {
        let tokenizer = weights::open(&source).unwrap().tokenizer;
        for case in fixture().cases {
            if let Some(messages) = case.messages {
                let messages: Vec<ChatMessage> = messages
                    .into_iter()
                    .map(|m| ChatMessage { role: m.role, content: m.content })
                    .collect();
                assert_eq!(tokenizer.apply_chat_template(&messages).unwrap(), case.prompt);
            }
            assert_eq!(tokenizer.encode(&case.prompt, false).unwrap(), case.answer.prompt_ids);
            assert_eq!(tokenizer.decode(&case.answer.tokens).unwrap(), case.text);
        }
        for piece in fixture().tokenizer {
            assert_eq!(tokenizer.encode(&piece.text, true).unwrap(), piece.ids, "{}", piece.text);
        }
    }
}
