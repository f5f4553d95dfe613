//! From specifications to engines that answered: what is measured, and why not.

use std::sync::Arc;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::progress::DownloadProgress;
use crate::catalog::{LocateOptions, Located, find_card, locate};
use crate::clock::Clock;
use crate::engine::embedded::EmbeddedEngine;
use crate::engine::{self, Engine, EngineKind, EngineSpec, ModelHint, discover};
use crate::infer::{Tokenizer, weights};
use crate::lifecycle::{Keeper, Lifecycles};
use crate::plan::{Plan, Residency, Subject};
use crate::record::{EngineRecord, JournalEntry};

/// An engine that the driver's tasks share.
type SharedEngine = Arc<dyn Engine>;

/// The engines of a run, in order, each as it described itself.
pub struct Contestants {
    contestants: Vec<Contestant>,
    /// What was started so that engines could describe themselves.
    pub introduction: Vec<JournalEntry>,
    /// The model's own tokenizer, where its files are on this machine.
    pub tokenizer: Option<Tokenizer>,
}

struct Contestant {
    record: EngineRecord,
    engine: Option<SharedEngine>,
    /// Whether it is made cold by being stopped and started.
    restarts: bool,
}

impl Contestant {
    fn is_unusable_point(&self) -> bool {
        self.record.spec.kv_point.is_some() && self.record.error.is_some()
    }
}

/// How the engines of a run come up.
pub struct Opening<'a> {
    /// Those that yardstick leads.
    pub lifecycles: &'a Lifecycles,
    /// `false` to start nothing, for a look at the cases.
    pub starts: bool,
    /// Set when the user asks to stop.
    pub cancel: &'a CancellationToken,
}

/// Makes and asks the engines of `plan`: those it names, which must answer, or
/// else the embedded engine, itself over HTTP, and whatever runs here.
///
/// # Errors
/// When the model cannot be found, or an engine that was named does not answer.
pub async fn assemble(
    plan: &Plan,
    seed: u64,
    clock: &Clock,
    opening: &Opening<'_>,
) -> anyhow::Result<Contestants> {
    let named = !plan.engines.is_empty();
    let specs = if named { plan.engines.clone() } else { found_here(clock).await? };
    let mut models = Models { plan, seed, located: Vec::new(), tokenizer: None };
    let mut contestants = Vec::new();
    let mut introduction = Vec::new();
    // External engines first: to learn that one does not answer must not cost a download.
    for external in [true, false] {
        for (order, spec) in specs.iter().enumerate() {
            if (spec.kind != EngineKind::Embedded) == external {
                let made = match opening.lifecycles.keeper(order).filter(|_| named) {
                    Some(keeper) => {
                        led(spec, keeper, &mut models, clock, opening, &mut introduction).await
                    }
                    None => contestant(spec, named, &mut models, clock).await,
                };
                let made = made.or_else(|error| unusable_point(spec, error, opening.cancel))?;
                contestants.push((order, made));
            }
        }
    }
    contestants.sort_by_key(|(order, _)| *order);
    if let Some((_, first)) = contestants.first()
        && contestants.iter().all(|(_, contestant)| contestant.is_unusable_point())
    {
        let why = first.record.error.as_deref().unwrap_or_default();
        let what = format!("no point of the sweep can be measured, the first because: {why}");
        return Err(Failure::new(what).into());
    }
    let tokenizer = models.tokenizer();
    let contestants = contestants.into_iter().map(|(_, contestant)| contestant).collect();
    Ok(Contestants { contestants, introduction, tokenizer })
}

/// A point of a sweep whose settings the engine refuses is no reason to measure
/// none of the others.
fn unusable_point(
    spec: &EngineSpec,
    error: anyhow::Error,
    cancel: &CancellationToken,
) -> anyhow::Result<Contestant> {
    if spec.kv_point.is_none() || cancel.is_cancelled() {
        return Err(error);
    }
    let message = error.root_cause().to_string();
    super::output::warn(&format!("{} is left out: {message}", spec.name));
    let record = EngineRecord { spec: spec.clone(), info: None, error: Some(message) };
    Ok(Contestant { record, engine: None, restarts: false })
}

async fn found_here(clock: &Clock) -> anyhow::Result<Vec<EngineSpec>> {
    let mut specs: Vec<EngineSpec> = vec!["embedded".parse()?, "embedded?transport=http".parse()?];
    specs.extend(discover::running(clock).await);
    Ok(specs)
}

async fn contestant(
    spec: &EngineSpec,
    must_answer: bool,
    models: &mut Models<'_>,
    clock: &Clock,
) -> anyhow::Result<Contestant> {
    let engine: SharedEngine = match spec.kind {
        EngineKind::Embedded => Arc::new(models.embedded(spec, clock)?),
        EngineKind::Ollama | EngineKind::Vllm | EngineKind::Openai => {
            Arc::from(engine::connect(spec, clock, &models.hint())?)
        }
    };
    let record = |info, error| EngineRecord { spec: spec.clone(), info, error };
    match engine.describe().await {
        Ok(info) => Ok(Contestant {
            record: record(Some(info), None),
            engine: Some(engine),
            restarts: false,
        }),
        Err(error) if must_answer => Err(error.into()),
        Err(error) => {
            let message = match &error.hint {
                Some(hint) => format!("{}; {hint}", error.message),
                None => error.message.clone(),
            };
            super::output::warn(&message);
            let record = record(None, Some(message));
            Ok(Contestant { record, engine: None, restarts: false })
        }
    }
}

