//! The architecture's invariants, as far as a test can hold them.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, tests not counted: readers hold one idea at a time.
const MAX_LINES: usize = 400;

struct Source {
    /// Path below the crate's root, with `/`.
    path: String,
    /// The code before its unit tests.
    code: String,
}

fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    walk(&root.join(folder), &mut paths);
    paths.sort();
    let source = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("\n#[cfg(test)]").next().unwrap_or_default().to_owned();
        let path = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
        Source { path, code }
    };
    paths.into_iter().map(source).collect()
}

fn walk(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// Lines of code that contain `needle`, comments left out.
fn lines_with<'a>(source: &'a Source, needle: &str) -> Vec<&'a str> {
    let code = source.code.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.filter(|line| line.contains(needle)).collect()
}

/// Fails naming every file under one of `folders` that has one of `needles` in its code.
fn refuse(folders: &[&str], needles: &[&str], except: &[&str]) {
    let mut found = Vec::new();
    for source in sources("src") {
        let inside = folders.iter().any(|folder| source.path.starts_with(folder));
        if !inside || except.iter().any(|exception| source.path.starts_with(exception)) {
            continue;
        }
        for needle in needles {
            for line in lines_with(&source, needle) {
                found.push(format!("{}: {}", source.path, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{needles:?} must not appear here:\n{}", found.join("\n"));
}

#[test]
fn only_the_clock_reads_time() {
    refuse(&["src/"], &["Instant::now", "SystemTime::now", "Timestamp::now"], &["src/clock.rs"]);
}

/// The wall clock steps: it labels runs and seeds, and no duration comes of it.
#[test]
fn the_wall_clock_is_read_for_labels_only() {
    let labels = [
        "src/clock.rs",
        "src/cli/label.rs",
        "src/infer/tokenizer/template.rs",
        "src/server/openai.rs",
    ];
    let needles = ["SystemTime", "Clock::wall", ".duration_since(", ".elapsed()"];
    refuse(&["src/"], &needles, &labels);
}

#[test]
fn infer_knows_no_http_plan_or_report() {
    let mut found = Vec::new();
    for source in sources("src/infer") {
        for line in lines_with(&source, "crate::") {
            let allowed = ["crate::infer", "crate::clock", "crate::units"];
            if !allowed.iter().any(|module| line.contains(module)) {
                found.push(format!("{}: {}", source.path, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "infer imports only clock and units:\n{}", found.join("\n"));
}

#[test]
fn block_accounting_and_scheduling_know_no_tensors() {
    refuse(
        &[
            "src/infer/kv/block_manager",
            "src/infer/kv/block_table",
            "src/infer/kv/free_list",
            "src/infer/kv/prefix",
            "src/infer/kv/sizing",
            "src/infer/scheduler",
        ],
        &["candle"],
        &[],
    );
}

#[test]
fn statistics_reports_sizing_simulation_and_expansion_are_pure() {
    let folders = ["src/stats", "src/report", "src/simulation", "src/sizing", "src/plan/expand.rs"];
    refuse(&folders, &["std::fs", "File::", "Clock", "println!", "std::env", "std::net"], &[]);
}

#[test]
fn unsafe_stays_where_it_is_argued() {
    let allowed =
        ["src/infer/ops", "src/infer/weights", "src/infer/cuda", "src/infer/allocator.rs"];
    refuse(&["src/"], &["unsafe {", "unsafe fn", "unsafe impl"], &allowed);
}

#[test]
fn only_the_command_line_prints() {
    refuse(&["src/"], &["println!(", "eprintln!(", "print!("], &["src/cli"]);
}

#[test]
fn every_file_says_what_it_owns_and_holds_one_idea() {
    let mut found = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")).chain(sources("benches")) {
        if !source.code.starts_with("//!") {
            found.push(format!("{} does not open with //!", source.path));
        }
        let lines = source.code.lines().count();
        if source.path.starts_with("src") && lines > MAX_LINES {
            found.push(format!("{} has {lines} lines, at most {MAX_LINES}", source.path));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_direct_dependency_has_its_reason() {
    let manifest = include_str!("../../Cargo.toml");
    let mut in_dependencies = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies");
        } else if in_dependencies && line.contains('=') && !line.contains('#') {
            found.push(line);
        }
    }
    assert!(found.is_empty(), "without a reason:\n{}", found.join("\n"));
}
