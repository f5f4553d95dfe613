//! The command line: one verb per file. The only place that prints: data on
//! stdout, everything else on stderr.

pub mod console;
pub mod doctor;
pub mod embedded;
pub mod failure;
pub mod generate;
pub mod interrupt;
pub mod list;
pub mod progress;
pub mod report;
pub mod run;
pub mod serve;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgAction, Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

pub use console::Console;
pub use failure::Failure;
pub use interrupt::interrupt_token;

/// How a verb ended that did not fail with an error of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything that was asked for was done.
    Success,
    /// It was done, and what was found is a failure.
    Failure,
    /// The user interrupted it; what was done until then is kept.
    Interrupted,
}

impl Exit {
    /// The process's exit code: 0, 1 or 130 (128 + SIGINT). Usage errors exit with 2.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Interrupted => 130,
        }
    }
}

/// Measures LLM inference engines side by side.
#[derive(Debug, Parser)]
#[command(name = "yardstick", version, about, subcommand_required = true)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct Global {
    /// Diagnostics on stderr: off, error, warn, info, debug, trace, or a
    /// filter such as yardstick::infer=debug
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn")]
    #[arg(value_parser = parse_filter, help_heading = "Global options")]
    log: String,
    /// More diagnostics: -v for info, -vv for debug, -vvv for trace
    #[arg(short, long = "verbose", global = true, action = ArgAction::Count)]
    #[arg(conflicts_with = "log", help_heading = "Global options")]
    verbose: u8,
    /// Colours in what people read; auto follows the terminal and NO_COLOR
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    #[arg(help_heading = "Global options")]
    color: ColorChoice,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Measure engines and write a run directory
    Run(Box<run::Run>),
    /// Render a run directory again
    Report(report::Report),
    /// Send one prompt through the embedded engine
    Generate(generate::Generate),
    /// Serve the embedded engine over OpenAI-compatible HTTP
    Serve(serve::Serve),
    /// Show what this machine has, and what to do about what it lacks
    Doctor(doctor::Doctor),
    /// List experiments, engines, models and GPU cards
    List(list::List),
}

/// Parses the arguments, runs the verb, and turns what happened into an exit code.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let command = Cli::command().color(early_color(&arguments));
    let parsed = command.try_get_matches_from(&arguments).and_then(|matches| {
        Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut Cli::command()))
    });
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with code 0, usage errors to stderr
            // with 2. A reader who went away is no failure of ours.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let console = Console::new(cli.global.color);
    start_logging(&cli.global, &console);
    match cli.verb.execute(&console) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) if console::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::from_error(&error);
            console.failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

impl Verb {
    fn execute(self, console: &Console) -> anyhow::Result<Exit> {
        match self {
            Self::Run(verb) => verb.execute(console),
            Self::Report(verb) => verb.execute(console),
            Self::Generate(verb) => verb.execute(console),
            Self::Serve(verb) => verb.execute(console),
            Self::Doctor(verb) => verb.execute(console),
            Self::List(verb) => verb.execute(console),
        }
    }
}

/// The colour choice for help pages and usage errors, which are printed before
/// the arguments are known to be sound.
fn early_color(arguments: &[OsString]) -> ColorChoice {
    let words = || arguments.iter().filter_map(|word| word.to_str());
    let joined = words().find_map(|word| word.strip_prefix("--color="));
    let apart = words().skip_while(|word| *word != "--color").nth(1);
    joined.or(apart).and_then(|choice| choice.parse().ok()).unwrap_or(ColorChoice::Auto)
}

fn parse_filter(text: &str) -> Result<String, String> {
    // An empty filter parses, and means what nobody meant.
    if text.is_empty() {
        return Err("expected a level or a filter".to_owned());
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn start_logging(global: &Global, console: &Console) {
    let filter = match global.verbose {
        0 => global.log.as_str(),
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(console.stderr_color())
        .without_time()
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argument_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn colour_choice_is_known_before_arguments_are() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(early_color(&words("yardstick --color never nonsense")), ColorChoice::Never);
        assert_eq!(early_color(&words("yardstick --color=always")), ColorChoice::Always);
        assert_eq!(early_color(&words("yardstick --color")), ColorChoice::Auto);
    }

    #[test]
    fn levels_and_filters_are_told_from_nonsense() {
        assert!(parse_filter("debug").is_ok());
        assert!(parse_filter("yardstick::infer=trace").is_ok());
        assert!(parse_filter("").is_err());
        assert!(parse_filter("yardstick=loud").is_err());
    }
}
