//! What can be compared: a quantity and which statistic of it, by the words of
//! the command line and of files. Knows no values.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantity {
    /// Time to first token.
    Ttft,
    /// Time per output token after the first.
    Tpot,
    /// Gaps between token events, pooled over requests.
    Itl,
    /// End-to-end latency.
    E2el,
    /// TTFT from the intended instant of an open loop.
    TtftFromIntended,
    /// E2EL from the intended instant of an open loop.
    E2elFromIntended,
    /// TTFT of the request that met the cold engine first.
    ColdTtft,
    /// 1 / TPOT of each request.
    DecodeTokensPerS,
    /// Output tokens over the whole case.
    OutputTokensPerS,
    /// The same while all streams were generating.
    SteadyOutputTokensPerS,
    /// Completed requests over the whole case.
    RequestsPerS,
    /// Requests that met every objective.
    GoodputPerS,
}

/// Which statistic of the pooled values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantile {
    /// Median.
    P50,
    /// 90th percentile.
    P90,
    /// 99th percentile.
    P99,
}

/// A quantity and its statistic: `ttft_p50`, `output_tokens_per_s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Metric {
    of: Quantity,
    quantile: Quantile,
}

/// Which values are good ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// A latency.
    Lower,
    /// A rate.
    Higher,
}

impl Quantity {
    const ALL: [Self; 12] = [
        Self::Ttft,
        Self::Tpot,
        Self::Itl,
        Self::E2el,
        Self::TtftFromIntended,
        Self::E2elFromIntended,
        Self::ColdTtft,
        Self::DecodeTokensPerS,
        Self::OutputTokensPerS,
        Self::SteadyOutputTokensPerS,
        Self::RequestsPerS,
        Self::GoodputPerS,
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::Itl => "itl",
            Self::E2el => "e2el",
            Self::TtftFromIntended => "ttft_from_intended",
            Self::E2elFromIntended => "e2el_from_intended",
            Self::ColdTtft => "cold_ttft",
            Self::DecodeTokensPerS => "decode_tokens_per_s",
            Self::OutputTokensPerS => "output_tokens_per_s",
            Self::SteadyOutputTokensPerS => "steady_output_tokens_per_s",
            Self::RequestsPerS => "requests_per_s",
            Self::GoodputPerS => "goodput_per_s",
        }
    }

    /// Whether a word for it names its percentile.
    const fn has_tails(self) -> bool {
        matches!(
            self,
            Self::Ttft
                | Self::Tpot
                | Self::Itl
                | Self::E2el
                | Self::TtftFromIntended
                | Self::E2elFromIntended
        )
    }
}

impl Quantile {
    const ALL: [Self; 3] = [Self::P50, Self::P90, Self::P99];

    const fn word(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
        }
    }

    /// As a share.
    #[must_use]
    pub const fn share(self) -> f64 {
        match self {
            Self::P50 => 0.5,
            Self::P90 => 0.9,
            Self::P99 => 0.99,
        }
    }
}

impl Metric {
    /// Median TTFT.
    pub const TTFT_P50: Self = Self::median(Quantity::Ttft);
    /// Median TPOT.
    pub const TPOT_P50: Self = Self::median(Quantity::Tpot);
    /// Median E2EL.
    pub const E2EL_P50: Self = Self::median(Quantity::E2el);
    /// TTFT of the request that met the cold engine first.
    pub const COLD_TTFT: Self = Self::median(Quantity::ColdTtft);
    /// Output tokens a second over the whole case.
    pub const OUTPUT_TOKENS_PER_S: Self = Self::median(Quantity::OutputTokensPerS);

    const fn median(of: Quantity) -> Self {
        Self { of, quantile: Quantile::P50 }
    }

    /// Every metric.
    pub fn all() -> impl Iterator<Item = Self> {
        Quantity::ALL.into_iter().flat_map(|of| {
            let quantiles = if of.has_tails() { &Quantile::ALL[..] } else { &Quantile::ALL[..1] };
            quantiles.iter().map(move |quantile| Self { of, quantile: *quantile })
        })
    }

    /// What is compared where nobody says what: of an open loop, latencies from
    /// the intended instant, since those from the send hide what waits here.
    #[must_use]
    pub fn headline(cold: bool, open: bool) -> Vec<Self> {
        let mut metrics = if open {
            vec![
                Self::median(Quantity::TtftFromIntended),
                Self::TPOT_P50,
                Self::median(Quantity::E2elFromIntended),
            ]
        } else {
            vec![Self::TTFT_P50, Self::TPOT_P50, Self::E2EL_P50]
        };
        metrics.push(Self::OUTPUT_TOKENS_PER_S);
        if cold {
            metrics.push(Self::COLD_TTFT);
        }
        metrics
    }

