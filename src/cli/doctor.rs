//! `yardstick doctor`: what this machine has, and what to do about what it lacks.

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::{ExitStatus, Global, output};
use crate::catalog::card::DEFAULT_MODEL;
use crate::catalog::{LocateOptions, find_card, locate};
use crate::clock::Clock;
use crate::engine::discover;
use crate::hardware;
use crate::infer::device::{CudaDevice, cuda_devices};
use crate::record::Machine;
use crate::units::format_bytes;

/// Load average per processor above which other work disturbs a measurement.
const BUSY_PERCENT_PER_CPU: u32 = 30;

/// Show what this machine has: processor, memory, GPU, engines, model files.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Model to look for
    #[arg(long, value_name = "NAME|PATH", default_value = DEFAULT_MODEL)]
    model: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    yardstick_version: &'static str,
    machine: Machine,
    cuda: Cuda,
    engines: Vec<FoundEngine>,
    model: FoundModel,
    gaps: Vec<Gap>,
}

/// What the embedded engine can compute on beside the processors.
#[derive(Debug, Serialize)]
struct Cuda {
    available: bool,
    /// Name, compute capability and memory of each device.
    devices: Vec<String>,
    /// CUDA version that the driver serves.
    driver: Option<String>,
    /// Why there is none.
    reason: Option<String>,
    /// What to do about it.
    advice: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct FoundEngine {
    name: String,
    kind: &'static str,
    url: Option<String>,
}

#[derive(Debug, Serialize)]
struct FoundModel {
    name: String,
    found: bool,
    /// Where it is, if it was found.
    origin: Option<String>,
    /// Why not, if it was not.
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
struct Gap {
    what: String,
    advice: String,
}

impl Doctor {
    /// Looks and prints. A gap is no failure: the exit code is 0.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn execute(self, _global: &Global) -> anyhow::Result<ExitStatus> {
        let machine = hardware::machine();
        let engines = engines()?;
        let model = find_model(&self.model);
        let gaps = gaps(&machine, &engines, &model);
        let report = Report {
            yardstick_version: env!("CARGO_PKG_VERSION"),
            machine,
            cuda: Cuda::find(),
            engines,
            model,
            gaps,
        };
        if self.json {
            output::print_json(&report)?;
        } else {
            output::print(&report.text())?;
        }
        Ok(ExitStatus::Success)
    }
}

/// The engines that answer at their usual addresses on this machine.
fn engines() -> anyhow::Result<Vec<FoundEngine>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let found = runtime.block_on(discover::running(&Clock::real()));
    let engine = |spec: crate::engine::EngineSpec| FoundEngine {
        name: spec.name,
        kind: spec.kind.as_str(),
        url: spec.url.map(String::from),
    };
    Ok(found.into_iter().map(engine).collect())
}

fn find_model(name: &str) -> FoundModel {
    let options = LocateOptions { dummy: None, offline: true };
    let (origin, reason) = match locate(name, &options, &mut |_| {}) {
        Ok(located) => (Some(located.origin), None),
        Err(error) => (None, Some(error.message)),
    };
    FoundModel { name: name.to_owned(), found: origin.is_some(), origin, reason }
}

fn gaps(machine: &Machine, engines: &[FoundEngine], model: &FoundModel) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let mut gap = |what: String, advice: &str| gaps.push(Gap { what, advice: advice.to_owned() });
    if let Some(load) = machine.load_average_percent
        && load > BUSY_PERCENT_PER_CPU.saturating_mul(machine.num_cpus)
    {
        gap(
            format!(
                "the machine is busy: load average {} on {} processors",
                hundredths(load),
                machine.num_cpus
            ),
            "stop other work before measuring, latencies suffer first",
        );
    }
    let x86 = machine.os.ends_with("x86_64");
    if x86 && !machine.cpu_features.iter().any(|feature| feature == "avx2") {
        gap(
            "the processor has no AVX2".to_owned(),
            "expect the embedded engine to be slow; measure other engines over HTTP",
        );
    }
    if !model.found {
        gap(
            format!("model {} is not on this machine", model.name),
            "the first `yardstick run` fetches a model card's files; for a path, check it",
        );
    }
    if let (Some(card), Some(memory)) = (find_card(&model.name), available_memory(machine)) {
        let needed = card.num_parameters.saturating_mul(2);
        if needed > memory {
            gap(
                format!(
                    "{} takes {} in bf16, {} of memory are available",
                    card.name,
                    format_bytes(needed),
                    format_bytes(memory)
                ),
                "use a GGUF file with quantized weights, or a smaller model",
            );
        }
    }
    if engines.is_empty() {
        gap(
            "no other engine was found running".to_owned(),
            "start Ollama (port 11434), vLLM (8000) or llama-server (8080), or name one with \
             `yardstick run --engine KIND=URL`",
        );
    }
    gaps
}

