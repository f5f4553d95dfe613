//! Engines that yardstick starts, stops and makes cold: each one's process, or
//! service, and its state. Knows no case and no statistic; what happens goes to the journal
//! through whoever asks.

mod cloud_run;
mod command;
mod launch;
mod log;
pub mod log_phases;
pub mod order;
pub mod process;
mod question;
mod readiness;
mod sleep;
mod staging;
#[cfg(target_os = "linux")]
pub mod supervise;
mod weight_files;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::unbounded_channel;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Timestamp};
use crate::engine::{EngineError, EngineSpec, ErrorClass};
use crate::hardware::proc::Started;
use crate::plan::{Cold, LifecyclePlan, Plan, Residency};
use crate::record::{JournalEntry, JournalEvent};
use crate::units;
use cloud_run::CloudRunEngine;
use command::CommandEngine;
use sleep::SleepEngine;
use staging::Staging;

/// What one start is for, and who is told of it.
struct Start<'a> {
    case: Option<u32>,
    cold: &'a [Cold],
    cancel: &'a CancellationToken,
    sink: &'a mut dyn FnMut(JournalEntry),
}

impl Start<'_> {
    fn note(&mut self, at_ns: Timestamp, event: JournalEvent) {
        (self.sink)(JournalEntry { at_ns, event });
    }
}

#[derive(Debug)]
enum Managed {
    Command(Box<CommandEngine>),
    Sleep(SleepEngine),
    CloudRun(Arc<CloudRunEngine>),
}

/// Who started an engine that has a keeper, and so what is left at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Yardstick: it is stopped.
    Started,
    /// It ran before yardstick came, and is to run, awake, after it.
    Found,
    /// Its platform starts and stops it as requests come.
    Platform,
}

/// An engine whose life yardstick leads.
#[derive(Debug, Clone)]
pub struct Keeper {
    index: u32,
    managed: Arc<Mutex<Managed>>,
    /// Beside what is managed, which is locked as long as a start takes.
    started: Arc<Mutex<Option<Started>>>,
    clock: Clock,
}

/// The keepers of a run's engines. Dropping it stops what still runs.
#[derive(Debug)]
pub struct Lifecycles {
    /// By the engine's index.
    keepers: Vec<Option<Keeper>>,
    residency: Residency,
    logs: PathBuf,
    staging: Option<Staging>,
}

impl Lifecycles {
    /// Keepers for the engines of `plan`, none started. Ports are chosen now,
    /// and the plan's URLs say so from then on. Logs lie in `staging` until
    /// [`Lifecycles::settle`].
    ///
    /// # Errors
    /// When no port is free, or this system cannot end what it starts.
    pub fn new(
        plan: &mut Plan,
        program: &Path,
        staging: &Path,
        clock: &Clock,
    ) -> Result<Self, EngineError> {
        let residency = plan.residency();
        let goes_cold = plan.experiments.iter().any(|experiment| experiment.is_cold());
        let mut keepers = Vec::new();
        for (index, spec) in (0..).zip(&mut plan.engines) {
            let started = Arc::default();
            let lifecycle = plan.lifecycles.get(&spec.name);
            let managed = match lifecycle {
                None | Some(LifecyclePlan::External) => {
                    keepers.push(None);
                    continue;
                }
                Some(LifecyclePlan::Sleep { level }) => {
                    Managed::Sleep(SleepEngine::new(index, spec, *level, clock.clone()))
                }
                Some(LifecyclePlan::CloudRun(plan)) => Managed::CloudRun(Arc::new(
                    CloudRunEngine::new(index, spec, plan, goes_cold, clock.clone()),
                )),
                Some(LifecyclePlan::Command(command)) => {
                    only_on_linux(spec)?;
                    let setting = (program.to_owned(), staging.to_owned(), clock.clone());
                    let engine = CommandEngine::new(
                        index,
                        spec,
                        command,
                        &plan.model,
                        setting,
                        Arc::clone(&started),
                    )?;
                    Managed::Command(Box::new(engine))
                }
            };
            let managed = Arc::new(Mutex::new(managed));
            keepers.push(Some(Keeper { index, managed, started, clock: clock.clone() }));
        }
        Ok(Self { keepers, residency, logs: staging.to_owned(), staging: None })
    }

    /// Claims the folder for logs, if any engine is to be started: before the first is.
    ///
    /// # Errors
    /// When another run has it, or it cannot be written.
    pub fn claim(&mut self) -> Result<(), EngineError> {
        if (0..self.keepers.len()).any(|engine| self.starts(engine)) {
            self.staging = Some(Staging::claim(&self.logs)?);
        }
        Ok(())
    }

    /// The keeper of an engine, if it has one.
    #[must_use]
    pub fn keeper(&self, engine: usize) -> Option<&Keeper> {
        self.keepers.get(engine)?.as_ref()
    }

    /// Whether yardstick starts an engine's process.
    #[must_use]
    pub fn starts(&self, engine: usize) -> bool {
        self.keeper(engine).is_some_and(|keeper| keeper.origin() == Origin::Started)
    }

    /// Whether engines may hold memory at once.
    #[must_use]
    pub const fn residency(&self) -> Residency {
        self.residency
    }

