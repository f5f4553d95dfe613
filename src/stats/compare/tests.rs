//! Claims about whole comparisons: how often they are right on data whose truth
//! is known, and what they do not depend on.

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Normal};

use super::bootstrap::RatioInterval;
use super::cells::{Compared, Measured, Question, compare_engines};
use super::comparison::{Arm, Contender, Terms, compare};
use super::metric::Better;
use super::noise::NoiseSource;
use super::sample::Sample;
use super::sample::tests::sample;
use super::verdict::decide;
use super::*;
use crate::record::{CaseRecord, RequestRecord};
use crate::stats::case::tests::{failed, record, request};
use crate::stats::case::{self, CaseRequests};
use crate::stats::summary::Invalid;
use crate::stats::warnings::WarningClass;

/// A finished comparison with this interval, of engines `a` and `b`.
pub(crate) fn comparison(
    metric: &str,
    experiment: &str,
    concurrency: u32,
    bounds: Option<(f64, f64)>,
) -> Comparison {
    let arm = |engine: &str, value| Arm {
        engine: engine.to_owned(),
        value,
        rounds: 8,
        n: 80,
        noise: None,
    };
    let metric: Metric = metric.parse().unwrap();
    let ratio = bounds.map_or(1.0, |(low, high)| (low * high).sqrt());
    Comparison {
        experiment: experiment.to_owned(),
        concurrency,
        metric,
        common_window: false,
        unit: metric.unit().to_owned(),
        better: metric.better(),
        base: arm("a", 10.0),
        candidate: arm("b", 10.0 * ratio),
        design: Design::Paired,
        ratio,
        interval: bounds.map(|(low, high)| RatioInterval { level: 0.95, low, high }),
        p: 0.01,
        smallest_p: 0.01,
        margin: MARGIN,
        verdict: Verdict::Undecided,
        winner: None,
        reason: "one round".to_owned(),
    }
}

fn contender(engine: &str, sample: Sample) -> Contender<'_> {
    Contender { engine, sample, again: None, survivors: None }
}

fn compared(base: &Sample, candidate: &Sample, design: Design) -> Comparison {
    let terms = Terms {
        experiment: "concurrent-warm",
        concurrency: 10,
        metric: Metric::TTFT_P50,
        common_window: false,
        design,
        margin: MARGIN,
    };
    let (base, candidate) = (contender("a", base.clone()), contender("b", candidate.clone()));
    compare(&base, &candidate, &terms).unwrap()
}

/// Rounds of `n` requests, each round at a level of its own; for `n` = 1, the rounds' rates.
fn noisy(rng: &mut ChaCha8Rng, levels: &[f64], n: usize, scale: f64) -> Vec<Vec<f64>> {
    let (of_round, of_request) = (Normal::new(0.0, 0.03).unwrap(), Normal::new(0.0, 0.1).unwrap());
    levels
        .iter()
        .map(|level| {
            let level = scale * level * f64::exp(of_round.sample(rng));
            if n == 1 {
                return vec![level];
            }
            (0..n).map(|_| level * f64::exp(of_request.sample(rng))).collect()
        })
        .collect()
}

#[test]
fn interval_holds_one_in_about_95_of_100_comparisons_of_an_engine_with_itself() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for design in [Design::Paired, Design::Unpaired] {
        for rounds in [4, 6, 10] {
            for n in [1, 5] {
                let (mut held, mut different) = (0, 0);
                let trials = 40;
                for _ in 0..trials {
                    let levels = vec![50.0; rounds];
                    let a = sample(&noisy(&mut rng, &levels, n, 1.0), 0.5);
                    let b = sample(&noisy(&mut rng, &levels, n, 1.0), 0.5);
                    let found = compared(&a, &b, design);
                    let interval = found.interval.unwrap();
                    held += u32::from(interval.low <= 1.0 && 1.0 <= interval.high);
                    different += u32::from(found.verdict == Verdict::Different);
                }
                let what = format!("{design:?}, {rounds} rounds of {n}");
                assert!(held * 100 >= trials * 85, "{what}: {held} of {trials} hold 1");
                assert!(different * 100 <= trials * 10, "{what}: {different} said to be different");
            }
        }
    }
}