fn available_memory(machine: &Machine) -> Option<u64> {
    let note = |name: &str| machine.notes.get(name).and_then(|bytes| bytes.parse::<u64>().ok());
    [note("memory_available_bytes"), note("memory_limit_bytes")].into_iter().flatten().min()
}

fn hundredths(value: u32) -> String {
    format!("{}.{:02}", value / 100, value % 100)
}

impl Report {
    fn text(&self) -> String {
        let machine = &self.machine;
        let or_unknown = |fact: Option<String>| fact.unwrap_or_else(|| "unknown".to_owned());
        let mut lines = vec![
            ("yardstick", self.yardstick_version.to_owned()),
            ("system", machine.os.clone()),
            (
                "processor",
                format!("{}, {} usable", or_unknown(machine.cpu.clone()), machine.num_cpus),
            ),
            ("features", machine.cpu_features.join(" ")),
            ("memory", or_unknown(machine.memory_bytes.map(format_bytes))),
            ("load", or_unknown(machine.load_average_percent.map(hundredths))),
        ];
        match &machine.gpu_absent {
            Some(reason) => lines.push(("gpu", format!("none: {reason}"))),
            None => lines.extend(machine.gpus.iter().map(|gpu| ("gpu", gpu.clone()))),
        }
        let silent = machine.notes.iter().filter(|(name, _)| name.ends_with("_silent"));
        lines.extend(silent.filter_map(|(name, why)| {
            let index = name.strip_prefix("gpu_")?.strip_suffix("_silent")?;
            Some(("gpu", format!("GPU {index} does not answer: {why}")))
        }));
        if let Some(driver) = machine.notes.get("nvidia_driver") {
            lines.push(("driver", driver.clone()));
        }
        lines.extend(self.cuda.lines().into_iter().map(|line| ("cuda", line)));
        for engine in &self.engines {
            lines.push(("engine", format!("{} at {}", engine.name, engine.place())));
        }
        let model = &self.model;
        let place = model.origin.as_deref().unwrap_or("not on this machine");
        lines.push(("model", format!("{}: {place}", model.name)));
        let mut text = String::new();
        for (name, value) in lines {
            text.push_str(&format!("{name:<10} {value}\n"));
        }
        for Gap { what, advice } in &self.gaps {
            text.push_str(&format!("\n! {what}\n  {advice}\n"));
        }
        text
    }
}

impl Cuda {
    fn find() -> Self {
        match cuda_devices() {
            Ok(devices) => Self {
                available: true,
                driver: devices.first().map(|device| version(device.driver_version)),
                devices: devices.iter().map(describe).collect(),
                reason: None,
                advice: None,
            },
            Err(absent) => Self {
                available: false,
                driver: None,
                devices: Vec::new(),
                reason: Some(absent.to_string()),
                advice: Some(absent.advice()),
            },
        }
    }

    fn lines(&self) -> Vec<String> {
        if let (Some(reason), Some(advice)) = (&self.reason, self.advice) {
            return vec![format!("not available: {reason}"), advice.to_owned()];
        }
        let driver = self.driver.as_deref().unwrap_or("unknown");
        let devices = self.devices.iter().enumerate();
        devices.map(|(n, device)| format!("cuda:{n} {device}, driver for CUDA {driver}")).collect()
    }
}

fn describe(device: &CudaDevice) -> String {
    let (major, minor) = device.capability;
    let memory = format_bytes(device.total_bytes);
    format!("{}, compute capability {major}.{minor}, {memory}", device.name)
}

/// Such as 13.0 of 13000.
fn version(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

impl FoundEngine {
    fn place(&self) -> &str {
        self.url.as_deref().unwrap_or("this process")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn machine() -> Machine {
        Machine {
            os: "linux x86_64".to_owned(),
            cpu: None,
            num_cpus: 2,
            memory_bytes: None,
            load_average_percent: Some(10),
            cpu_features: vec!["avx2".to_owned()],
            gpus: Vec::new(),
            gpu_absent: Some("none".to_owned()),
            notes: BTreeMap::new(),
        }
    }

    fn model(found: bool) -> FoundModel {
        FoundModel { name: "none-such".to_owned(), found, origin: None, reason: None }
    }

    fn engine() -> FoundEngine {
        FoundEngine { name: "vllm".to_owned(), kind: "vllm", url: None }
    }

    #[test]
    fn machine_that_lacks_nothing_has_no_gaps() {
        assert!(gaps(&machine(), &[engine()], &model(true)).is_empty());
    }

    #[test]
    fn every_gap_is_named_with_its_advice() {
        let machine =
            Machine { load_average_percent: Some(190), cpu_features: Vec::new(), ..machine() };
        let gaps = gaps(&machine, &[], &model(false));
        let whats: Vec<_> = gaps.iter().map(|gap| gap.what.as_str()).collect();
        assert_eq!(whats.len(), 4, "{whats:?}");
        assert!(whats[0].contains("1.90"), "{whats:?}");
        assert!(gaps.iter().all(|gap| !gap.advice.is_empty()));
    }
}
