//! What this machine is, as far as it can be read without a vendor library at
//! build time. Knows no engine and no run; what cannot be read is absent.

pub mod cards;
pub mod cpu;
pub mod gpu;
pub mod open_files;
pub mod proc;
pub mod process;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use crate::record::Machine;
use crate::units;

pub use cards::{GpuCard, find_gpu_card, find_gpu_card_named, gpu_cards};
pub use gpu::{Gpu, GpuFacts};
pub use open_files::allow_streams;
pub use process::{process_cpu_time, resident_bytes, thread_cpu_time};

/// Longest system file that is read: `/proc/cpuinfo` of the largest machines and
/// `/proc/net/tcp` of busy servers are a few MiB.
const MAX_SYSTEM_FILE: u64 = 16 << 20;

/// The facts of this machine, read now. The load average is that of the call.
#[must_use]
pub fn machine() -> Machine {
    let cpuinfo = read_system_file("/proc/cpuinfo").unwrap_or_default();
    let meminfo = read_system_file("/proc/meminfo").unwrap_or_default();
    let GpuFacts { gpus, absent, silent, driver } = gpu::read();
    let mut notes = BTreeMap::new();
    for (index, why) in silent {
        notes.insert(format!("gpu_{index}_silent"), why);
    }
    if let Some(driver) = driver {
        notes.insert("nvidia_driver".to_owned(), driver);
    }
    if let Some(bytes) = proc::text::kib_field(&meminfo, "MemAvailable") {
        notes.insert("memory_available_bytes".to_owned(), bytes.to_string());
    }
    if let Some(bytes) = memory_limit_bytes() {
        notes.insert("memory_limit_bytes".to_owned(), bytes.to_string());
    }
    Machine {
        os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        cpu: cpu::name(&cpuinfo),
        num_cpus: num_cpus(),
        memory_bytes: proc::text::kib_field(&meminfo, "MemTotal"),
        load_average_percent: load_average_percent(),
        cpu_features: cpu::features(&cpuinfo),
        gpus: gpus.iter().map(describe_gpu).collect(),
        gpu_absent: absent,
        notes,
    }
}

/// Logical processors this process may use: scheduler affinity and cgroup
/// quota are both counted.
#[must_use]
pub fn num_cpus() -> u32 {
    std::thread::available_parallelism()
        .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

/// One-minute load average, times 100; absent where there is no `/proc`.
#[must_use]
pub fn load_average_percent() -> Option<u32> {
    cpu::load_average_percent(&read_system_file("/proc/loadavg")?)
}

/// Memory limit of the control group, where one is set.
fn memory_limit_bytes() -> Option<u64> {
    // `max` (cgroup v2) and a value near 2^63 (v1) mean that there is none.
    let text = read_system_file("/sys/fs/cgroup/memory.max")
        .or_else(|| read_system_file("/sys/fs/cgroup/memory/memory.limit_in_bytes"))?;
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 60)
}

fn describe_gpu(gpu: &Gpu) -> String {
    format!("{} ({})", gpu.name, units::format_bytes(gpu.memory_bytes))
}

/// A file of the system as text, bounded; `None` where it is absent or unreadable.
/// A process may give itself a name that is no UTF-8: such bytes are replaced.
pub(crate) fn read_system_file(path: impl AsRef<Path>) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(MAX_SYSTEM_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_has_processors_and_a_reason_where_it_has_no_gpu() {
        let machine = machine();
        assert!(machine.num_cpus >= 1);
        assert_eq!(machine.gpus.is_empty(), machine.gpu_absent.is_some());
    }
}
