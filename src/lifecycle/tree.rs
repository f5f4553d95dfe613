//! The processes of this machine, as far as ending an engine needs them: whose
//! child each is, and which carry an engine's mark. Reads `/proc`, Linux only.

use std::collections::BTreeMap;
use std::fs;

/// Variable in the environment of everything that an engine's command starts.
pub const MARK: &str = "YARDSTICK_ENGINE_MARK";

/// Process id to its parent's, zombies left out.
pub fn living() -> BTreeMap<i32, i32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parent_of_living(&stat).map(|parent| (pid, parent))
    })
    .collect()
}

/// `PID (NAME) STATE PPID ...`; the name may hold anything, parentheses too.
fn parent_of_living(stat: &str) -> Option<i32> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}

/// Every process below `root`, itself not.
pub fn descendants(root: i32, parents: &BTreeMap<i32, i32>) -> Vec<i32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        let children = parents.iter().filter(|&(_, of)| *of == parent).map(|(pid, _)| *pid);
        // A table read while processes come and go may hold a circle.
        let new: Vec<_> = children.filter(|pid| !found.contains(pid)).collect();
        found.extend(new);
        next += 1;
    }
    found.split_off(1)
}

/// Every living process whose environment carries this mark.
pub fn marked(mark: &str) -> Vec<i32> {
    let entry = format!("{MARK}={mark}");
    let carries = |pid: &i32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|bytes| bytes.split(|byte| *byte == 0).any(|it| it == entry.as_bytes()))
    };
    living().into_keys().filter(carries).collect()
}

/// Kills each of them; one that is gone already is no matter.
pub fn kill(pids: &[i32]) {
    for pid in pids {
        #[cfg(unix)]
        if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        #[cfg(not(unix))]
        let _ = pid;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_is_read_past_any_name() {
        assert_eq!(parent_of_living("7 (a) b) c) S 3 7 7 0"), Some(3));
        assert_eq!(parent_of_living("7 (a) Z 3 7"), None);
        assert_eq!(parent_of_living("7 (a"), None);
        assert_eq!(parent_of_living(""), None);
    }

    #[test]
    fn descendants_are_all_generations_and_nobody_else() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (6, 2), (8, 9), (9, 8)]);
        let mut below = descendants(2, &parents);
        below.sort_unstable();
        assert_eq!(below, [3, 4, 6]);
        assert_eq!(descendants(9, &parents), [8]);
    }
}
