//! An HTTP/1.1 response out of the bytes of a connection, however they were
//! cut. Hands out ranges of the bytes it is given and copies no body; bounded.
//! Knows no socket and no instant.

use hyper::StatusCode;

/// Longest response head, and longest trailer, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// Longest line that gives a chunk's size, in bytes.
const MAX_CHUNK_LINE: usize = 4 << 10;

/// The head of a response, as far as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<Vec<u8>>,
    /// When the server says that it answered.
    pub(crate) date: Option<Vec<u8>>,
}

/// What the next bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Nothing whole: more bytes are needed.
    More,
    /// The head has ended with the bytes taken.
    Head(Head),
    /// The last so many of the bytes taken belong to the body.
    Data(usize),
    /// The response has ended with the bytes taken.
    End,
}

/// Not HTTP/1.1; why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Garbled(pub(crate) String);

/// Reads one response.
#[derive(Debug)]
pub(crate) struct ReplyParser {
    state: State,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// Bytes of the head, or of the trailer, so far.
    num_bytes: usize,
    status: StatusCode,
    content_type: Option<Vec<u8>>,
    date: Option<Vec<u8>>,
    length: Option<u64>,
    chunked: bool,
    /// The server closes the connection after this response.
    closes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    StatusLine,
    HeaderLine,
    /// So many bytes of the body are left.
    Fixed(u64),
    UntilClose,
    ChunkSize,
    /// So many bytes of the chunk are left.
    Chunk(u64),
    ChunkEnd,
    Trailer,
    Done,
}

impl ReplyParser {
    pub(crate) const fn new() -> Self {
        Self {
            state: State::StatusLine,
            line: Vec::new(),
            num_bytes: 0,
            status: StatusCode::OK,
            content_type: None,
            date: None,
            length: None,
            chunked: false,
            closes: false,
        }
    }

