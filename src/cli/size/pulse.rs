//! How a long simulation goes, on stderr, and whether the user still waits for it.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio_util::sync::CancellationToken;

use crate::cli::{interrupt, output};
use crate::clock::{Clock, Timestamp};
use crate::load::arrival::Extent;
use crate::simulation::Pulse;

/// Nothing is said of a simulation that takes no longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time between two words on a terminal, and elsewhere.
const ON_TERMINAL: Duration = Duration::from_millis(250);
const ELSEWHERE: Duration = Duration::from_secs(10);

/// Looks after a simulation.
pub(super) struct Watcher {
    clock: Clock,
    cancel: CancellationToken,
    extent: Extent,
    /// When the next word is due.
    due: Timestamp,
    bar: Option<ProgressBar>,
    interrupted: bool,
}

impl Watcher {
    /// From now on.
    ///
    /// # Errors
    /// When Ctrl-C cannot be watched for.
    pub(super) fn new(extent: Extent) -> anyhow::Result<Self> {
        let (clock, cancel) = (Clock::real(), interrupt::token()?);
        let due = clock.now().plus(PATIENCE);
        Ok(Self { clock, cancel, extent, due, bar: None, interrupted: false })
    }

    /// Says how far it is, if that is due; breaks it off after Ctrl-C.
    pub(super) fn look(&mut self, pulse: &Pulse) -> ControlFlow<()> {
        if self.cancel.is_cancelled() {
            self.interrupted = true;
            return ControlFlow::Break(());
        }
        let now = self.clock.now();
        if now >= self.due {
            let terminal = std::io::stderr().is_terminal();
            self.due = now.plus(if terminal { ON_TERMINAL } else { ELSEWHERE });
            let told = self.told(pulse);
            if terminal {
                let bar = self.bar.get_or_insert_with(ProgressBar::new_spinner);
                bar.set_message(told);
                bar.tick();
            } else {
                output::note(&told);
            }
        }
        ControlFlow::Continue(())
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Whether it was broken off.
    pub(super) const fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    fn told(&self, pulse: &Pulse) -> String {
        let seconds = pulse.now.since(Timestamp::default()).as_secs();
        let of = match (self.extent.duration, self.extent.requests) {
            (Some(duration), _) => format!(" of {} s", duration.as_secs()),
            (None, Some(requests)) => format!(", {requests} requests asked for"),
            (None, None) => String::new(),
        };
        format!(
            "simulated {seconds} s{of}: {} answered, {} in the engine",
            pulse.num_answered, pulse.num_live
        )
    }
}
