//! What this process uses: processor time and memory. Knows no run.

use std::time::Duration;

/// Processor time of this process, user and system, over all its threads
/// (`CLOCK_PROCESS_CPUTIME_ID`). Zero on systems without that clock, none of
/// which is Unix.
#[must_use]
pub fn process_cpu_time() -> Duration {
    #[cfg(unix)]
    {
        cpu_time(rustix::time::ClockId::ProcessCPUTime)
    }
    #[cfg(not(unix))]
    Duration::ZERO
}

/// Processor time of the calling thread (`CLOCK_THREAD_CPUTIME_ID`); as above.
#[must_use]
pub fn thread_cpu_time() -> Duration {
    #[cfg(unix)]
    {
        cpu_time(rustix::time::ClockId::ThreadCPUTime)
    }
    #[cfg(not(unix))]
    Duration::ZERO
}

#[cfg(unix)]
fn cpu_time(clock: rustix::time::ClockId) -> Duration {
    let time = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}

/// Resident memory of this process in bytes; absent where there is no `/proc`.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    // `status` counts in KiB, whatever the page size is.
    super::proc::text::kib_field(&super::read_system_file("/proc/self/status")?, "VmRSS")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn processor_time_grows_with_work() {
        let before = process_cpu_time();
        let mut sum = 0u64;
        while process_cpu_time() < before + Duration::from_millis(2) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(sum > 0);
    }

    #[test]
    fn resident_memory_is_more_than_nothing() {
        assert!(resident_bytes().unwrap() > 1 << 16);
    }
}
