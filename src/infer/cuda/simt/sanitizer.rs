//! Tests run again in a process of their own whose kernels are compiled with
//! the address sanitizer: every access past a buffer ends it.

use std::process::{Command, Output};

/// Set in the process that is watched.
const WATCHED: &str = "YARDSTICK_SIMT_SANITIZER";

const FLAGS: [&str; 3] = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"];

/// Flags that this process compiles kernels with.
pub(super) fn flags() -> &'static [&'static str] {
    if std::env::var_os(WATCHED).is_some() { &FLAGS } else { &[] }
}

/// Asserts that the sanitizer finds nothing in the test of this path.
pub(in crate::infer::cuda) fn assert_clean(test: &str) {
    let output = sanitized(test);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Asserts that the test of this path, which plants one, accesses memory past a buffer.
pub(in crate::infer::cuda) fn assert_overflows(test: &str) {
    let output = sanitized(test);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("heap-buffer-overflow"), "{text}");
}

/// Runs the test of this path, such as `infer::cuda::kernels::rms_norm::tests::NAME`,
/// ignored ones too, under the sanitizer.
fn sanitized(test: &str) -> Output {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let runtime = |name: &str| {
        let found = Command::new(&compiler).arg(format!("-print-file-name={name}")).output();
        String::from_utf8(found.unwrap().stdout).unwrap().trim().to_owned()
    };
    // The runtime must be there before the first allocation, and ours is not
    // the program it was linked into.
    let preload = [runtime("libasan.so"), runtime("libubsan.so")].join(" ");
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(WATCHED, "1")
        .env("LD_PRELOAD", preload)
        // Fibers jump between stacks, and test harnesses leak.
        .env("ASAN_OPTIONS", "detect_stack_use_after_return=0:detect_leaks=0")
        .output()
        .unwrap()
}
