//! `build.rs` with feature `cuda`, and `kernels/check`, over a stand-in for nvcc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use tempfile::TempDir;

/// The build script, compiled once.
static SCRIPT: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("build");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "-o"]).arg(&script).arg(source);
    assert!(command.status().unwrap().success());
    (folder, script)
});

/// A package with kernels `a` and `b`, the header `shared.cuh`, and others.
struct Package(TempDir);

impl Package {
    fn new() -> Self {
        let package = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(package.path("kernels/simt")).unwrap();
        fs::create_dir(package.path("out")).unwrap();
        for name in ["b.cu", "a.cu", "shared.cuh", "simt/simt.h", "README.md"] {
            package.write(&format!("kernels/{name}"), "as it was");
        }
        package
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn build(&self, settings: &[(&str, &str)]) -> Output {
        // The log is new for each build.
        let _ = fs::remove_file(self.path("log"));
        self.run(Command::new(&SCRIPT.1), settings)
    }

    fn run(&self, mut command: Command, settings: &[(&str, &str)]) -> Output {
        command
            .current_dir(self.0.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("CARGO_FEATURE_CUDA", "1")
            .env("OUT_DIR", self.path("out"))
            .env("NVCC", nvcc())
            .env("NVCC_LOG", self.path("log"))
            .envs(settings.iter().copied())
            .output()
            .unwrap()
    }

    /// Kernels that a successful build compiled, in order.
    fn compiled(&self, settings: &[(&str, &str)]) -> Vec<String> {
        let output = self.build(settings);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let mut sources: Vec<_> = log
            .lines()
            .filter_map(|line| line.split("kernels/").nth(1).map(str::to_owned))
            .collect();
        sources.sort();
        sources
    }

    /// `kernels/check` of this package.
    fn check(&self) -> Output {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let script = self.path("kernels/check");
        fs::copy(root.join("kernels/check"), &script).unwrap();
        fs::copy(root.join("build.rs"), self.path("build.rs")).unwrap();
        fs::create_dir_all(self.path("target/kernels")).unwrap();
        fs::copy(&SCRIPT.1, self.path("target/kernels/build")).unwrap();
        let mut command = Command::new("bash");
        command.arg(script);
        self.run(command, &[])
    }

    /// What cargo shows of a failed build as its own error, and below it.
    fn failure(&self, settings: &[(&str, &str)]) -> (String, String) {
        let output = self.build(settings);
        assert!(!output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let mut errors = text.lines().filter_map(|line| line.strip_prefix("cargo::error="));
        (errors.next().unwrap().to_owned(), String::from_utf8(output.stderr).unwrap())
    }
}

fn nvcc() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/build_script/nvcc")
}

#[test]
fn default_build_starts_no_compiler() {
    let output = Command::new(&SCRIPT.1).env_clear().output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "cargo::rerun-if-changed=build.rs\n");
}

#[test]
fn every_kernel_becomes_ptx_and_machine_code_of_the_gpus_that_nvcc_knows() {
    let package = Package::new();
    assert_eq!(package.compiled(&[]), ["a.cu", "b.cu"]);
    assert!(package.read("out/a.ptx").contains("-ptx -arch=compute_80"));
    let fatbin = package.read("out/a.fatbin");
    let expected = "arch=compute_80,code=[compute_80,sm_80,sm_86,sm_89,sm_90,sm_100,sm_120]";
    assert!(fatbin.contains(expected) && fatbin.trim_end().ends_with("out/a.ptx"), "{fatbin}");
    let table = package.read("out/images.rs");
    let (a, b) = (table.find("module: \"a\"").unwrap(), table.find("module: \"b\"").unwrap());
    assert!(a < b && !table.contains("simt"), "{table}");
}

#[test]
fn compute_capability_restricts_the_machine_code() {
    let package = Package::new();
    for (list, expected) in [("89", "[compute_80,sm_89]"), ("8.0, 9.0", "[compute_80,sm_80,sm_90]")]
    {
        package.compiled(&[("CUDA_COMPUTE_CAP", list)]);
        let fatbin = package.read("out/b.fatbin");
        assert!(fatbin.contains(expected), "{fatbin}");
    }
    for list in ["75", "89,", "sm_89"] {
        let (error, _) = package.failure(&[("CUDA_COMPUTE_CAP", list)]);
        assert!(error.contains("CUDA_COMPUTE_CAP") && error.contains(list), "{error}");
    }
}

#[test]
fn only_what_has_changed_is_compiled_again() {
    let package = Package::new();
    package.compiled(&[]);
    assert!(package.compiled(&[]).is_empty());
    package.write("kernels/b.cu", "as it is now");
    assert_eq!(package.compiled(&[]), ["b.cu"]);
    package.write("kernels/simt/simt.h", "as it is now");
    assert!(package.compiled(&[]).is_empty());
    package.write("kernels/shared.cuh", "as it is now");
    assert_eq!(package.compiled(&[]), ["a.cu", "b.cu"]);
    assert_eq!(package.compiled(&[("CUDA_COMPUTE_CAP", "90")]), ["a.cu", "b.cu"]);
    let newer = [("CUDA_COMPUTE_CAP", "90"), ("NVCC_RELEASE", "13.1")];
    assert_eq!(package.compiled(&newer), ["a.cu", "b.cu"]);
}

#[test]
fn what_a_failed_compilation_left_is_compiled_again() {
    let package = Package::new();
    package.compiled(&[]);
    package.write("kernels/b.cu", "FAILS");
    let (error, details) = package.failure(&[]);
    assert!(error.contains("kernels/b.cu"), "{error}");
    assert!(details.contains("b.cu(1): error: it fails"), "{details}");
    package.write("kernels/b.cu", "as it was");
    assert_eq!(package.compiled(&[]), ["b.cu"]);
}

#[test]
fn missing_compiler_is_named_with_its_remedy() {
    let package = Package::new();
    let (error, _) = package.failure(&[("NVCC", "/no/such/nvcc")]);
    assert!(error.contains("NVCC leads to no nvcc: /no/such/nvcc"), "{error}");
    assert!(error.contains("deploy/cuda-toolkit"), "{error}");
    let (error, _) = package.failure(&[("NVCC", ""), ("CUDA_HOME", "/no/toolkit")]);
    assert!(error.contains("CUDA_HOME leads to no nvcc: /no/toolkit/bin/nvcc"), "{error}");
    if !Path::new("/usr/local/cuda").exists() {
        let (error, _) = package.failure(&[("NVCC", ""), ("PATH", "/no/such/folder")]);
        assert!(error.contains("none on PATH") && error.contains("cuda-toolkit"), "{error}");
    }
}

#[test]
fn compiler_is_found_by_its_folder_and_on_the_path() {
    let package = Package::new();
    fs::create_dir_all(package.path("toolkit/bin")).unwrap();
    std::os::unix::fs::symlink(nvcc(), package.path("toolkit/bin/nvcc")).unwrap();
    let home = package.path("toolkit").to_string_lossy().into_owned();
    assert_eq!(package.compiled(&[("NVCC", ""), ("CUDA_PATH", &home)]), ["a.cu", "b.cu"]);
    let path = format!("{home}/bin:/usr/bin:/bin");
    assert!(package.compiled(&[("NVCC", ""), ("PATH", &path)]).is_empty());
}

#[test]
fn check_tables_every_kernel_and_fails_over_spills_and_warnings() {
    let package = Package::new();
    let output = package.check();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{table}{}", String::from_utf8_lossy(&output.stderr));
    let row = table.lines().find(|line| line.starts_with("kernel_b")).unwrap();
    assert_eq!(
        row.split_whitespace().collect::<Vec<_>>(),
        ["kernel_b", "74", "sm_90", "4352", "0"]
    );
    assert!(table.ends_with("2 kernels, each for sm 80 90\n"), "{table}");
    for (text, complaint) in [("SPILLS", "kernel_b on sm_80: "), ("WARNS", "it warns")] {
        package.write("kernels/b.cu", text);
        // The second time nothing is compiled.
        for _ in 0..2 {
            let output = package.check();
            let errors = String::from_utf8(output.stderr).unwrap();
            assert!(!output.status.success() && errors.contains(complaint), "{errors}");
        }
    }
}
