//! One HTTP/1.1 connection, driven by whoever waits on it: writes a request,
//! hands out the body of the answer as it is read, stamps both. Knows bytes
//! and instants, no engine.
//!
//! Stamp, then parse: an instant is taken as `read` returns, and every part
//! that those bytes hold carries it. There is one read a part at most, no task
//! beside the request's own, and no timer: see [`super::patience`].

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::patience::Patience;
use super::reply::{Garbled, Head, Piece, ReplyParser};
use super::socket::Socket;
use crate::clock::{Clock, Timestamp};

/// Bytes that are read at once.
const BUFFER: usize = 16 << 10;

/// A request as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outgoing {
    /// Its path, for messages about it.
    pub(super) path: String,
    /// Head and body.
    pub(super) bytes: Vec<u8>,
}

/// Why an exchange on a connection ended.
#[derive(Debug)]
pub(super) enum LinkError {
    /// No byte came for as long as was to be waited.
    Idle,
    /// Bytes came for as long as was to be waited, and nothing whole of them.
    Stalled,
    /// The connection ended before the answer did.
    Closed,
    /// What the system says, or TLS.
    Io(io::Error),
    /// The answer is no HTTP/1.1.
    Garbled(String),
}

/// A part of an answer's body.
#[derive(Debug)]
pub(super) struct Part<'a> {
    /// As the read that brought its last byte returned.
    pub(super) at: Timestamp,
    pub(super) bytes: &'a [u8],
}

/// A connection with one request on it at a time.
pub(super) struct Link {
    socket: Box<dyn Socket>,
    clock: Clock,
    parser: ReplyParser,
    buffer: Vec<u8>,
    /// What of the buffer is read and not parsed.
    start: usize,
    end: usize,
    /// Longest wait for the next byte.
    idle: Duration,
    patience: Patience,
    /// The last poll found nothing to do.
    was_woken_for_nothing: bool,
    /// An earlier request was answered on it.
    is_reused: bool,
    /// Of this request's answer a byte has come.
    has_heard: bool,
    /// The connection has ended, or failed.
    is_broken: bool,
    sent_at: Option<Timestamp>,
    head_at: Option<Timestamp>,
    /// The last sign of life: of the connection, then of the answer.
    last_at: Timestamp,
}

impl Link {
    /// Speaks HTTP over `socket`; sends nothing. Over TLS the instants are
    /// those of the decrypted bytes.
    pub(super) fn new(socket: Box<dyn Socket>, clock: Clock, idle: Duration) -> Self {
        let last_at = clock.now();
        Self {
            socket,
            clock,
            parser: ReplyParser::new(),
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            idle,
            patience: Patience::new(idle),
            was_woken_for_nothing: false,
            is_reused: false,
            has_heard: false,
            is_broken: false,
            sent_at: None,
            head_at: None,
            last_at,
        }
    }

    /// The connection for another request, where its answer has ended and the server
    /// leaves it open.
    pub(super) fn renewed(mut self) -> Option<Self> {
        if !self.parser.leaves_open() || self.is_broken || self.start != self.end {
            return None;
        }
        self.parser = ReplyParser::new();
        (self.start, self.end) = (0, 0);
        (self.sent_at, self.head_at) = (None, None);
        (self.is_reused, self.has_heard, self.was_woken_for_nothing) = (true, false, false);
        Some(self)
    }

