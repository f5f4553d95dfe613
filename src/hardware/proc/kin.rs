//! Which processes are one engine's: those below the one that listens, or all
//! that a start of ours brought forth.

use std::collections::BTreeSet;

use super::{Table, with_variable};

/// The processes that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kin {
    /// A process that somebody else started, its descendants, and who is in the
    /// group that it leads, which orphans stay in.
    Found(u32),
    /// What yardstick started.
    Started(Started),
}

/// What one start brought forth: whatever descends from its supervisor, which
/// adopts orphans, and in a container whatever carries its mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The engine's own process, which leads a group.
    pub pid: u32,
    /// Its parent, which is yardstick's and no part of the engine.
    pub supervisor: u32,
    /// Variable and value (`NAME=VALUE`) in the environment of processes that
    /// are the engine's though they descend from a container's runtime.
    pub mark: Option<String>,
}

impl Kin {
    /// The process with which all others end.
    #[must_use]
    pub const fn root(&self) -> u32 {
        match self {
            Self::Found(pid) | Self::Started(Started { pid, .. }) => *pid,
        }
    }

    /// The members; never yardstick itself (`own`), should an engine have started
    /// it, nor what is below it alone.
    #[must_use]
    pub fn members(&self, table: &Table, own: u32) -> BTreeSet<u32> {
        match self {
            Self::Found(root) => {
                table.with_descendants(table.group(*root).chain([*root]).collect::<Vec<_>>(), own)
            }
            Self::Started(started) => {
                let mut members = table.below(started.supervisor);
                if let Some(mark) = &started.mark {
                    let marked: Vec<u32> = with_variable(mark).collect();
                    members.extend(table.with_descendants(marked, own));
                }
                members
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::table;
    use super::*;

    #[test]
    fn group_members_whose_parent_ended_still_belong() {
        let table = table(&[(10, 1, 10), (11, 10, 10), (12, 1, 10), (13, 12, 13), (20, 1, 20)]);
        assert_eq!(Kin::Found(10).members(&table, 0), BTreeSet::from([10, 11, 12, 13]));
        assert_eq!(Kin::Found(10).members(&table, 12), BTreeSet::from([10, 11]));
        assert_eq!(Kin::Found(20).members(&table, 0), BTreeSet::from([20]));
    }

    #[test]
    fn start_owns_what_its_supervisor_adopted_and_not_the_supervisor() {
        // 12 left the group and was orphaned; 13 is its child.
        let table = table(&[(9, 1, 9), (10, 9, 10), (11, 10, 10), (12, 9, 12), (13, 12, 12)]);
        let started = Started { pid: 10, supervisor: 9, mark: None };
        let members = Kin::Started(started).members(&table, 1);
        assert_eq!(members, BTreeSet::from([10, 11, 12, 13]));
    }
}
