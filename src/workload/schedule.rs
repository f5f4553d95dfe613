//! The requests of a case with their instants: a pure function of the plan, the
//! run's seed and the case's load, so that every engine meets the same.

use std::time::Duration;

use super::Workload;
use super::source::Turn;
use crate::engine::{GenerateRequest, Message, Prompt, Role};
use crate::infer::InferError;
use crate::plan::{Case, LoadPlan, LoadShape};

/// Most prompt tokens of a case: all prompts are made before it is measured.
const MAX_PROMPT_TOKENS: u64 = 1 << 26;

/// A request of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheduled {
    /// Its index in the case.
    pub index: u32,
    /// When it arrives, since the beginning of the case; for a later turn,
    /// since the end of the turn before.
    pub at: Duration,
    /// What is sent.
    pub request: GenerateRequest,
    /// Asked-for prompt length, where the prompt is synthetic.
    pub requested_prompt_tokens: Option<u32>,
    /// Which turn of its conversation, where there are conversations.
    pub turn: Option<u32>,
    conversation: usize,
}

impl Workload {
    /// Requests of a case, in order of arrival: the first turns, where there
    /// are conversations. In a closed loop none has an instant.
    ///
    /// # Errors
    /// When the tokenizer cannot make a prompt of the asked-for length, or the
    /// prompts are too many to be kept.
    pub fn schedule(&self, case: &Case) -> Result<Vec<Scheduled>, InferError> {
        let load = case.load_plan.and_then(|index| self.loads.get(index));
        let instants = match &case.shape {
            LoadShape::Closed { .. } => vec![Duration::ZERO; case.num_requests as usize],
            LoadShape::Open { arrivals, extent, .. } => {
                arrivals.resolve(*extent, self.seed, case.load)
            }
        };
        let mut index = 0;
        let mut tokens = 0_u64;
        let mut scheduled = Vec::with_capacity(instants.len());
        for (conversation, at) in instants.into_iter().enumerate() {
            let made = match load {
                Some(load) => self.first(load, case.load, conversation, index)?,
                None => Made {
                    requested_prompt_tokens: self.requested_prompt_tokens(),
                    request: self.request(case.load, index)?,
                },
            };
            let turns = load.map_or(1, |load| load.turns_of(self.seed, case.load, conversation));
            let turn = load.filter(|load| load.content.turns > 1).map(|_| 0);
            tokens += u64::from(made.requested_prompt_tokens.unwrap_or(0));
            if tokens > MAX_PROMPT_TOKENS {
                return Err(InferError::Request(format!(
                    "the prompts of {} have more than {MAX_PROMPT_TOKENS} tokens: ask for fewer \
                     requests, or a shorter time",
                    case.experiment
                )));
            }
            let Made { request, requested_prompt_tokens } = made;
            scheduled.push(Scheduled {
                index,
                at,
                request,
                requested_prompt_tokens,
                turn,
                conversation,
            });
            index += u32::try_from(turns).unwrap_or(u32::MAX);
        }
        Ok(scheduled)
    }

    /// The turn that follows `before`, which was answered with `answer`; `None`
    /// after the last.
    ///
    /// # Errors
    /// As [`Workload::schedule`].
    pub fn next_turn(
        &self,
        case: &Case,
        before: &Scheduled,
        answer: &str,
    ) -> Result<Option<Scheduled>, InferError> {
        let load = case.load_plan.and_then(|index| self.loads.get(index));
        let (Some(load), Some(turn)) = (load, before.turn) else { return Ok(None) };
        let turn = turn + 1;
        let turns = load.turns_of(self.seed, case.load, before.conversation);
        let Prompt::Dialogue(history) = &before.request.prompt else { return Ok(None) };
        if turn as usize >= turns {
            return Ok(None);
        }
        let index = before.index + 1;
        let (question, max_tokens) =
            self.question(load, case.load, before.conversation, turn, index)?;
        let mut history = history.clone();
        history.push(Message { role: Role::Assistant, content: answer.to_owned() });
        history.push(Message { role: Role::User, content: question });
        Ok(Some(Scheduled {
            index,
            at: load.content.think,
            request: self.generate(Prompt::Dialogue(history), max_tokens),
            requested_prompt_tokens: None,
            turn: Some(turn),
            conversation: before.conversation,
        }))
    }

