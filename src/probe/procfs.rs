//! Memory and processor time of an engine's processes, from `/proc`. Files of a
//! process that is followed stay open: reading them again costs less, and a
//! number that another process was given since cannot be mistaken for it.
//! Linux only; elsewhere nothing is found, and the probe says so.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use crate::clock::Clock;
use crate::hardware::proc::{Kin, Table, listener, text};
use crate::hardware::read_system_file;
use crate::record::ProcessSample;

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

/// Files of one process, open.
struct Files {
    stat: File,
    status: File,
    /// Only the same user's, or a superuser's, to read.
    io: Option<File>,
}

/// The processes of one engine, or this one, followed.
pub(super) struct Tree {
    kin: Kin,
    members: BTreeMap<u32, Files>,
    pss: Pss,
}

/// Whether shared memory is read, and how often that was slow.
enum Pss {
    Read,
    TooSlow,
}

/// The engine's process that listens on `port` of this machine.
///
/// # Errors
/// Why none is known, in a sentence.
pub(super) fn engine_on(port: u16) -> Result<u32, String> {
    let found = listener::on(port).map_err(|unknown| match unknown {
        listener::Unknown::Nobody => format!("nothing listens on port {port} of this machine"),
        listener::Unknown::Hidden => {
            format!("the process that listens on port {port} belongs to another user or container")
        }
    })?;
    if GO_BETWEENS.contains(&found.name.as_str()) {
        return Err(format!("port {port} is held by {}, not by the engine itself", found.name));
    }
    Ok(found.pid)
}

impl Files {
    fn open(pid: u32) -> Option<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        Some(Self {
            stat: File::open(folder.join("stat")).ok()?,
            status: File::open(folder.join("status")).ok()?,
            io: File::open(folder.join("io")).ok(),
        })
    }
}

impl Tree {
    /// Begins to follow the process at the root alone; `None` if there is no such process.
    pub(super) fn follow(kin: Kin) -> Option<Self> {
        let root = kin.root();
        let members = BTreeMap::from([(root, Files::open(root)?)]);
        Some(Self { kin, members, pss: Pss::Read })
    }

    /// Takes in the processes that joined since.
    pub(super) fn grow(&mut self, table: &Table) {
        for pid in self.kin.members(table, std::process::id()) {
            if self.members.len() < MAX_PROCESSES
                && !self.members.contains_key(&pid)
                && let Some(files) = Files::open(pid)
            {
                self.members.insert(pid, files);
            }
        }
    }

    /// Processes in it.
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.members.keys().copied()
    }

    /// Which processes it follows.
    pub(super) const fn kin(&self) -> &Kin {
        &self.kin
    }

    /// Reads every process; `None` once the root has ended. With `pss`, shared
    /// memory is read as well, unless that was slow before.
    pub(super) fn read(
        &mut self,
        engine: Option<u32>,
        pss: Option<&Clock>,
    ) -> Option<ProcessSample> {
        let mut sample = ProcessSample { engine, pid: self.kin.root(), ..ProcessSample::default() };
        let mut anon = Some(0_u64);
        let mut read_bytes = None;
        self.members.retain(|_, files| {
            let Some(stat) = read_again(&files.stat).and_then(|line| text::stat(&line)) else {
                return false;
            };
            if stat.is_zombie {
                return false;
            }
            let status = read_again(&files.status).unwrap_or_default();
            let kib = |key| text::kib_field(&status, key);
            sample.num_processes += 1;
            sample.rss_bytes = sample.rss_bytes.saturating_add(kib("VmRSS").unwrap_or(0));
            anon = anon.zip(kib("RssAnon")).map(|(sum, bytes)| sum.saturating_add(bytes));
            sample.cpu_ns = sample.cpu_ns.saturating_add(stat.cpu_ns);
            sample.major_faults = sample.major_faults.saturating_add(stat.major_faults);
            let io = files.io.as_ref().and_then(read_again);
            if let Some(bytes) = io.and_then(|lines| text::read_bytes(&lines)) {
                read_bytes = Some(read_bytes.unwrap_or(0_u64).saturating_add(bytes));
            }
            true
        });
        if !self.members.contains_key(&self.kin.root()) {
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
            let lines = read_system_file(format!("/proc/{pid}/smaps_rollup"));
            let bytes = lines.and_then(|lines| text::kib_field(&lines, "Pss"));
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Read as _;
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
            for pid in Table::read().with_descendants([self.0.id()], 0) {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            }
            let _ = self.0.wait();
        }
    }

    #[test]
    fn engine_is_found_by_its_port_and_nobody_by_a_closed_one() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(engine_on(port), Ok(std::process::id()));
        drop(socket);
        let reason = engine_on(port).unwrap_err();
        assert_eq!(reason, format!("nothing listens on port {port} of this machine"));
    }

    #[test]
    fn tree_holds_children_and_ends_with_its_root() {
        let shell = Shell::start();
        let mut tree = Tree::follow(Kin::Found(shell.0.id())).unwrap();
        assert_eq!(tree.read(Some(3), None).unwrap().num_processes, 1);
        tree.grow(&Table::read());
        let sample = tree.read(Some(3), Some(&Clock::real())).unwrap();
        assert_eq!((sample.engine, sample.pid, sample.num_processes), (Some(3), shell.0.id(), 2));
        assert!(sample.rss_bytes > 100 << 10, "{sample:?}");
        assert!(sample.anon_bytes.unwrap() < sample.rss_bytes);
        drop(shell);
        assert_eq!(tree.read(Some(3), None), None);
    }

    #[test]
    fn own_processor_time_grows_with_work() {
        let mut tree = Tree::follow(Kin::Found(std::process::id())).unwrap();
        let before = tree.read(None, None).unwrap();
        let until = crate::hardware::process_cpu_time() + Duration::from_millis(40);
        while crate::hardware::process_cpu_time() < until {
            std::hint::black_box(0);
        }
        let after = tree.read(None, None).unwrap();
        // Two ticks of 10 ms at least have gone by.
        assert!(after.cpu_ns >= before.cpu_ns + 20_000_000, "{before:?} {after:?}");
    }
}
