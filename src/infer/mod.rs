//! The embedded engine: a Llama-architecture model over candle with a paged KV
//! cache and continuous batching. Knows no HTTP, no plan and no report.
//!
//! A request's life: 1. [`EngineCore::add_request`] checks that it can ever
//! fit and queues it. 2. The scheduler admits it when blocks are free, with
//! those that the prefix cache still has of its prompt. 3. [`EngineCore::step`] flattens all scheduled tokens into one ragged batch.
//! 4. One forward writes K/V through the slot mapping and attends through the
//! block tables. 5. The sampler draws a token for every sequence whose prompt
//! is complete; the other samples of its request join it then. 6. A sequence
//! that met its end, or was aborted, frees its blocks; what they hold can be
//! found until they are handed out again.

mod allocator;
pub mod batch;
mod command;
pub mod config;
pub mod core;
#[cfg(any(feature = "cuda", test))]
pub mod cuda;
pub mod device;
mod engine_thread;
pub mod error;
pub mod generation;
pub mod host;
pub mod kv;
mod live;
mod loading;
pub mod model;
pub mod ops;
pub mod placement;
mod readout;
mod runner;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod step;
pub mod stop;
pub mod telemetry;
pub mod tokenizer;
pub mod weights;

pub use config::{ComputeDtype, EngineConfig, KvBudget};
pub use core::EngineCore;
pub use device::ComputeDevice;
pub use error::InferError;
pub use generation::{Generation, GenerationEvent};
pub use host::{EngineHost, HostStatus};
pub use model::config::ModelConfig;
pub use sequence::{InferRequest, SamplingParams, StopReason};
pub use tokenizer::{ChatMessage, Tokenizer};
pub use weights::ModelSource;
