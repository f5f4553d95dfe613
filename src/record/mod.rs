//! The run directory: raw lines as they happen, from which everything else is
//! derived. Knows files and schemas, computes nothing.

pub mod calibration;
pub mod journal;
pub mod load;
pub mod manifest;
pub mod request;
pub mod resource;
pub mod run_dir;
pub mod start;
pub mod step;
pub mod writer;

pub use calibration::{CalibrationRecord, TruthRecord};
pub use journal::{JournalEntry, JournalEvent};
pub use load::LoadRecord;
pub use manifest::{CaseRecord, EngineRecord, Machine, Manifest};
pub use request::{CountSource, EventRecord, Outcome, RequestRecord};
pub use resource::{
    EngineWord, GpuIdentity, GpuProcess, GpuSample, ProcessSample, ResourceRecord, ResourceSource,
};
pub use run_dir::{Recorder, RunData, RunDirError};
pub use start::{PageCache, StartPhaseKind};
pub use step::StepRecord;
pub use writer::{LineSender, RecordWriter, Stopped};

pub use crate::infer::telemetry::{GpuMemory, LoadPhaseKind};

/// Version of the files' schema, in `manifest.json` and `summary.json`.
pub const SCHEMA_VERSION: u32 = 1;
