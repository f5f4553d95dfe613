//! What the benches of the embedded engine share: how long each may take, which
//! model, candle's own beside it, and the floor of the machine that its numbers are
//! held against.

#![allow(dead_code, reason = "every bench takes its share of it")]

pub mod floor;
pub mod model;
pub mod stock;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};

/// A group whose benchmarks are measured for `seconds` each, or ten iterations
/// where those take longer: all benches together are done in ten minutes on
/// two processors.
pub fn group<'a>(c: &'a mut Criterion, name: &str, seconds: f64) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_secs_f64(seconds / 3.0))
        .measurement_time(Duration::from_secs_f64(seconds));
    group
}
