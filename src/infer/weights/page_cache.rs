//! How much of a file lies in the page cache, and asking the kernel to forget
//! it. Knows files, no engine.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// A file's bytes, and those of them that are in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Residence {
    /// Length of the file.
    pub bytes: u64,
    /// How much of it is in the page cache, in whole pages, at most its length.
    pub resident_bytes: u64,
}

/// Asks the kernel to drop a file's clean pages (`posix_fadvise(2)`,
/// `POSIX_FADV_DONTNEED`). Pages that a process maps stay: see [`residence`].
///
/// # Errors
/// When the file cannot be opened or the system does not take the advice.
pub fn drop_pages(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // Only clean pages are dropped.
    let _ = file.sync_data();
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    #[cfg(not(target_os = "linux"))]
    return Err(io::Error::other("only Linux takes this advice"));
    #[cfg(target_os = "linux")]
    Ok(())
}

/// Looks, without touching a page (`mincore(2)`). Of a file that this process
/// may not write the kernel says that all of it is there, so as not to tell
/// what others read.
///
/// # Errors
/// When the file cannot be opened or mapped.
pub fn residence(path: &Path) -> io::Result<Residence> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes == 0 {
        return Ok(Residence { bytes, resident_bytes: 0 });
    }
    #[cfg(unix)]
    {
        // SAFETY: reads a constant of the system.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).unwrap_or(4096).max(1);
        // SAFETY: the mapping is private and read-only and no byte of it is ever
        // read: only its pages' state is asked for.
        let map = unsafe { Mmap::map(&file) }?;
        let mut states = vec![0_u8; map.len().div_ceil(page)];
        // SAFETY: address and length are those of one live mapping, which begins
        // at a page; `states` has a byte for each of its pages.
        let status = unsafe {
            libc::mincore(map.as_ptr().cast_mut().cast(), map.len(), states.as_mut_ptr().cast())
        };
        if status != 0 {
            return Err(io::Error::last_os_error());
        }
        let pages = states.iter().filter(|state| **state & 1 == 1).count();
        let resident_bytes = (pages as u64).saturating_mul(page as u64).min(bytes);
        Ok(Residence { bytes, resident_bytes })
    }
    #[cfg(not(unix))]
    Err(io::Error::other("this system does not say what is in its page cache"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_was_written_is_resident_until_it_is_dropped() {
        // Not in a tmpfs, whose pages have nowhere else to be.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("weights");
        let mut file = File::create(&path).unwrap();
        file.write_all(&vec![7; 1 << 20]).unwrap();
        let written = residence(&path).unwrap();
        assert_eq!((written.bytes, written.resident_bytes), (1 << 20, 1 << 20));
        file.sync_all().unwrap();
        drop_pages(&path).unwrap();
        assert!(residence(&path).unwrap().resident_bytes < 1 << 20);
        std::fs::read(&path).unwrap();
        assert_eq!(residence(&path).unwrap(), written);
    }

    #[test]
    fn empty_file_has_nothing_in_memory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(residence(file.path()).unwrap(), Residence { bytes: 0, resident_bytes: 0 });
        assert!(residence(Path::new("/nowhere")).is_err());
    }
}
