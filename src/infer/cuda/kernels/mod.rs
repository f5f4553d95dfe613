//! What each kernel of `kernels/` is launched with. Each file here checks the
//! arguments of the `.cu` file of its name, and tests it against the CPU op
//! that defines it.

pub mod decode_attention;
pub mod embedding;
pub mod gemv;
mod paged;
pub mod prefill_attention;
pub mod rms_norm;
pub mod rope_and_cache;
pub mod sample;
pub mod silu_mul;

pub use decode_attention::DecodeAttention;
pub use embedding::embedding;
pub use gemv::{gated_gemv, gemv};
pub use prefill_attention::{PrefillAttention, prefill_attention};
pub use rms_norm::rms_norm;
pub use rope_and_cache::{RopeShape, rope_and_cache};
pub use sample::sample;
pub use silu_mul::silu_mul;
