//! Whether requests have shown that a bound on a tail is kept, or that it is
//! not: exactly, from how many were over it. Knows counts, no latencies.

use serde::{Deserialize, Serialize};

use super::order_statistics::binomial_terms;

/// Beyond this many requests nothing is foretold.
const MOST: u64 = 100_000_000;

/// What is to be shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Test {
    /// Share of the requests that may be over the bound; between 0 and 1.
    pub allowed: f64,
    /// Probability with which each verdict may be wrong; between 0 and 1.
    pub error: f64,
    /// How the counts came about.
    pub rule: Rule,
}

/// How many requests there are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// As many as were planned: the binomial distribution itself.
    Binomial,
    /// Until it is decided: a bound that holds at every look.
    Sequential,
}

/// What a test says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The bound is kept.
    Met,
    /// It is not.
    Missed,
    /// Neither has been shown.
    Undecided,
}

impl Verdict {
    /// The word used in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Undecided => "undecided",
        }
    }
}

impl Test {
    /// What `over` of `n` requests above the bound say.
    ///
    /// [`Rule::Binomial`]: met, where so few would be over with a probability of
    /// at most `error` if more were allowed than may be; missed, where so many
    /// would (Clopper and Pearson 1934; the first as in MLPerf's
    /// `early_stopping.cc`).
    ///
    /// [`Rule::Sequential`] may be asked after every request, and the answer
    /// that is not [`Verdict::Undecided`] be taken as it comes: see
    /// [`Test::evidence_for`].
    #[must_use]
    pub fn verdict(&self, n: u64, over: u64) -> Verdict {
        let over = over.min(n);
        if n == 0 {
            return Verdict::Undecided;
        }
        let (met, missed) = match self.rule {
            Rule::Binomial => {
                let tails = Tails::of(n, self.allowed, over);
                (tails.at_most <= self.error, tails.at_least <= self.error)
            }
            Rule::Sequential => {
                let enough = 1.0 / self.error;
                (self.evidence_for(n, over) >= enough, self.evidence_against(n, over) >= enough)
            }
        };
        match (met, missed) {
            (true, _) => Verdict::Met,
            (_, true) => Verdict::Missed,
            _ => Verdict::Undecided,
        }
    }

    /// How many more requests it takes for [`Verdict::Met`] if none of them is
    /// over; `None` where that is met already, or out of reach.
    #[must_use]
    pub fn more(&self, n: u64, over: u64) -> Option<u64> {
        let met = |n: u64| self.verdict(n, over) == Verdict::Met;
        let start = n.max(1);
        if met(start) {
            return None;
        }
        // Fewer over of more requests: once met it stays met.
        let (mut short, mut enough) = (start, start.checked_mul(2)?);
        while !met(enough) {
            (short, enough) = (enough, enough.checked_mul(2).filter(|n| *n <= MOST)?);
        }
        while enough - short > 1 {
            let middle = short + (enough - short) / 2;
            if met(middle) { enough = middle } else { short = middle }
        }
        Some(enough - n)
    }

    /// Evidence that fewer than allowed are over: the likelihood of what was
    /// seen, averaged over all shares below the allowed one `q`, over the
    /// likelihood at `q`,
    ///
    /// `E = (1/q) * integral from 0 to q of x^t (1-x)^(n-t) dx / (q^t (1-q)^(n-t))`.
    ///
    /// If `q` or more are over, `E` is a supermartingale that begins at 1, so it
    /// ever reaches `1 / error` with a probability of at most `error`, however
    /// often it is looked at (Ville 1939; mixtures: Robbins 1970; Howard, Ramdas,
    /// McAuliffe and Sekhon 2021). The integral is a binomial tail:
    /// `B(t+1, n-t+1) I_q(t+1, n-t+1)`, and `I_q(t+1, n-t+1) = P(Bin(n+1, q) > t)`.
    #[must_use]
    pub fn evidence_for(&self, n: u64, over: u64) -> f64 {
        let above = Tails::of(n + 1, self.allowed, over + 1).at_least;
        self.ratio(n, over, above, self.allowed)
    }

    /// Evidence that more than allowed are over: the same over all shares above.
    #[must_use]
    pub fn evidence_against(&self, n: u64, over: u64) -> f64 {
        let below = Tails::of(n + 1, self.allowed, over).at_most;
        self.ratio(n, over, below, 1.0 - self.allowed)
    }

    #[expect(clippy::cast_precision_loss, reason = "request counts are far below 2^52")]
    fn ratio(&self, n: u64, over: u64, tail: f64, width: f64) -> f64 {
        let exactly = Tails::of(n, self.allowed, over).exactly;
        // Both vanish only on the side that speaks for the other verdict.
        if tail <= 0.0 { 0.0 } else { tail / (width * (n + 1) as f64 * exactly) }
    }
}

/// Probabilities of a binomial count.
struct Tails {
    at_most: f64,
    exactly: f64,
    at_least: f64,
}

