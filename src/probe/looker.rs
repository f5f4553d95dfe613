//! The thread that looks: `/proc` and NVML at absolute deadlines. A look that
//! is late is not caught up; its instant says when it was.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::nvml::{Absence, Gpus};
use super::procfs::{Tree, engine_on};
use super::{Journal, Place, Shared};
use crate::clock::Timestamp;
use crate::hardware::proc::{Kin, Table};
use crate::hardware::thread_cpu_time;
use crate::record::{JournalEvent, ProcessSample, ResourceRecord, ResourceSource};
use crate::units;

/// How often the machine is searched for processes that are not known yet.
const SEARCH_EVERY: Duration = Duration::from_secs(1);
/// Searches take at most this part of the time, also while an engine starts,
/// when there is one at each look: where processes and open files are many, one
/// takes long.
const SEARCH_PART: u32 = 20;

/// The state of the looking thread.
struct Looker<'a> {
    shared: &'a Shared,
    journal: &'a Journal,
    gpus: Gpus,
    own: Option<Tree>,
    /// By engine.
    trees: BTreeMap<usize, Followed>,
    /// What was told last about each engine that is not found.
    told: BTreeMap<usize, String>,
    search_at: Timestamp,
    /// Before it nothing is searched.
    rest_until: Timestamp,
}

/// An engine's processes, and the place in which they were found.
struct Followed {
    place: Place,
    tree: Tree,
}

/// Looks every `interval` until the other end of `stopped` is gone.
pub(super) fn look(interval: Duration, shared: &Shared, journal: &Journal, stopped: &Receiver<()>) {
    let clock = &journal.clock;
    let (gpus, identities, absent) = Gpus::open();
    let interval_ns = units::nanos(interval);
    journal.note(JournalEvent::ProbeStarted { interval_ns, gpus: identities });
    let own = Tree::follow(Kin::Found(std::process::id()));
    if own.is_none() {
        let reason = "this system has no /proc, which is Linux's";
        journal.absent(ResourceSource::Procfs, None, "processes", reason);
    }
    let mut looker = Looker {
        shared,
        journal,
        gpus,
        own,
        trees: BTreeMap::new(),
        told: BTreeMap::new(),
        search_at: clock.now(),
        rest_until: clock.now(),
    };
    looker.tell(absent);
    let mut next = clock.now();
    let mut is_last = false;
    // A recorder that has stopped is noticed where it matters.
    while journal.lines.resource(looker.look_once()).is_ok() && !is_last {
        let now = clock.now();
        next = following(next, now, interval);
        // After the end one more look: what grew in the last case is read off between two.
        is_last = !matches!(stopped.recv_timeout(next.since(now)), Err(RecvTimeoutError::Timeout));
    }
}

/// The first deadline after `now` of those that follow `last` by whole intervals.
fn following(last: Timestamp, now: Timestamp, interval: Duration) -> Timestamp {
    let interval_ns = units::nanos(interval).max(1);
    let behind = units::nanos(now.since(last));
    let steps = behind / interval_ns + 1;
    Timestamp::from_nanos(last.as_nanos().saturating_add(steps.saturating_mul(interval_ns)))
}

