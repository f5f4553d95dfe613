//! GPUs through NVML, which is loaded at run time. Each number is asked for on
//! its own: what a GPU does not support is told once and not asked for again,
//! a GPU that is lost is told once and left alone.

use std::collections::BTreeSet;
use std::time::Duration;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock as Domain, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use crate::clock::{Clock, Timestamp};
use crate::hardware::gpu;
use crate::record::{GpuIdentity, GpuProcess, GpuSample};

/// Most GPUs that are looked at.
const MAX_GPUS: u32 = 64;
/// Most processes of one GPU that a line holds.
const MAX_PROCESSES: usize = 64;
/// A process table that takes longer than this is read once a second only.
const SLOW_TABLE: Duration = Duration::from_millis(2);

/// Something that cannot be read, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Absence {
    pub(super) what: String,
    pub(super) reason: String,
}

/// The GPUs of this machine; none where there is no driver.
pub(super) struct Gpus {
    nvml: Option<Nvml>,
    states: Vec<State>,
}

/// What is known of one GPU's answers.
struct State {
    gpu: u32,
    lost: bool,
    /// Not asked for again.
    off: BTreeSet<&'static str>,
    /// Told already.
    told: BTreeSet<&'static str>,
    /// When the process table is read next.
    table_at: Timestamp,
}

impl Gpus {
    /// Loads the library and asks which GPUs there are.
    pub(super) fn open() -> (Self, Vec<GpuIdentity>, Vec<Absence>) {
        let none = |reason: String| {
            let absence = Absence { what: "GPUs".to_owned(), reason };
            (Self { nvml: None, states: Vec::new() }, Vec::new(), vec![absence])
        };
        let nvml = match Nvml::init() {
            Ok(nvml) => nvml,
            Err(error) => return none(gpu::reason(&error)),
        };
        let count = match nvml.device_count() {
            Ok(0) => return none("the NVIDIA driver lists no GPU".to_owned()),
            Ok(count) => count.min(MAX_GPUS),
            Err(error) => return none(gpu::reason(&error)),
        };
        let state = |gpu| State {
            gpu,
            lost: false,
            off: BTreeSet::new(),
            told: BTreeSet::new(),
            table_at: Timestamp::default(),
        };
        let identities = (0..count).map(|gpu| identity(&nvml, gpu)).collect();
        let states = (0..count).map(state).collect();
        (Self { nvml: Some(nvml), states }, identities, Vec::new())
    }

    /// Looks at every GPU; what fails for the first time goes to `absent`.
    pub(super) fn read(&mut self, clock: &Clock, absent: &mut Vec<Absence>) -> Vec<GpuSample> {
        let Some(nvml) = &self.nvml else { return Vec::new() };
        let states = self.states.iter_mut().filter(|state| !state.lost);
        states.filter_map(|state| state.read(nvml, clock, absent)).collect()
    }
}

impl State {
    fn read(&mut self, nvml: &Nvml, clock: &Clock, absent: &mut Vec<Absence>) -> Option<GpuSample> {
        let index = self.gpu;
        let device = self.ask("the GPU", absent, || nvml.device_by_index(index))?;
        let mut sample = GpuSample { gpu: self.gpu, ..GpuSample::default() };
        let memory = self.ask("memory", absent, || device.memory_info());
        sample.used_bytes = memory.map(|memory| memory.used);
        if let Some(shares) = self.ask("utilisation", absent, || device.utilization_rates()) {
            sample.utilization_percent = Some(shares.gpu);
            sample.memory_utilization_percent = Some(shares.memory);
        }
        sample.power_mw = self.ask("power", absent, || device.power_usage());
        sample.energy_mj = self.ask("energy", absent, || device.total_energy_consumption());
        sample.sm_clock_mhz = self.ask("SM clock", absent, || device.clock_info(Domain::SM));
        sample.memory_clock_mhz =
            self.ask("memory clock", absent, || device.clock_info(Domain::Memory));
        sample.temperature_c =
            self.ask("temperature", absent, || device.temperature(TemperatureSensor::Gpu));
        let reasons = self.ask("throttle reasons", absent, || device.current_throttle_reasons());
        sample.throttle = reasons.map(names);
        sample.processes = self.table(&device, clock, absent);
        (!self.lost).then_some(sample)
    }

