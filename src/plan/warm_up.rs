//! How long an engine is warmed up before a warm case, as a plan says it.

use std::fmt;
use std::str::FromStr;

/// Most bursts that a plan can ask for.
const MAX_BURSTS: u32 = 1_000;

const UNTIL_FLAT: &str = "until-flat";

/// Bursts before a warm case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarmUp {
    /// As many as it takes until TTFT and TPOT are flat, within bounds.
    UntilFlat,
    /// Always so many; with 0 nothing is sent, and a warm case may meet an
    /// engine that has still to load.
    Bursts(u32),
}

impl FromStr for WarmUp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == UNTIL_FLAT {
            return Ok(Self::UntilFlat);
        }
        let bursts = text.parse().ok().filter(|bursts| *bursts <= MAX_BURSTS);
        bursts.map(Self::Bursts).ok_or_else(|| {
            format!(
                "warm-up `{text}` is not understood: expected {UNTIL_FLAT} or a number of bursts, \
                 0 to {MAX_BURSTS}"
            )
        })
    }
}

impl fmt::Display for WarmUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UntilFlat => f.write_str(UNTIL_FLAT),
            Self::Bursts(bursts) => write!(f, "{bursts}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_is_read_and_written_alike() {
        for text in ["until-flat", "0", "3"] {
            assert_eq!(text.parse::<WarmUp>().unwrap().to_string(), text);
        }
        for text in ["", "flat", "-1", "1001", "2.5"] {
            let error = text.parse::<WarmUp>().unwrap_err();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