    /// Takes a number of `bytes` and says what they are. With [`Piece::More`]
    /// it has taken all of them.
    ///
    /// # Errors
    /// When the bytes are no HTTP/1.1, or beyond the bounds.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(usize, Piece), Garbled> {
        let mut taken = 0;
        loop {
            let rest = &bytes[taken..];
            match self.state {
                State::Done => return Ok((taken, Piece::End)),
                State::Fixed(left) | State::Chunk(left) if !rest.is_empty() => {
                    let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    self.state = match (self.state, left - len as u64) {
                        (State::Fixed(_), 0) => State::Done,
                        (State::Fixed(_), left) => State::Fixed(left),
                        (_, 0) => State::ChunkEnd,
                        (_, left) => State::Chunk(left),
                    };
                    return Ok((taken + len, Piece::Data(len)));
                }
                State::UntilClose if !rest.is_empty() => {
                    return Ok((bytes.len(), Piece::Data(rest.len())));
                }
                State::Fixed(_) | State::Chunk(_) | State::UntilClose => {
                    return Ok((taken, Piece::More));
                }
                State::ChunkEnd if self.line.is_empty() && rest.starts_with(b"\r\n") => {
                    self.state = State::ChunkSize;
                    taken += 2;
                }
                State::StatusLine
                | State::HeaderLine
                | State::ChunkSize
                | State::ChunkEnd
                | State::Trailer => {
                    let (len, whole) = self.take_line(rest)?;
                    taken += len;
                    if !whole {
                        return Ok((taken, Piece::More));
                    }
                    let head = self.line_is_whole()?;
                    self.line.clear();
                    if let Some(head) = head {
                        return Ok((taken, Piece::Head(head)));
                    }
                }
            }
        }
    }

    /// The connection has ended: whether the response had.
    pub(super) fn is_whole_at_close(&self) -> bool {
        matches!(self.state, State::UntilClose | State::Done)
    }

    /// The response has ended, and another may follow on the connection (RFC 9112, section 9.3).
    pub(super) fn leaves_open(&self) -> bool {
        self.state == State::Done && !self.closes
    }

    /// Puts the line together; its ending is not kept.
    fn take_line(&mut self, bytes: &[u8]) -> Result<(usize, bool), Garbled> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        self.line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
        let limit = match self.state {
            State::ChunkSize | State::ChunkEnd => MAX_CHUNK_LINE,
            _ => MAX_HEAD,
        };
        if self.line.len() > limit || self.num_bytes + self.line.len() > MAX_HEAD {
            return Err(Garbled(format!("a head or chunk line of more than {limit} bytes")));
        }
        if self.state == State::StatusLine {
            const PROTOCOL: &[u8] = b"HTTP/1.";
            let known = self.line.len().min(PROTOCOL.len());
            // Told at once: what speaks another protocol may wait for us to speak.
            if self.line[..known] != PROTOCOL[..known] {
                return Err(Garbled("its answer does not begin with HTTP/1".to_owned()));
            }
        }
        let Some(end) = end else { return Ok((bytes.len(), false)) };
        if self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        Ok((end + 1, true))
    }

    /// Goes on after a whole line; the head, if it has ended.
    fn line_is_whole(&mut self) -> Result<Option<Head>, Garbled> {
        match self.state {
            State::StatusLine => {
                let text = String::from_utf8_lossy(&self.line);
                let code = text.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
                self.status = code
                    .filter(|_| text.len() > "HTTP/1.".len())
                    .and_then(|code| StatusCode::from_u16(code).ok())
                    .ok_or_else(|| Garbled("its status line has no status".to_owned()))?;
                self.closes = text.starts_with("HTTP/1.0");
                self.state = State::HeaderLine;
            }
            State::HeaderLine if self.line.is_empty() => return Ok(self.head_is_whole()),
            State::HeaderLine => {
                self.num_bytes += self.line.len();
                self.header()?;
            }
            State::ChunkSize => {
                let size = self.line.split(|byte| *byte == b';').next().unwrap_or_default();
                let size = std::str::from_utf8(size.trim_ascii()).ok();
                let size = size
                    // `from_str_radix` would take a sign.
                    .filter(|size| size.bytes().all(|byte| byte.is_ascii_hexdigit()))
                    .and_then(|size| u64::from_str_radix(size, 16).ok())
                    .ok_or_else(|| Garbled("a chunk has no size".to_owned()))?;
                self.state = if size == 0 { State::Trailer } else { State::Chunk(size) };
            }
            State::ChunkEnd if self.line.is_empty() => self.state = State::ChunkSize,
            State::ChunkEnd => {
                return Err(Garbled("a chunk is longer than its size".to_owned()));
            }
            State::Trailer if self.line.is_empty() => self.state = State::Done,
            State::Trailer => self.num_bytes += self.line.len(),
            State::Fixed(_) | State::UntilClose | State::Chunk(_) | State::Done => {}
        }
        Ok(None)
    }

    fn header(&mut self) -> Result<(), Garbled> {
        let Some(colon) = self.line.iter().position(|byte| *byte == b':') else {
            return Err(Garbled("a header has no colon".to_owned()));
        };
        let (name, value) = (&self.line[..colon], self.line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-type") {
            self.content_type = Some(value.to_vec());
        } else if name.eq_ignore_ascii_case(b"connection") {
            let mut options = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            self.closes |= options.any(|option| option.eq_ignore_ascii_case(b"close"));
        } else if name.eq_ignore_ascii_case(b"date") {
            self.date = Some(value.to_vec());
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let text = std::str::from_utf8(value).ok();
            let length = text
                .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|text| text.parse().ok());
            let same = self.length.is_none() || self.length == length;
            self.length = Some(
                length.filter(|_| same).ok_or_else(|| Garbled("its length is none".to_owned()))?,
            );
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") {
                let what = String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned();
                return Err(Garbled(format!("its transfer encoding is {what}")));
            }
            self.chunked = true;
        }
        Ok(())
    }

    /// Decides how the body ends (RFC 9112, section 6.3); `None` after an interim head.
    fn head_is_whole(&mut self) -> Option<Head> {
        self.num_bytes = 0;
        if self.status.is_informational() {
            let Self { line, .. } = std::mem::replace(self, Self::new());
            self.line = line;
            return None;
        }
        let empty = matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.state = match (empty, self.chunked, self.length) {
            (true, _, _) | (false, false, Some(0)) => State::Done,
            (false, true, _) => State::ChunkSize,
            (false, false, Some(length)) => State::Fixed(length),
            (false, false, None) => State::UntilClose,
        };
        let (content_type, date) = (self.content_type.take(), self.date.take());
        Some(Head { status: self.status, content_type, date })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The head, the body, and whether it ended, from `bytes` cut at `cuts`.
    fn read(bytes: &[u8], cuts: &[usize]) -> Result<(Option<Head>, Vec<u8>, bool), Garbled> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let (mut parser, mut head, mut body) = (ReplyParser::new(), None, Vec::new());
        for pair in cuts.windows(2) {
            let mut part = &bytes[pair[0]..pair[1]];
            loop {
                let (taken, piece) = parser.feed(part)?;
                match piece {
                    Piece::More => {
                        assert_eq!(taken, part.len());
                        break;
                    }
                    Piece::Head(found) => head = Some(found),
                    Piece::Data(len) => body.extend_from_slice(&part[taken - len..taken]),
                    Piece::End => return Ok((head, body, true)),
                }
                part = &part[taken..];
            }
        }
        Ok((head, body, parser.is_whole_at_close()))
    }

    const CHUNKED: &[u8] = b"HTTP/1.1 100 Continue\r\na: b\r\n\r\nHTTP/1.1 200 OK\r\n\
        Content-Type: text/event-stream\r\nTransfer-Encoding: Chunked\r\n\r\n\
        5\r\nhello\r\n1;ext=\"x\"\r\n \r\nA\r\nwide\nworld\r\n0\r\ntrailer: x\r\n\r\n";

    #[test]
    fn body_ends_as_its_head_says() {
        let body = |text: &str| {
            let (_, body, whole) = read(text.as_bytes(), &[]).unwrap();
            (String::from_utf8(body).unwrap(), whole)
        };
        let owned = |text: &str, whole| (text.to_owned(), whole);
        assert_eq!(body("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokay"), owned("ok", true));
        assert_eq!(body("HTTP/1.0 200 OK\n\nto the end"), owned("to the end", true));
        assert_eq!(body("HTTP/1.1 204 None\r\n\r\n"), owned("", true));
        assert_eq!(body("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"), owned("ok", false));
        let cut = &CHUNKED[..CHUNKED.len() - 20];
        assert!(!read(cut, &[]).unwrap().2);
        assert!(!read(b"HTTP/1.1 200 OK\r\n", &[]).unwrap().2);
    }

    #[test]
    fn connection_stays_open_after_an_answer_that_ended_unless_the_server_closes_it() {
        let leaves_open = |text: &str| {
            let mut parser = ReplyParser::new();
            let mut rest = text.as_bytes();
            loop {
                let (taken, piece) = parser.feed(rest).unwrap();
                rest = &rest[taken..];
                if matches!(piece, Piece::More | Piece::End) {
                    return parser.leaves_open();
                }
            }
        };
        for (head, body, expected) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2", "ok", true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked", "0\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive", "ok", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x, Close", "ok", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 2", "ok", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2", "o", false),
            ("HTTP/1.1 200 OK", "to the end", false),
        ] {
            assert_eq!(leaves_open(&format!("{head}\r\n\r\n{body}")), expected, "{head}");
        }
    }

    #[test]
    fn what_is_no_http_is_told_with_its_reason() {
        let why = |text: &str| read(text.as_bytes(), &[]).unwrap_err().0;
        assert!(why("SSH-2.0-OpenSSH\r\n").contains("begin with HTTP/1"));
        assert!(why("S").contains("begin with HTTP/1"), "told before the line ends");
        assert!(why("HTTP/1.1 abc\r\n").contains("no status"));
        assert!(why("HTTP/1.1 200 OK\r\nnonsense\r\n").contains("no colon"));
        assert!(why("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n").contains("length"));
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        for (body, reason) in [
            ("xyz\r\n", "no size"),
            ("+5\r\n", "no size"),
            ("ffffffffffffffffff\r\n", "no size"),
            ("1\r\nab\r\n", "longer than its size"),
        ] {
            assert!(why(&format!("{head}{body}")).contains(reason), "{body}");
        }
        let gzip = "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n";
        assert!(why(gzip).contains("encoding is gzip"));
        let twice = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n";
        assert!(why(twice).contains("length"));
    }

    #[test]
    fn head_lines_and_trailers_are_bounded() {
        let long = "x".repeat(MAX_HEAD + 1);
        assert!(read(format!("HTTP/1.1 200 {long}").as_bytes(), &[]).is_err());
        let many = "a: b\r\n".repeat(MAX_HEAD / 4);
        assert!(read(format!("HTTP/1.1 200 OK\r\n{many}").as_bytes(), &[]).is_err());
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(
            read(format!("{chunked}{}", "0".repeat(MAX_CHUNK_LINE + 1)).as_bytes(), &[]).is_err()
        );
        assert!(read(format!("{chunked}0\r\n{many}").as_bytes(), &[]).is_err());
    }

    proptest! {
        #[test]
        fn any_cuts_give_the_same_response(cuts in prop::collection::vec(any::<usize>(), 0..40)) {
            let (head, body, whole) = read(CHUNKED, &cuts).unwrap();
            let head = head.unwrap();
            prop_assert_eq!(head.status, StatusCode::OK);
            prop_assert_eq!(head.content_type.as_deref(), Some(b"text/event-stream".as_slice()));
            prop_assert_eq!(body.as_slice(), b"hello wide\nworld");
            prop_assert!(whole);
        }

        #[test]
        fn no_bytes_make_it_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            prefix in prop::sample::select(vec!["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]),
            cuts in prop::collection::vec(any::<usize>(), 0..5),
        ) {
            let _ = read(&[prefix.as_bytes(), &bytes].concat(), &cuts);
        }
    }
}
