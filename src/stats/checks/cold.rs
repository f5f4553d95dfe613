//! Whether cold starts were as cold as their name.

use super::{about, count};
use crate::plan::{Cold, LifecyclePlan, Plan};
use crate::record::{EngineRecord, JournalEvent, PageCache, RunData};
use crate::stats::warnings::{Warning, WarningClass};
use crate::units::format_bytes;

/// Cold starts whose weights `mincore` found in the page cache, asked for or not.
pub(super) fn page_cache_warm(run: &RunData, engine: &EngineRecord) -> Option<Warning> {
    let starts = starts(run, engine);
    let warm: Vec<&PageCache> = starts.iter().copied().filter(|cache| !cache.is_cold()).collect();
    let most = warm
        .iter()
        .copied()
        .max_by(|a, b| a.share().unwrap_or(0.0).total_cmp(&b.share().unwrap_or(0.0)))?;
    let (what, advice) = if is_asked_for(run, engine) {
        (
            "though the plan asked for a cold page cache",
            "something kept them there: a process that maps them, or a file system that does not \
             give its pages back. These starts are not called cold by page cache; do not compare \
             them with starts that are",
        )
    } else {
        (
            "and the plan did not ask for a cold page cache",
            "such a start reads no disk: it is that of an engine that ran here before, not that \
             of a fresh machine. Add \"page-cache\" to `cold` to measure the other",
        )
    };
    Some(about(
        WarningClass::PageCacheWarm,
        Some(engine),
        format!(
            "{} of {} found up to {:.0} % of {} of weights in the page cache (mincore), {what}",
            warm.len(),
            count(starts.len(), "cold start"),
            most.share().unwrap_or(0.0) * 100.0,
            format_bytes(most.bytes),
        ),
        advice,
    ))
}

/// What was seen of the weights as cold cases of an engine started it.
fn starts<'a>(run: &'a RunData, engine: &EngineRecord) -> Vec<&'a PageCache> {
    let name = &engine.spec.name;
    let is_cold = |case: u32| {
        let record = run.manifest.cases.get(case as usize);
        record.is_some_and(|record| record.cold && record.engine == *name)
    };
    let seen = run.journal.iter().filter_map(|entry| match &entry.event {
        JournalEvent::EngineStarted { case: Some(case), page_cache: Some(cache), .. } => {
            is_cold(*case).then_some(cache)
        }
        _ => None,
    });
    seen.collect()
}

fn is_asked_for(run: &RunData, engine: &EngineRecord) -> bool {
    let plan = Plan::from_toml(&run.manifest.plan).ok();
    let spec = &engine.spec;
    let named = spec.kv_point.as_ref().map_or(&spec.name, |point| &point.of);
    let lifecycle = plan.as_ref().and_then(|plan| plan.lifecycles.get(named));
    matches!(lifecycle, Some(LifecyclePlan::Command(plan)) if plan.cold.contains(&Cold::PageCache))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::record::JournalEntry;
    use crate::stats::case::tests;

    /// A run that started its engine once for each case, with so much of 1000 bytes in memory.
    fn run(plan: &str, starts: &[(u32, u64)]) -> RunData {
        let cases = [
            tests::record("e", "sequential-cold", 1),
            tests::record("e", "concurrent-cold", 2),
            tests::record("e", "concurrent-warm", 2),
        ];
        let mut run = tests::run(&["e:openai"], cases.into());
        plan.clone_into(&mut run.manifest.plan);
        let started = |(case, at_start_bytes): &(u32, u64)| JournalEntry {
            at_ns: Timestamp::from_nanos(1),
            event: JournalEvent::EngineStarted {
                engine: 0,
                case: Some(*case),
                cold: vec![Cold::Process],
                page_cache: Some(PageCache {
                    bytes: 1000,
                    before_bytes: 1000,
                    at_start_bytes: *at_start_bytes,
                }),
            },
        };
        run.journal = starts.iter().map(started).collect();
        run
    }

    fn warning(plan: &str, starts: &[(u32, u64)]) -> Option<String> {
        let run = run(plan, starts);
        page_cache_warm(&run, &run.manifest.engines[0]).map(|warning| warning.message)
    }

    #[test]
    fn cold_starts_with_weights_in_memory_say_so_with_the_share() {
        let told = warning("", &[(0, 5), (1, 730)]).unwrap();
        assert!(told.starts_with("1 of 2 cold starts found up to 73 % of"), "{told}");
        assert!(told.contains("the plan did not ask"), "{told}");
        assert_eq!(warning("", &[(0, 10), (1, 0)]), None, "a page or two are no warmth");
        assert_eq!(warning("", &[(2, 1000)]), None, "a warm case may find them");
    }

    #[test]
    fn page_cache_that_stayed_warm_though_asked_is_told_as_that() {
        let plan = "[[engine]]\nname = 'e'\nkind = 'openai'\n[engine.lifecycle]\n\
                    kind = 'command'\ncommand = 'x'\nweights = ['w']\n\
                    cold = ['process', 'page-cache']\n";
        let told = warning(plan, &[(0, 1000)]).unwrap();
        assert!(told.contains("though the plan asked"), "{told}");
    }
}
