//! Requests before a warm case that only bring the engine to its running speed.

use std::time::Duration;

use super::{Cell, Failure, Observer, Session, entry};
use crate::engine::{EngineError, ErrorClass, GenerateRequest};
use crate::load::{Completed, Next, drive};
use crate::plan::WarmUp;
use crate::record::{JournalEvent, RequestRecord, Stopped};
use crate::stats::settled::{Burst, settled};
use crate::units;

/// Bursts until an engine is given up as not flat.
const MAX_BURSTS: u32 = 16;
/// No burst begins so long after the first one.
const MAX_TIME: Duration = Duration::from_secs(30);

/// One request alone, so that a lazy engine loads, then bursts of the case's
/// size, so that its batch shapes are met: until TTFT and TPOT are flat, or as
/// many as the plan says. Prompts count on from `next_prompt`, so that none is
/// sent twice. Fails the case if nothing answers.
pub(super) async fn warm_up(
    session: &Session<'_>,
    cell: &Cell<'_>,
    next_prompt: &mut u32,
    observer: &mut dyn Observer,
) -> Result<(), Failure> {
    let began = session.clock.now();
    let mut warming = WarmingUp { session, cell, next_prompt, num_requests: 0, last_error: None };
    observer.phase(cell.case, "warming up");
    let mut answered = warming.burst(1).await?.iter().any(|request| request.outcome.is_ok());
    let bursts_began = session.clock.now();
    let mut bursts: Vec<Burst> = Vec::new();
    let mut num_bursts = 0;
    let flat = loop {
        let flat = match session.warm_up {
            WarmUp::UntilFlat => Some(settled(&bursts)),
            WarmUp::Bursts(_) => None,
        };
        let most = match session.warm_up {
            WarmUp::UntilFlat => MAX_BURSTS,
            WarmUp::Bursts(bursts) => bursts,
        };
        let late = session.clock.now().since(bursts_began) >= MAX_TIME;
        let done = matches!(flat, Some(Ok(()))) || (flat.is_some() && late);
        if done || num_bursts >= most || session.cancel.is_cancelled() {
            break flat;
        }
        num_bursts += 1;
        observer.phase(cell.case, &format!("warming up, burst {num_bursts}"));
        let requests = warming.burst(cell.case.burst()).await?;
        answered |= requests.iter().any(|request| request.outcome.is_ok());
        if !answered {
            break flat;
        }
        bursts.push(Burst::of(&requests));
    };
    let WarmingUp { num_requests, last_error, .. } = warming;
    if session.cancel.is_cancelled() {
        return Ok(());
    }
    if let Some(error) = last_error.filter(|_| !answered) {
        return Err(Failure::Case(format!("warm-up failed: {}", error.message)));
    }
    session.note(JournalEvent::WarmedUp {
        case: cell.number,
        num_bursts,
        num_requests,
        took_ns: units::nanos(session.clock.now().since(began)),
        settled: flat.as_ref().map(Result::is_ok),
        reason: flat.and_then(Result::err),
    })?;
    Ok(())
}

struct WarmingUp<'a> {
    session: &'a Session<'a>,
    cell: &'a Cell<'a>,
    next_prompt: &'a mut u32,
    num_requests: u64,
    last_error: Option<EngineError>,
}

impl WarmingUp<'_> {
    /// Sends `size` requests at once and waits for all of them.
    async fn burst(&mut self, size: u32) -> Result<Vec<RequestRecord>, Failure> {
        let Cell { number, case, engine, watch } = *self.cell;
        let (session, first) = (self.session, self.num_requests);
        let requests = self.requests(size)?;
        let max_tokens = requests.first().map_or(0, |request| request.max_tokens);
        let mut records = Vec::new();
        let mut stopped: Result<(), Stopped> = Ok(());
        let mut keep = |completed: Completed| {
            if let Err(error) = &completed.exchange.outcome
                && error.class != ErrorClass::Cancelled
            {
                self.last_error = Some(error.clone());
            }
            let mut record = entry::record(
                completed,
                entry::Setting {
                    case: number,
                    warmup: true,
                    cold: false,
                    requested_prompt_tokens: session.workload.requested_prompt_tokens(),
                    max_tokens,
                    prompt_sha256: String::new(),
                    turn: None,
                },
            );
            record.index = record.index.saturating_add(u32::try_from(first).unwrap_or(u32::MAX));
            records.push(record.clone());
            stopped = session.writer.request(record);
            if stopped.is_ok() { Next::GoOn } else { Next::Stop }
        };
        let concurrency = size as usize;
        drive(engine, requests, concurrency, session.clock, &session.cancel, &mut keep).await;
        stopped?;
        self.num_requests += u64::from(size);
        // So that no channel fills up however long it takes.
        watch.write(case.engine, session)?;
        Ok(records)
    }

    fn requests(&mut self, size: u32) -> Result<Vec<GenerateRequest>, Failure> {
        let from = *self.next_prompt;
        *self.next_prompt = from.saturating_add(size);
        let requests = (from..*self.next_prompt).map(|index| self.session.workload.warm_up(index));
        Ok(requests.collect::<Result<_, _>>()?)
    }
}
