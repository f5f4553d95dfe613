//! What a user is told when a verb fails: one line, a hint, an exit code.

use std::error::Error;
use std::fmt;

use crate::catalog::CatalogError;
use crate::engine::EngineError;
use crate::engine::spec::SpecError;
use crate::infer::InferError;
use crate::record::RunDirError;
use crate::server::ServerError;
use crate::simulation::measured::StepsError;

/// Exit code of a failure.
const FAILURE: u8 = 1;

/// A failure as it is shown. Also an error that verbs return themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One line: the error and its causes.
    pub message: String,
    /// What the user can do.
    pub hint: Option<String>,
    /// Exit code of the process.
    pub code: u8,
}

impl Failure {
    /// A failure without a remedy.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: FAILURE }
    }

    /// The same failure with its remedy.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Reads an error's whole chain: every cause that adds something to the
    /// line, the first hint that one of them carries.
    #[must_use]
    pub fn from_error(error: &anyhow::Error) -> Self {
        let mut message = String::new();
        for cause in error.chain() {
            let text = one_line(&cause.to_string());
            // Many errors name their source themselves.
            if message.contains(&text) {
                continue;
            }
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(&text);
        }
        let hint = error.chain().find_map(hint).map(|hint| one_line(&hint));
        let code = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Self>())
            .map_or(FAILURE, |failure| failure.code);
        Self { message, hint, code }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {}

fn hint(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return failure.hint.clone();
    }
    if let Some(error) = cause.downcast_ref::<EngineError>() {
        return error.hint.clone();
    }
    if let Some(error) = cause.downcast_ref::<CatalogError>() {
        return error.hint.clone();
    }
    if let Some(error) = cause.downcast_ref::<RunDirError>() {
        return error.hint();
    }
    if let Some(error) = cause.downcast_ref::<ServerError>() {
        return error.hint();
    }
    if let Some(error) = cause.downcast_ref::<StepsError>() {
        return error.hint();
    }
    if let Some(error) = cause.downcast_ref::<InferError>() {
        return match error {
            InferError::Load { hint, .. } => hint.clone(),
            InferError::Config(_)
            | InferError::Request(_)
            | InferError::Busy { .. }
            | InferError::Internal(_) => None,
        };
    }
    match cause.downcast_ref::<SpecError>()? {
        SpecError::UnknownKind(_)
        | SpecError::UnknownSetting { .. }
        | SpecError::BadSetting(_)
        | SpecError::BadValue { .. } => {
            Some("`yardstick list engines` shows every kind with its settings".to_owned())
        }
        SpecError::BadUrl { .. } | SpecError::BadName(_) => None,
    }
}

/// Lines of a list become clauses; other white space, one space.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for part in text.lines() {
        let part = part.split_whitespace().collect::<Vec<_>>().join(" ");
        if part.is_empty() {
            continue;
        }
        if !line.is_empty() {
            line.push_str(if line.ends_with([':', ';', ',']) { " " } else { "; " });
        }
        line.push_str(&part);
    }
    line
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use anyhow::Context;

    use super::*;

    #[test]
    fn chain_is_one_line_without_repetition() {
        let source = io::Error::other("disk  is full");
        let error = RunDirError::Io { action: "write", path: PathBuf::from("a"), source };
        let error = Err::<(), _>(error).context("cannot keep the run").unwrap_err();
        let failure = Failure::from_error(&error);
        assert_eq!(failure.message, "cannot keep the run: cannot write a: disk is full");
    }

    #[test]
    fn lists_become_clauses() {
        assert_eq!(
            one_line("no source:\n  hub: off\n  cache: empty\n"),
            "no source: hub: off; cache: empty"
        );
    }

    #[test]
    fn first_hint_of_the_chain_is_shown() {
        let error = anyhow::Error::from(RunDirError::Exists(PathBuf::from("runs/x")))
            .context("cannot start");
        assert!(Failure::from_error(&error).hint.unwrap().contains("--out"));
        let error = anyhow::Error::from("sglang".parse::<crate::engine::EngineSpec>().unwrap_err());
        assert!(Failure::from_error(&error).hint.unwrap().contains("list engines"));
        assert_eq!(Failure::from_error(&anyhow::anyhow!("plain")).hint, None);
    }

    #[test]
    fn code_of_a_failure_survives_its_context() {
        let mut failure = Failure::new("no");
        failure.code = 3;
        let error = anyhow::Error::from(failure).context("outer");
        assert_eq!(Failure::from_error(&error).code, 3);
    }
}
