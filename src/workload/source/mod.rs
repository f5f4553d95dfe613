//! Files that requests are taken from: datasets of conversations and traces of
//! what a service once met. Everything in them is hostile until parsed: sizes
//! are bounded, and what is wrong is named by its line.

mod burstgpt;
mod mooncake;
mod requests;
mod sharegpt;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

use crate::load::arrival::MAX_ARRIVALS;
use crate::plan::Plan;
use crate::plan::load::SourceFormat;

/// Conversations that are kept of a file.
const MAX_CONVERSATIONS: usize = MAX_ARRIVALS as usize;
/// Longest line of a trace, in bytes: Mooncake lists a block id for each 512 tokens.
const MAX_LINE: u64 = 4 << 20;
/// Longest prompt or answer that a file may ask for, in tokens.
const MAX_TOKENS: u64 = 1 << 20;

/// A conversation of a file: one turn in every trace.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conversation {
    /// When it began, in the file's own time; zero in datasets.
    pub at: Duration,
    /// At least one.
    pub turns: Vec<Turn>,
}

/// What a user said, or how long it was.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// The words.
    Text {
        /// What was said.
        prompt: String,
        /// What was answered then: only its length is used.
        answer: String,
    },
    /// Lengths alone.
    Lengths {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens of the answer.
        output_tokens: u32,
        /// Ids of the prompt's blocks of [`BLOCK_TOKENS`]; equal ids, equal tokens.
        blocks: Vec<u64>,
    },
}

/// Tokens of a block in Mooncake's traces.
pub const BLOCK_TOKENS: u32 = 512;

/// A file that cannot be used.
#[derive(Debug, Error)]
pub enum SourceError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{} line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Expected against got.
        reason: String,
    },
    /// It holds nothing that can be used.
    #[error("{} holds no {what}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
}

/// Reads the files that the loads of `plan` name, each once.
///
/// # Errors
/// [`SourceError`] names the file and the line.
pub fn read_sources(plan: &mut Plan) -> Result<(), SourceError> {
    for load in &mut plan.loads {
        if let Some(source) = &mut load.content.source {
            source.conversations = Some(Arc::new(read(&source.path, source.format)?));
        }
    }
    Ok(())
}

/// Reads a file. Traces come in the order of their instants, at most their
/// first 100,000 requests; of a larger dataset an even sample is kept.
///
/// # Errors
/// [`SourceError`] names the file and the line.
pub fn read(path: &Path, format: SourceFormat) -> Result<Vec<Conversation>, SourceError> {
    let mut conversations = match format {
        SourceFormat::ShareGpt => sharegpt::read(path)?,
        SourceFormat::Mooncake => mooncake::read(path)?,
        SourceFormat::BurstGpt => burstgpt::read(path)?,
        SourceFormat::Requests => requests::read(path)?,
    };
    conversations.sort_by_key(|conversation| conversation.at);
    if conversations.is_empty() {
        let what = match format {
            SourceFormat::ShareGpt => "conversation that begins with a human turn",
            SourceFormat::Mooncake | SourceFormat::BurstGpt => "request with an answer",
            SourceFormat::Requests => "measured request with a known prompt length",
        };
        return Err(SourceError::Empty { path: path.to_owned(), what });
    }
    Ok(conversations)
}

/// Which conversation of a dataset is number `number` of a load.
#[must_use]
pub fn pick(seed: u64, load: u32, number: usize, count: usize) -> usize {
    let mut generator = ChaCha8Rng::seed_from_u64(seed ^ (number as u64).rotate_left(32));
    generator.set_stream((3 << 61) | u64::from(load));
    generator.random_range(0..count.max(1))
}

fn open(path: &Path) -> Result<BufReader<File>, SourceError> {
    let file = File::open(path);
    file.map(BufReader::new).map_err(|source| SourceError::Io { path: path.to_owned(), source })
}

/// Hands `each` the lines of a file by their numbers, blank ones left out,
/// until it returns `Ok(false)`.
fn lines(
    path: &Path,
    mut each: impl FnMut(usize, &str) -> Result<bool, String>,
) -> Result<(), SourceError> {
    let wrong = |line, reason| SourceError::Line { path: path.to_owned(), line, reason };
    let mut reader = open(path)?;
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let read = Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut bytes);
        let read = read.map_err(|source| SourceError::Io { path: path.to_owned(), source })?;
        if read == 0 {
            break;
        }
        if read as u64 == MAX_LINE && bytes.last() != Some(&b'\n') {
            return Err(wrong(number, format!("it is longer than {MAX_LINE} bytes")));
        }
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| wrong(number, format!("it is no UTF-8: {error}")))?;
        let text = text.trim();
        if !text.is_empty() && !each(number, text).map_err(|reason| wrong(number, reason))? {
            break;
        }
    }
    Ok(())
}

/// A length in tokens that a file asks for.
fn tokens(field: &str, value: u64) -> Result<u32, String> {
    let length = u32::try_from(value).ok().filter(|_| (1..=MAX_TOKENS).contains(&value));
    length.ok_or_else(|| format!("`{field}` is {value}: expected 1 to {MAX_TOKENS} tokens"))
}