    fn table(
        &mut self,
        device: &Device<'_>,
        clock: &Clock,
        absent: &mut Vec<Absence>,
    ) -> Vec<GpuProcess> {
        let began = clock.now();
        if began < self.table_at {
            return Vec::new();
        }
        let found = self.ask("process table", absent, || device.running_compute_processes());
        let ended = clock.now();
        if ended.since(began) > SLOW_TABLE {
            self.table_at = ended.plus(Duration::from_secs(1));
        }
        let process = |process: nvml_wrapper::struct_wrappers::device::ProcessInfo| GpuProcess {
            pid: process.pid,
            engine: None,
            used_bytes: match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            },
        };
        found.unwrap_or_default().into_iter().take(MAX_PROCESSES).map(process).collect()
    }

    /// Asks for one thing, unless it is known not to be there.
    fn ask<T>(
        &mut self,
        what: &'static str,
        absent: &mut Vec<Absence>,
        ask: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Option<T> {
        if self.lost || self.off.contains(what) {
            return None;
        }
        let error = match ask() {
            Ok(answer) => return Some(answer),
            Err(error) => error,
        };
        match error {
            NvmlError::GpuLost | NvmlError::Uninitialized => self.lost = true,
            // Whatever else is wrong may pass.
            NvmlError::Unknown | NvmlError::Timeout | NvmlError::InsufficientSize(_) => {}
            _ => {
                self.off.insert(what);
            }
        }
        let subject = if self.lost { "the GPU" } else { what };
        if self.told.insert(subject) {
            let gpu = self.gpu;
            let what = if subject == "the GPU" {
                format!("GPU {gpu}")
            } else {
                format!("{subject} of GPU {gpu}")
            };
            absent.push(Absence { what, reason: gpu::reason(&error) });
        }
        None
    }
}

fn identity(nvml: &Nvml, gpu: u32) -> GpuIdentity {
    let device = nvml.device_by_index(gpu).ok();
    let device = device.as_ref();
    GpuIdentity {
        gpu,
        name: device
            .and_then(|device| device.name().ok())
            .unwrap_or_else(|| "unknown GPU".to_owned()),
        total_bytes: device.and_then(|device| Some(device.memory_info().ok()?.total)),
        power_limit_mw: device.and_then(|device| device.enforced_power_limit().ok()),
        max_sm_clock_mhz: device.and_then(|device| device.max_clock_info(Domain::SM).ok()),
    }
}

/// NVML's words for what holds the clocks down, in the spelling of its header.
fn names(reasons: ThrottleReasons) -> Vec<String> {
    const NAMES: [(ThrottleReasons, &str); 9] = [
        (ThrottleReasons::GPU_IDLE, "gpu_idle"),
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "applications_clocks_setting"),
        (ThrottleReasons::SW_POWER_CAP, "sw_power_cap"),
        (ThrottleReasons::HW_SLOWDOWN, "hw_slowdown"),
        (ThrottleReasons::SYNC_BOOST, "sync_boost"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "sw_thermal_slowdown"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "hw_thermal_slowdown"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "hw_power_brake_slowdown"),
        (ThrottleReasons::DISPLAY_CLOCK_SETTING, "display_clock_setting"),
    ];
    let set = NAMES.into_iter().filter(|(flag, _)| reasons.contains(*flag));
    set.map(|(_, name)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            gpu: 1,
            lost: false,
            off: BTreeSet::new(),
            told: BTreeSet::new(),
            table_at: Timestamp::default(),
        }
    }

    #[test]
    fn what_is_not_supported_is_told_once_and_not_asked_again() {
        let (mut state, mut absent) = (state(), Vec::new());
        assert_eq!(
            state.ask("power", &mut absent, || Err::<u32, _>(NvmlError::NotSupported)),
            None
        );
        assert_eq!(state.ask("power", &mut absent, || Ok(1)), None, "it was asked again");
        assert_eq!(state.ask("energy", &mut absent, || Ok(2)), Some(2));
        assert_eq!(absent.len(), 1);
        assert_eq!(absent[0].what, "power of GPU 1");
    }

    #[test]
    fn what_may_pass_is_told_once_and_asked_again() {
        let (mut state, mut absent) = (state(), Vec::new());
        for _ in 0..3 {
            assert_eq!(state.ask("power", &mut absent, || Err::<u32, _>(NvmlError::Unknown)), None);
        }
        assert_eq!(state.ask("power", &mut absent, || Ok(1)), Some(1));
        assert_eq!(absent.len(), 1);
    }

    #[test]
    fn lost_gpu_is_left_alone() {
        let (mut state, mut absent) = (state(), Vec::new());
        assert_eq!(state.ask("power", &mut absent, || Err::<u32, _>(NvmlError::GpuLost)), None);
        assert_eq!(state.ask("memory", &mut absent, || Ok(1)), None);
        assert_eq!(absent[0].what, "GPU 1");
        assert!(absent[0].reason.contains("lost"), "{absent:?}");
    }

    #[test]
    fn throttle_reasons_have_names() {
        let reasons = ThrottleReasons::SW_POWER_CAP | ThrottleReasons::GPU_IDLE;
        assert_eq!(names(reasons), ["gpu_idle", "sw_power_cap"]);
        assert!(names(ThrottleReasons::NONE).is_empty());
    }
}
