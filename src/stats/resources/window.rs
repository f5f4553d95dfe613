//! The looks of a run in order of time, and those that fall into one case.
//! Quantities that only grow (processor time, energy) are read off at the
//! case's edges by linear interpolation between the looks on either side.

use std::collections::{BTreeMap, BTreeSet};

use super::GpusBy;
use crate::clock::Timestamp;
use crate::engine::EngineKind;
use crate::record::{EngineWord, GpuSample, JournalEvent, ProcessSample, ResourceRecord, RunData};
use crate::stats::distribution::mean;
use crate::units::millis;

/// The probe's lines, sorted: looks, and engines' words.
pub(super) struct Looks<'a> {
    looks: Vec<&'a ResourceRecord>,
    words: Vec<(Timestamp, &'a EngineWord)>,
}

impl<'a> Looks<'a> {
    pub(super) fn new(run: &'a RunData) -> Self {
        let is_look = |record: &&ResourceRecord| record.word.is_none();
        let mut looks: Vec<_> = run.resources.iter().filter(is_look).collect();
        looks.sort_by_key(|record| record.at_ns);
        let mut words: Vec<_> =
            run.resources.iter().filter_map(|r| Some((r.at_ns, r.word.as_ref()?))).collect();
        words.sort_by_key(|(at, _)| *at);
        Self { looks, words }
    }

    pub(super) fn len(&self) -> usize {
        self.looks.len()
    }

    pub(super) fn all(&self) -> &[&'a ResourceRecord] {
        &self.looks
    }

    /// Every word of one engine.
    pub(super) fn words_of(&self, engine: u32) -> impl Iterator<Item = &'a EngineWord> {
        self.words.iter().map(|(_, word)| *word).filter(move |word| word.engine == engine)
    }

    pub(super) fn gpu_samples(&self, gpu: u32) -> impl Iterator<Item = &'a GpuSample> {
        self.looks.iter().flat_map(|look| &look.gpus).filter(move |sample| sample.gpu == gpu)
    }

    #[expect(clippy::cast_precision_loss, reason = "looks are far below 2^52")]
    pub(super) fn rate_hz(&self) -> Option<f64> {
        // The last look is not one of the grid: it is taken as the probe is stopped.
        let grid = &self.looks[..self.looks.len().checked_sub(1)?];
        let seconds = grid.last()?.at_ns.since(grid.first()?.at_ns).as_secs_f64();
        (seconds > 0.0).then(|| (grid.len() - 1) as f64 / seconds)
    }

    pub(super) fn longest_gap_ms(&self) -> Option<f64> {
        let gaps = self.looks.windows(2).map(|pair| millis(pair[1].at_ns.since(pair[0].at_ns)));
        gaps.reduce(f64::max)
    }

    #[expect(clippy::cast_precision_loss, reason = "processor times are far below 2^52 ns")]
    pub(super) fn probe_cpu_share(&self) -> Option<f64> {
        let (first, last) = (self.looks.first()?, self.looks.last()?);
        let used = last.probe_cpu_ns?.checked_sub(first.probe_cpu_ns?)?;
        let seconds = last.at_ns.since(first.at_ns).as_secs_f64();
        (seconds > 0.0).then(|| used as f64 / 1e9 / seconds)
    }
}

/// The GPUs that count for a case.
#[derive(Default)]
pub(super) struct Gpus {
    pub(super) by: Option<GpusBy>,
    indices: BTreeSet<u32>,
}

impl Gpus {
    /// Whether a GPU is among them.
    pub(super) fn holds(&self, gpu: u32) -> bool {
        self.indices.contains(&gpu)
    }
}

/// The looks that fall into one case.
pub(super) struct Window<'a, 'r> {
    looks: &'a Looks<'r>,
    from: Timestamp,
    to: Timestamp,
    /// Index of the engine in the manifest; `None` if the manifest has no such engine.
    engine: Option<u32>,
    /// Whether the engine runs in this process.
    is_here: bool,
}

