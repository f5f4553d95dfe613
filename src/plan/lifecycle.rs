//! How an engine is started, stopped and made cold, as a plan says it. Knows no
//! process: `lifecycle` does what is written here.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::cloud_run::CloudRunPlan;
use super::command_line::split_words;
use crate::engine::{EngineKind, EngineSpec};

/// Longest wait for an engine to become ready unless the plan says otherwise:
/// vLLM compiles for minutes.
const READY_TIMEOUT_S: u32 = 600;
/// Time between asking an engine to stop and killing it.
const STOP_GRACE_S: u32 = 10;
/// Bound on both.
pub(super) const MAX_SECONDS: u32 = 86_400;

/// What a start does not find in place any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cold {
    /// The model is not in the engine's memory; its process lives.
    Model,
    /// There is no process: the next request needs a new one.
    Process,
    /// The weight files are not in the page cache, verified.
    PageCache,
    /// The caches of compiled code are empty.
    CompileCache,
    /// There is no machine: its platform has scaled it to zero instances, verified.
    Instance,
}

impl Cold {
    /// The word used in plans, files and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Process => "process",
            Self::PageCache => "page-cache",
            Self::CompileCache => "compile-cache",
            Self::Instance => "instance",
        }
    }
}

impl fmt::Display for Cold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether engines may hold memory at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Residency {
    /// One at a time: the others are stopped or unloaded before a case begins.
    One,
    /// All together.
    Together,
}

/// How one engine is started and stopped.
#[derive(Debug, Clone, PartialEq)]
pub enum LifecyclePlan {
    /// Not by us: it runs already, and goes on.
    External,
    /// By a command, or by a container of which the command is the last part.
    Command(CommandPlan),
    /// It runs already; its model is put to sleep and woken (vLLM's dev mode).
    Sleep {
        /// 1 keeps the weights in host memory, 2 forgets them.
        level: u8,
    },
    /// A service on Google Cloud Run, which its platform starts and stops.
    CloudRun(CloudRunPlan),
}

/// A command that starts an engine and keeps running while it serves.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandPlan {
    /// Program and arguments, with `{port}` and `{model}` to be filled in.
    pub command: Vec<String>,
    /// Container to run it in.
    pub container: Option<ContainerPlan>,
    /// Where it runs; the current folder if absent.
    pub cwd: Option<String>,
    /// Added to this process's own environment.
    pub env: BTreeMap<String, EnvValue>,
    /// Where its output goes; `logs/ENGINE.log` in the run directory if absent.
    pub log: Option<String>,
    /// Where it listens.
    pub port: PortPlan,
    /// Path that answers 200 once it is ready; the adapter's own if absent.
    pub ready: Option<String>,
    /// Longest wait for that, in seconds.
    pub ready_timeout_s: u32,
    /// Asks it to stop.
    pub stop_signal: StopSignal,
    /// Seconds until it is killed.
    pub stop_grace_s: u32,
    /// What a cold case takes away.
    pub cold: Vec<Cold>,
    /// Weight files, or folders of them, for page-cache coldness.
    pub weights: Vec<String>,
    /// Variables that name caches of compiled code; a compile-cache cold start
    /// points each at a fresh folder, and no cache of the user's is touched.
    pub compile_cache_env: Vec<String>,
}

/// A container around an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPlan {
    /// `docker`, `podman`, or a path to one.
    pub runtime: String,
    /// What is run.
    pub image: String,
    /// Arguments of `run` before the image, such as `--gpus=all`.
    pub arguments: Vec<String>,
    /// Port inside, to which the engine's port is published on loopback; absent
    /// where `arguments` see to that, as with `--network=host`.
    pub port: Option<u16>,
}

/// A value of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// As it stands; it is written into the run files with the plan.
    Text(String),
    /// That of a variable of this process: only its name is ever written.
    From(String),
}

/// Where an engine listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortPlan {
    /// At a free port if the command mentions `{port}`, else at its URL's.
    Auto,
    /// At any port that is free.
    Free,
    /// Here.
    Fixed(u16),
}

/// The signal that asks an engine to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StopSignal {
    /// SIGTERM.
    Term,
    /// SIGINT, as Ctrl-C sends.
    Int,
    /// SIGQUIT.
    Quit,
    /// SIGKILL: no asking.
    Kill,
}

