//! Which device computes, and why a CUDA device does not. Whether there is one
//! is asked at run time; a build without the feature `cuda` never has one.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::InferError;

/// What the model is computed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeDevice {
    /// This machine's processors.
    Cpu,
    /// The CUDA device of this number, as `CUDA_VISIBLE_DEVICES` counts.
    Cuda(usize),
}

impl ComputeDevice {
    /// The device for a wish; none is the first CUDA device where there is one,
    /// else the processors.
    ///
    /// # Errors
    /// [`InferError::Config`] when a CUDA device was asked for that is not there.
    pub fn resolve(asked: Option<Self>) -> Result<Self, InferError> {
        match asked {
            Some(Self::Cpu) => Ok(Self::Cpu),
            None => Ok(if cuda_devices().is_ok() { Self::Cuda(0) } else { Self::Cpu }),
            Some(Self::Cuda(number)) => {
                let refused = |why: String| {
                    InferError::Config(format!("device cuda is not available: {why}"))
                };
                let devices =
                    cuda_devices().map_err(|why| refused(format!("{why}; {}", why.advice())))?;
                match devices.get(number) {
                    Some(_) => Ok(Self::Cuda(number)),
                    None => Err(refused(format!(
                        "there is no device {number}, devices are counted from 0 to {}",
                        devices.len() - 1
                    ))),
                }
            }
        }
    }
}

impl FromStr for ComputeDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("cuda:").map(str::parse::<u16>);
        match (text, number) {
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(number))) => Ok(Self::Cuda(number.into())),
            _ => Err("expected auto, cpu, cuda, or cuda:N".to_owned()),
        }
    }
}

impl fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// A CUDA device as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaDevice {
    /// Marketing name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Memory in bytes, as the driver counts it.
    pub total_bytes: u64,
    /// CUDA version that the driver serves, such as 13000.
    pub driver_version: u32,
}

impl CudaDevice {
    /// Whether it is a program that says what a device would compute: right, and
    /// its times mean nothing.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        is_emulated(&self.name)
    }
}

/// Whether a device of this name is emulated; see [`CudaDevice::is_emulated`].
#[must_use]
pub fn is_emulated(name: &str) -> bool {
    name.starts_with("Emulated")
}

/// Why nothing can be computed on a CUDA device.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CudaAbsent {
    /// This program has no CUDA kernels in it.
    #[error("this build has no CUDA support")]
    NotBuilt,
    /// libcuda cannot be loaded.
    #[error("the NVIDIA driver's library libcuda.so.1 is not on this machine")]
    NoDriver,
    /// cuBLAS cannot be loaded.
    #[error("the library libcublas is not on this machine")]
    NoCublas,
    /// The driver sees no device.
    #[error("the NVIDIA driver finds no device")]
    NoDevice,
    /// The kernels are compiled for newer devices.
    #[error("{name} has compute capability {}.{}, and 8.0 is the least", capability.0, capability.1)]
    TooOld {
        /// Of the device.
        name: String,
        /// Major and minor.
        capability: (u32, u32),
    },
    /// A driver call failed.
    #[error("the NVIDIA driver failed: {0}")]
    Failed(String),
}

impl CudaAbsent {
    /// What the user can do about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::NotBuilt => {
                "build with `cargo build --release --features cuda` (needs nvcc; \
                 `deploy/cuda-toolkit DIR` assembles one)"
            }
            Self::NoDriver => {
                "install the NVIDIA driver, or in a container start it with `--gpus all`"
            }
            Self::NoCublas => {
                "install CUDA's libraries, or put the folder with libcublas.so on LD_LIBRARY_PATH"
            }
            Self::NoDevice => "check `nvidia-smi` and CUDA_VISIBLE_DEVICES",
            Self::TooOld { .. } => "use an Ampere device (A100, L4, RTX 30) or a newer one",
            Self::Failed(_) => "check `nvidia-smi` and the kernel log",
        }
    }
}

/// The devices that this program can compute on.
///
/// # Errors
/// [`CudaAbsent`] when there is none.
#[cfg(feature = "cuda")]
pub fn cuda_devices() -> Result<Vec<CudaDevice>, CudaAbsent> {
    super::cuda::devices()
}

/// The devices that this program can compute on.
///
/// # Errors
/// [`CudaAbsent::NotBuilt`].
#[cfg(not(feature = "cuda"))]
pub fn cuda_devices() -> Result<Vec<CudaDevice>, CudaAbsent> {
    Err(CudaAbsent::NotBuilt)
}

#[cfg(all(test, not(feature = "cuda")))]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_cuda_computes_on_the_processors_and_says_why() {
        assert_eq!(ComputeDevice::resolve(None).unwrap(), ComputeDevice::Cpu);
        let refused = ComputeDevice::resolve(Some(ComputeDevice::Cuda(0))).unwrap_err().to_string();
        assert!(refused.contains("no CUDA support") && refused.contains("--features cuda"));
    }
}
