//! The processes of this machine as `/proc` shows them, for those that end
//! processes and those that watch them. Keeps nothing between two looks and
//! knows no engine. Linux only; elsewhere there is no process to be seen.

pub mod kin;
pub mod listener;
pub mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::read_system_file;
pub use kin::{Kin, Started};
use text::Stat;

/// The processes of this machine at one moment, zombies included.
#[derive(Debug, Default)]
pub struct Table {
    stats: BTreeMap<u32, Stat>,
    /// By parent.
    children: BTreeMap<u32, Vec<u32>>,
}

impl Table {
    /// Looks at every process.
    #[must_use]
    pub fn read() -> Self {
        Self::of(pids().filter_map(|pid| Some((pid, stat(pid)?))))
    }

    fn of(stats: impl Iterator<Item = (u32, Stat)>) -> Self {
        let mut table = Self { stats: stats.collect(), ..Self::default() };
        for (pid, stat) in &table.stats {
            table.children.entry(stat.parent).or_default().push(*pid);
        }
        table
    }

    /// `roots` and every process below one of them; not `except`, nor what is
    /// below that alone.
    #[must_use]
    pub fn with_descendants(
        &self,
        roots: impl IntoIterator<Item = u32>,
        except: u32,
    ) -> BTreeSet<u32> {
        let mut open: Vec<u32> = roots.into_iter().filter(|pid| *pid != except).collect();
        let mut found: BTreeSet<u32> = open.iter().copied().collect();
        while let Some(parent) = open.pop() {
            for pid in self.children.get(&parent).into_iter().flatten() {
                // A table read while processes come and go may hold a circle.
                if *pid != except && found.insert(*pid) {
                    open.push(*pid);
                }
            }
        }
        found
    }

    /// Every process below `root`, itself not.
    #[must_use]
    pub fn below(&self, root: u32) -> BTreeSet<u32> {
        let mut found = self.with_descendants([root], 0);
        found.remove(&root);
        found
    }

    /// Who is in a process group.
    fn group(&self, group: u32) -> impl Iterator<Item = u32> {
        self.stats.iter().filter(move |(_, stat)| stat.group == group).map(|(pid, _)| *pid)
    }
}

/// Every living process whose environment has `entry` (`NAME=VALUE`), as far as
/// it may be read.
pub fn with_variable(entry: &str) -> impl Iterator<Item = u32> {
    let carries = move |pid: &u32| {
        let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        bytes.split(|byte| *byte == 0).any(|it| it == entry.as_bytes())
    };
    pids().filter(carries)
}

/// Whether this process ignores a signal, by its number.
#[must_use]
pub fn is_ignored(signal: u32) -> bool {
    let status = read_system_file("/proc/self/status").unwrap_or_default();
    text::ignored(&status)
        .is_some_and(|mask| mask & 1_u64.unbounded_shl(signal.wrapping_sub(1)) != 0)
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn stat(pid: u32) -> Option<Stat> {
    text::stat(&read_system_file(format!("/proc/{pid}/stat"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of `(pid, parent, group)`.
    pub(super) fn table(processes: &[(u32, u32, u32)]) -> Table {
        let stat = |parent, group| Stat {
            name: String::new(),
            parent,
            group,
            cpu_ns: 0,
            major_faults: 0,
            is_zombie: false,
        };
        Table::of(processes.iter().map(|(pid, parent, group)| (*pid, stat(*parent, *group))))
    }

    #[test]
    fn descendants_are_all_generations_and_nobody_else() {
        let table =
            table(&[(2, 1, 2), (3, 2, 2), (4, 3, 4), (5, 1, 5), (6, 2, 2), (8, 9, 8), (9, 8, 8)]);
        assert_eq!(table.below(2), BTreeSet::from([3, 4, 6]));
        assert_eq!(table.below(9), BTreeSet::from([8]));
        assert_eq!(table.with_descendants([2, 5], 3), BTreeSet::from([2, 5, 6]));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_in_the_table_and_known_by_its_environment() {
        let table = Table::read();
        let own = &table.stats[&std::process::id()];
        assert!(table.below(own.parent).contains(&std::process::id()));
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        assert!(with_variable(&path).any(|pid| pid == std::process::id()));
        assert_eq!(with_variable("YARDSTICK_NOBODY_HAS=this").count(), 0);
    }
}
