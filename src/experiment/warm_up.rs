//! Requests before a case that only bring the engine to its running speed.

use super::{Cell, Failure, Session, entry};
use crate::engine::ErrorClass;
use crate::load::{Completed, drive};

/// One request alone, so that a lazy engine loads, then a burst of the case's
/// size, so that its batch shapes are met. Fails the case if nothing answers.
pub(super) async fn warm_up(session: &Session<'_>, cell: &Cell<'_>) -> Result<(), Failure> {
    let Cell { number, case, engine, .. } = *cell;
    let concurrency = case.burst() as usize;
    let requests = (0..=case.burst())
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
                turn: None,
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