/// An engine that yardstick leads: started once so that it can say who it is,
/// and stopped again where others need the room.
async fn led(
    spec: &EngineSpec,
    keeper: &Keeper,
    models: &mut Models<'_>,
    clock: &Clock,
    opening: &Opening<'_>,
    introduction: &mut Vec<JournalEntry>,
) -> anyhow::Result<Contestant> {
    if !opening.starts {
        let engine: SharedEngine = Arc::from(engine::connect(spec, clock, &models.hint())?);
        let record = EngineRecord { spec: spec.clone(), info: None, error: None };
        return Ok(Contestant { record, engine: Some(engine), restarts: true });
    }
    if !keeper.is_up() {
        super::output::note(&format!("starting {}", spec.name));
        keeper.start(None, false, opening.cancel, |entry| introduction.push(entry)).await?;
    }
    let made = contestant(spec, true, models, clock).await?;
    let alone = models.plan.engines.len() == 1;
    if opening.lifecycles.residency() == Residency::One && !alone {
        introduction.extend(keeper.stop().await?);
    }
    Ok(Contestant { restarts: true, ..made })
}

impl Contestants {
    /// As planning sees them.
    #[must_use]
    pub fn subjects(&self) -> Vec<Subject> {
        let subject = |contestant: &Contestant| {
            let record = &contestant.record;
            let cold = record.info.as_ref().map(|info| &info.capabilities.cold);
            Subject {
                name: record.spec.name.clone(),
                unusable: record.error.clone(),
                no_cold: cold
                    .and_then(|cold| cold.reason())
                    .filter(|_| !contestant.restarts)
                    .map(str::to_owned),
                holds: record
                    .info
                    .as_ref()
                    .filter(|_| record.spec.kv_point.is_some())
                    .and_then(|info| info.max_model_len),
            }
        };
        self.contestants.iter().map(subject).collect()
    }

    /// Whether each can be made to give its memory back without being stopped.
    #[must_use]
    pub fn unloadable(&self) -> Vec<bool> {
        let yes = |it: &Contestant| {
            let info = it.record.info.as_ref();
            info.is_some_and(|info| info.capabilities.cold.reason().is_none())
        };
        self.contestants.iter().map(yes).collect()
    }

    /// As the manifest keeps them.
    #[must_use]
    pub fn records(&self) -> Vec<EngineRecord> {
        self.contestants.iter().map(|contestant| contestant.record.clone()).collect()
    }

    /// As they were asked for.
    #[must_use]
    pub fn specs(&self) -> Vec<EngineSpec> {
        self.contestants.iter().map(|contestant| contestant.record.spec.clone()).collect()
    }

    /// Their names.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.specs().into_iter().map(|spec| spec.name).collect()
    }

    /// Themselves; `None` for one that did not answer.
    #[must_use]
    pub fn engines(&self) -> Vec<Option<SharedEngine>> {
        self.contestants.iter().map(|contestant| contestant.engine.clone()).collect()
    }
}

/// The models of a run, each located once.
struct Models<'a> {
    plan: &'a Plan,
    seed: u64,
    located: Vec<(String, Located)>,
    /// Of the first embedded engine.
    tokenizer: Option<Tokenizer>,
}

impl Models<'_> {
    fn embedded(&mut self, spec: &EngineSpec, clock: &Clock) -> anyhow::Result<EmbeddedEngine> {
        let name = spec.setting("model").unwrap_or(&self.plan.model).to_owned();
        let dummy = spec.setting("load_format").map_or(self.plan.dummy_weights, |f| f == "dummy");
        let located = self.locate(&name, dummy)?;
        let engine = EmbeddedEngine::open(spec, &located.source, &name, clock)
            .with_context(|| format!("engine {}", spec.name))?;
        self.tokenizer.get_or_insert_with(|| engine.host().tokenizer().clone());
        Ok(engine)
    }

    fn locate(&mut self, name: &str, dummy: bool) -> anyhow::Result<Located> {
        let key = format!("{name} {dummy}");
        if let Some((_, located)) = self.located.iter().find(|(known, _)| *known == key) {
            return Ok(located.clone());
        }
        let mut progress = DownloadProgress::new();
        let options = LocateOptions { dummy: dummy.then_some(self.seed), offline: false };
        let located = locate(name, &options, &mut |report| progress.show(report))?;
        self.located.push((key, located.clone()));
        Ok(located)
    }

    /// The same model under the names that engines know it by.
    fn hint(&self) -> ModelHint {
        let card = find_card(&self.plan.model);
        ModelHint {
            ollama_tag: card.and_then(|card| card.ollama_tag.clone()),
            served: card
                .and_then(|card| card.vllm_id.clone())
                .into_iter()
                .chain([self.plan.model.clone()])
                .collect(),
        }
    }

    /// The run's tokenizer: an embedded engine's, else that of whatever is on
    /// this machine already; nothing is downloaded for it.
    fn tokenizer(self) -> Option<Tokenizer> {
        self.tokenizer.or_else(|| {
            let options = LocateOptions { dummy: None, offline: true };
            let located = locate(&self.plan.model, &options, &mut |_| {}).ok()?;
            weights::open(&located.source).ok().map(|model| model.tokenizer)
        })
    }
}
