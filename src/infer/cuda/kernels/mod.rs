//! What each kernel of `kernels/` is launched with. Each file here checks the
//! arguments of the `.cu` file of its name, and tests it against the CPU op
//! that defines it.

pub mod decode_attention;
pub mod rms_norm;

pub use decode_attention::DecodeAttention;
pub use rms_norm::rms_norm;
