//! A line through measured steps: non-negative least squares over the counts of
//! their work. Knows no file and no engine.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::infer::scheduler::StepWork;

/// Terms of the line.
const TERMS: usize = 5;
/// With fewer steps a line through five counts says nothing.
pub const MIN_STEPS: usize = 20;
/// A pivot below this share of its column is rounding: the counts depend on each other.
const SINGULAR: f64 = 1e-9;

/// A measured step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeasuredStep {
    /// What it computed.
    pub work: StepWork,
    /// How long it took, until the next one could begin, in microseconds.
    pub micros: f64,
}

/// Microseconds of a step, by what it computes. None is negative.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coefficients {
    /// Of every step: weights are read once, whatever it computes.
    pub step_us: f64,
    /// Of a token of a prompt.
    pub prefill_token_us: f64,
    /// Of a sequence that decodes.
    pub decode_us: f64,
    /// Of a token whose K and V a decoding sequence reads.
    pub decode_kv_token_us: f64,
    /// Of a pair of a prompt token and a token that it attends to.
    pub prefill_pair_us: f64,
}

impl Coefficients {
    /// Microseconds that a step of `work` takes.
    #[must_use]
    pub fn micros(&self, work: &StepWork) -> f64 {
        dot(&counts(work), &self.array())
    }

    const fn array(&self) -> [f64; TERMS] {
        [
            self.step_us,
            self.prefill_token_us,
            self.decode_us,
            self.decode_kv_token_us,
            self.prefill_pair_us,
        ]
    }
}

impl From<[f64; TERMS]> for Coefficients {
    fn from(values: [f64; TERMS]) -> Self {
        let [step_us, prefill_token_us, decode_us, decode_kv_token_us, prefill_pair_us] = values;
        Self { step_us, prefill_token_us, decode_us, decode_kv_token_us, prefill_pair_us }
    }
}

/// Coefficients and how well they reproduce the steps that they are from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// The line.
    pub coefficients: Coefficients,
    /// Steps it was fitted to.
    pub num_steps: usize,
    /// Sum of the predicted durations over the sum of the measured.
    pub predicted_over_measured: f64,
    /// Mean distance of predicted and measured duration, as a share of the mean duration.
    pub mean_error: f64,
}

/// Steps that no line goes through.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FitError {
    /// Too few.
    #[error(
        "{found} measured steps are too few to fit step times to: at least {MIN_STEPS} are needed"
    )]
    TooFew {
        /// How many there are.
        found: usize,
    },
    /// Of one kind alone.
    #[error("no measured step {0}: its cost cannot be told")]
    Lacks(&'static str),
    /// Durations that are no numbers, or all zero.
    #[error("measured steps took no time")]
    NoTime,
}

/// Fits the line of least squares among those without negative coefficients.
/// With five terms every choice of terms is tried: each is solved by its normal
/// equations, and the best of those that have no negative coefficient is the
/// solution (Lawson and Hanson 1974 search the same choices).
///
/// # Errors
/// [`FitError`] for too few steps, or steps all of one kind.
pub fn fit(steps: &[MeasuredStep]) -> Result<Fit, FitError> {
    if steps.len() < MIN_STEPS {
        return Err(FitError::TooFew { found: steps.len() });
    }
    if !steps.iter().any(|step| step.work.num_prefill_tokens > 0) {
        return Err(FitError::Lacks("computed a prompt"));
    }
    if !steps.iter().any(|step| step.work.num_decodes > 0) {
        return Err(FitError::Lacks("decoded"));
    }
    let measured: f64 = steps.iter().map(|step| step.micros).sum();
    if !(measured.is_finite() && measured > 0.0) {
        return Err(FitError::NoTime);
    }
    let normal = Normal::of(steps);
    let solutions = (1_usize..1 << TERMS).filter_map(|terms| normal.solve(terms));
    let squares = |coefficients: &Coefficients| -> f64 {
        let residual = |step: &MeasuredStep| step.micros - coefficients.micros(&step.work);
        steps.iter().map(residual).map(|residual| residual * residual).sum()
    };
    let best = solutions
        .map(|coefficients| (squares(&coefficients), coefficients))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    let Some((_, coefficients)) = best else { return Err(FitError::NoTime) };
    let predicted: f64 = steps.iter().map(|step| coefficients.micros(&step.work)).sum();
    let off = |step: &MeasuredStep| (step.micros - coefficients.micros(&step.work)).abs();
    Ok(Fit {
        coefficients,
        num_steps: steps.len(),
        predicted_over_measured: predicted / measured,
        mean_error: steps.iter().map(off).sum::<f64>() / measured,
    })
}

/// What a step's duration is a line over, in the order of the coefficients.
#[expect(clippy::cast_precision_loss, reason = "counts of a step are far below 2^52")]
const fn counts(work: &StepWork) -> [f64; TERMS] {
    [
        1.0,
        work.num_prefill_tokens as f64,
        work.num_decodes as f64,
        work.num_decode_kv_tokens as f64,
        work.num_prefill_pairs as f64,
    ]
}

