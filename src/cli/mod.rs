//! The command line: one verb per file. The only place that prints: data on
//! stdout, everything else on stderr.

pub mod arrangement_args;
pub mod calibrate;
pub mod compare;
pub mod doctor;
pub mod embedded;
mod engines;
pub mod failure;
pub mod generate;
pub mod interrupt;
mod label;
pub mod list;
pub mod load_args;
pub mod output;
pub mod progress;
pub mod report;
pub mod run;
pub mod serve;
pub mod size;
pub mod supervise;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use embedded::LoadFormat;
pub use failure::Failure;
pub use output::Global;

/// How a verb ended that did not fail with an error of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Everything that was asked for was done.
    Success,
    /// It was done, and what was found is a failure.
    Failure,
    /// The user interrupted it; what was done until then is kept.
    Interrupted,
}

impl ExitStatus {
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

/// Each verb is described where it is defined.
#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::Run>),
    Report(report::Report),
    Compare(compare::Compare),
    Generate(generate::Generate),
    Size(Box<size::Size>),
    Serve(serve::Serve),
    Calibrate(calibrate::Calibrate),
    Doctor(doctor::Doctor),
    List(list::List),
    #[command(hide = true)]
    Supervise(supervise::Supervise),
    #[command(hide = true)]
    SuperviseExec(supervise::SuperviseExec),
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
    cli.global.start_logging();
    match cli.verb.execute(&cli.global) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::from_error(&error);
            output::failure(&cli.global, &failure);
            ExitCode::from(failure.code)
        }
    }
}

impl Verb {
    fn execute(self, global: &Global) -> anyhow::Result<ExitStatus> {
        match self {
            Self::Run(verb) => verb.execute(global),
            Self::Report(verb) => verb.execute(global),
            Self::Compare(verb) => verb.execute(global),
            Self::Generate(verb) => verb.execute(global),
            Self::Size(verb) => verb.execute(global),
            Self::Serve(verb) => verb.execute(global),
            Self::Calibrate(verb) => verb.execute(global),
            Self::Doctor(verb) => verb.execute(global),
            Self::List(verb) => verb.execute(global),
            Self::Supervise(verb) => verb.execute(global),
            Self::SuperviseExec(verb) => verb.execute(global),
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
}
