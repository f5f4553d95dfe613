//! Scripts that other harnesses are known to misreport, each by a name.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::script::{Delivery, Script, Stall};

/// A way of answering that a client may misread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Nothing special.
    Steady,
    /// The role-only chunk at once, the first token much later.
    EarlyRole,
    /// One long pause in the middle.
    Stall,
    /// Several tokens in a chunk.
    Chunked,
    /// First half reasoning, second half content.
    Reasoning,
    /// Several tokens in a chunk, and no usage report.
    NoUsage,
    /// Every chunk in several writes.
    Split,
    /// Several chunks in a write.
    Merged,
}

impl Scenario {
    /// Every scenario, in the order in which they run.
    pub const ALL: [Self; 8] = [
        Self::Steady,
        Self::EarlyRole,
        Self::Stall,
        Self::Chunked,
        Self::Reasoning,
        Self::NoUsage,
        Self::Split,
        Self::Merged,
    ];

    /// The name used on the command line and in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::EarlyRole => "early-role",
            Self::Stall => "stall",
            Self::Chunked => "chunked",
            Self::Reasoning => "reasoning",
            Self::NoUsage => "no-usage",
            Self::Split => "split",
            Self::Merged => "merged",
        }
    }

    /// Its script, made of `plain` by what is special about it. What `plain`
    /// says already (a stall, tokens a chunk) is kept.
    #[must_use]
    pub fn script(self, plain: &Script) -> Script {
        let several = if plain.tokens_per_chunk > 1 { plain.tokens_per_chunk } else { 4 };
        let plain = plain.clone();
        match self {
            Self::Steady => plain,
            // A prompt that takes its time, so that the two instants lie far apart.
            Self::EarlyRole => Script { early_role: true, ttft: plain.ttft * 10, ..plain },
            Self::Stall => {
                let middle =
                    Stall { at_token: plain.num_tokens / 2, lasts: Duration::from_millis(300) };
                Script { stall: plain.stall.or(Some(middle)), ..plain }
            }
            Self::Chunked => Script { tokens_per_chunk: several, ..plain },
            Self::Reasoning => Script { num_reasoning: plain.num_tokens / 2, ..plain },
            Self::NoUsage => Script { tokens_per_chunk: several, usage: false, ..plain },
            Self::Split => Script { delivery: Delivery::Split(3), ..plain },
            Self::Merged => Script { delivery: Delivery::Merged(4), ..plain },
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|known| known.as_str() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|known| known.as_str()).collect();
            format!("no scenario `{text}`: expected one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_found_by_their_names_and_differ_from_each_other() {
        let plain = Script::default();
        let mut scripts = Vec::new();
        for scenario in Scenario::ALL {
            assert_eq!(scenario.as_str().parse(), Ok(scenario));
            let script = scenario.script(&plain);
            assert!(!scripts.contains(&script), "{scenario}");
            scripts.push(script);
        }
        assert!("nothing".parse::<Scenario>().is_err());
    }

    #[test]
    fn what_was_asked_for_is_kept() {
        let stall = Stall { at_token: 3, lasts: Duration::from_millis(7) };
        let plain = Script { stall: Some(stall), tokens_per_chunk: 5, ..Script::default() };
        assert_eq!(Scenario::Stall.script(&plain).stall, Some(stall));
        assert_eq!(Scenario::Chunked.script(&plain).tokens_per_chunk, 5);
    }
}
