//! The thread that asks engines for their own word: at the edges of a case,
//! and twice a second during one. Asks one engine at a time, each question on
//! a connection of its own, and gives up on one that does not answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{Journal, Question, Shared, add_cpu, engine_word};
use crate::engine::scrape::Scrape;
use crate::engine::{EngineKind, EngineSpec};
use crate::hardware::thread_cpu_time;
use crate::record::{EngineWord, ResourceRecord, ResourceSource};
use crate::units;

/// Pause between two questions in a case: a page of vLLM costs it milliseconds.
const EVERY: Duration = Duration::from_millis(500);
/// Longest wait for an engine's word.
const PATIENCE: Duration = Duration::from_secs(1);
/// Failures in a row after which an engine is asked at the edges of cases only.
const MAX_FAILURES: u32 = 3;

/// One engine that can be asked.
struct Asked {
    scrape: Scrape,
    kind: EngineKind,
    failures: u32,
    told: Option<String>,
}

/// Asks until every sender of `questions` is gone, or one names no engine.
pub(super) fn ask(
    engines: &[EngineSpec],
    shared: &Arc<Shared>,
    journal: &Journal,
    questions: mpsc::Receiver<Question>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(answer(engines, shared, journal, questions)),
        Err(error) => {
            let reason = format!("the system gives no runtime: {error}");
            journal.absent(ResourceSource::Engine, None, "engines' own word", &reason);
        }
    }
}

async fn answer(
    engines: &[EngineSpec],
    shared: &Shared,
    journal: &Journal,
    mut questions: mpsc::Receiver<Question>,
) {
    let mut asked: Vec<Option<Asked>> = Vec::new();
    for (index, spec) in engines.iter().enumerate() {
        let known = spec.url.as_ref().map(|_| Scrape::new(spec, &journal.clock));
        if let Some(Err(error)) = &known {
            journal.absent(ResourceSource::Engine, Some(index), "its own word", &error.message);
        }
        let scrape = known.and_then(Result::ok);
        asked.push(scrape.map(|scrape| Asked { scrape, kind: spec.kind, failures: 0, told: None }));
    }
    loop {
        tokio::select! {
            biased;
            question = questions.recv() => {
                let Some(Question { engine, done }) = question else { return };
                if engine >= engines.len() {
                    return;
                }
                take(engine, asked[engine].as_mut(), journal, true).await;
                // Whoever asked may have gone.
                let _ = done.send(());
            }
            () = sleep(EVERY) => {
                let attended = *shared.attended();
                if let Some(engine) = attended
                    && let Some(Some(known)) = asked.get_mut(engine)
                    && known.failures < MAX_FAILURES
                {
                    take(engine, Some(known), journal, false).await;
                }
            }
        }
        add_cpu(&shared.asker_cpu_ns, thread_cpu_time());
    }
}

/// Takes down one engine's word, or why there is none.
async fn take(engine: usize, asked: Option<&mut Asked>, journal: &Journal, at_edge: bool) {
    // An engine in this process tells of each step itself.
    let Some(asked) = asked else { return };
    let began = journal.clock.now();
    let word = match timeout(PATIENCE, asked.word(at_edge)).await {
        Ok(word) => word,
        Err(_) => Err(format!("it did not say within {PATIENCE:?}")),
    };
    let at_ns = journal.clock.now();
    match word {
        Ok(word) => {
            asked.failures = 0;
            asked.told = None;
            let took_ns = units::nanos(at_ns.since(began));
            let engine = u32::try_from(engine).unwrap_or(u32::MAX);
            let word = Some(EngineWord { engine, took_ns, ..word });
            // A recorder that has stopped is noticed where it matters.
            let _ = journal.lines.resource(ResourceRecord { at_ns, word, ..Default::default() });
        }
        Err(reason) => {
            asked.failures = asked.failures.saturating_add(1);
            if asked.told.as_ref() != Some(&reason) {
                journal.absent(ResourceSource::Engine, Some(engine), "its own word", &reason);
                asked.told = Some(reason);
            }
        }
    }
}

impl Asked {
    async fn word(&self, at_edge: bool) -> Result<EngineWord, String> {
        let text = |route: &'static str| async move {
            self.scrape.text(route).await.map_err(|error| error.message)
        };
        if self.kind == EngineKind::Ollama {
            let page = text("/api/ps").await?;
            return page
                .and_then(|page| engine_word::from_ollama_ps(&page))
                .ok_or_else(|| "it has no /api/ps that can be read".to_owned());
        }
        let metrics = text("/metrics").await?;
        let metrics = metrics.and_then(|page| engine_word::from_metrics(&page));
        if self.kind == EngineKind::Vllm {
            return metrics.ok_or_else(|| "its /metrics has no metric of vLLM's".to_owned());
        }
        // llama-server answers /slots between two steps: seldom, or where it is all there is.
        let mut word = metrics.clone().unwrap_or_default();
        let mut has_slots = false;
        if at_edge || metrics.is_none() {
            let slots = text("/slots").await?;
            has_slots = slots.is_some_and(|slots| engine_word::add_slots(&mut word, &slots));
        }
        if metrics.is_none() && !has_slots {
            return Err("it has neither a /metrics of vLLM's or llama-server's nor /slots; \
                        llama-server has the first with --metrics"
                .to_owned());
        }
        Ok(word)
    }
}
