//! A TCP or TLS connection that notes when the first byte of a request was
//! handed to it and when each read returned. Knows no HTTP but the blank line
//! that ends a response head.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::clock::{Clock, Timestamp};

/// What a request can be sent over.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// Opens a connection; with `tls` the certificate must be valid for `host`.
///
/// # Errors
/// What the network or the TLS handshake says.
pub(super) async fn open(host: &str, port: u16, tls: bool) -> io::Result<Box<dyn Socket>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await?;
    // Without it a request may wait for the acknowledgement of an earlier segment.
    stream.set_nodelay(true)?;
    if !tls {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(bare.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let stream = TlsConnector::from(tls_config()?).connect(name, stream).await?;
    Ok(Box::new(stream))
}

/// The system's certificate roots, read once.
fn tls_config() -> io::Result<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

/// The instants of one connection. Written by the task that reads the socket
/// and read by the same task, so that no ordering beyond the task's own is needed.
#[derive(Debug)]
pub(super) struct Stamps {
    clock: Clock,
    sent: OnceLock<Timestamp>,
    head: OnceLock<Timestamp>,
    last_read: AtomicU64,
}

impl Stamps {
    fn new(clock: Clock) -> Self {
        let opened = AtomicU64::new(clock.now().as_nanos());
        Self { clock, sent: OnceLock::new(), head: OnceLock::new(), last_read: opened }
    }

    /// As the first byte of the request was handed to the socket.
    pub(super) fn sent_at(&self) -> Option<Timestamp> {
        self.sent.get().copied()
    }

    /// As the read that brought the end of the response head returned.
    pub(super) fn head_at(&self) -> Option<Timestamp> {
        self.head.get().copied()
    }

    /// As the latest read that brought bytes returned; before the first, when
    /// the connection was opened.
    pub(super) fn last_read_at(&self) -> Timestamp {
        Timestamp::from_nanos(self.last_read.load(Ordering::Relaxed))
    }
}

/// A socket that stamps. Over TLS the stamp is that of the decrypted bytes.
pub(super) struct Stamped {
    socket: Box<dyn Socket>,
    stamps: Arc<Stamps>,
    /// Bytes of `\r\n\r\n` seen so far; 4 once the response head has ended.
    head_progress: usize,
}

impl Stamped {
    /// Wraps a connection.
    pub(super) fn new(socket: Box<dyn Socket>, clock: Clock) -> Self {
        Self { socket, stamps: Arc::new(Stamps::new(clock)), head_progress: 0 }
    }

    /// The instants it notes, shared.
    pub(super) fn stamps(&self) -> Arc<Stamps> {
        Arc::clone(&self.stamps)
    }

    fn follow_head(&mut self, bytes: &[u8], at: Timestamp) {
        const END: &[u8; 4] = b"\r\n\r\n";
        for byte in bytes {
            if self.head_progress == END.len() {
                break;
            }
            self.head_progress = if *byte == END[self.head_progress] {
                self.head_progress + 1
            } else {
                usize::from(*byte == b'\r')
            };
        }
        if self.head_progress == END.len() {
            self.stamps.head.get_or_init(|| at);
        }
    }

    fn wrote(&self, at: Timestamp, poll: &Poll<io::Result<usize>>) {
        if matches!(poll, Poll::Ready(Ok(count)) if *count > 0) {
            self.stamps.sent.get_or_init(|| at);
        }
    }
}

impl AsyncRead for Stamped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut self.socket).poll_read(cx, buffer);
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            // Stamp, then parse: nobody has looked at the bytes yet.
            let at = self.stamps.clock.now();
            self.stamps.last_read.store(at.as_nanos(), Ordering::Relaxed);
            self.follow_head(read, at);
        }
        poll
    }
}

impl AsyncWrite for Stamped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let at = self.stamps.clock.now();
        let poll = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.wrote(at, &poll);
        poll
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let at = self.stamps.clock.now();
        let poll = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.wrote(at, &poll);
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn head_is_stamped_by_the_read_that_ends_it() {
        let clock = Clock::manual();
        let (near, mut far) = tokio::io::duplex(1024);
        let mut socket = Stamped::new(Box::new(near), clock.clone());
        let stamps = socket.stamps();
        let mut buffer = [0; 256];
        for (part, millis) in [("HTTP/1.1 200 OK\r\nA: b\r", 1), ("\n\r", 2), ("\nbody", 3)] {
            assert_eq!(stamps.head_at(), None);
            clock.advance(Duration::from_millis(1));
            far.write_all(part.as_bytes()).await.unwrap();
            assert!(socket.read(&mut buffer).await.unwrap() > 0);
            assert_eq!(stamps.last_read_at().as_nanos(), millis * 1_000_000);
        }
        far.write_all(b"\r\n\r\n").await.unwrap();
        clock.advance(Duration::from_millis(1));
        assert!(socket.read(&mut buffer).await.unwrap() > 0);
        assert_eq!(stamps.head_at().map(Timestamp::as_nanos), Some(3_000_000));
    }

    #[tokio::test]
    async fn only_the_first_write_is_the_sending() {
        let clock = Clock::manual();
        let (near, _far) = tokio::io::duplex(1024);
        let mut socket = Stamped::new(Box::new(near), clock.clone());
        let stamps = socket.stamps();
        assert_eq!(stamps.sent_at(), None);
        clock.advance(Duration::from_millis(5));
        socket.write_all(b"a").await.unwrap();
        clock.advance(Duration::from_millis(5));
        socket.write_all(b"b").await.unwrap();
        assert_eq!(stamps.sent_at().map(Timestamp::as_nanos), Some(5_000_000));
    }
}