#[test]
fn difference_of_a_fifth_is_found_with_eight_rounds() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for (design, n) in
        [(Design::Paired, 1), (Design::Paired, 10), (Design::Unpaired, 1), (Design::Unpaired, 10)]
    {
        let levels = vec![50.0; 8];
        let found = (0..40).filter(|_| {
            let a = sample(&noisy(&mut rng, &levels, n, 1.0), 0.5);
            let b = sample(&noisy(&mut rng, &levels, n, 1.2), 0.5);
            let found = compared(&a, &b, design);
            found.verdict == Verdict::Different && found.winner == Some(Side::Base)
        });
        assert!(found.count() >= 38, "{design:?} {n}");
    }
}

#[test]
fn drift_that_hits_both_arms_of_a_pair_is_no_difference() {
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    let levels: Vec<f64> = (0..8).map(|i| 50.0 * (1.0 + f64::from(i) / 4.0)).collect();
    let different = (0..60).filter(|_| {
        let a = sample(&noisy(&mut rng, &levels, 10, 1.0), 0.5);
        let b = sample(&noisy(&mut rng, &levels, 10, 1.0), 0.5);
        compared(&a, &b, Design::Paired).verdict == Verdict::Different
    });
    assert!(different.count() <= 3);
    // Equal but for the drift, which is threefold: still the same.
    let rows: Vec<Vec<f64>> = levels.iter().map(|level| vec![*level]).collect();
    let found = compared(&sample(&rows, 0.5), &sample(&rows, 0.5), Design::Paired);
    assert_eq!((found.verdict, found.ratio, found.p), (Verdict::Same, 1.0, 1.0));
}

#[test]
fn quiet_engines_that_do_not_differ_are_the_same() {
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    let quiet = |rng: &mut ChaCha8Rng| -> Sample {
        let rows: Vec<Vec<f64>> =
            (0..8).map(|_| (0..10).map(|_| rng.random_range(99.5..100.5)).collect()).collect();
        sample(&rows, 0.5)
    };
    let (a, b) = (quiet(&mut rng), quiet(&mut rng));
    for design in [Design::Paired, Design::Unpaired] {
        let found = compared(&a, &b, design);
        assert_eq!(found.verdict, Verdict::Same, "{found:?}");
        assert_eq!(found.winning_engine(), None);
    }
}

#[test]
fn one_round_each_is_undecided_unless_it_is_one_and_the_same() {
    let (a, b) = (sample(&[vec![10.0, 11.0]], 0.5), sample(&[vec![20.0, 21.0]], 0.5));
    let found = compared(&a, &b, Design::Paired);
    assert_eq!((found.verdict, found.interval), (Verdict::Undecided, None));
    assert!(found.reason.starts_with("one round says nothing"), "{}", found.reason);
    let itself = compared(&a, &a, Design::Itself);
    assert_eq!((itself.verdict, itself.ratio, itself.p), (Verdict::Same, 1.0, 1.0));
}

#[test]
fn difference_within_the_measured_noise_floor_is_undecided() {
    let rows = |scale: f64| -> Sample {
        let rows: Vec<Vec<f64>> =
            (0..8).map(|i| vec![scale * (50.0 + f64::from(i) / 10.0)]).collect();
        sample(&rows, 0.5)
    };
    let mut base = contender("a", rows(1.0));
    // Against itself, in the same rounds, it was a tenth slower.
    base.again = Some(rows(1.1));
    let candidate = contender("b", rows(1.06));
    let terms = Terms {
        experiment: "concurrent-warm",
        concurrency: 1,
        metric: Metric::TTFT_P50,
        common_window: false,
        design: Design::Paired,
        margin: MARGIN,
    };
    let found = compare(&base, &candidate, &terms).unwrap();
    assert_eq!(found.base.noise.unwrap().source, NoiseSource::Measured);
    assert_eq!(found.verdict, Verdict::Undecided);
    assert!(found.reason.contains("noise floor"), "{}", found.reason);
    base.again = None;
    assert_eq!(compare(&base, &candidate, &terms).unwrap().verdict, Verdict::Different);
}

