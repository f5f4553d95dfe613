//! Who listens on a port of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::text::{self, Stat};
use super::{pids, read_system_file, stat};

/// A process that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Process id.
    pub pid: u32,
    /// The command's name, at most 15 bytes.
    pub name: String,
}

/// Why no listener is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// The port is closed.
    Nobody,
    /// It is open, and its process is hidden from this one.
    Hidden,
}

/// The process that listens on TCP port `port`. Where workers inherited the
/// socket it is the one whose parent does not hold it.
///
/// # Errors
/// Why none is known.
pub fn on(port: u16) -> Result<Listener, Unknown> {
    let mut inodes = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        inodes.extend(text::listeners(&read_system_file(table).unwrap_or_default(), port));
    }
    if inodes.is_empty() {
        return Err(Unknown::Nobody);
    }
    let holders: BTreeMap<u32, Stat> = pids()
        .filter(|pid| holds(*pid, &inodes))
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect();
    let first = holders.iter().find(|(_, stat)| !holders.contains_key(&stat.parent));
    let (pid, stat) = first.ok_or(Unknown::Hidden)?;
    Ok(Listener { pid: *pid, name: stat.name.clone() })
}

fn holds(pid: u32, inodes: &BTreeSet<u64>) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let inode = target.to_str().and_then(text::socket_inode);
        inode.is_some_and(|inode| inodes.contains(&inode))
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn listener_is_found_by_its_port_and_nobody_by_a_closed_one() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(on(port).unwrap().pid, std::process::id());
        drop(socket);
        assert_eq!(on(port), Err(Unknown::Nobody));
    }
}
