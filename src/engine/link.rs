//! One HTTP/1.1 connection, driven by whoever waits on it. Knows bytes and
//! instants, no engine.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use super::socket::{Stamped, Stamps};

/// Longest response head, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// hyper's side of the connection: reads, parses and writes whenever it is polled.
type Running = Pin<Box<http1::Connection<TokioIo<Stamped>, Full<Bytes>>>>;

/// A connection that is driven by whoever waits on it, never by a task of its
/// own. That is what makes stamps exact: hyper hands over at most one part of
/// the body before that part is taken, and reads again only once nothing of
/// the last read is left, so the latest read's stamp belongs to the part in
/// hand. `stream::tests` hold hyper to it.
pub(super) struct Link {
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` once it has ended; what went wrong is also told to the body.
    connection: Option<Running>,
    /// The instants of its reads and writes.
    pub(super) stamps: Arc<Stamps>,
}

impl Link {
    /// Speaks HTTP over `socket`; sends nothing.
    pub(super) async fn new(socket: Stamped) -> Result<Self, hyper::Error> {
        let stamps = socket.stamps();
        let (sender, connection) =
            http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(socket)).await?;
        Ok(Self { sender, connection: Some(Box::pin(connection)), stamps })
    }

    /// Sends `request` and waits for the head of the answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let mut response = std::pin::pin!(self.sender.send_request(request));
        let connection = &mut self.connection;
        poll_fn(|cx| {
            if let Poll::Ready(response) = response.as_mut().poll(cx) {
                return Poll::Ready(response);
            }
            poll_connection(connection, cx);
            response.as_mut().poll(cx)
        })
        .await
    }

    /// The next part of `body`, or `None` at its end.
    pub(super) async fn next(
        &mut self,
        body: &mut Incoming,
    ) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            let frame = poll_fn(|cx| {
                if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) {
                    return Poll::Ready(frame);
                }
                poll_connection(&mut self.connection, cx);
                Pin::new(&mut *body).poll_frame(cx)
            })
            .await?;
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(data)) => return Some(Ok(data)),
                // Trailers say nothing that a benchmark needs.
                Ok(Err(_)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The body up to `limit` bytes, and whether that is all of it.
    pub(super) async fn read_body(
        &mut self,
        mut body: Incoming,
        limit: usize,
    ) -> Result<(Vec<u8>, bool), hyper::Error> {
        let mut bytes = Vec::new();
        while let Some(part) = self.next(&mut body).await {
            let part = part?;
            let room = limit - bytes.len();
            bytes.extend_from_slice(&part[..part.len().min(room)]);
            if part.len() > room {
                return Ok((bytes, false));
            }
        }
        Ok((bytes, true))
    }
}

fn poll_connection(connection: &mut Option<Running>, cx: &mut Context<'_>) {
    if let Some(running) = connection
        && running.as_mut().poll(cx).is_ready()
    {
        // How it ended reaches the caller through the response or the body.
        *connection = None;
    }
}
