//! Yardstick measures LLM inference engines side by side, beside a reference
//! engine of its own on the same machine.
//!
//! Modules in the order in which data flows through them: a [`plan`] becomes
//! cases; an [`experiment`] prepares an engine and hands requests of the
//! [`workload`] to the [`load`] driver; the driver runs them against an
//! [`engine`], while a [`probe`] looks at what is used; what happens is written by [`record`]; [`stats`] derives numbers
//! and [`report`] shows them. [`simulation`] drives the embedded engine's scheduler on
//! a clock of its own. [`infer`] is the embedded engine, [`server`] puts
//! it behind HTTP, [`catalog`] finds its weights, [`lifecycle`] starts and stops
//! engines that are processes of their own. [`sizing`] says beforehand what fits.

pub mod catalog;
pub mod cli;
pub mod clock;
pub mod engine;
pub mod experiment;
pub mod hardware;
pub mod infer;
pub mod lifecycle;
pub mod load;
pub mod plan;
pub mod probe;
pub mod record;
pub mod report;
pub mod server;
pub mod simulation;
pub mod sizing;
pub mod stats;
pub mod units;
pub mod workload;
