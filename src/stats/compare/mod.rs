//! Two engines, or one engine before and after, under the same load over several
//! rounds: how they differ, how surely, and whether that is more than noise. The
//! round is the unit; `docs/METRICS.md`, "Comparisons", states the formulas.

pub mod across;
pub mod bootstrap;
pub mod cells;
pub mod comparison;
pub mod doubts;
pub mod gate;
pub mod metric;
pub mod noise;
pub mod permutation;
pub mod sample;
pub mod verdict;

#[cfg(test)]
pub(crate) mod tests;

pub use bootstrap::Design;
pub use comparison::Comparison;
pub use gate::Gate;
pub use metric::Metric;
pub use verdict::{Side, Verdict};

/// Half-width of sameness where nobody says another: 3 %.
pub const MARGIN: f64 = 0.03;
