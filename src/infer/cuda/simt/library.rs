//! A kernel's file as a shared library, compiled when it is first launched and
//! kept beside the test binary for as long as its text is the same.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::panic_any;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use libloading::Library;

use super::sanitizer;
use crate::infer::cuda::Launch;

/// `simt_NAME` of `kernels/simt/export.h`.
type Entry = unsafe extern "C" fn(
    num_params: usize,
    grid: *const u32,
    block: *const u32,
    shared_bytes: u32,
    params: *mut *mut c_void,
    order: i32,
) -> *const c_char;

/// What a panic holds where a text does not compile: a planted fault that the
/// compiler finds is none that a test has found.
#[derive(Debug)]
pub(super) struct NotCompiled(pub String);

/// Libraries by what they were compiled from.
static LIBRARIES: Mutex<BTreeMap<u64, Arc<Library>>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// Texts that stand for files of the tree: `(file name, text)`.
    static REPLACED: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Runs one launch to its end.
pub(super) fn launch(launch: &Launch, order: i32) {
    let library = library(launch.module);
    let name = format!("simt_{}\0", launch.function);
    let mut args = launch.args().to_vec();
    let mut params: Vec<*mut c_void> =
        args.iter_mut().map(|arg| std::ptr::from_mut(arg).cast()).collect();
    // SAFETY: `export.h` defines the symbol with this signature, and refuses
    // another number of parameters. Each parameter points to eight bytes, of
    // which the kernel reads as many as its type has. Addresses among them are
    // of buffers that `every_order` holds meanwhile; a kernel that leaves them
    // is what these tests are for.
    let error = unsafe {
        let entry: libloading::Symbol<'_, Entry> = library.get(name.as_bytes()).unwrap();
        let (grid, block) = (launch.grid.as_ptr(), launch.block.as_ptr());
        entry(params.len(), grid, block, launch.shared_bytes, params.as_mut_ptr(), order)
    };
    if !error.is_null() {
        // SAFETY: not null, it is a string that lives until this thread's next launch.
        let error = unsafe { CStr::from_ptr(error) }.to_string_lossy();
        panic!("{} in order {order}: {error}", launch.function);
    }
}

/// Runs `body` with the file `name` of `kernels/` replaced by `text`, on this thread.
pub(super) fn with_replaced<R>(name: &str, text: String, body: impl FnOnce() -> R) -> R {
    REPLACED.set(Some((name.to_owned(), text)));
    let result = body();
    REPLACED.set(None);
    result
}

/// The text of a file of `kernels/`.
pub(super) fn text(name: &str) -> String {
    let replaced = REPLACED.with_borrow(|replaced| match replaced {
        Some((file, text)) if file == name => Some(text.clone()),
        _ => None,
    });
    replaced.unwrap_or_else(|| std::fs::read_to_string(kernels().join(name)).unwrap())
}

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

fn library(module: &str) -> Arc<Library> {
    // Headers go into the key with the file: few and short.
    let mut hasher = DefaultHasher::new();
    let flags = sanitizer::flags();
    flags.hash(&mut hasher);
    let mut names: Vec<_> = [kernels(), kernels().join("simt"), kernels().join("simt/types")]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "cuh" || end == "h"))
        .collect();
    names.sort();
    names.push(kernels().join(format!("{module}.cu")));
    for path in &names {
        let name = path.strip_prefix(kernels()).unwrap().to_str().unwrap();
        text(name).hash(&mut hasher);
    }
    let key = hasher.finish();
    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let library = libraries.entry(key).or_insert_with(|| {
        let path = compiled(module, key, flags);
        // SAFETY: the library has no initialisers but those of the C++ runtime.
        Arc::new(unsafe { Library::new(path) }.unwrap())
    });
    Arc::clone(library)
}

/// The path of the compiled library.
fn compiled(module: &str, key: u64, flags: &[&str]) -> PathBuf {
    let binary = std::env::current_exe().unwrap();
    let folder = binary.parent().unwrap().join("simt");
    let path = folder.join(format!("{module}-{key:016x}.so"));
    if path.exists() {
        return path;
    }
    std::fs::create_dir_all(&folder).unwrap();
    // A file of this process: others may compile the same.
    let stem = format!("{module}-{key:016x}-{}", std::process::id());
    let source = folder.join(format!("{stem}.cpp"));
    // The text itself and no #include, so that a replaced one is found.
    let text = text(&format!("{module}.cu"));
    let header = format!("#include \"simt/export.h\"\n#line 1 \"{module}.cu\"\n");
    std::fs::write(&source, header + &text).unwrap();
    // A replaced header comes before the one of its name.
    let overlay = folder.join(&stem);
    std::fs::create_dir_all(&overlay).unwrap();
    REPLACED.with_borrow(|replaced| {
        if let Some((name, text)) = replaced.as_ref().filter(|(name, _)| name.ends_with(".cuh")) {
            std::fs::write(overlay.join(name), text).unwrap();
        }
    });
    let unfinished = folder.join(format!("{stem}.so"));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new(&compiler)
        // Kernels read 16 bytes of any type at once, as on the device.
        .args([
            "-std=c++20",
            "-O2",
            "-U_FORTIFY_SOURCE",
            "-fno-strict-aliasing",
            "-shared",
            "-fPIC",
        ])
        .args(flags)
        .arg("-I")
        .arg(&overlay)
        .arg("-I")
        .arg(kernels())
        .arg("-I")
        .arg(kernels().join("simt/types"))
        .args(["-o".as_ref(), unfinished.as_os_str(), source.as_os_str()])
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "kernel tests need a C++20 compiler, {compiler} does not start: {error}; set CXX"
            )
        });
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        panic_any(NotCompiled(format!("{compiler} does not compile {module}.cu: {errors}")));
    }
    std::fs::remove_file(source).unwrap();
    std::fs::remove_dir_all(overlay).unwrap();
    std::fs::rename(unfinished, &path).unwrap();
    path
}
