//! Parses arguments, dispatches, turns an error into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    yardstick::cli::main()
}
