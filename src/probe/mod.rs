//! What engines, this process and the GPUs use while a run measures: one
//! thread that looks at `/proc` and NVML by absolute deadlines, and a slower
//! one that asks engines for their own word. Both stamp with the run's clock
//! and write lines of `resources.jsonl`. Knows engines by where they run, no
//! case and no statistic; nothing here can fail a run: what cannot be read is
//! absent, with its reason in the journal.

mod asker;
mod engine_word;
mod looker;
mod nvml;
mod procfs;
mod prometheus;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::engine::EngineSpec;
use crate::hardware::proc::Started;
use crate::record::{JournalEntry, JournalEvent, LineSender, ResourceSource};
use crate::units;

/// Looks a second unless another number is asked for.
pub const DEFAULT_HZ: u32 = 20;
/// Most looks a second: beyond it the probe would be a load of its own.
pub const MAX_HZ: u32 = 1000;
/// Questions that may wait for the asking thread.
const QUESTIONS: usize = 16;

/// Where an engine's processes are to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// In this process, which is looked at anyway.
    Here,
    /// The process that listens on this port of this machine.
    Port(u16),
    /// What yardstick started.
    Started(Started),
    /// Nowhere: yardstick has not started it yet, or it has ended since.
    Stopped,
    /// Nowhere that can be looked at, and why.
    Unknown(String),
}

/// What the probe's threads and its handles share.
struct Shared {
    /// By the engines' index in the manifest.
    places: Mutex<Vec<Place>>,
    /// Whether an engine is being started, whose processes come one after another.
    starting: AtomicBool,
    /// Engine that is asked for its word in between, by index.
    attended: Mutex<Option<usize>>,
    /// Processor time that the asking thread has used.
    asker_cpu_ns: AtomicU64,
}

impl Shared {
    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attended(&self) -> MutexGuard<'_, Option<usize>> {
        self.attended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the threads write.
#[derive(Clone)]
struct Journal {
    lines: LineSender,
    clock: Clock,
}

impl Journal {
    /// Notes that something cannot be read; a recorder that has stopped is
    /// noticed where it matters.
    fn absent(&self, source: ResourceSource, engine: Option<usize>, what: &str, reason: &str) {
        let engine = engine.and_then(|index| u32::try_from(index).ok());
        let (what, reason) = (what.to_owned(), reason.to_owned());
        self.note(JournalEvent::ResourceAbsent { source, engine, what, reason });
    }

    fn note(&self, event: JournalEvent) {
        let _ = self.lines.journal(JournalEntry { at_ns: self.clock.now(), event });
    }
}

/// A question to the asking thread: one engine's word, now.
struct Question {
    engine: usize,
    /// Told once the answer is written, or there is none.
    done: oneshot::Sender<()>,
}

/// A probe that runs. Ends with [`Probe::stop`] or as it is dropped.
pub struct Probe {
    handle: Handle,
    /// Dropped to end the looking thread.
    stop: Option<SyncSender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// What the run tells the probe. Cheap to clone; one that is off does nothing.
#[derive(Clone, Default)]
pub struct Handle(Option<Running>);

#[derive(Clone)]
struct Running {
    shared: Arc<Shared>,
    questions: mpsc::Sender<Question>,
}

impl Probe {
    /// Starts both threads. `hz` is looks a second, 1 to [`MAX_HZ`]; engines
    /// are those of the manifest, in its order, and of each `led` says whether
    /// yardstick starts it: then it is looked for from [`Handle::starts`] on.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        hz: u32,
        engines: &[EngineSpec],
        led: &[bool],
        clock: &Clock,
        lines: &LineSender,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            places: Mutex::new(places(engines, led)),
            starting: AtomicBool::new(false),
            attended: Mutex::new(None),
            asker_cpu_ns: AtomicU64::new(0),
        });
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let (stop, stopped) = std::sync::mpsc::sync_channel(0);
        let journal = Journal { lines: lines.clone(), clock: clock.clone() };
        let interval = Duration::from_secs(1) / hz.clamp(1, MAX_HZ);
        let looking = {
            let (shared, journal) = (Arc::clone(&shared), journal.clone());
            move || looker::look(interval, &shared, &journal, &stopped)
        };
        let asking = {
            let (shared, engines) = (Arc::clone(&shared), engines.to_vec());
            move || asker::ask(&engines, &shared, &journal, asked)
        };
        let threads = vec![
            thread::Builder::new().name("probe".to_owned()).spawn(looking)?,
            thread::Builder::new().name("probe-word".to_owned()).spawn(asking)?,
        ];
        let handle = Handle(Some(Running { shared, questions }));
        Ok(Self { handle, stop: Some(stop), threads })
    }

    /// A handle for whoever runs the cases.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends both threads and waits for them, a question under way included:
    /// every line is with the recorder then. Handles that are left do nothing.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop = None;
        self.handle.attend(None);
        if let Some(running) = self.handle.0.take() {
            let (done, _) = oneshot::channel();
            // No such engine: the sign to end, also while handles are left.
            let _ = running.questions.try_send(Question { engine: usize::MAX, done });
        }
        for thread in self.threads.drain(..) {
            // A panic was printed as it happened, and costs samples, not the run.
            let _ = thread.join();
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.end();
    }
}

