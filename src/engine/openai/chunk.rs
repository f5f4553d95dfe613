//! The stream of completion chunks, and what each of them carries. A chunk is
//! no token: it may hold a role, nothing, one token or several.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::pattern::Pattern;
use crate::clock::Timestamp;
use crate::engine::sse::{SseDecoder, SseEvent};
use crate::engine::stream::Dialect;
use crate::engine::words::{quote, server_message};
use crate::engine::{
    EngineError, ErrorClass, EventKind, Exchange, FinishReason, TokenEvent, Usage,
};

/// A chunk of either route, as far as it is read. `object` is `error` in old vLLM.
#[derive(Debug, Deserialize)]
pub(super) struct Chunk<'a> {
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    usage: Option<WireUsage>,
    error: Option<IgnoredAny>,
    #[serde(borrow)]
    object: Option<Text<'a>>,
    /// llama.cpp's own measurements, in milliseconds, tokens and tokens per second.
    timings: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct Choice<'a> {
    /// `/v1/completions`.
    #[serde(borrow)]
    text: Option<Text<'a>>,
    /// `/v1/chat/completions`.
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Text<'a>>,
}

#[derive(Debug, Default, Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Text<'a>>,
    /// DeepSeek's name, taken over by vLLM and llama.cpp.
    #[serde(borrow)]
    reasoning_content: Option<Text<'a>>,
    /// The name in newer vLLM and in other gateways.
    #[serde(borrow)]
    reasoning: Option<Text<'a>>,
    tool_calls: Option<Vec<IgnoredAny>>,
}

impl Chunk<'_> {
    /// The text and what it is, if the chunk carries that and nothing else that
    /// is read, and if it stands in the data as it is.
    pub(super) fn only_text(&self) -> Option<(&str, EventKind)> {
        let Self { choices, usage, error, object: _, timings } = self;
        let [Choice { text, delta, finish_reason }] = choices.as_deref()? else { return None };
        if usage.is_some() || error.is_some() || timings.is_some() || finish_reason.is_some() {
            return None;
        }
        let nothing = Delta::default();
        let Delta { content, reasoning_content, reasoning, tool_calls } =
            delta.as_ref().unwrap_or(&nothing);
        let texts = [
            (text, EventKind::Content),
            (content, EventKind::Content),
            (reasoning_content, EventKind::Reasoning),
            (reasoning, EventKind::Reasoning),
        ];
        let mut told = texts.into_iter().filter_map(|(text, kind)| match text {
            Some(text) if !text.0.is_empty() => Some((&text.0, kind)),
            Some(_) | None => None,
        });
        match (told.next(), told.next(), tool_calls) {
            (Some((Cow::Borrowed(text), kind)), None, None) => Some((*text, kind)),
            _ => None,
        }
    }
}

/// A text that is copied only where it has escapes. (serde borrows a bare
/// `Cow`, but not one inside an `Option`.)
#[derive(Debug, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Debug, Deserialize)]
struct WireUsage {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Debug, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

/// Reads chunks out of server-sent events.
#[derive(Debug)]
pub(in crate::engine) struct ChunkDialect {
    decoder: SseDecoder,
    state: State,
}

#[derive(Debug, Default)]
struct State {
    /// `[DONE]` has come.
    done: bool,
    /// A finish reason has come.
    finished: bool,
    /// Usage on a chunk is a running count, because that was asked for. From
    /// any other server it may be the whole answer's on its last chunk.
    running_usage: bool,
    /// Tokens that the running usage has counted so far.
    num_counted: u32,
    /// The chunk before, as a pattern for those that differ in their text alone.
    pattern: Option<Pattern>,
}

impl ChunkDialect {
    /// A dialect at the beginning of an answer; `running_usage` if the server
    /// was asked for a running token count on every chunk.
    pub(in crate::engine) fn new(running_usage: bool) -> Self {
        let state = State { running_usage, ..State::default() };
        Self { decoder: SseDecoder::new(), state }
    }
}

impl Dialect for ChunkDialect {
    fn content_types(&self) -> &'static [&'static str] {
        &["text/event-stream"]
    }

    fn feed(
        &mut self,
        bytes: &[u8],
        at: Timestamp,
        exchange: &mut Exchange,
    ) -> Result<bool, EngineError> {
        let state = &mut self.state;
        self.decoder.feed(bytes, |event| state.event(event, at, exchange))?;
        Ok(state.done)
    }

    fn finish(&mut self, at: Timestamp, exchange: &mut Exchange) -> Result<(), EngineError> {
        let state = &mut self.state;
        let last = self.decoder.finish(|event| state.event(event, at, exchange));
        if state.done {
            return Ok(());
        }
        match last {
            Ok(()) if state.finished => Ok(()),
            // Half a chunk at the end is no bad chunk but the place of the cut.
            Err(error) if error.class != ErrorClass::Protocol => Err(error),
            Ok(()) | Err(_) => Err(EngineError::new(
                ErrorClass::Truncated,
                format!(
                    "ended the stream after {} events without [DONE] or a finish reason",
                    exchange.events.len()
                ),
            )),
        }
    }
}

