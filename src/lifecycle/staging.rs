//! The folder that holds engines' logs until there is a run directory. One
//! run's alone, though several may be told to write to the same place.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::engine::{EngineError, ErrorClass};

/// A folder that no other yardstick uses. Dropping it gives it back, and
/// removes it if it is empty.
#[derive(Debug)]
pub(super) struct Staging {
    path: PathBuf,
    /// The folder itself, open and locked: the system ends the lock with the process.
    _lock: File,
}

impl Staging {
    /// Claims the folder, which need not be there. What a run that ended early
    /// left in it is removed.
    ///
    /// # Errors
    /// When another run has it, or it cannot be written.
    pub(super) fn claim(path: &Path) -> Result<Self, EngineError> {
        let cannot = |error: std::io::Error| {
            let what = format!("cannot write {}: {error}", path.display());
            EngineError::new(ErrorClass::Engine, what).with_hint("choose another --out")
        };
        fs::create_dir_all(path).map_err(cannot)?;
        let lock = File::open(path).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = format!("another run is using {}", path.display());
                return Err(EngineError::new(ErrorClass::Engine, what)
                    .with_hint("wait for its end, or choose another --out"));
            }
            // A file system without locks.
            Err(TryLockError::Error(_)) => {}
        }
        for entry in fs::read_dir(path).map_err(cannot)?.flatten() {
            let old = entry.path();
            let removed =
                if old.is_dir() { fs::remove_dir_all(&old) } else { fs::remove_file(&old) };
            removed.map_err(cannot)?;
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Moves it, with the files that are being written in it.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn settle(&self, to: &Path) -> std::io::Result<()> {
        fs::rename(&self.path, to)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Fails where a log is left, which says why an engine did not start.
        let _ = fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_is_one_runs_alone_and_free_of_what_an_earlier_one_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/.run.logs");
        fs::create_dir_all(path.join("cache-1")).unwrap();
        fs::write(path.join("ours.log"), "of a run that was killed").unwrap();
        let staging = Staging::claim(&path).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        let refused = Staging::claim(&path).unwrap_err();
        assert!(refused.message.contains("another run is using"), "{refused}");
        fs::write(path.join("ours.log"), "mine").unwrap();
        drop(staging);
        assert!(path.join("ours.log").is_file(), "its log is left");
        drop(Staging::claim(&path).unwrap());
        assert!(!path.exists(), "an empty one is not");
    }

    #[test]
    fn place_that_cannot_be_written_is_named() {
        let refused = Staging::claim(Path::new("/proc/nowhere/.run.logs")).unwrap_err();
        assert!(refused.message.contains("cannot write /proc/nowhere"), "{refused}");
    }
}