/// Rounds of two engines, `second` of which takes `scale` times as long; requests by case.
fn run(rounds: u32, scale: u64) -> (Vec<CaseRecord>, Vec<Vec<RequestRecord>>) {
    let (mut records, mut requests) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for (engine, scale) in [("first", 10), ("second", scale)] {
            let mut record = record(engine, "concurrent-warm", 2);
            record.round = round;
            records.push(record);
            let at = |i: u64| [10 + i + u64::from(round % 2), 20 + i, 40 + i].map(|ms| ms * scale);
            requests.push((0..2).map(|i| request(i, 0, &at(u64::from(i)))).collect());
        }
    }
    (records, requests)
}

fn in_run(
    (records, requests): &(Vec<CaseRecord>, Vec<Vec<RequestRecord>>),
    metrics: &[Metric],
    spoil: impl Fn(&mut crate::stats::summary::CaseSummary),
) -> Compared {
    let grouped: Vec<_> = (0..)
        .zip(records.iter().zip(requests))
        .map(|(case, (record, requests))| CaseRequests {
            case,
            record,
            requests: requests.iter().collect(),
        })
        .collect();
    let mut cases: Vec<_> = grouped.iter().map(|group| case::summarise(group, &[])).collect();
    cases.iter_mut().for_each(spoil);
    let measured = Measured::new(&grouped, &cases);
    compare_engines(&measured, None, &Question { metrics, also: &[], margin: MARGIN })
}

#[test]
fn engines_of_a_run_are_compared_with_the_first_one() {
    let found = in_run(&run(8, 13), &[], |_| {});
    let words: Vec<_> = found.comparisons.iter().map(|c| c.metric.to_string()).collect();
    assert_eq!(words, ["ttft_p50", "tpot_p50", "e2el_p50", "output_tokens_per_s"]);
    for comparison in &found.comparisons {
        assert_eq!(comparison.verdict, Verdict::Different, "{comparison:?}");
        assert_eq!(comparison.winning_engine(), Some("first"));
        assert_eq!((comparison.base.rounds, comparison.design), (8, Design::Paired));
    }
    assert_eq!(found.not_compared, []);
}

#[test]
fn invalid_rounds_are_never_in_a_sample_and_are_listed() {
    let found = in_run(&run(8, 13), &[Metric::TTFT_P50], |case| {
        let reason = match (case.engine.as_str(), case.round) {
            ("first", 5) => "3 of 64 tokens",
            ("second", 1) => "it did not reach its end",
            _ => return,
        };
        let reason = reason.to_owned();
        case.invalid.push(Invalid { class: WarningClass::ShortOutputs, reason });
    });
    let comparison = &found.comparisons[0];
    assert_eq!((comparison.base.rounds, comparison.candidate.rounds), (6, 6));
    assert_eq!(comparison.base.n, 12);
    let listed: Vec<_> = found
        .not_compared
        .iter()
        .map(|n| (n.engine.as_str(), n.round, n.reason.as_str()))
        .collect();
    assert_eq!(
        listed,
        [
            ("first", Some(5), "invalid: 3 of 64 tokens"),
            ("second", Some(1), "invalid: it did not reach its end")
        ]
    );
    let all = in_run(&run(8, 13), &[Metric::TTFT_P50], |case| {
        if case.engine == "second" {
            let reason = "other prompts".to_owned();
            case.invalid.push(Invalid { class: WarningClass::UnequalPrompts, reason });
        }
    });
    assert_eq!(all.comparisons, []);
    assert!(all.not_compared.iter().any(|n| n.metric.is_some() && n.round.is_none()));
}

#[test]
fn survivors_are_shown_and_not_judged() {
    let mut run = run(8, 13);
    run.1[3][1] = failed(1, 0);
    let found = in_run(&run, &[Metric::TTFT_P50], |_| {});
    let comparison = &found.comparisons[0];
    assert_eq!((comparison.verdict, comparison.interval), (Verdict::Undecided, None));
    assert_eq!(comparison.reason, "1 of 16 requests of second failed: the rest are survivors");
}

