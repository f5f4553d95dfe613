//! Where output goes: data on stdout, words for people on stderr, colours only
//! where they are wanted. Holds the options that every verb takes.

use std::io::{self, IsTerminal, Write};

use anyhow::Context as _;
use clap::{ArgAction, Args, ColorChoice};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use super::Failure;

const RESET: &str = "\u{1b}[0m";
const RED: &str = "\u{1b}[1;31m";
const CYAN: &str = "\u{1b}[1;36m";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Columns where there is no terminal to ask.
const DEFAULT_WIDTH: usize = 80;

/// The options that every verb takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Diagnostics on stderr: off, error, warn, info, debug, trace, or a
    /// filter such as yardstick::infer=debug
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn")]
    #[arg(value_parser = parse_filter)]
    log: String,
    /// More diagnostics: -v for info, -vv for debug, -vvv for trace
    #[arg(short, long = "verbose", global = true, action = ArgAction::Count)]
    #[arg(conflicts_with = "log")]
    verbose: u8,
    /// Colours in what people read; auto follows the terminal and NO_COLOR
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

impl Global {
    /// Whether stdout takes colours.
    #[must_use]
    pub fn colour_stdout(&self) -> bool {
        self.colour(io::stdout().is_terminal())
    }

    /// Whether stderr takes colours.
    #[must_use]
    pub fn colour_stderr(&self) -> bool {
        self.colour(io::stderr().is_terminal())
    }

    /// Columns of the terminal that stdout is; 80 where it is none.
    #[must_use]
    pub fn width(&self) -> usize {
        #[cfg(unix)]
        if let Ok(size) = rustix::termios::tcgetwinsize(io::stdout())
            && size.ws_col > 0
        {
            return size.ws_col.into();
        }
        DEFAULT_WIDTH
    }

    /// Sends diagnostics to stderr from now on.
    pub(super) fn start_logging(&self) {
        let filter = match self.verbose {
            0 => self.log.as_str(),
            1 => "info",
            2 => "debug",
            _ => "trace",
        };
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(filter))
            .with_writer(io::stderr)
            .without_time()
            .init();
    }

    /// The choice against the terminal and `NO_COLOR` (<https://no-color.org>).
    fn colour(&self, terminal: bool) -> bool {
        let refused = || {
            std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
                || std::env::var_os("TERM").is_some_and(|term| term == "dumb")
        };
        match self.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !refused(),
        }
    }
}

/// A level, or parts of `TARGET=LEVEL`. The filter itself would take any word
/// for a target, and show nothing for a misspelt level.
fn parse_filter(text: &str) -> Result<String, String> {
    for part in text.split(',') {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        if !LEVELS.contains(&level) {
            return Err(format!("`{level}` is no level: expected {}", LEVELS.join(", ")));
        }
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Writes `text` as it is to stdout, and flushes it.
///
/// # Errors
/// When stdout cannot be written; a closed one ends the program quietly.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.context("cannot write to standard output")
}

/// Writes `value` to stdout as indented JSON.
///
/// # Errors
/// As [`print()`].
pub fn print_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    text.push('\n');
    print(&text)
}

/// Writes a line for people to stderr.
pub fn note(text: &str) {
    // A stderr that cannot be written leaves nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes a warning to stderr.
pub fn warn(text: &str) {
    note(&format!("warning: {text}"));
}

/// Writes a failure to stderr: one line, and its hint on a second.
pub fn failure(global: &Global, failure: &Failure) {
    let paint = |color: &str, word: &str| {
        if global.colour_stderr() { format!("{color}{word}{RESET}") } else { word.to_owned() }
    };
    note(&format!("{} {}", paint(RED, "error:"), failure.message));
    if let Some(hint) = &failure.hint {
        note(&format!("{} {hint}", paint(CYAN, "hint:")));
    }
}

/// Whether `error` only says that the reader of stdout went away: no failure
/// of ours. Engines' sockets cannot be meant, their errors carry no `io::Error`.
#[must_use]
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_stdout_is_told_from_other_failures() {
        let closed = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(is_broken_pipe(&closed.context("cannot print")));
        assert!(!is_broken_pipe(&anyhow::anyhow!("broken pipe")));
    }

    #[test]
    fn levels_and_filters_are_told_from_nonsense() {
        assert!(parse_filter("debug").is_ok());
        assert!(parse_filter("yardstick::infer=trace").is_ok());
        assert!(parse_filter("").is_err());
        assert!(parse_filter("loud").is_err());
        assert!(parse_filter("debug,yardstick=loud").is_err());
    }
}
