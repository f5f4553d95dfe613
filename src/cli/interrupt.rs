//! Ctrl-C: the first asks for an orderly end, the second takes it.

use std::sync::OnceLock;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

static TOKEN: OnceLock<CancellationToken> = OnceLock::new();

/// The token that the first Ctrl-C (or SIGTERM) cancels.
///
/// # Errors
/// When the handler cannot be installed.
pub fn token() -> anyhow::Result<CancellationToken> {
    if let Some(token) = TOKEN.get() {
        return Ok(token.clone());
    }
    let token = CancellationToken::new();
    let handled = token.clone();
    ctrlc::set_handler(move || {
        if handled.is_cancelled() {
            // Raw lines are on disk already; nothing measured is lost.
            std::process::exit(130);
        }
        handled.cancel();
    })
    .context("cannot watch for Ctrl-C")?;
    Ok(TOKEN.get_or_init(|| token).clone())
}
