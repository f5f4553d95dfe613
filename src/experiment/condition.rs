//! Puts the engines into the state in which a case wants to meet them: its own
//! cold, or up; the others out of its memory where only one may be resident.

use super::readiness::Readiness;
use super::{Cell, Failure, Session};
use crate::lifecycle::{Keeper, Origin};
use crate::plan::{Cold, Residency};
use crate::record::{JournalEntry, JournalEvent, Stopped};
use crate::units;

/// Makes the engine cold, verified, so that the next request pays for loading,
/// or, of an engine that yardstick starts, so that the case begins with its start.
pub(super) async fn make_cold(session: &Session<'_>, cell: &Cell<'_>) -> Result<(), Failure> {
    if let Some(keeper) = session.lifecycles.keeper(cell.case.engine) {
        stop(session, keeper).await?;
        return start(session, keeper, cell.number, true).await;
    }
    let took = cell.engine.make_cold().await?;
    let took_ns = units::nanos(took);
    let (cold, seen) = (vec![Cold::Model], None);
    session.note(JournalEvent::MadeCold { case: cell.number, took_ns, cold, seen })?;
    Ok(())
}

/// Starts the engine if yardstick leads its life and it does not run; `true` if
/// it was started.
pub(super) async fn bring_up(session: &Session<'_>, cell: &Cell<'_>) -> Result<bool, Failure> {
    let keeper = session.lifecycles.keeper(cell.case.engine);
    let Some(keeper) = keeper.filter(|keeper| !keeper.is_up()) else { return Ok(false) };
    start(session, keeper, cell.number, false).await?;
    Ok(true)
}

/// Where one engine may be resident at a time: stops or unloads every other one
/// that may hold memory. `engines` says which those are, and is told. One that
/// cannot be unloaded stays.
pub(super) async fn make_room(
    session: &Session<'_>,
    engine: usize,
    engines: &mut [Readiness],
) -> Result<(), Failure> {
    if session.lifecycles.residency() == Residency::Together {
        return Ok(());
    }
    for other in (0..session.engines.len()).filter(|other| *other != engine) {
        if let Some(keeper) = session.lifecycles.keeper(other) {
            if keeper.is_up() {
                stop(session, keeper).await?;
                engines[other].left();
            }
        } else if engines[other].is_resident()
            && session.unloadable.get(other) == Some(&true)
            && let Some(unloaded) = &session.engines[other]
        {
            let took = unloaded.make_cold().await?;
            let took_ns = units::nanos(took);
            let engine = u32::try_from(other).unwrap_or(u32::MAX);
            session.note(JournalEvent::EngineStopped { engine, took_ns, killed: false })?;
            engines[other].left();
        }
    }
    Ok(())
}

/// Writes down every end of an engine's process that nobody asked for.
pub(super) fn note_exits(session: &Session<'_>, engines: &mut [Readiness]) -> Result<(), Stopped> {
    for (engine, readiness) in engines.iter_mut().enumerate() {
        if let Some(exit) = session.lifecycles.keeper(engine).and_then(Keeper::take_exit) {
            readiness.left();
            session.probe.stopped(engine);
            session.writer.journal(exit)?;
        }
    }
    Ok(())
}

/// The end of a run: what yardstick started is stopped, what it put to sleep is
/// woken, what others lead is left alone.
pub(super) async fn leave(session: &Session<'_>) -> Result<(), Stopped> {
    for engine in 0..session.engines.len() {
        let Some(keeper) = session.lifecycles.keeper(engine) else { continue };
        let ended = match keeper.origin() {
            Origin::Started => stop(session, keeper).await,
            Origin::Found if !keeper.is_up() => start_for(session, keeper, None, false).await,
            Origin::Found => Ok(()),
            Origin::Platform => {
                if let Some(what) = keeper.left_behind() {
                    tracing::warn!("{what}");
                }
                Ok(())
            }
        };
        match ended {
            Ok(()) => {}
            Err(Failure::Recorder) => return Err(Stopped),
            Err(Failure::Case(message)) => tracing::warn!("{message}"),
        }
    }
    Ok(())
}

async fn stop(session: &Session<'_>, keeper: &Keeper) -> Result<(), Failure> {
    if let Some(stopped) = keeper.stop().await? {
        session.writer.journal(stopped)?;
    }
    if keeper.started().is_some() {
        session.probe.stopped(keeper.engine());
    }
    Ok(())
}

async fn start(
    session: &Session<'_>,
    keeper: &Keeper,
    case: u32,
    cold: bool,
) -> Result<(), Failure> {
    start_for(session, keeper, Some(case), cold).await
}

async fn start_for(
    session: &Session<'_>,
    keeper: &Keeper,
    case: Option<u32>,
    cold: bool,
) -> Result<(), Failure> {
    let mut written = Ok(());
    let mut write = |entry: JournalEntry| {
        if matches!(entry.event, JournalEvent::EngineStarted { .. })
            && let Some(processes) = keeper.started()
        {
            session.probe.starts(keeper.engine(), processes);
        }
        written = written.and_then(|()| session.writer.journal(entry));
    };
    let started = keeper.start(case, cold, &session.cancel, &mut write).await;
    match (&started, keeper.started()) {
        (Err(_), Some(_)) => session.probe.stopped(keeper.engine()),
        _ => session.probe.serves(),
    }
    written?;
    Ok(started?)
}

/// Writes down the starts that came before the first case, and has what runs
/// since then looked at.
pub(super) fn note_introduction(session: &Session<'_>) -> Result<(), Stopped> {
    for engine in 0..session.engines.len() {
        let keeper = session.lifecycles.keeper(engine).filter(|keeper| keeper.is_up());
        if let Some(started) = keeper.and_then(Keeper::started) {
            session.probe.starts(engine, started);
            session.probe.serves();
        }
    }
    session.introduction.iter().cloned().try_for_each(|entry| session.writer.journal(entry))
}