impl Handle {
    /// A handle of no probe.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Has what was `started` looked at as an engine, by its index in the
    /// manifest: whoever starts an engine knows its processes before a port is
    /// open, and behind one that something else holds. New ones are looked for
    /// often until [`Handle::serves`].
    pub fn starts(&self, engine: usize, started: Started) {
        self.set(engine, Place::Started(started));
        self.set_starting(true);
    }

    /// The engine serves.
    pub fn serves(&self) {
        self.set_starting(false);
    }

    /// An engine that yardstick started has ended.
    pub fn stopped(&self, engine: usize) {
        self.set(engine, Place::Stopped);
        self.set_starting(false);
    }

    /// Before a case's first request: takes down the engine's own word and asks
    /// for it now and then from here on. A cold engine is asked nothing, since
    /// its first request must be the one that is measured.
    pub async fn open_case(&self, engine: usize, cold: bool) {
        if !cold {
            self.take_word(engine).await;
            self.attend(Some(engine));
        }
    }

    /// After a case's last request: takes down the engine's word once more.
    pub async fn close_case(&self, engine: usize) {
        self.attend(None);
        self.take_word(engine).await;
    }

    async fn take_word(&self, engine: usize) {
        let Some(running) = &self.0 else { return };
        let (done, answered) = oneshot::channel();
        // Bounded: the asking thread waits at most a second for an engine.
        if running.questions.send(Question { engine, done }).await.is_ok() {
            let _ = answered.await;
        }
    }

    fn attend(&self, engine: Option<usize>) {
        if let Some(running) = &self.0 {
            *running.shared.attended() = engine;
        }
    }

    fn set_starting(&self, starting: bool) {
        if let Some(running) = &self.0 {
            running.shared.starting.store(starting, Ordering::Release);
        }
    }

    fn set(&self, engine: usize, place: Place) {
        if let Some(running) = &self.0
            && let Some(known) = running.shared.places().get_mut(engine)
        {
            *known = place;
        }
    }
}

fn places(engines: &[EngineSpec], led: &[bool]) -> Vec<Place> {
    let is_led = led.iter().copied().chain(std::iter::repeat(false));
    let of = |(spec, is_led)| if is_led { Place::Stopped } else { place(spec) };
    engines.iter().zip(is_led).map(of).collect()
}

/// Where an engine is, as far as its specification says.
fn place(spec: &EngineSpec) -> Place {
    let Some(url) = &spec.url else { return Place::Here };
    let is_here = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match url.port_or_known_default() {
        Some(port) if is_here => Place::Port(port),
        _ => Place::Unknown(format!(
            "{} is not this machine's loopback address",
            url.host_str().unwrap_or("its URL")
        )),
    }
}

fn add_cpu(counter: &AtomicU64, used: Duration) {
    counter.store(units::nanos(used), Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: &str) -> Place {
        place(&spec.parse().unwrap())
    }

    #[test]
    fn engines_are_looked_for_where_their_url_says() {
        assert_eq!(of("embedded"), Place::Here);
        assert_eq!(of("vllm"), Place::Port(8000));
        assert_eq!(of("openai=http://localhost:81/v1"), Place::Port(81));
        assert_eq!(of("openai=http://[::1]:82"), Place::Port(82));
        let Place::Unknown(reason) = of("vllm=https://gpu.example") else { panic!() };
        assert_eq!(reason, "gpu.example is not this machine's loopback address");
    }
}