/// An instant that a file gives in seconds.
fn seconds(field: &str, value: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| format!("`{field}` is {value}: expected seconds since a beginning"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(format: SourceFormat, name: &str, text: &str) -> Result<Vec<Conversation>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path, format)
            .map_err(|error| error.to_string().replace(&folder.path().display().to_string(), ""))
    }

    fn lengths(conversation: &Conversation) -> (u64, u32, u32, &[u64]) {
        let Turn::Lengths { prompt_tokens, output_tokens, blocks } = &conversation.turns[0] else {
            panic!("a trace has lengths");
        };
        let millis = u64::try_from(conversation.at.as_millis()).unwrap();
        (millis, *prompt_tokens, *output_tokens, blocks)
    }

    #[test]
    fn mooncake_gives_instants_lengths_and_blocks() {
        let text = "{\"timestamp\": 3000, \"input_length\": 700, \"output_length\": 5, \"hash_ids\": [1, 9]}\n\n\
                    {\"timestamp\": 1000, \"input_length\": 30, \"output_length\": 2, \"hash_ids\": [1]}\n";
        let read = of(SourceFormat::Mooncake, "m.jsonl", text).unwrap();
        assert_eq!(lengths(&read[0]), (1_000, 30, 2, &[1][..]));
        assert_eq!(lengths(&read[1]), (3_000, 700, 5, &[1, 9][..]));
    }

    #[test]
    fn bad_line_of_mooncake_is_named() {
        let good =
            "{\"timestamp\": 0, \"input_length\": 30, \"output_length\": 2, \"hash_ids\": [1]}\n";
        for (bad, expected) in [
            ("{\"timestamp\": 0}", "/m.jsonl line 2: missing field `input_length`"),
            ("nonsense", "/m.jsonl line 2: expected"),
            (
                "{\"timestamp\": -1, \"input_length\": 30, \"output_length\": 2, \"hash_ids\": []}",
                "/m.jsonl line 2: `timestamp` is -0.001",
            ),
            (
                "{\"timestamp\": 0, \"input_length\": 0, \"output_length\": 2, \"hash_ids\": []}",
                "/m.jsonl line 2: `input_length` is 0: expected 1 to",
            ),
            (
                "{\"timestamp\": 0, \"input_length\": 513, \"output_length\": 2, \"hash_ids\": [4]}",
                "/m.jsonl line 2: `hash_ids` has 1 blocks of 512 tokens: expected 2 for an \
                 `input_length` of 513",
            ),
        ] {
            let error =
                of(SourceFormat::Mooncake, "m.jsonl", &format!("{good}{bad}\n")).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = of(SourceFormat::Mooncake, "m.jsonl", "").unwrap_err();
        assert_eq!(error, "/m.jsonl holds no request with an answer");
    }

    #[test]
    fn burstgpt_is_read_by_its_column_names_and_failed_requests_are_left_out() {
        let text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
                    5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,API log\n\
                    118.5,GPT-4,417,276,693,API log\n";
        let read = of(SourceFormat::BurstGpt, "b.csv", text).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(lengths(&read[1]), (118_500, 417, 276, &[][..]));
        let error = of(SourceFormat::BurstGpt, "b.csv", "time,tokens\n1,2\n").unwrap_err();
        assert!(error.starts_with("/b.csv line 1: no column `Timestamp`"), "{error}");
        let error =
            of(SourceFormat::BurstGpt, "b.csv", &text.replace("118.5", "soon")).unwrap_err();
        assert!(error.starts_with("/b.csv line 4: `Timestamp` is `soon`: expected"), "{error}");
    }

    #[test]
    fn sharegpt_keeps_what_begins_with_a_human_in_pairs() {
        let text = r#"[{"id": "a", "conversations": [{"from": "human", "value": "hi"},
            {"from": "gpt", "value": "hello"}, {"from": "human", "value": "more"}]},
            {"id": "b", "conversations": [{"from": "gpt", "value": "hello"}]},
            {"id": "c", "conversations": [{"from": "system", "value": "be brief"},
            {"from": "user", "value": "x"}, {"from": "assistant", "value": "y"},
            {"from": "user", "value": "z"}, {"from": "assistant", "value": "w"}]}]"#;
        let read = of(SourceFormat::ShareGpt, "s.json", text).unwrap();
        let turn = |prompt: &str, answer: &str| Turn::Text {
            prompt: prompt.to_owned(),
            answer: answer.to_owned(),
        };
        assert_eq!(read[0].turns, [turn("hi", "hello")]);
        assert_eq!(read[1].turns, [turn("x", "y"), turn("z", "w")]);
        assert_eq!(read.len(), 2);
        let error = of(SourceFormat::ShareGpt, "s.json", "[\n{\"id\": 3, }]").unwrap_err();
        assert!(error.starts_with("/s.json line 2: "), "{error}");
        let error = of(SourceFormat::ShareGpt, "s.json", "{}").unwrap_err();
        assert!(error.contains("expected an array of conversations"), "{error}");
    }

    #[test]
    fn pick_is_decided_by_the_seed_and_reaches_everything() {
        let picks: Vec<_> = (0..200).map(|number| pick(1, 0, number, 10)).collect();
        assert_eq!(picks, (0..200).map(|number| pick(1, 0, number, 10)).collect::<Vec<_>>());
        assert!((0..10).all(|index| picks.contains(&index)));
    }
}
