//! From a plan's command to what is executed: placeholders filled in, the
//! environment looked up, a container around it where one is asked for.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use super::order::Order;
use super::process::MARK;
use crate::engine::EngineSpec;
use crate::plan::lifecycle::{CommandPlan, EnvValue, PortPlan, StopSignal};

/// Where an engine of this plan listens: its own choice, its URL's, or a free port.
///
/// # Errors
/// When no port is free.
pub(super) fn port(plan: &CommandPlan, spec: &EngineSpec) -> Result<u16, String> {
    if let PortPlan::Fixed(port) = plan.port {
        return Ok(port);
    }
    let url = spec.url.as_ref();
    if plan.wants_free_port() {
        let host = url.and_then(url::Url::host_str).unwrap_or("127.0.0.1");
        let found = TcpListener::bind((host, 0)).and_then(|listener| listener.local_addr());
        return found
            .map(|address| address.port())
            .map_err(|error| format!("cannot find a free port on {host}: {error}"));
    }
    url.and_then(url::Url::port_or_known_default).ok_or_else(|| "its URL names no port".to_owned())
}

/// What one start executes.
pub(super) struct Launch<'a> {
    pub(super) plan: &'a CommandPlan,
    pub(super) port: u16,
    pub(super) model: &'a str,
    pub(super) log: PathBuf,
    /// Name of the container, if there is one, unlike that of any other start.
    pub(super) container: String,
    /// Fresh folder for each cache of compiled code that must be cold.
    pub(super) caches: BTreeMap<String, PathBuf>,
}

impl Launch<'_> {
    /// The order for the supervisor.
    ///
    /// # Errors
    /// When a variable is not set or the program is not found.
    pub(super) fn order(&self) -> Result<Order, String> {
        let mut env = BTreeMap::new();
        for (name, value) in &self.plan.env {
            let value = match value {
                EnvValue::Text(text) => self.fill(text),
                EnvValue::From(from) => std::env::var(from)
                    .map_err(|_| format!("environment variable {from} is not set"))?,
            };
            env.insert(name.clone(), value);
        }
        for (name, path) in &self.caches {
            env.insert(name.clone(), path.display().to_string());
        }
        let words: Vec<String> = self.plan.command.iter().map(|word| self.fill(word)).collect();
        let (command, cleanup) = match &self.plan.container {
            None => (words, Vec::new()),
            Some(_) => self.in_container(words, &env),
        };
        let cwd = self.plan.cwd.as_ref().map(PathBuf::from);
        if let Some(cwd) = cwd.as_ref().filter(|cwd| !cwd.is_dir()) {
            return Err(format!("its cwd {} is no folder", cwd.display()));
        }
        let program = command.first().map_or("", String::as_str);
        let path = env.get("PATH").map(Into::into).or_else(|| std::env::var_os("PATH"));
        if !is_program(program, cwd.as_deref(), path.as_deref()) {
            return Err(format!("command `{program}` is not found"));
        }
        Ok(Order {
            command,
            cwd,
            env,
            log: self.log.clone(),
            stop_signal: number(self.plan.stop_signal),
            stop_grace_ms: u64::from(self.plan.stop_grace_s) * 1000,
            cleanup,
        })
    }

    fn fill(&self, text: &str) -> String {
        text.replace("{port}", &self.port.to_string()).replace("{model}", self.model)
    }

    /// The command line of the container's runtime, and the one that removes the container.
    fn in_container(
        &self,
        words: Vec<String>,
        env: &BTreeMap<String, String>,
    ) -> (Vec<String>, Vec<String>) {
        let Some(container) = &self.plan.container else { return (words, Vec::new()) };
        let mut command: Vec<String> =
            [&container.runtime, "run", "--rm", "--name", &self.container].map(String::from).into();
        if let Some(inside) = container.port {
            command.extend(["--publish".to_owned(), format!("127.0.0.1:{}:{inside}", self.port)]);
        }
        for name in env.keys().map(String::as_str).chain([MARK]) {
            // Only the name: the runtime takes the value from its own environment.
            command.extend(["--env".to_owned(), name.to_owned()]);
        }
        command.extend(container.arguments.iter().map(|word| self.fill(word)));
        command.push(container.image.clone());
        command.extend(words);
        let cleanup = [&container.runtime, "rm", "--force", &self.container].map(String::from);
        (command, cleanup.into())
    }
}

