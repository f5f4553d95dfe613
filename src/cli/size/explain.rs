//! `yardstick size --explain`: an engine's log or error, read.

use std::io::{IsTerminal as _, Read as _};

use anyhow::Context as _;

use crate::catalog::cards;
use crate::cli::{ExitStatus, Failure, Global, output};
use crate::hardware::gpu_cards;
use crate::report;
use crate::sizing::explain::{Context, MAX_TEXT_BYTES, explain};
use crate::sizing::{GpuMemory, Settings, Shape};

/// Reads `text`, or standard input for `-`, and prints what it says.
pub(super) fn execute(
    text: &str,
    model: Option<Shape>,
    gpu: Option<GpuMemory>,
    settings: &Settings,
    json: bool,
    global: &Global,
) -> anyhow::Result<ExitStatus> {
    let read;
    let text = if text == "-" {
        read = standard_input()?;
        &read
    } else {
        text
    };
    let model_is_given = model.is_some();
    let models = model.map_or_else(
        || cards().iter().map(|card| Shape::of_config(&card.name, &card.config)).collect(),
        |model| vec![model],
    );
    let gpus = gpu.map_or_else(
        || gpu_cards().iter().filter_map(GpuMemory::of_card).collect(),
        |gpu| vec![gpu],
    );
    let context = Context { models: &models, model_is_given, gpus: &gpus, settings };
    let reading = explain(text, &context).map_err(|reason| {
        Failure::new(reason)
            .with_hint("pipe the whole start-up log: ... 2>&1 | yardstick size --explain -")
    })?;
    if json {
        output::print_json(&reading)?;
    } else {
        let mut page = String::new();
        let (color, width) = (global.colour_stdout(), global.width());
        report::sizing::explained::render(&reading, color, width, &mut page)?;
        output::print(&page)?;
    }
    Ok(ExitStatus::Success)
}

/// Logs may hold any bytes.
fn standard_input() -> anyhow::Result<String> {
    let stdin = std::io::stdin().lock();
    if stdin.is_terminal() {
        output::note("reading a log from standard input, end it with Ctrl-D");
    }
    let mut bytes = Vec::new();
    stdin.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes).context("cannot read standard input")?;
    if bytes.len() as u64 > MAX_TEXT_BYTES {
        return Err(Failure::new(format!("the log is longer than {} MiB", MAX_TEXT_BYTES >> 20))
            .with_hint("give its memory lines: grep -E 'memory|KV|block|seq len'")
            .into());
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
