//! The phases of a run's cases: make cold or warm up, measure, write down.
//! Hands out no statistics and prints nothing; an [`Observer`] is told what happens.

mod entry;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::engine::{Engine, ErrorClass};
use crate::infer::InferError;
use crate::infer::telemetry::ResidentBytes;
use crate::load::{Completed, drive};
use crate::plan::Case;
use crate::record::{JournalEntry, JournalEvent, RecordWriter, RequestRecord, Stopped};
use crate::workload::{Workload, prompt_sha256};
use watch::Watch;

/// Processor time that this process has used, for the client's own share.
pub type CpuTime = fn() -> Duration;

/// Everything that the cases of one run share.
pub struct Session<'a> {
    /// By the index that cases carry; `None` for one that did not answer.
    pub engines: Vec<Option<Arc<dyn Engine>>>,
    /// The prompts.
    pub workload: &'a Workload,
    /// The run's clock.
    pub clock: &'a Clock,
    /// Where lines go.
    pub writer: &'a RecordWriter,
    /// Set when the user asks to stop.
    pub cancel: CancellationToken,
    /// Read before and after each case.
    pub cpu_time: CpuTime,
    /// Read by engines in this process as they load and step.
    pub resident_bytes: ResidentBytes,
}

/// Is told how a run goes, for progress on a terminal.
pub trait Observer {
    /// A case begins: `what` it does now (`loading`, `warming up`, `measuring`).
    fn phase(&mut self, case: &Case, what: &str);
    /// A measured request ended.
    fn request(&mut self, record: &RequestRecord);
    /// A case ended; `failure` says why it did not come to its end.
    fn finished(&mut self, case: &Case, failure: Option<&str>);
}

/// Why a run ended before its last case.
#[derive(Debug)]
pub enum Ended {
    /// Every case was run.
    Complete,
    /// The user asked to stop; what was measured is kept.
    Interrupted,
    /// The recorder cannot write any more; nothing is measured that cannot be kept.
    RecorderStopped,
}

/// Runs every case that is not absent, in order.
pub async fn run_cases(
    session: &Session<'_>,
    cases: &[Case],
    observer: &mut dyn Observer,
) -> Ended {
    if session.note(JournalEvent::RunStarted).is_err() {
        return Ended::RecorderStopped;
    }
    let watch = Watch::start(session);
    let ended = run_each(session, cases, &watch, observer).await;
    if matches!(ended, Ended::RecorderStopped) || watch.write_all(session).is_err() {
        return Ended::RecorderStopped;
    }
    match ended {
        Ended::Complete => {
            let noted = session.note(JournalEvent::RunFinished);
            noted.map_or(Ended::RecorderStopped, |()| Ended::Complete)
        }
        ended => ended,
    }
}

async fn run_each(
    session: &Session<'_>,
    cases: &[Case],
    watch: &Watch,
    observer: &mut dyn Observer,
) -> Ended {
    let mut warm = vec![false; session.engines.len()];
    for (number, case) in (0..).zip(cases) {
        let Some(engine) = session.engines[case.engine].as_ref().filter(|_| case.absent.is_none())
        else {
            continue;
        };
        let cell = Cell { number, case, engine, watch };
        let result = run_case(session, &cell, &mut warm[case.engine], observer).await;
        match result {
            Ok(()) => observer.finished(case, None),
            Err(Failure::Case(message)) => {
                observer.finished(case, Some(&message));
                if session.note(JournalEvent::CaseFailed { case: number, message }).is_err() {
                    return Ended::RecorderStopped;
                }
            }
            Err(Failure::Recorder) => return Ended::RecorderStopped,
        }
        if session.cancel.is_cancelled() {
            let noted = session.note(JournalEvent::Interrupted);
            return noted.map_or(Ended::RecorderStopped, |()| Ended::Interrupted);
        }
    }
    Ended::Complete
}

/// A case that is being run.
struct Cell<'a> {
    number: u32,
    case: &'a Case,
    engine: &'a Arc<dyn Engine>,
    watch: &'a Watch,
}

enum Failure {
    Case(String),
    Recorder,
}

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        Self::Recorder
    }
}

impl From<InferError> for Failure {
    fn from(error: InferError) -> Self {
        Self::Case(error.to_string())
    }
}

