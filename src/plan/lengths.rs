//! How long prompts and answers are: a distribution over tokens. Drawing from
//! it is the workload's.

use std::fmt;
use std::str::FromStr;

/// Longest length in tokens that a plan may ask for.
const MAX_TOKENS: u32 = 1 << 20;

/// A distribution of lengths in tokens, each at least 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lengths {
    /// Always the same: `256`.
    Fixed(u32),
    /// Every length from the least to the most is equally likely: `uniform:64-256`.
    Uniform {
        /// Shortest.
        least: u32,
        /// Longest.
        most: u32,
    },
    /// Rounded normal, below 1 taken as 1: `normal:256,64`.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        sd: f64,
    },
    /// Rounded lognormal with this mean and standard deviation of the lengths
    /// themselves, as lengths of real prompts are skewed: `lognormal:256,200`.
    Lognormal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        sd: f64,
    },
}

impl Lengths {
    /// Most tokens that are drawn: what is drawn beyond is cut to it. Ten
    /// standard deviations above the mean, so that one draw in millions does
    /// not overrun a context.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the bound before"
    )]
    pub fn most(&self) -> u32 {
        match *self {
            Self::Fixed(tokens) => tokens,
            Self::Uniform { most, .. } => most,
            Self::Normal { mean, sd } | Self::Lognormal { mean, sd } => {
                sd.mul_add(10.0, mean).clamp(1.0, f64::from(MAX_TOKENS)) as u32
            }
        }
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "`{text}` is no length: expected N, uniform:LEAST-MOST, normal:MEAN,SD or \
                 lognormal:MEAN,SD, in tokens from 1 to {MAX_TOKENS}"
            )
        };
        let whole = |part: &str| {
            let number = part.trim().parse::<u32>().map_err(|_| bad())?;
            (1..=MAX_TOKENS).contains(&number).then_some(number).ok_or_else(bad)
        };
        let pair = |rest: &str| {
            let (mean, sd) = rest.split_once(',').ok_or_else(bad)?;
            let mean = mean.trim().parse::<f64>().map_err(|_| bad())?;
            let sd = sd.trim().parse::<f64>().map_err(|_| bad())?;
            let sane = (1.0..=f64::from(MAX_TOKENS)).contains(&mean)
                && (0.0..=f64::from(MAX_TOKENS)).contains(&sd);
            sane.then_some((mean, sd)).ok_or_else(bad)
        };
        match text.split_once(':') {
            None => Ok(Self::Fixed(whole(text)?)),
            Some(("uniform", rest)) => {
                let (least, most) = rest.split_once('-').ok_or_else(bad)?;
                let (least, most) = (whole(least)?, whole(most)?);
                (least <= most).then_some(Self::Uniform { least, most }).ok_or_else(bad)
            }
            Some(("normal", rest)) => pair(rest).map(|(mean, sd)| Self::Normal { mean, sd }),
            Some(("lognormal", rest)) => pair(rest).map(|(mean, sd)| Self::Lognormal { mean, sd }),
            Some(_) => Err(bad()),
        }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(tokens) => write!(f, "{tokens}"),
            Self::Uniform { least, most } => write!(f, "uniform:{least}-{most}"),
            Self::Normal { mean, sd } => write!(f, "normal:{mean},{sd}"),
            Self::Lognormal { mean, sd } => write!(f, "lognormal:{mean},{sd}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_written_alike() {
        for text in ["256", "uniform:64-256", "normal:256,64", "lognormal:256,200"] {
            assert_eq!(text.parse::<Lengths>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_length_is_named() {
        for text in [
            "0",
            "",
            "uniform:9-3",
            "uniform:1",
            "normal:0,1",
            "normal:5,-1",
            "normal:nan,1",
            "zipf:3",
            "2000000",
        ] {
            let error = text.parse::<Lengths>().unwrap_err();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
