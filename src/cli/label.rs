//! What the wall clock names: run folders, seeds, folders of a moment. No
//! duration comes of it.

use std::path::PathBuf;

use crate::clock::Clock;

/// `runs/TIME-NAME`.
pub(super) fn default_path(name: &str) -> PathBuf {
    PathBuf::from("runs").join(format!("{}-{name}", wall_label("%Y%m%d-%H%M%S")))
}

pub(super) fn wall_label(format: &str) -> String {
    jiff::Timestamp::try_from(Clock::wall())
        .map_or_else(|_| "unknown-time".to_owned(), |now| now.strftime(format).to_string())
}

/// Small enough to be retyped, different enough that two runs do not share prompts.
pub(super) fn fresh_seed() -> u64 {
    let since_epoch = Clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::from(since_epoch.subsec_nanos()) ^ (since_epoch.as_secs() & 0xffff_ffff)
}

/// A folder that no other process and no other moment has.
pub(super) fn scratch_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{name}-{}", Clock::unique_label()))
}
