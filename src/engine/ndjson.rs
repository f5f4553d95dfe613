//! Newline-delimited JSON: one document a line, blank lines skipped. Knows
//! nothing of what the documents say.

use super::EngineError;
use super::line::{LineSplitter, MAX_LINE};

/// An incremental decoder; memory is bounded by [`MAX_LINE`].
#[derive(Debug)]
pub(super) struct NdjsonDecoder {
    lines: LineSplitter,
}

impl NdjsonDecoder {
    /// A decoder at the beginning of a stream.
    pub(super) const fn new() -> Self {
        Self { lines: LineSplitter::new(MAX_LINE) }
    }

    /// Hands every document that `bytes` completes to `on_document`.
    ///
    /// # Errors
    /// A line beyond the bound, or what `on_document` returns.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        mut on_document: impl FnMut(&[u8]) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        self.lines.feed(bytes, |line| if blank(line) { Ok(()) } else { on_document(line) })
    }

    /// The last document of a stream that ended without a line ending, if any.
    pub(super) fn take_rest(&mut self) -> Option<Vec<u8>> {
        self.lines.take_rest().filter(|line| !blank(line))
    }
}

fn blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn documents(reads: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut decoder = NdjsonDecoder::new();
        let mut documents = Vec::new();
        for read in reads {
            decoder
                .feed(read, |document| {
                    documents.push(document.to_vec());
                    Ok(())
                })
                .unwrap();
        }
        documents.extend(decoder.take_rest());
        documents
    }

    const STREAM: &[u8] = b"{\"a\":1}\r\n\n{\"b\":\"\xe2\x82\xac\"}\n  \r\n{\"c\":3}";

    #[test]
    fn blank_lines_are_skipped_and_the_last_needs_no_ending() {
        let got = documents(&[STREAM]);
        assert_eq!(got, [&b"{\"a\":1}"[..], "{\"b\":\"€\"}".as_bytes(), b"{\"c\":3}"]);
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_documents(first in 0..STREAM.len(), second in 0..STREAM.len()) {
            let (first, second) = (first.min(second), first.max(second));
            let reads = [&STREAM[..first], &STREAM[first..second], &STREAM[second..]];
            prop_assert_eq!(documents(&reads), documents(&[STREAM]));
        }
    }
}
