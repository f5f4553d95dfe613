//! The embedded engine behind OpenAI-compatible HTTP, on a thread of its own.
//! Knows the wire and the [`EngineHost`]; no plan, no experiment.
//!
//! A request's life: `connections` accepts and bounds, `openai` routes,
//! `request` turns JSON into an [`crate::infer::InferRequest`] or a refusal,
//! `generate` follows the tokens, `response` writes them. Whoever disconnects
//! drops the generation, and with it its KV blocks.

mod answer;
mod connections;
mod error;
mod generate;
mod logprobs;
mod openai;
mod request;
mod response;
mod write_timeout;

use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::infer::EngineHost;

/// Largest request body; a prompt of the longest context fits many times.
pub const MAX_BODY_BYTES: usize = 4 << 20;

/// Connections at once; further ones wait in the listen queue.
pub const MAX_CONNECTIONS: usize = 1024;

/// How long a write may wait for a client that reads nothing. Its answer is then
/// given up and its KV blocks are free.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long running answers may go on after a graceful stop was asked for.
const GRACE: Duration = Duration::from_secs(5);

/// A server that could not be started.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No thread or runtime.
    #[error("cannot start the server's thread: {0}")]
    Start(io::Error),
}

impl ServerError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("choose another --port, or 0 for any that is free".to_owned())
            }
            Self::Listen { .. } | Self::Start(_) => None,
        }
    }
}

/// A running server. Dropping it closes every connection and joins its thread.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// Closes every connection now.
    abort: CancellationToken,
    /// Refuses new requests and lets running ones end.
    finish: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `address`, port 0 for any that is free, and serves `host` as
    /// `model_name` on a thread of its own.
    ///
    /// # Errors
    /// When the address cannot be listened on or no thread can be had.
    pub fn start(
        host: EngineHost,
        address: SocketAddr,
        model_name: &str,
    ) -> Result<Self, ServerError> {
        Self::start_with(host, address, model_name, WRITE_TIMEOUT)
    }

    /// As [`Server::start`], with another [`WRITE_TIMEOUT`].
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with(
        host: EngineHost,
        address: SocketAddr,
        model_name: &str,
        write_timeout: Duration,
    ) -> Result<Self, ServerError> {
        let listen = |source| ServerError::Listen { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        // One thread: a step's tokens reach their sockets in a few microseconds
        // each, and every further thread would take a processor from the engine.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ServerError::Start)?;
        let (abort, finish) = (CancellationToken::new(), CancellationToken::new());
        let signals = connections::Signals { abort: abort.clone(), finish: finish.clone() };
        let router = openai::router(host, model_name);
        let serve = move || {
            let served = connections::serve(listener, router, signals, write_timeout);
            if let Err(error) = runtime.block_on(served) {
                tracing::error!(%error, "the server stopped listening");
            }
        };
        let thread = std::thread::Builder::new()
            .name("yardstick-serve".to_owned())
            .spawn(serve)
            .map_err(ServerError::Start)?;
        Ok(Self { address, abort, finish, thread: Some(thread) })
    }

    /// Where it listens, the port resolved.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops accepting, lets running answers end for a few seconds, then
    /// closes what is left.
    pub fn stop_gracefully(mut self) {
        self.finish.cancel();
        self.join();
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the server's thread panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.abort.cancel();
        self.join();
    }
}
