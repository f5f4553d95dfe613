//! The weight files that a plan names, taken out of the page cache and looked
//! at again. Knows files, no engine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::infer::weights::page_cache::{drop_pages, residence};
use crate::record::PageCache;

/// Bound on the files of one engine.
const MAX_FILES: usize = 4096;
/// How much of the files is in the page cache.
///
/// # Errors
/// Names the file that cannot be looked at.
pub(super) fn look(patterns: &[String]) -> Result<PageCache, String> {
    let resident = resident(&files(patterns)?)?;
    Ok(PageCache { bytes: resident.0, before_bytes: resident.1, at_start_bytes: resident.1 })
}

/// Has them dropped, and how much was there before and is there after.
///
/// # Errors
/// Names the file that cannot be dropped or looked at.
pub(super) fn evict(patterns: &[String]) -> Result<PageCache, String> {
    let files = files(patterns)?;
    let (bytes, before_bytes) = resident(&files)?;
    for file in &files {
        drop_pages(file).map_err(|error| about(file, &error))?;
    }
    let (_, at_start_bytes) = resident(&files)?;
    Ok(PageCache { bytes, before_bytes, at_start_bytes })
}

fn resident(files: &[PathBuf]) -> Result<(u64, u64), String> {
    files.iter().try_fold((0_u64, 0_u64), |(bytes, resident), file| {
        let found = residence(file).map_err(|error| about(file, &error))?;
        Ok((bytes.saturating_add(found.bytes), resident.saturating_add(found.resident_bytes)))
    })
}

/// Paths, folders (every file directly in one), and `*` in a last part.
fn files(patterns: &[String]) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for pattern in patterns {
        let path = Path::new(pattern);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let before = files.len();
        if name.contains('*') {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            add_folder(parent.unwrap_or_else(|| Path::new(".")), name, &mut files)?;
        } else if path.is_dir() {
            add_folder(path, "*", &mut files)?;
        } else if path.is_file() {
            files.push(path.to_owned());
        }
        if files.len() == before {
            return Err(format!("weights `{pattern}` name no file"));
        }
        if files.len() > MAX_FILES {
            return Err(format!("weights `{pattern}` name more than {MAX_FILES} files"));
        }
    }
    Ok(files)
}

fn add_folder(folder: &Path, name: &str, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let entries = fs::read_dir(folder).map_err(|error| about(folder, &error))?;
    let named = |path: &PathBuf| {
        path.is_file()
            && path.file_name().and_then(|it| it.to_str()).is_some_and(|it| matches(name, it))
    };
    let mut found: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(named).collect();
    found.sort();
    files.append(&mut found);
    Ok(())
}

/// Whether `name` is `pattern`, in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    true
}

fn about(path: &Path, error: &io::Error) -> String {
    format!("weights {}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_stands_for_any_characters() {
        for (pattern, name, is) in [
            ("*.safetensors", "model-00001.safetensors", true),
            ("*.safetensors", "model.gguf", false),
            ("model-*-of-*.bin", "model-1-of-2.bin", true),
            ("model-*-of-*.bin", "model-1.bin", false),
            ("*", "anything", true),
            ("a*a", "a", false),
            ("plain", "plain", true),
            ("plain", "plainer", false),
        ] {
            assert_eq!(matches(pattern, name), is, "{pattern} {name}");
        }
    }

    #[test]
    fn files_are_named_one_by_one_by_folder_and_by_star() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.bin", "b.bin", "c.txt"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let within = |pattern: &str| {
            let pattern = folder.path().join(pattern).to_str().unwrap().to_owned();
            files(&[pattern]).map(|files| files.len())
        };
        assert_eq!((within("*.bin"), within(""), within("c.txt")), (Ok(2), Ok(3), Ok(1)));
        assert!(within("*.gguf").unwrap_err().contains("name no file"));
        assert!(within("nowhere").is_err());
    }
}
