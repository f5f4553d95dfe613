//! Compiles `kernels/*.cu` with nvcc where feature `cuda` asks for it: each file
//! becomes PTX, and a fatbin of that PTX with the machine code of each GPU made
//! of it; what nvcc says of both is kept beside them. Knows no kernel by name,
//! and does nothing in the default build. `kernels/check` runs it by itself.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;

const KERNELS: &str = "kernels";

/// Compute capability that the PTX is written for. All machine code is made of
/// that PTX: what is tested as PTX is what runs.
const FLOOR: u32 = 80;

const FLAGS: [&str; 3] = ["-O3", "-std=c++17", "-lineinfo"];

const REMEDY: &str = "`deploy/cuda-toolkit DIR` assembles a toolkit from Python packages and \
                      prints the CUDA_HOME to set";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    let Err(error) = build() else { return ExitCode::SUCCESS };
    // cargo shows this as its own error, which is one line, and stderr below it.
    println!("cargo::error={}", error.lines().next().unwrap_or_default());
    eprintln!("{error}");
    ExitCode::FAILURE
}

fn build() -> Result<(), String> {
    // A new kernel brings a file here. Watching kernels/ would watch kernels/simt too.
    println!("cargo::rerun-if-changed=src/infer/cuda/kernels");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let compiler = Compiler::find()?;
    let (sources, headers) = (texts("cu")?, texts("cuh")?);
    let mut modules = Vec::new();
    for (name, text) in &sources {
        let mut hasher = DefaultHasher::new();
        (include_str!("build.rs"), &compiler.identity, text, &headers).hash(&mut hasher);
        modules.push(Module { name, folder: &out, key: hasher.finish().to_string() });
    }
    compile_all(&compiler, modules.iter().filter(|module| !module.is_compiled()).collect())?;
    write(&out.join("images.rs"), &table(&modules))
}

/// The files of `kernels/` with this ending, by name without it.
fn texts(ending: &str) -> Result<BTreeMap<String, String>, String> {
    let mut texts = BTreeMap::new();
    let failed = |error| format!("cannot list {KERNELS}: {error}");
    for entry in fs::read_dir(KERNELS).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|found| found == ending) {
            println!("cargo::rerun-if-changed={}", path.display());
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let failed = |error| format!("cannot read {}: {error}", path.display());
            texts.insert(name, fs::read_to_string(&path).map_err(failed)?);
        }
    }
    Ok(texts)
}

struct Compiler {
    nvcc: PathBuf,
    flags: Vec<OsString>,
    /// Compute capabilities that get machine code.
    capabilities: Vec<u32>,
    /// All that two compilers differ in which make different code of a text.
    identity: String,
}

impl Compiler {
    fn find() -> Result<Self, String> {
        let (nvcc, version) = find_nvcc()?;
        if nvcc.is_absolute() {
            println!("cargo::rerun-if-changed={}", nvcc.display());
        }
        let mut flags: Vec<OsString> = FLAGS.map(OsString::from).into();
        flags.extend(setting("NVCC_CCBIN").into_iter().flat_map(|host| ["-ccbin".into(), host]));
        let capabilities = match setting("CUDA_COMPUTE_CAP") {
            Some(list) => chosen(&list.to_string_lossy())?,
            None => known(&output(Command::new(&nvcc).arg("--list-gpu-code"))?),
        };
        // Flags that nvcc takes from the environment by itself.
        let unseen = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"].map(setting);
        let identity = format!("{version} {flags:?} {unseen:?} {capabilities:?}");
        Ok(Self { nvcc, flags, capabilities, identity })
    }

    /// `kernels/NAME.cu` into PTX, and that into the fatbin.
    fn compile(&self, module: &Module<'_>, threads: usize) -> Result<(), String> {
        let source = format!("{KERNELS}/{}.cu", module.name);
        let nvcc = || {
            let mut command = Command::new(&self.nvcc);
            command.args(&self.flags);
            command
        };
        let failed = |error| format!("nvcc does not compile {source}: {error}");
        // What half a compilation leaves must not pass for what was there before.
        write(&module.file("key"), "")?;
        let mut front = nvcc();
        front.args(["-ptx", &format!("-arch=compute_{FLOOR}"), "-o"]);
        let said = output(front.arg(module.file("ptx")).arg(&source)).map_err(failed)?;
        let machines = self.capabilities.iter().map(|capability| format!(",sm_{capability}"));
        let code = format!("code=[compute_{FLOOR}{}]", machines.collect::<String>());
        let mut back = nvcc();
        back.args(["-fatbin", "-Xfatbin", "-compress-all", "--threads", &threads.to_string()]);
        // Registers, shared memory and spills of each kernel: free to ask for.
        back.args(["-Xptxas", "-v"]);
        back.args(["-gencode", &format!("arch=compute_{FLOOR},{code}"), "-o"]);
        let said_of_code =
            output(back.arg(module.file("fatbin")).arg(module.file("ptx"))).map_err(failed)?;
        write(&module.file("log"), &(said + &said_of_code))?;
        write(&module.file("key"), &module.key)
    }
}

