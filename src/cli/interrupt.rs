//! Ctrl-C: the first asks for an orderly end, the second takes it.

use std::sync::OnceLock;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

static TOKEN: OnceLock<CancellationToken> = OnceLock::new();

/// The token that the first Ctrl-C (or SIGTERM, or the terminal's end) cancels.
/// Called before there is another thread.
///
/// # Errors
/// When the handler cannot be installed.
pub fn token() -> anyhow::Result<CancellationToken> {
    if let Some(token) = TOKEN.get() {
        return Ok(token.clone());
    }
    #[cfg(target_os = "linux")]
    keep_hangup_ignored();
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

/// Under `nohup` the terminal's end is ignored, which a handler would undo: a
/// signal that every thread blocks reaches none.
#[cfg(target_os = "linux")]
fn keep_hangup_ignored() {
    use nix::sys::signal::{SigSet, Signal};

    if crate::hardware::proc::is_ignored(Signal::SIGHUP as u32) {
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGHUP);
        // Refused or not, the run goes on.
        let _ = blocked.thread_block();
    }
}
