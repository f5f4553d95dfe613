//! An engine that is a command of ours: started by phase, watched, stopped.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::launch::{self, Launch};
use super::process::{Exit, Process};
use super::question::Address;
use super::readiness::{Readiness, Waiting};
use super::{Start, log, log_phases, weight_files};
use crate::clock::Clock;
use crate::engine::{EngineError, EngineSpec, ErrorClass};
use crate::hardware::proc::{Started, listener};
use crate::plan::Cold;
use crate::plan::lifecycle::CommandPlan;
use crate::record::{JournalEvent, PageCache};

/// After so many starts in a row that failed, no other one is tried: each may
/// take as long as an engine is waited for.
const MAX_FAILED_STARTS: u32 = 2;

/// A command, and what of it runs now.
#[derive(Debug)]
pub(super) struct CommandEngine {
    name: String,
    index: u32,
    plan: CommandPlan,
    model: String,
    readiness: Readiness,
    /// The folder of logs whose place the plan does not name.
    pub(super) logs: PathBuf,
    program: PathBuf,
    clock: Clock,
    process: Option<Process>,
    /// What the last start brought forth, for whoever watches meanwhile.
    started: Arc<Mutex<Option<Started>>>,
    /// Length of the log as the last start began.
    log_from: u64,
    num_starts: u32,
    num_failed_starts: u32,
    /// Folders that one start's compiled code went to.
    caches: Vec<PathBuf>,
}

impl CommandEngine {
    /// Chooses the engine's port, and has `spec` say so.
    ///
    /// # Errors
    /// When no port is free.
    pub(super) fn new(
        index: u32,
        spec: &mut EngineSpec,
        plan: &CommandPlan,
        model: &str,
        (program, logs, clock): (PathBuf, PathBuf, Clock),
        started: Arc<Mutex<Option<Started>>>,
    ) -> Result<Self, EngineError> {
        let failed = |what: String| {
            EngineError::new(ErrorClass::Engine, format!("engine {}: {what}", spec.name))
        };
        let port = launch::port(plan, spec).map_err(failed)?;
        if let Some(url) = &mut spec.url {
            // Fails only for URLs that have no host, which a specification refuses.
            let _ = url.set_port(Some(port));
        }
        let url = spec.url.as_ref();
        let path = url.map_or("", |url| url.path()).trim_end_matches('/');
        let address = Address {
            host: url.and_then(url::Url::host_str).unwrap_or("127.0.0.1").to_owned(),
            port,
            base: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            bearer: spec.setting("api_key_env").and_then(|name| std::env::var(name).ok()),
        };
        Ok(Self {
            name: spec.name.clone(),
            index,
            model: spec.setting("model").unwrap_or(model).to_owned(),
            readiness: Readiness::new(spec.kind, address, plan.ready.as_deref()),
            plan: plan.clone(),
            logs,
            program,
            clock,
            process: None,
            started,
            log_from: 0,
            num_starts: 0,
            num_failed_starts: 0,
            caches: Vec::new(),
        })
    }

    /// What a cold case takes away.
    pub(super) fn cold(&self) -> &[Cold] {
        &self.plan.cold
    }