#[test]
fn metric_that_a_load_has_not_is_listed_with_its_reason() {
    let found = in_run(&run(2, 13), &[Metric::COLD_TTFT, "itl_p90".parse().unwrap()], |_| {});
    assert_eq!(found.comparisons, []);
    let reasons: Vec<_> = found.not_compared.iter().map(|n| n.reason.as_str()).collect();
    assert_eq!(reasons, ["the engine was not cold", "n too small: 8 < 29"]);
}

#[test]
fn second_arms_give_the_noise_floor_and_are_not_compared() {
    let mut run = run(8, 13);
    for round in 0..8 {
        let mut again = record("first", "concurrent-warm", 2);
        (again.round, again.again) = (round, true);
        run.0.push(again);
        run.1.push(vec![request(0, 0, &[101, 205, 400]), request(1, 0, &[111, 211, 411])]);
    }
    let found = in_run(&run, &[Metric::TTFT_P50], |_| {});
    assert_eq!(found.comparisons.len(), 1);
    let comparison = &found.comparisons[0];
    assert_eq!(comparison.base.noise.unwrap().source, NoiseSource::Measured);
    assert_eq!(comparison.candidate.noise.unwrap().source, NoiseSource::Resampled);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn units_do_not_matter_and_swapped_arms_have_the_inverse_ratio(
        a in proptest::collection::vec(proptest::collection::vec(5.0_f64..20.0, 3), 2..8),
        scale in 0.001_f64..1000.0,
        shift in 0.5_f64..2.0,
        paired in any::<bool>(),
    ) {
        let design = if paired { Design::Paired } else { Design::Unpaired };
        let times = |factor: f64| -> Vec<Vec<f64>> {
            a.iter().map(|row| row.iter().map(|value| value * factor).collect()).collect()
        };
        let mut other = times(shift);
        other.rotate_left(1);
        let (base, candidate) = (sample(&a, 0.5), sample(&other, 0.5));
        let there = compared(&base, &candidate, design);
        let scaled: Vec<Vec<f64>> =
            other.iter().map(|row| row.iter().map(|value| value * scale).collect()).collect();
        let scaled = compared(&sample(&times(scale), 0.5), &sample(&scaled, 0.5), design);
        prop_assert!((scaled.ratio / there.ratio - 1.0).abs() < 1e-9);
        prop_assert!((scaled.p - there.p).abs() < 1e-9);
        let back = compared(&candidate, &base, design);
        prop_assert!((back.ratio * there.ratio - 1.0).abs() < 1e-9);
        prop_assert!((back.p - there.p).abs() < 1e-9);
        if paired {
            let (there, back) = (there.interval.unwrap(), back.interval.unwrap());
            prop_assert!((there.low * back.high - 1.0).abs() < 1e-6);
        }
        prop_assert!(there.p >= there.smallest_p - 1e-12);
    }
}

#[test]
fn direction_decides_who_is_better() {
    let evidence = |better| super::verdict::Evidence {
        rounds: (8, 8),
        design: Design::Paired,
        ratio: 0.8,
        interval: Some(RatioInterval { level: 0.95, low: 0.75, high: 0.85 }),
        p: 0.01,
        noise: None,
        margin: MARGIN,
        better,
    };
    assert_eq!(decide(&evidence(Better::Lower)).winner, Some(Side::Candidate));
    assert_eq!(decide(&evidence(Better::Higher)).winner, Some(Side::Base));
}

#[test]
fn answers_of_different_length_are_compared_over_their_common_beginnings() {
    let mut run = run(8, 10);
    // The second engine, as fast as the first, ends after two of three tokens.
    for request in run.1.iter_mut().skip(1).step_by(2).flatten() {
        request.events.pop();
        request.num_output_tokens = Some(2);
        request.done_ns = request.events[1].0;
    }
    let found = in_run(&run, &["e2el_p50".parse().unwrap(), Metric::TTFT_P50], |_| {});
    let [e2el, ttft] = &found.comparisons[..] else { panic!("{found:?}") };
    assert!(e2el.common_window && !ttft.common_window);
    assert!((e2el.ratio - 1.0).abs() < 1e-9, "{e2el:?}");
}