    /// Whether a connection that waits has nothing to read: neither its end, nor bytes
    /// that nobody asked for.
    pub(super) async fn is_quiet(&mut self) -> bool {
        poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut self.buffer);
            Poll::Ready(Pin::new(&mut self.socket).poll_read(cx, &mut buffer).is_pending())
        })
        .await
    }

    /// Whether the server had closed the connection before this request came on it.
    pub(super) const fn was_stale(&self) -> bool {
        self.is_reused && self.is_broken && !self.has_heard
    }

    /// As the first byte of the request was handed to the socket.
    pub(super) const fn sent_at(&self) -> Option<Timestamp> {
        self.sent_at
    }

    /// As the read that brought the end of the response head returned.
    pub(super) const fn head_at(&self) -> Option<Timestamp> {
        self.head_at
    }

    /// As the latest read that brought bytes returned; before the first, when
    /// the request was released.
    pub(super) const fn last_read_at(&self) -> Timestamp {
        self.last_at
    }

    /// Sends `request` and waits for the head of the answer.
    pub(super) async fn send(&mut self, request: &Outgoing) -> Result<Head, LinkError> {
        self.last_at = self.clock.now();
        self.patience.renew();
        let written = poll_fn({
            let mut num_written = 0;
            let link = &mut *self;
            move |cx| link.poll_write(&request.bytes, &mut num_written, cx)
        })
        .await;
        if let Err(error) = written {
            // A server may refuse a request before it has read it whole, and say why.
            return match (self.sent_at, error) {
                (Some(_), LinkError::Io(error)) => {
                    self.head().await.map_err(|_| LinkError::Io(error))
                }
                (_, error) => Err(error),
            };
        }
        self.head().await
    }

    /// Longest wait for the next byte, and for something whole.
    pub(super) const fn idle(&self) -> Duration {
        self.idle
    }

    async fn head(&mut self) -> Result<Head, LinkError> {
        let begun = self.last_at;
        loop {
            let (taken, piece) = self.parser.feed(&self.buffer[self.start..self.end])?;
            self.start += taken;
            if let Piece::Head(head) = piece {
                self.head_at = Some(self.last_at);
                return Ok(head);
            }
            if self.fill().await? == 0 {
                return Err(LinkError::Closed);
            }
            if self.last_at.since(begun) > self.idle {
                return Err(LinkError::Stalled);
            }
        }
    }

    /// The next part of the body, or `None` at its end.
    pub(super) async fn next(&mut self) -> Result<Option<Part<'_>>, LinkError> {
        loop {
            let (taken, piece) = self.parser.feed(&self.buffer[self.start..self.end])?;
            self.start += taken;
            match piece {
                Piece::Data(len) => {
                    let bytes = &self.buffer[self.start - len..self.start];
                    return Ok(Some(Part { at: self.last_at, bytes }));
                }
                Piece::End => return Ok(None),
                Piece::More | Piece::Head(_) => {}
            }
            if self.start == self.end && self.fill().await? == 0 {
                let whole = self.parser.is_whole_at_close();
                return if whole { Ok(None) } else { Err(LinkError::Closed) };
            }
        }
    }

    /// The body up to `limit` bytes, and whether that is all of it.
    pub(super) async fn read_body(&mut self, limit: usize) -> Result<(Vec<u8>, bool), LinkError> {
        let mut bytes = Vec::new();
        while let Some(part) = self.next().await? {
            let room = limit - bytes.len();
            bytes.extend_from_slice(&part.bytes[..part.bytes.len().min(room)]);
            if part.bytes.len() > room {
                return Ok((bytes, false));
            }
        }
        Ok((bytes, true))
    }

    /// Reads once, over what was parsed; 0 at the end of the connection.
    fn fill(&mut self) -> impl Future<Output = Result<usize, LinkError>> + '_ {
        poll_fn(|cx| self.poll_fill(cx))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, LinkError>> {
        let mut buffer = ReadBuf::new(&mut self.buffer);
        match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => {
                let count = buffer.filled().len();
                if count > 0 {
                    self.last_at = self.clock.now();
                    self.patience.renew();
                    self.has_heard = true;
                } else {
                    self.is_broken = true;
                }
                self.was_woken_for_nothing = false;
                (self.start, self.end) = (0, count);
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => {
                self.is_broken = true;
                Poll::Ready(Err(LinkError::Io(error)))
            }
            Poll::Pending => self.poll_idle(cx),
        }
    }

    fn poll_write(
        &mut self,
        bytes: &[u8],
        num_written: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), LinkError>> {
        while *num_written < bytes.len() {
            let at = self.clock.now();
            match Pin::new(&mut self.socket).poll_write(cx, &bytes[*num_written..]) {
                Poll::Ready(Ok(0)) => {
                    self.is_broken = true;
                    return Poll::Ready(Err(LinkError::Closed));
                }
                Poll::Ready(Ok(count)) => {
                    self.sent_at.get_or_insert(at);
                    *num_written += count;
                }
                Poll::Ready(Err(error)) => {
                    self.is_broken = true;
                    return Poll::Ready(Err(LinkError::Io(error)));
                }
                Poll::Pending => return self.poll_idle(cx).map_ok(|()| ()),
            }
        }
        match ready!(Pin::new(&mut self.socket).poll_flush(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(LinkError::Io(error))),
        }
    }

    /// Ready, with an error, once nothing has come for too long.
    fn poll_idle<T>(&mut self, cx: &Context<'_>) -> Poll<Result<T, LinkError>> {
        if let Err(error) = self.patience.wait(cx) {
            return Poll::Ready(Err(LinkError::Io(error)));
        }
        // Only a wake-up that brought nothing may be the one that it was asked for.
        let is_over =
            self.was_woken_for_nothing && self.clock.now().since(self.last_at) >= self.idle;
        self.was_woken_for_nothing = true;
        if is_over { Poll::Ready(Err(LinkError::Idle)) } else { Poll::Pending }
    }
}

