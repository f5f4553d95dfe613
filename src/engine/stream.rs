//! Follows one streamed answer from its release to its end, whatever the
//! engine's dialect. Knows status, content type, idle time and cancellation;
//! what the events mean is the [`Dialect`]'s.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::http::Endpoint;
use super::link::{Link, LinkError, Outgoing};
use super::reply::Head;
use super::words::quote;
use super::{EngineError, ErrorClass, Exchange, Prepared};
use crate::clock::Timestamp;

/// Longest answer, in bytes: far above [`super::event::MAX_EVENTS`] of any engine's events.
const MAX_BODY: usize = 256 << 20;
/// Longest error body that is read for its message, in bytes.
const MAX_ERROR_BODY: usize = 64 << 10;
/// How long the rest of an answer is awaited after its last event. Closing
/// before the server has written its final chunk would look like a disconnect.
const DRAIN: Duration = Duration::from_millis(250);

/// Turns the bytes of an answer into events.
pub(super) trait Dialect: Send {
    /// Content types that it reads, without parameters; the first is the usual one.
    fn content_types(&self) -> &'static [&'static str];

    /// Takes in `bytes`, all of which arrived `at`. `true` after the last event.
    ///
    /// # Errors
    /// Worded to continue "NAME at URL ...".
    fn feed(
        &mut self,
        bytes: &[u8],
        at: Timestamp,
        exchange: &mut Exchange,
    ) -> Result<bool, EngineError>;

    /// The body has ended without a last event.
    ///
    /// # Errors
    /// Where that is not a complete answer.
    fn finish(&mut self, at: Timestamp, exchange: &mut Exchange) -> Result<(), EngineError>;

    /// Adds what this engine's users can do about an error status.
    fn advise(&self, error: EngineError) -> EngineError {
        error
    }
}

/// A request that waits on its open connection.
pub(super) struct Streaming<D> {
    endpoint: Arc<Endpoint>,
    link: Link,
    request: Outgoing,
    dialect: D,
}

impl<D: Dialect> Streaming<D> {
    /// Gets the connection that `request` will leave on.
    ///
    /// # Errors
    /// When none can be opened.
    pub(super) async fn prepare(
        endpoint: Arc<Endpoint>,
        request: Outgoing,
        dialect: D,
    ) -> Result<Self, EngineError> {
        let link = match endpoint.parked.take(&endpoint.clock).await {
            Some(link) => link,
            None => endpoint.open().await?,
        };
        Ok(Self { endpoint, link, request, dialect })
    }

    /// Follows the answer to its last event. Returns whether the server may
    /// have more to say.
    async fn follow(
        endpoint: &Endpoint,
        link: &mut Link,
        request: &Outgoing,
        dialect: &mut D,
        exchange: &mut Exchange,
    ) -> Result<bool, EngineError> {
        let head = match link.send(request).await {
            Ok(head) => head,
            Err(error) => return Err(endpoint.broken(&error, link.sent_at().is_some())),
        };
        exchange.headers_at = link.head_at();
        if !head.status.is_success() {
            let body = read_some(link).await;
            return Err(dialect.advise(endpoint.status_error(head.status, &body)));
        }
        if let Some(got) = unexpected_type(&head, dialect.content_types()) {
            let body = read_some(link).await;
            let wanted = dialect.content_types()[0];
            let what = format!("answered with {got} instead of {wanted}: {}", quote(&body));
            return Err(endpoint
                .error(ErrorClass::Protocol, what)
                .with_hint("is the URL that of the engine, and of this kind?"));
        }
        let mut num_bytes = 0;
        // A server that lets bytes fall drop by drop is never silent, and never done.
        let mut whole = (exchange.events.len(), exchange.num_events_dropped);
        let mut whole_at = link.last_read_at();
        loop {
            let Some(part) = link.next().await.map_err(|error| endpoint.broken(&error, true))?
            else {
                let at = link.last_read_at();
                exchange.done_at = at;
                dialect.finish(at, exchange).map_err(|error| endpoint.about(error))?;
                return Ok(false);
            };
            let at = part.at;
            exchange.first_byte_at.get_or_insert(at);
            num_bytes += part.bytes.len();
            if num_bytes > MAX_BODY {
                let what = format!("sent an answer of more than {MAX_BODY} bytes");
                return Err(endpoint.error(ErrorClass::Protocol, what));
            }
            if dialect.feed(part.bytes, at, exchange).map_err(|error| endpoint.about(error))? {
                exchange.done_at = at;
                return Ok(true);
            }
            let now = (exchange.events.len(), exchange.num_events_dropped);
            if now != whole {
                (whole, whole_at) = (now, at);
            } else if at.since(whole_at) > link.idle() {
                return Err(endpoint.broken(&LinkError::Stalled, true));
            }
        }
    }
}

