//! Model cards and where their weights are found: a local path, the hub cache,
//! the hub, or a package that carries them. Knows no engine's internals; hands
//! out a [`ModelSource`](crate::infer::ModelSource).

pub mod card;
mod folder;
mod hub;
pub mod locate;
mod package;
mod places;

pub use card::{CardSource, DEFAULT_MODEL, ModelCard, Package, cards, find_card};
pub use locate::{CatalogError, LocateOptions, Located, Progress, locate, locate_in};
pub use places::{HubPlace, Places};
