//! Puts an engine into the state in which a case wants to meet it.

use super::{Cell, Failure, Session};
use crate::record::JournalEvent;

/// Makes the engine cold, verified, so that the next request pays for loading.
pub(super) async fn make_cold(session: &Session<'_>, cell: &Cell<'_>) -> Result<(), Failure> {
    let took = cell.engine.make_cold().await?;
    let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    session.note(JournalEvent::MadeCold { case: cell.number, took_ns })?;
    Ok(())
}