    /// Whether a load can have it: only a cold one meets a cold engine, only in an
    /// open one is there an intended instant to count from.
    #[must_use]
    pub const fn is_of(self, cold: bool, open: bool) -> bool {
        match self.of {
            Quantity::ColdTtft => cold,
            Quantity::TtftFromIntended | Quantity::E2elFromIntended => open,
            _ => true,
        }
    }

    /// As tables name it; its unit stands beside it.
    #[must_use]
    pub fn label(self) -> String {
        let name = match self.of {
            Quantity::Ttft => "TTFT",
            Quantity::Tpot => "TPOT",
            Quantity::Itl => "ITL",
            Quantity::E2el => "E2EL",
            Quantity::TtftFromIntended => "intended TTFT",
            Quantity::E2elFromIntended => "intended E2EL",
            Quantity::ColdTtft => "cold TTFT",
            Quantity::DecodeTokensPerS => "decode",
            Quantity::OutputTokensPerS => "output",
            Quantity::SteadyOutputTokensPerS => "steady output",
            Quantity::RequestsPerS => "requests",
            Quantity::GoodputPerS => "goodput",
        };
        if self.of.has_tails() {
            format!("{name} {}", self.quantile.word())
        } else {
            name.to_owned()
        }
    }

    /// What is measured.
    #[must_use]
    pub const fn quantity(self) -> Quantity {
        self.of
    }

    /// Which statistic of it.
    #[must_use]
    pub const fn quantile(self) -> Quantile {
        self.quantile
    }

    /// Which values are good ones.
    #[must_use]
    pub const fn better(self) -> Better {
        match self.of {
            Quantity::Ttft
            | Quantity::Tpot
            | Quantity::Itl
            | Quantity::E2el
            | Quantity::TtftFromIntended
            | Quantity::E2elFromIntended
            | Quantity::ColdTtft => Better::Lower,
            Quantity::DecodeTokensPerS
            | Quantity::OutputTokensPerS
            | Quantity::SteadyOutputTokensPerS
            | Quantity::RequestsPerS
            | Quantity::GoodputPerS => Better::Higher,
        }
    }

    /// Unit of its values.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self.of {
            Quantity::RequestsPerS | Quantity::GoodputPerS => "requests/s",
            Quantity::DecodeTokensPerS
            | Quantity::OutputTokensPerS
            | Quantity::SteadyOutputTokensPerS => "tok/s",
            _ => "ms",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.of.word())?;
        if self.of.has_tails() {
            write!(f, "_{}", self.quantile.word())?;
        }
        Ok(())
    }
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::all().find(|metric| metric.to_string() == text).ok_or_else(|| {
            let known: Vec<_> = Self::all().map(|metric| metric.to_string()).collect();
            format!("unknown metric `{text}`: expected one of {}", known.join(", "))
        })
    }
}

impl From<Metric> for String {
    fn from(metric: Metric) -> Self {
        metric.to_string()
    }
}

impl TryFrom<String> for Metric {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_read_from_its_own_word() {
        for metric in Metric::all() {
            assert_eq!(metric.to_string().parse(), Ok(metric));
        }
        assert_eq!("ttft_p50".parse(), Ok(Metric::TTFT_P50));
        assert_eq!(Metric::OUTPUT_TOKENS_PER_S.to_string(), "output_tokens_per_s");
    }

    #[test]
    fn unknown_words_are_refused_with_those_that_exist() {
        for text in ["ttft", "ttft_p95", "cold_ttft_p50", "", "TTFT_P50"] {
            let error = text.parse::<Metric>().unwrap_err();
            assert!(error.contains(&format!("`{text}`")) && error.contains("itl_p99"), "{error}");
        }
    }

    #[test]
    fn latencies_are_good_when_low_and_rates_when_high() {
        assert_eq!((Metric::COLD_TTFT.better(), Metric::COLD_TTFT.unit()), (Better::Lower, "ms"));
        let rate = Metric::OUTPUT_TOKENS_PER_S;
        assert_eq!((rate.better(), rate.unit()), (Better::Higher, "tok/s"));
        let goodput: Metric = "goodput_per_s".parse().unwrap();
        assert_eq!((goodput.better(), goodput.unit()), (Better::Higher, "requests/s"));
    }
}