/// As Linux numbers them.
const fn number(signal: StopSignal) -> i32 {
    match signal {
        StopSignal::Int => 2,
        StopSignal::Quit => 3,
        StopSignal::Kill => 9,
        StopSignal::Term => 15,
    }
}

/// Whether a program is there, looked for as `execvp` would.
fn is_program(program: &str, cwd: Option<&Path>, path: Option<&std::ffi::OsStr>) -> bool {
    let base = cwd.unwrap_or_else(|| Path::new("."));
    if program.contains('/') {
        return base.join(program).is_file();
    }
    let folders = path.map(|path| std::env::split_paths(path).collect::<Vec<_>>());
    let mut folders = folders.into_iter().flatten();
    !program.is_empty() && folders.any(|folder| base.join(folder).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::lifecycle::ContainerPlan;

    fn launch(plan: &CommandPlan) -> Launch<'_> {
        Launch {
            plan,
            port: 8123,
            model: "tiny",
            log: PathBuf::from("log"),
            container: "yardstick-e-1".to_owned(),
            caches: BTreeMap::new(),
        }
    }

    fn plan(words: &[&str]) -> CommandPlan {
        CommandPlan::new(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn placeholders_are_filled_in() {
        let mut plan = plan(&["sh", "--port={port}", "{model}"]);
        plan.env.insert("AT".to_owned(), EnvValue::Text("host:{port}".to_owned()));
        let order = launch(&plan).order().unwrap();
        assert_eq!(order.command, ["sh", "--port=8123", "tiny"]);
        assert_eq!(order.env["AT"], "host:8123");
    }

    #[test]
    fn container_is_named_published_and_removed_and_shows_no_value() {
        let mut plan = plan(&["serve", "{model}"]);
        plan.container = Some(ContainerPlan {
            runtime: "sh".to_owned(),
            image: "engine:1".to_owned(),
            arguments: vec!["--gpus=all".to_owned()],
            port: Some(8000),
        });
        plan.env.insert("TOKEN".to_owned(), EnvValue::Text("hush".to_owned()));
        let order = launch(&plan).order().unwrap();
        let line = order.command.join(" ");
        assert_eq!(
            line,
            "sh run --rm --name yardstick-e-1 --publish 127.0.0.1:8123:8000 --env TOKEN \
             --env YARDSTICK_ENGINE_MARK --gpus=all engine:1 serve tiny"
        );
        assert_eq!(order.env["TOKEN"], "hush");
        assert_eq!(order.cleanup, ["sh", "rm", "--force", "yardstick-e-1"]);
    }

    #[test]
    fn what_cannot_be_executed_is_named_before_it_is_tried() {
        let refused = |plan: &CommandPlan| launch(plan).order().unwrap_err();
        assert!(refused(&plan(&["no-such-program"])).contains("`no-such-program` is not found"));
        assert!(refused(&plan(&["./no/such"])).contains("`./no/such`"));
        let mut lacking = plan(&["sh"]);
        let from = EnvValue::From("YARDSTICK_NO_SUCH_VARIABLE".to_owned());
        lacking.env.insert("X".to_owned(), from);
        assert!(refused(&lacking).contains("YARDSTICK_NO_SUCH_VARIABLE is not set"));
        let lost = CommandPlan { cwd: Some("/nowhere".to_owned()), ..plan(&["sh"]) };
        assert!(refused(&lost).contains("/nowhere"));
    }
}