/// nvcc, and what it says its version is.
fn find_nvcc() -> Result<(PathBuf, String), String> {
    let start =
        |nvcc: PathBuf| output(Command::new(&nvcc).arg("--version")).map(|text| (nvcc, text));
    let settings = ["NVCC", "CUDA_HOME", "CUDA_PATH"].map(|name| (name, setting(name)));
    for (name, value) in settings {
        if let Some(value) = value.map(PathBuf::from) {
            let nvcc = if name == "NVCC" { value } else { value.join("bin/nvcc") };
            return start(nvcc)
                .map_err(|error| format!("{name} leads to no nvcc: {error}; {REMEDY}"));
        }
    }
    let places = ["nvcc", "/usr/local/cuda/bin/nvcc"];
    places.iter().find_map(|place| start(place.into()).ok()).ok_or_else(|| {
        format!(
            "feature cuda needs nvcc: NVCC, CUDA_HOME and CUDA_PATH are not set, and there is \
             none on PATH or in /usr/local/cuda; {REMEDY}"
        )
    })
}

/// Capabilities of a list such as `89` or `8.0,9.0`.
fn chosen(list: &str) -> Result<Vec<u32>, String> {
    let capability = |item: &str| match item.trim().replace('.', "").parse() {
        Ok(capability) if capability >= FLOOR => Ok(capability),
        _ => Err(format!("CUDA_COMPUTE_CAP must be numbers from {FLOOR}, like 80,89, got {list}")),
    };
    list.split(',').map(capability).collect()
}

/// Capabilities worth machine code among those that nvcc lists: those that
/// differ in it on servers and workstations up to 90, then the first of each
/// generation, whose code the later ones run too.
fn known(list: &str) -> Vec<u32> {
    let numbers = list.lines().filter_map(|line| line.trim().strip_prefix("sm_")?.parse().ok());
    let worth =
        |number: &u32| [80, 86, 89].contains(number) || *number >= 90 && number.is_multiple_of(10);
    let mut known: Vec<u32> = numbers.filter(worth).collect();
    known.sort_unstable();
    known
}

struct Module<'a> {
    name: &'a str,
    /// Where what is made of it lies.
    folder: &'a Path,
    /// Of everything that what is made of it depends on.
    key: String,
}

impl Module<'_> {
    fn file(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}.{ending}", self.name))
    }

    /// Whether an earlier build has left what this one would make: the key is
    /// written last.
    fn is_compiled(&self) -> bool {
        fs::read_to_string(self.file("key")).is_ok_and(|key| key == self.key)
    }
}

/// Compiles as many at once as cargo lets us have processors.
fn compile_all(compiler: &Compiler, modules: Vec<&Module<'_>>) -> Result<(), String> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(processors);
    let processors = processors.min(jobs).max(1);
    let workers = processors.min(modules.len());
    let threads = processors / workers.max(1);
    let queue = Mutex::new(modules.into_iter());
    let next = || queue.lock().ok()?.next();
    let work = || std::iter::from_fn(next).try_for_each(|module| compiler.compile(module, threads));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err("a thread of the build panicked".to_owned()))
        })
    })
}

/// The table that `src/infer/cuda/images.rs` includes, sorted by name.
fn table(modules: &[Module<'_>]) -> String {
    let row = |Module { name, .. }: &Module<'_>| {
        format!(
            "    Image {{\n        module: {name:?},\n        fatbin: include_bytes!(\"{name}.fatbin\"),\n        \
             ptx: include_str!(\"{name}.ptx\"),\n    }},\n"
        )
    };
    format!("&[\n{}]\n", modules.iter().map(row).collect::<String>())
}

/// An environment variable that is set and not empty; the build depends on it.
fn setting(name: &str) -> Option<OsString> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var_os(name).filter(|value| !value.is_empty())
}

/// What a command prints, anywhere, or why it failed.
fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program} does not start: {error}"))?;
    // nvcc prints some errors on stdout, and what it was asked for on stderr.
    let text = String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned();
    if output.status.success() { Ok(text) } else { Err(format!("{}\n{text}", output.status)) }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}