impl<'a, 'r> Window<'a, 'r> {
    /// From the beginning of a case to its end; of one that has no end, to the
    /// last look.
    pub(super) fn of_case(
        run: &'r RunData,
        looks: &'a Looks<'r>,
        case: u32,
        engine: Option<usize>,
    ) -> Self {
        let at = |is: fn(&JournalEvent, u32) -> bool| {
            run.journal.iter().find(|entry| is(&entry.event, case)).map(|entry| entry.at_ns)
        };
        let from = at(|event, case| *event == JournalEvent::CaseStarted { case });
        let to = at(|event, wanted| {
            matches!(event, JournalEvent::CaseFinished { case, .. }
                | JournalEvent::CaseFailed { case, .. } if *case == wanted)
        });
        let last = || looks.looks.last().map(|look| look.at_ns);
        let from = from.or_else(last).unwrap_or_default();
        let to = to.or_else(last).unwrap_or_default();
        Self::between(run, looks, engine, from, to)
    }

    /// From one instant to another; empty if they are not in order.
    pub(super) fn between(
        run: &'r RunData,
        looks: &'a Looks<'r>,
        engine: Option<usize>,
        from: Timestamp,
        to: Timestamp,
    ) -> Self {
        let record = engine.and_then(|index| run.manifest.engines.get(index));
        Self {
            looks,
            from,
            to: to.max(from),
            engine: engine.and_then(|index| u32::try_from(index).ok()),
            is_here: record.is_some_and(|engine| engine.spec.kind == EngineKind::Embedded),
        }
    }

    /// Whether an instant lies in it.
    pub(super) fn holds(&self, instant: Timestamp) -> bool {
        (self.from..=self.to).contains(&instant)
    }

    /// Values of the looks inside, each with its ms since the beginning.
    pub(super) fn timed(&self, of: &dyn Fn(&'r ResourceRecord) -> Option<f64>) -> Vec<(f64, f64)> {
        let value =
            |look: &&'r ResourceRecord| Some((millis(look.at_ns.since(self.from)), of(look)?));
        self.inside().iter().filter_map(value).collect()
    }

    fn inside(&self) -> &'a [&'r ResourceRecord] {
        let looks = &self.looks.looks;
        let begin = looks.partition_point(|look| look.at_ns < self.from);
        let end = looks.partition_point(|look| look.at_ns <= self.to);
        &looks[begin..end.max(begin)]
    }

    pub(super) fn num_looks(&self) -> u64 {
        self.inside().len() as u64
    }

