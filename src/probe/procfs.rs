//! Memory and processor time of process trees, from `/proc`. Files of a
//! process that is followed stay open: reading them again costs less, and a
//! number that another process was given since cannot be mistaken for it.
//! Linux only; elsewhere nothing is found, and the probe says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::proc_text::{self, Stat};
use crate::clock::Clock;
use crate::record::ProcessSample;

/// Longest file that is read whole; `/proc/net/tcp` of a busy server is a few MiB.
const MAX_FILE: u64 = 16 << 20;
/// Most processes of one tree that are followed.
const MAX_PROCESSES: usize = 512;
/// Reading shared memory takes the process's memory lock: slower than this, it is left alone.
const SLOW_PSS: Duration = Duration::from_millis(1);

/// Names of programs that hold a port for an engine that they are not.
const GO_BETWEENS: [&str; 10] = [
    "docker-proxy",
    "rootlessport",
    "slirp4netns",
    "pasta",
    "conmon",
    "ssh",
    "sshd",
    "nginx",
    "haproxy",
    "kubectl",
];

/// `/proc`, or a folder like it.
pub(super) struct Procfs {
    root: PathBuf,
}

/// Files of one process, open.
struct Files {
    stat: File,
    status: File,
    /// Only the same user's, or a superuser's, to read.
    io: Option<File>,
}

/// A process and its descendants, followed.
pub(super) struct Tree {
    root: u32,
    members: BTreeMap<u32, Files>,
    pss: Pss,
}

/// Whether shared memory is read, and how often that was slow.
enum Pss {
    Read,
    TooSlow,
}

impl Procfs {
    /// This machine's.
    pub(super) fn system() -> Self {
        Self { root: PathBuf::from("/proc") }
    }

    /// The process that listens on `port` of this machine.
    ///
    /// # Errors
    /// Why none is known, in a sentence.
    pub(super) fn listener(&self, port: u16) -> Result<u32, String> {
        let mut inodes = BTreeSet::new();
        for table in ["net/tcp", "net/tcp6"] {
            let text = read_file(&self.root.join(table)).unwrap_or_default();
            inodes.extend(proc_text::listeners(&text, port));
        }
        if inodes.is_empty() {
            return Err(format!("nothing listens on port {port} of this machine"));
        }
        let holders: BTreeMap<u32, Stat> = self
            .numbers()
            .filter(|pid| self.holds(*pid, &inodes))
            .filter_map(|pid| Some((pid, self.stat(pid)?)))
            .collect();
        // Workers inherit the socket: the engine is the holder whose parent holds nothing.
        let (pid, stat) = holders
            .iter()
            .find(|(_, stat)| !holders.contains_key(&stat.parent))
            .ok_or_else(|| {
                format!(
                    "the process that listens on port {port} belongs to another user or container"
                )
            })?;
        if GO_BETWEENS.contains(&stat.name.as_str()) {
            return Err(format!("port {port} is held by {}, not by the engine itself", stat.name));
        }
        Ok(*pid)
    }

    fn holds(&self, pid: u32, inodes: &BTreeSet<u64>) -> bool {
        let Ok(entries) = fs::read_dir(self.root.join(pid.to_string()).join("fd")) else {
            return false;
        };
        entries.flatten().any(|entry| {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let inode = target.to_str().and_then(proc_text::socket_inode);
            inode.is_some_and(|inode| inodes.contains(&inode))
        })
    }