    pub(super) fn is_up(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.is_over())
    }

    /// The event of an end that nobody asked for, once.
    pub(super) fn take_exit(&mut self) -> Option<(crate::clock::Timestamp, JournalEvent)> {
        let process = self.process.take_if(|process| process.is_over())?;
        // Its supervisor may have been killed before it could say anything.
        let exit = process.exit();
        let Exit { at, code, signal } =
            exit.unwrap_or(Exit { at: self.clock.now(), code: None, signal: None });
        let log_tail = log::tail(&self.log(), self.log_from);
        drop(process);
        Some((at, JournalEvent::EngineExited { engine: self.index, code, signal, log_tail }))
    }

    /// Starts it and follows it until it serves.
    ///
    /// # Errors
    /// Why it does not serve. Nothing of it runs then.
    pub(super) fn start(&mut self, start: &mut Start<'_>) -> Result<(), EngineError> {
        if self.num_failed_starts >= MAX_FAILED_STARTS {
            let what =
                format!("did not start {MAX_FAILED_STARTS} times in a row, and is not tried again");
            return Err(self.error(ErrorClass::Engine, &what));
        }
        let result = self.try_start(start);
        match &result {
            Ok(()) => self.num_failed_starts = 0,
            Err(error) if error.class == ErrorClass::Cancelled => {}
            Err(_) => self.num_failed_starts += 1,
        }
        if result.is_err() {
            // The end of what is dropped here is not one that nobody asked for.
            self.process = None;
            self.forget_caches();
        }
        result
    }

    fn try_start(&mut self, start: &mut Start<'_>) -> Result<(), EngineError> {
        let address = &self.readiness.address;
        if address.is_open() {
            let by = listener::on(address.port).map_or(String::new(), |listener| {
                format!(" by {} (process {})", listener.name, listener.pid)
            });
            let what = format!("cannot be started: port {} is taken{by}", address.port);
            let hint =
                "stop what listens there, or give the engine another `port`, or `port = \"free\"`";
            return Err(self.error(ErrorClass::Engine, &what).with_hint(hint));
        }
        self.num_starts += 1;
        let cannot =
            |what: String| self.error(ErrorClass::Engine, &format!("cannot be started: {what}"));
        let log = self.log();
        if let Some(folder) = log.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|error| cannot(format!("log {}: {error}", log.display())))?;
        }
        let caches = if start.cold.contains(&Cold::CompileCache) {
            self.fresh_caches().map_err(&cannot)?
        } else {
            BTreeMap::new()
        };
        let launch = Launch {
            plan: &self.plan,
            port: address.port,
            model: &self.model,
            log: log.clone(),
            container: format!(
                "yardstick-{}-{}-{}",
                self.plain_name(),
                std::process::id(),
                self.num_starts
            ),
            caches: caches.clone(),
        };
        let order = launch.order().map_err(&cannot)?;
        let page_cache = if start.cold.contains(&Cold::PageCache) {
            Some(weight_files::evict(&self.plan.weights).map_err(&cannot)?)
        } else if self.plan.weights.is_empty() {
            None
        } else {
            Some(weight_files::look(&self.plan.weights).map_err(&cannot)?)
        };
        let log_from = log::length(&log);
        let mut process = Process::arm(&self.program, order, &self.clock).map_err(&cannot)?;
        self.caches.extend(caches.into_values());
        self.log_from = log_from;
        let mut cold = start.cold.to_vec();
        // Only what was seen to be cold is called so.
        cold.retain(|kind| {
            *kind != Cold::PageCache || page_cache.as_ref().is_some_and(PageCache::is_cold)
        });
        let at = process.go(&self.clock);
        *self.started.lock().unwrap_or_else(PoisonError::into_inner) = process.started();
        self.process = Some(process);
        let (engine, case) = (self.index, start.case);
        start.note(at, JournalEvent::EngineStarted { engine, case, cold, page_cache });
        self.follow(start)?;
        let now = self.clock.now();
        for phase in log_phases::parse(&log::since(&self.log(), self.log_from)) {
            let log_phases::LogPhase { phase, took_ns } = phase;
            start.note(now, JournalEvent::LogPhase { engine, case, phase, took_ns });
        }
        Ok(())
    }

    /// Waits until it serves.
    fn follow(&self, start: &mut Start<'_>) -> Result<(), EngineError> {
        let limit = Duration::from_secs(self.plan.ready_timeout_s.into());
        let until = self.clock.now().plus(limit);
        let cancel = start.cancel.clone();
        let give_up = || cancel.is_cancelled() || !self.is_up();
        let (engine, case) = (self.index, start.case);
        let followed = self.readiness.follow(&self.clock, until, &give_up, &mut |phase, at| {
            start.note(at, JournalEvent::StartPhase { engine, case, phase });
        });
        // A port that somebody else opened meanwhile answers for a dead engine, too.
        let (why, what) = match followed {
            Ok(()) if self.is_up() => return Ok(()),
            Ok(()) => (Waiting::GivenUp, String::new()),
            Err(error) => error,
        };
        if cancel.is_cancelled() {
            return Err(self.error(ErrorClass::Cancelled, "was interrupted while it started"));
        }
        let said = log::quote(&log::tail(&self.log(), self.log_from));
        let said = said.map_or(String::new(), |said| format!(": {said}"));
        let error = match why {
            Waiting::GivenUp => {
                let exit = self.process.as_ref().and_then(Process::exit);
                let how = exit.map_or("ended".to_owned(), |exit| describe(&exit));
                self.error(ErrorClass::Engine, &format!("{how} while starting{said}"))
            }
            Waiting::TooLong => {
                let what =
                    format!("was not ready within {} s: waited for {what}{said}", limit.as_secs());
                self.error(ErrorClass::Timeout, &what)
            }
        };
        let exit = self.process.as_ref().and_then(Process::exit);
        let left = exit.is_some_and(|exit| exit.code == Some(0));
        let log = self.log();
        let hint = if left && why == Waiting::GivenUp {
            format!("its command must stay in the foreground; its output is in {}", log.display())
        } else {
            format!("its whole output is in {}", log.display())
        };
        Err(error.with_hint(hint))
    }

    /// Stops it; how long that took, and whether it had to be killed.
    pub(super) fn stop(&mut self) -> Option<(Duration, bool)> {
        let process = self.process.take()?;
        let begun = self.clock.now();
        let killed = process.stop();
        self.forget_caches();
        Some((self.clock.now().since(begun), killed))
    }

    fn log(&self) -> PathBuf {
        let named = self.plan.log.as_ref().map(PathBuf::from);
        named.unwrap_or_else(|| self.logs.join(format!("{}.log", self.plain_name())))
    }

    /// Its name without what a container's and a file's cannot carry.
    fn plain_name(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        self.name.chars().map(|c| if plain(c) { c } else { '-' }).collect()
    }

    /// A folder of ours for each cache, so that no cache of the user's is touched.
    fn fresh_caches(&self) -> Result<BTreeMap<String, PathBuf>, String> {
        let folder = |name: &String| {
            let folder = format!("cache-{}-{}-{name}", self.plain_name(), self.num_starts);
            let path = std::path::absolute(self.logs.join(folder)).map_err(|e| e.to_string())?;
            std::fs::create_dir_all(&path)
                .map_err(|error| format!("cache {}: {error}", path.display()))?;
            Ok((name.clone(), path))
        };
        self.plan.compile_cache_env.iter().map(folder).collect()
    }

    fn forget_caches(&mut self) {
        for cache in self.caches.drain(..) {
            // What is left takes space and harms nothing.
            let _ = std::fs::remove_dir_all(cache);
        }
    }

    fn error(&self, class: ErrorClass, what: &str) -> EngineError {
        EngineError::new(class, format!("engine {} {what}", self.name))
    }
}

/// `exited with status 3`, `was ended by signal 9 (SIGKILL)`.
fn describe(exit: &Exit) -> String {
    match (exit.code, exit.signal) {
        (_, Some(signal)) => format!("was ended by signal {signal}"),
        (Some(code), None) => format!("exited with status {code}"),
        (None, None) => "ended".to_owned(),
    }
}
