//! The phases of a run's cases: make cold or warm up, measure, write down.
//! Hands out no statistics and prints nothing; an [`Observer`] is told what happens.

pub mod calibration;
mod condition;
mod decisions;
mod entry;
mod measure;
mod readiness;
mod search;
mod warm_up;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::engine::{Engine, EngineError};
use crate::infer::InferError;
use crate::infer::telemetry::ResidentBytes;
use crate::lifecycle::Lifecycles;
use crate::plan::{Case, WarmUp};
use crate::probe;
use crate::record::{JournalEntry, JournalEvent, RecordWriter, RequestRecord, Stopped};
use crate::workload::Workload;
use decisions::Decisions;
use readiness::Readiness;
use search::Search;
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
    /// How engines are brought to their speed before warm cases.
    pub warm_up: WarmUp,
    /// Set when the user asks to stop.
    pub cancel: CancellationToken,
    /// Read before and after each case.
    pub cpu_time: CpuTime,
    /// Read by engines in this process as they load and step.
    pub resident_bytes: ResidentBytes,
    /// Why the client is not measured before and after the cases; `None` if it is.
    pub no_calibration: Option<String>,
    /// Start and stop engines that yardstick leads.
    pub lifecycles: &'a Lifecycles,
    /// What they did before the first case, to be written down.
    pub introduction: Vec<JournalEntry>,
    /// Whether an engine without a keeper can be made to give its memory back.
    pub unloadable: Vec<bool>,
    /// Is told which engine is measured.
    pub probe: probe::Handle,
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
    let begun = session.note(JournalEvent::RunStarted);
    if begun.and_then(|()| condition::note_introduction(session)).is_err() {
        return Ended::RecorderStopped;
    }
    let watch = Watch::start(session);
    if calibration::of_run(session, cases, "before").await.is_err() {
        return Ended::RecorderStopped;
    }
    let ended = run_each(session, cases, &watch, observer).await;
    if matches!(ended, Ended::Complete)
        && calibration::of_run(session, cases, "after").await.is_err()
    {
        return Ended::RecorderStopped;
    }
    if matches!(ended, Ended::RecorderStopped) || watch.write_all(session).is_err() {
        return Ended::RecorderStopped;
    }
    if condition::leave(session).await.is_err() {
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
    let mut course = Course {
        engines: vec![Readiness::default(); session.engines.len()],
        next_warm_up_prompt: 0,
        decisions: Decisions::default(),
    };
    let mut search = Search::default();
    for (number, case) in (0..).zip(cases) {
        let Some(engine) = session.engines[case.engine].as_ref().filter(|_| case.absent.is_none())
        else {
            continue;
        };
        let not_needed = if !search.needs(case) {
            Some(search::NOT_NEEDED)
        } else {
            course.decisions.are_made(case).then_some(decisions::NOT_NEEDED)
        };
        if let Some(reason) = not_needed {
            let reason = reason.to_owned();
            if session.note(JournalEvent::CaseSkipped { case: number, reason }).is_err() {
                return Ended::RecorderStopped;
            }
            continue;
        }
        let cell = Cell { number, case, engine, watch };
        let result = run_case(session, &cell, &mut course, observer).await;
        let noted = condition::note_exits(session, &mut course.engines);
        let result = noted.map_or(Err(Failure::Recorder), |()| result);
        match result {
            Ok(kept) => {
                search.learn(case, &case.nameless_record(), &kept);
                observer.finished(case, None);
            }
            Err(Failure::Case(message)) => {
                search.learn(case, &case.nameless_record(), &[]);
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

/// What one case leaves behind for the next.
struct Course {
    engines: Vec<Readiness>,
    /// Never goes back, so that no warm-up prompt is sent twice in a run.
    next_warm_up_prompt: u32,
    decisions: Decisions,
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

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Case(match error.hint {
            Some(hint) => format!("{}; {hint}", error.message),
            None => error.message,
        })
    }
}

async fn run_case(
    session: &Session<'_>,
    cell: &Cell<'_>,
    course: &mut Course,
    observer: &mut dyn Observer,
) -> Result<Vec<RequestRecord>, Failure> {
    let Course { engines, next_warm_up_prompt, decisions } = course;
    let engine = cell.case.engine;
    condition::make_room(session, engine, engines).await?;
    if cell.case.cold {
        observer.phase(cell.case, "making cold");
        condition::make_cold(session, cell).await?;
        engines[engine].loaded_anew();
    } else {
        if condition::bring_up(session, cell).await? {
            engines[engine].left();
        }
        let burst = cell.case.burst();
        if session.warm_up != WarmUp::Bursts(0) && engines[engine].needs_warm_up(burst) {
            warm_up::warm_up(session, cell, next_warm_up_prompt, observer).await?;
            engines[engine].warmed_up(burst);
        }
        engines[engine].asked();
    }
    session.probe.open_case(cell.case.engine, cell.case.cold).await;
    observer.phase(cell.case, "measuring");
    let measured = measure::measure(session, cell, decisions, observer).await;
    session.probe.close_case(cell.case.engine).await;
    measured
}

impl Session<'_> {
    fn note(&self, event: JournalEvent) -> Result<(), Stopped> {
        self.writer.journal(JournalEntry { at_ns: self.clock.now(), event })
    }
}
