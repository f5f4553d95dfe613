//! An engine's log file: the part that one start wrote, its last lines, and
//! that it does not fill the disk.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of a tail that are kept.
const MAX_TAIL: u64 = 64 << 10;
/// Bytes of a start that are looked through for phases.
const MAX_START: u64 = 8 << 20;
/// Lines quoted in a message.
const QUOTED_LINES: usize = 3;
/// Characters of each.
const QUOTED_CHARACTERS: usize = 300;

/// Length of the file; 0 if there is none yet.
pub(super) fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// What was written after `from`, at most its last 64 KiB.
pub(super) fn tail(path: &Path, from: u64) -> String {
    let begin = length(path).saturating_sub(MAX_TAIL).max(from);
    read(path, begin, MAX_TAIL)
}

/// What was written after `from`, at most the first 8 MiB.
pub(super) fn since(path: &Path, from: u64) -> String {
    read(path, from, MAX_START)
}

/// Bytes of a start's log that are kept at its beginning, and as much at its end.
const KEPT: u64 = 16 << 20;

/// Gives the middle of what was written after `from` back to the disk, where it
/// has become long, and returns up to where: `given` is what the last call
/// returned. The file keeps its length, with a hole in it that reads as zeros,
/// so that everything else stays where it was. On file systems that know no
/// holes nothing is given back.
#[cfg(target_os = "linux")]
pub(super) fn thin(log: &File, from: u64, given: u64) -> u64 {
    use rustix::fs::FallocateFlags;

    let length = log.metadata().map_or(0, |metadata| metadata.len());
    let begin = given.max(from.saturating_add(KEPT));
    let end = length.saturating_sub(KEPT);
    // In large parts: each is a call that changes the file's map.
    if end.saturating_sub(begin) < KEPT {
        return given;
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(log, flags, begin, end - begin) {
        Ok(()) => end,
        Err(_) => given,
    }
}

fn read(path: &Path, from: u64, limit: u64) -> String {
    let mut bytes = Vec::new();
    // A log that cannot be read has nothing to say.
    let _ = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.take(limit).read_to_end(&mut bytes)
    });
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last lines that say something, for a message of one line.
pub(super) fn quote(tail: &str) -> Option<String> {
    let lines: Vec<&str> = tail.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(QUOTED_LINES)..)?;
    let short = |line: &&str| line.chars().take(QUOTED_CHARACTERS).collect::<String>();
    let quoted = last.iter().map(short).collect::<Vec<_>>().join(" | ");
    (!quoted.is_empty()).then_some(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_is_bounded_and_begins_where_the_start_did() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("before{}end", "x".repeat(100_000))).unwrap();
        let tail = tail(file.path(), 6);
        assert_eq!(tail.len() as u64, MAX_TAIL);
        assert!(tail.ends_with("xend"));
        assert_eq!(since(file.path(), 100_006), "end");
        assert_eq!(super::tail(Path::new("/nowhere"), 0), "");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn long_log_keeps_its_ends_and_gives_the_middle_back() {
        use std::os::unix::fs::{FileExt as _, MetadataExt as _};

        let file = tempfile::NamedTempFile::new().unwrap();
        let log = file.as_file();
        let part = vec![b'x'; 1 << 20];
        for at in 0..64 {
            log.write_all_at(&part, at << 20).unwrap();
        }
        log.write_all_at(b"end", (64 << 20) - 3).unwrap();
        let given = thin(log, 0, 0);
        if given == 0 {
            eprintln!("skipped: this file system knows no holes");
            return;
        }
        assert_eq!(thin(log, 0, given), given, "nothing more to give");
        let metadata = log.metadata().unwrap();
        assert_eq!(metadata.len(), 64 << 20);
        assert!(metadata.blocks() * 512 < 40 << 20, "{}", metadata.blocks() * 512);
        assert!(since(file.path(), 0).starts_with("xxx"));
        assert!(tail(file.path(), 0).ends_with("xend"));
    }

    #[test]
    fn quote_is_the_last_lines_that_say_something() {
        assert_eq!(quote("a\nb\n\n c \nd\n\n").as_deref(), Some("b | c | d"));
        assert_eq!(quote("\n"), None);
        assert_eq!(quote(&"é".repeat(900)).unwrap().chars().count(), QUOTED_CHARACTERS);
    }
}
