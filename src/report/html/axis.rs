//! From values to coordinates: linear from zero, or logarithmic where values
//! span more than a reader can see on a linear one.

use crate::units::format_significant;

/// Spans above this ratio are drawn on a logarithmic axis.
const LOG_FROM: f64 = 15.0;

/// One axis of a chart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

/// A place on an axis with its label.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) at: f64,
    pub(super) label: String,
}

impl Axis {
    /// Linear from zero to a little above `high`.
    pub(super) fn linear(high: f64, from: f64, to: f64) -> Self {
        let high = if high > 0.0 { high * 1.05 } else { 1.0 };
        Self { low: 0.0, high, from, to, log: false }
    }

    /// Logarithmic where the values span much, linear from zero otherwise.
    pub(super) fn spanning(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        Self::log_above(LOG_FROM, values, from, to)
    }

    fn log_above(span: f64, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for value in values {
            low = low.min(value);
            high = high.max(value);
        }
        if low > 0.0 && high / low > span && high.is_finite() {
            Self { low: low / 1.2, high: high * 1.2, from, to, log: true }
        } else {
            Self::linear(high, from, to)
        }
    }

    /// Logarithmic where the values span anything to speak of, for shapes whose
    /// distance from zero says little.
    pub(super) fn spread(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        Self::log_above(3.0, values, from, to)
    }

    /// Whether it is logarithmic.
    pub(super) const fn is_log(&self) -> bool {
        self.log
    }

    /// The coordinate of a value, at the axis' end for one beyond it.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        (self.to - self.from).mul_add(share.clamp(0.0, 1.0), self.from)
    }

    /// Round values with room between them.
    pub(super) fn ticks(&self) -> Vec<Tick> {
        let values = if self.log { self.log_values() } else { self.linear_values() };
        values.into_iter().map(|value| Tick { at: self.at(value), label: label(value) }).collect()
    }

    fn linear_values(&self) -> Vec<f64> {
        let raw = self.high / 5.0;
        let power = 10_f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|step| *step >= raw)
            .unwrap_or(raw);
        (0..=6).map(|i| f64::from(i) * step).take_while(|value| *value <= self.high).collect()
    }

    fn log_values(&self) -> Vec<f64> {
        let decades = (self.high / self.low).log10();
        let factors: &[f64] = if decades > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let mut values = Vec::new();
        let mut power = 10_f64.powf(self.low.log10().floor());
        // An axis over nanoseconds to days has 15 decades; the bound is for damaged files.
        for _ in 0..40 {
            values.extend(factors.iter().map(|factor| factor * power));
            power *= 10.0;
        }
        values.retain(|value| (self.low..=self.high).contains(value));
        values
    }
}

/// A tick's label: three digits without trailing zeros, thousands as `k`.
fn label(value: f64) -> String {
    let (value, suffix) = if value >= 10_000.0 { (value / 1_000.0, "k") } else { (value, "") };
    let text = format_significant(value);
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{suffix}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wide_spans_are_logarithmic() {
        assert!(Axis::spanning([20.0, 1_500.0].into_iter(), 0.0, 100.0).is_log());
        assert!(!Axis::spanning([20.0, 90.0].into_iter(), 0.0, 100.0).is_log());
        assert!(!Axis::spanning([0.0, 90.0].into_iter(), 0.0, 100.0).is_log());
        assert!(!Axis::spanning(std::iter::empty(), 0.0, 100.0).is_log());
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(label(0.5), "0.5");
        assert_eq!(label(20.0), "20");
        assert_eq!(label(0.0), "0");
        assert_eq!(label(25_000.0), "25k");
    }

    proptest! {
        #[test]
        fn every_value_lies_on_the_axis_in_order(
            mut values in proptest::collection::vec(1e-3_f64..1e7, 2..30),
        ) {
            values.sort_by(f64::total_cmp);
            let axis = Axis::spanning(values.iter().copied(), 10.0, 200.0);
            let places: Vec<f64> = values.iter().map(|value| axis.at(*value)).collect();
            prop_assert!(places.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert!(places.iter().all(|at| (10.0..=200.0).contains(at)));
            let ticks = axis.ticks();
            prop_assert!(!ticks.is_empty() && ticks.len() <= 14);
        }
    }
}
