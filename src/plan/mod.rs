//! What to measure: a validated plan and the cases it expands to. Reads no
//! clock and starts nothing; how a plan is spelled in TOML stays in `wire`.

pub mod cloud_run;
pub mod command_line;
pub mod expand;
pub mod experiment;
pub mod kv_sweep;
pub mod lengths;
pub mod lifecycle;
pub mod load;
pub mod load_shape;
pub mod load_spec;
pub mod order;
pub mod requirement;
pub mod slo;
pub mod warm_up;
mod wire;

use std::collections::BTreeMap;

use thiserror::Error;

use crate::engine::EngineSpec;
use crate::engine::spec::SpecError;

pub use expand::{Case, Subject, expand};
pub use experiment::Experiment;
pub use kv_sweep::{KvAxis, KvSweep};
pub use lengths::Lengths;
pub use lifecycle::{Cold, LifecyclePlan, Residency};
pub use load::{LoadPlan, Pace};
pub use load_shape::LoadShape;
pub use order::Order;
pub use requirement::Requirement;
pub use slo::Slo;
pub use warm_up::WarmUp;

/// The question that the original study asked.
pub const STUDY_QUESTION: &str = "why is the sky blue?";

/// Bound on requests, concurrency and lengths in a plan: beyond it a typo is likelier than a wish.
const MAX_COUNT: u32 = 100_000;
/// Bound on repetitions of the whole plan.
const MAX_ROUNDS: u32 = 1_000;

/// A plan whose every field has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Part of the run directory's name.
    pub name: String,
    /// What the plan is meant to show, for readers of its report.
    pub analysis: Option<String>,
    /// Model card name or path.
    pub model: String,
    /// Engines to measure; empty means the embedded engine, itself over HTTP, and whatever runs here.
    pub engines: Vec<EngineSpec>,
    /// Experiments, in order.
    pub experiments: Vec<Experiment>,
    /// Loads beside them, in order.
    pub loads: Vec<LoadPlan>,
    /// Repetitions of every case, interleaved between the engines.
    pub rounds: u32,
    /// In which order engines take their turns.
    pub order: Order,
    /// Measure each engine a second time within each round, to see how much it differs from itself.
    pub aa: bool,
    /// How engines are brought to their speed before warm cases.
    pub warm_up: WarmUp,
    /// What has to be shown.
    pub requirements: Vec<Requirement>,
    /// End a case's load once all that is required of it is decided.
    pub stop_when_decided: bool,
    /// Requests in a case; `None` is each experiment's own number.
    pub requests: Option<u32>,
    /// Size of the bursts, and the last level of `batched-warm`.
    pub concurrency: u32,
    /// What is asked.
    pub prompt: PromptPlan,
    /// Send the same prompt every time, as the study did; prefix caches then flatter.
    pub same_prompt: bool,
    /// Bound on generated tokens.
    pub max_tokens: u32,
    /// 0 is greedy.
    pub temperature: f64,
    /// Let answers end at an end-of-sequence token instead of running to `max_tokens`.
    pub stop_at_eos: bool,
    /// Seed of prompts, sampling and dummy weights; `None` takes a fresh one a run.
    pub seed: Option<u64>,
    /// Seeded weights of the model card's shapes instead of real ones, for the embedded engine.
    pub dummy_weights: bool,
    /// How engines are started and stopped, by their names; the others run already or in this process.
    pub lifecycles: BTreeMap<String, LifecyclePlan>,
    /// KV settings to go through: every engine becomes one a point.
    pub kv_sweep: Option<KvSweep>,
    /// Whether engines may hold memory at once; see [`Plan::residency`] for what `None` means.
    pub resident: Option<Residency>,
}