    pub(super) fn engine_processes(&self) -> impl Iterator<Item = &'r ProcessSample> {
        self.inside().iter().filter_map(|look| self.engine_process(look))
    }

    pub(super) fn own_process(&self) -> impl Iterator<Item = &'r ProcessSample> {
        self.inside().iter().filter_map(|look| own(look))
    }

    pub(super) fn engine_process(&self, look: &'r ResourceRecord) -> Option<&'r ProcessSample> {
        if self.is_here {
            return own(look);
        }
        let engine = self.engine?;
        look.processes.iter().find(|process| process.engine == Some(engine))
    }

    /// Whether an engine, by its index, is the one of this window.
    pub(super) fn is_of(&self, engine: u32) -> bool {
        self.engine == Some(engine)
    }

    /// Resident memory of an engine's processes at each look, 0 where there are none.
    pub(super) fn rss_of(&self, engine: u32) -> impl Iterator<Item = f64> {
        self.inside().iter().map(move |look| {
            let process = look.processes.iter().find(|process| process.engine == Some(engine));
            process.map_or(0.0, |process| process.rss_bytes as f64)
        })
    }

    /// Memory of an engine's processes at each look on GPUs that were found by
    /// process, 0 where there is none.
    pub(super) fn gpu_bytes_of(&self, engine: u32, gpus: &Gpus) -> impl Iterator<Item = f64> {
        let looks = if gpus.by == Some(GpusBy::Process) { self.inside() } else { &[] };
        looks.iter().map(move |look| {
            let counted = look.gpus.iter().filter(|sample| gpus.holds(sample.gpu));
            let processes = counted.flat_map(|sample| &sample.processes);
            let own = processes.filter(|process| process.engine == Some(engine));
            own.filter_map(|process| process.used_bytes).map(|bytes| bytes as f64).sum::<f64>()
        })
    }

    /// Processors used on average: growth of processor time over the case.
    pub(super) fn cpu_share(&self) -> Option<f64> {
        let used_s = self.growth(|look| Some(self.engine_process(look)?.cpu_ns))? / 1e9;
        let seconds = self.to.since(self.from).as_secs_f64();
        (seconds > 0.0).then(|| used_s / seconds)
    }

    /// Faults are counted, not interpolated: between the looks inside.
    pub(super) fn major_faults(&self) -> Option<u64> {
        let mut faults = self.engine_processes().map(|process| process.major_faults);
        let first = faults.next()?;
        Some(faults.last().unwrap_or(first).saturating_sub(first))
    }

    /// GPUs on which the engine has processes; where the driver's table names
    /// none in this case, GPUs that computed in it.
    pub(super) fn gpus(&self) -> Gpus {
        let samples = || self.inside().iter().flat_map(|look| &look.gpus);
        let wanted = self.engine;
        let owned = |sample: &&GpuSample| {
            wanted.is_some() && sample.processes.iter().any(|process| process.engine == wanted)
        };
        let by_process: BTreeSet<u32> = samples().filter(owned).map(|sample| sample.gpu).collect();
        if !by_process.is_empty() {
            return Gpus { by: Some(GpusBy::Process), indices: by_process };
        }
        let busy = |sample: &&GpuSample| sample.utilization_percent.is_some_and(|share| share > 0);
        let indices: BTreeSet<u32> = samples().filter(busy).map(|sample| sample.gpu).collect();
        Gpus { by: (!indices.is_empty()).then_some(GpusBy::Activity), indices }
    }

    pub(super) fn samples<'g>(
        &self,
        gpus: &'g Gpus,
    ) -> impl Iterator<Item = &'r GpuSample> + use<'g, 'r, 'a> {
        let all = self.inside().iter().flat_map(|look| &look.gpus);
        all.filter(|sample| gpus.holds(sample.gpu))
    }

    /// Memory at each look.
    pub(super) fn gpu_bytes(&self, gpus: &Gpus) -> Vec<f64> {
        self.inside().iter().filter_map(|look| self.gpu_bytes_at(gpus, look)).collect()
    }

    /// Memory at one look, summed over the GPUs.
    #[expect(clippy::cast_precision_loss, reason = "memory is below 2^52 bytes")]
    pub(super) fn gpu_bytes_at(&self, gpus: &Gpus, look: &ResourceRecord) -> Option<f64> {
        let of = |sample: &GpuSample| match gpus.by? {
            GpusBy::Activity => sample.used_bytes,
            GpusBy::Process => {
                let own = sample.processes.iter().filter(|process| process.engine == self.engine);
                own.map(|process| process.used_bytes)
                    .reduce(|sum, bytes| Some(sum?.saturating_add(bytes?)))
                    .flatten()
            }
        };
        let counted = look.gpus.iter().filter(|sample| gpus.holds(sample.gpu));
        counted.filter_map(of).reduce(u64::saturating_add).map(|bytes| bytes as f64)
    }

    pub(super) fn utilization(&self, gpus: &Gpus) -> Vec<f64> {
        self.samples(gpus).filter_map(|s| s.utilization_percent).map(f64::from).collect()
    }

    /// Mean over the looks of each GPU's power, summed over the GPUs.
    pub(super) fn power_w(&self, gpus: &Gpus) -> Option<f64> {
        let of = |gpu: &u32| {
            let samples = self.samples(gpus).filter(|sample| sample.gpu == *gpu);
            let watts: Vec<f64> =
                samples.filter_map(|s| s.power_mw).map(|mw| f64::from(mw) / 1e3).collect();
            mean(&watts)
        };
        gpus.indices.iter().map(of).reduce(|sum, watts| Some(sum? + watts?)).flatten()
    }

    /// The driver's counter where every GPU has one, else mean power times time.
    pub(super) fn energy_j(&self, gpus: &Gpus) -> Option<f64> {
        let counted = |gpu: &u32| {
            let sample = |look: &'r ResourceRecord| {
                look.gpus.iter().find(|sample| sample.gpu == *gpu)?.energy_mj
            };
            self.growth(sample).map(|mj| mj / 1e3)
        };
        let counter = gpus.indices.iter().map(counted).reduce(|sum, j| Some(sum? + j?)).flatten();
        counter.or_else(|| Some(self.power_w(gpus)? * self.to.since(self.from).as_secs_f64()))
    }

    #[expect(clippy::cast_precision_loss, reason = "looks are far below 2^52")]
    pub(super) fn throttled(&self, gpus: &Gpus) -> BTreeMap<String, f64> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let mut told = 0_usize;
        for reasons in self.samples(gpus).filter_map(|sample| sample.throttle.as_ref()) {
            told += 1;
            for reason in reasons {
                *counts.entry(reason.clone()).or_default() += 1;
            }
        }
        counts.into_iter().map(|(name, n)| (name, n as f64 / told.max(1) as f64)).collect()
    }

    /// The engine's words in it.
    pub(super) fn words(&self) -> impl Iterator<Item = &'r EngineWord> {
        self.timed_words().map(|(_, word)| word)
    }

    /// The engine's words in it, each with its instant.
    pub(super) fn timed_words(&self) -> impl Iterator<Item = (Timestamp, &'r EngineWord)> {
        let words = self.looks.words.iter().copied();
        words.filter(|(at, word)| Some(word.engine) == self.engine && self.holds(*at))
    }

    /// Growth of a counter from the word before the case to the one after it.
    /// Absent without both, and where it fell: then the engine began anew.
    pub(super) fn counted(&self, of: fn(&EngineWord) -> Option<u64>) -> Option<u64> {
        let mine = || self.looks.words.iter().filter(|(_, word)| Some(word.engine) == self.engine);
        let before = mine().rfind(|(at, _)| *at <= self.from).and_then(|(_, word)| of(word))?;
        let after = mine().find(|(at, _)| *at >= self.to).and_then(|(_, word)| of(word))?;
        after.checked_sub(before)
    }

    /// Growth of what never falls, between the case's edges.
    fn growth(&self, of: impl Fn(&'r ResourceRecord) -> Option<u64>) -> Option<f64> {
        let points: Vec<(Timestamp, f64)> = self
            .around()
            .iter()
            .filter_map(|look| {
                #[expect(clippy::cast_precision_loss, reason = "counters are below 2^52")]
                Some((look.at_ns, of(look)? as f64))
            })
            .collect();
        let (from, to) = (at(&points, self.from)?, at(&points, self.to)?);
        // A process that ended took its time with it.
        (to >= from).then_some(to - from)
    }

    /// The looks inside, with the nearest one on either side.
    fn around(&self) -> &'a [&'r ResourceRecord] {
        let looks = &self.looks.looks;
        let begin = looks.partition_point(|look| look.at_ns < self.from).saturating_sub(1);
        let end = (looks.partition_point(|look| look.at_ns <= self.to) + 1).min(looks.len());
        &looks[begin..end.max(begin)]
    }
}

fn own(look: &ResourceRecord) -> Option<&ProcessSample> {
    look.processes.iter().find(|process| process.engine.is_none())
}

/// The value at an instant, by linear interpolation between the points on
/// either side; `None` outside them.
fn at(points: &[(Timestamp, f64)], instant: Timestamp) -> Option<f64> {
    let after = points.partition_point(|(at, _)| *at < instant);
    let (late, high) = *points.get(after)?;
    if late == instant {
        return Some(high);
    }
    let (early, low) = *points.get(after.checked_sub(1)?)?;
    let share = instant.since(early).as_secs_f64() / late.since(early).as_secs_f64();
    Some((high - low).mul_add(share, low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_off_between_looks() {
        let t = Timestamp::from_nanos;
        let points = [(t(100), 10.0), (t(200), 30.0)];
        assert_eq!(at(&points, t(150)), Some(20.0));
        assert_eq!(at(&points, t(200)), Some(30.0));
        assert_eq!(at(&points, t(99)), None);
        assert_eq!(at(&points, t(201)), None);
    }
}