    /// The first request of a conversation, or the only one.
    fn first(
        &self,
        load: &LoadPlan,
        number: u32,
        conversation: usize,
        index: u32,
    ) -> Result<Made, InferError> {
        let content = &load.content;
        if content.turns > 1 {
            let (question, max_tokens) = self.question(load, number, conversation, 0, index)?;
            let message = Message { role: Role::User, content: question };
            let request = self.generate(Prompt::Dialogue(vec![message]), max_tokens);
            return Ok(Made { request, requested_prompt_tokens: None });
        }
        let prompt_number = self.number(number, index);
        let drawn = content.output_tokens.map(|lengths| self.length(&lengths, prompt_number, 3));
        let made = |prompt, max_tokens, tokens| Made {
            request: self.generate(prompt, max_tokens),
            requested_prompt_tokens: tokens,
        };
        match load.conversation(self.seed, number, conversation).and_then(|c| c.turns.first()) {
            Some(Turn::Text { prompt, answer }) => {
                let max_tokens = drawn.unwrap_or_else(|| self.tokens_of(answer));
                Ok(made(Prompt::Chat(prompt.clone()), max_tokens, None))
            }
            Some(Turn::Lengths { prompt_tokens, output_tokens, blocks }) => {
                let prompt = self.of_blocks(blocks, *prompt_tokens, prompt_number)?;
                Ok(made(prompt, drawn.unwrap_or(*output_tokens), Some(*prompt_tokens)))
            }
            None => {
                let max_tokens = drawn.unwrap_or(self.max_tokens);
                let Some(lengths) = content.prompt_tokens else {
                    let request = GenerateRequest { max_tokens, ..self.request(number, index)? };
                    let requested_prompt_tokens = self.requested_prompt_tokens();
                    return Ok(Made { request, requested_prompt_tokens });
                };
                let tokens = self.length(&lengths, prompt_number, 2);
                match content.prefix {
                    Some((groups, prefix)) => {
                        let group = (index % groups, prefix);
                        let prompt = self.behind_prefix(group, tokens, prompt_number)?;
                        Ok(made(prompt, max_tokens, Some(prefix + tokens)))
                    }
                    None => {
                        let prompt = self.synthetic(tokens, prompt_number)?;
                        Ok(made(prompt, max_tokens, Some(tokens)))
                    }
                }
            }
        }
    }

    /// What the user says in a turn, and the bound on the answer.
    fn question(
        &self,
        load: &LoadPlan,
        number: u32,
        conversation: usize,
        turn: u32,
        index: u32,
    ) -> Result<(String, u32), InferError> {
        let prompt_number = self.number(number, index);
        let drawn = load.content.output_tokens;
        let drawn = drawn.map(|lengths| self.length(&lengths, prompt_number, 3));
        let of_file = load.conversation(self.seed, number, conversation);
        if let Some(Turn::Text { prompt, answer }) =
            of_file.and_then(|conversation| conversation.turns.get(turn as usize))
        {
            let max_tokens = drawn.unwrap_or_else(|| self.tokens_of(answer));
            return Ok((prompt.clone(), max_tokens));
        }
        let max_tokens = drawn.unwrap_or(self.max_tokens);
        let Some(lengths) = load.content.prompt_tokens else {
            let text = match self.request(number, index)?.prompt {
                Prompt::Chat(text) | Prompt::Raw(text) | Prompt::Tokens { text, .. } => text,
                Prompt::Dialogue(_) => String::new(),
            };
            return Ok((text, max_tokens));
        };
        let tokens = self.length(&lengths, prompt_number, 2);
        // The prefix is that of the whole conversation: it stands in its first turn.
        let prompt = match load.content.prefix.filter(|_| turn == 0) {
            Some((groups, prefix)) => {
                let group = u32::try_from(conversation).unwrap_or(u32::MAX) % groups;
                self.behind_prefix((group, prefix), tokens, prompt_number)?
            }
            None => self.synthetic(tokens, prompt_number)?,
        };
        match prompt {
            Prompt::Tokens { text, .. } | Prompt::Raw(text) | Prompt::Chat(text) => {
                Ok((text, max_tokens))
            }
            Prompt::Dialogue(_) => Ok((String::new(), max_tokens)),
        }
    }

    /// Tokens of a recorded answer under the model's tokenizer; the plan's
    /// bound where that is not at hand.
    fn tokens_of(&self, answer: &str) -> u32 {
        let ids = self.tokenizer.as_ref().and_then(|t| t.encode(answer, false).ok());
        let count = ids.and_then(|ids| u32::try_from(ids.len()).ok());
        count.map_or(self.max_tokens, |count| count.max(1))
    }
}

/// A request and the prompt length that was asked for.
struct Made {
    request: GenerateRequest,
    requested_prompt_tokens: Option<u32>,
}