/// What is wrong with a lifecycle.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LifecycleError {
    /// It belongs to no engine.
    #[error("engine {0} has a lifecycle but is not among the engines")]
    NoSuchEngine(String),
    /// The engine cannot have one.
    #[error("engine {engine}: {reason}")]
    Unsuitable {
        /// Its name.
        engine: String,
        /// Why not.
        reason: String,
    },
    /// A field is missing or wrong.
    #[error("engine {engine}: lifecycle {field} is {got}: expected {expected}")]
    Field {
        /// Its name.
        engine: String,
        /// The field.
        field: &'static str,
        /// Its value.
        got: String,
        /// What it may be.
        expected: String,
    },
    /// `--start` without a name or a command.
    #[error("`{0}` is no NAME=COMMAND")]
    NotAStart(String),
    /// A command line with an open quote.
    #[error("command line `{0}` has {1}")]
    CommandLine(String, &'static str),
}

impl CommandPlan {
    /// A command with every other field at its default.
    #[must_use]
    pub fn new(command: Vec<String>) -> Self {
        Self {
            command,
            container: None,
            cwd: None,
            env: BTreeMap::new(),
            log: None,
            port: PortPlan::Auto,
            ready: None,
            ready_timeout_s: READY_TIMEOUT_S,
            stop_signal: StopSignal::Term,
            stop_grace_s: STOP_GRACE_S,
            cold: vec![Cold::Process],
            weights: Vec::new(),
            compile_cache_env: Vec::new(),
        }
    }

    /// Whether it is to listen at a port that is chosen for it.
    #[must_use]
    pub fn wants_free_port(&self) -> bool {
        match self.port {
            PortPlan::Free => true,
            PortPlan::Fixed(_) => false,
            PortPlan::Auto => {
                let container = self.container.as_ref();
                let publishes = container.is_some_and(|container| container.port.is_some());
                let mut words = self.command.iter();
                let texts = self
                    .env
                    .values()
                    .any(|value| matches!(value, EnvValue::Text(text) if text.contains("{port}")));
                publishes || texts || words.any(|word| word.contains("{port}"))
            }
        }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`LifecycleError`] names the field.
    pub fn check(&self, engine: &str) -> Result<(), LifecycleError> {
        let wrong = |field, got: &str, expected: &str| LifecycleError::Field {
            engine: engine.to_owned(),
            field,
            got: got.to_owned(),
            expected: expected.to_owned(),
        };
        if self.container.is_none() && self.command.first().is_none_or(String::is_empty) {
            return Err(wrong("command", "empty", "a program and its arguments"));
        }
        for (field, seconds, least) in
            [("ready_timeout_s", self.ready_timeout_s, 1), ("stop_grace_s", self.stop_grace_s, 0)]
        {
            if !(least..=MAX_SECONDS).contains(&seconds) {
                let expected = format!("{least} to {MAX_SECONDS} seconds");
                return Err(wrong(field, &seconds.to_string(), &expected));
            }
        }
        if let Some(path) = self.ready.as_deref() {
            let plain = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
            if !plain {
                return Err(wrong("ready", &format!("`{path}`"), "a path such as /health"));
            }
        }
        let is_name = |name: &str| !name.is_empty() && !name.contains(['=', '\0']);
        if let Some(name) =
            self.env.keys().chain(&self.compile_cache_env).find(|name| !is_name(name))
        {
            return Err(wrong("env", &format!("`{name}`"), "names of environment variables"));
        }
        if !self.cold.contains(&Cold::Process) || self.cold.contains(&Cold::Model) {
            let expected = "process, and where wanted page-cache and compile-cache";
            return Err(wrong("cold", &list(&self.cold), expected));
        }
        if self.cold.contains(&Cold::PageCache) && self.weights.is_empty() {
            return Err(wrong("weights", "empty", "the files that a page-cache cold start reads"));
        }
        if self.cold.contains(&Cold::CompileCache) && self.compile_cache_env.is_empty() {
            let expected = "the variables that name the caches, such as VLLM_CACHE_ROOT";
            return Err(wrong("compile_cache_env", "empty", expected));
        }
        Ok(())
    }
}

