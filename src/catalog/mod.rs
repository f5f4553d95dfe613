//! Model cards and where their weights are found: a local path, the hub cache,
//! the hub, or a package that carries them. Knows no engine's internals; hands
//! out a [`ModelSource`].

pub mod card;
pub mod locate;

pub use card::{ModelCard, cards, find_card};
pub use locate::{CatalogError, LocateOptions, Located, Progress, locate};

#[expect(unused_imports, reason = "named by the module's doc")]
use crate::infer::ModelSource;
