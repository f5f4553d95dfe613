//! The folder of a run: created once, appended to line by line, read back whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::{
    CalibrationRecord, JournalEntry, Manifest, RequestRecord, ResourceRecord, SCHEMA_VERSION,
    StepRecord,
};

/// Longest line that is read back: a request with the most events it can have.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Steps of engines in this process; absent where there were none.
const STEPS: &str = "steps.jsonl";

/// What the client's own measurement left, where it was measured.
const CALIBRATION: &str = "calibration.jsonl";
/// What the probe saw; absent where it did not look.
const RESOURCES: &str = "resources.jsonl";

/// A run directory that cannot be written or read.
#[derive(Debug, Error)]
pub enum RunDirError {
    /// It is there already.
    #[error("run directory {} exists already", .0.display())]
    Exists(PathBuf),
    /// It is no run directory.
    #[error("{} is no run directory: it has no manifest.json", .0.display())]
    NotARun(PathBuf),
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{} line {line}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Written by a yardstick of another schema.
    #[error("{} has schema version {found}, this yardstick reads {SCHEMA_VERSION}", path.display())]
    Schema {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}

impl RunDirError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Exists(_) => Some("choose another --out, or remove it".to_owned()),
            Self::NotARun(_) => Some("give the folder that `yardstick run` wrote".to_owned()),
            Self::Io { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull
                        | io::ErrorKind::QuotaExceeded
                        | io::ErrorKind::FileTooLarge
                ) =>
            {
                Some("free some space; what was measured before is in the run directory".to_owned())
            }
            Self::Io { .. } | Self::Damaged { .. } => None,
            Self::Schema { .. } => Some("render it with the yardstick that wrote it".to_owned()),
        }
    }
}

/// A file that lines are appended to, created with its first line or before.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    file: Option<File>,
}

impl Lines {
    fn later(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    fn now(path: PathBuf) -> Result<Self, RunDirError> {
        let mut lines = Self::later(path);
        lines.open()?;
        Ok(lines)
    }

    fn open(&mut self) -> Result<&mut File, RunDirError> {
        let path = &self.path;
        Ok(match &mut self.file {
            Some(file) => file,
            none => none.insert(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .map_err(io_error("open", path))?,
            ),
        })
    }

    fn write<T: Serialize>(&mut self, value: &T) -> Result<(), RunDirError> {
        let mut line = serde_json::to_vec(value)
            .map_err(|error| io_error("serialise", &self.path)(io::Error::other(error)))?;
        line.push(b'\n');
        // One write call a line: a reader, or a crash, never meets half of two lines.
        let written = self.open()?.write_all(&line);
        written.map_err(io_error("write", &self.path))
    }
}

/// The single writer of a run directory. Every line reaches the file before
/// the call returns, so that a crash loses nothing measured.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    requests: Lines,
    journal: Lines,
    /// Most runs without an engine of ours have none.
    steps: Lines,
    calibration: Lines,
    /// A run may do without a probe.
    resources: Lines,
}

impl Recorder {
    /// Creates the directory, which must not exist, with its manifest.
    ///
    /// # Errors
    /// [`RunDirError::Exists`], or what the system says.
    pub fn create(path: &Path, manifest: &Manifest) -> Result<Self, RunDirError> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io_error("create", parent))?;
        }
        fs::create_dir(path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => RunDirError::Exists(path.to_owned()),
            _ => io_error("create", path)(source),
        })?;
        write_json(&path.join("manifest.json"), manifest)?;
        Ok(Self {
            path: path.to_owned(),
            requests: Lines::now(path.join("requests.jsonl"))?,
            journal: Lines::now(path.join("events.jsonl"))?,
            steps: Lines::later(path.join(STEPS)),
            calibration: Lines::later(path.join(CALIBRATION)),
            resources: Lines::later(path.join(RESOURCES)),
        })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one request.
    ///
    /// # Errors
    /// What the system says, a full disk above all.
    pub fn request(&mut self, record: &RequestRecord) -> Result<(), RunDirError> {
        self.requests.write(record)
    }

    /// Appends one journal entry.
    ///
    /// # Errors
    /// What the system says.
    pub fn journal(&mut self, entry: &JournalEntry) -> Result<(), RunDirError> {
        self.journal.write(entry)
    }

    /// Appends one step.
    ///
    /// # Errors
    /// What the system says.
    pub fn step(&mut self, step: &StepRecord) -> Result<(), RunDirError> {
        self.steps.write(step)
    }

    /// Appends one request of the client's own measurement.
    ///
    /// # Errors
    /// What the system says.
    pub fn calibration(&mut self, record: &CalibrationRecord) -> Result<(), RunDirError> {
        self.calibration.write(record)
    }

    /// Appends one look at resources.
    ///
    /// # Errors
    /// What the system says.
    pub fn resource(&mut self, record: &ResourceRecord) -> Result<(), RunDirError> {
        self.resources.write(record)
    }
}

