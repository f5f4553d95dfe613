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

fn list(nvml: &Nvml) -> GpuFacts {
    let driver = nvml.sys_driver_version().ok();
    let gpus = nvml.device_count().and_then(|count| {
        (0..count)
            .map(|index| {
                let device = nvml.device_by_index(index)?;
                Ok(Gpu { name: device.name()?, memory_bytes: device.memory_info()?.total })
            })
            .collect::<Result<Vec<_>, NvmlError>>()
    });
    match gpus {
        Ok(gpus) => {
            let absent = gpus.is_empty().then(|| "the NVIDIA driver lists no GPU".to_owned());
            GpuFacts { gpus, absent, driver }
        }
        Err(error) => GpuFacts { gpus: Vec::new(), absent: Some(reason(&error)), driver },
    }
}

fn reason(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            "no NVIDIA driver: libnvidia-ml was not found".to_owned()
        }
        NvmlError::DriverNotLoaded => "the NVIDIA driver is installed and not loaded".to_owned(),
        other => format!("NVML failed: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_says_so() {
        assert!(reason(&NvmlError::LibraryNotFound).contains("libnvidia-ml"));
        assert!(reason(&NvmlError::NoPermission).starts_with("NVML failed: "));
    }
}
