//! The measured part of a case: its requests driven, each written down as it ends.

use super::{Cell, Failure, Observer, Session, entry};
use crate::load::drive;
use crate::record::JournalEvent;
use crate::workload::prompt_sha256;

/// Runs the requests of a case and writes down what happens.
pub(super) async fn measure(
    session: &Session<'_>,
    cell: &Cell<'_>,
    observer: &mut dyn Observer,
) -> Result<(), Failure> {
    let Cell { number, case, engine, watch } = *cell;
    let requests = (0..case.num_requests)
        .map(|index| session.workload.request(case.load, index))
        .collect::<Result<Vec<_>, _>>()?;
    let digests: Vec<_> = requests.iter().map(|request| prompt_sha256(&request.prompt)).collect();
    let max_tokens = requests.first().map_or(0, |request| request.max_tokens);
    session.note(JournalEvent::CaseStarted { case: number })?;
    let cpu_before = (session.cpu_time)();
    let concurrency = case.concurrency() as usize;
    let mut stopped = Ok(());
    drive(engine, requests, concurrency, session.clock, &session.cancel, &mut |completed| {
        let index = completed.index;
        let record = entry::record(
            completed,
            entry::Setting {
                case: number,
                warmup: false,
                // The opening burst meets the cold engine; what follows does not.
                cold: case.cold && index < concurrency,
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