/// What is asked of the engines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptPlan {
    /// This question, through the chat template, behind a tag that makes each request distinct.
    Question(String),
    /// Synthetic prompts of exactly this many tokens, without a template.
    Synthetic {
        /// Tokens in each prompt.
        num_tokens: u32,
    },
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            name: "comparison".to_owned(),
            analysis: None,
            model: crate::catalog::card::DEFAULT_MODEL.to_owned(),
            engines: Vec::new(),
            experiments: Experiment::ALL.to_vec(),
            loads: Vec::new(),
            rounds: 1,
            order: Order::Mirrored,
            aa: false,
            warm_up: WarmUp::UntilFlat,
            requirements: Vec::new(),
            stop_when_decided: false,
            requests: None,
            concurrency: 10,
            prompt: PromptPlan::Question(STUDY_QUESTION.to_owned()),
            same_prompt: false,
            max_tokens: 64,
            temperature: 0.0,
            stop_at_eos: false,
            seed: None,
            dummy_weights: false,
            lifecycles: BTreeMap::new(),
            kv_sweep: None,
            resident: None,
        }
    }
}

/// Why a plan was refused.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum PlanError {
    /// It is no TOML, or has a field that does not exist.
    #[error("plan is not valid: {0}")]
    Syntax(String),
    /// No such experiment.
    #[error("unknown experiment `{name}`: expected one of {}", Experiment::names())]
    UnknownExperiment {
        /// What was asked for.
        name: String,
    },
    /// An engine specification is wrong.
    #[error("engine: {0}")]
    Engine(#[from] SpecError),
    /// Two engines with one name.
    #[error("two engines are named `{0}`: give one another name, as in NAME:KIND")]
    DuplicateEngine(String),
    /// A load is wrong.
    #[error("load `{load}`: {problem}")]
    Load {
        /// Its name.
        load: String,
        /// The field, what it is and what it may be.
        problem: String,
    },
    /// A lifecycle is wrong.
    #[error(transparent)]
    Lifecycle(#[from] lifecycle::LifecycleError),
    /// A sweep over KV settings is wrong.
    #[error("kv_sweep: {0}")]
    KvSweep(String),
    /// A word that has no meaning in its field.
    #[error("{0}")]
    Word(String),
    /// A requirement that no case of the plan has to meet.
    #[error(
        "requirement `{0}` is of no case of this plan: name an experiment or a load of it; cold ones are meant only by name"
    )]
    RequiresNothing(String),
    /// Early stopping without anything to be decided.
    #[error("`stop_when_decided` needs requirements: give at least one in `require`")]
    NothingToDecide,
    /// Two settings that defeat each other.
    #[error(
        "`aa` and `stop_when_decided` exclude each other: two arms of a different number of requests say nothing of noise"
    )]
    UnequalArms,
    /// Two ways of saying what is asked.
    #[error("a plan has either `prompt` or `prompt_tokens`, not both")]
    TwoPrompts,
    /// A value out of its range.
    #[error("`{field}` is {got}: expected {expected}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        got: String,
        /// What it may be.
        expected: String,
    },
}

impl Plan {
    /// Reads a plan file.
    ///
    /// # Errors
    /// [`PlanError`] names the field.
    pub fn from_toml(text: &str) -> Result<Self, PlanError> {
        wire::parse(text)
    }

    /// The plan as TOML, every default spelled out: reading it gives the same plan.
    #[must_use]
    pub fn to_toml(&self) -> String {
        wire::render(self)
    }

