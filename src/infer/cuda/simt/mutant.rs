//! Tests of the tests: a kernel with a planted fault must not pass them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::library;

/// Whether `test` passes with the `nth` occurrence of `from`, from zero, in the
/// file `name` of `kernels/` replaced by `to`.
///
/// # Panics
/// When there are not so many occurrences, or it does not compile.
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
    library::with_replaced(name, mutant, || match catch_unwind(AssertUnwindSafe(test)) {
        Ok(()) => true,
        Err(panic) => {
            if let Some(library::NotCompiled(errors)) = panic.downcast_ref() {
                panic!("{errors}");
            }
            false
        }
    })
}
