//! An engine's process as yardstick sees it: armed, told to go, watched,
//! stopped. Everything that was started ends with it. Knows no HTTP.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::order::{Order, Report, Word};
use crate::clock::{Clock, Timestamp};
use crate::hardware::proc::{Started, with_variable};

/// Longest wait for a supervisor to start.
const ARM_LIMIT: Duration = Duration::from_secs(20);
/// Time beyond its grace after which a supervisor itself is given up.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Variable in the environment of everything that an engine's command starts.
pub(super) const MARK: &str = "YARDSTICK_ENGINE_MARK";

/// How an engine's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// When that was noticed, on the run's clock.
    pub at: Timestamp,
    /// Exit status, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

#[derive(Debug, Default)]
struct State {
    armed: Option<u32>,
    exit: Option<Exit>,
    killed: bool,
    /// The supervisor has said that nothing is left.
    tidied: bool,
    failed: Option<String>,
    /// The supervisor has ended.
    over: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `holds`, at most for `limit`; whether it holds.
    fn wait(&self, limit: Duration, holds: impl Fn(&State) -> bool) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |state| !holds(state));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        holds(&state)
    }
}

/// A process with its supervisor. Dropping it kills whatever still runs.
#[derive(Debug)]
pub struct Process {
    supervisor: Child,
    words: Option<ChildStdin>,
    shared: Arc<Shared>,
    /// `NAME=VALUE`, which tells this engine's processes from those of any other.
    mark: String,
    /// Whether a runtime starts the engine where the supervisor adopts nothing.
    in_container: bool,
    grace: Duration,
    /// Takes away what is no process: the supervisor's, unless that was killed.
    cleanup: Vec<String>,
}

impl Process {
    /// Starts a supervisor (`program` is this program) that waits to execute `order`.
    ///
    /// # Errors
    /// What kept it from being started.
    pub fn arm(program: &Path, mut order: Order, clock: &Clock) -> Result<Self, String> {
        let label = Clock::unique_label();
        let mark = format!("{MARK}={label}");
        order.env.insert(MARK.to_owned(), label);
        let mut line = serde_json::to_vec(&order).map_err(|error| error.to_string())?;
        line.push(b'\n');
        let mut supervisor = Command::new(program)
            .arg("supervise")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start its supervisor: {error}"))?;
        let shared = Arc::new(Shared::default());
        let reports = supervisor.stdout.take();
        let words = supervisor.stdin.take();
        let grace = Duration::from_millis(order.stop_grace_ms);
        let in_container = !order.cleanup.is_empty();
        let cleanup = order.cleanup.clone();
        let mut process = Self { supervisor, words, shared, mark, in_container, grace, cleanup };
        if let Some(reports) = reports {
            follow(reports, Arc::clone(&process.shared), clock.clone());
        }
        process.write(&line).map_err(|error| format!("cannot speak to its supervisor: {error}"))?;
        let told = |state: &State| state.armed.is_some() || state.failed.is_some() || state.over;
        process.shared.wait(ARM_LIMIT, told);
        let state = process.shared.lock();
        let failed = state.failed.clone();
        let armed = state.armed.is_some();
        drop(state);
        match failed {
            Some(message) => Err(message),
            None if armed => Ok(process),
            None => Err("its supervisor did not start".to_owned()),
        }
    }

    /// Has the command executed; the instant before that.
    pub fn go(&mut self, clock: &Clock) -> Timestamp {
        let at = clock.now();
        // A supervisor that is gone is noticed as the engine's end.
        let _ = self.say(Word::Go);
        at
    }

    /// The processes that this start brings forth.
    #[must_use]
    pub fn started(&self) -> Option<Started> {
        let pid = self.shared.lock().armed?;
        let mark = self.in_container.then(|| self.mark.clone());
        Some(Started { pid, supervisor: self.supervisor.id(), mark })
    }

    /// Whether nothing of it runs any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let state = self.shared.lock();
        state.over || state.exit.is_some()
    }

    /// How it ended, if it did, be it by itself.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.shared.lock().exit
    }

    /// Asks it to stop, and kills it after its grace; `true` if it had to be killed.
    pub fn stop(mut self) -> bool {
        let _ = self.say(Word::Stop);
        self.shared.wait(self.grace + STOP_LIMIT, |state| state.over);
        let killed = self.shared.lock().killed;
        killed | self.sweep()
    }

    fn say(&mut self, word: Word) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(&word)?;
        line.push(b'\n');
        self.write(&line)
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        self.words
            .as_mut()
            .map_or(Ok(()), |words| words.write_all(line).and_then(|()| words.flush()))
    }

    /// Ends the supervisor, and what it left if it was killed itself.
    fn sweep(&mut self) -> bool {
        drop(self.words.take());
        if !self.shared.wait(STOP_LIMIT, |state| state.over) {
            let _ = self.supervisor.kill();
        }
        let _ = self.supervisor.wait();
        let left: Vec<u32> = with_variable(&self.mark).collect();
        kill(left.iter().copied());
        if !self.shared.lock().tidied {
            clean_up(&std::mem::take(&mut self.cleanup));
        }
        !left.is_empty()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.sweep();
    }
}

/// Runs the command that takes away what is no process of ours, a container.
pub(super) fn clean_up(command: &[String]) {
    if let [program, arguments @ ..] = command {
        let mut quiet = Command::new(program);
        quiet.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = quiet.status();
    }
}

/// Kills each of them; one that is gone already is no matter.
pub(super) fn kill(pids: impl IntoIterator<Item = u32>) {
    for pid in pids {
        #[cfg(unix)]
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        #[cfg(not(unix))]
        let _ = pid;
    }
}

/// Takes in what the supervisor says, stamped as it comes.
fn follow(reports: ChildStdout, shared: Arc<Shared>, clock: Clock) {
    std::thread::spawn(move || {
        for line in BufReader::new(reports).lines().map_while(Result::ok) {
            let at = clock.now();
            let Ok(report) = serde_json::from_str::<Report>(&line) else { continue };
            let mut state = shared.lock();
            match report {
                Report::Armed { pid } => state.armed = Some(pid),
                Report::Exited { code, signal } => state.exit = Some(Exit { at, code, signal }),
                Report::Over { killed } => (state.killed, state.tidied) = (killed, true),
                // Nothing was executed.
                Report::Failed { message } => (state.failed, state.tidied) = (Some(message), true),
            }
            drop(state);
            shared.changed.notify_all();
        }
        shared.lock().over = true;
        shared.changed.notify_all();
    });
}

/// The program to run supervisors with: this one, even if its file was replaced meanwhile.
#[must_use]
pub fn this_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}