impl LifecyclePlan {
    /// Checks that it suits the engine and is complete.
    ///
    /// # Errors
    /// [`LifecycleError`] names what does not fit.
    pub fn check(&self, spec: &EngineSpec) -> Result<(), LifecycleError> {
        let unsuitable = |reason: &str| {
            Err(LifecycleError::Unsuitable { engine: spec.name.clone(), reason: reason.to_owned() })
        };
        match self {
            Self::External => Ok(()),
            Self::Sleep { .. } if spec.kind != EngineKind::Vllm => {
                unsuitable("only engines of kind vllm can be put to sleep")
            }
            Self::Sleep { .. } => Ok(()),
            Self::Command(_) if spec.kind == EngineKind::Embedded => {
                unsuitable("the embedded engine runs in this process and is not started")
            }
            Self::Command(_) if spec.url.as_ref().is_some_and(|url| url.scheme() != "http") => {
                unsuitable("what is started here is reached over http, not https")
            }
            Self::Command(plan) => plan.check(&spec.name),
            Self::CloudRun(_) if spec.kind == EngineKind::Embedded => {
                unsuitable("the embedded engine runs in this process, not on Cloud Run")
            }
            Self::CloudRun(_) if is_default(spec) => {
                unsuitable("it needs its service's `url`, such as https://NAME-abc-uc.a.run.app")
            }
            Self::CloudRun(plan) => plan.check(&spec.name),
        }
    }
}

/// Whether it is where its kind listens unless told otherwise.
fn is_default(spec: &EngineSpec) -> bool {
    let default = spec.kind.default_url().and_then(|url| url.parse().ok());
    spec.url == default
}

/// Kinds of cold in few words.
#[must_use]
pub fn list(cold: &[Cold]) -> String {
    cold.iter().map(|cold| cold.as_str()).collect::<Vec<_>>().join(" + ")
}

/// Reads `NAME=COMMAND LINE`, as `--start` takes it.
///
/// # Errors
/// When there is no name, no command, or a quote is left open.
pub fn parse_start(text: &str) -> Result<(String, LifecyclePlan), LifecycleError> {
    let (name, line) =
        text.split_once('=').ok_or_else(|| LifecycleError::NotAStart(text.to_owned()))?;
    let words = split_words(line)?;
    if name.is_empty() || words.is_empty() {
        return Err(LifecycleError::NotAStart(text.to_owned()));
    }
    Ok((name.to_owned(), LifecyclePlan::Command(CommandPlan::new(words))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> CommandPlan {
        CommandPlan::new(vec!["serve".to_owned(), "--port={port}".to_owned()])
    }

    #[test]
    fn port_is_chosen_where_the_command_can_be_told_it() {
        assert!(command().wants_free_port());
        let told = CommandPlan { port: PortPlan::Fixed(80), ..command() };
        assert!(!told.wants_free_port());
        assert!(!CommandPlan::new(vec!["serve".to_owned()]).wants_free_port());
        let mut by_env = CommandPlan::new(vec!["serve".to_owned()]);
        by_env.env.insert("HOST".to_owned(), EnvValue::Text("127.0.0.1:{port}".to_owned()));
        assert!(by_env.wants_free_port());
    }

    #[test]
    fn cold_that_cannot_be_brought_about_is_refused() {
        let cold = |cold: &[Cold]| CommandPlan { cold: cold.to_vec(), ..command() }.check("e");
        assert_eq!(cold(&[Cold::Process]), Ok(()));
        let message = |error: Result<(), LifecycleError>| error.unwrap_err().to_string();
        assert!(message(cold(&[Cold::Process, Cold::PageCache])).contains("weights is empty"));
        assert!(message(cold(&[Cold::Process, Cold::CompileCache])).contains("VLLM_CACHE_ROOT"));
        assert!(message(cold(&[Cold::PageCache])).contains("cold is page-cache"));
    }

    #[test]
    fn start_is_a_name_and_a_command_line() {
        let (name, plan) = parse_start("ours=serve --name 'a b' --x=y").unwrap();
        let LifecyclePlan::Command(plan) = plan else { panic!("{plan:?}") };
        assert_eq!(name, "ours");
        assert_eq!(plan.command, ["serve", "--name", "a b", "--x=y"]);
        assert!(parse_start("serve").is_err());
        assert!(parse_start("=serve").is_err());
        assert!(parse_start("ours=").is_err());
    }
}
