//! Headless Chromium, where it is installed.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a browser may be.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];

/// A browser, or `None` with a printed reason. CI and `YARDSTICK_REQUIRE_BROWSER` insist on one.
pub fn find_or_skip() -> Option<PathBuf> {
    let found = find();
    if found.is_none() {
        let required = std::env::var_os("YARDSTICK_REQUIRE_BROWSER").is_some()
            || std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!required, "no browser found, and CI or YARDSTICK_REQUIRE_BROWSER asks for one");
        eprintln!("skipped: none of {NAMES:?} is installed");
    }
    found
}

/// The page's DOM after its scripts have run.
pub fn dump(browser: &Path, page: &Path, width: u32) -> String {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--virtual-time-budget=10000",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--window-size={width},900"))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let files = NAMES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    files.into_iter().find(|file| file.is_file())
}
