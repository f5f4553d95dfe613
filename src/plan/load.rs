//! A load beside the four experiments: when requests arrive, how long prompts
//! and answers are, what they are taken from, and what is promised of them.

mod cases;
mod check;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::load_spec::LoadSpec;
use super::{Lengths, PlanError, Slo};
use crate::load::{Extent, Process};
use crate::workload::source::{self, Conversation};

pub(super) use cases::points;

/// A load whose every field has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadPlan {
    /// Name of the experiment.
    pub name: String,
    /// When requests are sent.
    pub pace: Pace,
    /// Where it ends.
    pub extent: Extent,
    /// What is sent.
    pub content: Content,
    /// What is promised.
    pub slos: Vec<Slo>,
    /// As it was spelled.
    pub spec: LoadSpec,
}

/// When requests of a load are sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Pace {
    /// So many in flight at once.
    Closed {
        /// Requests in flight.
        concurrency: u32,
    },
    /// At a rate, or at several one after another.
    Open {
        /// How gaps are drawn.
        process: Process,
        /// A case each, in this order.
        rates: Vec<f64>,
        /// Whether rates that say nothing new are left out.
        search: bool,
        /// Rate at the end of a ramp, and its length.
        ramp: Option<(f64, Duration)>,
        /// Requests in flight at most.
        max_in_flight: u32,
    },
    /// As a trace says.
    Recorded {
        /// How many times faster than recorded.
        speed: f64,
        /// Requests in flight at most.
        max_in_flight: u32,
    },
}

/// What requests of a load hold. What is not said is the plan's.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Content {
    /// Prompt lengths.
    pub prompt_tokens: Option<Lengths>,
    /// Answer lengths.
    pub output_tokens: Option<Lengths>,
    /// Number of distinct prefixes and the length of each in tokens.
    pub prefix: Option<(u32, u32)>,
    /// Turns of each conversation; 1 is a single request.
    pub turns: u32,
    /// Pause between an answer and the next turn.
    pub think: Duration,
    /// A file that conversations are taken from.
    pub source: Option<Source>,
}

/// A file of conversations.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Where.
    pub path: PathBuf,
    /// In which format.
    pub format: SourceFormat,
    /// What it holds, once it has been read.
    pub conversations: Option<Arc<Vec<Conversation>>>,
}

/// Formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceFormat {
    /// ShareGPT: a JSON array of conversations.
    ShareGpt,
    /// Mooncake: JSON lines with `timestamp`, `input_length`, `output_length`, `hash_ids`.
    Mooncake,
    /// BurstGPT: CSV with `Timestamp`, `Request tokens`, `Response tokens`.
    BurstGpt,
    /// Our own `requests.jsonl`, or the run directory that holds it.
    Requests,
}

impl SourceFormat {
    const TRACES: [Self; 3] = [Self::Mooncake, Self::BurstGpt, Self::Requests];

    /// The word used in plans.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ShareGpt => "sharegpt",
            Self::Mooncake => "mooncake",
            Self::BurstGpt => "burstgpt",
            Self::Requests => "requests",
        }
    }
}

impl LoadPlan {
    /// Checks a load.
    ///
    /// # Errors
    /// [`PlanError::Load`] names the load, the field, what it is and what it may be.
    pub fn new(spec: LoadSpec) -> Result<Self, PlanError> {
        check::check(spec)
    }

    /// Names of the experiments that it becomes.
    pub(super) fn points(&self) -> impl Iterator<Item = String> {
        points(self).into_iter().map(|point| point.name)
    }

    /// Whether it goes through several rates.
    #[must_use]
    pub const fn is_sweep(&self) -> bool {
        self.spec.sweep.is_some()
    }

    /// Whether rates that say nothing new are left out as it runs.
    #[must_use]
    pub const fn is_search(&self) -> bool {
        matches!(self.pace, Pace::Open { search: true, .. })
    }

    /// Whether it replays a trace.
    #[must_use]
    pub const fn is_trace(&self) -> bool {
        matches!(self.pace, Pace::Recorded { .. })
    }

    /// Turns of conversation `number` of a case with that load.
    #[must_use]
    pub fn turns_of(&self, seed: u64, load: u32, number: usize) -> usize {
        let most = self.content.turns.max(1) as usize;
        match self.conversation(seed, load, number) {
            Some(conversation) => conversation.turns.len().min(most),
            None => most,
        }
    }

    /// Conversation `number` of its file: in order for a trace, drawn by the
    /// seed from a dataset. `None` where there is no file, or it has not been read.
    #[must_use]
    pub fn conversation(&self, seed: u64, load: u32, number: usize) -> Option<&Conversation> {
        let source = self.content.source.as_ref()?;
        let all = source.conversations.as_ref()?;
        match source.format {
            SourceFormat::ShareGpt => all.get(source::pick(seed, load, number, all.len())),
            SourceFormat::Mooncake | SourceFormat::BurstGpt | SourceFormat::Requests => {
                all.get(number)
            }
        }
    }

    /// Instants of its trace; empty where it has none, or it has not been read.
    #[must_use]
    pub fn recorded(&self) -> Vec<Duration> {
        let source = self.content.source.as_ref();
        let conversations = source.and_then(|source| source.conversations.as_ref());
        conversations.map_or_else(Vec::new, |all| all.iter().map(|one| one.at).collect())
    }
}
