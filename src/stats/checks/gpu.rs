//! What to know of an embedded engine that ran on a GPU.

use super::about;
use crate::infer::device::is_emulated;
use crate::record::{EngineRecord, JournalEvent, RunData};
use crate::stats::warnings::{Warning, WarningClass};

pub(super) fn emulated(engine: &EngineRecord) -> Option<Warning> {
    let gpu = setting(engine, "gpu")?;
    is_emulated(gpu).then(|| {
        about(
            WarningClass::EmulatedGpu,
            Some(engine),
            format!("ran on {gpu}, which is no GPU but a program"),
            "its texts are those of a GPU, its times are not: quote none of them",
        )
    })
}

/// Graphs that were not asked for are no surprise, but they slow a decode step all
/// the same.
pub(super) fn no_graphs(run: &RunData, engine: &EngineRecord) -> Option<Warning> {
    let index = run.manifest.engines.iter().position(|e| e.spec.name == engine.spec.name)?;
    let loaded = run.journal.iter().find_map(|entry| match entry.event {
        JournalEvent::GpuMemory { engine, memory } if engine as usize == index => Some(memory),
        _ => None,
    })?;
    let why = if setting(engine, "cuda_graphs") == Some("false") {
        "by its setting cuda_graphs"
    } else {
        "because they could not be recorded"
    };
    (loaded.num_graphs == 0).then(|| {
        about(
            WarningClass::NoCudaGraphs,
            Some(engine),
            format!("decode steps were not replayed as CUDA graphs, {why}"),
            "hundreds of launches a step cost more than small batches compute: run again with \
             `cuda_graphs=true`, and look for the reason on stderr",
        )
    })
}

fn setting<'a>(engine: &'a EngineRecord, name: &str) -> Option<&'a str> {
    engine.info.as_ref()?.settings.get(name).map(String::as_str)
}
