//! A number of bytes, blocks or tokens that is known within bounds, and who says
//! so. Bounds go through every formula, so that an answer is no more certain
//! than what it was made from.

use serde::Serialize;

use crate::units::GIB;

/// Where a size comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The user said so.
    Given,
    /// A formula over numbers that are known.
    Computed,
    /// Others measured it and published it.
    Published,
    /// Our judgement, with its bounds.
    Estimated,
}

/// Bytes within bounds; `low_bytes <= expected_bytes <= high_bytes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Least that it may be.
    pub low_bytes: i64,
    /// Most likely.
    pub expected_bytes: i64,
    /// Most that it may be.
    pub high_bytes: i64,
    /// Who says so.
    pub source: Source,
    /// The formula or the reason, for people.
    pub basis: String,
}

impl Amount {
    /// Exactly so many bytes.
    pub fn exact(bytes: u64, source: Source, basis: impl Into<String>) -> Self {
        let bytes = signed(bytes);
        let basis = basis.into();
        Self { low_bytes: bytes, expected_bytes: bytes, high_bytes: bytes, source, basis }
    }

    /// Within bounds, which are put in order.
    pub fn between(bytes: [u64; 3], source: Source, basis: impl Into<String>) -> Self {
        let mut bounds = bytes.map(signed);
        bounds.sort_unstable();
        let [low_bytes, expected_bytes, high_bytes] = bounds;
        Self { low_bytes, expected_bytes, high_bytes, source, basis: basis.into() }
    }

    /// Whether the bounds are one number.
    #[must_use]
    pub const fn is_exact(&self) -> bool {
        self.low_bytes == self.high_bytes
    }

    /// The sum; as uncertain as the less certain of both.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, |bound, with| match bound {
            Bound::Low => self.low_bytes.saturating_add(with.low_bytes),
            Bound::Expected => self.expected_bytes.saturating_add(with.expected_bytes),
            Bound::High => self.high_bytes.saturating_add(with.high_bytes),
        })
    }

    /// The difference: least where `other` is most. May be negative.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.with(other, |bound, with| match bound {
            Bound::Low => self.low_bytes.saturating_sub(with.high_bytes),
            Bound::Expected => self.expected_bytes.saturating_sub(with.expected_bytes),
            Bound::High => self.high_bytes.saturating_sub(with.low_bytes),
        })
    }

    /// A share of it, `share` from 0 up, rounded down as engines do.
    #[must_use]
    pub fn share(&self, share: f64) -> Self {
        let of = |bytes: i64| truncated(bytes as f64 * share);
        Self {
            low_bytes: of(self.low_bytes),
            expected_bytes: of(self.expected_bytes),
            high_bytes: of(self.high_bytes),
            source: self.source,
            basis: self.basis.clone(),
        }
    }

    /// The same bytes, said otherwise.
    #[must_use]
    pub fn because(mut self, basis: impl Into<String>) -> Self {
        self.basis = basis.into();
        self
    }

    /// Whole units of `unit_bytes` in it; none where it is negative.
    #[must_use]
    pub fn count(&self, unit_bytes: u64) -> Count {
        let of = |bytes: i64| u64::try_from(bytes).unwrap_or(0) / unit_bytes.max(1);
        Count {
            low: of(self.low_bytes),
            expected: of(self.expected_bytes),
            high: of(self.high_bytes),
        }
    }

    fn with(&self, other: &Self, bound: impl Fn(Bound, &Self) -> i64) -> Self {
        Self {
            low_bytes: bound(Bound::Low, other),
            expected_bytes: bound(Bound::Expected, other),
            high_bytes: bound(Bound::High, other),
            source: self.source.max(other.source),
            basis: String::new(),
        }
    }
}

#[derive(Clone, Copy)]
enum Bound {
    Low,
    Expected,
    High,
}

/// A number of blocks or tokens within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Least that it may be.
    pub low: u64,
    /// Most likely.
    pub expected: u64,
    /// Most that it may be.
    pub high: u64,
}

impl Count {
    /// Exactly so many.
    #[must_use]
    pub const fn exact(count: u64) -> Self {
        Self { low: count, expected: count, high: count }
    }

    /// Whether the bounds are one number.
    #[must_use]
    pub const fn is_exact(self) -> bool {
        self.low == self.high
    }

    /// Each bound through a function that never decreases.
    #[must_use]
    pub fn map(self, f: impl Fn(u64) -> u64) -> Self {
        Self { low: f(self.low), expected: f(self.expected), high: f(self.high) }
    }
}

/// GiB as bytes, to the byte below; `None` for what is no size.
#[must_use]
pub fn gib(value: f64) -> Option<u64> {
    let bytes = value * GIB as f64;
    (bytes.is_finite() && (0.0..9e18).contains(&bytes)).then_some(bytes as u64)
}

/// Bytes as GiB.
#[must_use]
pub fn as_gib(bytes: i64) -> f64 {
    bytes as f64 / GIB as f64
}

/// Whole bytes of a float; what does not fit saturates.
pub(super) fn truncated(bytes: f64) -> i64 {
    bytes as i64
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn amount() -> impl Strategy<Value = Amount> {
        let bytes = 0..1_u64 << 45;
        (bytes.clone(), bytes.clone(), bytes)
            .prop_map(|(a, b, c)| Amount::between([a, b, c], Source::Estimated, ""))
    }

    fn ordered(a: &Amount) -> bool {
        a.low_bytes <= a.expected_bytes && a.expected_bytes <= a.high_bytes
    }

    proptest! {
        #[test]
        fn bounds_stay_ordered_through_every_formula(
            a in amount(),
            b in amount(),
            share in 0.0..1.0_f64,
            unit in 1..1_u64 << 30,
        ) {
            for made in [a.plus(&b), a.minus(&b), a.share(share), a.minus(&b).share(share)] {
                prop_assert!(ordered(&made), "{made:?}");
                let count = made.count(unit);
                prop_assert!(count.low <= count.expected && count.expected <= count.high);
            }
        }
    }

    #[test]
    fn less_than_nothing_holds_no_block() {
        let little = Amount::exact(5, Source::Given, "");
        let more = Amount::exact(9, Source::Estimated, "");
        let short = little.minus(&more);
        assert_eq!((short.expected_bytes, short.source), (-4, Source::Estimated));
        assert_eq!(short.count(2), Count::exact(0));
        assert_eq!(gib(-1.0), None);
        assert_eq!(gib(f64::NAN), None);
        assert_eq!(gib(1.5), Some(3 * GIB / 2));
    }
}
