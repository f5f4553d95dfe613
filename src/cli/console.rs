//! Where output goes: data on stdout, words for people on stderr, colours
//! only where they are wanted.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use clap::ColorChoice;
use serde::Serialize;

use super::Failure;

const RESET: &str = "\u{1b}[0m";
const RED: &str = "\u{1b}[1;31m";
const YELLOW: &str = "\u{1b}[1;33m";
const CYAN: &str = "\u{1b}[1;36m";

/// The two streams of this process, and whether each takes colours.
#[derive(Debug, Clone, Copy)]
pub struct Console {
    stdout_color: bool,
    stderr_color: bool,
    stderr_terminal: bool,
}

/// Stdout has no reader any more. That ends the program without a failure.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
struct OutputClosed;

/// Whether `error` only says that the reader of stdout went away.
#[must_use]
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<OutputClosed>())
}

impl Console {
    /// Resolves the choice against the terminals and `NO_COLOR` (<https://no-color.org>).
    #[must_use]
    pub fn new(choice: ColorChoice) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = |terminal: bool| match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !refused,
        };
        let stderr_terminal = io::stderr().is_terminal();
        Self {
            stdout_color: color(io::stdout().is_terminal()),
            stderr_color: color(stderr_terminal),
            stderr_terminal,
        }
    }

    /// Whether stdout takes colours.
    #[must_use]
    pub const fn stdout_color(&self) -> bool {
        self.stdout_color
    }

    /// Whether stderr takes colours.
    #[must_use]
    pub const fn stderr_color(&self) -> bool {
        self.stderr_color
    }

    /// Whether progress can be drawn on stderr.
    #[must_use]
    pub const fn stderr_terminal(&self) -> bool {
        self.stderr_terminal
    }

    /// Writes `text` as it is to stdout, and flushes it.
    ///
    /// # Errors
    /// When stdout cannot be written; a closed one ends the program quietly.
    pub fn print(&self, text: &str) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        written(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
    }

    /// Writes `value` to stdout as indented JSON.
    ///
    /// # Errors
    /// As [`Console::print`].
    pub fn print_json<T: Serialize>(&self, value: &T) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
        text.push('\n');
        self.print(&text)
    }

    /// Writes a line for people to stderr.
    pub fn note(&self, text: &str) {
        // A stderr that cannot be written leaves nobody to tell.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Writes a warning to stderr.
    pub fn warning(&self, text: &str) {
        self.note(&format!("{} {text}", self.paint(YELLOW, "warning:")));
    }

    /// Writes a failure to stderr: one line, and its hint on a second.
    pub fn failure(&self, failure: &Failure) {
        self.note(&format!("{} {}", self.paint(RED, "error:"), failure.message));
        if let Some(hint) = &failure.hint {
            self.note(&format!("{} {hint}", self.paint(CYAN, "hint:")));
        }
    }

    fn paint(&self, color: &str, word: &str) -> String {
        if self.stderr_color { format!("{color}{word}{RESET}") } else { word.to_owned() }
    }
}

fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        other => other.context("cannot write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_stdout_counts_as_broken_pipe() {
        let closed = written(Err(io::ErrorKind::BrokenPipe.into())).unwrap_err();
        assert!(is_broken_pipe(&closed.context("cannot print")));
        let socket = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(!is_broken_pipe(&socket));
    }
}