async fn run_case(
    session: &Session<'_>,
    cell: &Cell<'_>,
    warm: &mut bool,
    observer: &mut dyn Observer,
) -> Result<(), Failure> {
    let Cell { number, case, engine, watch } = *cell;
    let cold = case.experiment.is_cold();
    if cold {
        observer.phase(case, "making cold");
        let took = engine.make_cold().await.map_err(|error| Failure::Case(error.message))?;
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        session.note(JournalEvent::MadeCold { case: number, took_ns })?;
    } else if !*warm {
        observer.phase(case, "warming up");
        warm_up(session, number, case, engine).await?;
    }
    // Also a cold case leaves its engine warm.
    *warm = true;
    observer.phase(case, "measuring");
    let requests = (0..case.num_requests)
        .map(|index| session.workload.request(case.load, index))
        .collect::<Result<Vec<_>, _>>()?;
    let digests: Vec<_> = requests.iter().map(|request| prompt_sha256(&request.prompt)).collect();
    let max_tokens = requests.first().map_or(0, |request| request.max_tokens);
    session.note(JournalEvent::CaseStarted { case: number })?;
    let cpu_before = (session.cpu_time)();
    let concurrency = case.concurrency as usize;
    let mut stopped = Ok(());
    drive(engine, requests, concurrency, session.clock, &session.cancel, &mut |completed| {
        let index = completed.index;
        let record = entry::record(
            completed,
            entry::Setting {
                case: number,
                warmup: false,
                // The opening burst meets the cold engine; what follows does not.
                cold: cold && index < concurrency,
                requested_prompt_tokens: session.workload.requested_prompt_tokens(),
                max_tokens,
                prompt_sha256: digests.get(index).cloned().unwrap_or_default(),
            },
        );
        observer.request(&record);
        stopped = session.writer.request(record);
        // In between, so that no channel fills up however long the case is.
        stopped = stopped.and_then(|()| watch.write(case.engine, session));
        stopped.is_ok()
    })
    .await;
    stopped?;
    let client_cpu = (session.cpu_time)().saturating_sub(cpu_before);
    let client_cpu_ns = u64::try_from(client_cpu.as_nanos()).unwrap_or(u64::MAX);
    watch.write(case.engine, session)?;
    if !session.cancel.is_cancelled() {
        session.note(JournalEvent::CaseFinished { case: number, client_cpu_ns })?;
    }
    Ok(())
}

/// One request alone, so that a lazy engine loads, then a burst of the case's
/// size, so that its batch shapes are met. Fails the case if nothing answers.
async fn warm_up(
    session: &Session<'_>,
    number: u32,
    case: &Case,
    engine: &Arc<dyn Engine>,
) -> Result<(), Failure> {
    let concurrency = case.concurrency as usize;
    let requests = (0..=case.concurrency)
        .map(|index| session.workload.warm_up(index))
        .collect::<Result<Vec<_>, _>>()?;
    let (alone, burst) = requests.split_at(1);
    let mut last_error = None;
    let mut stopped = Ok(());
    let mut keep = |completed: Completed| {
        last_error = completed.exchange.outcome.as_ref().err().cloned();
        let record = entry::record(
            completed,
            entry::Setting {
                case: number,
                warmup: true,
                cold: false,
                requested_prompt_tokens: session.workload.requested_prompt_tokens(),
                max_tokens: alone[0].max_tokens,
                prompt_sha256: String::new(),
            },
        );
        stopped = session.writer.request(record);
        stopped.is_ok()
    };
    drive(engine, alone.to_vec(), 1, session.clock, &session.cancel, &mut keep).await;
    drive(engine, burst.to_vec(), concurrency, session.clock, &session.cancel, &mut keep).await;
    stopped?;
    match last_error {
        Some(error) if error.class != ErrorClass::Cancelled => {
            Err(Failure::Case(format!("warm-up failed: {}", error.message)))
        }
        Some(_) | None => Ok(()),
    }
}

impl Session<'_> {
    fn note(&self, event: JournalEvent) -> Result<(), Stopped> {
        self.writer.journal(JournalEntry { at_ns: self.clock.now(), event })
    }
}
