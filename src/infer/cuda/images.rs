//! The kernels as `build.rs` compiled and embedded them: one module for each
//! file `kernels/*.cu`. Knows neither what is in them nor a device.

/// One compiled file of kernels.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// Name of the `.cu` file, without its ending.
    pub module: &'static str,
    /// Machine code of several GPUs, and the PTX for newer ones; a driver picks.
    pub fatbin: &'static [u8],
    /// The same PTX as text, for where the fatbin is refused.
    pub ptx: &'static str,
}

/// Every file.
pub static IMAGES: &[Image] = include!(concat!(env!("OUT_DIR"), "/images.rs"));
