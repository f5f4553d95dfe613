//! Calls into the tokenizers library on vocabularies and texts from outside. It
//! indexes and unwraps where a file can make it panic; through here that is an
//! error like its others, and leaves no line on the terminal.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::infer::error::panic_message;

thread_local! {
    /// Whether this thread is inside a guarded call.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What `call` returns, or why it failed.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    quiet_while_guarded();
    let outer = GUARDED.replace(true);
    // What the library keeps to itself are caches, which it takes up again as they are.
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(outer);
    match result {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(panic) => Err(format!("the tokenizers library panicked: {}", panic_message(&*panic))),
    }
}

/// Has the panic hook pass over panics that are caught here. Those of other
/// threads, and of this one before and after, go to the hook that was there.
fn quiet_while_guarded() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                previous(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_is_an_error_and_the_guard_ends_with_the_call() {
        let nested = guarded(|| {
            assert!(guarded::<()>(|| panic!("{} of them", 3)).unwrap_err().ends_with("3 of them"));
            assert!(GUARDED.get(), "the outer call goes on");
            Ok(7)
        });
        assert_eq!(nested, Ok(7));
        assert!(guarded::<()>(|| panic!("as ordered")).unwrap_err().ends_with("as ordered"));
        assert!(guarded::<()>(|| Err("no".into())).unwrap_err().ends_with("no"));
        assert!(!GUARDED.get());
    }

    #[test]
    fn panics_outside_of_a_call_reach_the_hook() {
        assert_eq!(
            guarded(|| Ok(std::thread::spawn(|| GUARDED.get()).join())).unwrap().ok(),
            Some(false)
        );
    }
}