    /// Checks what the types do not: ranges and unique names.
    ///
    /// # Errors
    /// [`PlanError`] names the field, what it is and what it may be.
    pub fn check(&self) -> Result<(), PlanError> {
        if !(1..=MAX_ROUNDS).contains(&self.rounds) {
            let expected = format!("1 to {MAX_ROUNDS}");
            return Err(out_of_range("rounds", &self.rounds.to_string(), &expected));
        }
        let counts = [
            ("requests", self.requests.unwrap_or(1)),
            ("concurrency", self.concurrency),
            ("max_tokens", self.max_tokens),
        ];
        for (field, value) in counts {
            in_range(field, value)?;
        }
        match &self.prompt {
            PromptPlan::Synthetic { num_tokens } => in_range("prompt_tokens", *num_tokens)?,
            PromptPlan::Question(text) if text.trim().is_empty() => {
                return Err(out_of_range("prompt", "empty", "a question"));
            }
            PromptPlan::Question(_) => {}
        }
        if !(self.temperature.is_finite() && (0.0..=10.0).contains(&self.temperature)) {
            return Err(out_of_range("temperature", &self.temperature.to_string(), "0 to 10"));
        }
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > 60 || !self.name.chars().all(named) {
            let expected = "1 to 60 of a-z, A-Z, 0-9, `-`, `_` and `.`";
            return Err(out_of_range("name", &format!("`{}`", self.name), expected));
        }
        if self.experiments.is_empty() && self.loads.is_empty() {
            return Err(out_of_range("experiments", "empty", "at least one, or a load"));
        }
        for (index, load) in self.loads.iter().enumerate() {
            let taken = self.loads[..index].iter().any(|other| other.name == load.name)
                || self.experiments.iter().any(|experiment| experiment.as_str() == load.name);
            if taken {
                let problem = "another load or experiment has its name: give it another";
                return Err(PlanError::Load {
                    load: load.name.clone(),
                    problem: problem.to_owned(),
                });
            }
        }
        for (index, spec) in self.engines.iter().enumerate() {
            if self.engines[..index].iter().any(|other| other.name == spec.name) {
                return Err(PlanError::DuplicateEngine(spec.name.clone()));
            }
        }
        self.check_requirements()?;
        self.check_lifecycles()?;
        kv_sweep::apply(self).map(|_| ())
    }

    /// The plan with an engine for each point of its sweep over KV settings, and
    /// without the sweep; itself where it has none.
    ///
    /// # Errors
    /// [`PlanError::KvSweep`] where an engine cannot be told what is varied.
    pub fn swept(&self) -> Result<Self, PlanError> {
        let swept = kv_sweep::apply(self)?;
        Ok(Self { kv_sweep: None, ..swept })
    }

    fn check_requirements(&self) -> Result<(), PlanError> {
        if self.stop_when_decided && self.requirements.is_empty() {
            return Err(PlanError::NothingToDecide);
        }
        if self.stop_when_decided && self.aa {
            return Err(PlanError::UnequalArms);
        }
        for requirement in &self.requirements {
            let experiment = |e: &Experiment| requirement.applies(e.as_str(), None, e.is_cold());
            // A name with a rate behind it is one case of a sweep.
            let load = |load: &LoadPlan| {
                load.points().any(|name| requirement.applies(&name, Some(&load.name), false))
            };
            if !self.experiments.iter().any(experiment) && !self.loads.iter().any(load) {
                return Err(PlanError::RequiresNothing(requirement.to_string()));
            }
        }
        Ok(())
    }

    fn check_lifecycles(&self) -> Result<(), PlanError> {
        for (name, lifecycle) in &self.lifecycles {
            let spec = self.engines.iter().find(|spec| spec.name == *name);
            let spec = spec.ok_or_else(|| lifecycle::LifecycleError::NoSuchEngine(name.clone()))?;
            lifecycle.check(spec)?;
            let scales = matches!(lifecycle, LifecyclePlan::CloudRun(_));
            if scales && self.resident == Some(Residency::Together) {
                let expected = format!(
                    "one, or nothing: {name} goes cold on Cloud Run while others are measured, \
                     and is warmed up again only where engines take turns"
                );
                return Err(out_of_range("resident", "together", &expected));
            }
        }
        Ok(())
    }

    /// Whether engines may hold memory at once. Unless the plan says so, one at
    /// a time if yardstick starts any of them (it can then keep them apart, and
    /// an engine that takes 90 % of a GPU leaves no room for a second one), else
    /// together, as they were found.
    #[must_use]
    pub fn residency(&self) -> Residency {
        self.resident.unwrap_or_else(|| {
            let managed = |lifecycle: &LifecyclePlan| *lifecycle != LifecyclePlan::External;
            if self.lifecycles.values().any(managed) { Residency::One } else { Residency::Together }
        })
    }
}

fn in_range(field: &'static str, value: u32) -> Result<(), PlanError> {
    if (1..=MAX_COUNT).contains(&value) {
        Ok(())
    } else {
        Err(out_of_range(field, &value.to_string(), &format!("1 to {MAX_COUNT}")))
    }
}

fn out_of_range(field: &'static str, got: &str, expected: &str) -> PlanError {
    PlanError::OutOfRange { field, got: got.to_owned(), expected: expected.to_owned() }
}
