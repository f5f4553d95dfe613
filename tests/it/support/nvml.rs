//! A stand-in for libnvidia-ml, compiled from C where it is needed. The
//! program under test loads it as it would the driver's own.

use std::path::Path;
use std::process::Command;

/// Compiles the library into `folder`, under the name that the driver's has.
pub fn build(folder: &Path) {
    let source = folder.join("fake_nvml.c");
    std::fs::write(&source, include_str!("nvml/fake_nvml.c")).unwrap();
    compile(&source, &folder.join("libnvidia-ml.so.1"));
}

/// Compiles a C file into a library that a program can load.
pub fn compile(source: &Path, library: &Path) {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(compiler)
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(library)
        .arg(source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Has `command` find the library in `folder` before any other.
pub fn preload(command: &mut Command, folder: &Path) {
    let mut path = folder.as_os_str().to_owned();
    if let Some(others) = std::env::var_os("LD_LIBRARY_PATH") {
        path.push(":");
        path.push(others);
    }
    command.env("LD_LIBRARY_PATH", path);
}
