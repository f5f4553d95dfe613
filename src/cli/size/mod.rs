//! `yardstick size`: what fits on a GPU, what each engine does with the memory, and
//! what to set.

mod args;
mod explain;
mod model;
mod pool;
mod pulse;
mod simulate;

use clap::{ArgGroup, Args, ValueEnum};

use self::args::{GpuArgs, SettingsArgs};
use self::model::ModelAtHand;
use self::simulate::SimulationArgs;
use super::{ExitStatus, Failure, Global, output};
use crate::report;
use crate::sizing::answer::{Answer, EngineAnswer, NotSized};
use crate::sizing::{GpuMemory, Question, Settings, Version, embedded, ollama, vllm};

/// Version of the `--json` object.
const SCHEMA_VERSION: u32 = 1;
/// Options that say nothing to a simulation.
const NOT_SIMULATED: [&str; 12] = [
    "explain",
    "engine",
    "gpu_memory_gib",
    "vllm_version",
    "ollama_version",
    "dtype",
    "kv_cache_dtype",
    "num_parallel",
    "weights_gib",
    "activation_gib",
    "non_torch_gib",
    "cuda_graph_gib",
];

/// Say what fits on a GPU: KV cache, context and users, by engine.
///
/// Memory by part, blocks, the longest request, how many requests fit at once, whether
/// the engine starts, and if not, what it says and every way out with numbers. What is
/// not known is estimated within bounds, which go through to the answer; the options
/// under Known parts replace estimates. With --simulate: what a load would do to the
/// embedded engine there, on a virtual clock.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("subject").args(["model", "explain", "simulate"]).required(true).multiple(true))]
pub struct Size {
    /// Model card, config.json, model folder or GGUF file
    #[arg(long, value_name = "NAME|PATH")]
    model: Option<String>,
    /// Read what an engine said, an error or a start-up log, or - for standard input: which
    /// pool it had, which GPUs go with that, and what to do; --model, --gpu and known parts
    /// narrow it down
    #[arg(long, value_name = "TEXT|-", conflicts_with = "engine")]
    explain: Option<String>,
    /// Engine to size, repeatable [default: all]
    #[arg(long, value_enum, value_name = "ENGINE")]
    engine: Vec<Engine>,
    /// Drive the embedded engine's scheduler and block manager with a load, on a virtual clock;
    /// --rate or --users says which
    #[arg(long, conflicts_with_all = NOT_SIMULATED)]
    simulate: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gpu: GpuArgs,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    simulation: SimulationArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// vLLM, by the rules of --vllm-version
    Vllm,
    /// Ollama, by the rules of --ollama-version
    Ollama,
    /// The engine in this program
    Embedded,
}

impl Size {
    /// Sizes and prints.
    ///
    /// # Errors
    /// When the model cannot be read, the GPU is not known, or an engine that was
    /// asked for does not take the settings.
    pub fn execute(self, global: &Global) -> anyhow::Result<ExitStatus> {
        if self.simulate {
            let shared = simulate::Shared {
                model: self.model.as_deref(),
                card: self.gpu.card()?,
                settings: &self.settings,
            };
            return simulate::execute(&shared, &self.simulation, self.json, global);
        }
        let settings = self.settings.settings().map_err(Failure::new)?;
        let model = self.model.as_deref().map(ModelAtHand::read).transpose()?;
        if let Some(text) = &self.explain {
            let gpu = if self.gpu.is_given() { Some(self.gpu.memory()?) } else { None };
            let shape = model.map(|model| model.shape);
            return explain::execute(text, shape, gpu, &settings, self.json, global);
        }
        let Some(model) = model else {
            return Err(Failure::new("no model was named").with_hint("give --model").into());
        };
        let answer = self.answer(model, self.gpu.memory()?, &settings)?;
        if self.json {
            output::print_json(&answer)?;
        } else {
            let mut text = String::new();
            report::sizing::render(&answer, global.colour_stdout(), global.width(), &mut text)?;
            output::print(&text)?;
        }
        Ok(ExitStatus::Success)
    }

    fn answer(
        &self,
        model: ModelAtHand,
        gpu: GpuMemory,
        settings: &Settings,
    ) -> Result<Answer, Failure> {
        let question = Question { shape: &model.shape, gpu: &gpu, settings };
        let mut sized = Vec::new();
        let mut not_sized = Vec::new();
        for engine in self.engines() {
            for (name, result) in self.size(engine, &question, &model) {
                match result {
                    Ok(answer) => sized.push(answer),
                    Err(reason) => not_sized.push(NotSized { engine: name, reason }),
                }
            }
        }
        // What was asked for by name must not be missing quietly.
        if let Some(refused) = not_sized.first()
            && (sized.is_empty() || !self.engine.is_empty())
        {
            return Err(Failure::new(format!("{}: {}", refused.engine, refused.reason)));
        }
        Ok(Answer {
            schema_version: SCHEMA_VERSION,
            model: model.shape,
            gpu,
            lengths: settings.lengths,
            engines: sized,
            not_sized,
        })
    }

    fn engines(&self) -> Vec<Engine> {
        if self.engine.is_empty() {
            return Engine::value_variants().to_vec();
        }
        let mut engines = self.engine.clone();
        engines.dedup();
        engines
    }

    /// One answer, or for vLLM without a version, that of the last V0 and that of today.
    fn size(
        &self,
        engine: Engine,
        question: &Question<'_>,
        model: &ModelAtHand,
    ) -> Vec<(String, Result<EngineAnswer, String>)> {
        match engine {
            Engine::Vllm => {
                let versions = match self.settings.vllm_version() {
                    Some(version) => vec![version],
                    None => vec![vllm::STUDY, vllm::CURRENT],
                };
                let of =
                    |version: Version| (format!("vLLM {version}"), vllm::size(question, version));
                versions.into_iter().map(of).collect()
            }
            Engine::Ollama => {
                let version = self.settings.ollama_version().unwrap_or(ollama::CURRENT);
                vec![("Ollama".to_owned(), ollama::size(question, version))]
            }
            Engine::Embedded => {
                let target = if cfg!(feature = "cuda") {
                    embedded::Target::Gpu(question.gpu)
                } else {
                    embedded::Target::Cpu
                };
                let answer = match &model.embedded {
                    Ok(model) => embedded::size(model, question.settings, target),
                    Err(reason) => Err(reason.clone()),
                };
                vec![("embedded engine".to_owned(), answer)]
            }
        }
    }
}
