//! What sizing answers, for one engine and for all: the object of `--json` and
//! what the terminal page is made of.

use std::collections::BTreeMap;

use serde::Serialize;

use super::amount::{Amount, Count};
use super::gpu::GpuMemory;
use super::settings::{Lengths, Settings};
use super::shape::Shape;

/// The answer for every engine that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// 1.
    pub schema_version: u32,
    /// The model's numbers.
    pub model: Shape,
    /// The GPU's memory.
    pub gpu: GpuMemory,
    /// Lengths that concurrency was asked for.
    pub lengths: Option<Lengths>,
    /// Engines in the order in which they were asked for.
    pub engines: Vec<EngineAnswer>,
    /// Engines that could not be sized, and why.
    pub not_sized: Vec<NotSized>,
}

/// An engine that could not be sized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotSized {
    /// Which.
    pub engine: String,
    /// Why.
    pub reason: String,
}

/// What one engine makes of the memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EngineAnswer {
    /// `vllm`, `ollama` or `embedded`.
    pub engine: &'static str,
    /// With its version, for people.
    pub title: String,
    /// The settings in force, defaults resolved.
    pub settings: BTreeMap<&'static str, String>,
    /// Memory of the device; null where it is the machine's.
    pub total: Option<Amount>,
    /// What the engine lets itself have of it; null where it has no such bound.
    pub budget: Option<Amount>,
    /// What the memory goes to.
    pub parts: Vec<Part>,
    /// K and V of one token over all layers.
    pub kv_bytes_per_token: u64,
    /// Tokens in a block; null where the engine has no blocks.
    pub block_size: Option<u64>,
    /// Blocks of the pool; null where the engine has none.
    pub blocks: Option<Count>,
    /// Tokens that the pool holds.
    pub tokens: Count,
    /// Longest sequence that is asked for.
    pub max_model_len: u64,
    /// Longest sequence that fits.
    pub longest_request: Count,
    /// How many requests fit at once.
    pub concurrency: Vec<Concurrency>,
    /// Whether it starts.
    pub starts: Verdict,
    /// What it says if it does not, in its own words.
    pub error: Option<String>,
    /// What to do then, the cheapest first.
    pub ways_out: Vec<WayOut>,
    /// What else one should know.
    pub notes: Vec<String>,
}

/// A part of the memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// How much.
    pub amount: Amount,
    /// Whether the engine counts it against its budget.
    pub in_budget: bool,
}

impl Part {
    /// A part that the budget pays for.
    #[must_use]
    pub const fn inside(name: &'static str, amount: Amount) -> Self {
        Self { name, amount, in_budget: true }
    }

    /// A part that is taken beside the budget.
    #[must_use]
    pub const fn outside(name: &'static str, amount: Amount) -> Self {
        Self { name, amount, in_budget: false }
    }
}

/// Length of a request where none was asked for: Ollama's context on most GPUs.
const COMMON_TOKENS: u64 = 4096;

/// Lengths for which concurrency is shown: the longest, and the one that was asked for.
#[must_use]
pub fn request_lengths(settings: &Settings, longest: u64) -> Vec<u64> {
    let asked = settings.lengths.map(|lengths| lengths.prompt_tokens + lengths.output_tokens);
    let other = asked.unwrap_or(COMMON_TOKENS.min(longest));
    if other == longest { vec![longest] } else { vec![longest, other] }
}

/// How many requests of one length fit at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Concurrency {
    /// Tokens of each, prompt and answer.
    pub request_tokens: u64,
    /// Least.
    pub low: f64,
    /// Most likely.
    pub expected: f64,
    /// Most.
    pub high: f64,
}

impl Concurrency {
    /// So many blocks, or slots, for requests that need `each`.
    #[must_use]
    pub fn of(request_tokens: u64, has: Count, each: u64) -> Self {
        let share = |count: u64| count as f64 / each.max(1) as f64;
        Self {
            request_tokens,
            low: share(has.low),
            expected: share(has.expected),
            high: share(has.high),
        }
    }
}

/// Whether something holds, given the bounds of what it was made from; the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Within all bounds.
    Yes,
    /// Within some, and as expected.
    Likely,
    /// Within some, and not as expected.
    Unlikely,
    /// Within none.
    No,
}

impl Verdict {
    /// Whether at least `needed` of it are there.
    #[must_use]
    pub const fn at_least(has: Count, needed: u64) -> Self {
        if has.low >= needed {
            Self::Yes
        } else if has.expected >= needed {
            Self::Likely
        } else if has.high >= needed {
            Self::Unlikely
        } else {
            Self::No
        }
    }

    /// Whether there is room: `left` is what it takes subtracted from what there is.
    #[must_use]
    pub const fn of_rest(left: &Amount) -> Self {
        if left.low_bytes >= 0 {
            Self::Yes
        } else if left.expected_bytes >= 0 {
            Self::Likely
        } else if left.high_bytes >= 0 {
            Self::Unlikely
        } else {
            Self::No
        }
    }

    /// Whether a change with this outcome is a way out of `now`: it is expected to
    /// do, and surer than what there is.
    #[must_use]
    pub fn is_way_out_of(self, now: Self) -> bool {
        self.is_expected() && self < now
    }

    /// Whether it holds as expected.
    #[must_use]
    pub const fn is_expected(self) -> bool {
        matches!(self, Self::Yes | Self::Likely)
    }
}

/// A change that alone makes an engine start which does not, or not surely.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WayOut {
    /// What to set or to change.
    pub change: String,
    /// Whether it starts then, as expected at least. Ollama starts in any case: whether
    /// all of it stays on the GPU then.
    pub starts: Verdict,
    /// Tokens that the pool holds then.
    pub tokens: Count,
    /// What it costs.
    pub cost: String,
}