fn dot(a: &[f64; TERMS], b: &[f64; TERMS]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The normal equations over counts that are scaled to at most 1.
struct Normal {
    matrix: [[f64; TERMS]; TERMS],
    right: [f64; TERMS],
    scale: [f64; TERMS],
}

impl Normal {
    fn of(steps: &[MeasuredStep]) -> Self {
        let mut scale = [0.0_f64; TERMS];
        for step in steps {
            for (scale, count) in scale.iter_mut().zip(counts(&step.work)) {
                *scale = scale.max(count);
            }
        }
        let (mut matrix, mut right) = ([[0.0; TERMS]; TERMS], [0.0; TERMS]);
        for step in steps {
            let mut row = counts(&step.work);
            for (count, scale) in row.iter_mut().zip(scale) {
                *count /= scale.max(1.0);
            }
            for i in 0..TERMS {
                right[i] += row[i] * step.micros;
                for j in 0..TERMS {
                    matrix[i][j] += row[i] * row[j];
                }
            }
        }
        Self { matrix, right, scale }
    }

    /// The least squares over the terms whose bits are set; `None` where they
    /// depend on each other or one would be negative.
    fn solve(&self, terms: usize) -> Option<Coefficients> {
        let chosen: Vec<usize> = (0..TERMS).filter(|term| terms >> term & 1 == 1).collect();
        let n = chosen.len();
        let mut lower = vec![vec![0.0; n]; n];
        let mut half = vec![0.0; n];
        // Cholesky and the forward substitution in one pass.
        for i in 0..n {
            for j in 0..=i {
                let known: f64 = (0..j).map(|k| lower[i][k] * lower[j][k]).sum();
                let rest = self.matrix[chosen[i]][chosen[j]] - known;
                lower[i][j] = if i == j {
                    let full = self.matrix[chosen[i]][chosen[i]];
                    (rest > SINGULAR * full).then(|| rest.sqrt())?
                } else {
                    rest / lower[j][j]
                };
            }
            let known: f64 = (0..i).map(|k| lower[i][k] * half[k]).sum();
            half[i] = (self.right[chosen[i]] - known) / lower[i][i];
        }
        let mut values = [0.0; TERMS];
        for i in (0..n).rev() {
            let known: f64 = (i + 1..n).map(|k| lower[k][i] * values[chosen[k]]).sum();
            let value = (half[i] - known) / lower[i][i];
            if !(value.is_finite() && value >= 0.0) {
                return None;
            }
            values[chosen[i]] = value;
        }
        for (value, scale) in values.iter_mut().zip(self.scale) {
            *value /= scale.max(1.0);
        }
        Some(values.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(prefill: usize, decodes: usize, kv: usize) -> StepWork {
        StepWork {
            num_prefill_tokens: prefill,
            num_decodes: decodes,
            num_decode_kv_tokens: kv,
            num_prefill_pairs: prefill * prefill.div_ceil(2),
            ..StepWork::default()
        }
    }

    /// Steps of every kind, whose durations are exactly those of `truth`.
    fn steps(truth: &Coefficients) -> Vec<MeasuredStep> {
        let works = (0..60).map(|i| match i % 3 {
            0 => step(7 + i * 5, i / 3, i * 11),
            1 => step(0, 1 + i / 4, 30 + i * i),
            _ => step(64 + i, 0, 0),
        });
        works.map(|work| MeasuredStep { work, micros: truth.micros(&work) }).collect()
    }

    #[test]
    fn kinds_that_are_missing_are_named() {
        let truth = Coefficients { step_us: 5.0, ..Coefficients::default() };
        let of = |keep: fn(&MeasuredStep) -> bool| {
            let steps: Vec<_> = steps(&truth).into_iter().filter(keep).collect();
            fit(&[steps.clone(), steps].concat()).unwrap_err().to_string()
        };
        assert!(of(|step| step.work.num_prefill_tokens == 0).contains("computed a prompt"));
        assert!(of(|step| step.work.num_decodes == 0).contains("decoded"));
        assert!(fit(&steps(&truth)[..5]).unwrap_err().to_string().contains("5 measured"));
    }

    #[test]
    fn terms_that_depend_on_each_other_are_no_obstacle() {
        // Every context is the same, so that decodes and their K and V go together.
        let truth = Coefficients { step_us: 100.0, decode_us: 3.0, ..Coefficients::default() };
        let works = (0..40).map(|i| if i % 2 == 0 { step(8, 0, 0) } else { step(0, i, i * 64) });
        let steps: Vec<_> =
            works.map(|work| MeasuredStep { work, micros: truth.micros(&work) }).collect();
        let found = fit(&steps).unwrap();
        assert!(found.mean_error < 1e-6, "{found:?}");
    }

    proptest! {
        #[test]
        fn exact_durations_give_their_coefficients_back(
            values in proptest::array::uniform5(0.0_f64..50.0),
        ) {
            let truth = Coefficients::from(values);
            prop_assume!(truth.step_us > 0.1);
            let found = fit(&steps(&truth)).unwrap();
            for (found, true_value) in found.coefficients.array().iter().zip(values) {
                prop_assert!((found - true_value).abs() < 1e-4 * (1.0 + true_value), "{found}");
            }
        }

        #[test]
        fn no_coefficient_is_negative_and_no_single_change_is_better(
            noise in proptest::collection::vec(0.0_f64..400.0, 60),
        ) {
            let truth = Coefficients { decode_us: 2.0, ..Coefficients::default() };
            let mut steps = steps(&truth);
            for (step, noise) in steps.iter_mut().zip(&noise) {
                step.micros += noise;
            }
            let squares = |c: &Coefficients| -> f64 {
                steps.iter().map(|s| (s.micros - c.micros(&s.work)).powi(2)).sum()
            };
            let found = fit(&steps).unwrap().coefficients;
            let least = squares(&found);
            for term in 0..TERMS {
                for change in [-1e-2, 1e-2] {
                    let mut values = found.array();
                    prop_assert!(values[term] >= 0.0);
                    values[term] += change;
                    if values[term] >= 0.0 {
                        prop_assert!(squares(&values.into()) >= least);
                    }
                }
            }
        }
    }
}
