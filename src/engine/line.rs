//! Lines of a byte stream, put together again from reads that split anywhere.
//! Bounded: a peer that never ends its line is a protocol error, not memory.

use std::io::BufRead as _;

use super::{EngineError, ErrorClass};

/// Longest line accepted from an engine, in bytes, its ending not counted.
pub(super) const MAX_LINE: usize = 1 << 20;

/// Splits at `\n`; a `\r` before it belongs to the ending. A lone `\r` ends no
/// line: JSON escapes it, and no engine ends its lines with it.
#[derive(Debug)]
pub(super) struct LineSplitter {
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    max_line: usize,
}

impl LineSplitter {
    /// A splitter that refuses lines of more than `max_line` bytes.
    pub(super) const fn new(max_line: usize) -> Self {
        Self { partial: Vec::new(), max_line }
    }

    /// Hands every line that `bytes` completes to `on_line`, without its ending.
    ///
    /// # Errors
    /// A line beyond the bound, or what `on_line` returns.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut on_line: impl FnMut(&[u8]) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        while let Some((line, rest)) = cut_line(bytes) {
            if self.partial.is_empty() {
                self.check(without_return(line).len())?;
                on_line(without_return(line))?;
            } else {
                self.partial.extend_from_slice(line);
                self.check(without_return(&self.partial).len())?;
                on_line(without_return(&self.partial))?;
                self.partial.clear();
            }
            bytes = rest;
        }
        // One byte more than the bound: it may be the `\r` of an ending that is split.
        self.check((self.partial.len() + bytes.len()).saturating_sub(1))?;
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    /// Whether the beginning of a line is waiting for its end.
    pub(super) const fn is_between_lines(&self) -> bool {
        self.partial.is_empty()
    }

    /// The last line of a stream that ended without a line ending, if any.
    pub(super) fn take_rest(&mut self) -> Option<Vec<u8>> {
        let mut rest = std::mem::take(&mut self.partial);
        rest.truncate(without_return(&rest).len());
        (!rest.is_empty()).then_some(rest)
    }

    fn check(&self, len: usize) -> Result<(), EngineError> {
        if len <= self.max_line {
            return Ok(());
        }
        Err(EngineError::new(
            ErrorClass::Protocol,
            format!("sent a line of more than {} bytes", self.max_line),
        ))
    }
}

/// The first line of `bytes` without its `\n`, and what follows it.
pub(super) fn cut_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    // Looks for the byte as fast as the C library does, which `position` does not.
    let mut rest = bytes;
    let len = rest.skip_until(b'\n').unwrap_or(0);
    let line = bytes[..len].strip_suffix(b"\n")?;
    Some((line, rest))
}

pub(super) fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(max_line: usize, reads: &[&[u8]]) -> Result<Vec<String>, EngineError> {
        let mut splitter = LineSplitter::new(max_line);
        let mut lines = Vec::new();
        for read in reads {
            splitter.feed(read, |line| {
                lines.push(String::from_utf8_lossy(line).into_owned());
                Ok(())
            })?;
        }
        lines.extend(splitter.take_rest().map(|rest| String::from_utf8_lossy(&rest).into_owned()));
        Ok(lines)
    }

    #[test]
    fn endings_may_be_split_and_missing() {
        let reads: [&[u8]; 4] = [b"a\r", b"\nb", b"c\n\n", b"d"];
        assert_eq!(lines(9, &reads).unwrap(), ["a", "bc", "", "d"]);
    }

    #[test]
    fn line_at_the_bound_passes_and_one_beyond_does_not() {
        assert_eq!(lines(4, &[b"abcd\r", b"\n"]).unwrap(), ["abcd"]);
        assert_eq!(lines(4, &[b"abcde\n"]).unwrap_err().class, ErrorClass::Protocol);
        assert!(lines(4, &[b"abc", b"def"]).is_err(), "refused before its end has come");
    }
}
