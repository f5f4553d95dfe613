//! How long a step takes: a function of its work alone.

use serde::{Deserialize, Serialize};

use super::fit::Coefficients;
use super::roofline::Roofline;
use crate::infer::scheduler::StepWork;

/// A model of the duration of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepTime {
    /// What a GPU card allows.
    Roofline(Roofline),
    /// A line through measured steps.
    Fitted(Coefficients),
}

/// Where step times come from, as `--json` tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StepTimeSource {
    /// A GPU card's peaks and shares of them.
    Roofline {
        /// The card, its sources included.
        gpu: String,
        /// Where its peaks come from.
        source: String,
        /// Peak bandwidth in 10^9 bytes a second.
        bandwidth_gb_per_s: f64,
        /// Share of it that is assumed.
        bandwidth_efficiency: f64,
        /// Peak throughput in 10^12 operations a second.
        tflop_per_s: f64,
        /// Share of it that is assumed.
        compute_efficiency: f64,
        /// Milliseconds of every step beside reading and multiplying.
        overhead_ms: f64,
        /// Bytes of weights that a step reads.
        weight_bytes: u64,
        /// Bytes of K and V of a token.
        kv_bytes_per_token: u64,
    },
    /// Steps that were measured.
    Fitted {
        /// The run that they are from.
        run: String,
        /// The engine in it.
        engine: String,
        /// Steps that the coefficients were fitted to.
        num_steps: u64,
        /// Coefficients in microseconds.
        coefficients: Coefficients,
        /// Sum of the predicted durations of these steps over the sum of the measured.
        predicted_over_measured: f64,
        /// Mean distance of predicted and measured duration, as a share of the mean duration.
        mean_error: f64,
    },
    /// All the same, whatever they compute.
    Equal {
        /// What each takes, in milliseconds.
        step_ms: f64,
        /// Why no more is known of them.
        reason: String,
    },
}

impl StepTime {
    /// Steps of `step_ms` milliseconds, whatever they compute.
    #[must_use]
    pub fn equal(step_ms: f64) -> Self {
        Self::Fitted(Coefficients { step_us: step_ms * 1e3, ..Coefficients::default() })
    }

    /// Nanoseconds that a step of `work` takes, at least one: time goes on.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a step is neither negative nor longer than 2^63 ns; the cast saturates"
    )]
    pub fn nanos(&self, work: &StepWork) -> u64 {
        let seconds = match self {
            Self::Roofline(roofline) => roofline.seconds(work),
            Self::Fitted(coefficients) => coefficients.micros(work) / 1e6,
        };
        ((seconds * 1e9).round() as u64).max(1)
    }
}
