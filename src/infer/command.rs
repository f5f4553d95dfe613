//! What handles ask of the engine's thread, and for how long it listens before
//! it sets to work.

use std::sync::mpsc::SyncSender;
use std::time::Duration;

use super::InferError;
use super::live::Submission;
use super::telemetry::Sink;

/// How long an idle engine waits for one more request before it takes up those
/// that have arrived: about what one costs whoever sends it.
pub(super) const BURST_GAP: Duration = Duration::from_micros(150);
/// Requests after which it waits no more.
pub(super) const MAX_GATHERED: usize = 64;

/// What a handle asks of the thread.
pub(super) enum Command {
    /// Run a request.
    Submit(Box<Submission>),
    /// Load, and answer when done.
    Load(SyncSender<Result<(), InferError>>),
    /// Abort everything, free everything, and answer when done.
    Unload(SyncSender<()>),
    /// Tell what happens from now on, in place of whoever was told before.
    Observe(Sink),
    /// Panic in the next step of the loaded core.
    #[cfg(test)]
    PanicInNextStep,
}
