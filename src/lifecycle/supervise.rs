//! The process between yardstick and an engine. It outlives `kill -9` of
//! yardstick by the moment that it takes to kill the engine and every
//! descendant of it; if it is killed itself, the kernel kills the engine.
//! Knows processes, no engine.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process_group, set_child_subreaper,
    set_parent_process_death_signal, setsid, wait,
};

use super::log;
use super::order::{Order, Report, Word};
use super::process::{clean_up, kill};
use crate::clock::{Clock, Timestamp};
use crate::hardware::proc::Table;

/// Time between two looks for what still lives, when all is being killed.
const SWEEP: Duration = Duration::from_millis(20);
/// After this a process that does not die (waiting in the kernel) is given up.
const SWEEP_LIMIT: Duration = Duration::from_secs(20);
/// Time between two looks at the length of the log.
const LOG_LOOK: Duration = Duration::from_millis(100);
/// Longest order, in bytes.
const MAX_ORDER: u64 = 1 << 20;

enum Event {
    Word(Word),
    /// Yardstick is gone.
    Orphaned,
    Exited {
        code: Option<i32>,
        signal: Option<i32>,
    },
    /// No child is left, and so, for a subreaper, no descendant.
    Childless,
}

/// Serves one order from standard input to its end.
///
/// # Errors
/// When the order cannot be read.
pub fn supervise() -> io::Result<()> {
    // A session of its own: Ctrl-C at the terminal is yardstick's alone. It
    // fails for a session leader, which is as good.
    let _ = setsid();
    set_child_subreaper(Some(getpid()))?;
    let mut input = BufReader::new(io::stdin());
    let mut line = String::new();
    Read::take(&mut input, MAX_ORDER).read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    let child = match arm(&order) {
        Ok(child) => child,
        Err(error) => return report(&Report::Failed { message: error.to_string() }),
    };
    let pid = Pid::from_child(&child);
    report(&Report::Armed { pid: child.id() })?;
    let (events, queue) = channel();
    listen(input, events.clone());
    reap(pid, events);
    let killed = Supervisor { order: &order, group: pid, queue }.run(child);
    clean_up(&order.cleanup);
    report(&Report::Over { killed })
}

/// Becomes the engine once its parent says so: the other half of `arm`.
/// Returns only if that failed.
///
/// # Errors
/// Why the command cannot be executed.
pub fn become_engine(supervisor: i32, command: &[String]) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The supervisor may have died before the line above.
    if getppid().map_or(0, Pid::as_raw_pid) != supervisor {
        return Ok(());
    }
    let mut go = [0];
    // The pipe's end without a byte: it was never told to go.
    if io::stdin().read(&mut go)? == 0 {
        return Ok(());
    }
    let [program, arguments @ ..] = command else { return Ok(()) };
    Err(Command::new(program).args(arguments).exec())
}

/// Starts the process that becomes the engine, waiting in a group of its own.
/// Loading this program is then no part of the engine's start.
fn arm(order: &Order) -> io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(&order.log)?;
    watch_length(log.try_clone()?);
    let mut command = Command::new("/proc/self/exe");
    command.arg("supervise-exec").arg(getpid().as_raw_pid().to_string()).arg("--");
    command.args(&order.command).envs(&order.env).process_group(0);
    if let Some(cwd) = &order.cwd {
        command.current_dir(cwd);
    }
    command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).spawn()
}

/// An engine may write without end; the disk has one.
fn watch_length(file: File) {
    std::thread::spawn(move || {
        let from = file.metadata().map_or(0, |metadata| metadata.len());
        let mut given = 0;
        loop {
            std::thread::sleep(LOG_LOOK);
            given = log::thin(&file, from, given);
        }
    });
}

fn report(report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    // Yardstick may be gone; the engine must end all the same.
    let _ = io::stdout().write_all(&line).and_then(|()| io::stdout().flush());
    Ok(())
}

fn listen(input: impl BufRead + Send + 'static, events: Sender<Event>) {
    std::thread::spawn(move || {
        for line in input.lines().map_while(Result::ok) {
            if let Ok(word) = serde_json::from_str(&line) {
                let _ = events.send(Event::Word(word));
            }
        }
        let _ = events.send(Event::Orphaned);
    });
}

/// Waits for every child, adopted ones too.
fn reap(engine: Pid, events: Sender<Event>) {
    std::thread::spawn(move || {
        loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) if pid == engine => {
                    let (code, signal) = (status.exit_status(), status.terminating_signal());
                    if code.is_some() || signal.is_some() {
                        let _ = events.send(Event::Exited { code, signal });
                    }
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        let _ = events.send(Event::Childless);
    });
}

struct Supervisor<'a> {
    order: &'a Order,
    group: Pid,
    queue: Receiver<Event>,
}

impl Supervisor<'_> {
    /// Follows the engine to its end, after which none of its processes lives;
    /// `true` if one had to be killed after it was asked to stop.
    fn run(&self, mut child: Child) -> bool {
        loop {
            match self.queue.recv() {
                Ok(Event::Word(Word::Go)) => {
                    // One byte, then the end: all that the engine will find there.
                    if let Some(mut pipe) = child.stdin.take() {
                        let _ = pipe.write_all(b"g");
                    }
                }
                Ok(Event::Word(Word::Stop)) => return self.stop(),
                Ok(Event::Exited { code, signal }) => {
                    let _ = report(&Report::Exited { code, signal });
                    self.kill();
                    return false;
                }
                Ok(Event::Childless) => return false,
                Ok(Event::Orphaned) | Err(_) => {
                    self.kill();
                    return true;
                }
            }
        }
    }

    fn stop(&self) -> bool {
        if let Some(signal) = Signal::from_named_raw(self.order.stop_signal) {
            let _ = kill_process_group(self.group, signal);
        }
        let clock = Clock::real();
        let until = clock.now().plus(Duration::from_millis(self.order.stop_grace_ms));
        loop {
            match self.queue.recv_timeout(left(&clock, until)) {
                Ok(Event::Exited { code, signal }) => {
                    let _ = report(&Report::Exited { code, signal });
                }
                Ok(Event::Childless) => return false,
                Ok(Event::Word(_)) => {}
                Ok(Event::Orphaned) | Err(_) => {
                    self.kill();
                    return true;
                }
            }
        }
    }

    /// Kills the group and whatever descends from it, until nothing is left.
    fn kill(&self) {
        let clock = Clock::real();
        let until = clock.now().plus(SWEEP_LIMIT);
        while clock.now() < until {
            let _ = kill_process_group(self.group, Signal::KILL);
            kill(Table::read().below(std::process::id()));
            let next = clock.now().plus(SWEEP);
            loop {
                match self.queue.recv_timeout(left(&clock, next)) {
                    Ok(Event::Exited { code, signal }) => {
                        let _ = report(&Report::Exited { code, signal });
                    }
                    Ok(Event::Childless) | Err(RecvTimeoutError::Disconnected) => return,
                    Ok(Event::Word(_) | Event::Orphaned) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                }
            }
        }
    }
}

fn left(clock: &Clock, until: Timestamp) -> Duration {
    until.since(clock.now())
}