#[async_trait]
impl<D: Dialect> Prepared for Streaming<D> {
    async fn run(self: Box<Self>, cancel: CancellationToken) -> Exchange {
        let Self { endpoint, mut link, request, mut dialect } = *self;
        let clock = endpoint.clock.clone();
        let mut exchange = Exchange::begun(clock.now());
        let following = async {
            let followed =
                Self::follow(&endpoint, &mut link, &request, &mut dialect, &mut exchange).await;
            if followed.is_ok() || !link.was_stale() {
                return followed;
            }
            // Nobody has seen the request: it leaves once more, and is timed from then on.
            link = endpoint.open().await?;
            Self::follow(&endpoint, &mut link, &request, &mut dialect, &mut exchange).await
        };
        let followed = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                Err(endpoint.error(ErrorClass::Cancelled, "was not waited for: cancelled"))
            }
            followed = following => followed,
        };
        exchange.sent_at = link.sent_at();
        match followed {
            Ok(false) => endpoint.parked.keep(link, &clock),
            Ok(true) => {
                let drain = async { while let Ok(Some(_)) = link.next().await {} };
                let drained = tokio::select! {
                    () = cancel.cancelled() => false,
                    // Late or broken, the answer was complete before: nothing to report.
                    drained = timeout(DRAIN, drain) => drained.is_ok(),
                };
                if drained {
                    endpoint.parked.keep(link, &clock);
                }
            }
            Err(error) => {
                exchange.headers_at = exchange.headers_at.or(link.head_at());
                exchange.done_at = clock.now();
                exchange.outcome = Err(error);
            }
        }
        exchange
    }
}

/// The beginning of an error body; empty where even that does not come.
async fn read_some(link: &mut Link) -> Vec<u8> {
    let limit = link.idle();
    let read = timeout(limit, link.read_body(MAX_ERROR_BODY)).await;
    read.ok().and_then(Result::ok).map_or_else(Vec::new, |(bytes, _)| bytes)
}