impl From<Garbled> for LinkError {
    fn from(error: Garbled) -> Self {
        Self::Garbled(error.0)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const IDLE: Duration = Duration::from_secs(300);

    fn request() -> Outgoing {
        Outgoing { path: "/".to_owned(), bytes: b"GET / HTTP/1.1\r\n\r\n".to_vec() }
    }

    #[tokio::test]
    async fn head_is_stamped_by_the_read_that_ends_it_and_the_sending_by_its_first_write() {
        let clock = Clock::manual();
        // The request does not fit at once: it is sent in several writes.
        let (near, mut far) = tokio::io::duplex(8);
        let mut link = Link::new(Box::new(near), clock.clone(), IDLE);
        assert_eq!(link.sent_at(), None);
        clock.advance(Duration::from_millis(5));
        let serving = async {
            let mut asked = [0; 18];
            for byte in &mut asked {
                far.read_exact(std::slice::from_mut(byte)).await.unwrap();
                clock.advance(Duration::from_micros(1));
            }
            for part in ["HTTP/1.1", " 200 OK\r", "\n\r", "\nbody"] {
                clock.advance(Duration::from_millis(1));
                far.write_all(part.as_bytes()).await.unwrap();
                // Until it was read.
                tokio::task::yield_now().await;
            }
            far
        };
        let asking = async { link.send(&request()).await.unwrap() };
        let (head, far) = tokio::join!(asking, serving);
        assert_eq!(head.status, 200);
        assert_eq!(link.sent_at().map(Timestamp::as_nanos), Some(5_000_000));
        assert_eq!(link.head_at().map(Timestamp::as_nanos), Some(9_018_000));
        drop(far);
        let part = link.next().await.unwrap().unwrap();
        assert_eq!((part.bytes, part.at.as_nanos()), (b"body".as_slice(), 9_018_000));
        assert!(link.next().await.unwrap().is_none(), "it ends with the connection");
    }

    #[tokio::test]
    async fn refusal_before_the_request_was_read_is_the_answer() {
        let (near, mut far) = tokio::io::duplex(32);
        let mut link = Link::new(Box::new(near), Clock::manual(), IDLE);
        let long = Outgoing { bytes: vec![b'x'; 200], ..request() };
        let refusing = async move {
            far.read_exact(&mut [0; 4]).await.unwrap();
            far.write_all(b"HTTP/1.1 413 Long\r\n\r\n").await.unwrap();
        };
        let (sent, ()) = tokio::join!(link.send(&long), refusing);
        assert_eq!(sent.unwrap().status, 413);
        let (near, far) = tokio::io::duplex(32);
        drop(far);
        let mut link = Link::new(Box::new(near), Clock::manual(), IDLE);
        assert!(link.send(&long).await.is_err());
        assert_eq!(link.sent_at(), None, "nothing was sent");
    }
}