impl State {
    fn event(
        &mut self,
        event: SseEvent<'_>,
        at: Timestamp,
        exchange: &mut Exchange,
    ) -> Result<(), EngineError> {
        if self.done {
            return Ok(());
        }
        if event.is_error {
            return Err(reported(event.data));
        }
        if event.data.trim_ascii() == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        if let Some((text, kind)) = self.pattern.as_ref().and_then(|p| p.text_of(event.data)) {
            let texts = match kind {
                EventKind::Reasoning => &mut exchange.reasoning,
                _ => &mut exchange.text,
            };
            texts.push_str(text);
            exchange.push(TokenEvent { at, kind, num_tokens: None });
            return Ok(());
        }
        let chunk: Chunk<'_> = serde_json::from_slice(event.data).map_err(|error| {
            let what = format!("sent a chunk that is not one ({error}): {}", quote(event.data));
            EngineError::new(ErrorClass::Protocol, what)
        })?;
        if chunk.error.is_some() || chunk.object.as_ref().is_some_and(|object| object.0 == "error")
        {
            return Err(reported(event.data));
        }
        self.pattern = Pattern::of(event.data, &chunk);
        self.chunk(chunk, at, exchange);
        Ok(())
    }

    fn chunk(&mut self, chunk: Chunk<'_>, at: Timestamp, exchange: &mut Exchange) {
        let choices = chunk.choices.unwrap_or_default();
        let has_choices = !choices.is_empty();
        let mut kind = EventKind::Empty;
        let mut finishes = false;
        for choice in choices {
            kind = token_of(kind, take_text(&choice, exchange));
            if let Some(reason) = choice.finish_reason {
                exchange.finish_reason = Some(FinishReason::parse(&reason.0));
                finishes = true;
            }
        }
        self.finished |= finishes;
        if kind == EventKind::Empty {
            kind = match (finishes, has_choices, &chunk.usage) {
                (true, _, _) => EventKind::Finish,
                (false, false, Some(_)) => EventKind::Usage,
                (false, _, _) => EventKind::Empty,
            };
        }
        let num_tokens = chunk.usage.and_then(|usage| self.count(&usage, kind, exchange));
        exchange.push(TokenEvent { at, kind, num_tokens });
        for (name, value) in chunk.timings.into_iter().flatten() {
            if let Some(number) = value.as_f64() {
                exchange.server.insert(name, number);
            }
        }
    }

    /// Keeps a usage report, unless it is the zeros that Ollama's `/v1` puts on
    /// every chunk, and returns the tokens that are new since the one before:
    /// those of this event, where the server counts as it goes.
    fn count(
        &mut self,
        usage: &WireUsage,
        kind: EventKind,
        exchange: &mut Exchange,
    ) -> Option<u32> {
        let (prompt, output) = (usage.prompt_tokens, usage.completion_tokens);
        if prompt.unwrap_or(0) == 0 && output.unwrap_or(0) == 0 {
            return None;
        }
        exchange.usage = Some(Usage {
            num_prompt_tokens: prompt,
            num_output_tokens: output,
            num_cached_tokens: usage
                .prompt_tokens_details
                .as_ref()
                .and_then(|details| details.cached_tokens),
        });
        let new = output?.checked_sub(self.num_counted)?;
        self.num_counted += new;
        (self.running_usage && kind.is_token() && new > 0).then_some(new)
    }
}

/// Of two parts of one chunk, the one that makes it a token.
fn token_of(first: EventKind, second: EventKind) -> EventKind {
    if first == EventKind::Content || second == EventKind::Empty { first } else { second }
}

/// Appends the choice's text to the exchange and says what it was.
fn take_text(choice: &Choice<'_>, exchange: &mut Exchange) -> EventKind {
    let mut kind = EventKind::Empty;
    if let Some(delta) = &choice.delta {
        // Some gateways send both names with the same text: it counts once.
        let named = [&delta.reasoning_content, &delta.reasoning];
        if let Some(text) = named.into_iter().flatten().find(|text| !text.0.is_empty()) {
            exchange.reasoning.push_str(&text.0);
            kind = EventKind::Reasoning;
        }
        // A tool call is generated too, though it is not kept as text.
        if delta.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty()) {
            kind = EventKind::Content;
        }
    }
    let content = choice.delta.as_ref().and_then(|delta| delta.content.as_ref());
    for text in [content, choice.text.as_ref()].into_iter().flatten() {
        if !text.0.is_empty() {
            exchange.text.push_str(&text.0);
            kind = EventKind::Content;
        }
    }
    kind
}

fn reported(data: &[u8]) -> EngineError {
    let what = format!("reported an error in the stream: {}", server_message(data));
    EngineError::new(ErrorClass::Rejected, what)
}
