//! Tests of the tests: a kernel with a planted fault must not pass them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::library;

/// Whether `test` passes with the `nth` occurrence of `from`, from zero, in the
/// file `name` of `kernels/` replaced by `to`.
///
/// # Panics
/// When there are not so many occurrences.
pub(in crate::infer::cuda) fn survives(
    name: &str,
    from: &str,
    nth: usize,
    to: &str,
    test: impl FnOnce(),
) -> bool {
    let text = library::text(name);
    let Some((at, _)) = text.match_indices(from).nth(nth) else {
        panic!("{name} has no {from} number {nth}");
    };
    let mutant = [&text[..at], to, &text[at + from.len()..]].concat();
    library::with_replaced(name, mutant, || catch_unwind(AssertUnwindSafe(test)).is_ok())
}
