//! The measured part of a case: its requests driven, each written down as it ends.

use std::collections::HashMap;

use super::decisions::Decisions;
use super::{Cell, Failure, Observer, Session, entry};
use crate::infer::InferError;
use crate::load::{Arriving, Completed, Next, OpenLoad, drive};
use crate::plan::LoadShape;
use crate::record::{JournalEvent, RequestRecord, Stopped};
use crate::units;
use crate::workload::{Scheduled, prompt_sha256};

/// Runs the requests of a case and writes down what happens. Hands back the
/// records of a search's case, from which the next is chosen.
pub(super) async fn measure(
    session: &Session<'_>,
    cell: &Cell<'_>,
    decisions: &mut Decisions,
    observer: &mut dyn Observer,
) -> Result<Vec<RequestRecord>, Failure> {
    let Cell { number, case, engine, watch } = *cell;
    let schedule = session.workload.schedule(case)?;
    let meant = schedule.iter().map(|scheduled| (scheduled.index as usize, Meant::of(scheduled)));
    let mut books = Books {
        session,
        cell,
        observer,
        decisions,
        meant: meant.collect(),
        stopped: Ok(()),
        failed: None,
        num_written: 0,
        kept: Vec::new(),
    };
    session.note(JournalEvent::CaseStarted { case: number })?;
    let cpu_before = (session.cpu_time)();
    match &case.shape {
        LoadShape::Closed { concurrency } => {
            let requests = schedule.into_iter().map(|scheduled| scheduled.request).collect();
            let concurrency = *concurrency as usize;
            drive(
                engine,
                requests,
                concurrency,
                session.clock,
                &session.cancel,
                &mut |completed| books.write(completed),
            )
            .await;
        }
        LoadShape::Open { max_in_flight, .. } => {
            let load = OpenLoad {
                engine,
                max_in_flight: *max_in_flight as usize,
                clock: session.clock,
                cancel: &session.cancel,
            };
            let arrivals = schedule.into_iter().map(arriving).collect();
            load.drive(arrivals, &mut |completed| books.write(completed)).await;
        }
    }
    let Books { stopped, failed, kept, decisions, num_written, .. } = books;
    stopped?;
    let client_cpu = (session.cpu_time)().saturating_sub(cpu_before);
    let client_cpu_ns = units::nanos(client_cpu);
    watch.write(case.engine, session)?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let num_unsent = u64::from(case.num_requests).saturating_sub(num_written);
    if !session.cancel.is_cancelled() {
        if num_unsent > 0 && decisions.are_made(case) {
            let told = decisions.told(case);
            let reason = format!("{told}; {num_unsent} of {} not sent", case.num_requests);
            let num_requests = num_written;
            session.note(JournalEvent::StoppedEarly { case: number, num_requests, reason })?;
        }
        session.note(JournalEvent::CaseFinished { case: number, client_cpu_ns })?;
    }
    Ok(kept)
}

fn arriving(scheduled: Scheduled) -> Arriving {
    let Scheduled { index, at, request, .. } = scheduled;
    Arriving { index: index as usize, at, request }
}

/// What is known of a request before it ends.
struct Meant {
    requested_prompt_tokens: Option<u32>,
    max_tokens: u32,
    prompt_sha256: String,
    turn: Option<u32>,
    /// Kept for the turn that follows.
    conversation: Option<Scheduled>,
}

impl Meant {
    fn of(scheduled: &Scheduled) -> Self {
        Self {
            requested_prompt_tokens: scheduled.requested_prompt_tokens,
            max_tokens: scheduled.request.max_tokens,
            prompt_sha256: prompt_sha256(&scheduled.request.prompt),
            turn: scheduled.turn,
            conversation: scheduled.turn.map(|_| scheduled.clone()),
        }
    }
}

/// Writes down requests as they end, and says what follows.
struct Books<'a> {
    session: &'a Session<'a>,
    cell: &'a Cell<'a>,
    observer: &'a mut dyn Observer,
    decisions: &'a mut Decisions,
    meant: HashMap<usize, Meant>,
    stopped: Result<(), Stopped>,
    /// A turn that could not be made.
    failed: Option<InferError>,
    num_written: u64,
    kept: Vec<RequestRecord>,
}

impl Books<'_> {
    fn write(&mut self, completed: Completed) -> Next {
        let Cell { number, case, watch, .. } = *self.cell;
        let index = completed.index;
        let meant = self.meant.remove(&index);
        let next = self.next_turn(meant.as_ref(), &completed);
        let record = entry::record(
            completed,
            entry::Setting {
                case: number,
                warmup: false,
                // The opening burst meets the cold engine; what follows does not.
                cold: case.cold && index < case.concurrency() as usize,
                requested_prompt_tokens: meant.as_ref().and_then(|m| m.requested_prompt_tokens),
                max_tokens: meant.as_ref().map_or(0, |meant| meant.max_tokens),
                turn: meant.as_ref().and_then(|meant| meant.turn),
                prompt_sha256: meant.map(|meant| meant.prompt_sha256).unwrap_or_default(),
            },
        );
        self.observer.request(&record);
        self.num_written += 1;
        let decided = self.decisions.learn(case, &record);
        if case.search {
            self.kept.push(record.clone());
        }
        self.stopped = self.session.writer.request(record);
        // In between, so that no channel fills up however long the case is.
        if self.stopped.is_ok() {
            self.stopped = watch.write(case.engine, self.session);
        }
        match next {
            _ if self.stopped.is_err() || self.failed.is_some() => Next::Stop,
            _ if decided => Next::Enough,
            next => next,
        }
    }

    /// The next turn of a conversation; one that failed ends it.
    fn next_turn(&mut self, meant: Option<&Meant>, completed: &Completed) -> Next {
        let before = meant.and_then(|meant| meant.conversation.as_ref());
        let (Some(before), Ok(())) = (before, &completed.exchange.outcome) else {
            return Next::GoOn;
        };
        let workload = self.session.workload;
        match workload.next_turn(self.cell.case, before, &completed.exchange.text) {
            Ok(Some(next)) => {
                self.meant.insert(next.index as usize, Meant::of(&next));
                Next::Then(arriving(next))
            }
            Ok(None) => Next::GoOn,
            Err(error) => {
                self.failed = Some(error);
                Next::Stop
            }
        }
    }
}
