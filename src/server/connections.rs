//! Accepts connections and speaks HTTP/1.1 on them, within bounds of number
//! and time. Knows no route.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::write_timeout::WriteTimeout;
use super::{GRACE, MAX_CONNECTIONS};

/// How long a connection may take for its next request's headers, idle time
/// included: above any pause that a pre-connected burst makes.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// Largest request head.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Pause after a failed accept, such as one that met the limit on open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How the server is told to end.
#[derive(Debug, Clone)]
pub(super) struct Signals {
    pub(super) abort: CancellationToken,
    pub(super) finish: CancellationToken,
}

/// Serves until one of the signals, and returns when every connection is gone.
pub(super) async fn serve(
    listener: std::net::TcpListener,
    router: Router,
    signals: Signals,
    write_timeout: Duration,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = tokio::select! {
            () = signals.abort.cancelled() => break,
            () = signals.finish.cancelled() => break,
            permit = accept_permit(&permits) => permit,
        };
        let accepted = tokio::select! {
            () = signals.abort.cancelled() => break,
            () = signals.finish.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Some(permit) = permit else { break };
        match accepted {
            Ok((stream, _)) => {
                let (router, signals) = (router.clone(), signals.clone());
                tokio::spawn(async move {
                    connection(stream, router, signals, write_timeout).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    drain(&permits, &signals.abort).await;
    Ok(())
}

async fn accept_permit(permits: &Arc<Semaphore>) -> Option<tokio::sync::OwnedSemaphorePermit> {
    Arc::clone(permits).acquire_owned().await.ok()
}

/// Waits until every connection has given its permit back; aborts those that
/// outlive the grace.
async fn drain(permits: &Semaphore, abort: &CancellationToken) {
    #[expect(clippy::cast_possible_truncation, reason = "a constant of a thousand")]
    let all = permits.acquire_many(MAX_CONNECTIONS as u32);
    tokio::pin!(all);
    if tokio::time::timeout(GRACE, &mut all).await.is_err() {
        abort.cancel();
        let _ = all.await;
    }
}

async fn connection(stream: TcpStream, router: Router, signals: Signals, write_timeout: Duration) {
    // Every token is its own small write: none may wait for an acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(
            TokioIo::new(WriteTimeout::new(stream, write_timeout)),
            TowerToHyperService::new(router),
        );
    tokio::pin!(connection);
    let ended = tokio::select! {
        () = signals.abort.cancelled() => return,
        ended = &mut connection => ended,
        () = signals.finish.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                () = signals.abort.cancelled() => return,
                ended = connection => ended,
            }
        }
    };
    if let Err(error) = ended {
        // A client that went away is its own affair.
        tracing::debug!(%error, "connection ended");
    }
}
