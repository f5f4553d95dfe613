//! Server-sent events, as far as engines use them: `data:` lines joined until a
//! blank line, an optional `event:` name, comments skipped. Knows no JSON.

use super::EngineError;
use super::line::{LineSplitter, MAX_LINE, cut_line, without_return};

/// Name given to what older llama.cpp servers send as an `error:` field.
pub(super) const ERROR_EVENT: &str = "error";

/// An incremental decoder; memory is bounded by [`MAX_LINE`] twice.
#[derive(Debug)]
pub(super) struct SseDecoder {
    lines: LineSplitter,
    pending: Pending,
}

/// The event whose blank line has not come.
#[derive(Debug, Default)]
struct Pending {
    data: Vec<u8>,
    has_data: bool,
    is_error: bool,
}

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SseEvent<'a> {
    /// Its `data:` lines, joined by `\n`.
    pub(super) data: &'a [u8],
    /// Whether it is named `error`.
    pub(super) is_error: bool,
}

impl SseDecoder {
    /// A decoder at the beginning of a stream.
    pub(super) fn new() -> Self {
        Self { lines: LineSplitter::new(MAX_LINE), pending: Pending::default() }
    }

    /// Hands every event that `bytes` completes to `on_event`.
    ///
    /// # Errors
    /// A line or an event beyond the bound, or what `on_event` returns.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        mut on_event: impl FnMut(SseEvent<'_>) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut bytes = bytes;
        // Nearly every read is one event of one line, whole: it is handed over as it lies there.
        while self.lines.is_between_lines() && self.pending.is_new() {
            let Some((data, rest)) = whole_event(bytes) else { break };
            on_event(SseEvent { data, is_error: false })?;
            bytes = rest;
        }
        let pending = &mut self.pending;
        self.lines.feed(bytes, |line| pending.line(line, &mut on_event))
    }

    /// Ends the stream. An event whose blank line is missing is handed over
    /// all the same: several servers stop right after `data: [DONE]`.
    ///
    /// # Errors
    /// What `on_event` returns.
    pub(super) fn finish(
        &mut self,
        mut on_event: impl FnMut(SseEvent<'_>) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        if let Some(rest) = self.lines.take_rest() {
            self.pending.line(&rest, &mut on_event)?;
        }
        self.pending.line(b"", &mut on_event)
    }
}

/// The data of an event that is one line of data and whole at the beginning of
/// `bytes`, and what follows it.
fn whole_event(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (line, rest) = cut_line(bytes.strip_prefix(b"data: ")?)?;
    let data = without_return(line);
    let rest = rest.strip_prefix(b"\n").or_else(|| rest.strip_prefix(b"\r\n"))?;
    (data.len() <= MAX_LINE).then_some((data, rest))
}

impl Pending {
    /// Whether nothing of the next event has come.
    const fn is_new(&self) -> bool {
        !self.has_data && !self.is_error
    }

    fn line(
        &mut self,
        line: &[u8],
        on_event: &mut impl FnMut(SseEvent<'_>) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        if line.is_empty() {
            let event = std::mem::take(self);
            if event.has_data {
                on_event(SseEvent { data: &event.data, is_error: event.is_error })?;
            }
            // The buffer is kept, so that a stream allocates once.
            self.data = event.data;
            self.data.clear();
            return Ok(());
        }
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &line[line.len()..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => self.append(value),
            b"error" => {
                self.is_error = true;
                self.append(value)
            }
            b"event" => {
                self.is_error = value == ERROR_EVENT.as_bytes();
                Ok(())
            }
            // `id`, `retry`, comments (an empty field name) and unknown fields
            // are ignored, as the specification of event streams says.
            _ => Ok(()),
        }
    }

    fn append(&mut self, value: &[u8]) -> Result<(), EngineError> {
        if self.has_data {
            self.data.push(b'\n');
        }
        self.has_data = true;
        self.data.extend_from_slice(value);
        if self.data.len() > MAX_LINE {
            return Err(EngineError::new(
                super::ErrorClass::Protocol,
                format!("sent an event of more than {MAX_LINE} bytes"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(reads: &[&[u8]]) -> Vec<(String, bool)> {
        let mut decoder = SseDecoder::new();
        let mut events = Vec::new();
        let mut keep = |event: SseEvent<'_>| {
            events.push((String::from_utf8_lossy(event.data).into_owned(), event.is_error));
            Ok(())
        };
        for read in reads {
            decoder.feed(read, &mut keep).unwrap();
        }
        decoder.finish(&mut keep).unwrap();
        events
    }

    const STREAM: &[u8] =
        b": ping\r\n\r\ndata: {\"a\":1}\r\n\r\nid: 7\nretry: 10\ndata:x\ndata: y\n\n\
        event: error\ndata: bad\n\nerror: {}\n\n\ndata\n\ndata: \xe2\x82\xac\n\ndata: [DONE]";

    #[test]
    fn fields_comments_and_endings_follow_the_specification() {
        let got = events(&[STREAM]);
        let got: Vec<_> = got.iter().map(|(data, error)| (data.as_str(), *error)).collect();
        assert_eq!(
            got,
            [
                ("{\"a\":1}", false),
                ("x\ny", false),
                ("bad", true),
                ("{}", true),
                ("", false),
                ("€", false),
                ("[DONE]", false)
            ]
        );
    }

    #[test]
    fn event_of_many_lines_is_bounded() {
        let mut decoder = SseDecoder::new();
        let line = [b"data: ".as_slice(), &[b'x'; 1000], b"\n"].concat();
        let result =
            (0..2000).try_for_each(|_| decoder.feed(&line, |_| panic!("no event is complete")));
        assert!(result.unwrap_err().message.contains("event of more than"));
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_events(
            cuts in prop::collection::vec(0..STREAM.len(), 0..12)
        ) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut reads = Vec::new();
            let mut start = 0;
            for cut in cuts {
                reads.push(&STREAM[start..cut]);
                start = cut;
            }
            reads.push(&STREAM[start..]);
            prop_assert_eq!(events(&reads), events(&[STREAM]));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            events(&[&bytes]);
        }
    }
}