impl Tails {
    fn of(n: u64, q: f64, count: u64) -> Self {
        let index = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let (first, terms) = binomial_terms(index(n), q);
        let count = index(count);
        let Some(place) = count.checked_sub(first) else {
            return Self { at_most: 0.0, exactly: 0.0, at_least: 1.0 };
        };
        let Some(exactly) = terms.get(place) else {
            return Self { at_most: 1.0, exactly: 0.0, at_least: 0.0 };
        };
        let sum = |terms: &[f64]| terms.iter().sum::<f64>().min(1.0);
        Self { at_most: sum(&terms[..=place]), exactly: *exactly, at_least: sum(&terms[place..]) }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn test(percent: f64, rule: Rule) -> Test {
        Test { allowed: 1.0 - percent / 100.0, error: 0.01, rule }
    }

    #[test]
    fn fewest_requests_are_those_of_mlperf() {
        for (percent, fewest) in
            [(90.0, [44, 64, 81]), (95.0, [90, 130, 165]), (99.0, [459, 662, 838])]
        {
            let test = test(percent, Rule::Binomial);
            for (over, n) in (0..).zip(fewest) {
                assert_eq!(test.verdict(n, over), Verdict::Met, "p{percent} {over} of {n}");
                assert_eq!(test.verdict(n - 1, over), Verdict::Undecided, "p{percent} {over}");
                assert_eq!(test.more(over, over), Some(n - over), "p{percent} {over}");
                assert_eq!(test.more(n - 5, over), Some(5));
            }
        }
    }

    #[test]
    fn bound_is_missed_once_so_many_over_would_be_chance_in_a_hundred() {
        let test = test(90.0, Rule::Binomial);
        // Of two requests both over: 0.1^2 is just 1 %.
        assert_eq!(test.verdict(1, 1), Verdict::Undecided);
        assert_eq!(test.verdict(3, 3), Verdict::Missed);
        assert_eq!(test.verdict(100, 10), Verdict::Undecided);
        assert_eq!(test.verdict(100, 19), Verdict::Missed);
        assert_eq!(test.verdict(0, 0), Verdict::Undecided);
    }

    #[test]
    fn sequential_bound_takes_more_requests_than_a_planned_number() {
        for percent in [50.0, 90.0, 99.0] {
            let more = |rule| test(percent, rule).more(0, 0).unwrap();
            let (planned, looked_at) = (more(Rule::Binomial), more(Rule::Sequential));
            assert!(planned < looked_at && looked_at < 3 * planned, "{planned} {looked_at}");
        }
    }

    /// The evidence by another road: the integral by Simpson's rule.
    #[test]
    fn evidence_is_the_integral_of_its_definition() {
        for (n, over) in [(10_u64, 0_u64), (40, 3), (40, 9), (200, 30), (200, 8)] {
            let q: f64 = 0.1;
            let likelihood = |x: f64| {
                x.powi(i32::try_from(over).unwrap())
                    * (1.0 - x).powi(i32::try_from(n - over).unwrap())
            };
            let integral = |from: f64, to: f64| {
                let steps = 2_000;
                let h = (to - from) / f64::from(steps);
                let sum: f64 = (0..=steps)
                    .map(|i| {
                        let weight = if i == 0 || i == steps {
                            1.0
                        } else if i % 2 == 1 {
                            4.0
                        } else {
                            2.0
                        };
                        weight * likelihood(from + h * f64::from(i))
                    })
                    .sum();
                sum * h / 3.0
            };
            let test = test(90.0, Rule::Sequential);
            for (evidence, (from, to)) in
                [(test.evidence_for(n, over), (0.0, q)), (test.evidence_against(n, over), (q, 1.0))]
            {
                let expected = integral(from, to) / (to - from) / likelihood(q);
                assert!((evidence / expected - 1.0).abs() < 1e-6, "{evidence} {expected}");
            }
        }
    }

    /// Share of `runs` in which requests over with probability `share` ever lead to `wrong`.
    fn wrongly(test: Test, share: f64, wrong: Verdict, runs: u32) -> f64 {
        let mut generator = ChaCha8Rng::seed_from_u64(11);
        let mut count = 0;
        for _ in 0..runs {
            let mut over = 0;
            for n in 1..=300 {
                over += u64::from(generator.random_bool(share));
                if test.verdict(n, over) == wrong {
                    count += 1;
                    break;
                }
            }
        }
        f64::from(count) / f64::from(runs)
    }

    #[test]
    fn sequential_verdict_is_wrong_as_seldom_as_promised_though_looked_at_after_every_request() {
        let (runs, error) = (800, 0.05);
        // Three standard deviations of the simulation itself.
        let slack = 3.0 * (error * (1.0 - error) / f64::from(runs)).sqrt();
        for wrong in [Verdict::Met, Verdict::Missed] {
            let of = |rule| wrongly(Test { allowed: 0.1, error, rule }, 0.1, wrong, runs);
            let (sequential, planned) = (of(Rule::Sequential), of(Rule::Binomial));
            assert!(sequential <= error + slack, "{wrong:?}: {sequential}");
            // What the sequential bound is for.
            assert!(planned > 2.0 * error, "{wrong:?}: {planned}");
        }
    }

    #[test]
    fn clear_cases_are_decided_soon() {
        let test = test(90.0, Rule::Sequential);
        assert!((1..100).any(|n| test.verdict(n, 0) == Verdict::Met));
        assert!((1..10).any(|n| test.verdict(n, n) == Verdict::Missed));
        assert_eq!(test.verdict(1_000_000, 50_000), Verdict::Met);
        assert_eq!(test.verdict(1_000_000, 150_000), Verdict::Missed);
        assert_eq!(test.verdict(1_000_000, 100_000), Verdict::Undecided);
    }

    #[test]
    fn hundred_thousand_looks_are_no_burden() {
        let test = test(99.0, Rule::Sequential);
        assert!((1..2_000).all(|n| test.verdict(50 * n, n / 2) == Verdict::Undecided));
    }
}
