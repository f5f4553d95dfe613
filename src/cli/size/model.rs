//! Reading the model that is sized: a card, a folder or `config.json`, a GGUF file.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;

use crate::catalog::{LocateOptions, find_card, locate};
use crate::cli::Failure;
use crate::infer::weights::{self, GgufSummary, StoredDtype};
use crate::infer::{InferError, ModelConfig, ModelSource};
use crate::sizing::Shape;
use crate::sizing::embedded::EmbeddedModel;

/// Longest `config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// A model's numbers for sizing, and for the embedded engine where it computes such.
pub(super) struct ModelAtHand {
    pub(super) shape: Shape,
    /// Why not, where it does not.
    pub(super) embedded: Result<EmbeddedModel, String>,
}

impl ModelAtHand {
    /// Reads headers and configs, no weights.
    pub(super) fn read(name: &str) -> anyhow::Result<Self> {
        if let Some(card) = find_card(name) {
            return Ok(Self {
                shape: Shape::of_config(&card.name, &card.config),
                embedded: Ok(found(name, &card.config)),
            });
        }
        let path = Path::new(name);
        if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json")) && path.is_file() {
            return Self::of_hf(path, None);
        }
        // It names cards where this is no path either.
        let options = LocateOptions { dummy: None, offline: true };
        match locate(name, &options, &mut |_| {})?.source {
            ModelSource::Gguf(file) => Self::of_gguf(&file),
            ModelSource::Folder(folder) => Self::of_hf(&folder.join("config.json"), Some(&folder)),
            ModelSource::Dummy { config, .. } => Ok(Self {
                shape: Shape::of_config(name, &config),
                embedded: Ok(without_weights(*config)),
            }),
        }
    }

    fn of_hf(path: &Path, folder: Option<&Path>) -> anyhow::Result<Self> {
        let shown = path.display();
        let mut text = String::new();
        let file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
        file.take(MAX_CONFIG_BYTES + 1)
            .read_to_string(&mut text)
            .with_context(|| format!("cannot read {shown}"))?;
        if text.len() as u64 > MAX_CONFIG_BYTES {
            return Err(
                Failure::new(format!("{shown} is longer than {MAX_CONFIG_BYTES} bytes")).into()
            );
        }
        let named = folder.or_else(|| path.parent()).and_then(Path::file_name);
        let name =
            named.map_or_else(|| shown.to_string(), |name| name.to_string_lossy().into_owned());
        let shape = Shape::from_hf(&name, &text)
            .map_err(|reason| Failure::new(format!("{shown}: {reason}")))?;
        let embedded = ModelConfig::from_hf(&text, None).map(|config| {
            let source = folder.map(|folder| ModelSource::Folder(folder.to_owned()));
            source
                .and_then(|source| opened(&source).ok())
                .unwrap_or_else(|| without_weights(config))
        });
        Ok(Self { shape, embedded })
    }

    fn of_gguf(path: &Path) -> anyhow::Result<Self> {
        let summary = GgufSummary::read(path)?;
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let shape = Shape::from_gguf(&name, &summary)
            .map_err(|reason| Failure::new(format!("{}: {reason}", path.display())))?;
        let source = ModelSource::Gguf(path.to_owned());
        Ok(Self { shape, embedded: opened(&source).map_err(|error| error.to_string()) })
    }
}

/// A card's model as it is on this machine; where it is not, as noise of its shapes,
/// which `--load-format dummy` runs.
fn found(name: &str, config: &ModelConfig) -> EmbeddedModel {
    let options = LocateOptions { dummy: None, offline: true };
    let located = locate(name, &options, &mut |_| {}).ok();
    located
        .and_then(|located| opened(&located.source).ok())
        .unwrap_or_else(|| without_weights(config.clone()))
}

fn opened(source: &ModelSource) -> Result<EmbeddedModel, InferError> {
    let open = weights::open(source)?;
    Ok(EmbeddedModel {
        stored: open.weights.stored_dtype(),
        stored_bytes: Some(open.weights.stored_bytes()),
        config: open.config,
    })
}

const fn without_weights(config: ModelConfig) -> EmbeddedModel {
    EmbeddedModel { config, stored: StoredDtype::Noise, stored_bytes: None }
}
