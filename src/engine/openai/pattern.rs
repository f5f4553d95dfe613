//! A chunk as a pattern for those that follow it. Servers repeat every byte of
//! a chunk but its text, two hundred bytes around five; what has been parsed
//! once need not be parsed again.

use super::chunk::Chunk;
use crate::engine::EventKind;

/// Longest chunk that is kept as a pattern, in bytes.
const MAX_PATTERN: usize = 4 << 10;

/// A chunk that carries one text and nothing else that is read: what stood
/// before that text, and after it, and what it was.
#[derive(Debug)]
pub(super) struct Pattern {
    before: Vec<u8>,
    after: Vec<u8>,
    kind: EventKind,
}

impl Pattern {
    /// The pattern of `data`, which was read as `chunk`; `None` where another
    /// chunk of that shape may need more than its text.
    pub(super) fn of(data: &[u8], chunk: &Chunk<'_>) -> Option<Self> {
        let (text, kind) = chunk.only_text()?;
        if data.len() > MAX_PATTERN {
            return None;
        }
        // The text lies within the data: it was borrowed from it.
        let start = (text.as_ptr() as usize).checked_sub(data.as_ptr() as usize)?;
        let end = start.checked_add(text.len())?;
        let (before, after) = (data[..start].to_vec(), data.get(end..)?.to_vec());
        (data[start..end] == *text.as_bytes()).then_some(Self { before, after, kind })
    }

    /// The text of `data`, if that is all in which it differs. Between the same
    /// bytes a text without quotes, escapes and control characters is again one
    /// JSON string, and what is around it means what it meant.
    pub(super) fn text_of<'a>(&self, data: &'a [u8]) -> Option<(&'a str, EventKind)> {
        let text = data.strip_prefix(self.before.as_slice())?;
        let text = text.strip_suffix(self.after.as_slice())?;
        let plain = |byte: &u8| *byte >= 0x20 && *byte != b'"' && *byte != b'\\';
        // An empty text is no token, which the full reading knows.
        let whole = !text.is_empty() && text.iter().all(plain);
        let text = std::str::from_utf8(text).ok().filter(|_| whole)?;
        Some((text, self.kind))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(data: &str) -> Option<Pattern> {
        Pattern::of(data.as_bytes(), &serde_json::from_str(data).unwrap())
    }

    const CHAT: [&str; 2] =
        [r#"{"id":"x","choices":[{"delta":{"content":""#, r#""},"finish_reason":null}]}"#];

    #[test]
    fn chunk_with_more_than_a_text_is_no_pattern() {
        assert!(pattern(&CHAT.join("a")).is_some());
        assert!(pattern(r#"{"choices":[{"text":"a"}],"usage":null}"#).is_some());
        let reasoning = r#"{"choices":[{"delta":{"content":"","reasoning":"a"}}]}"#;
        let found = pattern(reasoning).unwrap();
        assert_eq!(found.text_of(reasoning.as_bytes()), Some(("a", EventKind::Reasoning)));
        for other in [
            &CHAT.join(""),
            &CHAT.join(r"\n"),
            r#"{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"delta":{"content":"a"}}],"usage":{"completion_tokens":1}}"#,
            r#"{"choices":[{"delta":{"content":"a"}}],"timings":{"predicted_n":1}}"#,
            r#"{"choices":[{"delta":{"content":"a","reasoning":"b"}}]}"#,
            r#"{"choices":[{"delta":{"content":"a","tool_calls":[1]}}]}"#,
            r#"{"choices":[{"delta":{"content":"a"},"text":"b"}]}"#,
            r#"{"choices":[{"text":"a"},{"text":"b"}]}"#,
            r#"{"choices":[{"delta":{"reasoning":"a","reasoning_content":"a"}}]}"#,
            r#"{"choices":[]}"#,
        ] {
            assert!(pattern(other).is_none(), "{other}");
        }
    }

    #[test]
    fn text_that_could_end_the_string_is_read_in_full() {
        let pattern = pattern(&CHAT.join("a")).unwrap();
        for text in ["", r#"a","x":"b"#, r"\u0041", "\n"] {
            assert_eq!(pattern.text_of(CHAT.join(text).as_bytes()), None, "{text}");
        }
        // Before and after may not share bytes.
        assert_eq!(pattern.text_of(&CHAT.concat().as_bytes()[..CHAT.concat().len() - 1]), None);
        let broken = [CHAT[0].as_bytes(), b"\xe2\x82", CHAT[1].as_bytes()].concat();
        assert_eq!(pattern.text_of(&broken), None, "half a character");
    }

    proptest! {
        #[test]
        fn pattern_reads_what_a_full_reading_reads(text in "\\PC{0,12}", other in "[a-z\"\\\\€ ]{1,5}") {
            let first = CHAT.join(&other.replace(['"', '\\'], "q"));
            let data = CHAT.join(&text);
            if let Some(found) = pattern(&first).unwrap().text_of(data.as_bytes()) {
                let chunk: Chunk<'_> = serde_json::from_str(&data).unwrap();
                prop_assert_eq!(chunk.only_text(), Some(found));
            }
        }
    }
}
