//! What a scripted answer says and when. Pure: a script becomes a list of
//! writes, each due a fixed time after the request was read. Knows no socket.

use std::time::Duration;

use crate::engine::EventKind;

/// Pause between the pieces of a chunk that is written in several.
const PIECE_PAUSE: Duration = Duration::from_micros(200);
/// Prompt tokens in every usage report: the server has no tokenizer, and says a fixed number.
const PROMPT_TOKENS: u32 = 16;

/// One scripted answer. The same for every request of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// From the request read to the first token.
    pub ttft: Duration,
    /// From one token to the next.
    pub gap: Duration,
    /// Tokens in the answer, at least 1.
    pub num_tokens: u32,
    /// Tokens in a chunk, at least 1; a chunk comes when its first token is due.
    pub tokens_per_chunk: u32,
    /// The first so many tokens are reasoning, the rest content.
    pub num_reasoning: u32,
    /// The role-only chunk comes as the request is read, not with the first token.
    pub early_role: bool,
    /// A pause on top of the gaps.
    pub stall: Option<Stall>,
    /// Whether usage is reported at the end.
    pub usage: bool,
    /// How chunks are put into writes.
    pub delivery: Delivery,
}

/// A pause within an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall {
    /// Number of the token that comes late, from 0.
    pub at_token: u32,
    /// How much later.
    pub lasts: Duration,
}

/// How chunks are put into writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// One write a chunk.
    Whole,
    /// Each chunk cut anywhere into so many writes, 200 us apart; it is there with the last.
    Split(u32),
    /// So many chunks in one write, when the first of them is due.
    Merged(u32),
}

/// Bytes that are due at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Since the request was read.
    pub(super) due: Duration,
    pub(super) bytes: Vec<u8>,
    pub(super) marks: Vec<Mark>,
}

/// An event that is complete with a byte of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// Bytes of the step up to and with its last.
    pub(super) end: usize,
    pub(super) kind: EventKind,
    pub(super) num_tokens: u32,
}

impl Default for Script {
    /// 64 tokens: the first after 20 ms, the others 5 ms apart.
    fn default() -> Self {
        Self {
            ttft: Duration::from_millis(20),
            gap: Duration::from_millis(5),
            num_tokens: 64,
            tokens_per_chunk: 1,
            num_reasoning: 0,
            early_role: false,
            stall: None,
            usage: true,
            delivery: Delivery::Whole,
        }
    }
}

/// One chunk of the answer before it is put into a write.
struct Chunk {
    due: Duration,
    kind: EventKind,
    num_tokens: u32,
}

impl Script {
    /// From the request read to the last token.
    #[must_use]
    pub fn lasts(&self) -> Duration {
        self.chunks().last().map_or(self.ttft, |chunk| chunk.due)
    }

    fn chunks(&self) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let mut start = 0;
        while start < self.num_tokens {
            // A chunk holds one kind of text.
            let border =
                if start < self.num_reasoning { self.num_reasoning } else { self.num_tokens };
            let num_tokens = self.tokens_per_chunk.max(1).min(border.min(self.num_tokens) - start);
            let end = start + num_tokens;
            let late = self.stall.filter(|stall| stall.at_token < end);
            chunks.push(Chunk {
                due: self.ttft
                    + self.gap * start
                    + late.map_or(Duration::ZERO, |stall| stall.lasts),
                kind: if start < self.num_reasoning {
                    EventKind::Reasoning
                } else {
                    EventKind::Content
                },
                num_tokens,
            });
            start = end;
        }
        chunks
    }

    /// The streamed answer, response head included.
    pub(super) fn stream(&self) -> Vec<Step> {
        // The head alone is in no hurry: while it is written, requests of the
        // same burst would wait to be read.
        let due = if self.early_role { Duration::ZERO } else { self.ttft / 2 };
        let mut opening = Step { due, bytes: head(), marks: Vec::new() };
        if self.early_role {
            opening.append(&role(), EventKind::Empty, 0);
        }
        let chunks = self.chunks();
        let per_write = match self.delivery {
            Delivery::Merged(chunks) => chunks.max(1) as usize,
            Delivery::Whole | Delivery::Split(_) => 1,
        };
        let mut steps = vec![opening];
        for (number, group) in chunks.chunks(per_write).enumerate() {
            let mut write = Step { due: group[0].due, bytes: Vec::new(), marks: Vec::new() };
            if number == 0 && !self.early_role {
                write.append(&role(), EventKind::Empty, 0);
            }
            for chunk in group {
                write.append(&token(chunk), chunk.kind, chunk.num_tokens);
            }
            match self.delivery {
                Delivery::Split(pieces) => steps.extend(write.cut(pieces)),
                Delivery::Whole | Delivery::Merged(_) => steps.push(write),
            }
        }
        let due = steps.last().map_or(Duration::ZERO, |step| step.due);
        let mut tail = Step { due, bytes: Vec::new(), marks: Vec::new() };
        tail.append(
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
            EventKind::Finish,
            0,
        );
        if self.usage {
            tail.append(&self.usage_chunk(), EventKind::Usage, 0);
        }
        tail.bytes.extend_from_slice(&frame("data: [DONE]\n\n"));
        tail.bytes.extend_from_slice(b"0\r\n\r\n");
        steps.push(tail);
        steps
    }

    /// The answer to a request that wants no stream: whole, when its last token is due.
    pub(super) fn whole(&self) -> Vec<Step> {
        let text = " token".repeat(self.num_tokens as usize);
        let body = format!(
            r#"{{"id":"chatcmpl-scripted","object":"chat.completion","created":0,"model":"{MODEL}","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"length"}}],"usage":{}}}"#,
            self.usage_object(),
        );
        let bytes = json_answer("200 OK", &body);
        vec![Step { due: self.lasts(), bytes, marks: Vec::new() }]
    }

    fn usage_object(&self) -> String {
        format!(
            r#"{{"prompt_tokens":{PROMPT_TOKENS},"completion_tokens":{},"total_tokens":{}}}"#,
            self.num_tokens,
            PROMPT_TOKENS + self.num_tokens
        )
    }

    fn usage_chunk(&self) -> String {
        format!(r#"{{"choices":[],"usage":{}}}"#, self.usage_object())
    }
}

