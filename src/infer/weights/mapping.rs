//! A file mapped read-only into memory: opening a model costs page tables, not
//! reads. Holds the only `unsafe` of the loaders.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::{InferError, load_error};

/// A mapped file, at least one byte long.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps the whole file.
    pub(crate) fn open(path: &Path) -> Result<Self, InferError> {
        let failed = |e: std::io::Error| load_error(path, e.to_string());
        let file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(load_error(path, "not a regular file"));
        }
        if meta.len() == 0 {
            return Err(load_error(path, "the file is empty"));
        }
        // SAFETY: the mapping is private and read-only, and nothing here hands
        // out anything but shared byte slices. What remains is that another
        // process could shorten or rewrite the file meanwhile: model files are
        // replaced by rename, not in place, here and in the hub cache.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets go of the pages that were read: they count as this process's memory no longer
    /// and stay in the page cache.
    pub(crate) fn release(&self) {
        // SAFETY: a page of a read-only mapping of a file was never written here. When it is
        // next touched it is mapped again with the file's bytes, those that it had.
        #[cfg(unix)]
        let advised = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        #[cfg(unix)]
        if let Err(error) = advised {
            tracing::debug!("{} stays in memory: {error}", self.path.display());
        }
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
