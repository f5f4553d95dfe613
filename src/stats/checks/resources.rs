//! What the probe saw that changes how numbers are read: clocks that were held
//! down, prompts that a prefix cache answered though no response said so.

use super::{about, count};
use crate::record::{EngineRecord, RunData};
use crate::stats::case::CaseRequests;
use crate::stats::resources::{CaseResources, Neighbour, Resources};
use crate::stats::warnings::{Warning, WarningClass};
use crate::units::format_bytes;

/// What lowers clocks below what the GPU could do; the other reasons of NVML
/// are idleness and settings that somebody chose.
const LIMITS: [&str; 6] = [
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
];
/// Share of the looks above which a case counts as throttled.
const MIN_SHARE: f64 = 0.05;
/// Host memory above which a neighbour of an engine without a GPU counts: a
/// server that has unloaded its model keeps less.
const MIN_HELD: u64 = 256 << 20;
/// As for hits that responses tell of.
const CACHED_TOLERANCE: f64 = 0.02;

/// Warnings by engine, in the manifest's order.
#[must_use]
pub fn find(
    run: &RunData,
    grouped: &[CaseRequests<'_>],
    resources: Option<&Resources>,
) -> Vec<Warning> {
    let Some(resources) = resources else { return Vec::new() };
    let mut warnings = Vec::new();
    for engine in &run.manifest.engines {
        let cases: Vec<&CaseResources> =
            resources.cases.iter().filter(|case| case.engine == engine.spec.name).collect();
        warnings.extend(throttled(engine, &cases));
        warnings.extend(shared_memory(engine, &cases));
        let told = grouped
            .iter()
            .filter(|group| group.record.engine == engine.spec.name)
            .flat_map(CaseRequests::completed)
            .any(|request| request.num_cached_tokens.is_some());
        if !told {
            warnings.extend(prefix_cache_hit(engine, &cases));
        }
    }
    warnings
}

fn throttled(engine: &EngineRecord, cases: &[&CaseResources]) -> Option<Warning> {
    let limits = |case: &CaseResources| {
        let held = case
            .throttled
            .iter()
            .filter(|(name, share)| LIMITS.contains(&name.as_str()) && **share >= MIN_SHARE);
        held.map(|(name, share)| (name.clone(), *share)).collect::<Vec<_>>()
    };
    let held: Vec<_> = cases.iter().map(|case| (*case, limits(case))).collect();
    let num_cases = held.iter().filter(|(_, limits)| !limits.is_empty()).count();
    let (worst, name, share) = held
        .iter()
        .flat_map(|(case, limits)| limits.iter().map(move |(name, share)| (*case, name, *share)))
        .max_by(|a, b| a.2.total_cmp(&b.2))?;
    let clock = worst
        .sm_clock_mhz
        .map_or_else(String::new, |mhz| format!(", with a median clock of {mhz:.0} MHz"));
    Some(about(
        WarningClass::Throttled,
        Some(engine),
        format!(
            "GPU clocks were held down in {}, most of all by {name} in {:.0} % of the looks of {} \
             at C = {}{clock}",
            count(num_cases, "case"),
            share * 100.0,
            worst.experiment,
            worst.concurrency,
        ),
        "an engine that meets a cooler GPU, or one with power to spare, computes faster: cool \
         down between engines, lock the clocks, or compare rounds that turn the engines round",
    ))
}

/// Engines that were resident while this one was measured, on its GPU or, of one
/// without a GPU, in the memory of the machine.
fn shared_memory(engine: &EngineRecord, cases: &[&CaseResources]) -> Option<Warning> {
    let held = |case: &CaseResources| {
        let of = |other: &Neighbour| match (case.gpus_by, other.gpu_bytes) {
            (_, Some(bytes)) => Some((other.engine.clone(), bytes, "of its GPU")),
            (None, None) if other.rss_bytes >= MIN_HELD => {
                Some((other.engine.clone(), other.rss_bytes, "of this machine's memory"))
            }
            _ => None,
        };
        case.neighbours.iter().filter_map(of).max_by_key(|(_, bytes, _)| *bytes)
    };
    let shared: Vec<_> = cases.iter().filter_map(|case| held(case)).collect();
    let (other, bytes, whose) = shared.iter().max_by_key(|(_, bytes, _)| *bytes)?;
    Some(about(
        WarningClass::SharedMemory,
        Some(engine),
        format!(
            "other engines were resident in {} of {}: {other} held {} {whose}",
            shared.len(),
            count(cases.len(), "case"),
            format_bytes(*bytes),
        ),
        "what one holds the other cannot use for its KV cache or the page cache, and whatever the \
         other does takes bandwidth: memory and speed are those of both. Let one be resident at a \
         time (`resident = \"one\"` with lifecycles), or measure them in separate runs",
    ))
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
fn prefix_cache_hit(engine: &EngineRecord, cases: &[&CaseResources]) -> Option<Warning> {
    let counted = || cases.iter().filter_map(|case| case.prefix_queries.zip(case.prefix_hits));
    let queries = counted().fold(0_u64, |sum, (queries, _)| sum.saturating_add(queries));
    let hits = counted().fold(0_u64, |sum, (_, hits)| sum.saturating_add(hits));
    let share = hits as f64 / queries.max(1) as f64;
    (share > CACHED_TOLERANCE).then(|| {
        about(
            WarningClass::PrefixCacheHit,
            Some(engine),
            format!(
                "by its own metrics {hits} of {queries} prompt tokens came from its prefix cache, \
                 {:.0} %",
                share * 100.0
            ),
            "TTFT is that of a prompt shorter by so much: use --prompt-tokens N, whose prompts \
             share nothing, or switch the engine's prefix cache off",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::record::{GpuProcess, GpuSample, JournalEntry, ProcessSample};
    use crate::record::{JournalEvent, ResourceRecord};
    use crate::stats::case::{group, tests};
    use crate::stats::resources::summarise;

    /// A case of engine `a`, in whose looks `b` holds so much.
    fn run(rss: [u64; 2], gpu: [Option<u64>; 2]) -> RunData {
        let at_ns = Timestamp::from_nanos;
        let process = |(engine, rss_bytes): (u32, u64)| ProcessSample {
            engine: Some(engine),
            rss_bytes,
            ..ProcessSample::default()
        };
        let on_gpu = |(engine, used_bytes): (u32, Option<u64>)| {
            used_bytes.map(|_| GpuProcess { pid: 1, engine: Some(engine), used_bytes })
        };
        let look = |at: u64| ResourceRecord {
            at_ns: at_ns(at),
            processes: (0..).zip(rss).filter(|(_, rss)| *rss > 0).map(process).collect(),
            gpus: vec![GpuSample {
                processes: (0..).zip(gpu).filter_map(on_gpu).collect(),
                ..GpuSample::default()
            }],
            ..ResourceRecord::default()
        };
        let entry = |at, event| JournalEntry { at_ns: at_ns(at), event };
        RunData {
            requests: vec![tests::request(0, 0, &[1])],
            journal: vec![
                entry(0, JournalEvent::CaseStarted { case: 0 }),
                entry(100, JournalEvent::CaseFinished { case: 0, client_cpu_ns: 1 }),
            ],
            resources: vec![look(10), look(20), look(30)],
            ..tests::run(&["a:openai", "b:openai"], vec![tests::record("a", "concurrent-warm", 2)])
        }
    }

    fn warning(rss: [u64; 2], gpu: [Option<u64>; 2]) -> Option<String> {
        let run = run(rss, gpu);
        let grouped = group(&run);
        let found = find(&run, &grouped, summarise(&run, &grouped).as_ref());
        let mut shared = found.into_iter().filter(|it| it.class == WarningClass::SharedMemory);
        shared.next().map(|warning| warning.message)
    }

    #[test]
    fn neighbour_counts_where_the_engine_has_its_memory() {
        const GIB: u64 = 1 << 30;
        let none = [None, None];
        let told = warning([GIB, 2 * GIB], none).unwrap();
        assert!(
            told.contains("in 1 of 1 case: b held 2.00 GiB of this machine's memory"),
            "{told}"
        );
        assert_eq!(warning([GIB, MIN_HELD - 1], none), None, "a server without its model");
        assert_eq!(warning([GIB, 0], none), None);
        let told = warning([GIB, 2 * GIB], [Some(8 * GIB), Some(GIB)]).unwrap();
        assert!(told.contains("b held 1.00 GiB of its GPU"), "{told}");
        assert_eq!(warning([GIB, 2 * GIB], [Some(8 * GIB), None]), None, "b is not on that GPU");
    }
}