/// The model's name as the server lists it.
pub(super) const MODEL: &str = "scripted";

fn head() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        .to_vec()
}

/// A whole answer of JSON.
pub(super) fn json_answer(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn role() -> String {
    chunk_object(r#"{"role":"assistant","content":""}"#)
}

fn token(chunk: &Chunk) -> String {
    let text = " token".repeat(chunk.num_tokens as usize);
    let field = if chunk.kind == EventKind::Reasoning { "reasoning_content" } else { "content" };
    chunk_object(&format!(r#"{{"{field}":"{text}"}}"#))
}

/// As long as a chunk of vLLM: what a client does with it should cost what it costs there.
fn chunk_object(delta: &str) -> String {
    format!(
        r#"{{"id":"chatcmpl-b0cba94cc9143370","object":"chat.completion.chunk","created":1795487212,"model":"{MODEL}","choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":null,"token_ids":null}}]}}"#
    )
}

/// An HTTP chunk of its own, as servers write events.
fn frame(event: &str) -> Vec<u8> {
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

impl Step {
    fn append(&mut self, data: &str, kind: EventKind, num_tokens: u32) {
        self.bytes.extend_from_slice(&frame(&format!("data: {data}\n\n")));
        // What the event needs ends two bytes earlier, but no server writes those apart.
        self.marks.push(Mark { end: self.bytes.len(), kind, num_tokens });
    }

    /// The same bytes in `pieces` writes of about the same length.
    fn cut(self, pieces: u32) -> Vec<Self> {
        let pieces = pieces.max(1) as usize;
        let len = self.bytes.len();
        let bounds: Vec<usize> = (0..=pieces).map(|piece| len * piece / pieces).collect();
        let mut due = self.due;
        let mut steps = Vec::new();
        for pair in bounds.windows(2) {
            let (start, end) = (pair[0], pair[1]);
            let marks = self.marks.iter().filter(|mark| mark.end > start && mark.end <= end);
            steps.push(Self {
                due,
                bytes: self.bytes[start..end].to_vec(),
                marks: marks.map(|mark| Mark { end: mark.end - start, ..*mark }).collect(),
            });
            due += PIECE_PAUSE;
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(script: &Script) -> Vec<(u64, u32)> {
        let steps = script.stream();
        let marks = steps.iter().flat_map(|step| step.marks.iter().map(move |mark| (step, mark)));
        let tokens = marks.filter(|(_, mark)| mark.kind.is_token());
        tokens.map(|(step, mark)| (step.due.as_millis() as u64, mark.num_tokens)).collect()
    }

    fn short() -> Script {
        Script { num_tokens: 4, ..Script::default() }
    }

    #[test]
    fn tokens_are_due_after_ttft_and_gaps() {
        assert_eq!(tokens(&short()), [(20, 1), (25, 1), (30, 1), (35, 1)]);
        assert_eq!(short().lasts(), Duration::from_millis(35));
    }

    #[test]
    fn stall_delays_its_token_and_all_after_it() {
        let stall = Stall { at_token: 2, lasts: Duration::from_millis(300) };
        let script = Script { stall: Some(stall), ..short() };
        assert_eq!(tokens(&script), [(20, 1), (25, 1), (330, 1), (335, 1)]);
    }

    #[test]
    fn chunk_of_several_tokens_is_of_one_kind() {
        let script = Script { tokens_per_chunk: 3, num_reasoning: 2, ..short() };
        assert_eq!(tokens(&script), [(20, 2), (30, 2)]);
    }

    #[test]
    fn merged_chunks_share_a_write_and_split_ones_end_with_their_last_piece() {
        let merged = Script { delivery: Delivery::Merged(3), ..short() };
        assert_eq!(tokens(&merged), [(20, 1), (20, 1), (20, 1), (35, 1)]);
        let split = Script { delivery: Delivery::Split(3), ..short() };
        let (whole, pieces) = (short().stream(), split.stream());
        let bytes = |steps: &[Step]| -> Vec<u8> {
            steps.iter().flat_map(|step| step.bytes.clone()).collect()
        };
        assert_eq!(bytes(&whole), bytes(&pieces), "the same answer however it is cut");
        assert_eq!(pieces.len(), 2 + 4 * 3);
        let last = pieces[3].marks.last().unwrap();
        assert_eq!((last.end, last.kind), (pieces[3].bytes.len(), EventKind::Content));
    }

    #[test]
    fn early_role_chunk_comes_with_the_head() {
        let script = Script { early_role: true, ..short() };
        let steps = script.stream();
        assert_eq!(steps[0].due, Duration::ZERO);
        assert_eq!(steps[0].marks[0].kind, EventKind::Empty);
        let late = &short().stream()[0];
        assert!(late.marks.is_empty() && late.due == Duration::from_millis(10));
    }
}
