//! The documents of a streamed answer. Ollama leaves out every counter and
//! duration that is zero, so on the final document a missing one means zero or
//! "not done": it is kept as absent, except that an answer without
//! `eval_count` and without text has zero tokens.

use serde::Deserialize;
use serde_json::Value;

use crate::clock::Timestamp;
use crate::engine::ndjson::NdjsonDecoder;
use crate::engine::stream::Dialect;
use crate::engine::words::{quote, server_message};
use crate::engine::{
    EngineError, ErrorClass, EventKind, Exchange, FinishReason, TokenEvent, Usage,
};

/// One document of `/api/chat` or `/api/generate`. Durations are in nanoseconds.
#[derive(Debug, Deserialize)]
struct Document {
    error: Option<Value>,
    /// `/api/chat`.
    message: Option<Message>,
    /// `/api/generate`.
    response: Option<String>,
    thinking: Option<String>,
    #[serde(default)]
    done: bool,
    done_reason: Option<String>,
    total_duration: Option<u64>,
    load_duration: Option<u64>,
    prompt_eval_count: Option<u32>,
    prompt_eval_duration: Option<u64>,
    eval_count: Option<u32>,
    eval_duration: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Message {
    content: Option<String>,
    thinking: Option<String>,
    tool_calls: Option<Vec<Value>>,
}

/// Reads documents out of lines.
#[derive(Debug)]
pub(in crate::engine) struct AnswerDialect {
    decoder: NdjsonDecoder,
    done: bool,
    model: String,
}

impl AnswerDialect {
    /// A dialect at the beginning of an answer by `model`.
    pub(in crate::engine) const fn new(model: String) -> Self {
        Self { decoder: NdjsonDecoder::new(), done: false, model }
    }
}

impl Dialect for AnswerDialect {
    fn content_types(&self) -> &'static [&'static str] {
        &["application/x-ndjson", "application/ndjson", "application/json"]
    }

    fn feed(
        &mut self,
        bytes: &[u8],
        at: Timestamp,
        exchange: &mut Exchange,
    ) -> Result<bool, EngineError> {
        let done = &mut self.done;
        self.decoder.feed(bytes, |line| {
            if !*done {
                *done = document(line, at, exchange)?;
            }
            Ok(())
        })?;
        Ok(self.done)
    }

    fn finish(&mut self, at: Timestamp, exchange: &mut Exchange) -> Result<(), EngineError> {
        let last = self.decoder.take_rest().map(|rest| document(&rest, at, exchange));
        match last {
            Some(Ok(true)) => Ok(()),
            // Half a document at the end is no bad document but the place of the cut.
            Some(Err(error)) if error.class != ErrorClass::Protocol => Err(error),
            None | Some(_) => Err(EngineError::new(
                ErrorClass::Truncated,
                format!("ended the stream after {} documents without done", exchange.events.len()),
            )),
        }
    }

    fn advise(&self, error: EngineError) -> EngineError {
        if error.message.contains("not found") {
            return error.with_hint(format!("ollama pull {}", self.model));
        }
        error
    }
}

/// Takes one document in; `true` if it is the last.
fn document(line: &[u8], at: Timestamp, exchange: &mut Exchange) -> Result<bool, EngineError> {
    let document: Document = serde_json::from_slice(line).map_err(|error| {
        let what = format!("sent a line that is no answer ({error}): {}", quote(line));
        EngineError::new(ErrorClass::Protocol, what)
    })?;
    if document.error.is_some() {
        let words = server_message(line);
        let class =
            if words.contains("server busy") { ErrorClass::Busy } else { ErrorClass::Rejected };
        return Err(EngineError::new(class, format!("reported an error in the stream: {words}")));
    }
    let mut kind = take_text(&document, exchange);
    if document.done {
        finish(&document, exchange);
        if kind == EventKind::Empty {
            kind = EventKind::Finish;
        }
    }
    exchange.push(TokenEvent { at, kind, num_tokens: None });
    Ok(document.done)
}

fn take_text(document: &Document, exchange: &mut Exchange) -> EventKind {
    let message = document.message.as_ref();
    let mut kind = EventKind::Empty;
    let thinking =
        [message.and_then(|message| message.thinking.as_ref()), document.thinking.as_ref()];
    for text in thinking.into_iter().flatten().filter(|text| !text.is_empty()) {
        exchange.reasoning.push_str(text);
        kind = EventKind::Reasoning;
    }
    let content =
        [message.and_then(|message| message.content.as_ref()), document.response.as_ref()];
    for text in content.into_iter().flatten().filter(|text| !text.is_empty()) {
        exchange.text.push_str(text);
        kind = EventKind::Content;
    }
    let calls = message.and_then(|message| message.tool_calls.as_ref());
    if calls.is_some_and(|calls| !calls.is_empty()) { EventKind::Content } else { kind }
}

#[expect(clippy::cast_precision_loss, reason = "durations stay below 2^53 ns, which is 104 days")]
fn finish(document: &Document, exchange: &mut Exchange) {
    exchange.finish_reason = document.done_reason.as_deref().map(FinishReason::parse);
    let silent = exchange.text.is_empty() && exchange.reasoning.is_empty();
    exchange.usage = Some(Usage {
        num_prompt_tokens: document.prompt_eval_count,
        num_output_tokens: document.eval_count.or(silent.then_some(0)),
        num_cached_tokens: None,
    });
    let reported = [
        ("total_duration", document.total_duration),
        ("load_duration", document.load_duration),
        ("prompt_eval_count", document.prompt_eval_count.map(u64::from)),
        ("prompt_eval_duration", document.prompt_eval_duration),
        ("eval_count", document.eval_count.map(u64::from)),
        ("eval_duration", document.eval_duration),
    ];
    for (name, value) in reported {
        if let Some(value) = value {
            exchange.server.insert(name.to_owned(), value as f64);
        }
    }
}