    /// The processes of the machine.
    fn numbers(&self) -> impl Iterator<Item = u32> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
    }

    fn stat(&self, pid: u32) -> Option<Stat> {
        proc_text::stat(&read_file(&self.root.join(pid.to_string()).join("stat"))?)
    }

    fn open(&self, pid: u32) -> Option<Files> {
        let folder = self.root.join(pid.to_string());
        Some(Files {
            stat: File::open(folder.join("stat")).ok()?,
            status: File::open(folder.join("status")).ok()?,
            io: File::open(folder.join("io")).ok(),
        })
    }

    /// Begins to follow one process alone; `None` if there is no such process.
    pub(super) fn follow(&self, pid: u32) -> Option<Tree> {
        let files = self.open(pid)?;
        Some(Tree { root: pid, members: BTreeMap::from([(pid, files)]), pss: Pss::Read })
    }

    /// Looks for processes that joined any of the trees: descendants of their
    /// roots, and members of a process group that a root leads, which orphans
    /// stay in. One look over the machine serves all trees.
    pub(super) fn grow<'a>(&self, trees: impl Iterator<Item = &'a mut Tree>) {
        let stats: BTreeMap<u32, Stat> =
            self.numbers().filter_map(|pid| Some((pid, self.stat(pid)?))).collect();
        for tree in trees {
            for pid in descendants(&stats, tree.root, std::process::id()) {
                if tree.members.len() < MAX_PROCESSES
                    && !tree.members.contains_key(&pid)
                    && let Some(files) = self.open(pid)
                {
                    tree.members.insert(pid, files);
                }
            }
        }
    }
}

/// The root, its descendants, and who else is in the group that it leads; not
/// `except`, should the engine have started yardstick, nor what that started.
fn descendants(stats: &BTreeMap<u32, Stat>, root: u32, except: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([root]);
    let mut open: Vec<u32> = stats
        .iter()
        .filter(|(pid, stat)| stat.group == root && **pid != root && **pid != except)
        .map(|(pid, _)| *pid)
        .chain([root])
        .collect();
    found.extend(&open);
    while let Some(parent) = open.pop() {
        for (pid, _) in stats.iter().filter(|(_, stat)| stat.parent == parent) {
            if *pid != except && found.insert(*pid) {
                open.push(*pid);
            }
        }
    }
    found
}

impl Tree {
    /// Processes in it.
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.members.keys().copied()
    }

    /// Process at its root.
    pub(super) const fn root(&self) -> u32 {
        self.root
    }

    /// Reads every process; `None` once the root has ended. With `pss`, shared
    /// memory is read as well, unless that was slow before.
    pub(super) fn read(
        &mut self,
        engine: Option<u32>,
        pss: Option<&Clock>,
    ) -> Option<ProcessSample> {
        let mut sample = ProcessSample { engine, pid: self.root, ..ProcessSample::default() };
        let mut anon = Some(0_u64);
        let mut read_bytes = None;
        self.members.retain(|_, files| {
            let Some(stat) = read_again(&files.stat).and_then(|text| proc_text::stat(&text)) else {
                return false;
            };
            if stat.is_zombie {
                return false;
            }
            let status = read_again(&files.status).unwrap_or_default();
            let kib = |key| proc_text::kib_field(&status, key);
            sample.num_processes += 1;
            sample.rss_bytes = sample.rss_bytes.saturating_add(kib("VmRSS").unwrap_or(0));
            anon = anon.zip(kib("RssAnon")).map(|(sum, bytes)| sum.saturating_add(bytes));
            sample.cpu_ns = sample.cpu_ns.saturating_add(stat.cpu_ns);
            sample.major_faults = sample.major_faults.saturating_add(stat.major_faults);
            let io = files.io.as_ref().and_then(read_again);
            if let Some(bytes) = io.and_then(|text| proc_text::read_bytes(&text)) {
                read_bytes = Some(read_bytes.unwrap_or(0_u64).saturating_add(bytes));
            }
            true
        });
        if !self.members.contains_key(&self.root) {
            return None;
        }
        sample.anon_bytes = anon;
        sample.read_bytes = read_bytes;
        sample.pss_bytes = pss.and_then(|clock| self.read_pss(clock));
        Some(sample)
    }

    fn read_pss(&mut self, clock: &Clock) -> Option<u64> {
        if matches!(self.pss, Pss::TooSlow) {
            return None;
        }
        let mut sum = 0_u64;
        for pid in self.members.keys() {
            let began = clock.now();
            let path = Path::new("/proc").join(pid.to_string()).join("smaps_rollup");
            let bytes = read_file(&path).and_then(|text| proc_text::kib_field(&text, "Pss"));
            if clock.now().since(began) > SLOW_PSS {
                self.pss = Pss::TooSlow;
            }
            sum = sum.saturating_add(bytes?);
        }
        Some(sum)
    }
}