impl Looker<'_> {
    fn look_once(&mut self) -> ResourceRecord {
        let clock = self.journal.clock.clone();
        let at_ns = clock.now();
        let is_rested = at_ns >= self.rest_until;
        let is_search = at_ns >= self.search_at && is_rested && self.own.is_some();
        if is_search {
            self.search_at = at_ns.plus(SEARCH_EVERY);
        }
        let is_new = self.follow_places(is_search);
        let is_starting = self.shared.starting.load(Ordering::Acquire) && is_rested;
        if (is_search || is_new || is_starting) && !self.trees.is_empty() {
            self.grow();
        }
        if is_search || is_new || is_starting {
            let now = clock.now();
            self.rest_until = now.plus(now.since(at_ns) * SEARCH_PART);
        }
        let pss = is_search.then_some(&clock);
        let mut processes: Vec<ProcessSample> = Vec::new();
        processes.extend(self.own.as_mut().and_then(|own| own.read(None, pss)));
        let mut ended = Vec::new();
        for (engine, followed) in &mut self.trees {
            let index = u32::try_from(*engine).ok();
            match followed.tree.read(index, pss) {
                Some(sample) => processes.push(sample),
                None => ended.push(*engine),
            }
        }
        for engine in ended {
            self.ended(engine);
        }
        let mut absent = Vec::new();
        let mut gpus = self.gpus.read(&clock, &mut absent);
        self.tell(absent);
        for process in gpus.iter_mut().flat_map(|gpu| &mut gpu.processes) {
            process.engine = self.owner(process.pid);
        }
        let asker_ns = self.shared.asker_cpu_ns.load(Ordering::Acquire);
        let own_ns = units::nanos(thread_cpu_time());
        ResourceRecord {
            at_ns,
            probe_cpu_ns: Some(own_ns.saturating_add(asker_ns)),
            processes,
            gpus,
            word: None,
        }
    }

    /// Follows engines whose place is known, and with `is_search` looks for those
    /// whose port alone is; `true` if there is a new one.
    fn follow_places(&mut self, is_search: bool) -> bool {
        let mut is_new = false;
        let places = self.shared.places().clone();
        for (engine, place) in places.into_iter().enumerate() {
            if self.trees.get(&engine).is_some_and(|followed| followed.place == place) {
                continue;
            }
            self.trees.remove(&engine);
            let kin = match &place {
                Place::Here | Place::Stopped => continue,
                Place::Started(started) => Ok(Kin::Started(started.clone())),
                Place::Port(port) if is_search => engine_on(*port).map(Kin::Found),
                Place::Port(_) => continue,
                Place::Unknown(reason) => Err(reason.clone()),
            };
            let tree = kin.and_then(|kin| {
                let root = kin.root();
                Tree::follow(kin).ok_or_else(|| format!("process {root} has ended"))
            });
            match tree {
                Ok(tree) => {
                    self.told.remove(&engine);
                    self.trees.insert(engine, Followed { place, tree });
                    is_new = true;
                }
                // Its end is in the journal, by those who started it.
                Err(_) if matches!(place, Place::Started(_)) => self.forget(engine, &place),
                Err(reason) => self.missing(engine, reason),
            }
        }
        is_new
    }

    /// Looks for processes that joined any of the trees.
    fn grow(&mut self) {
        let table = Table::read();
        for followed in self.trees.values_mut() {
            followed.tree.grow(&table);
        }
    }

    /// The process at the root of an engine's tree has ended.
    fn ended(&mut self, engine: usize) {
        let Some(Followed { place, tree }) = self.trees.remove(&engine) else { return };
        if matches!(place, Place::Started(_)) {
            self.forget(engine, &place);
        } else {
            self.missing(engine, format!("process {} has ended", tree.kin().root()));
        }
    }

    /// What was started has ended; another process may be given its number.
    fn forget(&self, engine: usize, ended: &Place) {
        if let Some(place) = self.shared.places().get_mut(engine).filter(|place| *place == ended) {
            *place = Place::Stopped;
        }
    }

    /// The engine in whose tree a process is.
    fn owner(&self, pid: u32) -> Option<u32> {
        let holds = |followed: &Followed| followed.tree.pids().any(|member| member == pid);
        let engine = self.trees.iter().find(|(_, followed)| holds(followed)).map(|(e, _)| *e);
        let here = || {
            // In this process there may be several engines: then none of them alone owns it.
            let places = self.shared.places();
            let mut here = (0..places.len()).filter(|engine| places[*engine] == Place::Here);
            let first = here.next().filter(|_| pid == std::process::id())?;
            here.next().is_none().then_some(first)
        };
        engine.or_else(here).and_then(|engine| u32::try_from(engine).ok())
    }

    fn missing(&mut self, engine: usize, reason: String) {
        if self.told.get(&engine) != Some(&reason) {
            self.journal.absent(ResourceSource::Procfs, Some(engine), "its processes", &reason);
            self.told.insert(engine, reason);
        }
    }

    fn tell(&self, absent: Vec<Absence>) {
        for Absence { what, reason } in absent {
            self.journal.absent(ResourceSource::Nvml, None, &what, &reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_stay_on_their_grid_and_late_ones_are_left_out() {
        let at = Timestamp::from_nanos;
        let every = Duration::from_nanos(10);
        assert_eq!(following(at(100), at(103), every), at(110));
        assert_eq!(following(at(100), at(110), every), at(120));
        assert_eq!(following(at(100), at(147), every), at(150));
        assert_eq!(following(at(100), at(90), every), at(110));
        assert_eq!(following(at(u64::MAX), at(u64::MAX), every), at(u64::MAX));
    }
}