    /// Whether yardstick starts any engine.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keepers.iter().all(Option::is_none)
    }

    /// Moves the logs into the run directory, which exists by now. A running
    /// engine goes on writing to the same file.
    ///
    /// # Errors
    /// What the system says.
    pub fn settle(&self, run_dir: &Path) -> std::io::Result<()> {
        let logs = run_dir.join("logs");
        if let Some(staging) = &self.staging {
            staging.settle(&logs)?;
        }
        for keeper in self.keepers.iter().flatten() {
            if let Managed::Command(engine) = &mut *keeper.lock() {
                engine.logs.clone_from(&logs);
            }
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
#[expect(clippy::unnecessary_wraps, reason = "it fails on other systems")]
const fn only_on_linux(_spec: &EngineSpec) -> Result<(), EngineError> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn only_on_linux(spec: &EngineSpec) -> Result<(), EngineError> {
    let what = format!(
        "engine {}: only on Linux can yardstick end everything that it started, so only there \
         does it start engines",
        spec.name
    );
    Err(EngineError::new(ErrorClass::Engine, what)
        .with_hint("start it yourself and leave its lifecycle out of the plan"))
}

impl Keeper {
    fn lock(&self) -> MutexGuard<'_, Managed> {
        self.managed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it runs, awake.
    #[must_use]
    pub fn is_up(&self) -> bool {
        match &*self.lock() {
            Managed::Command(engine) => engine.is_up(),
            Managed::Sleep(engine) => engine.is_up(),
            Managed::CloudRun(engine) => engine.is_up(),
        }
    }

    fn on_cloud_run(&self) -> Option<Arc<CloudRunEngine>> {
        match &*self.lock() {
            Managed::CloudRun(engine) => Some(Arc::clone(engine)),
            Managed::Command(_) | Managed::Sleep(_) => None,
        }
    }

    /// Its engine's index.
    #[must_use]
    pub const fn engine(&self) -> usize {
        self.index as usize
    }

    /// What its last start brought forth; `None` if there was none, or it only sleeps and wakes.
    #[must_use]
    pub fn started(&self) -> Option<Started> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The end of its process that nobody asked for, if there was one since the last call.
    #[must_use]
    pub fn take_exit(&self) -> Option<JournalEntry> {
        let Managed::Command(engine) = &mut *self.lock() else { return None };
        let (at_ns, event) = engine.take_exit()?;
        Some(JournalEntry { at_ns, event })
    }

    /// Starts it and returns once it serves. `cold` says whether everything is
    /// taken away that its plan names. `sink` is told each phase as it is reached.
    ///
    /// # Errors
    /// Why it does not serve; nothing of it runs then.
    pub async fn start(
        &self,
        case: Option<u32>,
        cold: bool,
        cancel: &CancellationToken,
        mut sink: impl FnMut(JournalEntry),
    ) -> Result<(), EngineError> {
        if let Some(engine) = self.on_cloud_run() {
            let cold = if cold { engine.cold() } else { &[] };
            return engine.start(&mut Start { case, cold, cancel, sink: &mut sink }).await;
        }
        let (keeper, cancel) = (self.clone(), cancel.clone());
        let (entries, mut queue) = unbounded_channel();
        // Followed on a thread of its own: to look every few milliseconds would
        // hold up the driver's.
        let task = tokio::task::spawn_blocking(move || {
            let mut sink = |entry| {
                // Whoever does not listen any more does not want to know.
                let _ = entries.send(entry);
            };
            let mut managed = keeper.lock();
            let all = match &*managed {
                Managed::Command(engine) => engine.cold().to_vec(),
                Managed::Sleep(engine) => engine.cold().to_vec(),
                Managed::CloudRun(_) => Vec::new(),
            };
            // What a warm case starts has no process either, and may find the rest.
            let first = all.get(..1).unwrap_or_default();
            let cold = if cold { all.as_slice() } else { first };
            let mut start = Start { case, cold, cancel: &cancel, sink: &mut sink };
            match &mut *managed {
                Managed::Command(engine) => engine.start(&mut start),
                Managed::Sleep(engine) => engine.start(&mut start),
                Managed::CloudRun(_) => Ok(()),
            }
        });
        while let Some(entry) = queue.recv().await {
            sink(entry);
        }
        joined(task.await)?
    }

    /// Stops it, if it runs, with everything that it started.
    ///
    /// # Errors
    /// When an engine that should sleep does not.
    pub async fn stop(&self) -> Result<Option<JournalEntry>, EngineError> {
        let keeper = self.clone();
        let stopped: Option<(Duration, bool)> = joined(
            tokio::task::spawn_blocking(move || match &mut *keeper.lock() {
                Managed::Command(engine) => Ok(engine.stop()),
                Managed::Sleep(engine) => engine.stop(),
                Managed::CloudRun(engine) => {
                    engine.forget();
                    Ok(None)
                }
            })
            .await,
        )??;
        Ok(stopped.map(|(took, killed)| {
            let took_ns = units::nanos(took);
            let event = JournalEvent::EngineStopped { engine: self.index, took_ns, killed };
            JournalEntry { at_ns: self.clock.now(), event }
        }))
    }

    /// Who started it.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match &*self.lock() {
            Managed::Command(_) => Origin::Started,
            Managed::Sleep(_) => Origin::Found,
            Managed::CloudRun(_) => Origin::Platform,
        }
    }

    /// What of it is not as it was found, in words.
    #[must_use]
    pub fn left_behind(&self) -> Option<String> {
        self.on_cloud_run()?.left_behind()
    }
}

/// What a blocking task returned; a panic in it goes on here.
fn joined<T>(result: Result<T, tokio::task::JoinError>) -> Result<T, EngineError> {
    result.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => EngineError::new(ErrorClass::Cancelled, "interrupted"),
    })
}