/// The content of a file under `/proc` that is open already, as it is now.
fn read_again(file: &File) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileExt as _;
        // A status file has about 1.5 KiB; one read gives it whole and of one instant.
        let mut bytes = [0_u8; 4096];
        let count = file.read_at(&mut bytes, 0).ok()?;
        Some(String::from_utf8_lossy(&bytes[..count]).into_owned())
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        None
    }
}

fn read_file(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::TcpListener;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A shell with a child of its own; both end with the handle.
    struct Shell(Child);

    impl Shell {
        #[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
        fn start() -> Self {
            let mut shell = Command::new("sh");
            shell.args(["-c", "sleep 60 & echo ready; wait"]).stdout(Stdio::piped());
            let mut child = shell.spawn().unwrap();
            let mut ready = [0; 6];
            child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
            Self(child)
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            let procfs = Procfs::system();
            let stats: BTreeMap<u32, Stat> =
                procfs.numbers().filter_map(|pid| Some((pid, procfs.stat(pid)?))).collect();
            for pid in descendants(&stats, self.0.id(), 0) {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            }
            let _ = self.0.wait();
        }
    }

    #[test]
    fn listener_is_found_by_its_port_and_nobody_by_a_closed_one() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(Procfs::system().listener(port), Ok(std::process::id()));
        drop(socket);
        let reason = Procfs::system().listener(port).unwrap_err();
        assert_eq!(reason, format!("nothing listens on port {port} of this machine"));
    }

    #[test]
    fn tree_holds_children_and_ends_with_its_root() {
        let shell = Shell::start();
        let procfs = Procfs::system();
        let mut tree = procfs.follow(shell.0.id()).unwrap();
        assert_eq!(tree.read(Some(3), None).unwrap().num_processes, 1);
        procfs.grow([&mut tree].into_iter());
        let sample = tree.read(Some(3), Some(&Clock::real())).unwrap();
        assert_eq!((sample.engine, sample.pid, sample.num_processes), (Some(3), shell.0.id(), 2));
        assert!(sample.rss_bytes > 100 << 10, "{sample:?}");
        assert!(sample.anon_bytes.unwrap() < sample.rss_bytes);
        drop(shell);
        assert_eq!(tree.read(Some(3), None), None);
    }

    #[test]
    fn own_processor_time_grows_with_work() {
        let mut tree = Procfs::system().follow(std::process::id()).unwrap();
        let before = tree.read(None, None).unwrap();
        let until = crate::hardware::process_cpu_time() + Duration::from_millis(40);
        while crate::hardware::process_cpu_time() < until {
            std::hint::black_box(0);
        }
        let after = tree.read(None, None).unwrap();
        // Two ticks of 10 ms at least have gone by.
        assert!(after.cpu_ns >= before.cpu_ns + 20_000_000, "{before:?} {after:?}");
    }

    #[test]
    fn group_members_whose_parent_ended_still_belong() {
        let stat = |parent, group| Stat {
            name: String::new(),
            parent,
            group,
            cpu_ns: 0,
            major_faults: 0,
            is_zombie: false,
        };
        let stats = BTreeMap::from([
            (10, stat(1, 10)),
            (11, stat(10, 10)),
            (12, stat(1, 10)),
            (13, stat(12, 13)),
            (20, stat(1, 20)),
        ]);
        assert_eq!(descendants(&stats, 10, 0), BTreeSet::from([10, 11, 12, 13]));
        assert_eq!(descendants(&stats, 10, 12), BTreeSet::from([10, 11]));
        assert_eq!(descendants(&stats, 20, 0), BTreeSet::from([20]));
    }
}
