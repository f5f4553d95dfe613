//! KV-cache sizing: what a model takes on a GPU, what each engine makes of the rest,
//! and what to set. Arithmetic over numbers that others read: no I/O, no clock.
//!
//! A [`settings::Question`] is a [`shape::Shape`] on a [`gpu::GpuMemory`] under
//! [`settings::Settings`]; [`vllm`], [`ollama`] and [`embedded`] each make an
//! [`answer::EngineAnswer`] of it. What is not known is an [`amount::Amount`] with
//! bounds, which go through to the answer. [`explain`] goes the other way, from
//! what an engine said to what must have been.

pub mod amount;
pub mod answer;
pub mod embedded;
pub mod explain;
pub mod gpu;
pub mod ollama;
pub mod settings;
pub mod shape;
pub mod vllm;
pub mod weights;

pub use amount::{Amount, Count, Source};
pub use answer::{Answer, EngineAnswer, NotSized, Verdict, WayOut};
pub use gpu::GpuMemory;
pub use settings::{KvType, Lengths, MaxModelLen, Question, Settings, Version};
pub use shape::Shape;