/// A run directory in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct RunData {
    /// What was measured where.
    pub manifest: Manifest,
    /// Every request, in the order in which they ended.
    pub requests: Vec<RequestRecord>,
    /// Everything else that happened.
    pub journal: Vec<JournalEntry>,
    /// Steps of engines in this process, by engine in the order in which they happened.
    pub steps: Vec<StepRecord>,
    /// The client's own measurement, in the order in which its requests ended.
    pub calibration: Vec<CalibrationRecord>,
    /// What the probe saw, in the order in which it was written.
    pub resources: Vec<ResourceRecord>,
}

impl RunData {
    /// Reads a run directory. A last line that was cut by a crash is left out.
    ///
    /// # Errors
    /// When it is no run directory, of another schema, or damaged.
    pub fn read(path: &Path) -> Result<Self, RunDirError> {
        let manifest_path = path.join("manifest.json");
        if !manifest_path.is_file() {
            return Err(RunDirError::NotARun(path.to_owned()));
        }
        let text = fs::read_to_string(&manifest_path).map_err(io_error("read", &manifest_path))?;
        let damaged = |error: serde_json::Error| RunDirError::Damaged {
            path: manifest_path.clone(),
            line: error.line(),
            reason: error.to_string(),
        };
        let value: serde_json::Value = serde_json::from_str(&text).map_err(damaged)?;
        let found = value.get("schema_version").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if found != u64::from(SCHEMA_VERSION) {
            return Err(RunDirError::Schema { path: manifest_path, found });
        }
        let manifest = serde_json::from_value(value).map_err(damaged)?;
        Ok(Self {
            manifest,
            requests: read_lines(&path.join("requests.jsonl"))?,
            journal: read_lines(&path.join("events.jsonl"))?,
            steps: read_lines_if_any(&path.join(STEPS))?,
            calibration: read_lines_if_any(&path.join(CALIBRATION))?,
            resources: read_lines_if_any(&path.join(RESOURCES))?,
        })
    }
}

/// Writes a JSON file whole: first beside it, then renamed over it.
///
/// # Errors
/// What the system says.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), RunDirError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| io_error("serialise", path)(io::Error::other(error)))?;
    bytes.push(b'\n');
    write_whole(path, &bytes)
}

/// Writes a file whole: first beside it, then renamed over it.
///
/// # Errors
/// What the system says.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), RunDirError> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).map_err(|error| {
        // Half a file is of no use to anyone, least of all on a full disk.
        let _ = fs::remove_file(&partial);
        io_error("write", path)(error)
    })?;
    fs::rename(&partial, path).map_err(io_error("write", path))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunDirError {
    move |source| RunDirError::Io { action, path: path.to_owned(), source }
}

fn read_lines_if_any<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, RunDirError> {
    if path.is_file() { read_lines(path) } else { Ok(Vec::new()) }
}

fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, RunDirError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let mut reader = BufReader::new(file);
    let mut values = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let mut limited = io::Read::take(&mut reader, MAX_LINE_BYTES);
        let read = limited.read_until(b'\n', &mut line).map_err(io_error("read", path))?;
        if read == 0 {
            break;
        }
        let whole = line.last() == Some(&b'\n');
        match serde_json::from_slice(&line) {
            Ok(value) => values.push(value),
            Err(_) if !whole && (read as u64) < MAX_LINE_BYTES => break,
            Err(error) => {
                let (path, reason) = (path.to_owned(), error.to_string());
                return Err(RunDirError::Damaged { path, line: number, reason });
            }
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::record::JournalEvent;

    fn entry(at: u64) -> JournalEntry {
        JournalEntry { at_ns: Timestamp::from_nanos(at), event: JournalEvent::RunStarted }
    }

    #[test]
    fn line_cut_by_a_crash_is_left_out_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let whole = serde_json::to_string(&entry(1)).unwrap();
        fs::write(&path, format!("{whole}\n{}", &whole[..9])).unwrap();
        assert_eq!(read_lines::<JournalEntry>(&path).unwrap(), [entry(1)]);
        fs::write(&path, format!("{whole}\n{}\n{whole}\n", &whole[..9])).unwrap();
        let error = read_lines::<JournalEntry>(&path).unwrap_err();
        assert!(matches!(error, RunDirError::Damaged { line: 2, .. }), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn full_disk_is_an_error_that_keeps_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let full = |name: &str| Lines {
            path: PathBuf::from(name),
            file: Some(OpenOptions::new().append(true).open("/dev/full").unwrap()),
        };
        let path = folder.path().to_owned();
        let full_disk = |path| Recorder {
            path,
            requests: full("requests.jsonl"),
            journal: full("events.jsonl"),
            steps: full(STEPS),
            calibration: full(CALIBRATION),
            resources: full(RESOURCES),
        };
        let mut recorder = full_disk(path);
        let error = recorder.journal(&entry(1)).unwrap_err();
        assert!(error.hint().unwrap().contains("space"), "{error}");

        let path = folder.path().to_owned();
        let recorder = full_disk(path);
        let writer = crate::record::RecordWriter::start(recorder, None);
        // The thread stops at the first line; soon after, sending says so.
        while writer.journal(entry(2)).is_ok() {
            std::thread::yield_now();
        }
        assert!(matches!(writer.finish(), Err(RunDirError::Io { .. })));
    }
}
