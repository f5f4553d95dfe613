//! GPUs as NVML reports them. The library is loaded at run time: a machine
//! without it builds and runs, and the reason is said.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// One GPU as its driver reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Product name, such as `NVIDIA L4`.
    pub name: String,
    /// Memory in bytes as the driver reports it.
    pub memory_bytes: u64,
}

/// The GPUs of this machine, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GpuFacts {
    /// In the driver's order.
    pub gpus: Vec<Gpu>,
    /// Why `gpus` is empty; `None` if it is not.
    pub absent: Option<String>,
    /// GPUs that are there and do not answer: index and reason.
    pub silent: Vec<(u32, String)>,
    /// Driver version.
    pub driver: Option<String>,
}

/// Asks NVML which GPUs there are.
#[must_use]
pub fn read() -> GpuFacts {
    match Nvml::init() {
        Ok(nvml) => list(&nvml),
        Err(error) => GpuFacts { absent: Some(reason(&error)), ..GpuFacts::default() },
    }
}

/// Every GPU that answers: one that is lost must not hide the others.
fn list(nvml: &Nvml) -> GpuFacts {
    let driver = nvml.sys_driver_version().ok();
    let mut facts = GpuFacts { driver, ..GpuFacts::default() };
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(error) => return GpuFacts { absent: Some(reason(&error)), ..facts },
    };
    for index in 0..count {
        match describe(nvml, index) {
            Ok(gpu) => facts.gpus.push(gpu),
            Err(error) => facts.silent.push((index, reason(&error))),
        }
    }
    if facts.gpus.is_empty() {
        facts.absent = Some(match facts.silent.first() {
            Some((index, why)) => format!("GPU {index} does not answer: {why}"),
            None => "the NVIDIA driver lists no GPU".to_owned(),
        });
    }
    facts
}

fn describe(nvml: &Nvml, index: u32) -> Result<Gpu, NvmlError> {
    let device = nvml.device_by_index(index)?;
    Ok(Gpu { name: device.name()?, memory_bytes: device.memory_info()?.total })
}

/// What NVML's error means, in a few lower-case words.
#[must_use]
pub fn reason(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            "no NVIDIA driver: libnvidia-ml was not found".to_owned()
        }
        NvmlError::DriverNotLoaded => "the NVIDIA driver is installed and not loaded".to_owned(),
        NvmlError::NotSupported => "the GPU does not support it".to_owned(),
        NvmlError::FailedToLoadSymbol(_) => "the driver is too old for it".to_owned(),
        NvmlError::NoPermission => "the driver permits it to administrators only".to_owned(),
        NvmlError::GpuLost => "the GPU was lost: it no longer answers on its bus".to_owned(),
        other => format!("NVML failed: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_says_so() {
        assert!(reason(&NvmlError::LibraryNotFound).contains("libnvidia-ml"));
        assert!(reason(&NvmlError::Unknown).starts_with("NVML failed: "));
    }
}
