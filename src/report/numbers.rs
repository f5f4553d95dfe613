//! How measured numbers are written in tables: three significant digits, a
//! unit for a column, an interval beside its median.

use crate::stats::summary::{Distribution, Interval};
use crate::units::format_significant;

/// The unit of a column of latencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// `ms` or `s`.
    pub unit: &'static str,
    per_ms: f64,
}

impl Scale {
    /// Milliseconds.
    pub const MS: Self = Self { unit: "ms", per_ms: 1.0 };
    const S: Self = Self { unit: "s", per_ms: 1e-3 };

    /// Seconds where every value has some and one has ten, else milliseconds.
    pub fn of(values_ms: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for value in values_ms {
            least = least.min(value);
            most = most.max(value);
        }
        if least >= 1e3 && most >= 1e4 { Self::S } else { Self::MS }
    }

    /// A value given in milliseconds, in this unit.
    #[must_use]
    pub fn write(self, ms: f64) -> String {
        format_significant(ms * self.per_ms)
    }

    /// An interval given in milliseconds, in this unit.
    #[must_use]
    pub fn write_interval(self, interval: &Interval) -> String {
        write_range(interval.low * self.per_ms, interval.high * self.per_ms)
    }
}

/// `40.1–44.9`.
#[must_use]
pub fn write_range(low: f64, high: f64) -> String {
    format!("{}–{}", format_significant(low), format_significant(high))
}

/// A difference with its sign.
#[must_use]
pub fn write_difference(value: f64) -> String {
    // A minus sign is as wide as a plus, and nothing is "-0.000".
    let text = format_significant(value.abs());
    if text.trim_start_matches(['0', '.']).is_empty() {
        text
    } else {
        format!("{}{text}", if value < 0.0 { '−' } else { '+' })
    }
}

/// A latency with a unit of its own, for sentences.
#[must_use]
pub fn write_latency(ms: f64) -> String {
    let scale = if ms >= 1e3 { Scale::S } else { Scale::MS };
    format!("{} {}", scale.write(ms), scale.unit)
}

/// The reason why a field of a distribution is null.
#[must_use]
pub fn reason<'a>(distribution: &'a Distribution, field: &str) -> &'a str {
    distribution.reasons.get(field).map_or("not measured", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_long_latencies_are_in_seconds() {
        assert_eq!(Scale::of([1_200.0, 15_300.0].into_iter()).write(15_340.0), "15.3");
        assert_eq!(Scale::of([41.0, 15_300.0].into_iter()), Scale::MS);
        assert_eq!(Scale::of(std::iter::empty()), Scale::MS);
    }

    #[test]
    fn differences_carry_their_sign() {
        assert_eq!(write_difference(2.1), "+2.10");
        assert_eq!(write_difference(-0.25), "−0.250");
        assert_eq!(write_difference(-0.000_01), "0.000");
    }
}