/// The content type of an answer if it is not one of `wanted`.
fn unexpected_type(head: &Head, wanted: &[&str]) -> Option<String> {
    let Some(value) = &head.content_type else {
        return Some("no content type".to_owned());
    };
    let text = String::from_utf8_lossy(value);
    let essence = text.split(';').next().unwrap_or_default().trim();
    let known = wanted.iter().any(|wanted| essence.eq_ignore_ascii_case(wanted));
    (!known).then(|| quote(essence.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use proptest::prelude::*;
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::super::ndjson::NdjsonDecoder;
    use super::*;
    use crate::clock::Clock;
    use crate::engine::{EventKind, TokenEvent};

    /// A socket whose n-th read returns `reads[n]` at n + 1 seconds; it has
    /// nothing to read before it was written to.
    struct Script {
        clock: Clock,
        reads: VecDeque<Vec<u8>>,
        written: bool,
    }

    impl AsyncRead for Script {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if !self.written {
                // Polled again by the write that follows in the same turn.
                return Poll::Pending;
            }
            self.clock.advance(Duration::from_secs(1));
            if let Some(read) = self.reads.pop_front() {
                buffer.put_slice(&read);
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Script {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.written = true;
            cx.waker().wake_by_ref();
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// One event a line; the line `end` is the last.
    struct Lines(NdjsonDecoder);

    impl Dialect for Lines {
        fn content_types(&self) -> &'static [&'static str] {
            &["text/lines"]
        }

        fn feed(
            &mut self,
            bytes: &[u8],
            at: Timestamp,
            exchange: &mut Exchange,
        ) -> Result<bool, EngineError> {
            let mut done = false;
            self.0.feed(bytes, |line| {
                done |= line == b"end";
                exchange.push(TokenEvent { at, kind: EventKind::Content, num_tokens: None });
                Ok(())
            })?;
            Ok(done)
        }

        fn finish(&mut self, _: Timestamp, _: &mut Exchange) -> Result<(), EngineError> {
            Err(EngineError::new(ErrorClass::Truncated, "stopped"))
        }
    }

    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/lines\r\n";
    const LINES: [&str; 5] = ["one\n", "a longer second line\n", "3\n", "\u{20ac}\n", "end\n"];

    /// The whole answer, and for each line the offset just behind it.
    fn answer(chunk_sizes: Option<&[usize]>) -> (Vec<u8>, Vec<usize>) {
        let body = LINES.concat().into_bytes();
        let mut bytes = HEAD.as_bytes().to_vec();
        let mut at = Vec::new();
        if let Some(sizes) = chunk_sizes {
            bytes.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
            let mut sizes = sizes.iter().copied().cycle();
            let mut rest = body.as_slice();
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(sizes.next().unwrap().min(rest.len()));
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                at.extend((0..chunk.len()).map(|offset| bytes.len() + offset + 1));
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
                rest = after;
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
        } else {
            let head = format!("content-length: {}\r\n\r\n", body.len());
            bytes.extend_from_slice(head.as_bytes());
            at.extend((0..body.len()).map(|offset| bytes.len() + offset + 1));
            bytes.extend_from_slice(&body);
        }
        let mut end = 0;
        let ends = LINES.iter().map(|line| {
            end += line.len();
            at[end - 1]
        });
        (bytes, ends.collect())
    }

    fn exchange_of(reads: VecDeque<Vec<u8>>) -> Exchange {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let clock = Clock::manual();
            let spec = "openai=http://127.0.0.1:1".parse().unwrap();
            let endpoint = Arc::new(Endpoint::new(&spec, true, &clock).unwrap());
            let script = Script { clock: clock.clone(), reads, written: false };
            let link = Link::new(Box::new(script), clock.clone(), endpoint.idle);
            let request = endpoint.post("/", &"go").await.unwrap();
            let dialect = Lines(NdjsonDecoder::new());
            let streaming = Box::new(Streaming { endpoint, link, request, dialect });
            streaming.run(CancellationToken::new()).await
        })
    }

    /// Cuts `bytes` at `cuts`; returns the reads and the read that brings each offset of `ends`.
    fn cut(bytes: &[u8], mut cuts: Vec<usize>, ends: &[usize]) -> (VecDeque<Vec<u8>>, Vec<u64>) {
        cuts.retain(|cut| *cut > 0 && *cut < bytes.len());
        cuts.sort_unstable();
        cuts.dedup();
        let mut reads = VecDeque::new();
        let mut start = 0;
        for cut in cuts.iter().copied().chain([bytes.len()]) {
            reads.push_back(bytes[start..cut].to_vec());
            start = cut;
        }
        let read_of = |end: &usize| cuts.iter().filter(|cut| *cut < end).count() as u64 + 1;
        (reads, ends.iter().map(read_of).collect())
    }

    fn seconds(at: Timestamp) -> u64 {
        at.as_nanos() / 1_000_000_000
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn event_has_the_stamp_of_the_read_that_brought_its_last_byte(
            cuts in prop::collection::vec(0_usize..220, 0..40),
            sizes in prop::option::of(prop::collection::vec(1_usize..30, 1..4)),
        ) {
            let (bytes, ends) = answer(sizes.as_deref());
            let (reads, expected) = cut(&bytes, cuts, &ends);
            let exchange = exchange_of(reads);
            prop_assert_eq!(&exchange.outcome, &Ok(()));
            let got: Vec<u64> = exchange.events.iter().map(|event| seconds(event.at)).collect();
            prop_assert_eq!(got, expected);
            prop_assert_eq!(exchange.sent_at, Some(Timestamp::from_nanos(0)));
            prop_assert_eq!(exchange.done_at, exchange.events.last().unwrap().at);
            prop_assert!(exchange.headers_at <= exchange.first_byte_at);
        }
    }

    #[test]
    fn one_byte_a_read_stamps_every_event_by_its_own_read() {
        let (bytes, ends) = answer(Some(&[7]));
        let (reads, expected) = cut(&bytes, (1..bytes.len()).collect(), &ends);
        let exchange = exchange_of(reads);
        let got: Vec<u64> = exchange.events.iter().map(|event| seconds(event.at)).collect();
        assert_eq!(got, expected);
        assert_eq!(exchange.outcome, Ok(()));
    }
}
